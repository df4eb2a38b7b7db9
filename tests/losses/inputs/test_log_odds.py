"""Log-odds without cancellation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_log_odds():
    p = np.array([0.1, 0.5, 0.999])
    np.testing.assert_allclose(losses.log_odds(np.log(p)), np.log(p / (1 - p)), rtol=1e-9)
    ends = jnp.array([0.0, -jnp.inf])
    np.testing.assert_allclose(losses.log_odds(ends), [20.0, -20.0], rtol=1e-8)
    slope = jax.grad(lambda x: losses.log_odds(x).sum())(ends)
    np.testing.assert_allclose(slope, [math.exp(20.0), 0.0], rtol=1e-6)
    nearly = jax.grad(lambda x: losses.log_odds(x).sum())(jnp.array([-math.exp(-20.0)]))
    np.testing.assert_allclose(nearly, math.exp(20.0), rtol=1e-6)


def odds(x):
    return x - np.log1p(-np.exp(x))
