"""What a checkpoint holds: its form, its shapes and its parameters, without the run that wrote it."""

import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from polgrad import _outside
from polgrad.training.saving import checksums, ocdbt
from polgrad.training.saving.errors import DamagedError, ResumeError, damaged, reading, silence
from polgrad.training.saving.places import place_of, saved_elsewhere, steps_in
from polgrad.training.state import SCHEMA, TrainState, as_saved, assemble

PARAMETERS = {1: ("params",), 2: ("frozen", "trainable")}
"""Where the parameters are in a checkpoint, by its form."""


def restore_params(
    directory: str | os.PathLike, step: int | None = None, *, remote: bool = False
) -> tuple[Any, int]:
    """The parameters of a run's checkpoint as numpy arrays, without knowing its shapes.

    Args:
      directory: the run's directory.
      step: which checkpoint; the newest when left out.
      remote: allow checkpoints at an address such as `gs://bucket/run` that the run's `config.json`
        names. Somebody else's run could name any.

    Returns:
      `(params, step)`.

    Raises:
      ValueError: if there is no such checkpoint, it is damaged, or it lies at an address and
        `remote` is False.
    """
    elsewhere = saved_elsewhere(directory)
    if elsewhere and "://" in elsewhere and not remote:
        raise ValueError(
            f"{pathlib.Path(directory) / 'config.json'} says that the checkpoints are at "
            f"{elsewhere}; give --remote to read from there"
        )
    root = place_of(directory, elsewhere)
    with _outside.reading(str(root)):
        found = steps_in(root)
    if not found or (step is not None and step not in found):
        wanted = "a checkpoint" if step is None else f"checkpoint {step}"
        raise ValueError(f"{directory} has no {wanted} (found: {found or 'none'})")
    step = found[-1] if step is None else step
    if why := checksums.fault(root, str(step), reads=_holds_params(root, step)):
        raise DamagedError(damaged(root, step, why, "--step", reads=_holds_params))
    silence()
    with reading(root, step, "--step", _holds_params):
        return _numpy_params(root, step), step


def _holds_params(root: epath.Path, step: int) -> Callable[[str], bool]:
    """Tells the files of a checkpoint that are read for its parameters from the optimiser's."""
    found = None
    if checksums.is_local(root):
        item = root / str(step) / "default"
        *frozen, trained = (ocdbt.files_of(item, p) for p in PARAMETERS[schema_of(root, step)])
        # Most policies have no frozen part, and so no file of one.
        found = trained and trained.union(*filter(None, frozen))
    if found is None:
        return lambda path: True
    needed = {f"default/{path}" for path in found}
    return lambda path: path in needed or not ocdbt.is_data(path)


def schema_of(root: epath.Path, step: int) -> int:
    """The form of a checkpoint (see `state.SCHEMA`); 1 where it names none.

    Raises:
      ResumeError: if a later version of polgrad has written it.
    """
    path = root / str(step) / "_CHECKPOINT_METADATA"
    raw = json.loads(path.read_text()) if path.exists() else {}
    schema = (raw.get("custom_metadata") or {}).get("schema", 1)
    if schema not in range(1, SCHEMA + 1):
        raise ResumeError(
            f"checkpoint {step} in {root} has form {schema!r}, expected 1 to {SCHEMA}: a later "
            "version of polgrad has written it"
        )
    return schema


def _numpy_params(root: epath.Path, step: int) -> Any:
    handler, item = ocp.PyTreeCheckpointHandler(), root / str(step) / "default"
    try:
        tree = handler.metadata(item).tree
        like = {name: tree[name] for name in PARAMETERS[schema_of(root, step)]}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        args = ocp.args.PyTreeRestore(item=like, restore_args=as_numpy, partial_restore=True)
        # What is frozen comes before what is trained.
        return functools.reduce(assemble, handler.restore(item, args=args).values())
    finally:
        handler.close()


def shape_difference(saved: Any, wanted: Any) -> str | None:
    """Compares the shapes of two trees of arrays.

    Args:
      saved: what a checkpoint holds: arrays, or their metadata.
      wanted: what it is to hold: arrays, or abstract ones.

    Returns:
      A clause about the first array that differs; None where all have the same shape.
    """

    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
        return {_name(path): tuple(x.shape) for path, x in leaves}

    there, here = shapes(saved), shapes(wanted)
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            return (
                f"{name} has shape {there.get(name, 'none')} in the checkpoint, expected "
                f"{here.get(name, 'none')}"
            )
    return None


def misfit(root: epath.Path, step: int, wanted: TrainState) -> str | None:
    """The first array that has another shape in a checkpoint than in a run, if there is one.

    Only the checkpoint's metadata are read.

    Args:
      root: where the checkpoints are.
      step: of the checkpoint.
      wanted: the run's abstract state.

    Returns:
      As `shape_difference`; None for a checkpoint that cannot be read, which is told on reading.
    """
    silence()
    handler = ocp.PyTreeCheckpointHandler()
    try:
        saved = handler.metadata(root / str(step) / "default").tree
        wanted = as_saved(wanted, schema_of(root, step))
        return shape_difference({name: saved.get(name) for name in wanted}, wanted)
    except Exception:  # noqa: BLE001  (a damaged checkpoint raises whatever it likes)
        return None
    finally:
        handler.close()


def _name(path) -> str:
    """A path as text; fields of tuples and keys of dicts look alike once saved."""
    return "/".join(str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path)
