"""What a filter amounts to: exact probabilities by enumeration, calibration by hand, edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run
from filters import KINDS, by_rank
from hypothesis import given
from hypothesis import strategies as st

from polgrad import selection

# --- the filtered policy ---------------------------------------------------------------------------


def filtered(probabilities, rewards, weights):
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, float) for x in (probabilities, rewards, weights))
        return np.asarray(jax.jit(selection.filtered_policy)(*arrays))


@pytest.mark.parametrize(
    ("kind", "good"),
    [("none", 0.3), ("best", 0.83193), ("best_random", 0.49947375), ("best_worst", 0.41718)],
)
def test_two_actions_by_hand(kind, good):
    found = filtered([0.3, 0.7], [1.0, 0.0], by_rank(kind, 5))
    np.testing.assert_allclose(found, [good, 1 - good], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rewards", [(0.3, -1.0, 2.0, 0.9), (0.5, 1.0, 0.5, 0.0)])
def test_the_filtered_policy_is_that_of_all_draws(kind, rewards):
    """Every list of four draws, its samples weighed by rank, ties shared."""
    pi, n = np.array([0.4, 0.1, 0.2, 0.3]), 4
    expected = np.zeros(4)
    draws = np.array(list(itertools.product(range(4), repeat=n)))
    weights = np.asarray(run(selection.filtered_weights, np.array(rewards)[draws], kind=kind))
    for actions, chance in zip(draws, weights, strict=True):
        np.add.at(expected, actions, pi[actions].prod() * chance)
    found = filtered(pi, rewards, by_rank(kind, n))
    np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-12)


def test_limits_of_the_filtered_policy():
    for kind in KINDS:
        alone = filtered([0.2, 0.5, 0.3], [0.0, 1.0, 2.0], by_rank(kind, 1))
        np.testing.assert_allclose(alone, [0.2, 0.5, 0.3], atol=1e-12)
        if kind != "best":
            two = filtered([0.2, 0.5, 0.3], [0.0, 1.0, 2.0], by_rank(kind, 2))
            np.testing.assert_allclose(two, [0.2, 0.5, 0.3], atol=1e-12)
    for n in (3, 4, 7):
        np.testing.assert_allclose(filtered([0.5, 0.5], [1, 0], by_rank("best_worst", n)), 0.5)
    never = filtered([0.0, 1.0, 0.0], [2.0, 1.0, 1.0], by_rank("best", 3))
    np.testing.assert_array_equal(never, [0.0, 1.0, 0.0])
    empty = filtered([0.0, 1.0], [2.0, 1.0], by_rank("best_random", 3))
    np.testing.assert_array_equal(empty, [0.0, 1.0])


# --- calibration ----------------------------------------------------------------------------------


def test_calibration_by_hand():
    rewards, scores = np.array([-1.0, 0.0, 1.0]), np.array([0.0, 0.2, 1.0])
    np.testing.assert_allclose(
        run(selection.reward_calibration, rewards, scores), 0.892857, atol=1e-6
    )
    # The units of neither matter.
    small = run(selection.reward_calibration, 0.1 * rewards + 3, 0.1 * scores)
    np.testing.assert_allclose(small, 0.892857, atol=1e-5)
    line = run(selection.reward_calibration, rewards, 3 - 2 * rewards)
    np.testing.assert_allclose(line, 1.0, rtol=1e-6)
    for x, s in ((rewards, np.ones(3)), (np.ones(3), scores)):
        assert run(selection.reward_calibration, x, s) == 0.0
    # 0.1 has no exact form, and a mean of it may miss it.
    assert run(selection.reward_calibration, np.arange(7.0), np.full(7, 0.1), groups=3) == 0.0


@given(seed=st.integers(0, 10_000))
def test_calibration_groups_by_reward(seed):
    rng = np.random.default_rng(seed)
    rewards, scores = rng.permutation(24) / 7, rng.normal(size=24)
    valid = rng.random(24) < 0.8
    order = np.argsort(rewards[valid])
    number = np.arange(order.size) * 4 // order.size
    x, s = (
        np.array([v[valid][order][number == g].mean() for g in range(4)]) for v in (rewards, scores)
    )
    expected = np.corrcoef(x, s)[0, 1] ** 2
    with jax.enable_x64(True):
        found = CALIBRATION(jnp.asarray(rewards), jnp.asarray(scores), jnp.asarray(valid))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


CALIBRATION = jax.jit(lambda r, s, v: selection.reward_calibration(r, s, groups=4, valid=v))


def test_calibration_edges():
    """Equal rewards share a group, whatever the order; missing ones are left out."""
    rewards = np.array([0.0, 1.0, 1.0, 1.0, 2.0, np.nan, 3.0])
    scores = np.array([0.0, 5.0, -3.0, 1.0, 4.0, 9.0, np.nan])
    found = run(selection.reward_calibration, rewards, scores, groups=5)
    x, s = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 4.0])
    np.testing.assert_allclose(found, np.corrcoef(x, s)[0, 1] ** 2, rtol=1e-5)
    assert run(selection.reward_calibration, np.full(7, np.nan), scores) == 0.0
    # Fifteen groups by default.
    many = np.arange(30.0)
    spiky = np.where(many % 2, 1.0, -1.0) + many
    found = run(selection.reward_calibration, many, spiky)
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)
    assert run(selection.reward_calibration, many, spiky, groups=16) < 0.9999


# --- mistakes --------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="probabilities"):
        selection.filtered_policy(x, x, x[0])
    with pytest.raises(ValueError, match="rewards"):
        selection.filtered_policy(x[0], x[0, :2], x[0])
    with pytest.raises(ValueError, match="weights"):
        selection.filtered_policy(x[0], x[0], x)
    with pytest.raises(ValueError, match="rewards"):
        selection.reward_calibration(x, x)
    with pytest.raises(ValueError, match="scores"):
        selection.reward_calibration(x[0], x[0, :2])
    with pytest.raises(ValueError, match="valid"):
        selection.reward_calibration(x[0], x[0], valid=x[0, :2])
    with pytest.raises(ValueError, match="groups is 0"):
        selection.reward_calibration(x[0], x[0], groups=0)
    run(selection.reward_calibration, x[0], x[0], groups=1)
