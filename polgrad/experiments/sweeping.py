"""A grid of settings, every cell run once, whatever dies in between."""

import collections
import concurrent.futures
import csv
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from polgrad import _files, _outside
from polgrad.experiments import cells, running
from polgrad.experiments.cells import Cell
from polgrad.experiments.discovery import Found
from polgrad.experiments.settings import changed, known, value

DEATH = (
    "The process that ran this cell died, alone and twice: killed, or out of memory.\n"
    "The other cells went on.\n"
)


class Sweep(NamedTuple):
    """A planned sweep.

    Attributes:
      found: the experiment.
      directory: where everything lies; a cell's files in `cells/<its name>`.
      grid: the values of every swept setting.
      cells: all of them, in the order of the grid.
    """

    found: Found
    directory: pathlib.Path
    grid: Mapping[str, tuple[Any, ...]]
    cells: tuple[Cell, ...]

    def place(self, cell: Cell) -> pathlib.Path:
        """A cell's directory."""
        return self.directory / "cells" / cell.name

    def open_cells(self) -> list[Cell]:
        """Cells without a result: not run yet, begun, or failed."""
        return [cell for cell in self.cells if cells.finished(self.place(cell), cell) is None]


def grid(settings: Any, texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """`["a=1,2", "b=x"]` as `{"a": (1, 2), "b": ("x",)}`, each value of its field's type.

    Args:
      settings: the dataclass instance whose fields are named.
      texts: `key=value,value,...`; a comma inside of brackets belongs to its value.

    Returns:
      The values by field.

    Raises:
      ValueError: for text without `=`, an unknown or repeated field, a repeated value, or one of
        another type.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, rest = text.partition("=")
        if not equals:
            raise ValueError(f"--set has {text!r}; expected key=value,value,...")
        known(settings, key)
        if key in found:
            raise ValueError(f"--set has {key} twice; expected one list of values")
        values = tuple(value(settings, key, part) for part in _split(rest))
        if any(a == b for a, b in itertools.combinations(values, 2)):
            raise ValueError(f"--set {key} has a value twice: {rest}")
        found[key] = values
    return found


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def plan(
    found: Found,
    directory: str | os.PathLike,
    values: Mapping[str, tuple[Any, ...]],
    *,
    seeds: int | None = None,
    arms: Sequence[str] = (),
    smoke: bool = False,
) -> Sweep:
    """Lays out a sweep, or takes up the one that a directory holds.

    Args:
      found: the experiment.
      directory: of the sweep.
      values: as `grid` gives them.
      seeds: how many a cell; the experiment's own number when left out.
      arms: which; all when empty.
      smoke: whether at the small size.

    Returns:
      The sweep, not begun.

    Raises:
      ValueError: if the settings or arms are refused, or the directory has another sweep or is held
        by another process.
    """
    experiment = found.experiment
    seeds, _ = running.asked(experiment, seeds, arms)
    changes = [dict(zip(values, row)) for row in itertools.product(*values.values())]
    for change in changes:
        running.describe(
            found,
            changed(experiment.settings, dict(experiment.smoke if smoke else {}) | change),
            seeds,
        )
    path = str(found.path.resolve())
    rows = tuple(Cell(cells.name(c), path, c, seeds, tuple(arms), smoke) for c in changes)
    names = collections.Counter(row.name for row in rows)
    if shared := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two cells of the grid would share the directory {shared[0]}")
    directory = pathlib.Path(directory)
    _claim(
        directory,
        {
            "name": found.name,
            "source": found.digest,
            "grid": {key: list(v) for key, v in values.items()},
            "seeds": seeds,
            "arms": list(arms),
            "smoke": smoke,
        },
    )
    return Sweep(found, directory, values, rows)


def _claim(directory: pathlib.Path, description: dict[str, Any]) -> None:
    """Takes a directory for a sweep, unless another one has it or takes it right now."""
    description = json.loads(json.dumps(description))
    _check_free(directory, description)  # before a lock is left in somebody's directory
    directory.mkdir(parents=True, exist_ok=True)
    with _files.alone(directory):
        _check_free(directory, description)  # another sweep may have come in between
        # First of all: a directory with anything else in it and without this file is no sweep's.
        if not (directory / "sweep.json").exists():
            _files.write(directory / "sweep.json", json.dumps(description, indent=2) + "\n")
        (directory / "cells").mkdir(exist_ok=True)


def _check_free(directory: pathlib.Path, description: dict[str, Any]) -> None:
    """Refuses a directory with another sweep, or with files that are no sweep's."""
    path = directory / "sweep.json"
    if path.exists():
        there = _outside.read_json(path)
        for key in description:
            if there.get(key) != description[key]:
                raise ValueError(
                    f"{directory} holds a sweep with {key} {there.get(key)}, this one has "
                    f"{description[key]}; give another --out or remove it"
                )
    elif directory.exists() and any(p.name[0] != "." for p in directory.iterdir()):
        raise ValueError(f"{directory} holds something that is no sweep; give another --out")


def in_processes(sweep: Sweep, workers: int) -> Iterator[tuple[Cell, str]]:
    """Runs the open cells in a pool of processes.

    A worker that dies takes the pool with it. The cells that it may have been in are then run
    one at a time, so that the guilty one is known, kept as failed, and the rest goes on.

    Args:
      sweep: planned, and held with `_files.alone`.
      workers: processes, at least 1; they share the cores among them.

    Yields:
      Each cell that ended, with its error (`""` for none).
    """
    waiting = sweep.open_cells()
    while waiting:
        suspects: list[Cell] = []
        for cell, error in _pool(sweep, waiting, workers):
            if error is None:
                suspects.append(cell)
            else:
                yield cell, error
        begun = [c for c in suspects if (sweep.place(c) / "experiment.json").exists()]
        alone_now = begun or suspects[:workers]
        waiting = [c for c in suspects if c not in alone_now]
        for cell in alone_now:
            for _, error in _pool(sweep, [cell], 1):
                if error is None:
                    cells.fail(sweep.place(cell), DEATH)
                    error = DEATH.splitlines()[0]
                yield cell, error


def _pool(sweep: Sweep, some: Sequence[Cell], workers: int) -> Iterator[tuple[Cell, str | None]]:
    """Cells and their errors as they end; None for all that a dead worker left undone."""
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_settle, initargs=(context.Value("i", 0), workers)
    )
    try:
        futures = {pool.submit(_work, c, str(sweep.place(c))): c for c in some}
        for future in concurrent.futures.as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                yield futures[future], None
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _work(cell: Cell, directory: str) -> str:
    import jax

    error = cells.run(cell, directory)
    jax.clear_caches()
    return error


def _settle(count, workers: int) -> None:
    """A worker's first act: die with the sweep, and leave the other workers their cores."""
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with count.get_lock():
        index = count.value
        count.value += 1
    if workers > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= workers:
            os.sched_setaffinity(0, cores[index % workers :: workers])


def table(sweep: Sweep) -> list[dict[str, Any]]:
    """Tidy rows, one a cell, arm, metric and seed: the last point of each curve."""
    rows = []
    for cell in sweep.cells:
        result = cells.finished(sweep.place(cell), cell)
        for arm, content in (result or {"arms": {}})["arms"].items():
            for metric, figures in content["metrics"].items():
                for seed, figure in zip(result["seeds"], figures["seeds"]):
                    row = {"cell": cell.name, **cell.changes, "arm": arm, "metric": metric}
                    rows.append(row | {"seed": seed, "value": figure})
    return rows


def write_table(sweep: Sweep) -> pathlib.Path:
    """Writes `table` as `results.csv`."""
    path = sweep.directory / "results.csv"
    text = io.StringIO()
    columns = ["cell", *sweep.grid, "arm", "metric", "seed", "value"]
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(table(sweep))
    _files.write(path, text.getvalue().encode("utf-8", "backslashreplace"))
    return path
