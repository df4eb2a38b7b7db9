"""The unroll against a loop over gymnax's own step, and against a world that can be counted."""

import functools
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.environments.gymnax_worlds import Transition, make
from polgrad.rollouts.unroll import begin, unroll, value_trajectory

KEY = jax.random.key(3)


def noise(key):
    return jax.random.uniform(key)


def act(observations, noise):
    """Mostly pushes to the side that it leans to, so that episodes end now and then."""
    return jnp.where(noise < 0.4, observations[:, 2] < 0, observations[:, 2] > 0).astype(jnp.int32)


def by_hand(parameters, source, copies, steps):
    """The same steps one by one, with gymnax resetting."""
    keys = [jax.random.fold_in(KEY, b) for b in range(copies)]
    rows = []
    for b in range(copies):
        observation, state = source.reset(jax.random.fold_in(jax.random.key(0), b), parameters)
        row, total = [], 0.0
        for t in range(steps):
            noise_key, world_key = jax.random.split(jax.random.fold_in(keys[b], t))
            action = act(observation[None], noise(noise_key))[0]
            before = observation
            observation, state, reward, terminated, truncated, info = source.step(
                world_key, state, action, parameters
            )
            total += reward
            row.append(
                (before, info["final_observation"], action, reward, terminated, truncated, total)
            )
            total = 0.0 if terminated or truncated else total
        rows.append([np.stack(x) for x in zip(*row)] + [np.asarray(observation)])
    return [np.stack(x) for x in zip(*rows)]


@pytest.mark.parametrize("per_turn", [1, 3])
def test_equals_a_loop_over_gymnax(per_turn):
    copies, steps, limit = 3, 40, 16
    world = make("CartPole-v1", max_steps_in_episode=limit)
    source, defaults = gymnax.make("CartPole-v1")
    position = begin(world, jax.random.key(0), copies=copies)
    move = jax.jit(lambda p: unroll(world, act, noise, p, KEY, steps=steps, unroll=per_turn))
    position, got = move(position)
    expected = by_hand(defaults.replace(max_steps_in_episode=limit), source, copies, steps)
    before, final, actions, rewards, terminated, truncated, returns, last = expected
    np.testing.assert_array_equal(got.actions, actions)
    np.testing.assert_allclose(got.observations[:, :-1], before, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.observations[:, -1], last, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(position.observations, last, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.final_observations, final, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got.rewards, rewards)
    np.testing.assert_array_equal(got.terminated, terminated)
    np.testing.assert_array_equal(got.truncated, truncated & ~terminated)
    np.testing.assert_array_equal(got.returns, returns)
    assert got.terminated.any() and got.truncated.any()


class Count(NamedTuple):
    """A world that counts its steps; it ends by its rules at `end`, by time at `limit`."""

    end: int = 10**6
    limit: int = 10**6

    def reset(self, key):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action):
        state = state + 1
        return Transition(
            state[None].astype(jnp.float32),
            state,
            jnp.float32(action),
            state >= self.end,
            state >= self.limit,
        )


def doubled(observations, noise):
    return 2 * observations[:, 0].astype(jnp.int32)


def count(world, steps, position=None):
    position = begin(world, KEY, copies=1) if position is None else position
    return unroll(world, doubled, lambda key: (), position, KEY, steps=steps)


def test_a_time_limit_by_hand():
    position, got = count(Count(limit=3), 5)
    np.testing.assert_array_equal(got.observations[0, :, 0], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(got.final_observations[0, :, 0], [1, 2, 3, 1, 2])
    np.testing.assert_array_equal(got.rewards[0], [0, 2, 4, 0, 2])
    np.testing.assert_array_equal(got.truncated[0], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(got.terminated[0], np.zeros(5))
    np.testing.assert_array_equal(got.returns[0], [0, 2, 6, 0, 2])
    values, final = value_trajectory(lambda x: 10 * x[..., 0], got)
    np.testing.assert_array_equal(values[0], [0, 10, 20, 0, 10, 20])
    np.testing.assert_array_equal(final[0], [10, 20, 30, 10, 20])
    # The next call goes on from state 2, with 2 on the account of the running episode.
    _, more = count(Count(limit=3), 1, position)
    np.testing.assert_array_equal(more.returns, [[6]])
    assert more.truncated[0, 0]


def test_an_end_by_both_is_a_termination():
    _, got = count(Count(end=2, limit=2), 2)
    np.testing.assert_array_equal(got.terminated[0], [0, 1])
    np.testing.assert_array_equal(got.truncated[0], [0, 0])


def test_draws_are_addressed_by_copy_and_step():
    world = make("CartPole-v1")

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def actions(copies, steps):
        position = begin(world, KEY, copies=copies)
        return unroll(world, act, noise, position, KEY, steps=steps)[1].actions

    np.testing.assert_array_equal(actions(4, 12)[:2, :7], actions(2, 7))


def test_under_vmap():
    world = make("CartPole-v1")
    keys = jax.random.split(KEY, 3)

    @jax.jit
    def run(key):
        position = begin(world, key, copies=2)
        return unroll(world, act, noise, position, key, steps=12)[1]

    together = jax.jit(jax.vmap(run))(keys)
    for i, key in enumerate(keys):
        one = run(key)
        np.testing.assert_array_equal(together.actions[i], one.actions)
        np.testing.assert_allclose(together.observations[i], one.observations, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["steps", "unroll"])
def test_what_it_refuses(name):
    world = Count()
    sizes = {"steps": 2, "unroll": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        unroll(world, doubled, lambda key: (), begin(world, KEY, copies=1), KEY, **sizes)
