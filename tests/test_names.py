"""The name that is suggested is the one that was meant."""

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
        if slip not in algorithms.NAMES:
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
