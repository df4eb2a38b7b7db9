"""What goes wrong with checkpoints, told in one line that says what to do."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from polgrad import _outside
from polgrad.training.runtime.hosts import HostError
from polgrad.training.saving import checksums
from polgrad.training.saving.places import INITIAL, steps_in

Reads = Callable[[epath.Path, int], Callable[[str], bool]]
"""Of a place and a step: a function that chooses files of the checkpoint by their paths."""


class ResumeError(ValueError):
    """A checkpoint that the run cannot go on from."""


class DamagedError(ResumeError):
    """A checkpoint whose files are not what was written."""


class SavingError(RuntimeError):
    """A checkpoint that could not be saved."""


@contextlib.contextmanager
def saving(what: str) -> Iterator[None]:
    """Turns every exception of the block into a `SavingError` of one line."""
    try:
        yield
    except SavingError:
        raise
    except (HostError, jax.errors.JaxRuntimeError):
        raise  # of another host, or of a device
    except Exception as error:
        raise saving_error(what, error) from error


def saving_error(what: str, error: BaseException) -> SavingError:
    """The error that says in one line why something cannot be saved."""
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
def reading(
    root: epath.Path, name: int | str, flag: str, reads: Reads | None = None
) -> Iterator[None]:
    """Turns what reading a damaged checkpoint raises into one line."""
    try:
        yield
    except (ResumeError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        why = f"it cannot be read: {_short(_cause(error), 160)}"
        raise DamagedError(damaged(root, name, why, flag, reads=reads)) from error


def damaged(
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


def silence() -> None:
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
