"""An agent moves in copies of a world: fixed length, one compiled loop, resets inside.

A loop on a CPU costs what its operations cost to start. So nothing is in it that could be outside:
keys, the noise of the actions and the first states of new episodes are drawn before it for all
steps at once, and log-probabilities and values follow after it in one pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

__all__ = ["Position", "Trajectory", "begin", "unroll", "value_trajectory"]


class World(Protocol):
    """What is needed of a world, as `environments.gymnax_worlds.make` gives it."""

    reset: Callable[[Array], tuple[Array, PyTree]]
    step: Callable[[Array, PyTree, Array], Any]


class Position(NamedTuple):
    """Where B copies of a world stand between two unrolls.

    Attributes:
      observations: what the agent sees next, [B, O].
      states: of the world, leaves [B, ...].
      returns: sum of the rewards of the running episode, [B].
    """

    observations: Float[Array, "B O"]
    states: PyTree
    returns: Float[Array, "B"]


class Trajectory(NamedTuple):
    """T steps of B copies of a world.

    Attributes:
      observations: what each action was chosen on, and after the last step, [B, T+1, O].
      final_observations: what each step really led to, [B, T, O]; the same as
        `observations[:, 1:]`, save that at an end no reset has replaced it.
      actions: [B, T], or [B, T, D] where continuous.
      rewards: [B, T].
      terminated: 1 where the world's rules ended the episode, [B, T].
      truncated: 1 where a time limit did, and the rules did not, [B, T].
      returns: sum of the rewards of the episode, up to and with this step, [B, T]; where an
        episode ends, its return.
    """

    observations: Float[Array, "B T+1 O"]
    final_observations: Float[Array, "B T O"]
    actions: Num[Array, "B T *D"]
    rewards: Float[Array, "B T"]
    terminated: Bool[Array, "B T"]
    truncated: Bool[Array, "B T"]
    returns: Float[Array, "B T"]


def begin(world: World, key: Key[Array, ""], *, copies: int) -> Position:
    """First states of B copies; copy b is drawn with `fold_in(key, b)`."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(copies))
    observations, states = jax.vmap(world.reset)(keys)
    return Position(observations, states, jnp.zeros(copies))


def unroll(
    world: World,
    act: Callable[[Float[Array, "B O"], PyTree], Num[Array, "B *D"]],
    noise: Callable[[Key[Array, ""]], PyTree],
    position: Position,
    key: Key[Array, ""],
    *,
    steps: int,
    unroll: int = 1,
) -> tuple[Position, Trajectory]:
    """Moves all copies `steps` steps; a finished copy starts anew at once.

    The random numbers of step t of copy b come from

        noise_key, world_key = split(fold_in(fold_in(key, b), t))
        step_key, reset_key = split(world_key)

    whatever B and T are; the second line is what gymnax's own `step` does with `world_key`.

    Args:
      world: one copy's pure functions.
      act: chooses the actions of all copies at once from their observations and noise.
      noise: draws what one action needs; `lambda key: ()` for an agent that needs none.
      position: from `begin` or the last call.
      key: of this call; must differ between calls.
      steps: T, at least 1.
      unroll: steps in one turn of the compiled loop. On a CPU 2 are faster than 1; from 8 on XLA
        computes parts of earlier steps again and compiles for minutes.

    Returns:
      (where the copies stand now, what happened).

    Raises:
      ValueError: `steps` or `unroll` below 1.
    """
    for name, value in (("steps", steps), ("unroll", unroll)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    ahead = _draw(world, noise, key, position.returns.shape[0], steps)

    def step(position, drawn):
        actions = act(position.observations, drawn.noise)
        new = jax.vmap(world.step)(drawn.step_keys, position.states, actions)
        returns = position.returns + new.reward
        ended = new.terminated | new.truncated
        observations, states, running = jax.tree.map(
            lambda first, now: _where(ended, first, now),
            (drawn.observations, drawn.states, jnp.zeros_like(returns)),
            (new.observation, new.state, returns),
        )
        happened = (position.observations, new.observation, actions, new.reward)
        happened += (new.terminated, new.truncated & ~new.terminated, returns)
        return Position(observations, states, running), happened

    position, happened = jax.lax.scan(step, position, ahead, unroll=unroll)
    observations, *rest = (jnp.moveaxis(x, 0, 1) for x in happened)
    observations = jnp.concatenate([observations, position.observations[:, None]], axis=1)
    return position, Trajectory(observations, *rest)


def value_trajectory(
    values: Callable[[Float[Array, "*N O"]], Float[Array, "*N"]], trajectory: Trajectory
) -> tuple[Float[Array, "B T+1"], Float[Array, "B T"]]:
    """The values that `advantages.gae` takes: of each state, and of what a time limit cut off.

    Args:
      values: a value function of any number of observations.
      trajectory: from `unroll`.

    Returns:
      (values [B, T+1], final_values [B, T]); a final value is that of the state that the step
      really led to, before any reset.
    """
    return values(trajectory.observations), values(trajectory.final_observations)


class _Ahead(NamedTuple):
    """Random parts of all steps, leaves [T, B, ...]."""

    noise: PyTree
    step_keys: Array
    observations: Array
    states: PyTree


def _draw(world, noise, key, copies, steps) -> _Ahead:
    def one(copy, t):
        mine = jax.random.fold_in(jax.random.fold_in(key, copy), t)
        noise_key, world_key = jax.random.split(mine)
        step_key, reset_key = jax.random.split(world_key)
        return _Ahead(noise(noise_key), step_key, *world.reset(reset_key))

    across = jax.vmap(one, (0, None))
    return jax.vmap(across, (None, 0))(jnp.arange(copies), jnp.arange(steps))


def _where(condition, x, y):
    return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - 1)), x, y)
