from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from polgrad.rewards import numerals


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,234.5 and 7", ["1234.5", "7"]),
        ("-3", ["-3"]),
        ("12.", ["12"]),
        (".5", ["0.5"]),
        ("1e3", ["1000"]),
        ("5-3", ["5", "3"]),
        ("5 - 3", ["5", "3"]),
        ("5 - -3", ["5", "-3"]),
        ("x - 3", ["3"]),
        ("it is - 3", ["-3"]),
        ("1,2345", ["1", "2345"]),
        ("none", []),
        ("", []),
        # Signs.
        ("- 7", ["-7"]),
        ("\u22127", ["-7"]),
        ("-$7", ["-7"]),
        ("- $7", ["-7"]),
        ("$-7", ["-7"]),
        ("-\\$7", ["-7"]),
        ("\u2212\u20ac1,200.50", ["-1200.5"]),
        ("(-3)", ["-3"]),
        ("=-3", ["-3"]),
        # Fractions.
        ("3/4", ["3/4"]),
        ("1 1/2 cups", ["3/2"]),
        ("-1 1/2", ["-3/2"]),
        (r"-\frac{3}{4}", ["-3/4"]),
        (r"\dfrac{-3}{4}", ["-3/4"]),
        (r"\frac12", ["1/2"]),
        # Parts of something else have no value.
        ("0:30", [None]),
        ("10^4", [None]),
        ("2^{10} is 1024", [None, "1024"]),
        ("x^2", [None]),
        ("a_{12}", [None]),
        ("1/2/2024", [None]),
        ("1/0", [None]),
        ("3.5.2", [None]),
        ("1e999999999999", [None]),
    ],
)
def test_numbers_of_a_text(text, values):
    wanted = [None if value is None else Fraction(value) for value in values]
    assert [numeral.value for numeral in numerals.find(text)] == wanted


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("72", 72),
        ("-5", -5),
        ("1,234,567", 1234567),
        ("12{,}345", 12345),
        ("$1,200", 1200),
        (r"-\$7", -7),
        ("$42$", 42),
        (r"\boxed{42}", 42),
        ("3/4", Fraction(3, 4)),
        ("18 apples", 18),
        ("5cm", 5),
        (r"5\text{ cm}", 5),
        (r"45^\circ", 45),
        (r"50\%", 50),
        ("x = 5", 5),
        ("Half of 10 is 5, and 5 + 4 = <<5+4=9>>9.\n#### 9", 9),
    ],
)
def test_an_answer_that_is_one_number(answer, value):
    assert numerals.only(answer) == value


@pytest.mark.parametrize(
    "answer", ["1331 and 1728", "1:30", "(7, 8)", "2x", "3i", "10^4", "5!", r"3\sqrt{2}", r"2\pi"]
)
def test_an_answer_that_is_not_one_number(answer):
    assert numerals.only(answer) == f"answer {answer!r} is not one number"


integers = st.integers() | st.integers(-(10**30), 10**30)
decimals = st.decimals(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)


def spellings(number):
    """An integer as people write it."""
    sign = "-" * (number < 0)
    yield from (f"{number}", f"{number:,}", f"{number}.0", f"{number}.", f"so it is {number}!")
    yield from (f"{sign}${abs(number)}", f"{sign} {abs(number)}", f"({number})", f"x = {number}")
    yield f"{number}".replace("-", "\u2212")


@given(integers)
def test_what_is_printed_is_read(number):
    for text in spellings(number):
        assert [n.value for n in numerals.find(text)] == [number], text


@given(decimals)
def test_decimals_that_are_printed_are_read(number):
    for text in (str(number), f"{number:f}", f"{float(number)!r}"):
        wanted = Fraction(float(text)) if text == repr(float(number)) else Fraction(number)
        (found,) = numerals.find(text)
        if text == repr(float(number)):
            assert float(found.value) == float(number)
        else:
            assert found.value == wanted


@given(integers, st.integers(1, 10**6))
def test_fractions_that_are_printed_are_read(top, bottom):
    assume(abs(top) < 10**12)
    wanted = [Fraction(top, bottom)]
    for text in (f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"it is {top}/{bottom}."):
        assert [n.value for n in numerals.find(text)] == wanted


def test_a_long_number_is_read_whole():
    digits = "123456789" * 2000
    (found,) = numerals.find(digits)
    assert found.value % 10**9 == 123456789 and found.text == digits
