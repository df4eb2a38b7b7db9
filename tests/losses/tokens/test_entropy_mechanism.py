import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad

from polgrad import losses

RNG = np.random.default_rng(3)
LOGP = RNG.normal(-2, 0.5, size=(3, 4)).astype(np.float32)
BEHAVIOR = LOGP + RNG.normal(0, 0.5, size=(3, 4)).astype(np.float32)
ADVANTAGES = np.array([[1.5], [-0.5], [2.0]], np.float32)
SELECTED = RNG.random((3, 4)) < 0.3


def test_clip_cov_removes_the_selected_tokens_and_nothing_else():
    def both(selected):
        total = lambda x: losses.clip_cov(x, BEHAVIOR, ADVANTAGES, selected).sum()  # noqa: E731
        token = run(losses.clip_cov, LOGP, BEHAVIOR, ADVANTAGES, selected)
        return token, grad(total)(LOGP)

    kept = both(np.zeros_like(SELECTED))
    for x, y in zip(both(SELECTED), kept, strict=True):
        np.testing.assert_array_equal(x, np.where(SELECTED, 0.0, y))
    assert np.all(kept[1] != 0), "the test means nothing if the range clips"


def test_clip_cov_without_candidates_is_ppo():
    settings = {"clip_low": 0.2, "clip_high": 0.3}
    np.testing.assert_array_equal(
        run(losses.clip_cov, LOGP, BEHAVIOR, ADVANTAGES, np.zeros_like(SELECTED), **settings),
        run(losses.ppo_clip, LOGP, BEHAVIOR, ADVANTAGES, **settings),
    )


def test_kl_cov_values_and_gradient():
    loss = run(losses.kl_cov, LOGP, BEHAVIOR, ADVANTAGES, SELECTED, kl_coefficient=0.3)
    gap = LOGP - BEHAVIOR
    expected = -np.exp(gap) * ADVANTAGES + 0.3 * SELECTED * np.abs(gap)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradient = grad(
        lambda x: losses.kl_cov(x, BEHAVIOR, ADVANTAGES, SELECTED, kl_coefficient=0.3).sum()
    )(LOGP)
    expected = -np.exp(gap) * ADVANTAGES + 0.3 * SELECTED * np.sign(gap)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_kl_cov_without_a_penalty_is_the_unclipped_ratio_loss():
    np.testing.assert_array_equal(
        run(losses.kl_cov, LOGP, BEHAVIOR, ADVANTAGES, SELECTED, kl_coefficient=0.0),
        run(losses.ppo_clip, LOGP, BEHAVIOR, ADVANTAGES, clip_low=1.0, clip_high=np.inf),
    )


def test_the_penalty_has_no_slope_at_ratio_one():
    """jax differentiates abs at 0 to 1: a plain abs pushes every selected token down here."""
    total = lambda x: losses.kl_cov(x, LOGP, ADVANTAGES, np.ones_like(SELECTED)).sum()  # noqa: E731
    value, gradient = value_and_grad(total)(LOGP)
    np.testing.assert_allclose(gradient, np.broadcast_to(-ADVANTAGES, (3, 4)))
    assert value == -4 * ADVANTAGES.sum()


def test_bad_arguments_are_named():
    for function in (losses.clip_cov, losses.kl_cov):
        with pytest.raises(ValueError, match=r"selected has shape \[3\]"):
            function(LOGP, BEHAVIOR, ADVANTAGES, jnp.ones(3))
        with pytest.raises(ValueError, match=r"advantages has shape \[3\]"):
            function(LOGP, BEHAVIOR, ADVANTAGES[:, 0], SELECTED)


def test_defaults_and_what_is_stopped():
    behavior = np.full((1, 3), -2.0)
    logp = behavior + np.log([[2.5, 1.5, 0.01]])
    advantages, nobody = np.array([[1.0, 1.0, -1.0]]), np.zeros((1, 3), bool)
    clipped = losses.clip_cov(logp, behavior, advantages, nobody)
    np.testing.assert_allclose(clipped, [[-2.0, -1.5, 0.01]], rtol=1e-6)
    held = losses.kl_cov(logp, behavior, 0.0 * advantages, ~nobody)
    np.testing.assert_allclose(held, np.abs(logp - behavior), rtol=1e-6)
    slope = jax.grad(lambda a: losses.kl_cov(logp, behavior, a, ~nobody).sum())(
        jnp.asarray(advantages)
    )
    np.testing.assert_array_equal(slope, 0.0)
