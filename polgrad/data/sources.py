"""Random access to examples: a user's own JSONL or Parquet file, and what they share."""

import codecs
import copy
import hashlib
import itertools
import json
import math
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polgrad._outside import reading, reason

SPLITS = ("train", "test", "all")


class TooFew(ValueError):
    """A generated task does not hold as many problems as were asked for.

    Attributes:
        found: how many it holds.
    """

    def __init__(self, message: str, found: int):
        super().__init__(message)
        self.found = found


class Source(Protocol):
    """Examples by index.

    An example is a dictionary with `prompt`, `index` (its place in this source), `metadata` (a
    dictionary), and either `answer` or both `chosen` and `rejected`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def place(self, index: int) -> str:
        """Where an example comes from, for messages: "a.jsonl line 7", "problem 3 of chain_sum"."""
        ...


def is_held_out(prompt: str, fraction: float) -> bool:
    """Whether a prompt belongs to the test split.

    `blake2b(prompt) / 2^64 < fraction`: a property of the text alone, so that train and test
    share no prompt whatever their sizes, seeds and order.

    Args:
        prompt: the prompt's text; white space at its ends does not count.
        fraction: share of all prompts that is held out, in [0, 1].

    Returns:
        True for test, False for train.
    """
    digest = hashlib.blake2b(
        prompt.strip().encode("utf-8", "surrogatepass"), digest_size=8, person=b"polgrad split"
    ).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def in_split(prompt: str, split: str, held_out: float) -> bool:
    """Whether a prompt belongs to `split` ("train", "test" or "all").

    Args:
        prompt: the prompt's text.
        split: one of `SPLITS`.
        held_out: share of all prompts that makes up "test", in [0, 1].

    Returns:
        The membership; "all" has every prompt.
    """
    return split == "all" or is_held_out(prompt, held_out) == (split == "test")


def prompt_formatter(pattern: str | None, template: str) -> Callable[[str], tuple[str, str]]:
    """The function from a task's own question to the prompt that the policy sees.

    `template` with `{prompt}` replaced by the first group of `pattern` in the question:
    `pattern=r": (.+)$"` keeps what follows a colon.

    Args:
        pattern: regular expression with exactly one group, searched in the question; None keeps
            the whole question.
        template: text that holds `{prompt}` exactly once.

    Returns:
        A function of the question that gives its extracted part, by which splits are made (so
        that another template keeps them), and the prompt. It raises ValueError where the pattern
        does not match.

    Raises:
        ValueError: a pattern that does not compile or has not one group, or a template without
            `{prompt}`.
    """
    if template.count("{prompt}") != 1:
        raise ValueError(f"prompt_template must hold '{{prompt}}' exactly once, got {template!r}")
    compiled = None
    if pattern is not None:
        try:
            compiled = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"prompt_pattern {pattern!r} does not compile: {error}") from None
        if compiled.groups != 1:
            raise ValueError(f"prompt_pattern {pattern!r} has {compiled.groups} groups, expected 1")

    def apply(question: str) -> tuple[str, str]:
        if compiled is not None:
            found = compiled.search(question)
            if found is None or found[1] is None:
                raise ValueError(f"prompt_pattern {pattern!r} does not match {question!r:.120}")
            question = found[1]
        return question, template.replace("{prompt}", question)

    return apply


def check_record(record: Any, fields: tuple[str, ...] | None) -> tuple[str, ...]:
    """Check one record of a user's file.

    Args:
        record: what was read.
        fields: the fields that the first record had, or None for the first.

    Returns:
        The required fields: `("prompt", "answer")` or `("prompt", "chosen", "rejected")`.

    Raises:
        ValueError: not an object, a field missing, a field that is no text, or nesting that a
            reward could not be told of.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"expected an object, got {_kind(record)}")
    if fields is None:
        pairs = "chosen" in record or "rejected" in record
        fields = ("prompt", "chosen", "rejected") if pairs else ("prompt", "answer")
    for field in fields:
        if record.get(field) is None:
            absent = "null" if field in record else "missing"
            raise ValueError(
                f"field {field!r} is {absent}; expected {' and '.join(map(repr, fields))}, found "
                f"{_listed(sorted(record))}{_how_to_fill(field, record)}"
            )
        check_text(field, record[field])
    return fields


