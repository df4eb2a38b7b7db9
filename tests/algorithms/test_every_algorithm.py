"""Every algorithm has numbers computed by hand, in the file that mirrors the module of its class."""

import functools
import importlib.util
import pathlib

import numpy as np
import pytest
from hand_made import Numbers, by_hand, check, name_of

from polgrad import algorithms

HERE = pathlib.Path(__file__).parent


def mirror(name):
    """The test file of the module that defines an algorithm."""
    _, _, place = algorithms.find(name).__module__.partition("polgrad.algorithms.")
    *folders, module = place.split(".")
    return HERE.joinpath(*folders, f"test_{module}.py")


@functools.cache
def read(path):
    """A test file as a module."""
    spec = importlib.util.spec_from_file_location(f"read_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases(name, path):
    """The numbers of an algorithm that a test of its file checks."""
    module = read(path)
    tables = [x.table for key, x in vars(module).items() if key.startswith("test_") and table(x)]
    return [numbers for x in tables for case, numbers in x.items() if name_of(case) == name]


def table(function):
    """Whether a test is one of `by_hand`."""
    return hasattr(function, "table")


def missing(name, numbers):
    """What the numbers of an algorithm lack."""
    defaults = [x for x in numbers if not x.settings]
    if not defaults:
        return f"{name} has no numbers with its default settings"
    if not any(x.prepared for x in defaults):
        return f"{name} has no numbers for what prepare makes"
    if not any(np.any(x.gradient) for x in numbers):
        return f"{name} has no gradient other than 0"
    return None


@pytest.mark.parametrize("name", sorted(algorithms.NAMES))
def test_every_algorithm_has_numbers_computed_by_hand(name):
    path = mirror(name)
    assert path.exists(), f"{name} has no test file {path.name}"
    assert missing(name, cases(name, path)) is None


def test_an_algorithm_without_numbers_is_found():
    assert missing("new", []) and missing("new", [Numbers(0.0, [[0]], {})])
    assert missing("new", [Numbers(1.0, [[0]], {"weights": [1]})])
    assert missing("new", [Numbers(1.0, [[1]], {"weights": [1]}, settings={"beta": 1})])
    assert missing("new", [Numbers(1.0, [[1]], {"weights": [1]})]) is None


@pytest.mark.parametrize("what", ["loss", "gradient", "prepared"])
def test_wrong_numbers_fail(what):
    numbers = read(HERE / "test_topr.py").HAND_COMPUTED["topr"]
    wrong = {"loss": 1.001 * numbers.loss, "prepared": {"weights": [0.3] * 4}}
    wrong["gradient"] = [1.001 * numbers.gradient[0], *numbers.gradient[1:]]
    check(algorithms.TOPR(), numbers)
    with pytest.raises(AssertionError, match=what if what != "prepared" else "weights"):
        check(algorithms.TOPR(), numbers._replace(**{what: wrong[what]}))


def test_a_table_that_no_test_checks_does_not_count(tmp_path):
    file = tmp_path / "test_nothing.py"
    file.write_text("HAND_COMPUTED = {'topr': 1}\n")
    assert cases("topr", file) == []
    assert by_hand({"topr": 1}).table == {"topr": 1}
