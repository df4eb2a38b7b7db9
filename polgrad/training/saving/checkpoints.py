"""Checkpoints of a run (Orbax) and the journal of scores that makes resuming exact."""

import contextlib
import errno
import functools
import json
import logging
import os
import pathlib
import re
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from polgrad import _files, _outside
from polgrad.training.runtime.hosts import HostError, Processes
from polgrad.training.saving import checksums, ocdbt
from polgrad.training.state import SCHEMA, TrainState, as_saved, assemble, from_saved

INITIAL = "initial"
PARAMETERS = {1: ("params",), 2: ("frozen", "trainable")}
"""Where the parameters are in a checkpoint, by its form."""

Reads = Callable[[epath.Path, int], Callable[[str], bool]]
"""Of a place and a step: a function that chooses files of the checkpoint by their paths."""


class ResumeError(ValueError):
    """A checkpoint that the run cannot go on from."""


class DamagedError(ResumeError):
    """A checkpoint whose files are not what was written."""


class SavingError(RuntimeError):
    """A checkpoint that could not be saved."""


class Checkpoints:
    """Asynchronous, atomic checkpoints of a tree of arrays, the newest `keep` kept.

    Trees are saved as plain nested dicts of arrays under `checkpoints/<step>`, and the policy
    that training started from under `checkpoints/initial`. The first process computes the
    checksums of a complete checkpoint, beside the training (see `checksums`).

    Every process of a run opens them and takes part in every call: each writes the shards that
    it holds. A checkpoint is read back onto whatever mesh the run then has.

    Args:
      directory: where they are; of a bucket too, as in `gs://bucket/run`.
      keep: how many checkpoints to keep.
      processes: of the run; this one alone when left out.

    Raises:
      SavingError: if the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike, keep: int, processes: Processes | None = None):
        _silence()
        self._processes = Processes(index=0, count=1) if processes is None else processes
        self._root = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        )
        with _saving(f"checkpoints in {self._root}"):
            # With its handler named, the manager can tell a checkpoint's shapes before it reads it.
            self._manager = ocp.CheckpointManager(
                self._root, options=options, item_handlers=ocp.StandardCheckpointHandler()
            )
        self._sealing: _Sealing | None = None
        self._closed = False

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving; returns once the arrays may be overwritten.

        Raises:
          SavingError: if this checkpoint, or the one before it, cannot be saved.
        """

        def clear():
            self._sealed()
            checksums.forget(self._root, str(step))

        with _saving(f"checkpoint {step} in {self._root}"):
            self._processes.alone(f"checkpoint {step}", clear)
            started = self._manager.save(
                step,
                args=ocp.args.StandardSave(_own(as_saved(state, SCHEMA))),
                custom_metadata={"schema": SCHEMA},
            )
        if not started:
            raise SavingError(
                f"checkpoint {step} was not saved: {self._root} holds a newer one ({self.latest()})"
            )
        if self._processes.first and checksums.is_local(self._root):
            self._sealing = _Sealing(self._manager, self._root, step)
            self._sealing.start()

    def _sealed(self) -> None:
        """Waits until the last checkpoint is complete and has its checksums."""
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return
        while sealing.is_alive():
            sealing.join(1)
            self._processes.working()
        if sealing.error is not None:
            raise _saving_error(f"checkpoint {sealing.step} in {self._root}", sealing.error)

    def check(self, name: int | str) -> None:
        """Compares the files of a checkpoint with its checksums; each process reads its share.

        Args:
          name: the checkpoint's step, or `initial`.

        Raises:
          DamagedError: if a file differs. The line names the checkpoint, the newest whole one, and
            the flag that takes it.
        """
        processes = self._processes

        def read():
            share = (processes.index, processes.count)
            return checksums.fault(self._root, str(name), share=share, working=processes.working)

        found = processes.gather(f"the files of checkpoint {name}", read)
        if why := next((w for w in found if w), None):
            line = functools.partial(
                _damaged, self._root, name, why, "--resume-from", processes.working
            )
            raise DamagedError(processes.alone("the newest whole checkpoint", line))

    def seal(self, name: int | str) -> bool:
        """Computes the checksums of a checkpoint that was read without an error and has none.

        Returns:
          Whether it had none.
        """

        def work():
            if checksums.has(self._root, str(name)) or not checksums.is_local(self._root):
                return False
            checksums.write(self._root, str(name), self._processes.working)
            return True

        with _saving(f"the checksums of checkpoint {name} in {self._root}"):
            return self._processes.alone(f"the checksums of checkpoint {name}", work)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, laid out as the abstract state `like`.

        Raises:
          ResumeError: if the checkpoint holds other arrays than `like`, cannot be read, or was
            written by a later version of polgrad.
        """
        with _reading(self._root, step, "--resume-from"):
            metadata = self._manager.item_metadata(step)
            if metadata is None:
                raise ValueError("its metadata is missing")
            schema = schema_of(self._root, step)
            try:
                saved = as_saved(like, schema)
            except ValueError as error:
                raise ResumeError(f"checkpoint {step} in {self._root}: {error}") from None
            _check_same_shapes(metadata, saved, self._manager.directory)
            return from_saved(
                self._manager.restore(step, args=ocp.args.StandardRestore(saved)), schema
            )

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints after a step, so that the run can write them anew.

        The newest goes first: a kill meanwhile leaves checkpoints of one run without a gap.
        """
        with _saving(f"checkpoints in {self._root}"):
            for later in sorted((s for s in self._manager.all_steps() if s > step), reverse=True):
                self._manager.delete(later)
            if self._processes.first and checksums.is_local(self._root):
                checksums.forget_deleted(self._root)

    def save_initial(self, params: Any) -> None:
        """Saves the policy that training starts from; waits until it is on disk.

        Raises:
          SavingError: if it cannot be saved.
        """
        with _saving(f"the starting policy in {self._root}"):
            forget = functools.partial(checksums.forget, self._root, INITIAL)
            self._processes.alone("the starting policy", forget)
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self._root / INITIAL, _own(params), force=True)
            seal = functools.partial(checksums.write, self._root, INITIAL, self._processes.working)
            self._processes.alone("the checksums of the starting policy", seal)

    def discard_initial(self) -> None:
        """Removes the policy that training started from; one process does it."""
        with _saving(f"the starting policy in {self._root}"):
            discard_initial(self._root)

    def restore_initial(self, like: Any) -> Any:
        """The policy that training started from.

        Raises:
          ResumeError: if it holds other arrays than `like`, or cannot be read.
        """
        with _reading(self._root, INITIAL, ""), ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(self._root / INITIAL).item_metadata
            if metadata is None:
                raise ValueError("its metadata is missing")
            _check_same_shapes(metadata, like, self._root / INITIAL)
            return checkpointer.restore(self._root / INITIAL, like)

    def has_initial(self) -> bool:
        """Whether the starting policy was saved completely."""
        return (self._root / INITIAL).exists()

    def initial_is_whole(self) -> bool:
        """Whether the files of the starting policy are as they were written; one process asks."""
        return not checksums.fault(self._root, INITIAL, working=self._processes.working)

    def close(self) -> None:
        """Waits for what is being saved, and ends all threads. A second call does nothing.

        Raises:
          SavingError: if the last checkpoint cannot be saved.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as stack:
            stack.enter_context(_saving(f"the last checkpoint in {self._root}"))
            stack.callback(self._close_manager)
            self._processes.alone("the last checkpoint", self._sealed)

    def _close_manager(self) -> None:
        if self._processes.failed:
            return  # waiting for a part that another process does not write would not end
        try:
            self._manager.close()
        except Exception:
            # After an error in its first call, the second one ends the threads.
            with contextlib.suppress(Exception):
                self._manager.close()
            raise


def discard_initial(root: epath.Path) -> None:
    """Removes the policy that a run started from, where there is one."""
    checksums.forget(root, INITIAL)
    if (root / INITIAL).exists():
        # The first to go: without it the rest of a removal that is killed is no policy.
        (root / INITIAL / "_METADATA").unlink(missing_ok=True)
        (root / INITIAL).rmtree()


class _Sealing(threading.Thread):
    """Waits for a checkpoint that is being saved, and then computes its checksums."""

    def __init__(self, manager: ocp.CheckpointManager, root: epath.Path, step: int):
        super().__init__(name=f"checksums of checkpoint {step}", daemon=True)
        self.step, self.error = step, None
        self._manager, self._root = manager, root

    def run(self) -> None:
        try:
            self._manager.wait_until_finished()
            checksums.write(self._root, str(self.step))
        except Exception as error:  # noqa: BLE001  (raised by whoever waits for this thread)
            self.error = error


@contextlib.contextmanager
def _saving(what: str) -> Iterator[None]:
    """Turns every exception of the block into a `SavingError` of one line."""
    try:
        yield
    except SavingError:
        raise
    except (HostError, jax.errors.JaxRuntimeError):
        raise  # of another host, or of a device
    except Exception as error:
        raise _saving_error(what, error) from error


def _saving_error(what: str, error: BaseException) -> SavingError:
    if isinstance(error, SavingError):
        return error
    return SavingError(f"{what} cannot be saved: {_cause(error)}")


_SYSTEM = [
    os.strerror(getattr(errno, name))
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO", "ENOTDIR")
]


def _cause(error: BaseException) -> str:
    """What the system said, wherever it stands among the exceptions of the libraries."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        link = link.__cause__ or link.__context__
    for link in seen:
        if isinstance(link, OSError) and link.strerror:
            return f"{link.strerror}: {link.filename}" if link.filename else link.strerror
    text = " ".join(str(link) for link in seen)
    for said in _SYSTEM:
        if said.lower() in text.lower():
            return said
    return _short(_outside.reason(error))


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@contextlib.contextmanager
def _reading(
    root: epath.Path, name: int | str, flag: str, reads: Reads | None = None
) -> Iterator[None]:
    """Turns what reading a damaged checkpoint raises into one line."""
    try:
        yield
    except (ResumeError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        why = f"it cannot be read: {_short(_cause(error), 160)}"
        raise DamagedError(_damaged(root, name, why, flag, reads=reads)) from error


def _damaged(
    root: epath.Path,
    name: int | str,
    why: str,
    flag: str,
    working: Callable[[], Any] = int,
    reads: Reads | None = None,
) -> str:
    """A line that says which checkpoint is damaged and which is whole.

    With `reads`, a checkpoint is whole where the files are that `reads` chooses.
    """
    if name == INITIAL:
        return (
            f"the policy that the run started from, {root / INITIAL}, is damaged: {why}. The run "
            "can go on without it where its algorithm needs no reference: give --no-track-kl"
        )
    others = sorted((s for s in steps_in(root) if s != name), reverse=True)

    def is_whole(step: int) -> bool:
        chosen = {"reads": reads(root, step)} if reads else {}
        return checksums.fault(root, str(step), working=working, **chosen) is None

    whole = next(filter(is_whole, others), None)
    advice = "no other checkpoint is whole" if others else "there is no other checkpoint"
    if whole is not None:
        advice = f"the newest whole one is {whole}: give {flag} {whole}"
    return f"checkpoint {name} in {root} is damaged: {why}; {advice}"


def _silence() -> None:
    """Keeps what is raised anyway, and said in one line, from being printed with a traceback.

    Orbax logs errors before it raises them. Of several writes that fail, the first is raised, and the
    others find that nobody waits for them any more; their threads would print that.
    """
    for name, wanted in (("absl", _not_of_orbax), ("asyncio", _not_left_by_orbax)):
        if wanted not in logging.getLogger(name).filters:
            logging.getLogger(name).addFilter(wanted)
    warnings.filterwarnings("ignore", message="coroutine 'async_serialize.* was never awaited")
    if not hasattr(sys.unraisablehook, "polgrad_wraps"):
        sys.unraisablehook = _quiet_hook(sys.unraisablehook)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _not_left_by_orbax(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "exception was never retrieved" not in text or "orbax" not in text


def _quiet_hook(hook):
    def quiet(unraisable):
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    quiet.polgrad_wraps = hook
    return quiet


def steps_in(root: epath.Path) -> list[int]:
    """The steps whose checkpoints a place holds, rising."""
    if not root.exists():
        return []
    return sorted(int(p.name) for p in root.iterdir() if re.fullmatch("[0-9]+", p.name))


def place_of(directory: str | os.PathLike, elsewhere: str | None) -> epath.Path:
    """Where a run keeps its checkpoints: in its directory, or where `saving.checkpoints` says."""
    if elsewhere is None:
        return epath.Path(directory).resolve() / "checkpoints"
    # An address such as gs://bucket is not a path of this machine, and stays as it is.
    return epath.Path(elsewhere) if "://" in elsewhere else epath.Path(elsewhere).resolve()


def saved_elsewhere(directory: str | os.PathLike) -> str | None:
    """The `saving.checkpoints` of the run in a directory.

    Raises:
      ValueError: if its `config.json` cannot be read.
    """
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        return None
    with _outside.reading(path):
        given = _outside.read_json(path)["saving"].get("checkpoints")
        if given is not None and not isinstance(given, str):
            raise ValueError(f"saving.checkpoints is {given!r}; expected a path or an address")
        return given


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
        raise DamagedError(_damaged(root, step, why, "--step", reads=_holds_params))
    _silence()
    with _reading(root, step, "--step", _holds_params):
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


def _own(tree: Any) -> Any:
    """A copy where saving could otherwise read a buffer that the next step is given to overwrite."""
    if jax.default_backend() != "cpu":
        return tree
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def _check_same_shapes(metadata: Any, like: Any, where: Any) -> None:
    if difference := shape_difference(metadata, like):
        raise ResumeError(f"the checkpoint in {where} does not fit this run: {difference}")


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
    _silence()
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
      decided_by: fingerprint of what decides a score. Scores with another one, or with none as
        those of earlier versions, are computed anew.

    Raises:
      ValueError: a line is not what the journal writes; the message names file and line.
    """

    def __init__(self, directory: str | os.PathLike, process: int = 0, decided_by: str = ""):
        directory = pathlib.Path(directory)
        self._path = directory / (f"scores-{process}.jsonl" if process else "scores.jsonl")
        self._decided_by = decided_by
        self._entries: list[dict] = []
        self._scores: dict[tuple[int, str, int, int], list] = {}
        for path in sorted(directory.glob("scores*.jsonl")):
            for number, entry in enumerate(read_lines(path), 1):
                _check_entry(entry, f"{path} line {number}")
                if entry.get("decided_by", "") != decided_by:
                    continue
                self._remember(entry)
                if path == self._path:
                    self._entries.append(entry)
        if self._path.is_symlink() or cut_short(self._path):
            # What is added must begin a line, and must not go through a link.
            rewrite_lines(self._path, self._entries)

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
            "decided_by": self._decided_by,
            "rows": [int(r) for r in rows],
            "digests": [_digest(c) for c in completions],
            "scores": scores,
        }
        entry["crc"] = _crc(entry)
        self._entries.append(entry)
        self._remember(entry)
        _files.append(self._path, json.dumps(entry) + "\n", durable=True)

    def cut(self, step: int) -> None:
        """Forgets the scores up to a step that a checkpoint now covers."""
        self._entries = [entry for entry in self._entries if entry["step"] > step]
        self._scores = {key: score for key, score in self._scores.items() if key[0] > step}
        rewrite_lines(self._path, self._entries)


def _check_entry(entry: dict, place: str) -> None:
    """Refuses a line of the journal that it did not write, or that has changed since."""
    kinds = {"name": str, "scores": list, "rows": list, "digests": list}
    wrong = [k for k, kind in kinds.items() if not isinstance(entry.get(k, kind()), kind)]
    missing = [k for k in ("name", "scores") if k not in entry]
    # Entries of earlier versions have no checksum.
    if wrong or missing or entry.get("crc", _crc(entry)) != _crc(entry):
        raise _outside.OutsideError(
            f"{place}: not a line of scores as the run wrote it; remove the file to have the "
            "samples scored again"
        )


def _crc(entry: dict) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in entry.items() if k != "crc"}).encode())


def _digest(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def read_lines(path: str | os.PathLike) -> list[dict]:
    """The entries of a JSON-lines file of a run; a last line that a kill cut short is left out.

    Args:
      path: the file; one that is missing has no entries.

    Returns:
      The entries, each an object with a whole number `step`.

    Raises:
      ValueError: another line is not such an object; the message names file and line.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    with _outside.reading(path):
        lines = path.read_bytes().split(b"\n")
    # What follows the last end of a line was cut short.
    return [_entry(line, f"{path} line {n}") for n, line in enumerate(lines[:-1], 1)]


def cut_short(path: pathlib.Path) -> bool:
    """Whether a kill has left half a line at the end of a file."""
    return path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")


def _entry(line: bytes, place: str) -> dict:
    with _outside.reading(place):
        entry = json.loads(line.decode("utf-8"))
        step = entry.get("step") if isinstance(entry, dict) else None
        if not isinstance(step, int) or isinstance(step, bool):
            raise ValueError("expected an object with a whole number 'step'")
        return entry


def rewrite_lines(path: str | os.PathLike, entries) -> None:
    """Replaces a JSON-lines file at once."""
    _files.write(path, "".join(json.dumps(entry) + "\n" for entry in entries))
