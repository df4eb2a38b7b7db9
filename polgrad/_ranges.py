"""Ranges of settings: declared at the field, checked by one function, shown by `--help`.

    @documented
    @dataclasses.dataclass(frozen=True)
    class Rollouts:
        group_size: Annotated[int, Range(at_least=1)] = 8

`check` refuses values of another type, numbers outside their range, NaN and infinity. It serves
the command line and settings objects that are built in Python.
"""

import dataclasses
import functools
import math
import numbers
import re
import struct
import types
import typing
from typing import Any

__all__ = [
    "COUNT",
    "FILLED",
    "SEED",
    "Filled",
    "Range",
    "called",
    "check",
    "documented",
    "hints",
    "kinds",
    "marks",
    "number",
]

LARGEST_COUNT = 2**31 - 1
"""JAX counts in 32 bits: a larger count would become negative."""
_SMALLEST = 2.0**-126


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may be; without bounds every finite number.

    Attributes:
      at_least: the smallest number, itself allowed.
      above: the smallest number, itself not allowed.
      at_most: the largest number, itself allowed.
      below: the largest number, itself not allowed.
      reason: why other numbers are refused, for the message.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if low is not None and high is not None:
            opening, closing = (
                "[" if self.above is None else "(",
                "]" if self.below is None else ")",
            )
            return f"in {opening}{number(low)}, {number(high)}{closing}"
        if low is not None:
            return f"{'at least' if self.above is None else 'above'} {number(low)}"
        if high is not None:
            return f"{'at most' if self.below is None else 'below'} {number(high)}"
        return "finite"

    def expected(self, noun: str = "a number") -> str:
        """The range as a message has it.

        Args:
          noun: what is in the range.

        Returns:
          Such as "a number of at least 0" or "a number in [0, 1]".
        """
        text = str(self)
        if text == "finite":
            text = f"a finite {noun.removeprefix('a ')}"
        else:
            text = f"{noun} {'of ' if text.startswith('at ') else ''}{text}"
        return f"{text}{f' ({self.reason})' if self.reason else ''}"

    def problem(self, value: Any, *, whole: bool) -> str | None:
        """What was expected where a value is no number in the range.

        Args:
          value: the value.
          whole: whether the number must be a whole one.

        Returns:
          The text after "expected", or None for a number in the range.
        """
        noun = "a whole number" if whole else "a number"
        if not _is_of(value, int if whole else float):
            return self.expected(noun)
        kept = value if whole else _rounded(value)
        if not whole and not math.isfinite(kept):
            if not _inside_bounds(self, value):
                return self.expected()
            if value in (math.inf, -math.inf):
                return "a finite number"
            return "a number that float32 can hold (up to 3.4e38)"
        # A bound that is not allowed itself may be what float32 makes of a number beside it.
        reached = (self.above is not None and kept <= self.above) or (
            self.below is not None and kept >= self.below
        )
        if reached or not _inside_bounds(self, value):
            return self.expected(noun)
        if whole and value > LARGEST_COUNT and self.at_most is None and self.below is None:
            return f"{noun} of at most {LARGEST_COUNT}, because JAX counts in 32 bits"
        if not whole and 0 < abs(value) < _SMALLEST:
            zero = "0, or " if _inside_bounds(self, 0) else ""
            least = f"{zero}a number of size {_SMALLEST:.2g} and more"
            return f"{least}, because smaller ones are 0 in float32"
        return None


@dataclasses.dataclass(frozen=True)
class Filled:
    """Marks a text that may not be empty."""


COUNT = Range(at_least=1)
SEED = Range(at_least=0, below=2**32, reason="JAX's keys keep 32 bits of a seed")
FILLED = Filled()


def check(settings: Any, name: str = "") -> None:
    """Checks every field of a settings object, and of the settings objects in it.

    Numbers of numpy become Python's, and lists become tuples, where a field takes them: settings
    are written as JSON and compared.

    Args:
      settings: a dataclass instance whose fields are annotated with `Range` and `Filled`.
      name: what the object is called in messages; empty for the outermost one.

    Raises:
      ValueError: one line that names the field, its value and what was expected.
    """
    declared = hints(type(settings)) if getattr(settings, "_has_ranges", False) else None
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        place = f"{name}.{field.name}" if name else field.name
        if declared is None or declared[field.name] is Any:
            _check_foreign(place, value, field)
        else:
            _check_value(place, value, declared[field.name])
            plain = _plain(value)
            if plain is not value:
                object.__setattr__(settings, field.name, plain)  # the settings may be frozen


def _plain(value: Any) -> Any:
    """A value with Python's own numbers and with tuples; the value itself where it has these."""
    if isinstance(value, list) or (
        isinstance(value, tuple) and any(_plain(part) is not part for part in value)
    ):
        return tuple(_plain(part) for part in value)
    if isinstance(value, numbers.Integral) and not isinstance(value, int):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):
        return float(value)
    return value


