"""Sweeps: the grid, what survives a death, tables and reports with known numbers."""

import collections
import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import WORLD

from polgrad import _files, cli, experiments
from polgrad.experiments import cells, pages, reporting, sweep_report, sweeping


@pytest.fixture
def world(tmp_path, monkeypatch):
    path = tmp_path / "worlds" / "world.py"
    path.parent.mkdir()
    path.write_text(WORLD)
    monkeypatch.setenv("RUNS_LOG", str(tmp_path / "log"))
    return path


def polgrad(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    return stopped.value.code


def runs(tmp_path):
    """How often each seed of each cell was begun."""
    return collections.Counter((tmp_path / "log").read_text().split()[::2])


def test_the_grid_has_the_types_of_its_settings(world):
    given = experiments.find(str(world)).experiment.settings
    assert sweeping.grid(given, ["gain=1,2.5", "kind=a,b", "limits=(0,1),(0,2)"]) == {
        "gain": (1.0, 2.5),
        "kind": ("a", "b"),
        "limits": ((0, 1), (0, 2)),
    }
    for bad, message in [
        (["gain"], "expected key=value"),
        (["gian=1"], "did you mean gain"),
        (["gain=1,x"], "setting gain is 'x'; expected a number"),
        (["gain=1,1.0"], "a value twice"),
        (["gain=1", "gain=2"], "gain twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            sweeping.grid(given, bad)


def test_cells_cover_the_grid_once(world, tmp_path):
    found = experiments.find(str(world))
    plan = sweeping.plan(found, tmp_path / "s", {"gain": (1.0, 2.0), "kind": ("a", "b", "c")})
    assert [cell.name for cell in plan.cells][:2] == ["gain=1.0,kind=a", "gain=1.0,kind=b"]
    assert len({cell.name for cell in plan.cells}) == 6 == len(plan.open_cells())
    with pytest.raises(ValueError, match="seeds 2, this one has 3"):
        sweeping.plan(found, tmp_path / "s", plan.grid, seeds=3)
    with pytest.raises(ValueError, match="something that is no sweep"):
        sweeping.plan(found, tmp_path, plan.grid)


def test_a_sweep_ends_at_sigterm_with_one_line(world, tmp_path):
    command = ["sweep", world, "--set", "pause=60,61", "--workers", "1", "--out", tmp_path / "s"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from polgrad.cli import main; main()", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    try:
        while not (tmp_path / "log").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        # Until every process that has the pipes has ended: what Python says of leaks comes last.
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and error == ""
    assert out.splitlines()[1:] == [
        "",  # where the bar was
        "stopped by SIGTERM; the same command goes on where the sweep stood",
    ]


def test_a_sweep_killed_in_the_middle_runs_every_cell_once(world, tmp_path, capsys):
    """SIGKILL while cells run, then the same command again: 2 x 3 cells x 3 seeds."""
    command = ["sweep", world, "--set", "gain=1,2", "--set", "pause=0.1,0.11,0.12"]
    command += ["--seeds", "3", "--workers", "2", "--out", tmp_path / "s"]
    module = [sys.executable, "-c", "from polgrad.cli import main; main()"]
    process = subprocess.Popen([*module, *map(str, command)], stdout=subprocess.DEVNULL)
    results = tmp_path / "s" / "cells"
    deadline = time.monotonic() + 60
    while len(list(results.glob("*/result.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {p: p.stat().st_mtime_ns for p in results.glob("*/result.json")}
    assert 2 <= len(before) < 6
    assert polgrad(*command) == 0
    assert f"{len(before)} there already" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in results.glob("*/result.json")}
    assert len(after) == 6 and {p: after[p] for p in before} == before
    with (tmp_path / "s" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert collections.Counter(row["cell"] for row in rows) == {
        f"gain={gain},pause={pause}": 3 for gain in (1.0, 2.0) for pause in (0.1, 0.11, 0.12)
    }
    for row in rows:
        assert float(row["value"]) == float(row["gain"]) * (1 + int(row["seed"]))


def test_failed_and_dead_cells_are_kept_while_the_others_go_on(world, tmp_path, capsys):
    command = ["sweep", world, "--set", "kind=raises,dies,good", "--set", "gain=1,2"]
    command += ["--seeds", "1", "--workers", "2", "--out", tmp_path / "s"]
    assert polgrad(*command) == 1
    captured = capsys.readouterr()
    assert "4 cells failed" in captured.err
    assert "kind=raises,gain=1.0: failed, arm only, seed 0: " in captured.out
    assert re.search(
        r"world\.py, line \d+: RuntimeError: no such world at gain 1.0\n", captured.out
    )
    trace = (tmp_path / "s" / "cells" / "kind=raises,gain=2.0" / "error.txt").read_text()
    assert "Traceback" in trace and "no such world at gain 2.0" in trace
    death = (tmp_path / "s" / "cells" / "kind=dies,gain=2.0" / "error.txt").read_text()
    assert "died" in death
    # A good cell may have shared the pool with a deadly one, and begun anew.
    assert runs(tmp_path).keys() == {"1.0,good,0", "2.0,good,0"}
    page = (tmp_path / "s" / "report.html").read_text()
    assert "no such world at gain 2.0" in page and "data:image/png;base64" in page
    # The same command again would give the failed cells, and them alone, another chance.
    grid = {"kind": ("raises", "dies", "good"), "gain": (1.0, 2.0)}
    plan = sweeping.plan(experiments.find(str(world)), tmp_path / "s", grid, seeds=1)
    assert {cell.changes["kind"] for cell in plan.open_cells()} == {"raises", "dies"}


def test_two_sweeps_do_not_share_a_directory(world, tmp_path, capsys):
    command = ["sweep", world, "--out", tmp_path / "s"]
    plan = sweeping.plan(experiments.find(str(world)), tmp_path / "s", {})
    with _files.alone(plan.directory):
        assert polgrad(*command) == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_of_two_first_starts_with_other_grids_one_is_refused(world, tmp_path, monkeypatch):
    """Another one starts after the first one's look at the directory, or while that writes."""
    found, mkdir, writes = experiments.find(str(world)), pathlib.Path.mkdir, _files.write

    def after_the_look(place, **options):
        monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)
        sweeping.plan(found, tmp_path / "a", {"gain": (3.0,)})
        mkdir(place, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", after_the_look)
    with pytest.raises(ValueError, match=r"holds a sweep with grid \{'gain': \[3.0\]\}"):
        sweeping.plan(found, tmp_path / "a", {"gain": (1.0, 2.0)})

    def while_that_writes(path, content):
        monkeypatch.setattr(_files, "write", writes)
        with pytest.raises(ValueError, match="in use by process"):
            sweeping.plan(found, tmp_path / "b", {"gain": (3.0,)})
        writes(path, content)

    monkeypatch.setattr(_files, "write", while_that_writes)
    sweeping.plan(found, tmp_path / "b", {"gain": (1.0, 2.0)})
    assert json.loads((tmp_path / "b" / "sweep.json").read_text())["grid"] == {"gain": [1.0, 2.0]}


def test_no_lock_is_left_where_no_sweep_is(world, tmp_path):
    with pytest.raises(ValueError, match="something that is no sweep"):
        sweeping.plan(experiments.find(str(world)), world.parent, {})
    assert not (world.parent / ".lock").exists()


GRIDS = [
    {"kind": ("a b", "a_b", "a/b", "a?b", "A_b")},
    {"kind": ("x", "x,gain=2", "x,gain=2.0"), "gain": (1.0, 2.0)},
    {"kind": ("x" * 300, "x" * 299 + "y", "x" * 301)},
    {"kind": ("../../etc", "..", ".", "", " ", "~", "a~", "\n", "é", "e\u0301", "\udcff")},
    {"limits": ((0, 1), (0, 2), (0.0, 1.0))},
]


@pytest.mark.parametrize("grid", GRIDS)
def test_no_two_cells_have_one_name(world, tmp_path, grid):
    plan = sweeping.plan(experiments.find(str(world)), tmp_path / "s", grid)
    named = [cell.name for cell in plan.cells]
    assert len(set(named)) == len(named)
    for cell in plan.cells:
        plan.place(cell).mkdir()
        assert plan.place(cell).parent.resolve() == (tmp_path / "s" / "cells").resolve()
        assert len(cell.name.encode()) <= 120
    # A report finds the cells by what sweep.json holds.
    found = sweep_report.combinations(
        json.loads((tmp_path / "s" / "sweep.json").read_text())["grid"]
    )
    assert [cells.name(changes) for changes in found] == named


@settings(max_examples=60)
@given(st.lists(st.text(max_size=8), min_size=2, max_size=5, unique=True))
def test_texts_that_differ_are_cells_that_differ(texts):
    named = {cells.name({"kind": text, "other": text[::-1]}) for text in texts}
    assert len(named) == len(texts)
    assert all(re.fullmatch(r"[\w.,=+~-]{1,120}", name) for name in named)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "all"),
        ({"gain": 1.0, "kind": "a"}, "gain=1.0,kind=a"),
        ({"rate": 1e-05, "on": True}, "rate=1e-05,on=True"),
    ],
)
def test_a_readable_name_stays_as_it_was(changes, name):
    assert cells.name(changes) == name


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two cells that has ended."""
    folder = tmp_path_factory.mktemp("swept")
    world = folder / "worlds" / "world.py"
    world.parent.mkdir()
    world.write_text(WORLD)
    plan = sweeping.plan(experiments.find(str(world)), folder / "s", {"gain": (1.0, 2.0)}, seeds=2)
    for cell in plan.cells:
        assert cells.run(cell, str(plan.place(cell))) == ""
    return plan


def test_a_result_of_another_cell_is_refused(swept, tmp_path):
    shutil.copytree(swept.directory, tmp_path / "s")
    plan = swept._replace(directory=tmp_path / "s")
    one, two = plan.cells
    assert plan.open_cells() == []
    path = plan.place(one) / "result.json"
    path.write_bytes((plan.place(two) / "result.json").read_bytes())
    for read in (
        plan.open_cells,
        lambda: sweeping.table(plan),
        lambda: sweep_report.read(plan.directory),
    ):
        with pytest.raises(
            ValueError, match=r"result\.json has gain 2\.0, and the cell gain=1\.0 has"
        ):
            read()
    for change, text in [
        ({"seeds": 3}, "has seeds 2, and the cell"),
        ({"arms": ("other",)}, r"has arms \['only'\]"),
        ({"smoke": True}, "has size 'changed'"),
    ]:
        with pytest.raises(ValueError, match=text):
            cells.finished(plan.place(two), two._replace(**change))


def values(content, place=()):
    """Every entry of a JSON tree by its place."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*place, key)
        if isinstance(value, (dict, list)):
            yield from values(value, (*place, key))


OTHERS = (None, True, -1, 0, 1.5, "x", [], {}, [{}], {"x": None}, 10**400, float("nan"))


def damaged(content):
    """The content with each entry deleted, and given every other type."""
    for place in values(content):
        for other in ("delete", *OTHERS):
            copy = json.loads(json.dumps(content))
            inner = copy
            for key in place[:-1]:
                inner = inner[key]
            if other == "delete":
                del inner[place[-1]]
            else:
                inner[place[-1]] = other
            yield copy


def one_line_or_fine(read, path):
    """A reader of a damaged file: it succeeds, or raises one line that names the file."""
    try:
        read()
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        return False
    return True


BROKEN = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b'{"a": 1}',
    b"version https://git-lfs",
)


@pytest.mark.parametrize("name", ["sweep.json", "cells/gain=1.0/result.json"])
def test_a_damaged_file_of_a_sweep_is_one_line(swept, tmp_path, name):
    shutil.copytree(swept.directory, tmp_path / "s")
    path = tmp_path / "s" / name
    nothing = (
        r"no finished cell|^metric is"  # a grid or metrics of others, of which nothing has ended
    )

    def read():
        try:
            sweep_report.read(tmp_path / "s")
        except ValueError as error:
            if not re.search(nothing, str(error)):
                raise

    tries = list(damaged(json.loads(path.read_text())))
    fine = 0
    for copy in tries:
        path.write_text(json.dumps(copy))
        fine += one_line_or_fine(read, tmp_path / "s")
    assert len(tries) > 100 and fine < 0.7 * len(tries)
    for bad in BROKEN:
        path.write_bytes(bad)
        assert not one_line_or_fine(read, path)


def test_a_damaged_result_of_a_run_is_one_line(swept, tmp_path):
    path = tmp_path / "result.json"
    content = json.loads((swept.place(swept.cells[0]) / "result.json").read_text())
    content["arms"]["second"] = json.loads(json.dumps(content["arms"]["only"]))
    content["arms"]["second"]["comparison"] = {
        "difference": 0.5,
        "low": None,
        "high": 1.0,
        "probability_of_improvement": 0.5,
        "seeds_needed": 3,
    }

    def page():
        blocks = reporting.blocks(reporting.read(path), b"")
        pages.markdown("x", blocks)
        reporting.sentences(reporting.read(path))

    tries = list(damaged(content))
    for copy in tries:
        path.write_text(json.dumps(copy))
        one_line_or_fine(page, path)
    assert len(tries) > 500
    for bad in BROKEN:
        path.write_bytes(bad)
        assert not one_line_or_fine(page, path)


def summary_of(scores, grid, **rest):
    lines = [
        sweep_report.Line(changes, "only", np.array(seeds))
        for changes, seeds in zip(sweep_report.combinations(grid), scores)
    ]
    fields = {"lower": False, "failed": {}, "missing": []} | rest
    return sweep_report.Summary({"name": "x", "grid": grid}, "score", lines=lines, **fields)


def test_the_best_setting_is_told_from_the_next_one_or_not():
    clear = summary_of([[1.0, 1.1, 0.9], [3.0, 3.1, 2.9]], {"gain": [1, 2]})
    assert [line.changes["gain"] for line in clear.ranked()] == [2, 1]
    assert "a difference that these seeds tell" in sweep_report.best(clear)
    close = summary_of([[1.0, 2.1, 0.9], [2.0, 1.1, 1.2]], {"gain": [1, 2]})
    assert "not told apart by these seeds" in sweep_report.best(close)
    lower = summary_of([[1.0, 1.1], [3.0, 3.1]], {"gain": [1, 2]}, lower=True)
    assert sweep_report.best(lower).startswith("Best score: 1.05 [1, 1.1] at gain=1, only.")


@pytest.mark.parametrize(
    "grid",
    [
        {"a": [0.01, 0.1, 1.0]},
        {"a": ["x", "y"]},
        {"a": [1, 2], "b": ["x", "y"]},
        {"a": [1, 2], "b": [1, 2], "c": [1, 2]},
        {"a": [1]},
    ],
)
def test_every_grid_has_a_picture(grid):
    cells = sweep_report.combinations(grid)
    summary = summary_of([[float(i), i + 0.5] for i in range(len(cells))], grid)
    assert sweep_report.picture(summary).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep", "WORLD", "--set", "gian=1"), "did you mean gain"),
        (("sweep", "WORLD", "--workers", "0"), "workers is 0"),
        (("sweep", "WORLD", "--arms", "other"), "arms has ['other']"),
        (("sweep", "WORLD", "--seeds", "0"), "seeds is 0"),
        (("sweep", "WORLD", "--set", "__class__=1"), "setting '__class__' is unknown"),
        (("sweep", "WORLD", "--set", "limits=" + "(" * 9999), "setting limits is"),
        (("sweep", "WORLD", "--seeds", "5000000000"), "seeds is 5000000000"),
        (("run", "WORLD", "--set", "__class__=1"), "setting '__class__' is unknown"),
        (("run", "WORLD", "--set", "gain=1", "--set", "gain=2"), "--set has gain twice"),
        (("report", "nowhere"), "nowhere does not exist"),
        (("report", "worlds"), "worlds holds no sweep.json, result.json or metrics.jsonl"),
        (("report",), "expected either a directory"),
    ],
)
def test_bad_input_ends_with_one_line(world, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert polgrad(*[world if a == "WORLD" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not pathlib.Path("runs").exists()
