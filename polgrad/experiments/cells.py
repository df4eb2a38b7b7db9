"""One cell of a sweep: an experiment with some settings changed, in a directory of its own.

A cell runs in another process (a pool's worker, a Ray task), so all that comes in and goes out
is plain data.
"""

import json
import os
import pathlib
import re
import shutil
import tempfile
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from polgrad import _compilers

RESULT, ERROR = "result.json", "error.txt"


class Cell(NamedTuple):
    """What a worker needs to know.

    Attributes:
      name: its directory, made of the changed settings.
      experiment: path of the experiment's file.
      changes: settings to replace.
      seeds: how many.
      arms: which; all when empty.
      smoke: whether at the small size.
    """

    name: str
    experiment: str
    changes: Mapping[str, Any]
    seeds: int | None
    arms: tuple[str, ...]
    smoke: bool


def name(changes: Mapping[str, Any]) -> str:
    """`beta=0.1,kind=x`: readable, and safe as a directory."""
    text = ",".join(f"{key}={value}" for key, value in changes.items())
    return re.sub(r"[^\w.,=+-]", "_", text) or "all"


def run(cell: Cell, directory: str) -> str:
    """Runs a cell that may have been begun before; its result appears whole or not at all.

    Args:
      cell: what to run.
      directory: of the cell.

    Returns:
      `""`, or the last line of what went wrong; the whole traceback lies in `error.txt`.
    """
    # A worker's own jaxlib decides: on a cluster it may be another than the sweep's.
    _compilers.protect()
    place = pathlib.Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    (place / ERROR).unlink(missing_ok=True)
    try:
        _run(cell, place)
    # Whatever a user's experiment raises, the other cells go on; it is kept, not swallowed.
    except Exception as error:  # noqa: BLE001
        (place / ERROR).write_text(traceback.format_exc())
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _run(cell: Cell, place: pathlib.Path) -> None:
    from polgrad.experiments import discovery, reporting, running

    found = discovery.find(cell.experiment)
    done = running.run(
        found,
        place,
        seeds=cell.seeds,
        arms=cell.arms,
        changes=cell.changes,
        smoke=cell.smoke,
    )
    whole = done.results.curves.keys() == found.experiment.arms.keys()
    verdict = found.experiment.holds(done.results) if whole else None
    content = reporting.result(found, done, verdict, size="smoke" if cell.smoke else "changed")
    reporting.write(place / RESULT, content)


def packed(cell: Cell, source: str) -> tuple[str, dict[str, bytes]]:
    """Runs a cell on a machine that shares no files with the sweep.

    Args:
      cell: what to run; its `experiment` is the path that it has where the sweep was started.
      source: the text of that file.

    Returns:
      The error as from `run`, and the files of the cell's directory by relative path.
    """
    root = pathlib.Path(tempfile.mkdtemp(prefix="polgrad-cell-"))
    try:
        original = pathlib.Path(cell.experiment)
        file = root / original.parent.name / original.name
        file.parent.mkdir()
        file.write_text(source)
        error = run(cell._replace(experiment=str(file)), str(root / "cell"))
        files = (p for p in sorted((root / "cell").rglob("*")) if p.is_file())
        return error, {str(p.relative_to(root / "cell")): p.read_bytes() for p in files}
    finally:
        shutil.rmtree(root, ignore_errors=True)


def unpack(files: Mapping[str, bytes], directory: pathlib.Path) -> None:
    """Writes what `packed` returned; the result last, so that it vouches for the rest."""
    for path, content in sorted(files.items(), key=lambda item: item[0] == RESULT):
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(target.name + ".new")
        draft.write_bytes(content)
        os.replace(draft, target)


def finished(directory: pathlib.Path) -> dict[str, Any] | None:
    """A cell's result, or None when it has none."""
    path = directory / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def error(directory: pathlib.Path) -> str | None:
    """A cell's traceback, or None when it has none."""
    path = directory / ERROR
    return path.read_text() if path.exists() else None
