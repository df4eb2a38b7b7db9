"""Truncated weights of TOPR."""

import jax
import jax.numpy as jnp
import numpy as np

from polgrad.losses.inputs import topr_weights


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def test_weights_carry_no_gradient():
    arguments = jnp.array([-2.0]), jnp.array([-1.0]), jnp.array([-1.0])
    for gradient in grad(lambda *a: topr_weights(*a).sum(), argnums=(0, 1, 2))(*arguments):
        np.testing.assert_array_equal(gradient, 0.0)


def test_weights_by_default_are_those_of_topr():
    logp, behavior = jnp.array([-1.0, -1.0, -1.0, -3.0]), jnp.array([-2.0, -2.0, -2.0, -1.0])
    rewards = jnp.array([1.0, -1.0, 0.0, -1.0])
    found = topr_weights(logp, behavior, rewards)
    np.testing.assert_allclose(found, [1.0, 1.0, 0.0, np.exp(-2.0)], rtol=1e-6)
    wide = topr_weights(logp, behavior, rewards, positive=(0.0, 2.0), negative=(0.5, 5.0))
    np.testing.assert_allclose(wide, [2.0, np.e, 0.0, 0.5], rtol=1e-6)
