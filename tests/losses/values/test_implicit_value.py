"""The value that a softmax policy implies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_implicit_value_makes_advantages_log_probabilities():
    logits = jnp.array([[0.3, -1.0, 2.0], [0.0, -jnp.inf, 1.0]])
    value = losses.implicit_value(logits, beta=0.5)
    advantage = 0.5 * logits - value[:, None]
    np.testing.assert_allclose(advantage, 0.5 * jax.nn.log_softmax(logits), rtol=1e-12)
    np.testing.assert_array_equal(losses.implicit_value(logits), 2.0 * value)
    excluded = jnp.full((1, 3), -jnp.inf)
    np.testing.assert_array_equal(losses.implicit_value(excluded), 0.0)
    slope = jax.grad(lambda z: losses.implicit_value(z).sum())(excluded)
    np.testing.assert_array_equal(slope, 0.0)
