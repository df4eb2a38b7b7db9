"""`key=value` texts to settings, with the types of the dataclass that declares them."""

import ast
import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from polgrad import _names, _outside, _ranges


def changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Settings with some fields replaced.

    Raises:
      ValueError: for a field that there is not, or one that the dataclass itself refuses.
    """
    for name in changes:
        known(settings, name)
    try:
        return dataclasses.replace(settings, **changes)
    except ValueError:
        raise
    # The dataclass is somebody's own and may look at its values as it likes.
    except Exception as error:
        raise ValueError(
            f"the settings refuse {_outside.reason(error)} ({dict(changes)!r:.200})"
        ) from error


def known(settings: Any, name: str) -> None:
    """Refuses a name that is no field.

    Raises:
      ValueError: with the nearest field and all of them.
    """
    fields = [f.name for f in dataclasses.fields(settings)]
    if name not in fields:
        hint = _names.hint(name, fields)
        raise ValueError(f"setting {name!r} is unknown{hint} (known: {', '.join(fields)})")


def parse(settings: Any, pairs: Iterable[str]) -> dict[str, Any]:
    """`["beta=0.1"]` as `{"beta": 0.1}`, each value of its field's type.

    Args:
      settings: the dataclass instance whose fields are named.
      pairs: texts `key=value`.

    Returns:
      The values by field.

    Raises:
      ValueError: for text without `=`, an unknown field, or a value of another type.
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set has {pair!r}; expected key=value")
        known(settings, name)
        if name in values:
            raise ValueError(f"--set has {name} twice")
        values[name] = value(settings, name, text)
    return values


def value(settings: Any, name: str, text: str) -> Any:
    """Text as a value of a field's type.

    Raises:
      ValueError: if it is not of that type.
    """
    with _outside.calling(name, "the type of setting"):
        kind = typing.get_type_hints(type(settings))[name]
    try:
        found = ast.literal_eval(text)
    # Not a literal, or one that is nested too deeply to be read.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = {"true": True, "false": False}.get(text.lower(), text)
    for option in _ranges.kinds(kind):
        if typing.get_origin(option) is typing.Literal:
            if found in typing.get_args(option):
                return found
            continue
        plain = typing.get_origin(option) or option
        if plain is float and type(found) in (int, float):
            return float(found)
        if plain is str:
            return text
        if plain is tuple and type(found) in (list, tuple):
            return tuple(found)
        if type(found) is plain:
            return found
    raise ValueError(f"setting {name} is {text!r}; expected {_ranges.called(kind)}")
