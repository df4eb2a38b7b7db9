"""Loads people's own Python code: rewards, algorithms, experiments."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

from polgrad import _outside

__all__ = ["code_of", "line_of", "load", "misfit", "module"]


def load(path: str | os.PathLike) -> types.ModuleType:
    """The module of a Python file, executed once a process for each text that the file has.

    The module's name is made from the whole path and the text: two files called mine.py, or one
    called random.py, do not collide, and a file that was edited in a notebook's session is read
    again. A file that fails is not left half-made in `sys.modules`.

    Args:
      path: the file.

    Returns:
      The module.

    Raises:
      OSError: if the file cannot be read.
      Exception: whatever the file itself raises; `module` turns it into one line.
    """
    place = str(Path(path).expanduser().resolve())
    content = Path(place).read_bytes()
    digest = hashlib.blake2b(place.encode() + b"\0" + content, digest_size=6).hexdigest()
    name = f"polgrad_user_{digest}_{Path(place).stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, place)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def module(place: str, what: str) -> types.ModuleType:
    """The module of a file or of a dotted name, which the user gave.

    Args:
      place: "file.py", or "package.module".
      what: what is loaded, for the message ("algorithm 'mine.py:X'").

    Returns:
      The module.

    Raises:
      OutsideError: no such file or module, or whatever the code raises; one line with the file, and
        with its line where the code was running.
    """
    if place.endswith(".py"):
        with _outside.calling(place, what):
            if not Path(place).expanduser().is_file():
                raise _outside.OutsideError(f"{what}: no such file: {place}")
            return load(place)
    try:
        if not all(part.isidentifier() for part in place.split(".")):
            raise _outside.OutsideError(f"{what}: {place!r} is no name of a module or file.py")
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # Only the module that was asked for: an import that fails inside it is another mistake.
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise _outside.OutsideError(f"{what}: no module named {error.name!r}") from None
        with _outside.calling(_file(error) or place, what):
            raise
    except (_outside.OutsideError, KeyboardInterrupt):
        raise
    except BaseException as error:
        with _outside.calling(_file(error) or place, what):
            raise


def code_of(function: Callable) -> types.CodeType | None:
    """The code of a function or of an object's `__call__`.

    Args:
      function: what can be called.

    Returns:
      The code; None where it is not Python's own.
    """
    for one in (inspect.unwrap(function), vars(type(function)).get("__call__")):
        if isinstance(getattr(one, "__code__", None), types.CodeType):
            return one.__code__
    return None


def line_of(function: Callable) -> str:
    """Where a function is defined, for messages.

    Args:
      function: what can be called.

    Returns:
      "mine.py, line 3"; "" where that cannot be known.
    """
    code = code_of(function)
    return f"{Path(code.co_filename).name}, line {code.co_firstlineno}" if code else ""


def misfit(function: Callable, name: str, arguments: tuple[str, ...]) -> str:
    """Why a function cannot be called with some arguments by position.

    Args:
      function: what can be called.
      name: of the function, for the message.
      arguments: names of the arguments.

    Returns:
      "mine.py, line 3: loss takes (outputs); expected loss(outputs, batch): too many positional
      arguments"; "" where the function can be called so, or where that cannot be known.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""  # compiled code may not tell what it takes; what is called later is told then
    try:
        signature.bind(*arguments)
    except TypeError as error:
        line = line_of(function)
        return (
            f"{f'{line}: ' if line else ''}{name} takes {signature}; expected "
            f"{name}({', '.join(arguments)}): {error}"
        )
    return ""


def _file(error: BaseException) -> str | None:
    """The file whose import failed: the first one below this one and Python's own importer."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name not in (__file__, importlib.__file__) and not name.startswith("<frozen importlib"):
            return name
        trace = trace.tb_next
    return None
