"""The unroll against a loop over gymnax's own step, and against a world that can be counted."""

import functools
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.environments.gymnax_worlds import Transition, make
from polgrad.rollouts.unroll import begin, unroll

KEY = jax.random.key(3)


def act(observations, key):
    """Mostly pushes to the side that it leans to, so that episodes end now and then."""
    noise = jax.random.uniform(key, observations.shape[:1])
    return jnp.where(noise < 0.4, observations[:, 2] < 0, observations[:, 2] > 0).astype(jnp.int32)


def by_hand(parameters, source, copies, steps):
    """The same steps one by one, with gymnax resetting."""
    first = [source.reset(k, parameters) for k in jax.random.split(jax.random.key(0), copies)]
    observations, states = (list(x) for x in zip(*first))
    totals = [0.0] * copies
    rows = [[] for _ in range(copies)]
    for key in jax.random.split(KEY, steps):
        act_key, world_key = jax.random.split(key)
        actions = act(jnp.stack(observations), act_key)
        for b, copy_key in enumerate(jax.random.split(world_key, copies)):
            before = observations[b]
            observations[b], states[b], reward, terminated, truncated, info = source.step(
                copy_key, states[b], actions[b], parameters
            )
            totals[b] += reward
            final = info["final_observation"]
            rows[b].append((before, final, actions[b], reward, terminated, truncated, totals[b]))
            totals[b] = 0.0 if terminated or truncated else totals[b]
    return [np.array(x) for x in zip(*(zip(*row) for row in rows))], np.stack(observations)


def test_equals_a_loop_over_gymnax():
    copies, steps, limit = 3, 40, 16
    world = make("CartPole-v1", max_steps_in_episode=limit)
    source, defaults = gymnax.make("CartPole-v1")
    position = begin(world, jax.random.key(0), copies=copies)
    move = jax.jit(lambda p: unroll(world, act, p, KEY, steps=steps))
    position, got = move(position)
    expected, last = by_hand(defaults.replace(max_steps_in_episode=limit), source, copies, steps)
    before, final, actions, rewards, terminated, truncated, returns = expected
    np.testing.assert_array_equal(got.actions, actions)
    np.testing.assert_allclose(got.observations, before, rtol=1e-5, atol=1e-6)
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


def doubled(observations, key):
    return 2 * observations[:, 0].astype(jnp.int32)


def count(world, steps, position=None):
    position = begin(world, KEY, copies=1) if position is None else position
    return unroll(world, doubled, position, KEY, steps=steps)


def test_a_time_limit_by_hand():
    position, got = count(Count(limit=3), 5)
    np.testing.assert_array_equal(got.observations[0, :, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(got.final_observations[0, :, 0], [1, 2, 3, 1, 2])
    np.testing.assert_array_equal(got.rewards[0], [0, 2, 4, 0, 2])
    np.testing.assert_array_equal(got.truncated[0], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(got.terminated[0], np.zeros(5))
    np.testing.assert_array_equal(got.returns[0], [0, 2, 6, 0, 2])
    # The next call goes on from state 2, with 2 on the account of the running episode.
    _, more = count(Count(limit=3), 1, position)
    np.testing.assert_array_equal(more.returns, [[6]])
    assert more.truncated[0, 0]


def test_an_end_by_both_is_a_termination():
    _, got = count(Count(end=2, limit=2), 2)
    np.testing.assert_array_equal(got.terminated[0], [0, 1])
    np.testing.assert_array_equal(got.truncated[0], [0, 0])


def test_more_copies_and_steps_change_nothing_in_those_before():
    world = make("CartPole-v1")

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def actions(copies, steps):
        position = begin(world, KEY, copies=copies)
        return unroll(world, act, position, KEY, steps=steps)[1].actions

    np.testing.assert_array_equal(actions(4, 12)[:2, :7], actions(2, 7))


def test_under_vmap():
    world = make("CartPole-v1")
    keys = jax.random.split(KEY, 3)

    @jax.jit
    def run(key):
        position = begin(world, key, copies=2)
        return unroll(world, act, position, key, steps=12)[1]

    together = jax.jit(jax.vmap(run))(keys)
    for i, key in enumerate(keys):
        one = run(key)
        np.testing.assert_array_equal(together.actions[i], one.actions)
        np.testing.assert_allclose(together.observations[i], one.observations, rtol=1e-5, atol=1e-6)


def test_what_it_refuses():
    world = Count()
    with pytest.raises(ValueError, match="steps is 0, expected a number of at least 1"):
        unroll(world, doubled, begin(world, KEY, copies=1), KEY, steps=0)
