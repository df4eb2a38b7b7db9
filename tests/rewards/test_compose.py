import math

import numpy as np
import pytest

from polgrad.rewards import RewardSpec, Score, resolve
from polgrad.rewards.compose import as_score, combine, compose

VERIFIERS = "polgrad.rewards.verifiers"

MY = """
LIMIT = 3

def good(prompt, completion, example, *, scale=1.0):
    return scale * len(completion)

def bad(prompt, completion, example):
    return 1 / 0

def leave(prompt, completion, example):
    raise SystemExit(2)

def two(prompt, completion):
    return 1.0

good.warmed = 0
def _warm():
    good.warmed += 1
good.warm_up = _warm
"""


@pytest.fixture(scope="module")
def my(tmp_path_factory):
    path = tmp_path_factory.mktemp("my") / "my.py"
    path.write_text(MY)
    return str(path)


@pytest.mark.parametrize(
    ("result", "score"),
    [
        (True, Score(1.0)),
        (2, Score(2.0)),
        (np.float32(0.5), Score(0.5)),
        (np.bool_(True), Score(1.0)),
        (np.asarray(3.0), Score(3.0)),
        (Score(0.25, True, "near"), Score(0.25, True, "near")),
        (Score(math.nan, False, "no judge"), Score(0.0, False, "no judge")),
        (Score(None, False), Score(0.0, False, "marked invalid by the reward")),
        (math.nan, Score(0.0, False, "returned nan")),
        (-math.inf, Score(0.0, False, "returned -inf")),
        (None, Score(0.0, False, "returned NoneType, expected Score, float or bool")),
        ("1", Score(0.0, False, "returned str, expected Score, float or bool")),
        ((1.0, True), Score(0.0, False, "returned tuple, expected Score, float or bool")),
        (np.ones(2), Score(0.0, False, "returned ndarray, expected Score, float or bool")),
    ],
)
def test_what_a_reward_may_return(result, score):
    assert as_score(result) == score


def test_weighted_sum():
    scores = [Score(1.0), Score(0.5, True, "half"), Score(-1.0, True, "long")]
    assert combine(scores, [1.0, 2.0, 0.25]) == Score(1.75, True, "half; long")


def test_a_missing_component_is_not_a_zero():
    scores = [Score(1.0, True, "fine"), Score(0.0, False, "a"), Score(0.0, False, "b")]
    assert combine(scores, [1.0, 1.0, 0.0]) == Score(0.0, False, "a; b")


def test_compose(my):
    reward = compose(
        [
            RewardSpec(f"{VERIFIERS}:exact_match"),
            RewardSpec(f"{my}:good", weight=0.5, parameters={"scale": 2.0}),
        ]
    )
    assert reward("", "abc", {"answer": "abc"}) == Score(1.0 + 0.5 * 6.0)
    assert resolve(f"{my}:good").warmed == 1


def test_what_a_reward_raises_is_its_reason(my):
    assert compose([RewardSpec(f"{my}:bad")])("", "", {}) == Score(
        0.0, False, "ZeroDivisionError: division by zero"
    )
    both = compose([RewardSpec(f"{my}:good"), RewardSpec(f"{my}:leave")])
    assert both("", "", {}) == Score(0.0, False, "leave: SystemExit: 2")


def test_two_files_of_one_name_do_not_collide(tmp_path, my):
    other = tmp_path / "my.py"
    other.write_text("def good(prompt, completion, example):\n    return 7.0\n")
    assert resolve(f"{other}:good")("", "", {}) == 7.0
    assert resolve(f"{my}:good")("", "abc", {}) == 3.0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("exact_match", "must have the form"),
        (f"{VERIFIERS}:", "must have the form"),
        ("nowhere.py:fn", "no such file: nowhere.py"),
        ("no_such_module_here:fn", "no module named 'no_such_module_here'"),
        (f"{VERIFIERS}:exact_mach", "has no 'exact_mach'; did you mean 'exact_match'"),
        ("{my}:LIMIT", "is of type int, expected a function"),
        ("{my}:two", "too many positional arguments"),
        (f"{VERIFIERS}:regex_match", "missing a required .*'pattern'"),
    ],
)
def test_targets_that_do_not_resolve(my, target, message):
    with pytest.raises(ValueError, match=message):
        resolve(target.replace("{my}", my))


def test_parameters_that_a_reward_lacks(my):
    with pytest.raises(ValueError, match="'size'"):
        resolve(f"{my}:good", {"size": 1})


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "at least one RewardSpec"),
        ([RewardSpec(f"{VERIFIERS}:exact_match", weight=math.nan)], "finite number, got nan"),
    ],
)
def test_specs_are_checked(specs, message):
    with pytest.raises(ValueError, match=message):
        compose(specs)
