"""One cell of a sweep: an experiment with some settings changed, in a directory of its own.

A cell runs in another process (a pool's worker, a Ray task), so all that comes in and goes out
is plain data.
"""

import contextlib
import hashlib
import json
import pathlib
import re
import shutil
import tempfile
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from polgrad import _compilers, _files, _outside

RESULT, ERROR = "result.json", "error.txt"
LONGEST = 120
"""Characters of the longest name of a cell; a file system has room for 255 bytes."""


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
    """`beta=0.1,kind=x`: readable, safe as a directory, and another one for other settings.

    Where the text of the settings cannot stand as it is (it has other letters, or a comma or an
    equals sign inside of a value, or is long), a digest of the settings follows behind `~`, which no
    text that stands as it is has.
    """
    # As the settings stand in a sweep's file: JSON has no tuples.
    changes = json.loads(json.dumps(dict(changes), default=repr))
    text = ",".join(f"{key}={value}" for key, value in changes.items())
    split = any(mark in str(value) for value in changes.values() for mark in ",=")
    return safe_name(text, json.dumps(changes), LONGEST, as_it_is=not split) or "all"


def safe_name(text: str, content: str, longest: int, *, as_it_is: bool = True) -> str:
    """A text as the name of a directory: itself, or made safe with a digest behind `~`.

    Args:
      text: what the name shows.
      content: what the digest is of.
      longest: bytes of the longest name.
      as_it_is: whether the text may stand without a digest where it is safe and short.

    Returns:
      The name, which is another one for another content.
    """
    safe = re.sub(r"[^\w.,=+-]", "_", text)
    if as_it_is and safe == text and len(safe.encode()) <= longest:
        return safe
    digest = hashlib.blake2b(content.encode("utf-8", "replace"), digest_size=6).hexdigest()
    return f"{safe.encode()[: longest - 13].decode(errors='ignore')}~{digest}"


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
    from polgrad.experiments import running

    place = pathlib.Path(directory)
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / ERROR).unlink(missing_ok=True)
        _run(cell, place)
    except KeyboardInterrupt:
        raise
    # Whatever a user's experiment raises, the other cells go on; it is kept, not swallowed. A call of
    # sys.exit would end the worker as if the cell had succeeded.
    except BaseException as error:  # noqa: BLE001
        with contextlib.suppress(OSError):  # the directory itself may be what is wrong
            fail(place, traceback.format_exc())
        own = isinstance(error, (ValueError, running.ExperimentError))
        text = " ".join(str(error).split()) if own else ""
        return text or _outside.reason(error)
    return ""


def fail(place: pathlib.Path, text: str) -> None:
    """Keeps why a cell failed."""
    place.mkdir(parents=True, exist_ok=True)
    _files.write(place / ERROR, text.encode("utf-8", "backslashreplace"))


def _run(cell: Cell, place: pathlib.Path) -> None:
    from polgrad.experiments import discovery, reporting, running

    found = discovery.find(cell.experiment)

    def finish(done: running.Run) -> None:
        verdict = running.verdict(found, done.results)
        content = reporting.result(found, done, verdict, size=_size(cell))
        reporting.write(place / RESULT, content)

    running.run(
        found,
        place,
        seeds=cell.seeds,
        arms=cell.arms,
        changes=cell.changes,
        smoke=cell.smoke,
        finish=finish,
    )


def _size(cell: Cell) -> str:
    return "smoke" if cell.smoke else "changed"


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
        file.write_text(source, encoding="utf-8")
        error = run(cell._replace(experiment=str(file)), str(root / "cell"))
        files = (p for p in sorted((root / "cell").rglob("*")) if p.is_file())
        names = {str(p.relative_to(root / "cell")): p for p in files}
        return error, {n: p.read_bytes() for n, p in names.items() if n != ".lock"}
    finally:
        shutil.rmtree(root, ignore_errors=True)


def unpack(files: Mapping[str, bytes], directory: pathlib.Path) -> None:
    """Writes what `packed` returned; the result last, so that it vouches for the rest."""
    for path, content in sorted(files.items(), key=lambda item: item[0] == RESULT):
        target = directory / path
        if ".." in target.parts or not target.is_relative_to(directory):
            raise ValueError(f"a cell's file is called {path!r}; expected a name below {directory}")
        target.parent.mkdir(parents=True, exist_ok=True)
        _files.write(target, content)


def finished(directory: pathlib.Path, cell: Cell) -> dict[str, Any] | None:
    """A cell's result, or None when it has none.

    Args:
      directory: of the cell.
      cell: what the result must be of.

    Returns:
      The content of `result.json`.

    Raises:
      ValueError: the file is damaged, or is the result of other settings, seeds or arms.
    """
    from polgrad.experiments import reporting

    path = directory / RESULT
    if not path.exists():
        return None
    content = reporting.read(path)
    wanted = {"size": _size(cell), "seeds": None, "arms": None}
    there = {"size": content["size"], "seeds": None, "arms": None}
    if cell.seeds is not None:
        wanted["seeds"], there["seeds"] = cell.seeds, len(content["seeds"])
    if cell.arms:
        wanted["arms"], there["arms"] = sorted(cell.arms), sorted(content["arms"])
    wanted |= reporting.plain(dict(cell.changes))
    there |= {key: content["settings"].get(key) for key in cell.changes}
    for key, value in wanted.items():
        if there[key] != value:
            raise ValueError(
                f"{path} has {key} {there[key]!r:.80}, and the cell {cell.name} has {value!r:.80}; "
                "remove the cell's directory to run it again"
            )
    return content


def error(directory: pathlib.Path) -> str | None:
    """A cell's traceback, or None when it has none."""
    path = directory / ERROR
    if not path.exists():
        return None
    with _outside.reading(path):
        return path.read_text(encoding="utf-8", errors="replace")
