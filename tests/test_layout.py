"""The house: a room of `polgrad/` imports only from its own floor and those below it."""

import ast
import pathlib
import tomllib

import pytest

import polgrad

ROOT = pathlib.Path(polgrad.__file__).parent
# From the ground up; a helper of all (checks, number types) has a name that begins with "_".
FLOORS = (
    {
        "masking",
        "ratios",
        "divergences",
        "schedules",
        "running",
        "randomness",
        "diagnostics",
        "contract",
        "advantages",
        "losses",
        "selection",
        "distributions",
        "statistics",
        "tabular",
    },
    {"policies", "data", "rewards", "reward_models", "environments"},
    {"rollouts", "curricula", "algorithms"},
    {"training"},
    {"small", "agents"},
    {"conformance", "rehearsal", "serving", "experiments"},
    {"cli"},
)
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


def rooms():
    """Every folder and module of `polgrad/` that is no helper of all."""
    found = {path.name.removesuffix(".py") for path in ROOT.iterdir() if not path.is_symlink()}
    return {name for name in found if name.isidentifier() and not name.startswith("_")}


def test_every_room_has_a_floor():
    assert rooms() == set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_no_import_runs_upward(room):
    files = sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
    for path in files:
        above = {name for name in imported(path) if FLOOR.get(name, 0) > FLOOR[room]}
        assert not above, f"{path.relative_to(ROOT)} imports {above}, which lies above {room}"


def test_the_linter_knows_no_lowercase_name_that_nothing_defines():
    """The names of axes count as defined in every file, so a variable must not share one."""
    tool = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]
    assert [name for name in tool["ruff"]["builtins"] if name != name.upper()] == []
