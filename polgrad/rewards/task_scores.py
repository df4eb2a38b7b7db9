"""Scores of reasoning-gym's tasks: the package's own scorers, with checks around them.

`score` gives 0 to a completion that the scorer cannot read, and a value in [0, 1] to every other.
The package's scorers alone do not: some raise, some give a constant to any text, some read a part
of the completion and ignore the rest.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from polgrad.rewards.score import Score

# Many scorers give 0.01 or 0.05 to whatever is not empty. In a group of wrong samples that would
# be the best one.
CONSOLATION = 0.05

# What an answer must look like, where the task's own scorer reads more than its answers.
FORMS = {
    # Python's truth of a text: every text but the empty one is true.
    "game_of_life_halting": r"(?i:true|false)",
    # "nan" is at distance nan from every number, and min(1, nan) is 1.
    "complex_arithmetic": r"[-+\d.eEij()\s*]+",
    # Words that share no letter with the variables count as variables.
    "propositional_logic": r"[A-Z∧∨¬→↔()\s]*[A-Z][A-Z∧∨¬→↔()\s]*",
    "prime_factorization": r"\d+(\s*[×x*]\s*\d+)*",
    # One step at a time: a move by a thousand million is a loop of as many turns.
    "rush_hour": r"(\s*[A-Z][-+]\d)+",
    # An exact value of 1e999999999 would fill the memory.
    "coin_flip": r"\d{0,30}\.?\d{1,30}(/\d{1,30})?",
    # Only the first number of a date is read.
    "time_intervals": r"\d+(\s+days?)?|(\d+\s+days?,\s*)?\d+:\d\d(:\d\d(\.\d+)?)?",
}


def _same_word(answer: str, entry: Mapping[str, Any]) -> float:
    return float(answer.casefold() == entry["answer"].casefold())


def _same_probability(answer: str, entry: Mapping[str, Any]) -> float:
    # The package gives the share of leading digits that agree, and "0" begins every probability.
    return float(abs(Fraction(answer) - Fraction(entry["answer"])) <= 1e-4)


_OWN: dict[str, Callable[[str, Mapping[str, Any]], float]] = {
    "game_of_life_halting": _same_word,
    "coin_flip": _same_probability,
}


@functools.lru_cache(maxsize=16)
def _scorer(task: str, parameters: str) -> tuple[Callable, bool]:
    """The task's scorer, and whether the package's general one: the answer, or the text with it."""
    import reasoning_gym
    from reasoning_gym.factory import ProceduralDataset

    from polgrad.data import codec

    dataset = reasoning_gym.create_dataset(task, size=1, seed=0, **codec.loads(parameters))
    general = type(dataset).score_answer is ProceduralDataset.score_answer
    return _OWN.get(task, dataset.score_answer), general


def score(task: str, parameters: Mapping[str, Any], entry: Mapping[str, Any], answer: str) -> Score:
    """The value of an answer to a problem of reasoning-gym.

    Args:
        task: the task's name.
        parameters: the task's parameters.
        entry: the task's record of the problem.
        answer: the policy's text, without white space at its ends.

    Returns:
        The task's value, in [0, 1], always valid. 0 for an answer that is not of the task's form,
        on which its scorer fails, or to which the scorer gives at most `CONSOLATION`. Where the
        scorer gives a part of the reward to a text that contains the answer, the answer must be a word
        of its own:
        "142" does not hold 42.
    """
    from polgrad.data import codec

    if task in FORMS and not re.fullmatch(FORMS[task], answer):
        return Score(0.0, True, "not of the form of the task's answers")
    scorer, general = _scorer(task, codec.dumps(parameters))
    try:
        value = float(scorer(answer, entry))
    # Whatever a scorer raises on a text, the text is no answer.
    except Exception as error:  # noqa: BLE001
        return Score(0.0, True, f"unreadable for the task's scorer: {type(error).__name__}"[:200])
    if not math.isfinite(value) or value <= CONSOLATION:
        return Score(0.0)
    if general and value < 1.0 and not _stands_alone(entry["answer"], answer):
        return Score(0.0)
    return Score(min(value, 1.0))


def _stands_alone(answer: str, text: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(answer)}(?!\w|\.\d)", text) is not None
