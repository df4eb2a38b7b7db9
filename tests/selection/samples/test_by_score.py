import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run
from hypothesis import given
from hypothesis import strategies as st

from polgrad.selection import select_by_score

SCORES = jnp.array([3.0, 1.0, 2.0, 1.0, 5.0])


@pytest.mark.parametrize(
    ("which", "count", "kept"),
    [
        ("lowest", 2, [0, 1, 0, 1, 0]),
        ("lowest", 1, [0, 1, 0, 0, 0]),
        ("lowest", 0, [0, 0, 0, 0, 0]),
        ("highest", 2, [1, 0, 0, 0, 1]),
        ("highest", 4, [1, 1, 1, 0, 1]),
        ("middle", 1, [0, 0, 1, 0, 0]),
        ("middle", 3, [1, 0, 1, 1, 0]),
        ("middle", 9, [1, 1, 1, 1, 1]),
        ("highest", 9, [1, 1, 1, 1, 1]),
    ],
)
def test_by_hand(which, count, kept):
    np.testing.assert_array_equal(run(select_by_score, SCORES, which=which, count=count), kept)


def test_the_hardest_are_the_default():
    np.testing.assert_array_equal(run(select_by_score, SCORES, count=2), [0, 1, 0, 1, 0])


def test_invalid_prompts_are_never_kept():
    scores = jnp.array([np.nan, 4.0, -np.inf, 2.0, np.inf, 3.0])
    for which, kept in (
        ("lowest", [0, 0, 0, 1, 0, 0]),
        ("middle", [0, 0, 0, 0, 0, 1]),
        ("highest", [0, 1, 0, 0, 0, 0]),
    ):
        np.testing.assert_array_equal(run(select_by_score, scores, which=which, count=1), kept)
        all_kept = run(select_by_score, scores, which=which, count=6)
        np.testing.assert_array_equal(all_kept, [0, 1, 0, 1, 0, 1])
    valid = jnp.array([1, 0, 1, 1, 0])
    chosen = run(lambda s, v: select_by_score(s, count=2, valid=v), SCORES, valid)
    np.testing.assert_array_equal(chosen, [0, 0, 1, 1, 0])


@given(st.lists(st.integers(0, 5), min_size=5, max_size=5))
def test_it_is_a_stable_sort(scores):
    x = jnp.array(scores, float)
    order = np.argsort(scores, kind="stable")
    kept = np.flatnonzero(run(select_by_score, x, which="lowest", count=2))
    np.testing.assert_array_equal(np.sort(order[:2]), kept)
    kept = np.flatnonzero(run(select_by_score, x, which="middle", count=2))
    np.testing.assert_array_equal(np.sort(order[1:3]), kept)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="which is 'hard'"):
        select_by_score(SCORES, count=1, which="hard")
    with pytest.raises(ValueError, match="count is -1"):
        select_by_score(SCORES, count=-1)
    with pytest.raises(ValueError, match="scores has shape"):
        select_by_score(SCORES[None], count=1)
    with pytest.raises(ValueError, match="valid has shape"):
        select_by_score(SCORES, count=1, valid=jnp.ones(2))
