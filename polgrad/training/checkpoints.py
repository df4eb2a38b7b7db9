"""Checkpoints of a run (Orbax) and the journal of scores that makes resuming exact."""

import json
import os
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath


class ResumeError(ValueError):
    """A checkpoint that the run cannot go on from."""


class Checkpoints:
    """Asynchronous, atomic checkpoints of a tree of arrays, the newest `keep` kept.

    Trees are saved as plain nested dicts of arrays under `checkpoints/<step>`, and the policy
    that training started from under `checkpoints/initial`.

    Every process of a run opens them and takes part in every call: each writes the shards that
    it holds. A checkpoint is read back onto whatever mesh the run then has.

    Args:
      directory: where they are; of a bucket too, as in `gs://bucket/run`.
      keep: how many checkpoints to keep.
    """

    def __init__(self, directory: str | os.PathLike, keep: int):
        root = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        )
        # With its handler named, the manager can tell a checkpoint's shapes before it reads it.
        self._manager = ocp.CheckpointManager(
            root, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )
        self._initial = root / "initial"

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts saving; returns once the arrays may be overwritten."""
        self._manager.save(step, args=ocp.args.StandardSave(_own(state)))

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, laid out as the abstract tree `like`.

        Raises:
          ResumeError: if the checkpoint holds other arrays than `like`.
        """
        _check_same_shapes(self._manager.item_metadata(step), like, self._manager.directory)
        return self._manager.restore(step, args=ocp.args.StandardRestore(like))

    def save_initial(self, params: Any) -> None:
        """Saves the policy that training starts from; waits until it is on disk."""
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(self._initial, _own(params), force=True)

    def restore_initial(self, like: Any) -> Any:
        """The policy that training started from.

        Raises:
          ResumeError: if it holds other arrays than `like`.
        """
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(self._initial).item_metadata
            _check_same_shapes(metadata, like, self._initial)
            return checkpointer.restore(self._initial, like)

    def has_initial(self) -> bool:
        """Whether the starting policy was saved completely."""
        return self._initial.exists()

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def place_of(directory: str | os.PathLike, elsewhere: str | None) -> epath.Path:
    """Where a run keeps its checkpoints: in its directory, or where `saving.checkpoints` says."""
    if elsewhere is None:
        return epath.Path(directory).resolve() / "checkpoints"
    # An address such as gs://bucket is not a path of this machine, and stays as it is.
    return epath.Path(elsewhere) if "://" in elsewhere else epath.Path(elsewhere).resolve()


def saved_elsewhere(directory: str | os.PathLike) -> str | None:
    """The `saving.checkpoints` of the run in a directory."""
    path = pathlib.Path(directory) / "config.json"
    return json.loads(path.read_text())["saving"].get("checkpoints") if path.is_file() else None


def restore_params(directory: str | os.PathLike, step: int | None = None) -> tuple[Any, int]:
    """The parameters of a run's checkpoint as numpy arrays, without knowing its shapes.

    Args:
      directory: the run's directory.
      step: which checkpoint; the newest when left out.

    Returns:
      `(params, step)`.

    Raises:
      ValueError: if there is no such checkpoint.
    """
    root = place_of(directory, saved_elsewhere(directory))
    found = sorted(int(p.name) for p in root.glob("*") if p.name.isdigit())
    if not found or (step is not None and step not in found):
        wanted = "a checkpoint" if step is None else f"checkpoint {step}"
        raise ValueError(f"{directory} has no {wanted} (found: {found or 'none'})")
    step = found[-1] if step is None else step
    item = root / str(step) / "default"
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree
    )
    tree = handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    handler.close()
    return tree["params"], step


def _own(tree: Any) -> Any:
    """A copy where saving could otherwise read a buffer that the next step is given to overwrite."""
    if jax.default_backend() != "cpu":
        return tree
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def _check_same_shapes(metadata: Any, like: Any, where: Any) -> None:
    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
        return {_name(path): tuple(x.shape) for path, x in leaves}

    saved, wanted = shapes(metadata), shapes(like)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise ResumeError(
                f"the checkpoint in {where} does not fit this run: {name} has shape "
                f"{saved.get(name, 'none')} there and {wanted.get(name, 'none')} here"
            )


def _name(path) -> str:
    """A path as text; fields of tuples and keys of dicts look alike once saved."""
    return "/".join(str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path)


class ScoreJournal:
    """Scores of the steps since the last checkpoint, replayed when a run is resumed.

    A reward under a deadline may time out in one attempt and not in the next. The journal is
    flushed to disk before a step's update, so the steps that are run again see the same scores.
    Each process writes the scores of its own samples and reads those of all: a run that goes on
    with other processes deals the samples out anew.

    Args:
      directory: of the run; the journal is its `scores.jsonl`, with `scores-1.jsonl` and so on
        of further processes.
      process: which of them this is.
    """

    def __init__(self, directory: str | os.PathLike, process: int = 0):
        directory = pathlib.Path(directory)
        self._path = directory / (f"scores-{process}.jsonl" if process else "scores.jsonl")
        self._entries: list[dict] = []
        self._scores: dict[tuple[int, str, int, int], list] = {}
        for path in sorted(directory.glob("scores*.jsonl")):
            for entry in read_lines(path):
                self._remember(entry)
                if path == self._path:
                    self._entries.append(entry)

    def _remember(self, entry: dict) -> None:
        for row, digest, score in zip(
            entry.get("rows", ()), entry.get("digests", ()), entry["scores"]
        ):
            self._scores[entry["step"], entry["name"], row, digest] = score

    def get(self, step: int, name: str, rows, completions: np.ndarray) -> list[list] | None:
        """The scores of samples, if these are the ones that were scored."""
        keys = [(step, name, int(r), _digest(c)) for r, c in zip(rows, completions)]
        found = [self._scores.get(key) for key in keys]
        return None if None in found else found

    def put(self, step: int, name: str, rows, completions: np.ndarray, scores: list[list]) -> None:
        """Writes the scores of samples to disk."""
        entry = {
            "step": step,
            "name": name,
            "rows": [int(r) for r in rows],
            "digests": [_digest(c) for c in completions],
            "scores": scores,
        }
        self._entries.append(entry)
        self._remember(entry)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cut(self, step: int) -> None:
        """Forgets the scores up to a step that a checkpoint now covers."""
        self._entries = [entry for entry in self._entries if entry["step"] > step]
        self._scores = {key: score for key, score in self._scores.items() if key[0] > step}
        rewrite_lines(self._path, self._entries)


def _digest(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def read_lines(path: pathlib.Path) -> list[dict]:
    """The complete entries of a JSON-lines file; a line that a kill cut short is left out."""
    entries = []
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                try:
                    entries.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
    return entries


def rewrite_lines(path: pathlib.Path, entries) -> None:
    """Replaces a JSON-lines file at once."""
    draft = path.with_suffix(path.suffix + ".new")
    draft.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    os.replace(draft, path)
