import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given

from polgrad.rewards import mathematics
from polgrad.rewards.equality import Answer, quietly, same

numbers = st.fractions(-(10**30), 10**30, max_denominator=10**12)


def number(value, text=None):
    return Answer("number", Fraction(value), str(value) if text is None else text)


@given(numbers, numbers)
def test_exact_numbers_are_equal_only_to_themselves(one, two):
    assert same(number(one), number(one))
    assert same(number(one), number(two)) == (one == two)
    assert not same(number(one), number(one + Fraction(1, 10**30)))


@pytest.mark.parametrize("exponent", [-300, -20, 0, 20, 300])
def test_expressions_are_compared_relative_to_their_size(exponent):
    gold, equal, other = (
        mathematics.read_gold(f"{a}\\sqrt{{2}} \\cdot 10^{{{exponent}}}")
        for a in (3, "\\frac{6}{2}", 4)
    )
    assert gold.kind == "expression"
    assert same(gold, equal) and not same(gold, other)


def test_large_integers_that_differ_in_the_last_digit():
    one, two = (mathematics.read_gold(f"10^{{60}} + {last}") for last in (1, 2))
    written = mathematics.read_gold(f"{10**60 + 1}")
    assert same(one, written) and not same(two, written) and not same(one, two)


@given(st.permutations(["1", r"\sqrt{2}", "x", r"\frac{1}{3}"]))
def test_sets_are_equal_in_any_order_and_tuples_are_not(parts):
    ordered = ["1", r"\sqrt{2}", "x", r"\frac{1}{3}"]
    braces = [mathematics.read_gold(rf"\{{{', '.join(p)}\}}") for p in (ordered, parts)]
    assert same(*braces)
    tuples = [mathematics.read_gold(f"({', '.join(p)})") for p in (ordered, parts)]
    assert same(*tuples) == (parts == ordered)


def test_terms_are_equal_where_they_are_for_all_values():
    def equal(one, two):
        return same(mathematics.read_gold(one), mathematics.read_gold(two))

    assert equal(r"\sin^2 x + \cos^2 x", r"\sin^2 x + 1 - \sin^2 x")
    assert equal("(a+b)^2", "a^2 + 2ab + b^2")
    assert not equal("(a+b)^2", "a^2 + b^2")
    assert not equal(r"\sqrt{x^2}", "x")  # x may be negative
    assert not equal("x + 10^{-20}", "x + 10^{-21}")


def test_what_a_library_raises_is_no_result():
    assert quietly(math.sqrt, -1.0) is None and quietly(math.sqrt, 4.0) == 2.0
