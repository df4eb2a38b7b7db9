"""Rewards that check a completion against its example, without a model.

Each is `reward(prompt, completion, example, **parameters)`. A wrong or unreadable completion is a
valid sample with value 0; a sample is invalid only where the check itself cannot be made.
"""

import functools
import importlib
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from polgrad.rewards import mathematics, numerals, task_scores
from polgrad.rewards.score import Score

# Those that compare an example's answer as more than text, and find some that they cannot read.
READS_ANSWERS = ("math_verify", "numeric_match")


def _invalid(reason: str) -> Score:
    return Score(0.0, False, reason)


def exact_match(
    prompt: str, completion: str, example: Mapping[str, Any], *, ignore_case: bool = False
) -> float:
    """1 where the completion equals the example's answer, white space at the ends aside.

    Args:
        prompt: not used.
        completion: the policy's text.
        example: holds `answer`.
        ignore_case: compare case-folded texts.

    Returns:
        1.0 or 0.0.
    """
    del prompt
    given, wanted = completion.strip(), example["answer"].strip()
    if ignore_case:
        given, wanted = given.casefold(), wanted.casefold()
    return float(given == wanted)


def numeric_match(
    prompt: str, completion: str, example: Mapping[str, Any], *, tolerance: float = 0.0
) -> Score:
    """1 where the last number of the completion is the number that the example's answer is.

    For answers that are one number (GSM8K, AIME); `math_verify` also reads expressions, sets and
    intervals. Values are exact, whatever their size:

        |given - wanted| <= tolerance * max(1, |wanted|)

    Thousands' commas, fractions, signs before a blank or a currency sign and U+2212 for minus are
    read (see `numerals.find`). A number that is a part of something else (a time, a power) has no
    value. Units and percent signs do not count: "50%" is 50.

    Args:
        prompt: not used.
        completion: the policy's text; without a number it scores 0.
        example: holds `answer`: one number, with or without words; of a GSM8K solution the part
            after "####".
        tolerance: relative, absolute below 1; 0 or more.

    Returns:
        Value 1 or 0; invalid where the answer is not one number.

    Raises:
        ValueError: a tolerance below 0, or one that is no finite number.
    """
    del prompt
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance is {tolerance}, expected a finite number of at least 0")
    wanted = numerals.only(example["answer"])
    if isinstance(wanted, str):
        return _invalid(wanted)
    found = numerals.find(completion)
    if not found:
        return Score(0.0, True, "no number in the completion")
    given = found[-1].value
    if given is None:
        return Score(0.0, True, f"the completion ends with {found[-1].text!r:.40}, no number")
    # The decimal that was written: 0.3 and not the double below it.
    allowed = Fraction(str(tolerance)) * max(1, abs(wanted))
    return Score(float(abs(given - wanted) <= allowed))


def regex_match(prompt: str, completion: str, example: Mapping[str, Any], *, pattern: str) -> float:
    """1 where group 1 of the last match of `pattern` equals the example's answer.

    Args:
        prompt: not used.
        completion: the policy's text.
        example: holds `answer`.
        pattern: regular expression with one group, such as `r"answer is (\\S+)"`; `.` matches
            line ends too.

    Returns:
        1.0 or 0.0; 0.0 without a match.

    Raises:
        ValueError: the pattern has not one group.
    """
    del prompt
    compiled = re.compile(pattern, re.DOTALL)
    if compiled.groups != 1:
        raise ValueError(f"pattern {pattern!r} has {compiled.groups} groups, expected 1")
    found = compiled.findall(completion)
    return float(bool(found) and found[-1].strip() == example["answer"].strip())


def format_match(
    prompt: str, completion: str, example: Mapping[str, Any], *, pattern: str
) -> float:
    """1 where the whole completion has the form of `pattern`.

    Args:
        prompt: not used.
        completion: the policy's text; white space at its ends does not count.
        example: not used.
        pattern: regular expression; `.` matches line ends too.

    Returns:
        1.0 or 0.0.
    """
    del prompt, example
    return float(re.fullmatch(pattern, completion.strip(), re.DOTALL) is not None)


