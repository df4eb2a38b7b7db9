"""Somebody's algorithm file: whatever it does ends in one line with the file, and writes nothing."""

import pathlib

import pytest

from polgrad import _user_files, algorithms
from polgrad.contract import Context
from polgrad.training.setup import abstract
from polgrad.training.setup.algorithm import build_algorithm, find_algorithm

GOOD = """
import dataclasses, sys
from polgrad import algorithms

@dataclasses.dataclass(frozen=True)
class X(algorithms.GRPO):
    gain: float = 1.0
"""

CONTEXT = Context(group_size=4, max_tokens=8, num_prompts=16, on_policy=True)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return pathlib.Path("mine.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", "mine.py, line 2: SyntaxError"),
        ("raise RuntimeError('no')", "mine.py, line 1: RuntimeError: no"),
        ("import sys\nsys.exit(0)", r"mine.py, line 2: called sys.exit\(0\)"),
        ("import no_such_thing", "mine.py, line 1: ModuleNotFoundError: .*no_such_thing"),
        ("class Own(BaseException): pass\nraise Own('no')", "mine.py, line 2: Own: no"),
        (
            "Xx = 1",
            r"is missing \(did you mean Xx\?\); expected an Algorithm, or a dataclass with build"
            r"\(context\): derive a dataclass from one of polgrad.algorithms, such as",
        ),
        ("X = 5", "is of type int; expected an Algorithm, or a dataclass with build.*: derive"),
        ("def X(): pass", "is the function X; expected an Algorithm, or a dataclass with build"),
        (
            "class X:\n  def build(self, context): pass",
            r"is the class X; expected .*: write @dataclasses.dataclass\(frozen=True\) above the",
        ),
        (
            "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass X:\n  gain: int = 1",
            r"is the class X; expected .*: write its method def build\(self, context\)",
        ),
        (
            GOOD.replace("(frozen=True)", ""),
            r"line 5: .*non-frozen.*; write @dataclasses.dataclass\(frozen=True\) above the class",
        ),
        ("def __getattr__(name): return 1 / 0", "mine.py, line 1: ZeroDivisionError"),
        (
            GOOD + "    size: int = dataclasses.field(kw_only=True)\n",
            "mine.py: TypeError: .*'size'",
        ),
        (GOOD + "    def __post_init__(self): sys.exit()\n", r"line 8: called sys.exit\(\)"),
        ("\0", "mine.py: (SyntaxError|ValueError): source code"),
    ],
)
def test_a_file_that_cannot_be_used(mine, text, message):
    mine.write_text(text)
    with pytest.raises(ValueError, match=f"algorithm 'mine.py:X'.*{message}") as caught:
        find_algorithm("mine.py:X")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:X", "no such file: nowhere.py"),
        (":X", "'' is no name of a module"),
        ("no_such_module:X", "no module named 'no_such_module'"),
        ("polgrad.algorithms:Zzz", "is missing; expected an Algorithm"),
        ("a b:X", "'a b' is no name of a module"),
    ],
)
def test_a_name_of_nothing(name, message):
    with pytest.raises(ValueError, match=f"algorithm '{name}'.*{message}"):
        find_algorithm(name)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", r"build\(context\) returned NoneType; expected an Algorithm \(does its"),
        ("return 1 / 0", "mine.py, line 9: ZeroDivisionError"),
        ("sys.exit(0)", r"mine.py, line 9: called sys.exit\(0\)"),
        ("return context.no_such", "mine.py, line 9: AttributeError: .*no_such"),
        ("raise ValueError('group_size is 4')", "mine.py, line 9: ValueError: group_size is 4"),
    ],
)
def test_a_build_that_fails(mine, body, message):
    mine.write_text(GOOD + f"    def build(self, context):\n        {body}\n")
    settings = find_algorithm("mine.py:X")()
    with pytest.raises(ValueError, match=f"algorithm 'mine.py:X'.*{message}") as caught:
        build_algorithm("mine.py:X", settings, CONTEXT)
    assert "\n" not in str(caught.value)


