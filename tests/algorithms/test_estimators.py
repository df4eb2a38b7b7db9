"""Estimators of the advantage by hand: two prompts of three samples, of which one is invalid."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.algorithms import estimators

REWARDS = jnp.array([[1.0, 0.0, 5.0], [2.0, 4.0, 9.0]])
VALID = jnp.array([[True, True, True], [True, True, False]])

# The means of the groups are 2 and 3, that of all is 12/5. The sums of squares about the mean: 14 in
# the first group, 2 in the second, 1 + 0 + 25 + 4 + 16 - 144/5 = 17.2 in all.
CENTRED = np.array([[-1.0, -2.0, 3.0], [-1.0, 1.0, 0.0]])
HAND_COMPUTED = [
    # (R - mean of the group) / (deviation + 1e-6), with n - 1 under the root.
    (
        estimators.GroupRelative(),
        CENTRED / [[math.sqrt(14 / 2) + 1e-6], [math.sqrt(2 / 1) + 1e-6]],
    ),
    (estimators.GroupRelative(scale="batch"), CENTRED / (math.sqrt(17.2 / 4) + 1e-6)),
    (estimators.GroupRelative(scale="none"), CENTRED),
    # R less the mean of the others: 2.5, 3, 0.5; 4, 2.
    (estimators.LeaveOneOut(), [[-1.5, -3.0, 4.5], [-2.0, 2.0, 0.0]]),
    (estimators.Baseline(), [[-1.4, -2.4, 2.6], [-0.4, 1.6, 0.0]]),
    (estimators.Baseline("none"), [[1.0, 0.0, 5.0], [2.0, 4.0, 0.0]]),
]


@pytest.mark.parametrize(("estimator", "expected"), HAND_COMPUTED)
def test_advantages_by_hand(estimator, expected):
    np.testing.assert_allclose(estimator.advantages(REWARDS, VALID), expected, rtol=1e-6)


def test_whitened_returns_by_hand():
    """A return is the sum of a token's own and all later rewards; the mask leaves two tokens out."""
    rewards = jnp.array([[1.0, 2.0, 7.0], [0.0, 7.0, 4.0]])
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    # Returns 3, 2 and 4, 4: of mean 13/4 and sum of squares 45 - 169/4 = 2.75 about it.
    scale = math.sqrt(2.75 / 3 + 1e-8)
    expected = [[-0.25 / scale, -1.25 / scale, 0], [0.75 / scale, 0, 0.75 / scale]]
    found = estimators.WhitenedReturns().token_advantages(rewards, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_estimator_without_advantages_says_so():
    class Mine(estimators.Estimator):
        pass

    with pytest.raises(NotImplementedError, match=r"Mine has no method advantages\(rewards, valid"):
        Mine().advantages(REWARDS, VALID)


def test_another_baseline_is_refused():
    with pytest.raises(ValueError, match="baseline is 'group', expected"):
        estimators.Baseline("group").advantages(REWARDS, VALID)
