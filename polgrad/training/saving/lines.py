"""Files of JSON lines that a run adds to, and that a kill may cut short."""

import json
import os
import pathlib

from polgrad import _files, _outside


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
