"""Checkpoints of a run (Orbax): saved beside the training, checked, and read back onto any mesh."""

import contextlib
import functools
import os
import threading
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from polgrad.training.runtime.hosts import Processes
from polgrad.training.saving import checksums
from polgrad.training.saving.errors import (
    DamagedError,
    ResumeError,
    SavingError,
    damaged,
    reading,
    saving,
    saving_error,
    silence,
)
from polgrad.training.saving.places import INITIAL
from polgrad.training.saving.reading import schema_of, shape_difference
from polgrad.training.state import SCHEMA, TrainState, as_saved, from_saved


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
        silence()
        self._processes = Processes(index=0, count=1) if processes is None else processes
        self._root = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        )
        with saving(f"checkpoints in {self._root}"):
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

        with saving(f"checkpoint {step} in {self._root}"):
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
            raise saving_error(f"checkpoint {sealing.step} in {self._root}", sealing.error)

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
                damaged, self._root, name, why, "--resume-from", processes.working
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

        with saving(f"the checksums of checkpoint {name} in {self._root}"):
            return self._processes.alone(f"the checksums of checkpoint {name}", work)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, laid out as the abstract state `like`.

        Raises:
          ResumeError: if the checkpoint holds other arrays than `like`, cannot be read, or was
            written by a later version of polgrad.
        """
        with reading(self._root, step, "--resume-from"):
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
        with saving(f"checkpoints in {self._root}"):
            for later in sorted((s for s in self._manager.all_steps() if s > step), reverse=True):
                self._manager.delete(later)
            if self._processes.first and checksums.is_local(self._root):
                checksums.forget_deleted(self._root)

    def save_initial(self, params: Any) -> None:
        """Saves the policy that training starts from; waits until it is on disk.

        Raises:
          SavingError: if it cannot be saved.
        """
        with saving(f"the starting policy in {self._root}"):
            forget = functools.partial(checksums.forget, self._root, INITIAL)
            self._processes.alone("the starting policy", forget)
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self._root / INITIAL, _own(params), force=True)
            seal = functools.partial(checksums.write, self._root, INITIAL, self._processes.working)
            self._processes.alone("the checksums of the starting policy", seal)

    def discard_initial(self) -> None:
        """Removes the policy that training started from; one process does it."""
        with saving(f"the starting policy in {self._root}"):
            discard_initial(self._root)

    def restore_initial(self, like: Any) -> Any:
        """The policy that training started from.

        Raises:
          ResumeError: if it holds other arrays than `like`, or cannot be read.
        """
        with reading(self._root, INITIAL, ""), ocp.StandardCheckpointer() as checkpointer:
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
            stack.enter_context(saving(f"the last checkpoint in {self._root}"))
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


def _own(tree: Any) -> Any:
    """A copy where saving could otherwise read a buffer that the next step is given to overwrite."""
    if jax.default_backend() != "cpu":
        return tree
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def _check_same_shapes(metadata: Any, like: Any, where: Any) -> None:
    if difference := shape_difference(metadata, like):
        raise ResumeError(f"the checkpoint in {where} does not fit this run: {difference}")
