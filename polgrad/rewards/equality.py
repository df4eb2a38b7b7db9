"""Are two mathematical answers equal? Exactly, but where one of them is rounded."""

import logging
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

# How far a rounded decimal may lie from the exact value that it stands for: "0.333333" is 1/3.
_ROUNDED = 1.001e-6


class Answer(NamedTuple):
    """A text read as an answer.

    Args:
        kind: "choice", "ratio", "base", "text", "number" or "expression".
        value: a letter; integers; digits and a base; words; a Fraction; math-verify's expression.
        text: what was read.
    """

    kind: str
    value: Any
    text: str


def quietly(function: Callable, *arguments: Any, **settings: Any) -> Any:
    """The result of a function of math-verify or sympy.

    Args:
        function: the function.
        *arguments: passed on.
        **settings: passed on.

    Returns:
        The result, or None where the library raises, as it does on text that is no mathematics.
    """
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    try:
        return function(*arguments, **settings)
    # sympy, antlr and the library raise whatever they meet; such a text has no value.
    except Exception:  # noqa: BLE001
        return None


def same(gold: Answer, given: Answer) -> bool:
    """Whether two answers are equal.

    Args:
        gold: the wanted answer.
        given: the completion's.

    Returns:
        True where both have one value: numbers exactly, or to six digits where just one of them
        is a decimal; sets in any order; expressions for all values of their variables.
    """
    if "ratio" in (gold.kind, given.kind):
        if gold.kind != given.kind:
            return False
        (numbers, half), (others, other_half) = gold.value, given.value
        return numbers == others and (not half or not other_half or half == other_half)
    if gold.kind == "base":
        digits, base = gold.value
        if given.kind == "base":
            return given.value == gold.value
        return given.text.replace(" ", "").lower() == digits  # the base may go unsaid
    if given.kind == "base":
        return False
    if gold.kind == given.kind == "number":
        return _same_number(gold, given)
    if gold.kind == given.kind and gold.kind in ("text", "choice"):
        return gold.value == given.value
    if {gold.kind, given.kind} <= {"number", "expression"}:
        return _same_expression(*(_expression(answer) for answer in (gold, given)))
    return False


def _expression(answer: Answer) -> Any:
    """A number or an expression for sympy; a decimal stays one, which may be rounded."""
    import sympy

    if answer.kind == "expression":
        return answer.value
    exact = sympy.Rational(answer.value.numerator, answer.value.denominator)
    return exact.evalf(40) if _is_decimal(answer) else exact


def _is_decimal(answer: Answer) -> bool:
    return re.search(r"\.\d|[eE]", answer.text) is not None


def _same_number(gold: Answer, given: Answer) -> bool:
    if gold.value == given.value:
        return True
    if _is_decimal(gold) == _is_decimal(given):
        return False
    return abs(gold.value - given.value) <= Fraction(_ROUNDED) * abs(gold.value)


def _same_expression(gold: Any, given: Any) -> bool:
    """Equality of two of math-verify's expressions; whatever fails is a difference."""
    import math_verify as library
    import sympy

    gold, given = _sides(gold, given)
    if all(isinstance(e, (sympy.FiniteSet, sympy.Tuple)) for e in (gold, given)):
        return _same_parts(gold, given)
    if isinstance(gold, sympy.MatrixBase) and isinstance(given, sympy.MatrixBase):
        pairs = zip(gold.flat(), given.flat())
        return gold.shape == given.shape and all(_same_expression(a, b) for a, b in pairs)
    if isinstance(gold, sympy.Interval) and isinstance(given, sympy.Interval):
        ends = (gold.left_open, gold.right_open) == (given.left_open, given.right_open)
        pairs = ((gold.start, given.start), (gold.end, given.end))
        return ends and all(_same_expression(a, b) for a, b in pairs)
    if isinstance(gold, sympy.Expr) and isinstance(given, sympy.Expr):
        verdict = quietly(_same_values, gold, given)
        if verdict is not None:
            return verdict
    # "-1 < x < 3" answers (-1, 3).
    either = {"allow_set_relation_comp": True, "timeout_seconds": None, "raise_on_error": True}
    verified = quietly(library.verify, gold, given, **either)
    return bool(verified)


