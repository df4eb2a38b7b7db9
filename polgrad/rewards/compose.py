"""Rewards by name, with weights: from `RewardSpec`s to one function."""

import inspect
import math
import numbers
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polgrad import _names, _outside, _user_files
from polgrad.rewards import verifiers
from polgrad.rewards.score import Failure, Score

Reward = Callable[..., Score | float | bool]

EXHAUSTED = "out of memory: "
"""Part of an invalid sample's reason after a MemoryError: the process should be replaced."""

ARGUMENTS = ("prompt", "completion", "example")

# Names that the first three arguments of a reward have in other libraries. Such a function often
# can be called with three arguments, and would then read each of them as something else.
_PEERS = {
    "TRL": ("prompts", "completions", "completion_ids", "trainer_state"),
    "verl": ("data_source", "solution_str", "ground_truth", "extra_info"),
    "OpenRLHF": ("queries", "labels"),
}


class RewardSpec(NamedTuple):
    """One component of a reward.

    Args:
        target: "package.module:function", "path/to/file.py:function", or the name of a reward of
            `polgrad list rewards`, such as "math_verify".
        weight: factor of its value in the sum.
        parameters: keyword arguments of the function, plain data.
    """

    target: str
    weight: float = 1.0
    parameters: Mapping[str, Any] = {}


def full_target(target: str) -> str:
    """The target as every process finds it: with its module's name or its file's absolute path.

    Args:
        target: as in `RewardSpec`.

    Returns:
        The same target, independent of the working directory.

    Raises:
        ValueError: not of the form "module:function" or "file.py:function" and no reward of
            polgrad, or no such file.
    """
    if target in verifiers.NAMES:
        return f"{verifiers.__name__}:{target}"
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(
            f"reward {target!r} must have the form 'package.module:function' or "
            f"'file.py:function', or be one of {', '.join(verifiers.NAMES)}"
            f"{_names.hint(target, verifiers.NAMES)}"
        )
    if not place.endswith(".py"):
        return target
    path = Path(place).expanduser()
    if not path.is_file():
        raise ValueError(f"reward {target!r}: no such file: {path}")
    return f"{path.resolve()}:{name}"


def resolve(target: str, parameters: Mapping[str, Any] | None = None) -> Reward:
    """The function that a target names; checks that it takes `parameters`.

    Args:
        target: "package.module:function" or "path/to/file.py:function".
        parameters: keyword arguments that the function will be given.

    Returns:
        The function.

    Raises:
        ValueError: no such file, module or name (with a suggestion), a module that fails, a thing
            that is no function, or a function that takes other arguments; one line with the file,
            and with its line where there is one.
    """
    target = full_target(target)
    place, _, name = target.rpartition(":")
    module = _user_files.module(place, f"reward {target!r}")
    with _outside.calling(place, f"reward {target!r}"):
        if not hasattr(module, name):
            hint = _names.hint(name, dir(module))
            raise _outside.OutsideError(f"reward {target!r}: {place} has no {name!r}{hint}")
        function = getattr(module, name)
        if not callable(function):
            kind = type(function).__name__
            raise _outside.OutsideError(f"reward {target!r} is of type {kind}, expected a function")
        _check_arguments(function, target, parameters or {})
    return function


