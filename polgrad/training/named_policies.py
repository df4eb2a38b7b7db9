"""The policies that a run holds besides the one that it trains, and how they change."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from polgrad.contract import Algorithm, Average, Initial, NamedPolicy, Previous
from polgrad.training.state import TrainState

REFERENCE = "reference"


def wanted(algorithm: Algorithm, *, track_kl: bool) -> dict[str, NamedPolicy]:
    """The policies that score each rollout, by name.

    Args:
      algorithm: names those that it reads.
      track_kl: also hold the initial policy as `reference`, for the metric `kl_reference`.

    Returns:
      The policies, the algorithm's first.
    """
    policies = dict(algorithm.policies)
    if track_kl:
        policies.setdefault(REFERENCE, Initial())
    return policies


def uses_initial(policies: Mapping[str, NamedPolicy]) -> bool:
    """Whether one of the policies is the one that training started from."""
    return any(isinstance(kind, Initial) for kind in policies.values())


def behaves(kind: NamedPolicy) -> bool:
    """Whether a policy is the sampling policy itself, of which no copy is needed."""
    return isinstance(kind, Previous) and kind.every == 1


def moving(policies: Mapping[str, NamedPolicy]) -> dict[str, NamedPolicy]:
    """The policies that change during a run, and are saved with its state."""
    return {
        name: kind
        for name, kind in policies.items()
        if isinstance(kind, Average) or (isinstance(kind, Previous) and not behaves(kind))
    }


def first(policies: Mapping[str, NamedPolicy], params: Any) -> dict[str, Any]:
    """The moving policies before the first step: copies of the first parameters.

    An average is held in float32 whatever the type of the parameters.
    """
    return {
        name: jax.tree.map(_wide if isinstance(kind, Average) else _copy, params)
        for name, kind in moving(policies).items()
    }


def before_rollout(policies: Mapping[str, NamedPolicy], state: TrainState, step: int) -> TrainState:
    """The state with the copies that are due before a rollout.

    A copy has its own buffers: the step is given those of the parameters to overwrite.

    Args:
      policies: of the run.
      state: before the rollout.
      step: number of the rollout, from 1.
    """
    due = [
        name
        for name, kind in moving(policies).items()
        if isinstance(kind, Previous) and (step - 1) % kind.every == 0
    ]
    copies = {name: jax.tree.map(_copy, state.trainable) for name in due}
    return state._replace(policies={**state.policies, **copies}) if due else state


def after_updates(policies: Mapping[str, NamedPolicy], held: Any, trainable: Any) -> Any:
    """The moving policies after the updates of a rollout: averages take in the new parameters."""
    moved = {}
    for name, kind in moving(policies).items():
        if isinstance(kind, Average):
            weight = 1.0 - kind.decay
            moved[name] = jax.tree.map(
                lambda old, new, weight=weight: old + weight * (new.astype(old.dtype) - old),
                held[name],
                trainable,
            )
    return {**held, **moved}


def _copy(x: jax.Array) -> jax.Array:
    return jnp.array(x, copy=True)


def _wide(x: jax.Array) -> jax.Array:
    return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)
