"""The name that is suggested is the one that was meant."""

import pathlib

import pytest

from polgrad import _names, algorithms


def swapped(name):
    """A name with two neighbours swapped, at each place where this makes another name."""
    for i in range(len(name) - 1):
        yield name[:i] + name[i + 1] + name[i] + name[i + 2 :]


def shortened(name):
    for i in range(len(name)):
        yield name[:i] + name[i + 1 :]


@pytest.mark.parametrize("name", sorted(algorithms.NAMES))
def test_swapped_letters_suggest_the_algorithm(name):
    for slip in swapped(name):
        # What begins another name may mean that one.
        if not any(other.startswith(slip) for other in algorithms.NAMES):
            with pytest.raises(
                ValueError, match=f"unknown algorithm '{slip}'; did you mean {name}\\?"
            ):
                algorithms.find(slip)


@pytest.mark.parametrize("name", sorted(n for n in algorithms.NAMES if len(n) > 4))
def test_a_letter_that_is_missing_suggests_the_algorithm(name):
    for slip in shortened(name):
        # What begins several names means any of them.
        if sum(other.startswith(slip) for other in algorithms.NAMES) < 2:
            assert _names.nearest(slip, algorithms.NAMES) == [name]


@pytest.mark.parametrize(
    ("a", "b", "slips"),
    [
        ("grpo", "grpo", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("gpro", "grpo", 1),
        ("gpro", "gspo", 2),
        ("abcd", "badc", 2),
        ("kitten", "sitting", 3),
    ],
)
def test_slips_are_counted(a, b, slips):
    assert _names._slips(a, b) == slips


def test_what_is_like_nothing_has_no_suggestion():
    assert _names.nearest("zzz", algorithms.NAMES) == [] and _names.hint("zzz", []) == ""
    assert _names.nearest("gpro", ["gspo", "nash", "grpo"], n=5) == ["grpo", "gspo"]


def test_a_hint_may_name_several():
    assert _names.hint("gpro", ["gspo", "nash", "grpo"], n=2) == "; did you mean grpo or gspo?"
    assert _names.hint("gpro", ["g12o"]) == ""
    assert _names.hint("gpro", ["g12o"], cutoff=0.4) == "; did you mean g12o?"


def test_capital_letters_tell_no_names_apart():
    assert _names.hint("GRPO", algorithms.NAMES) == "; did you mean grpo?"
    assert _names.nearest("Dr_GRPO", algorithms.NAMES) == ["dr_grpo"]
    assert _names.nearest("mass", ["MASS", "Mass"], n=2) == ["Mass", "MASS"]


def test_the_beginning_of_a_name_means_that_name():
    known = ["masscart", "total_mass", "max_steps_in_episode"]
    assert _names.nearest("max_steps", known, cutoff=0.4) == ["max_steps_in_episode"]


def test_no_other_module_looks_for_names_itself():
    """One measure of likeness: `difflib` ranks a swap of two letters below other slips."""
    root = pathlib.Path(_names.__file__).parent
    found = {p.name for p in root.rglob("*.py") if "get_close_matches(" in p.read_text()}
    assert found == {"_names.py"}