def _check_arguments(function: Reward, target: str, parameters: Mapping[str, Any]) -> None:
    """Refuses a function that cannot be called as a reward, or plainly reads other arguments."""
    call = f"reward({', '.join([*ARGUMENTS, *(f'{name}=...' for name in parameters)])})"
    line = _user_files.line_of(function)
    where = f"reward {target!r}{f' ({line})' if line else ''}"
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # compiled code may not tell what it takes
    peer = _peer(signature)
    if peer:
        raise _outside.OutsideError(
            f"{where} takes {signature}, the arguments of a reward for {peer}; expected {call}, one "
            f"sample a call, with the row of the data as example: {_translation(function, peer)} "
            "(docs/porting.md)"
        )
    names = [n for n in signature.parameters][: len(ARGUMENTS)]
    wrong = [n for n in names if n in ARGUMENTS and names.index(n) != ARGUMENTS.index(n)]
    try:
        signature.bind("", "", {}, **parameters)
        problem = f"{wrong[0]} stands at another place" if wrong else ""
    except TypeError as error:
        problem = str(error)
    if problem:
        raise _outside.OutsideError(
            f"{where} takes {signature} and cannot be called as {call}: {problem}"
        )
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        kind = "is async" if inspect.iscoroutinefunction(function) else "yields"
        raise _outside.OutsideError(f"{where} {kind}; expected a function that returns its score")


def _peer(signature: inspect.Signature) -> str | None:
    """The library whose reward takes such arguments."""
    first = [*signature.parameters][: len(ARGUMENTS)]
    if "queries" in first:  # OpenRLHF names its second argument as TRL names its first
        return "OpenRLHF"
    found = [peer for peer, names in _PEERS.items() if set(names) & set(first)]
    return found[0] if found else None


def _translation(function: Reward, peer: str) -> str:
    """One line that calls the function of another library as a reward of polgrad."""
    name = getattr(function, "__name__", "theirs")
    theirs = {
        "verl": f'{name}("", completion, example["answer"])',
        "TRL": f"{name}(prompts=[prompt], completions=[completion])[0]",
        "OpenRLHF": f'{name}([prompt + completion], [prompt], [example["answer"]])[0]',
    }
    return f"def reward(prompt, completion, example): return {theirs[peer]}"


def as_score(result: Any) -> Score:
    """What a reward returned, as a checked `Score`.

    Args:
        result: a `Score`, a real number, a boolean, or a zero-dimensional array.

    Returns:
        The score; invalid, with the reason, for NaN, an infinity, a number beyond float32, or
        another type.
    """
    value, valid, reason = result if isinstance(result, Score) else (result, True, "")
    if not valid:
        return Score(0.0, False, str(reason) or "marked invalid by the reward")
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, numbers.Real):
        kind = "nothing" if value is None else type(value).__name__
        return Score(0.0, False, f"returned {kind}, expected a number, True, False or a Score")
    return _finite(value, str(reason))


def _finite(value: numbers.Real, reason: str) -> Score:
    """A score of a number that a batch of float32 can hold."""
    try:
        number = float(value)
        if not math.isfinite(number):
            return Score(0.0, False, f"returned {number}")
        struct.pack("<f", number)
    except OverflowError:
        # Infinite in the batch: it would leave its group's statistics, and nobody would know.
        shown = f"{float(value):g}" if isinstance(value, float) else "a number"
        return Score(0.0, False, f"returned {shown}, beyond the range of float32 (3.4e38)")
    return Score(number, True, reason)


