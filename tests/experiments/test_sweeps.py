"""Sweeps: the grid, what survives a death, tables and reports with known numbers."""

import collections
import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from worlds import WORLD

from polgrad import cli, experiments
from polgrad.experiments import sweep_report, sweeping


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
    settings = experiments.find(str(world)).experiment.settings
    assert sweeping.grid(settings, ["gain=1,2.5", "kind=a,b", "limits=(0,1),(0,2)"]) == {
        "gain": (1.0, 2.5),
        "kind": ("a", "b"),
        "limits": ((0, 1), (0, 2)),
    }
    for bad, message in [
        (["gain"], "expected key=value"),
        (["gian=1"], "did you mean gain"),
        (["gain=1,x"], "setting gain is 'x'; expected float"),
        (["gain=1,1.0"], "a value twice"),
        (["gain=1", "gain=2"], "gain twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            sweeping.grid(settings, bad)


def test_cells_cover_the_grid_once(world, tmp_path):
    found = experiments.find(str(world))
    plan = sweeping.plan(found, tmp_path / "s", {"gain": (1.0, 2.0), "kind": ("a", "b", "c")})
    assert [cell.name for cell in plan.cells][:2] == ["gain=1.0,kind=a", "gain=1.0,kind=b"]
    assert len({cell.name for cell in plan.cells}) == 6 == len(plan.open_cells())
    with pytest.raises(ValueError, match="seeds 5, this one has 2"):
        sweeping.plan(found, tmp_path / "s", plan.grid, seeds=2)
    with pytest.raises(ValueError, match="something that is no sweep"):
        sweeping.plan(found, tmp_path, plan.grid)


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
    assert "kind=raises,gain=1.0: failed, RuntimeError: no such world at gain 1.0" in captured.out
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


def test_two_sweeps_do_not_share_a_directory(world, tmp_path):
    plan = sweeping.plan(experiments.find(str(world)), tmp_path / "s", {})
    with (
        sweeping.alone(plan.directory),
        pytest.raises(ValueError, match="in use by another sweep"),
        sweeping.alone(plan.directory),
    ):
        pass
    with sweeping.alone(plan.directory):
        pass


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
        (("report", "nowhere"), "neither sweep.json nor result.json"),
        (("report",), "expected either a directory"),
    ],
)
def test_bad_input_ends_with_one_line(world, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert polgrad(*[world if a == "WORLD" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not pathlib.Path("runs").exists()