def check_text(field: str, value: Any) -> None:
    """Checks that a field is text that a tokenizer can read.

    Raises:
      ValueError: another type, or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"field {field!r} must be a string, got {_kind(value)}{_how_to_convert(field, value)}"
        )
    # No tokenizer has ids for half of a surrogate pair, and no file can hold it.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field {field!r} holds U+{ord(value[error.start]):04X}, half of a "
            "surrogate pair, which is no character"
        ) from None


def column(example: Mapping[str, Any], name: str) -> Any:
    """A field of an example, as its file has it: the further fields are in `metadata`.

    Returns:
      The value; None where the example has no such field.
    """
    metadata = example.get("metadata")
    further = metadata.get(name) if isinstance(metadata, Mapping) else None
    return example.get(name, further)


def _kind(value: Any) -> str:
    """What a value is, in words that need no knowledge of Python."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = ((str, "a string"), (int | float, "a number"), (list, "a list"), (Mapping, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role and its content."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and "content" in one for one in value)
    )


def _how_to_fill(field: str, record: Mapping[str, Any]) -> str:
    """What to do about a field that is not there or null."""
    if field == "prompt" and _is_chat(record.get("messages")):
        return f"; 'messages' is a chat: {_how_to_take('messages', record['messages'])}"
    if field in record:
        return f"; write the {field} as text, or take this example out of the file"
    return how_to_name(record)


_MEANT = {
    "prompt": ("question", "problem", "instruction", "query"),
    "answer": ("ground_truth", "solution", "target", "label", "response", "completion", "output"),
}
"""Names that other libraries and public files have for the fields."""


def how_to_name(names: Iterable[str]) -> str:
    """The end of a message on a field that is missing: which of the fields there may be meant.

    Args:
        names: of the fields or columns that there are.

    Returns:
        A text, or "" where no name is known.
    """
    names = list(names)
    if "answer" not in names and "reward_model" in names:
        return (
            "; this is verl's layout: write row['prompt'][-1]['content'] as prompt and "
            "row['reward_model']['ground_truth'] as answer (docs/porting.md)"
        )
    meant = {
        field: [name for name in others if name in names]
        for field, others in _MEANT.items()
        if field not in names
    }
    renamed = [f"{others[0]!r} as {field!r}" for field, others in meant.items() if others]
    return f"; write {' and '.join(renamed)}, if that is meant" if renamed else ""


def _how_to_convert(field: str, value: Any) -> str:
    """How a value becomes the text that is expected."""
    if _is_chat(value):
        return f" (a chat): {_how_to_take(field, value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f" ({value}): write the {field} as text, or take this example out of the file"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f': write "{str(value):.40}", in quotes'
    return ""


CHAT = (
    "write the last user's message alone as text, row['prompt'] = row['{name}'][{place}]['content'] "
    "in Python; the policy's own chat template is put around it"
)


def _how_to_take(name: str, chat: list[Mapping[str, Any]]) -> str:
    """How the last user's message is taken out of a chat, which may end with another message."""
    users = [i for i, message in enumerate(chat) if message.get("role") == "user"]
    return CHAT.format(name=name, place=users[-1] - len(chat) if users else -1)


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:30]))
    return f"[{shown}{', ...' if len(names) > 30 else ''}]"


