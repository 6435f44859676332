"""The table of a job: its records as rows of a CSV or Parquet file, in the order of the input.

The records stay the only truth. The table is made of them when the job is complete, or on request,
beside the old one, and takes its place as a whole. Memory holds a few thousand rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from aigateway.batch.files.index import failed_at
from aigateway.batch.files.input import (
    ALL_COLUMNS,
    LINES_PER_TURN,
    Line,
    Problem,
    RowFormat,
    problem_name,
    repeated_id,
)
from aigateway.batch.files.job import JobInput
from aigateway.batch.files.output import JournalError, Record, body_of
from aigateway.batch.files.paths import JobFiles, atomic_write
from aigateway.batch.files.schema import AnswerSchema, ColumnType
from aigateway.errors import ConfigurationError
from aigateway.messages import ANSWER_COLUMNS, answer_row, error_row

__all__ = ["TableFormat", "check_table", "write_table"]

_ROWS = 8192
"""Rows of a group in a .parquet."""

_GROUP_BYTES = 1 << 24
"""A group ends earlier when its texts are longer than that."""

_MOST_COLUMNS = 2000
_INT64_END = 2**63
_PENDING = error_row("pending", "It has not been answered yet.")


@dataclass(frozen=True, slots=True)
class TableFormat:
    """What a table has beside the answers.

    Attributes:
        delimiter: Separates the fields of a .csv; None takes the usual one.
        bom: Whether a .csv begins with a byte order mark.
        schema: The schema of the answers, whose fields are columns.
    """

    delimiter: str | None = None
    bom: bool = False
    schema: AnswerSchema | None = None


def check_table(path: Path, row_format: RowFormat, table: TableFormat) -> None:
    """Check before anything is sent that a table can be written, as far as that can be known.

    Raises:
        ConfigurationError: pyarrow is missing, or two columns would have the same name.
    """
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    fields = () if table.schema is None else table.schema.columns
    _Columns(row_format.kept_by_name, row_format.id_column, fields)


async def write_table(
    path: Path,
    given: JobInput,
    files: JobFiles,
    table: TableFormat,
    on_progress: Callable[[int], object],
) -> None:
    """Write the table of all records, as a whole or not at all.

    Args:
        path: The table.
        given: The input, and where its records are.
        files: The records.
        table: What it has beside them.
        on_progress: Called now and then with the number of rows.

    Raises:
        ConfigurationError: The input cannot be read, or two columns would have the same name.
        JournalError: The table cannot be written. The records stay.
    """
    draft = files.answers.path.with_name("table.tmp")
    try:
        with contextlib.ExitStack() as opened:
            journals = (files.answers, files.errors)
            readers = [opened.enter_context(journal.reading()) for journal in journals]
            rows = _Rows(given, table, *readers)
            file = opened.enter_context(atomic_write(path, draft))
            while not await _written(path, file, rows, table, on_progress):
                file.seek(0)
                file.truncate()
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error.strerror}. The answers are kept in"
            f" {files.answers.path.parent}: run the same command with --resume."
        ) from None


async def _written(
    path: Path,
    file: IO[bytes],
    rows: _Rows,
    table: TableFormat,
    on_progress: Callable[[int], object],
) -> bool:
    """Write all rows; return False if a column needs another type, which it has from now on."""
    try:
        with contextlib.closing(_writer(path, file, rows.types, table)) as writer:
            for count, row in enumerate(rows, 1):
                writer.add(row)
                if count % LINES_PER_TURN == 0:
                    on_progress(count)
                    await asyncio.sleep(0)
    except _TooLargeError as error:
        rows.types[error.column] = "string"
        return False
    return True


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


class _Columns:
    """The names of the columns, in their order.

    A column of the input whose name is one of ours gets "input." in front of it.

    Args:
        kept: The columns of the input.
        id_column: The one with the id, which is not repeated.
        fields: The fields of a structured answer.
    """

    def __init__(
        self, kept: Sequence[str], id_column: str | None, fields: Sequence[str] | Mapping[str, Any]
    ) -> None:
        self.fields = {f"answer.{name}": name for name in fields}
        own = {"id", *ANSWER_COLUMNS, *self.fields}
        repeated = {"id"} if id_column in {None, "id"} else set()
        self.kept = {
            f"input.{name}" if name in own else name: name for name in kept if name not in repeated
        }
        answer, *rest = ANSWER_COLUMNS
        self.names = ["id", *self.kept, answer, *self.fields, *rest]
        double = [name for name, count in Counter(self.names).items() if count > 1]
        if double:
            raise ConfigurationError(
                f'The table would have two columns "{double[0]}": name the columns to keep with'
                " --keep-columns, without that one."
            )
        if len(self.names) > _MOST_COLUMNS:
            raise ConfigurationError(
                f"The table would have {len(self.names):,} columns: name those to keep with"
                " --keep-columns."
            )


class _Rows:
    """The rows of a table.

    Attributes:
        types: The type of each column: a `ColumnType`, or one of Arrow.
    """

    def __init__(
        self,
        given: JobInput,
        table: TableFormat,
        answer_at: Callable[[int], Record],
        error_at: Callable[[int], Record],
    ) -> None:
        self._source, self._index = given.source, given.index
        self._answer_at, self._error_at = answer_at, error_at
        fields: Mapping[str, ColumnType] = {} if table.schema is None else table.schema.columns
        row_format, found = given.source.row_format, given.source.columns
        kept = tuple(found) if row_format.keep == ALL_COLUMNS else row_format.kept_by_name
        self._columns = columns = _Columns(kept, row_format.id_column, fields)
        types: dict[str, Any] = {
            "id": "string",
            **ANSWER_COLUMNS,
            **{column: _kept_type(found.get(name)) for column, name in columns.kept.items()},
            **{column: fields[name] for column, name in columns.fields.items()},
        }
        self.types = {name: types[name] for name in columns.names}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._source.lines():
            name, record = self._record(line)
            row: dict[str, Any] = {"id": line.id or name}  # of its own, also if repeated
            if line.row is not None:
                row |= {column: line.row.get(n) for column, n in self._columns.kept.items()}
            row |= _PENDING if record is None else _flat(record, self._columns.fields)
            yield row

    def _record(self, line: Line | Problem) -> tuple[str, Record | None]:
        """Return the id of a line, and its record."""
        if isinstance(line, Line):
            number, place = self._index.find(line.id)
            problem = repeated_id(line, number, self._source.unit)
        if isinstance(line, Problem) or number != line.number:
            problem = line if isinstance(line, Problem) else problem
            name = problem_name(problem, self._index)
            _, place = self._index.find(name)
        else:
            name = line.id
        if place is None:
            return name, None
        return name, self._answer_at(place) if place >= 0 else self._error_at(failed_at(place))


def _flat(record: Record, fields: Mapping[str, str]) -> dict[str, Any]:
    about, body = record["aigateway"], body_of(record)
    row: dict[str, Any] = {}
    if record["error"] is not None:
        row = error_row(record["error"]["code"], record["error"]["message"])
    if body is None:
        return row
    choice, parsed = body["choices"][0], about.get("parsed")
    if isinstance(parsed, dict):
        row |= {column: parsed.get(name) for column, name in fields.items()}
    return row | answer_row(
        choice["message"].get("content"),
        about["provider"],
        body["model"],
        choice["finish_reason"],
        body["usage"]["prompt_tokens"],
        body["usage"]["completion_tokens"],
        about["cost_usd"],
        about["latency_seconds"],
        about["cached"],
    )


def _kept_type(found: Any) -> Any:
    """Return the type of a column of the input; of lines of JSON by the values that were found."""
    if not isinstance(found, set):
        return found or "string"
    match sorted(found - {"NoneType"}):
        case ["bool"]:
            return "bool"
        case ["int"]:
            return "int64"
        case ["float"] | ["float", "int"]:
            return "float64"
        case _:
            return "string"


# ── files ────────────────────────────────────────────────────────────────────────────────────────


class _Writer(Protocol):
    """Writes rows to a file."""

    def add(self, row: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


def _writer(path: Path, file: IO[bytes], types: Mapping[str, Any], table: TableFormat) -> _Writer:
    if path.suffix.lower() == ".parquet":
        return _ParquetWriter(file, types)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return _CsvWriter(file, types, table.delimiter or usual, bom=table.bom)


class _CsvWriter:
    """UTF-8, a heading, a bare line feed at the end of each row; quotes where needed."""

    def __init__(
        self, file: IO[bytes], names: Mapping[str, Any], delimiter: str, *, bom: bool
    ) -> None:
        self._file = file
        self._names = list(names)
        # With "\r\n" the module quotes both characters.
        self._csv = csv.writer(self, delimiter=delimiter, lineterminator="\r\n")
        if bom:
            file.write(b"\xef\xbb\xbf")
        self._csv.writerow(self._names)

    def add(self, row: Mapping[str, Any]) -> None:
        self._csv.writerow([_as_text(row.get(name)) for name in self._names])

    def write(self, line: str) -> None:
        """Take a finished line from the module."""
        self._file.write(line.removesuffix("\r\n").encode("utf-8", "replace") + b"\n")

    def close(self) -> None:
        """Nothing is left to write."""


class _TooLargeError(Exception):
    """A column has a number that is too large for its type."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class _ParquetWriter:
    """Groups of rows, each column with its type."""

    def __init__(self, file: IO[bytes], types: Mapping[str, Any]) -> None:
        self._arrow = _pyarrow()
        self._kinds = types
        self._types = {name: self._type(kind) for name, kind in types.items()}
        fields = [self._arrow.field(name, kind) for name, kind in self._types.items()]
        self._schema = self._arrow.schema(fields)
        self._file = self._arrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(self._rows) >= _ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._file.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        arrays = [self._arrow.array(self._values(name), kind) for name, kind in self._types.items()]
        self._file.write_batch(self._arrow.record_batch(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0

    def _type(self, kind: Any) -> Any:
        match kind:
            case list():
                return self._arrow.list_(self._type(kind[0]))
            case dict():
                return self._arrow.struct([(n, self._type(each)) for n, each in kind.items()])
            case str():
                return getattr(self._arrow, "bool_" if kind == "bool" else kind)()
        # Of a .parquet: a dictionary would have other entries in each group.
        return kind.value_type if self._arrow.types.is_dictionary(kind) else kind

    def _values(self, name: str) -> list[Any]:
        values, kind = [row.get(name) for row in self._rows], self._kinds[name]
        if not isinstance(kind, str | list | dict):
            return values
        try:
            return [_fitted(value, kind) for value in values]
        except OverflowError:
            raise _TooLargeError(name) from None


def _fitted(value: Any, kind: ColumnType) -> Any:
    """Return a value in the form of its type; None if it has no such form.

    Raises:
        OverflowError: It is a number that is too large for the type.
    """
    fitted = None
    match kind, value:
        case "string", _:
            fitted = _as_text(value)
        case ("bool", bool()):
            fitted = value
        case ("int64", int() | float()) if not isinstance(value, bool):
            if not -_INT64_END <= value < _INT64_END:
                raise OverflowError
            fitted = int(value) if value == int(value) else None
        case ("float64", int() | float()) if not isinstance(value, bool):
            fitted = float(value)
        case (list(), list()):
            fitted = [_fitted(each, kind[0]) for each in value]
        case (dict(), dict()):
            fitted = {name: _fitted(value.get(name), each) for name, each in kind.items()}
    return fitted


def _as_text(value: Any) -> Any:
    """Return a value as text: lists and objects as JSON; None stays."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | list | dict):
        return orjson.dumps(value, default=str).decode()
    return str(value)


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415, ICN001 - an extra
        import pyarrow.parquet  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            'Parquet files need pyarrow: install "aigateway[parquet]".'
        ) from None
    return pyarrow
