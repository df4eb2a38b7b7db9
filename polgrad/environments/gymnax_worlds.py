"""Control worlds of gymnax as pure functions with known sizes.

A step does not reset, so that the last observation of an episode can be seen: `rollouts.unroll`
resets. With the keys of gymnax's own `step` the result is the same, number for number.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from polgrad import _names

__all__ = ["Transition", "World", "make"]


class Transition(NamedTuple):
    """One step of a world, before any reset.

    Attributes:
      observation: of the state that was reached, [O].
      state: that state.
      reward: of the step.
      terminated: the episode ended by the world's own rules: nothing is worth anything after it.
      truncated: a time limit cut it: the state reached still has its value. Both may be true.
    """

    observation: Float[Array, "O"]
    state: PyTree
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]


class World(NamedTuple):
    """A world with one agent: two pure functions of one copy of it (`vmap` for many), and sizes.

    Attributes:
      name: as given to `make`.
      reset: key -> (observation [O], state), the start of an episode.
      step: (key, state, action) -> `Transition`. An action is a whole number below `actions`,
        or for a continuous world [action_size], which is clipped into its bounds.
      observation_size: O; images are flattened.
      actions: number of actions, or None where they are continuous.
      action_size: numbers of a continuous action, or None where they are discrete.
    """

    name: str
    reset: Callable[[Key[Array, ""]], tuple[Float[Array, "O"], PyTree]]
    step: Callable[[Key[Array, ""], PyTree, Array], Transition]
    observation_size: int
    actions: int | None
    action_size: int | None


def make(name: str, **parameters: Any) -> World:
    """A world of gymnax 1.0 or later.

    Args:
      name: as gymnax registers it, such as "CartPole-v1".
      **parameters: of the world, such as `max_steps_in_episode=200`; gymnax's own otherwise.

    Returns:
      The world, with its default parameters replaced by those given.

    Raises:
      ImportError: gymnax is not installed, or is older than 1.0.
      ValueError: an unknown name or parameter, with the nearest known ones; a world whose
        observations are not arrays of numbers.

    References:
      Lange, gymnax: A JAX-based reinforcement learning environment library, 2022.
    """
    gymnax = _gymnax()
    _known("world", name, gymnax.registered_envs)
    source, defaults = gymnax.make(name)
    for parameter in parameters:
        _known(f"parameter of {name}", parameter, [f.name for f in dataclasses.fields(defaults)])
    return adapt(source, dataclasses.replace(defaults, **parameters), name=name)


def adapt(source: Any, parameters: Any, *, name: str) -> World:
    """Makes a world of an environment with gymnax's interface.

    Args:
      source: a `gymnax.environments.environment.Environment`.
      parameters: of that environment.
      name: for messages.

    Returns:
      The world.

    Raises:
      ValueError: observations that are not arrays of numbers, or actions that are neither one
        whole number nor a vector.
    """
    observed, acted = source.observation_space(parameters), source.action_space(parameters)
    if not getattr(observed, "shape", ()):
        raise ValueError(
            f"{name} observes {type(observed).__name__}, expected an array of numbers (a Box)"
        )
    count = getattr(acted, "n", None)
    if count is None and len(getattr(acted, "shape", ())) != 1:
        raise ValueError(
            f"{name} is moved by {type(acted).__name__}, expected a whole number (Discrete) or a "
            "vector (Box)"
        )
    bounds = None if count is not None else (acted.low, acted.high)

    def flat(observation):
        return jnp.ravel(observation).astype(jnp.float32)

    def reset(key):
        observation, state = source.reset_env(key, parameters)
        return flat(observation), state

    def step(key, state, action):
        if bounds is not None:
            action = jnp.clip(action, *bounds)
        observation, state, reward, terminated, _ = source.step_env(key, state, action, parameters)
        truncated = source.is_truncated(state, parameters)
        reward = jnp.asarray(reward, jnp.float32)
        return Transition(flat(observation), state, reward, terminated, jnp.asarray(truncated))

    return World(
        name=name,
        reset=reset,
        step=step,
        observation_size=math.prod(observed.shape),
        actions=None if count is None else int(count),
        action_size=None if count is not None else acted.shape[0],
    )


def _known(what: str, name: str, names: list[str]) -> None:
    if name not in names:
        hint = _names.hint(name, names, n=3, cutoff=0.4)
        raise ValueError(f"unknown {what} {name!r}{hint} (known: {', '.join(sorted(names))})")


def _gymnax():
    # Not at the top: it takes a second to import, and nothing else in this folder needs it.
    try:
        import gymnax
        from gymnax.environments.environment import Environment
    except ImportError as error:
        raise ImportError("control worlds need gymnax: pip install 'gymnax>=1.0'") from error
    if not hasattr(Environment, "is_truncated"):
        raise ImportError(
            "gymnax is too old: it does not tell time limits from terminations; "
            "pip install 'gymnax>=1.0'"
        )
    return gymnax
