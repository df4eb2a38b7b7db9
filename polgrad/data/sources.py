"""Random access to examples: a user's own JSONL or Parquet file, and what they share."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

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


def check_record(record: Any, where: str, fields: tuple[str, ...] | None) -> tuple[str, ...]:
    """Check one record of a user's file.

    Args:
        record: what was read.
        where: its place, for the message ("data.jsonl line 3").
        fields: the fields that the first record had, or None for the first.

    Returns:
        The required fields: `("prompt", "answer")` or `("prompt", "chosen", "rejected")`.

    Raises:
        ValueError: not an object, a field missing, or a field that is no text.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object, got {type(record).__name__}")
    if fields is None:
        pairs = "chosen" in record or "rejected" in record
        fields = ("prompt", "chosen", "rejected") if pairs else ("prompt", "answer")
    for field in fields:
        if record.get(field) is None:
            absent = "null" if field in record else "missing"
            raise ValueError(
                f"{where}: field {field!r} is {absent}; "
                f"expected {' and '.join(map(repr, fields))}, found {sorted(record)}"
            )
        if not isinstance(record[field], str):
            kind = type(record[field]).__name__
            raise ValueError(f"{where}: field {field!r} must be a string, got {kind}")
    return fields


class _FileSource:
    """The rows of a file that belong to a split; subclasses read a row."""

    def __init__(self, path: Path, *, split: str, size: int | None, held_out: float, formatter):
        self.path = path
        self._format = formatter
        self._fields: tuple[str, ...] | None = None
        kept = []
        total = 0
        for position, where, record in self._records():
            total += 1
            self._fields = check_record(record, where, self._fields)
            try:
                question, _ = formatter(record["prompt"])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if in_split(question, split, held_out) and (size is None or len(kept) < size):
                kept.append(position)
        if not total:
            raise ValueError(f"{path} is empty: expected at least one example")
        if not kept:
            raise ValueError(
                f"{path}: none of its {total} examples falls into split {split!r} with "
                f"held_out={held_out}; change held_out, or use split='all'"
            )
        self._positions = np.asarray(kept, np.int64)

    def _records(self) -> Iterator[tuple[int, str, Any]]:
        raise NotImplementedError

    def _read(self, position: int) -> Mapping[str, Any]:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = dict(self._read(int(self._positions[index])))
        index = int(index) % len(self)
        example = {field: record.pop(field) for field in self._fields}
        metadata = record.pop("metadata", None)
        if isinstance(metadata, Mapping):
            metadata = {**metadata, **record}
        else:
            metadata = record if metadata is None else {**record, "metadata": metadata}
        _, example["prompt"] = self._format(example["prompt"])
        return {**example, "index": index, "metadata": metadata}


class JsonlSource(_FileSource):
    """One JSON object a line, read by byte offset: only the offsets stay in memory."""

    def _records(self):
        with self.path.open("rb") as file:
            position = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield position, f"{self.path} line {number}", self._parse(line, number)
                position += len(line)

    def _parse(self, line: bytes, number: int):
        try:
            return json.loads(line)
        except ValueError as error:
            message = getattr(error, "msg", None) or str(error)
            column = f" (column {error.colno})" if hasattr(error, "colno") else ""
            raise ValueError(
                f"{self.path} line {number}: malformed JSON: {message}{column}"
            ) from None

    def _read(self, position):
        with self.path.open("rb") as file:
            file.seek(position)
            return json.loads(file.readline())


class ParquetSource(_FileSource):
    """A Parquet file, read a row group at a time; the last few groups stay in memory."""

    def __init__(self, path: Path, **settings):
        import pyarrow
        import pyarrow.parquet

        try:
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not a Parquet file: {error}") from None
        sizes = [
            self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)
        ]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._group = functools.lru_cache(maxsize=8)(self._file.read_row_group)
        super().__init__(path, **settings)

    def _records(self):
        names = self._file.schema_arrow.names
        wanted = [name for name in ("prompt", "answer", "chosen", "rejected") if name in names]
        if "prompt" not in names or len(wanted) < 2:
            raise ValueError(
                f"{self.path} has the columns {', '.join(names)}, expected prompt and answer, or "
                "prompt, chosen and rejected"
            )
        row = 0
        for batch in self._file.iter_batches(batch_size=1024, columns=wanted):
            for record in batch.to_pylist():
                yield row, f"{self.path} row {row}", record
                row += 1

    def _read(self, position):
        group = int(np.searchsorted(self._starts, position, side="right")) - 1
        table = self._group(group)
        return table.slice(position - int(self._starts[group]), 1).to_pylist()[0]


FORMATS = {".jsonl": JsonlSource, ".parquet": ParquetSource}


def open_file(
    path: str | os.PathLike, *, split: str, size: int | None, held_out: float, formatter
) -> Source:
    """Open a user's own data file.

    Args:
        path: a `.jsonl` or `.parquet` file.
        split: one of `SPLITS`.
        size: at most so many examples, the first of the split; None takes all.
        held_out: share of the prompts that makes up "test", in [0, 1].
        formatter: what `prompt_formatter` returned.

    Returns:
        A source.

    Raises:
        ValueError: no such file, another kind of file, an empty one, or a bad record, with its
            line (from 1) or row (from 0).
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a file ending in {' or '.join(FORMATS)}")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return FORMATS[path.suffix](
        path, split=split, size=size, held_out=held_out, formatter=formatter
    )
