"""GSPO on answers and on tokens: hand numbers, gradients, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad

from polgrad import losses, masking

RNG = np.random.default_rng(0)
MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], np.float32)
LOGP = RNG.normal(-2, 0.5, size=(3, 4)).astype(np.float32)
ADVANTAGES = np.array([[1.5], [-0.5], [2.0]], np.float32)


# --- hand numbers ----------------------------------------------------------------------------


def test_gspo_values():
    behavior = jnp.zeros((3, 3))
    logp = jnp.array([[0.3, -0.1, 99.0], [0.6, 0.0, 0.0], [1.0, 1.0, 1.0]])
    mask = jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    signs = jnp.array([1.0, -1.0, 5.0])
    loss = run(losses.gspo, logp, behavior, signs, mask, clip_low=0.3, clip_high=0.3)
    np.testing.assert_allclose(loss, [-np.exp(0.1), np.exp(0.2), 0.0], rtol=1e-6)
    clipped = run(losses.gspo, logp, behavior, signs, mask)
    np.testing.assert_allclose(clipped, [-1.0004, np.exp(0.2), 0.0], rtol=1e-6)


# --- identities ------------------------------------------------------------------------------


def test_on_policy_gspo_has_the_token_mean_of_reinforce():
    gradient = grad(lambda x: losses.gspo(x, LOGP, ADVANTAGES[:, 0], MASK).sum())(jnp.asarray(LOGP))
    counts = np.maximum(MASK.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(gradient, -ADVANTAGES * MASK / counts, rtol=1e-6)


@pytest.mark.parametrize("width", [3e-4, 0.05, 1.0])
def test_gspo_equals_gspo_token_for_constant_advantages(width):
    behavior = LOGP + RNG.normal(0, 0.1, size=LOGP.shape).astype(np.float32)
    rows = MASK.any(1)
    clip = {"clip_low": width, "clip_high": width}

    def sequence(x):
        loss = losses.gspo(x, behavior, ADVANTAGES[:, 0], MASK, **clip)
        return masking.reduce(loss, rows, mode="sequence")

    def token(x):
        loss = losses.gspo_token(x, behavior, ADVANTAGES, MASK, **clip)
        return masking.reduce(loss, MASK, mode="sequence")

    a, b = (value_and_grad(f)(jnp.asarray(LOGP)) for f in (sequence, token))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-5, atol=1e-8)


# --- defaults, edges, what is stopped ----------------------------------------------------------


def test_sequence_clips_have_two_sides_and_masked_tokens_cost_nothing():
    # Ratios 2 and 0.8 with bounds 1.3 and 0.9, each on the side that is cut.
    logp = jnp.log(jnp.array([[2.0, 9.0], [0.8, 9.0]]))
    mask, signs = jnp.array([[1, 0], [1, 0]]), jnp.array([1.0, -1.0])
    bounds = {"clip_low": 0.1, "clip_high": 0.3}
    whole = run(losses.gspo, logp, jnp.zeros((2, 2)), signs, mask, **bounds)
    np.testing.assert_allclose(whole, [-1.3, 0.9], rtol=1e-6)
    tokens = run(losses.gspo_token, logp, jnp.zeros((2, 2)), signs[:, None], mask, **bounds)
    np.testing.assert_allclose(tokens, [[-1.3, 0.0], [0.9, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("name", ["reinforce", "ppo_clip", "cispo", "sapo", "gspo", "gspo_token"])
def test_advantages_and_behaviour_are_stopped(name):
    function, mask = getattr(losses, name), jnp.asarray(MASK)
    advantages = jnp.asarray(ADVANTAGES[:, 0] if name == "gspo" else ADVANTAGES)

    def total(behavior, advantages):
        given = (LOGP, advantages) if name == "reinforce" else (LOGP, behavior, advantages)
        return jnp.sum(function(*given, *([mask] if "gspo" in name else [])))

    for slope in jax.grad(total, argnums=(0, 1))(jnp.asarray(LOGP) - 0.1, advantages):
        np.testing.assert_array_equal(slope, 0.0)