def length_penalty(
    prompt: str, completion: str, example: Mapping[str, Any], *, free: int, limit: int
) -> float:
    """0 up to `free` characters, then linear down to -1 at `limit` characters and beyond.

    `-clip((len(completion) - free) / (limit - free), 0, 1)`.

    Args:
        prompt: not used.
        completion: the policy's text.
        example: not used.
        free: characters without a penalty, 0 or more.
        limit: characters from which the penalty is whole, above `free`.

    Returns:
        A number in [-1, 0].

    Raises:
        ValueError: `limit` is not above `free`.
    """
    del prompt, example
    if not 0 <= free < limit:
        raise ValueError(f"expected 0 <= free < limit, got free={free} and limit={limit}")
    return -min(max((len(completion) - free) / (limit - free), 0.0), 1.0)


def reasoning_gym_score(
    prompt: str, completion: str, example: Mapping[str, Any], *, tag: str | None = None
) -> Score:
    """The task's own scorer, on the task's own record; the default for reasoning-gym's tasks.

    Args:
        prompt: not used: the record holds the task's question, whatever the prompt's form.
        completion: the policy's text; white space at its ends does not count.
        example: of a `data.load_task` source: `metadata` holds `task`, `parameters`, `entry`.
        tag: score only what stands in the last `<tag>...</tag>` of the completion; a completion
            without it scores 0. None scores the whole.

    Returns:
        The task's value, in [0, 1]; many tasks give part of it to a near miss. What the scorer
        cannot read is worth 0, see `task_scores.score`. Invalid where the example has no task
        record.
    """
    del prompt
    metadata = example.get("metadata", {})
    missing = [name for name in ("task", "parameters", "entry") if name not in metadata]
    if missing:
        return _invalid(f"example's metadata lacks {missing}: not of a reasoning-gym task")
    answer = completion.strip()
    if tag is not None:
        found = re.findall(f"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", answer, re.DOTALL)
        if not found:
            return Score(0.0, True, f"no <{tag}> in the completion")
        answer = found[-1].strip()
    return task_scores.score(metadata["task"], metadata["parameters"], metadata["entry"], answer)


reasoning_gym_score.warm_up = functools.partial(importlib.import_module, "reasoning_gym")


def math_verify(prompt: str, completion: str, example: Mapping[str, Any]) -> Score:
    """1 where the completion's answer equals the example's as mathematics (math-verify).

    For the answers of MATH, GSM8K, AIME and multiple choice: numbers, expressions, sets, intervals,
    matrices, equations, times, letters of choices and words. The completion's answer is what its
    last `\\boxed` holds; without a box, what follows the last "answer is" or "####"; else its last
    mathematical expression (see `mathematics.is_answer`). Numbers are compared exactly; where
    just one of the two is a decimal, it may be the other rounded to six digits or more.

    The library's own alarm is off: it would turn a slow comparison into "not equal". A
    `RewardPool` cuts such a sample at its deadline and marks it invalid.

    Args:
        prompt: not used.
        completion: the policy's text; without an answer it scores 0.
        example: holds `answer`: an expression, with or without `$...$` or `\\boxed`.

    Returns:
        Value 1 or 0; invalid where the example's answer cannot be read.
    """
    del prompt
    try:
        gold = mathematics.read_gold(example["answer"])
    except mathematics.Unreadable as error:
        return _invalid(str(error))
    verdict = mathematics.is_answer(completion, gold)
    if verdict is None:
        return Score(0.0, True, "no answer in the completion")
    return Score(float(verdict))


math_verify.warm_up = functools.partial(math_verify, "", "$\\frac{1}{2}$", {"answer": "0.5"})

# What `polgrad list rewards` lists.
NAMES = (
    "exact_match",
    "numeric_match",
    "regex_match",
    "math_verify",
    "reasoning_gym_score",
    "format_match",
    "length_penalty",
)


def listing() -> list[str]:
    """A line for each reward of this module: its target, and what it rewards.

    Returns:
        The lines.
    """
    return [f"{__name__}:{name:<20} {globals()[name].__doc__.splitlines()[0]}" for name in NAMES]
