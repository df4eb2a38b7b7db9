import math
import pathlib

import numpy as np
import pytest

from polgrad.rewards import RewardSpec, Score, resolve, verifiers
from polgrad.rewards.compose import as_score, call, combine, compose, full_target
from polgrad.rewards.score import Failure

VERIFIERS = "polgrad.rewards.verifiers"

MY = """
LIMIT = 3

def nothing(prompt, completion, example):
    return {"text": "none", "nan": float("nan"), "own": Score(0.0, False, "no judge")}[completion]

from polgrad.rewards import Score

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
        (3.4e38, Score(3.4e38)),
        (1e39, Score(0.0, False, "returned 1e+39, beyond the range of float32 (3.4e38)")),
        (-1e300, Score(0.0, False, "returned -1e+300, beyond the range of float32 (3.4e38)")),
        (10**400, Score(0.0, False, "returned a number, beyond the range of float32 (3.4e38)")),
        (
            np.float64(1e39),
            Score(0.0, False, "returned 1e+39, beyond the range of float32 (3.4e38)"),
        ),
        (math.nan, Score(0.0, False, "returned nan")),
        (-math.inf, Score(0.0, False, "returned -inf")),
        (None, Score(0.0, False, "returned nothing, expected a number, True, False or a Score")),
        ("1", Score(0.0, False, "returned str, expected a number, True, False or a Score")),
        (
            (1.0, True),
            Score(0.0, False, "returned tuple, expected a number, True, False or a Score"),
        ),
        (
            np.ones(2),
            Score(0.0, False, "returned ndarray, expected a number, True, False or a Score"),
        ),
    ],
)
def test_what_a_reward_may_return(result, score):
    assert as_score(result) == score


def test_weighted_sum():
    scores = [Score(1.0), Score(0.5, True, "half"), Score(-1.0, True, "long")]
    assert combine(scores, [1.0, 2.0, 0.25]) == Score(1.75, True, "half; long")


def test_a_sum_beyond_float32_is_no_reward():
    total = combine([Score(3e38), Score(3e38)], [1.0, 1.0])
    assert not total.valid and total.reason.startswith("the weighted sum returned 6e+38")
    assert combine([Score(3e38), Score(3e38)], [1.0, -1.0]) == Score(0.0)


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


def test_what_is_no_number_has_file_and_line_and_an_own_reason_stays(my):
    reward = compose([RewardSpec(f"{my}:nothing")])
    texts = ["my.py, line 4: returned nan", "my.py, line 4: returned str, expected a number"]
    for completion, text in zip(["nan", "text"], texts):
        score = reward("", completion, {})
        assert score.reason.startswith(text) and isinstance(score, Failure)
    own = reward("", "own", {})
    assert own == Score(0.0, False, "no judge") and not isinstance(own, Failure)
    assert isinstance(reward("", "a key that is not there", {}), Failure)


def test_whether_a_reward_failed_is_not_read_out_of_its_words():
    def judge(prompt, completion, example):
        return Score(0.0, False, "program.py, line 1: invalid syntax")

    assert type(call(judge, "", "", {}, {})) is Score
    # Compiled code has no line, and its failure is one nevertheless.
    failed = call(math.hypot, "", "", {}, {})
    assert isinstance(failed, Failure) and not failed.valid
    for scores, kind in [([Score(1.0), failed], Failure), ([Score(0.0, False, "own")], Score)]:
        assert type(combine(scores, [1.0] * len(scores))) is kind
    compiled = RewardSpec("math:hypot")
    assert isinstance(compose([compiled, RewardSpec("exact_match")])("", "", {}), Failure)


def test_a_reward_of_polgrad_may_go_by_its_bare_name():
    assert full_target("math_verify") == f"{VERIFIERS}:math_verify"
    assert resolve("exact_match") is verifiers.exact_match
    with pytest.raises(ValueError, match="one of exact_match, .*; did you mean math_verify"):
        full_target("math_verfy")


def test_what_a_reward_raises_is_its_reason(my):
    assert compose([RewardSpec(f"{my}:bad")])("", "", {}) == Score(
        0.0, False, "my.py, line 13: ZeroDivisionError: division by zero"
    )
    both = compose([RewardSpec(f"{my}:good"), RewardSpec(f"{my}:leave")])
    assert both("", "", {}) == Score(0.0, False, "leave: my.py, line 16: called sys.exit(2)")


ODD = """
class Own(BaseException):
    pass

