"""JSON that brings tuples, sets and dictionaries with other keys than strings back unchanged.

Task scorers compare stored metadata with `==`, so a tuple that returns as a list can turn a
right answer into a wrong one.
"""

import json
from typing import Any

_TUPLE, _SET, _PAIRS = "__tuple__", "__set__", "__pairs__"
_TAGS = frozenset({_TUPLE, _SET, _PAIRS})


def _tag(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_tag(item) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_tag(item) for item in value]}
    if isinstance(value, (set, frozenset)):
        return {_SET: [_tag(item) for item in sorted(value, key=repr)]}
    if isinstance(value, dict) or hasattr(value, "items"):
        if all(type(key) is str for key in value) and not _TAGS & set(value):
            return {key: _tag(item) for key, item in value.items()}
        return {_PAIRS: [[_tag(key), _tag(item)] for key, item in value.items()]}
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _tag(value.tolist())
    raise ValueError(
        f"cannot store a value of type {type(value).__name__} ({value!r:.80}) as JSON; expected "
        "strings, numbers, booleans, None, lists, tuples, sets, dictionaries or numpy arrays"
    )


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        tag, content = next(iter(value.items()))
        if tag == _TUPLE:
            return tuple(_untag(item) for item in content)
        if tag == _SET:
            return {_untag(item) for item in content}
        if tag == _PAIRS:
            return {_untag(key): _untag(item) for key, item in content}
    return {key: _untag(item) for key, item in value.items()}


def dumps(value: Any) -> str:
    """ASCII JSON text of `value`, from which `loads` rebuilds an equal value.

    Args:
        value: strings (lone surrogates included), numbers, booleans, None, and lists, tuples,
            sets, dictionaries and numpy arrays of them; numpy values come back as Python's,
            arrays as lists.

    Returns:
        One line of text.

    Raises:
        ValueError: a value of another type, which is named, or one that is nested too deeply.
    """
    try:
        return json.dumps(_tag(value), ensure_ascii=True, separators=(",", ":"))
    except RecursionError:
        raise ValueError("cannot store a value that is nested so deeply as JSON") from None


def loads(text: str | bytes) -> Any:
    """The value that `dumps` wrote.

    Args:
        text: what `dumps` returned.

    Returns:
        The value, with its tuples, sets and non-string keys.

    Raises:
        ValueError: `text` is not JSON, or is nested too deeply.
    """
    try:
        return _untag(json.loads(text))
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None
