"""KTO: by hand, its reference point, what is stopped, edges."""

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


def test_values_by_hand():
    np.testing.assert_allclose(losses.kto(RATIO, GOOD, 0.2), [0.480011, 0.482507], atol=1e-6)
    weighted = losses.kto(RATIO, GOOD, 0.2, lambda_desirable=2.0, lambda_undesirable=3.0)
    np.testing.assert_allclose(weighted, [0.960022, 1.447521], atol=3e-6)
    both = losses.kto(RATIO, GOOD, 0.0).sum()
    np.testing.assert_allclose(both, losses.apo_zero(RATIO[:1], RATIO[1:])[0], rtol=1e-12)


def test_reference_point():
    point = losses.kto_reference_point
    np.testing.assert_allclose(point(np.array([1.0, 3.0])), 2.0)
    np.testing.assert_array_equal(point(np.array([-1.0, -3.0])), 0.0)
    np.testing.assert_allclose(point(np.array([1.0, 3.0]), valid=GOOD), 1.0)
    np.testing.assert_array_equal(point(np.array([1.0, 3.0]), valid=~GOOD & GOOD), 0.0)
    np.testing.assert_array_equal(jax.grad(lambda x: point(x))(jnp.array([1.0, 3.0])), 0.0)


def test_gradients():
    slopes = jax.grad(lambda u, z: losses.kto(u, GOOD, z).sum(), argnums=(0, 1))(
        jnp.asarray(RATIO), 0.2
    )
    assert slopes[0][0] < 0 < slopes[0][1]
    np.testing.assert_array_equal(slopes[1], 0.0)
    ends = jnp.array([-jnp.inf, jnp.nan])
    np.testing.assert_array_equal(jax.grad(lambda u: losses.kto(u, GOOD, 0.2).sum())(ends), 0.0)


def test_bad_arguments():
    for name in ("lambda_desirable", "lambda_undesirable"):
        with pytest.raises(ValueError, match=name):
            losses.kto(RATIO, GOOD, 0.0, **{name: -1.0})
    with pytest.raises(ValueError, match="beta"):
        losses.kto(RATIO, GOOD, 0.0, beta=0.0)
    with pytest.raises(ValueError, match="desirable"):
        losses.kto(RATIO, GOOD[:1], 0.0)
    with pytest.raises(ValueError, match="logratio"):
        losses.kto(RATIO[None], GOOD[None], 0.0)
    with pytest.raises(ValueError, match="mismatched_logratio"):
        losses.kto_reference_point(RATIO[None])
