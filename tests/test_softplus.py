"""Our softplus against that of jax: values, two derivatives, ends, formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad._softplus import log_sigmoid, softplus


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_value_and_derivatives(dtype):
    with jax.enable_x64(True):
        x = jnp.asarray(np.concatenate([np.linspace(-50, 50, 201), [1e-9, -800, 800]]), dtype)
        tight = {"rtol": 2e-6 if dtype == jnp.float32 else 1e-12, "atol": 0}
        for ours, theirs in ((softplus, jax.nn.softplus), (log_sigmoid, jax.nn.log_sigmoid)):
            assert ours(x).dtype == dtype
            np.testing.assert_allclose(ours(x), theirs(x), **tight)
            slope = jax.vmap(jax.grad(ours))
            np.testing.assert_allclose(slope(x), jax.vmap(jax.grad(theirs))(x), **tight)
            bend = jax.vmap(jax.grad(jax.grad(ours)))
            sigma = jax.nn.sigmoid(x)
            sign = 1 if ours is softplus else -1
            np.testing.assert_allclose(
                bend(x), sign * sigma * jax.nn.sigmoid(-x), rtol=1e-4, atol=1e-7
            )


def test_at_zero_and_at_the_ends():
    np.testing.assert_allclose(jax.grad(softplus)(0.0), 0.5)
    ends = jnp.array([-jnp.inf, jnp.inf])
    np.testing.assert_array_equal(softplus(ends), [0.0, jnp.inf])
    np.testing.assert_array_equal(jax.vmap(jax.grad(softplus))(ends), [0.0, 1.0])
    assert jnp.isnan(softplus(jnp.nan))