def test_a_loss_that_fails_while_it_is_looked_at(mine):
    head = "    def surrogate(self, logp, behavior_logp, advantages, mask):"
    mine.write_text(f"{GOOD}{head}\n        return 1 / 0\n")
    settings = find_algorithm("mine.py:X")()
    with pytest.raises(ValueError, match=r"mine.py, line 9: ZeroDivisionError: division by zero$"):
        build_algorithm("mine.py:X", settings, CONTEXT)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "mine.py, line 10: ZeroDivisionError: division by zero"),
        ("sys.exit(0)", r"mine.py, line 10: called sys.exit\(0\)"),
        ("assert False, 'no'", "mine.py, line 10: AssertionError: no"),
        ("return algorithms.common.by_group(1, 4)", "mine.py, line 10: "),
        ("raise NotImplementedError('later')", "mine.py, line 10: NotImplementedError: later"),
    ],
)
def test_a_traced_function_that_fails(mine, body, message):
    mine.write_text(f"{GOOD}\ndef prepare(*args):\n    {body}\n")
    algorithm = algorithms.GRPO().build(CONTEXT)
    prepare = _user_files.load(mine).prepare
    algorithm = algorithm._replace(prepare=prepare)
    with pytest.raises(ValueError, match=f"algorithm mine.py:X: {message}") as caught:
        abstract.check(algorithm, CONTEXT, "mine.py:X")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "arguments", "told"),
    [
        ("loss", "outputs", r"takes \(outputs\); expected loss\(outputs, batch\): too many"),
        (
            "loss",
            "outputs, batch, key",
            r"takes \(outputs, batch, key\); expected .*missing .*'key'",
        ),
        ("prepare", "experience", r"expected prepare\(state, experience, key\)"),
        ("init", "", r"takes \(\); expected init\(key\)"),
        ("select", "batch", r"expected select\(outputs, batch, key\)"),
    ],
)
def test_a_function_with_other_arguments_shows_both_signatures(mine, field, arguments, told):
    mine.write_text(f"\n\ndef f({arguments}):\n    return 1 / 0\n")
    function = _user_files.load(mine).f
    algorithm = algorithms.GRPO().build(CONTEXT)._replace(**{field: function})
    with pytest.raises(
        ValueError, match=rf"^algorithm mine.py:X: mine.py, line 3: {field} .*{told}"
    ):
        abstract.check(algorithm, CONTEXT, "mine.py:X")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("if logp.sum() > 0: pass", "TracerBoolConversionError"),
        ("float(logp.sum())", "ConcretizationTypeError"),
        ("([0] * 99)[mask.sum().astype(int)]", "TracerIntegerConversionError"),
        ("numpy.asarray(logp)", "TracerArrayConversionError"),
        ("logp[mask > 0]", "NonConcreteBooleanIndexError"),
    ],
)
def test_a_value_that_is_not_there_while_jax_traces_is_told_with_its_line(mine, body, kind):
    head = "    def surrogate(self, logp, behavior_logp, advantages, mask):"
    tail = "return super().surrogate(logp, behavior_logp, advantages, mask)"
    mine.write_text(f"{GOOD}{head}\n        import numpy\n        {body}\n        {tail}\n")
    settings = find_algorithm("mine.py:X")()
    with pytest.raises(
        ValueError, match=rf"mine.py, line 10: .*{kind}.*; use jnp.where$"
    ) as caught:
        algorithm = build_algorithm("mine.py:X", settings, CONTEXT)
        abstract.check(algorithm, CONTEXT, "mine.py:X")
    assert "\n" not in str(caught.value)


def test_a_loss_that_reads_a_value_while_jax_traces_is_told_with_its_line(mine):
    mine.write_text("def loss(outputs, batch):\n    if outputs.logp.sum() > 0:\n        pass\n")
    algorithm = algorithms.GRPO().build(CONTEXT)._replace(loss=_user_files.load(mine).loss)
    told = r"^algorithm mine.py:X: mine.py, line 2: .*use jnp.where$"
    with pytest.raises(ValueError, match=told):
        abstract.check(algorithm, CONTEXT, "mine.py:X")


def build_and_check(mine, method):
    mine.write_text(f"{GOOD}    {method}\n")
    settings = find_algorithm("mine.py:X")()
    with pytest.raises(ValueError, match="mine.py, line 8: ") as caught:
        algorithm = build_algorithm("mine.py:X", settings, CONTEXT)
        abstract.check(algorithm, CONTEXT, "mine.py:X")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (
            "def surrogate(self, logp, behavior_logp, advantages, mask): pass",
            "algorithm 'mine.py:X': mine.py, line 8: X.surrogate returned nothing, expected an "
            "array of losses (does its last line say return?)",
        ),
        (
            "def surrogate(self, logp, behavior_logp, advantages, mask): return logp, {}",
            "algorithm 'mine.py:X': mine.py, line 8: X.surrogate returned tuple, expected an "
            "array of losses",
        ),
        (
            "def surrogate(self, logp, behavior_logp, advantages, mask): return logp.sum()",
            "mine.py, line 8: X.surrogate returned shape [], expected [8, 8]: one loss a token",
        ),
        (
            "def advantages(self, rewards, valid): pass",
            "mine.py, line 8: X.advantages returned nothing, expected [2, 4]: one number a sample "
            "(does its last line say return?)",
        ),
        (
            "def advantages(self, rewards, valid): return rewards.mean()",
            "mine.py, line 8: X.advantages returned shape [], expected [2, 4]: one number a sample",
        ),
    ],
)
def test_a_method_that_returns_something_else(mine, method, told):
    assert build_and_check(mine, method) == told


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (
            "def surrogate(self, logp, behavior_logp, advantages): return logp",
            "surrogate takes (logp, behavior_logp, advantages); expected surrogate(logp, "
            "behavior_logp, advantages, mask): too many positional arguments",
        ),
        (
            "def advantages(self, rewards): return rewards",
            "advantages takes (rewards); expected advantages(rewards, valid): too many positional "
            "arguments",
        ),
    ],
)
def test_a_method_with_other_arguments_shows_both_signatures(mine, method, told):
    assert build_and_check(mine, method) == f"algorithm 'mine.py:X': mine.py, line 8: {told}"
