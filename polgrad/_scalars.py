"""Range checks of keyword numbers that let traced values pass.

A coefficient may be a schedule's value inside `jax.jit`, or one of several under `jax.vmap`; its
range is then the caller's business. A Python number out of range raises at once.
"""

import math

import jax
import numpy as np

__all__ = ["in_range"]


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
