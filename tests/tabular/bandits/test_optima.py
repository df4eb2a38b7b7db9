"""Softmax bandits in closed form against autodiff and numerical optimisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.divergences import categorical_kl
from polgrad.tabular import bandits

REWARDS = (1.0, 0.0, -1.0, 0.5)
REFERENCE = (0.4, 0.3, 0.2, 0.1)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def test_policy_gradient_is_that_of_the_expected_reward():
    logits, rewards = jnp.array([0.3, -1.0, 0.2, 0.0]), jnp.array(REWARDS)
    exact = grad(lambda z: bandits.expected_reward(z, rewards))(logits)
    np.testing.assert_allclose(bandits.policy_gradient(logits, rewards), exact, atol=1e-12)
    np.testing.assert_allclose(
        bandits.policy_gradient(jnp.zeros(3), jnp.array([1.0, -1.0, -1.0])),
        [4 / 9, -2 / 9, -2 / 9],
        atol=1e-12,
    )
    batch = bandits.policy_gradient(jnp.stack([logits, -logits]), rewards)
    np.testing.assert_allclose(batch[0], exact, atol=1e-12)


def test_optimum_by_hand_and_by_its_first_order_condition():
    uniform = jnp.full(3, -jnp.log(3.0))
    optimum = bandits.kl_regularized_optimum(uniform, jnp.array([0.0, 1.0, 2.0]), beta=1.0)
    np.testing.assert_allclose(jnp.exp(optimum), [0.09003, 0.24473, 0.66524], atol=1e-5)

    log_reference, rewards, beta = jnp.log(jnp.array(REFERENCE)), jnp.array(REWARDS), 0.3
    optimum = bandits.kl_regularized_optimum(log_reference, rewards, beta=beta)
    objective = lambda z: (  # noqa: E731
        bandits.expected_reward(z, rewards) - beta * categorical_kl(z, log_reference)
    )
    np.testing.assert_allclose(grad(objective)(optimum), 0.0, atol=1e-12)
    value = bandits.kl_regularized_value(log_reference, rewards, beta=beta)
    np.testing.assert_allclose(objective(optimum), value, rtol=1e-12)
    others = jax.random.normal(jax.random.key(0), (20, 4))
    assert np.all(jax.jit(jax.vmap(objective))(others) <= value)


def test_frontier_satisfies_the_identity_and_dominates():
    log_reference, rewards = jnp.log(jnp.array(REFERENCE)), jnp.array(REWARDS)
    betas = jnp.array([0.1, 0.5, 2.0, 10.0])
    frontier = bandits.reward_kl_frontier(log_reference, rewards, betas)
    values = [bandits.kl_regularized_value(log_reference, rewards, beta=b) for b in betas]
    np.testing.assert_allclose(frontier.reward - betas * frontier.kl, values, rtol=1e-10)
    assert np.all(np.diff(frontier.reward) < 0.0) and np.all(np.diff(frontier.kl) < 0.0)
    # No other policy with at most this KL has more reward.
    others = jax.random.normal(jax.random.key(1), (200, 4)) * 0.5 + log_reference
    inside = np.asarray(categorical_kl(others, log_reference))[:, None] <= frontier.kl
    reward = np.asarray(bandits.expected_reward(others, rewards))[:, None]
    assert inside.any() and np.all(~inside | (reward <= frontier.reward))


def test_actions_that_the_reference_excludes_stay_excluded():
    log_reference = jnp.array([jnp.log(0.5), jnp.log(0.5), -jnp.inf])
    rewards = jnp.array([0.0, 1.0, 100.0])
    optimum = bandits.kl_regularized_optimum(log_reference, rewards, beta=1.0)
    assert optimum[2] == -jnp.inf
    frontier = bandits.reward_kl_frontier(log_reference, rewards, jnp.array([1.0]))
    assert np.all(np.isfinite(frontier.kl)) and frontier.reward[0] < 1.0


def test_a_strength_that_is_not_positive_is_refused():
    arrays = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, 1.0])
    for function in (bandits.kl_regularized_optimum, bandits.kl_regularized_value):
        with pytest.raises(ValueError, match="beta is 0.0"):
            function(*arrays, beta=0.0)
    with pytest.raises(ValueError, match="betas is .*, expected a number above 0$"):
        bandits.reward_kl_frontier(*arrays, jnp.array([0.1, -1.0]))
