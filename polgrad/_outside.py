"""What comes from outside: files that somebody else wrote, and people's own Python code.

Reading such a file can raise anything: the exceptions of its library, a KeyError, a MemoryError.
Code that reads a file does so inside `reading`, and code that runs somebody's Python file does so
inside `calling`. Both turn every exception into an `OutsideError`, whose message is one line that
names the file, and for Python code also the line in this file.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "OutsideError",
    "calling",
    "printable",
    "read_json",
    "reading",
    "reason",
    "told",
    "with_file",
]

_POINTER = b"version https://git-lfs"


class OutsideError(ValueError):
    """A file or somebody's code cannot be used; the message is one line that names the file."""


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turns every exception of the block into an `OutsideError` that names a file.

    Args:
      path: the file or directory that the block reads.

    Raises:
      OutsideError: for every exception but KeyboardInterrupt and SystemExit. An `OutsideError`, and
        a ValueError whose text names the path already, keep their text.
    """
    try:
        yield
    except OutsideError:
        raise
    except Exception as error:
        text = reason(error)
        if _is_pointer(path):
            text = "this is a Git LFS pointer and not the file itself; run `git lfs pull`"
        named = isinstance(error, ValueError) and str(path) in text
        raise OutsideError(text if named else f"{path}: {text}") from error


@contextlib.contextmanager
def calling(path: str | os.PathLike, what: str = "") -> Iterator[None]:
    """Turns every exception of somebody's code into an `OutsideError` with its file and line.

    Args:
      path: the Python file that the block runs, or the name of a module.
      what: what is run, for the message ("algorithm mine.py:X").

    Raises:
      OutsideError: for every exception but KeyboardInterrupt; for `SystemExit` too, because
        somebody's call of `sys.exit` must not end this process as if it had succeeded.
    """
    try:
        yield
    except (OutsideError, KeyboardInterrupt, GeneratorExit):
        raise
    # An exception class of somebody's own may derive from BaseException alone.
    except BaseException as error:
        place = told(path, error)
        # A long path stands in the line once.
        if what and str(path) in what:
            place = Path(path).name + place.removeprefix(str(path))
        raise OutsideError(f"{what}: {place}" if what else place) from error


def told(path: str | os.PathLike, error: BaseException) -> str:
    """What an exception of somebody's code says, with the place where it was raised.

    Args:
      path: the Python file, which is named as given here.
      error: the exception; the line is that of the last frame of its traceback in this file.

    Returns:
      One line, such as "mine.py, line 12: KeyError: 'x'".
    """
    return f"{_place(path, error)}: {_named(error)}"


def read_json(path: str | os.PathLike, *, kind: type = dict) -> Any:
    """The content of a JSON file.

    Args:
      path: the file.
      kind: the type that the content must have.

    Returns:
      The content.

    Raises:
      OutsideError: the file cannot be read, is not JSON, or holds another type.
    """
    with reading(path):
        if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
            raise ValueError("this is no file")  # reading a pipe would wait for ever
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            names = {dict: "an object", list: "a list"}
            found = "null" if content is None else type(content).__name__
            raise ValueError(f"holds {found}; expected {names.get(kind, kind.__name__)}")
        return content


def reason(error: BaseException) -> str:
    """What an exception says, as one line that a reader without its traceback understands.

    Args:
      error: the exception.

    Returns:
      One line. The type's name comes first where the text alone would not be understood.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
    if isinstance(error, KeyError) and error.args:
        return f"the entry {error.args[0]!r} is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _text(error) if type(error) is ValueError and str(error) else _named(error)


def with_file(error: BaseException) -> str:
    """What an exception says, after the file that the system names in it.

    Args:
      error: the exception.

    Returns:
      One line, such as "runs/a/metrics.jsonl: No space left on device".
    """
    file = getattr(error, "filename", None) if isinstance(error, OSError) else None
    return f"{os.fsdecode(file)}: {reason(error)}" if file else reason(error)


def printable(text: str) -> str:
    """Text of somebody's file as a terminal may show it: one line, no control sequences.

    Args:
      text: any text.

    Returns:
      The text with a blank in the place of everything that a terminal would obey and not show.
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _named(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)})"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return ": ".join(part for part in (type(error).__name__, _text(error)) if part)


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  (somebody's __str__ may raise whatever it likes)
        return "(its text cannot be had)"


def _place(path: str | os.PathLike, error: BaseException) -> str:
    """The file with the line of the last frame that lies in it."""
    wanted = os.path.realpath(path)
    line = None
    if isinstance(error, SyntaxError) and os.path.realpath(error.filename or "") == wanted:
        line = error.lineno
    trace = error.__traceback__
    while trace is not None:
        if os.path.realpath(trace.tb_frame.f_code.co_filename) == wanted:
            line = trace.tb_lineno
        trace = trace.tb_next
    return str(path) if line is None else f"{path}, line {line}"


def _is_pointer(path: str | os.PathLike) -> bool:
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            return False
        with open(path, "rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except (OSError, ValueError):  # no file, or no name of one
        return False
