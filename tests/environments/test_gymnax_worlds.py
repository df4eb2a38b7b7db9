"""The adapter against gymnax itself, and what it refuses."""

import builtins

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.environment import Environment

from polgrad.environments import gymnax_worlds
from polgrad.environments.gymnax_worlds import make


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("CartPole-v1", (4, 2, None)),
        ("Pendulum-v1", (3, None, 1)),
        ("Breakout-MinAtar", (400, 3, None)),
    ],
)
def test_sizes(name, sizes):
    world = make(name)
    assert (world.observation_size, world.actions, world.action_size) == sizes
    observation, _ = world.reset(jax.random.key(0))
    assert observation.shape == sizes[:1] and observation.dtype == jnp.float32


def test_a_step_is_that_of_gymnax_before_its_reset():
    world = make("CartPole-v1", max_steps_in_episode=3)
    source, defaults = gymnax.make("CartPole-v1")
    parameters = defaults.replace(max_steps_in_episode=3)
    key = jax.random.key(1)
    observation, state = world.reset(key)
    np.testing.assert_array_equal(observation, source.reset(key, parameters)[0])
    for t in range(3):
        step = world.step(jax.random.split(key)[0], state, 1)
        expected = source.step(key, state, 1, parameters)
        np.testing.assert_allclose(step.observation, expected[5]["final_observation"], rtol=1e-5)
        assert (step.reward, step.terminated) == (1.0, False)
        assert step.truncated == expected[4] == (t == 2)
        state = step.state
    assert state.time == 3  # no reset


def test_actions_are_clipped_into_the_bounds_of_the_world():
    world = make("MountainCarContinuous-v0")  # gymnax pays for the square of the action as given
    key = jax.random.key(0)
    state = world.reset(key)[1]
    far, bound = (world.step(key, state, jnp.array([a])) for a in (5.0, 1.0))
    np.testing.assert_array_equal(far.observation, bound.observation)
    assert far.reward == bound.reward != 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("CartPole-v0"), r"unknown world 'CartPole-v0'; did you mean CartPole-v1"),
        (lambda: make("Chess"), r"unknown world 'Chess'.*known: .*Pendulum-v1"),
        (
            lambda: make("CartPole-v1", max_steps=3),
            "unknown parameter of CartPole-v1 'max_steps'; did you mean max_steps_in_episode",
        ),
        (lambda: make("FrozenLake-misc"), "FrozenLake-misc observes Discrete, expected an array"),
    ],
)
def test_what_it_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_world_moved_by_neither_a_number_nor_a_vector_is_refused():
    source, parameters = gymnax.make("Pendulum-v1")
    source.action_space = lambda _: gymnax.environments.spaces.Box(-1.0, 1.0, (2, 2))
    with pytest.raises(ValueError, match="Odd is moved by Box, expected a whole number"):
        gymnax_worlds.adapt(source, parameters, name="Odd")


def test_without_gymnax_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("gymnax"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'gymnax>=1\.0'"):
        make("CartPole-v1")


def test_an_old_gymnax_is_refused(monkeypatch):
    monkeypatch.delattr(Environment, "is_truncated")
    with pytest.raises(ImportError, match="gymnax is too old"):
        make("CartPole-v1")