class Dumb(Exception):
    def __str__(self):
        raise SystemExit("no text")

class Judge:
    def __call__(self, prompt, completion, example):
        return example["x"]

judge = Judge()

def own(prompt, completion, example):
    raise Own("enough")

def dumb(prompt, completion, example):
    raise Dumb

def text(prompt, completion, example):
    return Score(0.0, False, Dumb())

def memory(prompt, completion, example):
    raise MemoryError

def below(prompt, completion, example):
    import json
    return json.loads("{")

from polgrad.rewards import Score
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own", "odd.py, line 16: Own: enough"),
        ("dumb", "odd.py, line 19: Dumb: (its text cannot be had)"),
        ("text", "odd.py, line 7: called sys.exit('no text')"),
        ("memory", "out of memory: odd.py, line 25: MemoryError"),
        ("below", "odd.py, line 29: JSONDecodeError: Expecting property name enclosed in double"),
        ("judge", "odd.py, line 11: KeyError: 'x'"),
    ],
)
def test_every_failure_has_the_line_of_the_rewards_own_file(tmp_path, name, reason):
    path = tmp_path / "odd.py"
    path.write_text(ODD)
    score = compose([RewardSpec(f"{path}:{name}")])("", "", {})
    assert not score.valid and score.reason.startswith(reason)


def test_two_files_of_one_name_do_not_collide(tmp_path, my):
    other = tmp_path / "my.py"
    other.write_text("def good(prompt, completion, example):\n    return 7.0\n")
    assert resolve(f"{other}:good")("", "", {}) == 7.0
    assert resolve(f"{my}:good")("", "abc", {}) == 3.0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("exact", "must have the form"),
        (f"{VERIFIERS}:", "must have the form"),
        ("nowhere.py:fn", "no such file: nowhere.py"),
        ("no_such_module_here:fn", "no module named 'no_such_module_here'"),
        (f"{VERIFIERS}:exact_mach", "has no 'exact_mach'; did you mean exact_match"),
        ("{my}:LIMIT", "is of type int, expected a function"),
        ("{my}:two", "too many positional arguments"),
        (f"{VERIFIERS}:regex_match", "missing a required .*'pattern'"),
    ],
)
def test_targets_that_do_not_resolve(my, target, message):
    with pytest.raises(ValueError, match=message):
        resolve(target.replace("{my}", my))


