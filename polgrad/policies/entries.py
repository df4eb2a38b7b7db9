"""Checks of single values in files that somebody else wrote: what came, and what was expected."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["flag", "mapping", "number", "shown", "text", "whole"]

# Positions and ids of tokens are int32.
LARGEST = 2**31 - 1
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


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


def whole(name: str, value: Any, *, least: int = 1, most: int = LARGEST) -> int:
    """A whole number.

    Args:
        name: of the entry, for the message.
        value: what the file holds.
        least: the smallest number allowed.
        most: the largest number allowed.

    Returns:
        The number, as Python's int.

    Raises:
        ValueError: another type (true and 2.0 are no whole numbers), or out of range.
    """
    fits = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not fits or not least <= value <= most:
        end = f"of at least {least}" if most == LARGEST else f"from {least} to {most}"
        if fits and value > most == LARGEST:
            end = f"from {least} to {most}"
        raise ValueError(f"{name} is {shown(value)}; expected a whole number {end}")
    return int(value)


def number(
    name: str, value: Any, *, least: float = -_HUGE, most: float = _HUGE, positive: bool = False
) -> float:
    """A finite number that float32 can hold.

    Args:
        name: of the entry, for the message.
        value: what the file holds.
        least: the smallest number allowed.
        most: the largest number allowed.
        positive: the number must be above 0, and not so small that float32 makes it 0.

    Returns:
        The number, as Python's float.

    Raises:
        ValueError: another type, not finite, or out of range.
    """
    fits = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    low = max(least, _TINY) if positive else least
    # Comparing, not converting: an integer of 400 digits has no float.
    if not fits or not low <= value <= most:
        end = " above 0" if positive and least <= 0 else ""
        if least > -_HUGE and not end:
            end = f" of at least {least:g}" if most == _HUGE else f" from {least:g} to {most:g}"
        raise ValueError(f"{name} is {shown(value)}; expected a finite number{end}")
    return float(value)


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
