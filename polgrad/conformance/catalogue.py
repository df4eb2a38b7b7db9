"""The public primitives, found by their place, and what they take: shapes, names and defaults."""

import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import NamedTuple

from polgrad._annotations import array_annotation

ROOMS = (
    "ratios",
    "masking",
    "selection",
    "diagnostics",
    "divergences",
    "distributions",
    "schedules",
    "advantages",
    "losses",
    "reward_models",
    "tabular",
    "data.preferences",
    "curricula",
    "rollouts.resets",
)


class Primitive(NamedTuple):
    """A public function.

    Attributes:
      name: as its users write it, such as "losses.ppo_clip".
      function: itself.
    """

    name: str
    function: Callable

    @property
    def room(self) -> str:
        """The folder or module that it is in."""
        return self.name.split(".")[0]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return inspect.getdoc(self.function).splitlines()[0]


def primitives(rooms: tuple[str, ...] = ROOMS) -> tuple[Primitive, ...]:
    """All public functions of the rooms, in the order of the rooms and the alphabet."""
    return tuple(p for room in rooms for p in _public(room, importlib.import_module(_path(room))))


def _path(room: str) -> str:
    return f"polgrad.{room}"


def _public(name: str, module: types.ModuleType) -> Iterator[Primitive]:
    for member in sorted(module.__all__):
        found = getattr(module, member)
        if inspect.ismodule(found):
            yield from _public(f"{name}.{member}", found)
        elif inspect.isfunction(found):
            yield Primitive(f"{name}.{member}", found)


def signature(primitive: Primitive) -> str:
    """Its name and its arguments with shapes and defaults, on one line."""
    parts, keyword_only = [], False
    for parameter in inspect.signature(primitive.function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        text = parameter.name
        shape = array_annotation(parameter.annotation)
        if shape is not None:
            text += f"[{','.join(shape.dim_str.split()) or '()'}]"
        if parameter.default is not parameter.empty:
            default = getattr(parameter.default, "name", parameter.default)
            text += f"={default!r}"
        parts.append(text)
    return f"{primitive.name}({', '.join(parts)})"
