"""Checks of single values in files that somebody else wrote: what came, and what was expected."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from polgrad._ranges import Range

__all__ = ["flag", "mapping", "number", "shown", "text", "whole"]


def shown(value: Any) -> str:
    """A value as a JSON file writes it, on one line and cut to 60 characters.

    Args:
        value: anything.

    Returns:
        The text.
    """
    try:
        told = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        told = f"a {type(value).__name__}"
    return told if len(told) <= 60 else f"{told[:57]}..."


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number that int32 can hold, as positions and ids of tokens are.

    Args:
        name: of the entry, for the message.
        value: what the file holds.
        least: the smallest number allowed.

    Returns:
        The number, as Python's int.

    Raises:
        ValueError: another type (true and 2.0 are no whole numbers), or out of range.
    """
    return int(_inside(name, value, Range(at_least=least), whole=True))


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    positive: bool = False,
) -> float:
    """A finite number that float32 can hold.

    Args:
        name: of the entry, for the message.
        value: what the file holds.
        least: the smallest number allowed.
        most: the largest number allowed.
        positive: the number must be above 0.

    Returns:
        The number, as Python's float.

    Raises:
        ValueError: another type, not finite, out of range, or so small that float32 makes it 0.
    """
    bounds = Range(at_least=least, at_most=most, above=0 if positive else None)
    return float(_inside(name, value, bounds, whole=False))


def _inside(name: str, value: Any, bounds: Range, *, whole: bool) -> Any:
    if expected := bounds.problem(value, whole=whole):
        raise ValueError(f"{name} is {shown(value)}; expected {expected}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or false.

    Args:
        name: of the entry, for the message.
        value: what the file holds.

    Returns:
        The value.

    Raises:
        ValueError: another type.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {shown(value)}; expected true or false")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A string.

    Args:
        name: of the entry, for the message.
        value: what the file holds.

    Returns:
        The string.

    Raises:
        ValueError: another type, or text that UTF-8 cannot write (half of a surrogate pair).
    """
    if not isinstance(value, str) or not _is_unicode(value):
        raise ValueError(f"{name} is {shown(value)}; expected text")
    return value


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """An object.

    Args:
        name: of the entry, for the message.
        value: what the file holds.

    Returns:
        The object.

    Raises:
        ValueError: another type.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {shown(value)}; expected an object")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
