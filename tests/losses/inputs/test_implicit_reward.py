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


def test_a_margin_by_hand():
    arrays = [jnp.array([x]) for x in (-1.0, -2.0, -1.5, -4.0)]
    # (-1 + 1.5) - (-2 + 4): what the policy gained on the chosen answer less that on the rejected.
    np.testing.assert_allclose(losses.preference_margin(*arrays), [0.5 - 2.0])
