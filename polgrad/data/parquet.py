"""A user's own Parquet file by random access, with its columns as JSON could hold them."""

import datetime
import decimal
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polgrad._outside import reason
from polgrad.data import sources

_FIELDS = ("prompt", "answer", "chosen", "rejected")


class ParquetSource(sources._FileSource):
    """A Parquet file, read a row group at a time; the last few groups stay in memory.

    Rewards get a row's other columns as JSON could hold them: dates and times as ISO text, decimal
    numbers as their digits, bytes as the text that they are in UTF-8. A column with bytes that are
    no text (images) is left out, and a line on stderr says so. All columns that are kept are
    decoded when the file is opened.
    """

    def __init__(self, path: Path, **settings):
        import pyarrow.parquet

        try:
            # Not mapped into memory: a file that is cut while it is read would kill the process.
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=False)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not a Parquet file: {reason(error)}") from None
        sizes = [
            self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)
        ]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.path = path
        self._columns = self._kept_columns(self._file.schema_arrow)
        self._group = functools.lru_cache(maxsize=8)(self._read_group)
        super().__init__(path, **settings)

    def _named(self, number):
        return f"{self.path} row {number + 1}"

    def _kept_columns(self, schema) -> list[str]:
        """The columns to read: those that are needed, seen to be text, and the others."""
        names = schema.names
        listed = ", ".join(repr(name)[1:-1] for name in names)
        wanted = [name for name in _FIELDS if name in names]
        if "prompt" not in names or len(wanted) < 2:
            raise ValueError(
                f"{self.path} has the columns {listed}, expected prompt and answer, or prompt, "
                f"chosen and rejected{sources.how_to_name(names)}"
            )
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise ValueError(f"{self.path} has the column {repeated[0]!r} twice")
        for name in wanted:
            if not _is_text(schema.field(name).type):
                raise ValueError(
                    f"{self.path}: column {name!r} must hold text, got {schema.field(name).type} "
                    f"(the columns are {listed}){_how_to_convert(name, schema.field(name).type)}"
                )
        binary = [name for name in names if not self._holds_text(name, schema.field(name).type)]
        if binary:
            _say_once(f"polgrad: {self.path}: left out, bytes that are no text: {binary}")
        return [name for name in names if name not in binary]

    def _holds_text(self, name: str, kind) -> bool:
        """Whether a column has no bytes, or all of them are text."""
        if not _has_bytes(kind):
            return True
        row = 0
        for batch in self._file.iter_batches(batch_size=64, columns=[name]):
            for i, value in enumerate(batch.column(0)):
                try:
                    if not _all_text(value.as_py()):
                        return False
                except Exception as error:  # noqa: BLE001  (pyarrow raises what it likes)
                    raise self._wrong(row + i, error) from None
            row += batch.num_rows
        return True

    def _records(self):
        schema = self._file.schema_arrow
        needed = [name for name in self._columns if name in _FIELDS]
        others = [
            n for n in self._columns if n not in needed and not _is_plain(schema.field(n).type)
        ]
        row, rest = 0, dict.fromkeys(self._columns)
        for batch in self._file.iter_batches(batch_size=1024, columns=self._columns):
            self._check(batch, row, others)
            columns = [batch.column(name).to_pylist() for name in needed]
            for values in zip(*columns):
                yield row, row, {**rest, **dict(zip(needed, values))}
                row += 1
        if row != int(self._starts[-1]):
            raise ValueError(f"{self.path} holds {row} rows and claims {int(self._starts[-1])}")

    def _check(self, batch, start: int, names: list[str]) -> None:
        """Raises ValueError, with row and column, for a value that cannot be read."""
        whole = None
        try:
            batch.validate(full=True)
        except Exception as error:  # noqa: BLE001  (raised below, where no row is at fault)
            # Text that is not UTF-8, for one: now every column is looked at, value for value.
            whole, names = error, batch.schema.names
        for name in names:
            for i, scalar in enumerate(batch.column(name)):
                try:
                    _value(scalar, name)
                except ValueError as error:
                    raise self._wrong(start + i, error) from None
        if whole is not None:
            raise whole

    def _read_group(self, index: int):
        return self._file.read_row_group(index, columns=self._columns)

    def _read(self, position):
        group = int(np.searchsorted(self._starts, position, side="right")) - 1
        table = self._group(group)
        row = position - int(self._starts[group])
        return {name: _value(table.column(name)[row], name) for name in self._columns}


def _value(scalar, name: str) -> Any:
    """A cell as JSON could hold it."""
    try:
        value = _plain(_as_python(scalar))
    except Exception as error:  # noqa: BLE001  (what pyarrow raises depends on the type)
        raise ValueError(f"column {name!r}: {reason(error)}") from None
    sources._check_depth(value)
    return value


_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _as_python(scalar) -> Any:
    import pyarrow

    kind, types = scalar.type, pyarrow.types
    if not scalar.is_valid:
        return None
    if types.is_duration(kind):
        return scalar.value / _UNITS[kind.unit]
    # Python's own times end with microseconds.
    if (types.is_timestamp(kind) or types.is_time64(kind)) and kind.unit == "ns":
        whole, rest = divmod(scalar.value, 10**9)
        is_day = types.is_timestamp(kind)
        seconds = pyarrow.timestamp("s", kind.tz) if is_day else pyarrow.time32("s")
        text = pyarrow.scalar(whole, seconds).as_py().isoformat()
        end = text.index(":") + 6  # behind the seconds
        return f"{text[:end]}.{rest:09d}{text[end:]}" if rest else text
    return scalar.as_py()


def _plain(value: Any) -> Any:
    """A value of pyarrow as JSON could hold it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):  # inside of a list or an object
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value)  # a UUID


def _all_text(value: Any) -> bool:
    if isinstance(value, bytes):
        try:
            value.decode("utf-8")
        except UnicodeDecodeError:
            return False
    if isinstance(value, Mapping):
        return all(map(_all_text, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_all_text, value))
    return True


def _inner(kind) -> list:
    """The types that a type is made of."""
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        return [kind.value_type]
    if isinstance(kind, pyarrow.BaseExtensionType):
        return [kind.storage_type]
    return [kind.field(i).type for i in range(kind.num_fields)]


def _has_bytes(kind) -> bool:
    import pyarrow

    types = pyarrow.types
    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in tests) or any(map(_has_bytes, _inner(kind)))


def _is_text(kind) -> bool:
    """Whether a column can hold prompts; one of nulls only is told by its first row."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(t(kind) for t in (types.is_string, types.is_large_string, types.is_null))


def _how_to_convert(name: str, kind) -> str:
    """How a column of chats becomes the text that is expected."""
    import pyarrow

    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if is_list and pyarrow.types.is_struct(kind.value_type):
        return f"; this is a chat: {sources.CHAT.format(name=name, place=-1)}"
    return ""


def _is_plain(kind) -> bool:
    """Whether every value of a type is one of JSON, whatever the row."""
    import pyarrow

    types = pyarrow.types
    tests = (types.is_boolean, types.is_integer, types.is_floating, types.is_null, _is_text)
    return any(test(kind) for test in tests)


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)