class _FileSource:
    """The rows of a file that belong to a split; subclasses read a row.

    Every row is read and checked when the file is opened: what cannot be used is found there.
    `with_split` gives another split of the same file without reading it again.
    """

    def __init__(self, path: Path, *, split: str, size: int | None, held_out: float, formatter):
        self.path = path
        self._format, self._held_out = formatter, held_out
        self._fields: tuple[str, ...] | None = None
        positions, numbers, held = [], [], []
        for position, number, record in self._records():
            try:
                self._fields = check_record(record, self._fields)
                question, _ = formatter(record["prompt"])
            except ValueError as error:
                raise self._wrong(number, error) from None
            positions.append(position)
            numbers.append(number)
            held.append(is_held_out(question, held_out))
        if not positions:
            raise ValueError(f"{path} is empty: expected at least one example")
        self._rows = (
            np.asarray(positions, np.int64),
            np.asarray(numbers, np.int64),
            np.asarray(held, bool),
        )
        self._select(split, size)

    def _select(self, split: str, size: int | None) -> None:
        """Keeps the first rows of a split."""
        positions, numbers, held = self._rows
        inside = np.ones_like(held) if split == "all" else held == (split == "test")
        kept = np.flatnonzero(inside)[:size]
        if not len(kept):
            raise ValueError(
                f"{self.path}: none of its {len(held)} examples falls into split {split!r} with "
                f"held_out={self._held_out}; give more examples with different prompts, another "
                "share (--data.held-out; 0 keeps none for evaluation), or in Python split='all'"
            )
        self._split = split
        self._positions, self._numbers = positions[kept], numbers[kept]

    def with_split(self, split: str) -> "_FileSource":
        """Another split of the same file, which is not read again.

        Args:
            split: one of `SPLITS`.

        Returns:
            A source of all rows of this split.

        Raises:
            ValueError: no row belongs to the split.
        """
        other = copy.copy(self)
        other._select(split, None)
        return other

    def _records(self) -> Iterator[tuple[int, int, Any]]:
        """Of every row: the place that `_read` takes, the number that `_named` shows, the row."""
        raise NotImplementedError

    def _read(self, position: int) -> Mapping[str, Any]:
        raise NotImplementedError

    def _named(self, number: int) -> str:
        raise NotImplementedError

    def _wrong(self, number: int, error: Exception) -> ValueError:
        """The error that names the row, from whatever its reading raised."""
        return ValueError(f"{self._named(number)}: {reason(error)}")

    def __len__(self) -> int:
        return len(self._positions)

    def place(self, index: int) -> str:
        """Where an example stands in the file: "a.jsonl line 7", "a.parquet row 7".

        Args:
            index: of the example in this source.

        Returns:
            The file and the line or row, both counted from 1.
        """
        return self._named(int(self._numbers[index]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        position, number = int(self._positions[index]), int(self._numbers[index])
        index = int(index) % len(self)
        # The file was whole when it was opened, and may have been changed since.
        with reading(self.path):
            try:
                record = dict(self._read(position))
                check_record(record, self._fields)
                example = {field: record.pop(field) for field in self._fields}
                question, example["prompt"] = self._format(example["prompt"])
                if not in_split(question, self._split, self._held_out):
                    raise ValueError("the file was changed, and the row is of another split now")
            except Exception as error:  # noqa: BLE001  (each library has exceptions of its own)
                raise self._wrong(number, error) from None
        metadata = record.pop("metadata", None)
        if isinstance(metadata, Mapping):
            metadata = {**metadata, **record}
        else:
            metadata = record if metadata is None else {**record, "metadata": metadata}
        return {**example, "index": index, "metadata": metadata}


class _Opened:
    """A file that stays open as long as a source needs it."""

    def __init__(self, path: Path):
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.handle)


class JsonlSource(_FileSource):
    """One JSON object a line, read by byte offset: only the offsets stay in memory.

    The file stays open: one that takes its name later is not looked at. What is written into the
    open file itself is seen where a line begins no longer at its offset or is no example any more.
    """

    def __init__(self, path: Path, **settings):
        self._opened = _Opened(path)
        super().__init__(path, **settings)

    def _named(self, number):
        return f"{self.path} line {number}"

    def _records(self):
        with open(self._opened.handle, "rb", closefd=False) as file:
            position = 0
            for number in itertools.count(1):
                line = file.readline(_LONGEST_LINE + 1)
                if not line:
                    return
                # An editor of Windows may begin a file with this mark.
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    try:
                        record = _parse(text)
                    except ValueError as error:
                        raise self._wrong(number, error) from None
                    yield position + len(line) - len(text), number, record
                position += len(line)

    def _read(self, position):
        # `pread` has no place in the file that threads would share. The byte before the line comes
        # along, because it tells whether a line still begins there.
        start = max(position - 1, 0)
        begin, size, found = position - start, 4096, b""
        while part := os.pread(self._opened.handle, size, start + len(found)):
            found += part
            if found.find(b"\n", begin) >= 0 or len(found) > _LONGEST_LINE + 1:
                break
            size = len(found)
        line = found[begin:].partition(b"\n")[0]
        moved = found[:begin] != b"\n" and position not in (0, len(codecs.BOM_UTF8))
        if moved or not line:
            raise ValueError("the file was changed after it was opened")
        return _parse(line)


_LONGEST_LINE = 2**26  # bytes; the longest context is a thousandth of it
_DEEPEST = 64  # levels of lists and objects; `codec` and a reward's process recurse over them


def _parse(line: bytes) -> Any:
    """The value of one line.

    NaN and Infinity are numbers here, as Python's own json writes them.
    """
    if len(line) > _LONGEST_LINE:
        raise ValueError(f"longer than {_LONGEST_LINE} bytes; expected one object a line")
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error.msg} (column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"malformed JSON: {reason(error)}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {_DEEPEST} levels") from None
    if line.count(b"[") + line.count(b"{") > _DEEPEST:
        _check_depth(record)
    return record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r:.80} occurs twice in one object")
    return made


