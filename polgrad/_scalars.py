"""Range checks of keyword numbers that let traced values pass.

A coefficient may be a schedule's value inside `jax.jit`, or one of several under `jax.vmap`; its
range is then the caller's business. A Python number out of range raises at once.
"""

import math

import jax
import numpy as np

from polgrad._ranges import Range, number

__all__ = ["clip_widths", "in_range", "limits", "whole_number"]


def in_range(
    name: str,
    value,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    below: bool = False,
    low_name: str | None = None,
    high_name: str | None = None,
) -> None:
    """Raises ValueError unless low <= value <= high.

    With `above` low < value is required, with `below` value < high. NaN is in no range. Of an
    array, every entry must be in the range. An end may be an array or traced too.

    An end that is an argument itself is given its name, `low_name` or `high_name`, so that the
    message names both arguments. Check that argument first.
    """
    if any(isinstance(x, jax.core.Tracer) for x in (value, low, high)):
        return
    try:
        over, under = _over(value, low, above), _over(high, value, below)
    except TypeError:
        raise ValueError(f"{name} is {value!r}, expected a number") from None
    if over and under:
        return
    if high_name and not under:
        expected = f"{'below' if below else 'at most'} {high_name} = {number(high)}"
    elif low_name and not over:
        expected = f"{'above' if above else 'at least'} {low_name} = {number(low)}"
    else:
        bounds = {"above" if above else "at_least": low, "below" if below else "at_most": high}
        ends = {end: x for end, x in bounds.items() if not _endless(x)}
        expected = Range(**ends).expected()
    raise _error(f"{name} is {value}, expected {expected}")


def whole_number(name: str, value, *, low: int) -> None:
    """Raises ValueError unless `value` is a whole number of Python or numpy, at least `low`."""
    known = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not known or value < low:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {low}")


def clip_widths(clip_low, clip_high) -> None:
    """Raises ValueError unless the two are distances of a ratio from 1.

    A ratio is not negative, so it falls below 1 by 1 at most. Refused too is what is almost
    certainly a pair of bounds of the ratio itself, such as 0.8 and 1.2, which as distances would
    allow ratios from 0.2 to 2.2: 0.5 <= clip_low < 1 < clip_high, with a finite clip_high.
    """
    in_range("clip_low", clip_low, low=0.0, high=1.0)
    in_range("clip_high", clip_high, low=0.0)
    if any(isinstance(x, jax.core.Tracer) for x in (clip_low, clip_high)):
        return
    low_bound = (clip_low >= 0.5) & (clip_low < 1.0)
    if np.any(low_bound & (clip_high > 1.0) & (clip_high < math.inf)):
        raise _error(
            f"clip_low is {clip_low} and clip_high is {clip_high}, expected "
            f"distances of the ratio from 1 ({number(1.0 - clip_low)} and {number(clip_high - 1.0)} "
            f"allow ratios from {number(clip_low)} to {number(clip_high)})"
        )


def limits(name: str, pair) -> None:
    """Raises ValueError unless `pair` is (low, high) with 0 <= low <= high."""
    if any(isinstance(x, jax.core.Tracer) for x in pair):
        return
    low, high = pair
    if not np.all((low >= 0.0) & (low <= high)):
        raise ValueError(f"{name} is {pair}, expected (low, high) with 0 <= low <= high")


def _over(larger, smaller, strictly: bool) -> bool:
    return bool(np.all(smaller < larger if strictly else smaller <= larger))


def _endless(end) -> bool:
    return isinstance(end, float) and math.isinf(end)


def _error(text: str) -> ValueError:
    """The error on one line: an array may print over several."""
    return ValueError(" ".join(text.split()))
