"""The reward that f-DPG follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import divergences
from polgrad.losses.inputs import f_dpg_pseudo_reward


def test_pseudo_rewards_carry_no_gradient():
    reward = lambda a, b: f_dpg_pseudo_reward(a, b, divergence=divergences.reverse_kl).sum()  # noqa: E731
    logp, log_target = jnp.log(jnp.array([[0.5, 0.5], [0.8, 0.2]]))
    for gradient in jax.grad(reward, argnums=(0, 1))(logp, log_target):
        np.testing.assert_array_equal(gradient, 0.0)


def test_the_clip_bounds_an_infinite_penalty():
    logp, log_target = jnp.array([-1.0]), jnp.array([-jnp.inf])
    reward = lambda clip: f_dpg_pseudo_reward(  # noqa: E731
        logp, log_target, divergence=divergences.reverse_kl, log_ratio_clip=clip
    )
    np.testing.assert_allclose(reward(20.0), -21.0)
    np.testing.assert_allclose(reward(3.0), -4.0)
    with pytest.raises(ValueError, match="log_ratio_clip"):
        reward(0.0)