def _sides(gold: Any, given: Any) -> tuple[Any, Any]:
    """Both without "x =" where one has no such side."""
    import sympy

    equations = [isinstance(e, sympy.Eq) for e in (gold, given)]
    if equations[0] != equations[1]:
        named = [
            has and isinstance(e.lhs, sympy.Symbol) for e, has in zip((gold, given), equations)
        ]
        gold, given = (e.rhs if has else e for e, has in zip((gold, given), named))
    return gold, given


def _same_parts(gold: Any, given: Any) -> bool:
    """Tuples part by part; sets by finding for each part its own partner."""
    import sympy

    ones, twos = list(gold.args), list(given.args)
    if len(ones) != len(twos):
        return False
    if isinstance(gold, sympy.Tuple) and isinstance(given, sympy.Tuple):
        return all(_same_expression(a, b) for a, b in zip(ones, twos))
    if isinstance(gold, sympy.Tuple) != isinstance(given, sympy.Tuple):
        twos = list(getattr(given, "_unsorted_args", twos))
        ones = list(getattr(gold, "_unsorted_args", ones))
        return all(_same_expression(a, b) for a, b in zip(ones, twos))
    for part in ones:
        partner = next((i for i, other in enumerate(twos) if _same_expression(part, other)), None)
        if partner is None:
            return False
        twos.pop(partner)
    return True


def _same_values(gold: Any, given: Any) -> bool | None:
    """Equality of numbers, and of terms by their values at some points; None where unknown."""
    import sympy

    symbols = gold.free_symbols | given.free_symbols
    if any(isinstance(e, sympy.core.function.AppliedUndef) for e in (gold, given)):
        return None
    if sympy.oo in (gold, given) or -sympy.oo in (gold, given):
        return gold == given
    percents = [_without_percent(e) for e in (gold, given)]
    if not symbols:
        if any(has for _, has in percents):  # "9%" answers 9% and 0.09 and 9
            (one, _), (two, _) = percents
            return _same_at(one, two) or _same_at(gold.doit(), given.doit())
        return _same_at(gold, given)
    if gold.free_symbols != given.free_symbols and len(symbols) == 1:
        return None
    points = ((3, 7), (-11, 13), (17, 5))
    names = sorted(symbols, key=str)
    for above, below in points:
        place = {
            symbol: sympy.Rational(above * (i + 2) + i, below * (i + 1))
            for i, symbol in enumerate(names)
        }
        verdict = _same_at(gold.subs(place), given.subs(place))
        if not verdict:
            return verdict
    return True


def _without_percent(expression: Any) -> tuple[Any, bool]:
    import sympy

    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    if isinstance(expression, sympy.Mul) and hundredth in expression.args:
        return sympy.Mul(*(a for a in expression.args if a != hundredth)), True
    return expression, False


def _same_at(one: Any, two: Any) -> bool | None:
    """Equality of two numbers, relative to their size; None where one has no value."""
    import sympy

    decimals = [e.has(sympy.Float) for e in (one, two)]
    digits = 40
    low = [e.evalf(digits) for e in (one, two)]
    if not all(
        e.is_number and e.is_finite is not False and e.is_comparable or e.is_complex for e in low
    ):
        return None
    if not any(decimals):
        size = max((int(sympy.log(abs(e), 10).evalf(5)) if e != 0 else 0) for e in low)
        if size > digits:
            digits = min(size + 20, 5000)
            low = [e.evalf(digits) for e in (one, two)]
    largest = max(abs(e) for e in low)
    if largest == 0:
        return True
    far = abs(low[0] - low[1]) / largest
    if decimals[0] != decimals[1]:
        return bool(far <= _ROUNDED)
    if any(decimals):
        return bool(far <= 1e-12)
    if far <= sympy.Float(10) ** (8 - digits):
        return True
    if 0 in low or largest < 1e-20:  # sums that cancel leave digits of no meaning
        return bool(sympy.simplify(one - two) == 0)
    return False
