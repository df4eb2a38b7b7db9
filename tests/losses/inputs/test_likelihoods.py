"""f-DPO's scores, LD-DPO's log-probabilities, WPO's weights: by hand, reductions, edges."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import divergences, losses

PAIR = np.array([1.0]), np.array([-0.5])
GENERATORS = {
    "reverse_kl": (divergences.reverse_kl, 0.620957),
    "forward_kl": (divergences.forward_kl, 0.631154),
    "jensen_shannon": (divergences.jensen_shannon, 0.660652),
    "alpha": (divergences.alpha(0.5), 0.627691),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", GENERATORS)
def test_f_dpo_by_hand(name):
    divergence, value = GENERATORS[name]
    score = functools.partial(losses.f_dpo_score, divergence=divergence)
    loss = losses.dpo(score(PAIR[0]), score(PAIR[1]), beta=0.1)
    np.testing.assert_allclose(loss, value, atol=1e-6)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon"])
def test_f_dpo_recovers_the_optimum_of_its_divergence(name):
    """Scores that equal reward / beta up to a constant are where reward - beta D_f is stationary."""
    divergence, _ = GENERATORS[name]
    reference, beta = np.array([0.2, 0.5, 0.3]), 0.7
    policy = np.array([0.5, 0.3, 0.2])
    score = losses.f_dpo_score(np.log(policy / reference), divergence=divergence)
    rewards = beta * np.asarray(score)

    def objective(logits):
        log_policy = jax.nn.log_softmax(logits)
        distance = divergences.f_divergence(divergence, log_policy, jnp.log(reference))
        return jnp.exp(log_policy) @ rewards - beta * distance

    np.testing.assert_allclose(jax.grad(objective)(jnp.log(policy)), 0.0, atol=1e-12)


def test_f_dpo_scores_are_bounded():
    score = functools.partial(losses.f_dpo_score, divergence=divergences.reverse_kl)
    ratios = jnp.array([-jnp.inf, -41.0, 40.0, 41.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(score(ratios), [-39.0, -39.0, 41.0, 41.0, 41.0, 1.0])
    slope = jax.grad(lambda x: score(x).sum())(ratios)
    np.testing.assert_array_equal(slope, [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(score(ratios[1:2], clip=50.0), [-40.0])
    np.testing.assert_array_equal(score(ratios[1:2], clip=0.5), [0.5])
    for clip in (0.0, 81.0):
        with pytest.raises(ValueError, match="clip"):
            score(ratios, clip=clip)


LOGP = np.array([[-1.0, -2.0, -3.0, -4.0], [-5.0, -6.0, -7.0, -8.0], [-1.0, -jnp.inf, -2.0, 0.0]])
MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0]])


def test_surplus_tokens_count_less():
    short = losses.desensitized_logp(LOGP, MASK, np.array([2, 1, 5]))
    np.testing.assert_allclose(short, [-3.0 - 3.5, -5.0 - 7.5, -22.0])
    plain = losses.desensitized_logp(LOGP, MASK, np.array([2, 1, 5]), alpha=1.0)
    np.testing.assert_allclose(plain, [-10.0, -20.0, -22.0])
    none = losses.desensitized_logp(LOGP, MASK, np.array([0, 2, 0]), alpha=0.0)
    np.testing.assert_allclose(none, [0.0, -12.0, 0.0])
    slope = jax.grad(lambda x: losses.desensitized_logp(x, MASK, jnp.array([2, 1, 1])).sum())
    np.testing.assert_allclose(slope(LOGP), [[1, 1, 0.5, 0.5], [1, 0, 0.5, 0.5], [0, 0, 0.5, 0]])


def test_wpo_weighs_an_answer_by_how_likely_the_policy_would_draw_it():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5]]]))
    logp, mask = np.log(np.array([[0.5, 0.1, 0.2]])), np.array([[1, 1, 0]])
    by_hand = math.sqrt((0.5 / 0.375) * (0.1 / 0.66))
    np.testing.assert_allclose(losses.wpo_weight(logp, logits, mask), [by_hand], rtol=1e-12)
    np.testing.assert_allclose(losses.wpo_weight(logp, logits, 0 * mask), [1.0])
    slopes = jax.grad(lambda x, z: losses.wpo_weight(x, z, mask).sum(), argnums=(0, 1))
    assert not any(np.any(s) for s in slopes(jnp.asarray(logp), jnp.asarray(logits)))
    certain = losses.wpo_weight(np.array([[-np.inf]]), logits[:, :1], mask[:, :1])
    np.testing.assert_allclose(certain, [math.exp(-20.0) / 0.375])


def test_a_uniform_policy_gives_weight_one():
    logits, logp = np.zeros((2, 3, 5)), np.full((2, 3), -math.log(5.0))
    np.testing.assert_allclose(losses.wpo_weight(logp, logits, np.ones((2, 3))), 1.0, rtol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match="alpha"):
        losses.desensitized_logp(LOGP, MASK, np.ones(3), alpha=1.1)
    with pytest.raises(ValueError, match="alpha"):
        losses.desensitized_logp(LOGP, MASK, np.ones(3), alpha=-0.1)
    with pytest.raises(ValueError, match="common_length"):
        losses.desensitized_logp(LOGP, MASK, np.ones(2))
    with pytest.raises(ValueError, match="mask"):
        losses.desensitized_logp(LOGP, MASK[:2], np.ones(3))
    with pytest.raises(ValueError, match="logp"):
        losses.desensitized_logp(LOGP[0], MASK[0], np.ones(4))
    with pytest.raises(ValueError, match="logits"):
        losses.wpo_weight(LOGP, LOGP, MASK)
    with pytest.raises(ValueError, match="logits"):
        losses.wpo_weight(LOGP, np.zeros((3, 3, 2)), MASK)
    with pytest.raises(ValueError, match="mask"):
        losses.wpo_weight(LOGP, np.zeros((3, 4, 2)), MASK[:2])
    with pytest.raises(ValueError, match="logp"):
        losses.wpo_weight(LOGP[0], np.zeros((3, 4, 2)), MASK[0])
