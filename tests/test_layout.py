"""The house: a folder of `polgrad/` imports only from its own floor and those above it."""

import ast
import pathlib
import tomllib

import pytest

import polgrad

ROOT = pathlib.Path(polgrad.__file__).parent
# From the top down; what is not named here (checks, number types) is a helper of all.
FLOORS = (
    {"ratios", "divergences", "masking", "selection", "diagnostics", "statistics", "frontiers"},
    {"advantages", "losses", "games", "contract"},
    {"policies", "data", "rewards", "environments"},
    {"rollouts", "curricula"},
    {"training"},
    {"algorithms", "small"},
    {"experiments"},
    {"cli"},
)
# A run's settings name an algorithm; this one file turns the name into it.
LOOKUP = (ROOT / "training" / "building.py", "algorithms")
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported(path):
    """Rooms that a file names in its imports, at its top or inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "polgrad":
            names = [f"polgrad.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("polgrad."))


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_go_up(room):
    files = sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
    for path in files:
        names = {name for name in imported(path) if (path, name) != LOOKUP}
        below = {name for name in names if FLOOR.get(name, 0) > FLOOR[room]}
        assert not below, f"{path.relative_to(ROOT)} imports {below}, which lies below {room}"


def test_the_linter_knows_no_lowercase_name_that_nothing_defines():
    """The names of axes count as defined in every file, so a variable must not share one."""
    tool = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]
    assert [name for name in tool["ruff"]["builtins"] if name != name.upper()] == []
