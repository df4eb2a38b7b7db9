"""Scores of whole answers."""

import jax
import jax.numpy as jnp
import numpy as np
from compiled import grad, run
from one_group import one_group

from polgrad import losses

# Arrays of rank 1 are one group.
one_disco_b = one_group(losses.disco_b)

RNG = np.random.default_rng(5)
LOGP = RNG.normal(-2, 0.5, (4, 3)).astype(np.float32)
BEHAVIOR = LOGP + RNG.normal(0, 0.3, (4, 3)).astype(np.float32)
MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], np.float32)


def test_scores_by_hand():
    by_hand = [LOGP[0].mean(), LOGP[1, 0], LOGP[2, 1:].mean(), 0.0]
    np.testing.assert_allclose(run(losses.sequence_score, LOGP, BEHAVIOR, MASK), by_hand, rtol=1e-6)
    ratio = np.exp(LOGP - BEHAVIOR)
    by_hand = [ratio[0].mean(), ratio[1, 0], ratio[2, 1:].mean(), 0.0]
    found = run(losses.sequence_score, LOGP, BEHAVIOR, MASK, kind="l_ratio")
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


def test_on_policy_both_scores_have_the_same_gradient():
    rewards = jnp.array([1.0, 0.0, 0.0, 1.0])

    def loss(logp, kind):
        score = losses.sequence_score(logp, jax.lax.stop_gradient(logp), MASK, kind=kind)
        return one_disco_b(score, rewards, valid=MASK.any(1))

    slopes = [grad(lambda x: loss(x, kind))(LOGP) for kind in ("log_l", "l_ratio")]  # noqa: B023
    np.testing.assert_allclose(*slopes, rtol=1e-5)
    assert np.any(slopes[0] != 0)


def test_a_token_that_the_policy_excludes_counts_zero():
    logp = np.array([[-np.inf, -2.0]])
    found = losses.sequence_score(logp, logp, np.ones((1, 2)))
    np.testing.assert_allclose(found, -1.0)
    slope = jax.grad(lambda x: losses.sequence_score(x, logp, jnp.ones((1, 2))).sum())(
        jnp.asarray(logp)
    )
    np.testing.assert_allclose(slope, [[0.0, 0.5]])
