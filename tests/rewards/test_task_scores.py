import re

import pytest
import reasoning_gym

from polgrad import data
from polgrad.data import codec
from polgrad.data.reasoning_gym import known_answer
from polgrad.rewards import task_scores

WORDS = [
    "no answer",
    "I think that it is not so",
    "lorem ipsum dolor",
    "hello",
    "?",
    "...",
    "(((",
    "x",
]
SYMBOLS = [
    "[]",
    "{}",
    "()",
    "[[]]",
    "null",
    "[null]",
    '{"a": "b"}',
    '["a"]',
    "[" * 3000,
    "=",
    "-",
    "<b>",
]
NUMBERS = [
    "0",
    "-1",
    "3.14",
    "1e999",
    "nan",
    "nan+nani",
    "inf",
    "9" * 5000,
    "1/0",
    "1 2 3",
    "[1, 2]",
]
NUMBERS += ["[[1, 2], [3, 4]]", '{"0": 1}', "0:00", "1\n2\n3"]
JUNK = ["", "\x00", "\ud800", "é∞", *WORDS, *SYMBOLS, *NUMBERS]
# These scorers give a part of the reward for each letter in its place.
BY_LETTER = {"figlet_font", "spell_backward"}


def problems(task, count=2, seed=7):
    dataset = reasoning_gym.create_dataset(task, size=count, seed=seed)
    # As a worker gets them.
    return [codec.loads(codec.dumps(dataset[i])) for i in range(count)]


def equal(text, answer):
    """Whether a text is the answer in another spelling."""
    try:
        return float(text) == float(answer)
    except ValueError:
        return re.sub(r"\W", "", text).casefold() == re.sub(r"\W", "", answer).casefold()


@pytest.mark.parametrize("task", data.task_names())
def test_a_task_rewards_its_answer_and_not_nonsense(task):
    for entry in problems(task):
        answer = known_answer(task, entry)
        if task != "rush_hour":
            assert task_scores.score(task, {}, entry, answer) == (1.0, True, "")
        for text in JUNK:
            score = task_scores.score(task, {}, entry, text)
            assert score.valid and 0.0 <= score.value <= 1.0
            assert score.value == 0.0 or score.value > task_scores.CONSOLATION
            if score.value == 1.0:
                assert equal(text, answer), (text, answer)
            if text in WORDS + SYMBOLS and task not in BY_LETTER and not equal(text, answer):
                assert score.value == 0.0, (text, answer)


def test_what_the_package_s_scorers_do_without_these_rules():
    # Each rule is here for a task that breaks it; where the package mends one, it can go.
    def theirs(task, text, index=0):
        entry = problems(task, count=8)[index]
        return reasoning_gym.get_score_answer_fn(task)(text, entry)

    assert theirs("game_of_life_halting", "False") == theirs("game_of_life_halting", "no") == 1.0
    assert theirs("complex_arithmetic", "nan") == 1.0
    assert theirs("coin_flip", "0") == 1.0
    assert theirs("rubiks_cube", "hello") == 0.01
    with pytest.raises(ValueError):
        theirs("prime_factorization", "hello")


@pytest.mark.parametrize(
    ("task", "text", "answer", "value"),
    [
        ("game_of_life_halting", "True", "True", 1),
        ("game_of_life_halting", "false", "False", 1),
        ("game_of_life_halting", "False", "True", 0),
        ("coin_flip", "0.3125", "0.3125", 1),
        ("coin_flip", "5/16", "0.3125", 1),
        ("coin_flip", "0", "0.3125", 0),
        ("coin_flip", "0.31", "0.3125", 0),
        ("coin_flip", "1e999", "0.3125", 0),
        ("coin_flip", "1e999999999", "0.3125", 0),
        ("coin_flip", "1/0", "0.3125", 0),
        ("gcd", "12", "12", 1),
        ("gcd", "it is 12", "12", 0.25),
        ("gcd", "3.12", "12", 0),
        ("gcd", "-12", "12", 0),
        ("gcd", "124", "12", 0),
        ("syllogism", "None", "No", 0),
        ("syllogism", "No.", "No", 2 / 3),
    ],
)
def test_values(task, text, answer, value):
    entry = {**problems(task, count=1)[0], "answer": answer}
    assert task_scores.score(task, {}, entry, text).value == pytest.approx(value)


def test_a_move_of_a_thousand_million_steps_ends():
    entry = problems("rush_hour", count=1)[0]
    assert task_scores.score("rush_hour", {}, entry, "A+1000000000000").reason.startswith("not of")
