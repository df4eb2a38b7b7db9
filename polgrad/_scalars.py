"""Range checks of keyword numbers that let traced values pass.

A coefficient may be a schedule's value inside `jax.jit`, or one of several under `jax.vmap`; its
range is then the caller's business. A Python number out of range raises at once.
"""

import math

import jax
import numpy as np

__all__ = ["clip_widths", "in_range", "limits"]


def in_range(
    name: str,
    value,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raises ValueError unless low <= value <= high (low < value with `above`, < high with `below`).

    NaN is in no range. Of an array, every entry must be in it. An end may be traced too.
    """
    if any(isinstance(x, jax.core.Tracer) for x in (value, low, high)):
        return
    over = low < value if above else low <= value
    if np.all(over & (value < high if below else value <= high)):
        return
    interval = f"{'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    raise ValueError(f"{name} is {value}, expected a number in {interval}")


def clip_widths(clip_low, clip_high) -> None:
    """Raises ValueError unless the two can be distances of a ratio from 1.

    A ratio is not negative, so it falls below 1 by 1 at most. Bounds of the ratio itself (0.8 and
    1.2) are valid distances as well and pass: they allow ratios from 0.2 to 2.2.
    """
    in_range("clip_low", clip_low, low=0.0, high=1.0)
    in_range("clip_high", clip_high, low=0.0)


def limits(name: str, pair) -> None:
    """Raises ValueError unless `pair` is (low, high) with 0 <= low <= high."""
    if any(isinstance(x, jax.core.Tracer) for x in pair):
        return
    low, high = pair
    if not np.all((low >= 0.0) & (low <= high)):
        raise ValueError(f"{name} is {pair}, expected (low, high) with 0 <= low <= high")
