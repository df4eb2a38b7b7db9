"""The arrays in an annotation, whose types know their axes and their kinds of numbers."""

import collections.abc
import typing


def array_annotations(annotation) -> list[type]:
    """The jaxtyping arrays in an annotation, in its order."""
    if hasattr(annotation, "dim_str"):
        return [annotation]
    if typing.get_origin(annotation) is collections.abc.Callable:
        return []
    return [m for m in typing.get_args(annotation) if hasattr(m, "dim_str")]


def array_annotation(annotation) -> type | None:
    """The first jaxtyping array in an annotation, or None."""
    return next(iter(array_annotations(annotation)), None)
