"""XPO: DPO with optimism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def xpo(chosen, rejected, *, beta):
    return losses.xpo(chosen, rejected, jnp.full_like(chosen, -4.0), beta=beta, alpha=0.01)


def test_xpo_without_optimism_is_dpo():
    z = jnp.array([0.3, -2.0])
    np.testing.assert_array_equal(losses.xpo(z, 0 * z, z, alpha=0.0), losses.dpo(z, 0 * z))
