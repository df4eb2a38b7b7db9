"""What single answers are compared with and weighed by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses

RATIO, GOOD = np.array([1.0, -0.5]), np.array([True, False])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_reference_point():
    point = losses.kto_reference_point
    np.testing.assert_allclose(point(np.array([1.0, 3.0])), 2.0)
    np.testing.assert_array_equal(point(np.array([-1.0, -3.0])), 0.0)
    np.testing.assert_allclose(point(np.array([1.0, 3.0]), valid=GOOD), 1.0)
    np.testing.assert_array_equal(point(np.array([1.0, 3.0]), valid=~GOOD & GOOD), 0.0)
    np.testing.assert_array_equal(jax.grad(lambda x: point(x))(jnp.array([1.0, 3.0])), 0.0)


def test_density_weight():
    p = jnp.array([0.0, 0.2, 0.5, 0.8, 0.99, 1.0])
    np.testing.assert_allclose(losses.density_weight(p), [0.5, 0.5, 1.0, 4.0, 10.0, 10.0])
    np.testing.assert_allclose(losses.density_weight(p, low=0.0, high=2.0)[:4], [0, 0.25, 1, 2])
    slope = jax.grad(lambda x: losses.density_weight(x).sum())(p)
    np.testing.assert_array_equal(slope, 0.0)
