"""The array in an annotation, whose type knows its axes and its kinds of numbers."""

import collections.abc
import typing


def array_annotation(annotation) -> type | None:
    """The first jaxtyping array in an annotation, or None."""
    if hasattr(annotation, "dim_str"):
        return annotation
    if typing.get_origin(annotation) is collections.abc.Callable:
        return None
    members = typing.get_args(annotation)
    return next((m for m in members if hasattr(m, "dim_str")), None)
