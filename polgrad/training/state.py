"""What a step reads and writes, and how the trees of earlier versions become it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

SCHEMA = 2
"""Number of the form in which a `TrainState` is saved. Form 1 (polgrad 0.1 to 0.3) has `params`."""


class TrainState(NamedTuple):
    """Everything a step reads and writes; a plain tree, donated to the step.

    Attributes:
      trainable: the parameters that the optimiser changes.
      frozen: the other parameters of the policy; a nested dict, empty where all are trained.
      policies: by name, the parameters of the named policies that change during a run.
      optimizer: the optimiser's state.
      algorithm: the algorithm's own state.
      step: rollouts done.
      skipped: updates skipped in a row because the loss or a gradient was not finite.
      curriculum: the curriculum's own state; empty without one.
    """

    trainable: Any
    frozen: Mapping[str, Any]
    policies: Mapping[str, Any]
    optimizer: Any
    algorithm: Any
    step: Array
    skipped: Array
    curriculum: Any = ()

    @property
    def params(self) -> Any:
        """All parameters, as the network takes them."""
        return assemble(self.frozen, self.trainable)


def assemble(frozen: Mapping[str, Any], trainable: Any) -> Any:
    """The parameters of a policy from those that are trained and those that are not.

    Args:
      frozen: nested dict of arrays.
      trainable: nested dict of arrays; no array has a name that is in `frozen` too.

    Returns:
      One nested dict with all arrays; `trainable` itself where nothing is frozen.

    Raises:
      ValueError: if both have an array of the same name.
    """
    if not frozen:
        return trainable
    joined = dict(frozen)
    for name, part in trainable.items():
        if name not in joined:
            joined[name] = part
        elif isinstance(part, Mapping) and isinstance(joined[name], Mapping):
            joined[name] = assemble(joined[name], part)
        else:
            raise ValueError(f"parameter {name!r} is both frozen and trainable")
    return joined


def as_saved(state: TrainState, schema: int) -> dict[str, Any]:
    """The tree of a state in a form of `SCHEMA`; for abstract states too.

    Args:
      state: arrays, or their shapes.
      schema: the form.

    Returns:
      A nested dict.

    Raises:
      ValueError: if the form cannot hold the state.
    """
    tree = state._asdict()
    if not jax.tree.leaves(state.curriculum):
        # Checkpoints of form 2 have no such entry where a run has no curriculum.
        del tree["curriculum"]
    if schema == SCHEMA:
        return tree
    unheld = {
        "frozen parameters": state.frozen,
        f"policies {', '.join(state.policies)}": state.policies,
        "curriculum": "curriculum" in tree,
    }
    if missing := [name for name, there in unheld.items() if there]:
        raise ValueError(f"a checkpoint of polgrad 0.3 or earlier holds no {missing[0]}")
    kept = ("optimizer", "algorithm", "step", "skipped")
    return {"params": tree["trainable"], **{name: tree[name] for name in kept}}


def from_saved(tree: Mapping[str, Any], schema: int) -> TrainState:
    """The state of a tree that `as_saved` gave."""
    if schema == SCHEMA:
        return TrainState(**tree)
    rest = {name: tree[name] for name in ("optimizer", "algorithm", "step", "skipped")}
    return TrainState(trainable=tree["params"], frozen={}, policies={}, **rest)
