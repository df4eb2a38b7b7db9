"""`key=value` texts to settings, with the types of the dataclass that declares them."""

import ast
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any


def changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Settings with some fields replaced.

    Raises:
      ValueError: for a field that there is not, or one that the dataclass itself refuses.
    """
    fields = [f.name for f in dataclasses.fields(settings)]
    for name in changes:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"setting {name!r} is unknown{hint} (known: {', '.join(fields)})")
    return dataclasses.replace(settings, **changes)


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
        known = {f.name for f in dataclasses.fields(settings)}
        changed(settings, {} if name in known else {name: None})
        values[name] = value(settings, name, text)
    return values


def value(settings: Any, name: str, text: str) -> Any:
    """Text as a value of a field's type.

    Raises:
      ValueError: if it is not of that type.
    """
    kind = typing.get_type_hints(type(settings))[name]
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = {"true": True, "false": False}.get(text.lower(), text)
    for option in typing.get_args(kind) if _is_union(kind) else (kind,):
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
    raise ValueError(f"setting {name} is {text!r}; expected {getattr(kind, '__name__', kind)}")


def _is_union(kind: Any) -> bool:
    import types

    return typing.get_origin(kind) in (typing.Union, types.UnionType)
