"""An agent moves in copies of a world: fixed length, one compiled loop, resets inside."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from polgrad._scalars import in_range
from polgrad.environments.gymnax_worlds import World

__all__ = ["Position", "Trajectory", "begin", "unroll"]


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
      observations: what each action was chosen on, [B, T, O].
      final_observations: what each step led to, [B, T, O]; at the end of an episode, the last
        observation of that episode and not the first of the next one.
      actions: [B, T], or [B, T, D] where continuous.
      rewards: [B, T].
      terminated: 1 where the world's rules ended the episode, [B, T].
      truncated: 1 where a time limit did, and the rules did not, [B, T].
      returns: sum of the rewards of the episode, up to and with this step, [B, T]; where an
        episode ends, its return.
    """

    observations: Float[Array, "B T O"]
    final_observations: Float[Array, "B T O"]
    actions: Num[Array, "B T *D"]
    rewards: Float[Array, "B T"]
    terminated: Bool[Array, "B T"]
    truncated: Bool[Array, "B T"]
    returns: Float[Array, "B T"]


def begin(world: World, key: Key[Array, ""], *, copies: int) -> Position:
    """First states of B copies; copy b is drawn with the key `split(key, B)[b]`."""
    observations, states = jax.vmap(world.reset)(jax.random.split(key, copies))
    return Position(observations, states, jnp.zeros(copies))


def unroll(
    world: World,
    act: Callable[[Float[Array, "B O"], Key[Array, ""]], Num[Array, "B *D"]],
    position: Position,
    key: Key[Array, ""],
    *,
    steps: int,
) -> tuple[Position, Trajectory]:
    """Moves all copies `steps` steps; a finished copy starts anew at once.

    With the same keys, a copy moves and starts anew as gymnax's own `step` does.

    Args:
      world: one copy's pure functions.
      act: chooses the actions of all copies at once, from their observations and a key.
      position: from `begin` or the last call.
      key: of this call; must differ between calls.
      steps: T, at least 1.

    Returns:
      (where the copies stand now, what happened).

    Raises:
      ValueError: `steps` below 1.
    """
    in_range("steps", steps, low=1)

    def move(position, action, key):
        """One step of one copy."""
        step_key, reset_key = jax.random.split(key)
        new = world.step(step_key, position.states, action)
        returns = position.returns + new.reward
        ended = new.terminated | new.truncated
        first = Position(*world.reset(reset_key), 0.0)
        following = Position(new.observation, new.state, returns)
        position_after = jax.tree.map(functools.partial(jnp.where, ended), first, following)
        return position_after, Trajectory(
            observations=position.observations,
            final_observations=new.observation,
            actions=action,
            rewards=new.reward,
            terminated=new.terminated,
            truncated=new.truncated & ~new.terminated,
            returns=returns,
        )

    def step(position, key):
        act_key, world_key = jax.random.split(key)
        actions = act(position.observations, act_key)
        return jax.vmap(move)(position, actions, jax.random.split(world_key, len(actions)))

    position, trajectory = jax.lax.scan(step, position, jax.random.split(key, steps))
    by_copy = "steps copies ... -> copies steps ..."
    return position, jax.tree.map(lambda x: rearrange(x, by_copy), trajectory)