def _check_foreign(name: str, value: Any, declared: dataclasses.Field) -> None:
    """Settings that declare no ranges here, as those of algorithms: numbers must be finite.

    A number whose default is infinite may be infinite, and so may a bound in a tuple.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _check_foreign(f"{name}.{field.name}", getattr(value, field.name), field)
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, float) and math.isnan(part):
            raise ValueError(f"{name} is {value!r}; expected a number")
    default = declared.default
    endless = isinstance(default, float) and math.isinf(default)
    if isinstance(value, float) and math.isinf(value) and not endless:
        raise ValueError(f"{name} is {value!r}; expected a finite number")


def _check_value(name: str, value: Any, annotation: Any) -> None:
    kind, marked = marks(annotation)
    options = kinds(kind)
    if value is None and types.NoneType in options:
        return
    fitting = [option for option in options if _is_of(value, option)]
    if not fitting:
        raise ValueError(f"{name} is {_shown(value)}; expected {called(kind)}")
    if dataclasses.is_dataclass(value):
        check(value, name)
    for mark in marked:
        if isinstance(mark, Range) and isinstance(value, numbers.Real):
            expected = mark.problem(value, whole=_is_of(value, int) and float not in options)
            if expected:
                raise ValueError(f"{name} is {_shown(value)}; expected {expected}")
        if isinstance(mark, Filled) and isinstance(value, str) and not value.strip():
            raise ValueError(f"{name} is {value!r}; expected a text that is not empty")


def _is_of(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return isinstance(value, tuple | list) and all(_is_of(part, arguments[0]) for part in value)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def called(annotation: Any) -> str:
    """A type in words, for messages.

    Args:
      annotation: a type without marks, or a union.

    Returns:
      Such as "a whole number or None".
    """
    return " or ".join(map(_called, kinds(annotation)))


def _called(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return "a tuple of texts" if typing.get_args(kind)[:1] == (str,) else "a tuple"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    return names.get(
        kind, "None" if kind is types.NoneType else getattr(kind, "__name__", str(kind))
    )


def _shown(value: Any) -> str:
    # Python refuses to print integers of more than 4300 digits.
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a whole number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _inside_bounds(bounds: Range, value: float) -> bool:
    return not (
        value != value
        or (bounds.at_least is not None and value < bounds.at_least)
        or (bounds.above is not None and value <= bounds.above)
        or (bounds.at_most is not None and value > bounds.at_most)
        or (bounds.below is not None and value >= bounds.below)
    )


def _rounded(value: float) -> float:
    """A number as float32 has it, which is what the programs compute with."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except (OverflowError, struct.error):  # the latter for integers of hundreds of digits
        return math.inf if value > 0 else -math.inf


def number(value: Any) -> str:
    """A number without needless digits; anything else, such as an array, as it prints."""
    if isinstance(value, int) and value > 10**6 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    if isinstance(value, numbers.Real) and not isinstance(value, int):
        return f"{value:g}"
    return str(value)


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation without marks allows: those of a union, or the one."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


@functools.cache
def hints(schema: type) -> dict[str, Any] | None:
    """Annotations of a dataclass's fields with their marks; None where they cannot be resolved."""
    try:
        return typing.get_type_hints(schema, include_extras=True)
    except Exception:  # noqa: BLE001  (somebody's own class may be annotated with anything)
        return None


def marks(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without its marks, and the marks."""
    if typing.get_origin(annotation) is typing.Annotated:
        kind, *marked = typing.get_args(annotation)
        return kind, tuple(marked)
    return annotation, ()


def documented(schema: type) -> type:
    """Marks a class for `check`, and adds every range to the field's entry in its docstring.

    `--help` and `help()` show the entries.

    Args:
      schema: a dataclass whose docstring has the section `Attributes:`.

    Returns:
      The same class.
    """
    lines, entry = (schema.__doc__ or "").splitlines(), None
    declared = {
        name: [str(mark) for mark in marks(annotation)[1] if isinstance(mark, Range)]
        for name, annotation in (hints(schema) or {}).items()
    }
    begun = False
    for index, line in enumerate([*lines, ""]):
        begun |= line.strip() == "Attributes:"
        found = re.match(r"\s*(\w+): ", line)
        starts = begun and found is not None and found[1] in declared
        if entry is not None and (starts or not line.strip()):
            name, last = entry
            lines[last] += "".join(f" {text[0].upper()}{text[1:]}." for text in declared[name])
            entry = None
        if starts:
            entry = found[1], index
        elif entry is not None:
            entry = entry[0], index
    schema.__doc__ = "\n".join(lines)
    schema._has_ranges = True
    return schema
