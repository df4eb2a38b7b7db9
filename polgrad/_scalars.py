"""Range checks of keyword numbers that let traced values pass.

A coefficient may be a schedule's value inside `jax.jit`, or one of several under `jax.vmap`; its
range is then the caller's business. A Python number out of range raises at once.
"""

import math

import jax

__all__ = ["in_range"]


def in_range(
    name: str, value, *, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> None:
    """Raises ValueError unless low <= value <= high (low < value with `above`).

    NaN is in no range.
    """
    if isinstance(value, jax.core.Tracer):
        return
    if (low < value if above else low <= value) and value <= high:
        return
    left = f"({low:g}" if above else f"[{low:g}"
    raise ValueError(f"{name} is {value}, expected a number in {left}, {high:g}]")
