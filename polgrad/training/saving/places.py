"""Where the checkpoints of a run lie, and which ones there are."""

import os
import pathlib
import re

from etils import epath

from polgrad import _outside

INITIAL = "initial"


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
