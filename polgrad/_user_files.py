"""Loads people's own Python files: rewards, algorithms, experiments."""

import hashlib
import importlib.util
import os
import sys
import types
from pathlib import Path

__all__ = ["load"]


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
      Exception: whatever the file itself raises.
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
        del sys.modules[name]
        raise
    return module
