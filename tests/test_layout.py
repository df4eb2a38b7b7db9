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


def code_lines(path):
    """Lines of a file that are no docstring, no comment and not blank."""
    text = path.read_text()
    documented = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else ():
            value = child.value if isinstance(child, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                documented |= set(range(child.lineno, child.end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(x.strip()) and x.lstrip()[0] != "#" and i not in documented for i, x in lines)


def test_a_file_is_as_long_as_one_reader_can_hold():
    for path in ROOT.rglob("*.py"):
        assert code_lines(path) <= 400, path.relative_to(ROOT)
        assert len(path.read_text().splitlines()) <= 620, path.relative_to(ROOT)


# Tests of several files at once, by the place that they are about.
ACROSS = {
    "algorithms": {"every_algorithm", "public_losses", "settings"},
    "data": {"tokenizer_parity"},
    "experiments": {"arms", "experiments", "outside_files", "papers", "ray", "result_versions"},
    "losses": {"presets", "reductions"},
    "policies": {"goldens", "parity"},
    "policies/hub": {"damage"},
    "rollouts": {"greedy_smollm2", "sharded"},
    "small": {"arguments", "curricula"},
    "training": {"invariance", "reading", "runs", "sampler_correction", "sharding"},
    "training/runtime": {"processes"},
    ".": {
        "algorithms_page",
        "colabs",
        "contributing",
        "layout",
        "porting",
        "readme",
        "setting_ranges",
    },
}


def proves(folder, name):
    """Whether a test file has the name of a file, a folder or a private module of `polgrad/`."""
    here = ROOT / folder
    if here.with_suffix(".py").exists():
        return True  # one of the files in a folder that mirrors a file
    places = (here / f"{name}.py", here / name / "__init__.py", here / f"_{name}.py")
    return any(path.exists() for path in places)


def test_tests_mirror_the_rooms():
    tests = ROOT.parent / "tests"
    lost = {}
    for path in tests.rglob("test_*.py"):
        folder, name = str(path.parent.relative_to(tests)), path.stem.removeprefix("test_")
        if not proves(folder, name):
            lost.setdefault(folder, set()).add(name)
    assert lost == ACROSS


def test_the_linter_knows_no_lowercase_name_that_nothing_defines():
    """The names of axes count as defined in every file, so a variable must not share one."""
    tool = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]
    assert [name for name in tool["ruff"]["builtins"] if name != name.upper()] == []
