"""Next-token distributions: hand-computed numbers, orders of filters, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polgrad import policies
from polgrad.policies import distributions

INF = np.inf


def kept(logits, **filters):
    return np.isfinite(distributions.filter_logits(jnp.asarray(logits), **filters)).tolist()


def test_log_prob_and_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])) + 3.0
    logp = distributions.log_prob(logits, jnp.array([1, 2]))
    np.testing.assert_allclose(logp, np.log([0.25, 0.7]), rtol=1e-6)
    expected = [1.5 * np.log(2), -(0.1 * np.log(0.1) + 0.2 * np.log(0.2) + 0.7 * np.log(0.7))]
    np.testing.assert_allclose(distributions.entropy(logits), expected, rtol=1e-6)


def test_forbidden_tokens_have_no_mass_and_no_gradient():
    logits = jnp.array([1.0, -INF, 1.0, -INF])
    np.testing.assert_allclose(distributions.log_probs(logits), [-np.log(2), -INF] * 2, rtol=1e-6)
    assert distributions.entropy(logits) == pytest.approx(np.log(2))
    for function in (distributions.entropy, lambda z: distributions.log_prob(z, jnp.array(0))):
        gradient = jax.grad(function)(logits)
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[1::2] == 0)


def test_a_row_without_allowed_tokens_is_defined():
    logits = jnp.full((3,), -INF)
    assert np.all(distributions.log_probs(logits) == -INF)
    assert distributions.entropy(logits) == 0
    assert np.all(jax.grad(distributions.entropy)(logits) == 0)


def test_bfloat16_is_reduced_in_float32_and_float64_stays():
    logits = jnp.linspace(-2, 2, 5, dtype=jnp.bfloat16)
    assert distributions.entropy(logits).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.linspace(-2.0, 2.0, 5, dtype=jnp.float64)
        gradient = jax.grad(lambda z: distributions.log_prob(z, jnp.array(2)))(wide)
        np.testing.assert_allclose(gradient, np.eye(5)[2] - jax.nn.softmax(wide), atol=1e-15)
        assert distributions.filter_logits(wide, top_p=0.5).dtype == jnp.float64


def test_temperature_divides_and_zero_is_greedy():
    logits = jnp.array([1.0, 3.0, 3.0, -1.0])
    np.testing.assert_allclose(distributions.filter_logits(logits, temperature=2.0), logits / 2)
    greedy = distributions.filter_logits(logits, temperature=0.0)
    np.testing.assert_array_equal(greedy, [-INF, 0.0, -INF, -INF])
    np.testing.assert_array_equal(distributions.log_probs(greedy), greedy)


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
    result = np.asarray(distributions.filter_logits(jnp.asarray(logits), **filters))
    survivors = np.isfinite(result)
    assert survivors[logits.argmax()]
    np.testing.assert_array_equal(result[survivors], logits[survivors] / np.float32(0.7))
    # Whatever is kept is at least as likely as whatever is dropped.
    assert not np.any(~survivors) or logits[survivors].min() > logits[~survivors].max()
    order = list(range(6))
    random.shuffle(order)
    shuffled = distributions.filter_logits(jnp.asarray(logits[order]), **filters)
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
        distributions.filter_logits(jnp.zeros(3), **filters)


def _two_token_policies():
    """Logits after the empty prefix, after 0 and after 1; the reference is uniform."""
    return jnp.array([[0.4, -0.4], [0.3, -0.3], [-0.8, 0.8]])


def _sequences(logits):
    """Probabilities of 00, 01, 10, 11."""
    first, second = jax.nn.softmax(logits[0]), jax.nn.softmax(logits[1:])
    return (first[:, None] * second).reshape(-1)


def test_mixture_of_tokens_is_not_the_mixture_of_sequences():
    policy = _two_token_policies()
    reference = jnp.zeros_like(policy)
    mixed = policies.geometric_mixture(policy, reference, reference_weight=0.5)
    expected = [0.343912, 0.254776, 0.124417, 0.276895]
    np.testing.assert_allclose(_sequences(mixed), expected, atol=1e-6)
    whole = policies.geometric_mixture(
        jnp.log(_sequences(policy)), jnp.log(_sequences(reference)), reference_weight=0.5
    )
    expected = [0.351659, 0.260515, 0.120236, 0.267590]
    np.testing.assert_allclose(jax.nn.softmax(whole), expected, atol=1e-6)


def test_mixture_ends_and_constants():
    policy, reference = jax.random.normal(jax.random.key(0), (2, 3, 5))
    mix = policies.geometric_mixture
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=0.0), policy)
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=1.0), reference)
    shifted = mix(policy + 3.0, jax.nn.log_softmax(reference), reference_weight=0.25)
    plain = mix(policy, reference, reference_weight=0.25)
    np.testing.assert_allclose(jax.nn.softmax(shifted), jax.nn.softmax(plain), atol=1e-6)
    direct = jax.nn.softmax(policy) ** 0.75 * jax.nn.softmax(reference) ** 0.25
    direct = direct / direct.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(plain), direct, atol=1e-6)


def test_mixture_with_forbidden_tokens():
    policy, reference = jnp.array([0.0, -INF, 1.0]), jnp.array([0.5, 0.5, -INF])
    mix = policies.geometric_mixture
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=0.0), policy)
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=1.0), reference)
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=0.5), [0.25, -INF, -INF])


def test_mixture_refuses_bad_input():
    with pytest.raises(ValueError, match="reference_weight"):
        policies.geometric_mixture(jnp.zeros(3), jnp.zeros(3), reference_weight=1.5)
    with pytest.raises(ValueError, match="reference_logits"):
        policies.geometric_mixture(jnp.zeros(3), jnp.zeros(4), reference_weight=0.5)