def _check_depth(value: Any) -> None:
    """Raises ValueError for lists and objects nested deeper than `_DEEPEST`, without recursion."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        inner = [x for x in level if isinstance(x, (list, tuple, Mapping))]
        if not inner:
            return
        level = [y for x in inner for y in (x.values() if isinstance(x, Mapping) else x)]
    raise ValueError(f"nested deeper than {_DEEPEST} levels")


def _parquet(path: Path, **settings) -> Source:
    from polgrad.data.parquet import ParquetSource

    return ParquetSource(path, **settings)


FORMATS = {".jsonl": JsonlSource, ".parquet": _parquet}


def open_file(
    path: str | os.PathLike, *, split: str, size: int | None, held_out: float, formatter
) -> Source:
    """Open a user's own data file.

    Args:
        path: a `.jsonl` or `.parquet` file.
        split: one of `SPLITS`; "all" has every row.
        size: at most so many examples, the first of the split; None takes all.
        held_out: share of the prompts that makes up "test", in [0, 1].
        formatter: what `prompt_formatter` returned.

    Returns:
        A source.

    Raises:
        ValueError: no such file, another kind of file, an empty one, or a bad record, with its
            line or row, both counted from 1.
    """
    path = Path(path)
    with reading(path):
        if path.is_dir():
            held = sorted(str(one) for one in path.iterdir() if one.suffix in FORMATS)
            raise ValueError(
                f"{path} is a directory; expected one file ending in {' or '.join(FORMATS)}, "
                f"{f'such as {held[0]}' if held else 'of which it holds none'}"
            )
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a file ending in {' or '.join(FORMATS)}")
    with reading(path):
        if not path.exists():
            raise ValueError(f"no such file: {path}")
        if not path.is_file():
            raise ValueError(f"{path} is no file")
        return FORMATS[path.suffix](
            path, split=split, size=size, held_out=held_out, formatter=formatter
        )
