"""A bandit learnt in `small.run`: the gradient is that of the exact expected reward."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polgrad import algorithms, small

POLICY = small.TablePolicy.create(3, 2)
REWARDS = jnp.arange(9.0)


def test_rewards_of_completions():
    tokens = jnp.array([[[0, 0], [2, 1]], [[1, 0], [2, 2]]])
    task = small.Listed(POLICY, REWARDS)
    np.testing.assert_array_equal(task.reward(task.draw(None, 2), tokens), [[0, 7], [3, 8]])


def test_one_update_with_many_samples_is_a_step_along_the_exact_gradient():
    params = 0.3 * jax.random.normal(jax.random.key(0), (4, 3))
    after, _ = jax.jit(
        lambda key: small.run(
            key,
            algorithms.RLOO(),
            policy=POLICY,
            task=small.Listed(POLICY, REWARDS),
            schedule=small.Schedule(rollouts=1, questions=1, group=200_000, points=1),
            optimizer=optax.sgd(1.0),
            params=params,
        )
    )(jax.random.key(1))
    exact = jax.grad(lambda z: jnp.exp(POLICY.logp(z)) @ REWARDS)(params)
    np.testing.assert_allclose(after - params, exact, atol=0.03)
    assert abs(exact).max() > 0.5


def test_a_wrong_number_of_rewards_is_refused():
    with pytest.raises(ValueError, match=r"rewards has shape .*\[N\], one for each completion"):
        small.Listed(POLICY, REWARDS[:-1])
