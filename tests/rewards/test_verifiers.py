from fractions import Fraction

import hypothesis.strategies as st
import pytest
import reasoning_gym
from hypothesis import given

from polgrad.rewards import verifiers
from polgrad.rewards.compose import as_score


def verdict(function, completion, answer="", **parameters):
    score = as_score(function("", completion, {"answer": answer}, **parameters))
    return score.value if score.valid else score.reason


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [("42", "42", 1), (" 42\n", "42 ", 1), ("42.", "42", 0), ("", "42", 0), ("Yes", "yes", 0)],
)
def test_exact_match(completion, answer, value):
    assert verdict(verifiers.exact_match, completion, answer) == value


def test_exact_match_without_case():
    assert verdict(verifiers.exact_match, "STRASSE", "straße", ignore_case=True) == 1


@pytest.mark.parametrize(
    ("completion", "answer", "tolerance", "value"),
    [
        ("first 7, so 1,200", "1200", 0, 1),
        ("it is -4.", "-4", 0, 1),
        ("4", "-4", 0, 0),
        ("no idea", "4", 0, 0),
        ("101", "100", 0.01, 1),
        ("102", "100", 0.01, 0),
        ("0.005", "0", 0.01, 1),
        ("1e999", "4", 0.5, 0),
        ("1", "none", 0, "answer 'none' holds no number"),
        # Signs before a currency sign, before a blank, and in Unicode.
        ("-$7", "-7", 0, 1),
        ("- 7", "-7", 0, 1),
        ("\u22127", "-7", 0, 1),
        ("7", "\u22127", 0, 0),
        # A part of what is written does not count.
        ("1/4", "3/4", 0, 0),
        ("0.75", "3/4", 0, 1),
        ("1/4", "4", 0, 0),
        ("0:04", "4", 0, 0),
        ("2^4", "4", 0, 0),
        ("2024-05-06", "6", 0, 0),
        ("2024-05-06", "-6", 0, 0),
        ("on 2024-05-06 at 5", "5", 0, 1),
        ("06/05/2024", "2024", 0, 0),
        ("06.05.2024", "2024", 0, 0),
        ("06-05-2024", "2024", 0, 0),
        ("6", "2024-05-06", 0, "answer '2024-05-06' is not one number"),
        ("5-3", "3", 0, 1),
        ("0:30", "1:30", 0, "answer '1:30' is not one number"),
        ("1728", "1331 and 1728", 0, "answer '1331 and 1728' is not one number"),
        # Exactly, beyond the precision of floats.
        ("9007199254740993", "9007199254740992", 0, 0),
        ("1" * 400, "1" * 400, 0, 1),
        ("0.30000000000000004", "0.3", 0, 0),
        ("1.0", "1", 0, 1),
    ],
)
def test_numeric_match(completion, answer, tolerance, value):
    assert verdict(verifiers.numeric_match, completion, answer, tolerance=tolerance) == value


@given(st.integers(), st.integers())
def test_unequal_integers_do_not_match_and_equal_texts_do(one, two):
    assert verdict(verifiers.numeric_match, str(one), str(one)) == 1
    assert verdict(verifiers.numeric_match, str(one), str(two)) == (one == two)
    assert verdict(verifiers.numeric_match, str(one + 1), str(one)) == 0


@given(
    st.fractions(-(10**12), 10**12, max_denominator=10**6),
    st.sampled_from(["0", "1e-9", "0.001", "0.1", "0.3", "0.7", "1"]),
    st.sampled_from([-1, 1]),
)
def test_the_tolerance_holds_at_both_ends_of_the_range(wanted, tolerance, side):
    edge = wanted + side * Fraction(tolerance) * max(1, abs(wanted))
    beyond = edge + side * Fraction(1, 10**9)

    def given(value):
        return verdict(verifiers.numeric_match, str(value), str(wanted), tolerance=float(tolerance))

    assert given(edge) == 1 and given(beyond) == 0


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_is_a_number_of_at_least_0(tolerance):
    with pytest.raises(ValueError, match=f"tolerance is {tolerance}, expected a finite number"):
        verdict(verifiers.numeric_match, "1", "1", tolerance=tolerance)


def test_regex_match_takes_the_last():
    pattern = r"is (\S+)"
    assert verdict(verifiers.regex_match, "it is 3, no, it is 4", "4", pattern=pattern) == 1
    assert verdict(verifiers.regex_match, "it is 4, no, it is 3", "4", pattern=pattern) == 0
    assert verdict(verifiers.regex_match, "4", "4", pattern=pattern) == 0
    with pytest.raises(ValueError, match="0 groups, expected 1"):
        verdict(verifiers.regex_match, "4", "4", pattern="4")


def test_format_match_is_of_the_whole():
    pattern = "<think>.*</think>.+"
    assert verdict(verifiers.format_match, " <think>a\nb</think>4 ", pattern=pattern) == 1
    assert verdict(verifiers.format_match, "x<think>a</think>4", pattern=pattern) == 0


@pytest.mark.parametrize(("length", "value"), [(0, 0), (10, 0), (15, -0.5), (20, -1), (99, -1)])
def test_length_penalty(length, value):
    assert verdict(verifiers.length_penalty, "x" * length, free=10, limit=20) == value


def test_length_penalty_bounds():
    with pytest.raises(ValueError, match="0 <= free < limit"):
        verdict(verifiers.length_penalty, "", free=5, limit=5)


def entry_of(task, **parameters):
    entry = reasoning_gym.create_dataset(task, size=1, seed=0, **parameters)[0]
    metadata = {"task": task, "parameters": parameters, "entry": entry}
    return {"answer": entry["answer"], "metadata": metadata}


def test_the_tasks_own_scorer():
    example = entry_of("chain_sum", min_terms=2, max_terms=2)
    answer = example["answer"]

    def score(completion, **parameters):
        return verifiers.reasoning_gym_score("any form", completion, example, **parameters)

    assert score(f" {answer}\n") == (1.0, True, "")
    assert score("").value == 0
    assert score(answer + "x" * len(answer)).value == pytest.approx(
        0.5
    )  # its credit for a near miss
    assert score(f"<answer>0</answer> hm <answer> {answer} </answer>.", tag="answer").value == 1
    assert score(answer, tag="answer") == (0.0, True, "no <answer> in the completion")


def test_an_example_of_no_task_is_invalid():
    score = verifiers.reasoning_gym_score("", "1", {"answer": "1", "metadata": {}})
    assert not score.valid and "['task', 'parameters', 'entry']" in score.reason


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("so it is 0.5", r"\frac{1}{2}", 1),
        (r"\boxed{0.5}", "1/2", 1),
        ("$1+x^2$", "x^2+1", 1),
        ("$x^2$", "$x^2+1$", 0),
        ("nothing", "3", 0),
        (r"$\frac{$", "12", 0),
    ],
)
def test_math_verify(completion, answer, value):
    assert verdict(verifiers.math_verify, completion, answer) == value


def test_math_verify_with_an_answer_that_is_no_mathematics():
    assert "cannot be read as mathematics" in verdict(verifiers.math_verify, "3", "")
