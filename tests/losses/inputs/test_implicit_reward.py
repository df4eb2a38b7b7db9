"""Implicit rewards and margins of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses

implicit_reward = jax.jit(losses.implicit_reward)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_implicit_reward_by_default_and_its_range(x64):
    logp, reference = jnp.array([-1.0, -jnp.inf]), jnp.array([-3.0, -1.0])
    np.testing.assert_allclose(losses.implicit_reward(logp, reference), [0.2, -2.0])
    with pytest.raises(ValueError, match="beta"):
        losses.implicit_reward(logp, reference, beta=0.0)