def call(
    function: Reward,
    prompt: str,
    completion: str,
    example: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> Score:
    """Call one reward; what it raises becomes an invalid score.

    Args:
        function: the reward.
        prompt: the prompt's text.
        completion: the policy's text.
        example: the example.
        parameters: keyword arguments.

    Returns:
        The score. Where the function fails, by an exception or by what it returns, it is a
        `Failure`, and the reason begins with the file and line if these are known.
    """
    try:
        result = function(prompt, completion, example, **parameters)
        score = as_score(result)
        # What the reward itself has marked as invalid keeps its own words.
        if score.valid or (isinstance(result, Score) and not result.valid):
            return score
        line = _user_files.line_of(function)
        return Failure(0.0, False, f"{line}: {score.reason}" if line else score.reason)
    except KeyboardInterrupt:
        raise
    # A blind except: any failure of the user's code is recorded, with its name, as an invalid
    # sample, which is counted and in number stops the run.
    except BaseException as error:  # noqa: BLE001
        return Failure(0.0, False, _failure(function, error)[:500])


def _failure(function: Reward, error: BaseException) -> str:
    """Why a reward failed, with the line of its own file that it failed in."""
    code = _user_files.code_of(function)
    path = Path(code.co_filename if code else getattr(function, "__name__", "reward"))
    told = _outside.told(path, error).removeprefix(f"{path.parent}/")
    return f"{EXHAUSTED if isinstance(error, MemoryError) else ''}{told}{environment_hint(error)}"


def environment_hint(error: BaseException) -> str:
    """What to do about a variable of the environment that a reward has asked for in vain.

    Args:
        error: what the reward raised, or what was raised because of that.

    Returns:
        A text to put behind the reason; empty for every other exception.
    """
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        trace = link.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if isinstance(link, KeyError) and trace is not None:
            frame = trace.tb_frame
            if frame.f_globals.get("__name__") == "os" and frame.f_code.co_name == "__getitem__":
                return " (--rewards.environment NAME passes a variable on)"
        link = link.__cause__ or link.__context__
    return ""


def combine(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """Weighted sum of a sample's components.

    `sum_i weight_i * value_i`; valid only where every component is: a missing part is not a zero.

    Args:
        scores: one for each component.
        weights: as many numbers.

    Returns:
        The sum (0 where invalid), with the components' reasons joined; a `Failure` where a
        component is one. A sum beyond float32 is invalid too.
    """
    reasons = [score.reason for score in scores if score.reason]
    if not all(score.valid for score in scores):
        reasons = [score.reason for score in scores if not score.valid]
        kind = Failure if any(isinstance(score, Failure) for score in scores) else Score
        return kind(0.0, False, "; ".join(reasons))
    value = sum(weight * score.value for score, weight in zip(scores, weights, strict=True))
    total = _finite(value, "; ".join(reasons))
    return total if total.valid else total._replace(reason=f"the weighted sum {total.reason}")


def compose(specs: Sequence[RewardSpec]) -> Callable[[str, str, Mapping[str, Any]], Score]:
    """One function of (prompt, completion, example) from weighted rewards.

    The function raises nothing but KeyboardInterrupt: what a reward raises, and a call of
    `sys.exit`, make the sample invalid. A reward with an attribute `warm_up` has it called once, here: imports that take seconds must
    not count against the deadline of the first sample.

    Args:
        specs: at least one component.

    Returns:
        The function.

    Raises:
        ValueError: no component, or as `resolve`.
    """
    check_specs(specs)
    functions = [resolve(spec.target, spec.parameters) for spec in specs]
    for function, spec in zip(functions, specs, strict=True):
        with _outside.calling(spec.target.rpartition(":")[0], f"warm_up of reward {spec.target!r}"):
            if hasattr(function, "warm_up"):
                function.warm_up()
    weights = [spec.weight for spec in specs]

    def reward(prompt: str, completion: str, example: Mapping[str, Any]) -> Score:
        scores = []
        for function, spec in zip(functions, specs, strict=True):
            score = call(function, prompt, completion, example, spec.parameters)
            if not score.valid and len(specs) > 1:
                name = spec.target.rpartition(":")[2]
                score = score._replace(reason=f"{name}: {score.reason}")
            scores.append(score)
        return combine(scores, weights)

    return reward


def check_specs(specs: Sequence[RewardSpec]) -> None:
    """Check what can be checked without loading anybody's code.

    Args:
        specs: the components of a reward.

    Raises:
        ValueError: no component, a weight that is no finite number, or a malformed target.
    """
    if not specs:
        raise ValueError("specs must hold at least one RewardSpec, got none")
    for spec in specs:
        if not isinstance(spec.weight, numbers.Real) or not math.isfinite(spec.weight):
            raise ValueError(
                f"weight of reward {spec.target!r} must be a finite number, got {spec.weight!r}"
            )
        full_target(spec.target)
