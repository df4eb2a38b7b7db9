"""A public loss as the settings of an algorithm: its keyword-only numbers become the fields."""

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from polgrad import _parts
from polgrad._annotations import array_annotation

# Keyword-only arguments that come from the batch and not from the user.
_SUPPLIED = {"valid"}


def settings_of(
    function: Callable,
    name: str,
    base: type,
    *,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    defaults: Mapping[str, float] | None = None,
    depth: int = 1,
    **attributes: Any,
) -> type:
    """A frozen dataclass with a field for each keyword-only number of a loss.

    Use it to train a loss of your own that is a function of arrays and numbers. The fields have the
    defaults and the texts of the loss, so that the two cannot differ.

    Args:
      function: the loss.
      name: of the class.
      base: what the loss is a number of: `PairLoss`, `GroupLoss` or `SequenceLoss`, whose
        docstrings tell what the loss's arrays may be called.
      choices: the texts that a field of text may have, by name.
      defaults: values for the arguments that have none, by name.
      depth: how many calls above this function the class's module is; 1 is the caller.
      attributes: class attributes for the base.

    Returns:
      The class.
    """
    fields = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _SUPPLIED:
            kind = _type(parameter, (choices or {}).get(parameter.name))
            default = (defaults or {}).get(parameter.name, parameter.default)
            fields.append((parameter.name, kind, dataclasses.field(default=default)))
    # What the base adds for some functions only, such as whose policy the reference is.
    further = base.further_settings(function) if hasattr(base, "further_settings") else []
    made = dataclasses.make_dataclass(
        name,
        [*fields, *further],
        bases=(base,),
        frozen=True,
        namespace={"function": staticmethod(function), **attributes},
    )
    # A run that goes on compares the file that the class stands in.
    made.__module__ = sys._getframe(depth).f_globals["__name__"]
    made.__doc__ = _docstring(function, [x[0] for x in [*further, *fields]], base)
    return made


def _type(parameter: inspect.Parameter, choices: tuple[str, ...] | None) -> Any:
    """The type of one value: a number where the loss takes an array of numbers too."""
    if choices is not None:
        return typing.Literal[choices]
    annotation = parameter.annotation
    if array_annotation(annotation) is not None:
        return float
    return annotation


def _docstring(function: Callable, names: list[str], base: type) -> str:
    summary, _, rest = (inspect.getdoc(function) or "").partition("\n")
    source = re.search(r"^References:\n(.*)", rest, re.MULTILINE | re.DOTALL)
    texts = _parts.entries(function, "Args") | _parts.entries(base)
    names = [*(f.name for f in dataclasses.fields(base)), *names]
    parts = [summary, "", f"The loss is `losses.{function.__name__}`."]
    if names:
        told = [f"  {name}: {texts.get(name, 'an argument of the loss')}" for name in names]
        parts += ["", "Attributes:", *told]
    if source:
        parts += ["", "References:", source[1].rstrip()]
    return "\n".join(parts)
