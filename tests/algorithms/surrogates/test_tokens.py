"""Surrogates of tokens by hand: the ratios 0.5, 1 and 2, with advantages of 1 and -1."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored import stored_rollouts

from polgrad import algorithms
from polgrad.algorithms import surrogates
from polgrad.contract import Outputs

LOGP = jnp.log(jnp.array([[0.5, 1.0, 2.0]] * 2)) - 1.0
BEHAVIOR = jnp.full((2, 3), -1.0)
ADVANTAGES = jnp.array([[1.0], [-1.0]])
L = math.log(2)


def gate(x):
    return 1.0 / (1.0 + math.exp(-x))


# Losses of the six tokens, and those that have no gradient; None for a surrogate without a clip.
HAND_COMPUTED = [
    # -A log p
    (surrogates.LogLikelihood(), [[1 + L, 1, 1 - L], [-1 - L, -1, -1 + L]], None),
    # -min(r A, clip(r, 0.8, 1.2) A)
    (surrogates.PPOClip(), [[-0.5, -1, -1.2], [0.8, 1, 2]], [[0, 0, 1], [1, 0, 0]]),
    # The same, but no more than 1.5 |A|.
    (
        surrogates.PPOClip(clip_low=0.6, clip_high=0.3, dual_clip=1.5),
        [[-0.5, -1, -1.3], [0.5, 1, 1.5]],
        [[0, 0, 1], [0, 0, 1]],
    ),
    # -min(s A, clip(s) A), s = 1, the geometric mean of the ratios.
    (surrogates.GSPO(), [[-1, -1, -1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]),
    # -clip(r, 0.7, 1.5) A log p
    (
        surrogates.CISPO(cap_low=0.7, cap_high=1.5),
        [[0.7 * (1 + L), 1, 1.5 * (1 - L)], [-0.7 * (1 + L), -1, -1.5 * (1 - L)]],
        None,
    ),
    # -4 / tau sigmoid(tau (r - 1)) A, tau 1 and 1.05.
    (
        surrogates.SAPO(),
        [
            [-4 * gate(-0.5), -2, -4 * gate(1.0)],
            [4 / 1.05 * gate(-0.525), 2 / 1.05, 4 / 1.05 * gate(1.05)],
        ],
        None,
    ),
]


@pytest.mark.parametrize(("surrogate", "losses", "clipped"), HAND_COMPUTED)
def test_losses_of_tokens_by_hand(surrogate, losses, clipped):
    mask = jnp.ones((2, 3))
    given = LOGP, BEHAVIOR, ADVANTAGES, mask
    np.testing.assert_allclose(surrogate.surrogate(*given), losses, rtol=1e-6)
    found = surrogate.clipped(*given)
    if clipped is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, np.array(clipped, bool))


def test_the_ratio_of_a_sequence_leaves_masked_tokens_out():
    """Of the ratios 0.5 and 1 the geometric mean is 0.707: clipped to 1 - 3e-4 where A < 0."""
    mask = jnp.array([[1.0, 1.0, 0.0]] * 2)
    found = surrogates.GSPO().surrogate(LOGP, BEHAVIOR, ADVANTAGES, mask)
    root, bound = math.sqrt(0.5), 1 - 3e-4
    np.testing.assert_allclose(found, [[-root, -root, 0], [bound, bound, 0]], rtol=1e-6)
    clipped = surrogates.GSPO().clipped(LOGP, BEHAVIOR, ADVANTAGES, mask)
    np.testing.assert_array_equal(clipped, [[False] * 3, [True] * 3])


def test_cispo_counts_the_ratios_that_its_caps_change():
    logp = jnp.log(jnp.array([[0.5, 2.0, 6.0]]))
    outputs, batch = Outputs(logp), {"mask": jnp.ones((1, 3)), "advantages": jnp.ones((1, 1))}
    capped, count = surrogates.CISPO().metrics(outputs, batch, jnp.zeros((1, 3)))["capped_fraction"]
    assert (capped, count) == (1, 3)


@pytest.mark.parametrize(
    "settings",
    [
        algorithms.GRPO(clip_low=0.1, clip_high=0.3, dual_clip=1.5),
        algorithms.GSPO(clip_low=0.05, clip_high=0.1),
        algorithms.ClipCov(clip_low=0.1, clip_high=0.1),
        algorithms.ReinforcePlusPlus(dual_clip=1.5),
        algorithms.CISPO(),
        algorithms.SAPO(),
    ],
)
def test_clipped_tokens_are_those_without_gradient(settings):
    with jax.enable_x64(True):
        experience = jax.tree.map(jnp.asarray, stored_rollouts())
        behavior, mask = experience["behavior_logp"], experience["mask"]
        logp = behavior + np.random.default_rng(4).normal(0, 0.6, mask.shape) * mask
        advantage = jnp.asarray(np.random.default_rng(1).normal(size=(len(mask), 1)))
        gradient = jax.grad(lambda x: settings.surrogate(x, behavior, advantage, mask).sum())(logp)
        clipped = settings.clipped(logp, behavior, advantage, mask)
    gradient, counted = np.asarray(gradient), np.asarray(mask) > 0
    clipped = None if clipped is None else np.asarray(clipped)
    if clipped is None:
        assert (gradient[counted] != 0).all()
    else:
        np.testing.assert_array_equal(gradient[counted] == 0, clipped[counted])
        assert 0 < np.sum(clipped[counted]) < counted.sum()