PEERS = """
import functools

def verl(data_source, solution_str, ground_truth, extra_info=None): return 1.0

def verl_short(solution_str, ground_truth, *rest): return 1.0

def trl(prompts, completions, **kwargs): return [1.0]

def trl_alone(completions, **kwargs): return [1.0]

def trl_column(completions, ground_truth, **kwargs): return [1.0]

def trl_three(prompts, completions, answer): return [1.0]

def openrlhf(queries, prompts, labels): return [1.0]

def answer(prompt, completion, ground_truth): return 1.0

def swapped(completion, prompt, example): return 1.0

def needs(prompt, completion, example, *, gold): return 1.0

def fourth(prompt, completion, example, gold): return 1.0

def none(): return 1.0

async def later(prompt, completion, example): return 1.0

def many(prompt, completion, example): yield 1.0

@functools.cache
def wrapped(data_source, solution_str, ground_truth): return 1.0
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("verl", r'line 4\) takes .* verl; .* return verl\("", completion, example\["answer"\]\)'),
        ("verl_short", "a reward for verl"),
        ("wrapped", "a reward for verl"),
        ("answer", "a reward for verl"),
        ("trl", r"for TRL; .* return trl\(prompts=\[prompt\], completions=\[completion\]\)\[0\]"),
        ("trl_alone", "a reward for TRL"),
        ("trl_column", "a reward for TRL"),
        ("trl_three", "a reward for TRL"),
        ("openrlhf", r"a reward for OpenRLHF; .* \(docs/porting\.md\)"),
        ("swapped", r"cannot be called as reward\(prompt, .*: completion stands at another place"),
        ("needs", "cannot be called as .*'gold'"),
        ("fourth", "line 24.*cannot be called as .*'gold'"),
        ("none", "cannot be called as .*too many positional"),
        ("later", "is async; expected a function that returns"),
        ("many", "yields; expected a function that returns"),
    ],
)
def test_a_function_that_takes_other_arguments_is_refused_with_what_to_write(
    tmp_path, name, message
):
    path = tmp_path / "peers.py"
    path.write_text(PEERS)
    with pytest.raises(ValueError, match=rf"reward '.*peers\.py:{name}' .*{message}") as caught:
        resolve(f"{path}:{name}")
    assert "\n" not in str(caught.value)


def test_the_documented_translations_are_rewards(tmp_path, monkeypatch):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "porting.md").read_text()
    (code,) = page.partition("## Rewards")[2].split("```python\n")[1:]
    (tmp_path / "theirs.py").write_text(
        "def trl_reward(prompts, completions, answer, **rest):\n"
        "    return [float(c == a) for c, a in zip(completions, answer)]\n"
        "def verl_reward(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return float(solution_str == ground_truth)\n"
        "def openrlhf_reward(queries, prompts, labels):\n"
        "    return [float(q == p + a) for q, p, a in zip(queries, prompts, labels)]\n"
    )
    (tmp_path / "mine.py").write_text(code.partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("like_trl", "like_verl", "like_openrlhf"):
        reward = resolve(f"{tmp_path / 'mine.py'}:{name}")
        assert reward("1 + 2 =", "3", {"answer": "3"}) == 1.0
        assert reward("1 + 2 =", "4", {"answer": "3"}) == 0.0


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("reward_fails", r"reward_fails\.py, line 2: ZeroDivisionError: division by zero"),
        ("reward_leaves", r"reward_leaves\.py, line 1: called sys.exit\(0\)"),
        ("reward_typo", r"reward_typo\.py, line 2: SyntaxError: "),
        ("reward_imports", r"reward_imports\.py, line 1: ModuleNotFoundError: .*no_such_thing"),
        ("reward_inner", r"reward_inner\.py, line 1: ZeroDivisionError"),
        ("reward_gone", "no module named 'reward_gone'"),
        ("", "must have the form"),
        (".a", "'.a' is no name of a module"),
        ("a..b", "'a..b' is no name of a module"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(
    tmp_path, monkeypatch, module, message
):
    for name, text in [
        ("reward_fails", "x = 1\n1 / 0\n"),
        ("reward_leaves", "import sys; sys.exit(0)\n"),
        ("reward_typo", "x = 1\ndef f(:\n"),
        ("reward_imports", "import no_such_thing\n"),
        ("reward_inner", "import reward_fails\n"),
    ]:
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"reward .*{message}") as caught:
        resolve(f"{module}:fn")
    assert "\n" not in str(caught.value)


def test_a_warm_up_that_fails_is_told_with_its_line(tmp_path):
    path = tmp_path / "cold.py"
    path.write_text(
        "def fn(prompt, completion, example): return 1.0\n"
        "def warm_up(): raise SystemExit\n"
        "fn.warm_up = warm_up\n"
    )
    with pytest.raises(ValueError, match=r"warm_up of reward .*cold\.py, line 2: called sys"):
        compose([RewardSpec(f"{path}:fn")])


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
