"""Rewards by name, with weights: from `RewardSpec`s to one function that never raises."""

import difflib
import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polgrad import _user_files
from polgrad.rewards.score import Score

Reward = Callable[..., Score | float | bool]


class RewardSpec(NamedTuple):
    """One component of a reward.

    Args:
        target: "package.module:function" or "path/to/file.py:function".
        weight: factor of its value in the sum.
        parameters: keyword arguments of the function, plain data.
    """

    target: str
    weight: float = 1.0
    parameters: Mapping[str, Any] = {}


def absolute(target: str) -> str:
    """The target with a file's path made absolute, so that another process finds it.

    Args:
        target: as in `RewardSpec`.

    Returns:
        The same target, independent of the working directory.

    Raises:
        ValueError: not of the form "module:function" or "file.py:function", or no such file.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(
            f"reward {target!r} must have the form 'package.module:function' or 'file.py:function'"
        )
    if not place.endswith(".py"):
        return target
    path = Path(place).expanduser()
    if not path.is_file():
        raise ValueError(f"reward {target!r}: no such file: {path}")
    return f"{path.resolve()}:{name}"


def _load_module(place: str, target: str):
    if place.endswith(".py"):
        return _user_files.load(place)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # Only the module that was asked for: an import that fails inside it is another mistake.
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise ValueError(f"reward {target!r}: no module named {error.name!r}") from None
        raise


def resolve(target: str, parameters: Mapping[str, Any] | None = None) -> Reward:
    """The function that a target names; checks that it takes `parameters`.

    Args:
        target: "package.module:function" or "path/to/file.py:function".
        parameters: keyword arguments that the function will be given.

    Returns:
        The function.

    Raises:
        ValueError: no such file, module or name (with a suggestion), a thing that is no function,
            or parameters that it does not take. What the module itself raises passes through.
    """
    target = absolute(target)
    place, _, name = target.rpartition(":")
    module = _load_module(place, target)
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"reward {target!r}: {place} has no {name!r}{hint}")
    function = getattr(module, name)
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(f"reward {target!r} is of type {kind}, expected a function")
    try:
        inspect.signature(function).bind("", "", {}, **(parameters or {}))
    except TypeError as error:
        raise ValueError(
            f"reward {target!r} cannot be called as reward(prompt, completion, example"
            f"{''.join(f', {key}=...' for key in parameters or {})}): {error}"
        ) from None
    return function


def as_score(result: Any) -> Score:
    """What a reward returned, as a checked `Score`.

    Args:
        result: a `Score`, a real number, a boolean, or a zero-dimensional array.

    Returns:
        The score; invalid, with the reason, for NaN, an infinity, or another type.
    """
    value, valid, reason = result if isinstance(result, Score) else (result, True, "")
    if not valid:
        return Score(0.0, False, str(reason) or "marked invalid by the reward")
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, numbers.Real):
        kind = type(value).__name__
        return Score(0.0, False, f"returned {kind}, expected Score, float or bool")
    value = float(value)
    if not math.isfinite(value):
        return Score(0.0, False, f"returned {value}")
    return Score(value, True, str(reason))


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
        The score; its reason names the exception, if there was one.
    """
    try:
        return as_score(function(prompt, completion, example, **parameters))
    # A blind except: any failure of the user's code is recorded, with its name, as an invalid
    # sample, which is counted and in number stops the run.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return Score(0.0, False, f"{type(error).__name__}: {error}"[:500])


def combine(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """Weighted sum of a sample's components.

    `sum_i weight_i * value_i`; valid only where every component is: a missing part is not a zero.

    Args:
        scores: one for each component.
        weights: as many numbers.

    Returns:
        The sum (0 where invalid), with the components' reasons joined.
    """
    reasons = [score.reason for score in scores if score.reason]
    if not all(score.valid for score in scores):
        reasons = [score.reason for score in scores if not score.valid]
        return Score(0.0, False, "; ".join(reasons))
    value = sum(weight * score.value for score, weight in zip(scores, weights, strict=True))
    return Score(float(value), True, "; ".join(reasons))


def compose(specs: Sequence[RewardSpec]) -> Callable[[str, str, Mapping[str, Any]], Score]:
    """One function of (prompt, completion, example) from weighted rewards; it never raises.

    A reward with an attribute `warm_up` has it called once, here: imports that take seconds must
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
    for function in functions:
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
        absolute(spec.target)
