"""Filters of a next-token distribution: numbers by hand, their order, and the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polgrad.distributions import log_softmax
from polgrad.rollouts.token_filters import filter_logits

INF = np.inf


def kept(logits, **filters):
    return np.isfinite(filter_logits(jnp.asarray(logits), **filters)).tolist()


def test_temperature_divides_and_zero_is_greedy():
    logits = jnp.array([1.0, 3.0, 3.0, -1.0])
    np.testing.assert_allclose(filter_logits(logits, temperature=2.0), logits / 2)
    greedy = filter_logits(logits, temperature=0.0)
    np.testing.assert_array_equal(greedy, [-INF, 0.0, -INF, -INF])
    np.testing.assert_array_equal(log_softmax(greedy), greedy)


def test_filters_by_hand():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
    assert kept(logits, top_k=2) == [False, True, False, True]
    assert kept(logits, top_k=9) == [True] * 4
    # Mass 0.4, 0.7, 0.9, 1.0: the smallest set that reaches the number.
    assert kept(logits, top_p=0.39) == [False, True, False, False]
    assert kept(logits, top_p=0.41) == [False, True, False, True]
    assert kept(logits, top_p=0.71) == [False, True, True, True]
    assert kept(logits, top_p=1e-9) == [False, True, False, False]
    # Thresholds 0.4 * 0.6 = 0.24 and 0.4 * 0.2 = 0.08.
    assert kept(logits, min_p=0.6) == [False, True, False, True]
    assert kept(logits, min_p=0.2) == [True] * 4
    assert kept(logits, min_p=1.0) == [False, True, False, False]


def test_filters_act_in_order_on_what_is_left():
    probabilities = np.array([0.1, 0.4, 0.2, 0.3])
    # After top-k = 2 the two left hold 4/7 and 3/7: 0.5 is reached by the first alone,
    # although without top-k 0.5 needs two tokens.
    assert kept(np.log(probabilities), top_p=0.5) == [False, True, False, True]
    assert kept(np.log(probabilities), top_k=2, top_p=0.5) == [False, True, False, False]
    # At temperature 2 probabilities go as square roots: the first three hold 0.83.
    assert kept(np.log(probabilities), top_p=0.8) == [False, True, True, True]
    assert kept(np.log(probabilities), temperature=2.0, top_p=0.84) == [True] * 4


def test_equal_logits_are_kept_together():
    logits = [0.0, 1.0, 1.0, -1.0]
    assert kept(logits, top_k=1) == [False, True, True, False]
    assert kept(logits, top_p=0.1) == [False, True, True, False]


@given(
    st.lists(st.sampled_from([-1.5, -0.5, 0.0, 0.25, 1.0, 2.0]), min_size=6, max_size=6),
    st.integers(0, 6),
    st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    st.randoms(use_true_random=False),
)
def test_filters_keep_the_best_and_do_not_see_the_order(values, top_k, top_p, min_p, random):
    filters = {"temperature": 0.7, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    logits = np.array(values, np.float32)
    result = np.asarray(filter_logits(jnp.asarray(logits), **filters))
    survivors = np.isfinite(result)
    assert survivors[logits.argmax()]
    np.testing.assert_array_equal(result[survivors], logits[survivors] / np.float32(0.7))
    # Whatever is kept is at least as likely as whatever is dropped.
    assert not np.any(~survivors) or logits[survivors].min() > logits[~survivors].max()
    order = list(range(6))
    random.shuffle(order)
    shuffled = filter_logits(jnp.asarray(logits[order]), **filters)
    np.testing.assert_array_equal(shuffled, result[order])


@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2.0},
    ],
)
def test_a_number_out_of_range_is_named(filters):
    with pytest.raises(ValueError, match=next(iter(filters))):
        filter_logits(jnp.zeros(3), **filters)


def test_float64_stays():
    with jax.enable_x64(True):
        wide = jnp.linspace(-2.0, 2.0, 5, dtype=jnp.float64)
        assert filter_logits(wide, top_p=0.5).dtype == jnp.float64
