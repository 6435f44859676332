"""The input of a job: lines of JSON, or rows of a table, one request each.

A line that makes no sense is a `Problem` and not an exception, so that all of them can be told at
once. Nothing is held but the line at hand. Whether a vendor would take the request is not judged
here.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from aigateway.batch.items import Prompt, read_request, row_reader, template_fields
from aigateway.errors import ConfigurationError, RequestRejectedError

__all__ = ["Line", "Problem", "Shape", "Source"]

_NOT_UTF_8 = "is not UTF-8; convert the file first, say with iconv -f WINDOWS-1252 -t UTF-8"
_ENDPOINT = "/v1/chat/completions"
_ID_COLUMNS = ("id", "custom_id")
_ROWS_AT_ONCE = 256
"""Rows of a Parquet file that are in memory together."""

_BLOCK = 1 << 22

_SPARE = 1_000_000
"""Bytes that a line may have beyond the longest prompt: its id, tools, a schema."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request of the input.

    Attributes:
        number: Its line (of a table: its row, the heading not counted), from 1.
        id: What it is called; unique in the input.
        prompt: A prompt, or messages.
        options: Everything else, as keywords of `chat`.
    """

    number: int
    id: str
    prompt: Any
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that is none.

    Attributes:
        number: As of a `Line`.
        what: What is wrong with it; quotes nothing but names of fields.
        id: As of a `Line`, if it has one.
    """

    number: int
    what: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """How a row becomes a request.

    Attributes:
        prompt_column: The field that holds the prompt.
        template: Or a prompt with `{field}`s in it.
        id_column: The field that holds the id.
        ignore_model: Whether the lines' own `model` is left aside.
        delimiter: What stands between the fields of a .csv or .tsv; None is the usual.
    """

    prompt_column: str | None = None
    template: str | None = None
    id_column: str | None = None
    ignore_model: bool = False
    delimiter: str | None = None


class Source:
    """A file of requests. JSON lines, unless its name ends in .csv, .tsv or .parquet.

    Args:
        path: The file.
        shape: How a row becomes a request.
        max_prompt_bytes: As in the settings; a line may be a little longer.

    Raises:
        ConfigurationError: The file cannot be read, or the shape does not fit it.
    """

    def __init__(self, path: Path, shape: Shape, max_prompt_bytes: int) -> None:
        self.path = path
        self._shape = shape
        self._longest = max_prompt_bytes + _SPARE
        if shape.delimiter is not None and len(shape.delimiter) != 1:
            raise ConfigurationError("--delimiter must be one character.")
        if shape.template is not None and shape.prompt_column is not None:
            raise ConfigurationError("Give either --template or --prompt-column, not both.")
        self._read_row = _reader(shape)
        rows = {".csv": self._csv, ".tsv": self._csv, ".parquet": self._parquet}
        self._rows = rows.get(path.suffix.lower())
        try:
            self._state = _state(path)
            if not path.is_file():
                raise ConfigurationError(
                    f"{path} is no ordinary file; it must be one that can be read more than once."
                )
            with path.open("rb") as file:
                if not file.read(1):
                    raise ConfigurationError(f"{path} is empty; there is nothing to ask.")
        except OSError as error:
            raise _unreadable(path, error) from None

    async def fingerprint(self) -> str:
        """What is another after any change of the file.

        Raises:
            ConfigurationError: It cannot be read.
        """
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    await asyncio.sleep(0)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return digest.hexdigest()

    @property
    def has_changed(self) -> bool:
        """Whether the file is another than when this was made."""
        try:
            return _state(self.path) != self._state
        except OSError:
            return True

    def lines(self) -> Iterator[Line | Problem]:
        """Read the file from its beginning.

        Raises:
            ConfigurationError: It cannot be read any further.
        """
        try:
            yield from self._json_lines() if self._rows is None else self._rows()
        except OSError as error:
            raise _unreadable(self.path, error) from None

    # ── lines of JSON ────────────────────────────────────────────────────────────────────────

    def _json_lines(self) -> Iterator[Line | Problem]:
        with self.path.open("rb") as file:
            number = 0
            while text := file.readline(self._longest + 1):
                number += 1
                if len(text) > self._longest:
                    _skip_the_rest(file, text)
                    yield Problem(number, f"it has more than {self._longest:,} bytes")
                    continue
                if number == 1:
                    text = text.removeprefix(b"\xef\xbb\xbf")
                if not text.isspace():
                    yield self._json_line(number, text)

    def _json_line(self, number: int, text: bytes) -> Line | Problem:
        try:
            given = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            if not _is_utf_8(text):
                return Problem(number, f"it {_NOT_UTF_8}")
            return Problem(number, f"it is no JSON ({error.msg}, column {error.colno})")
        if not isinstance(given, dict):
            hint = "; a list is made lines by jq -c '.[]'" if isinstance(given, list) else ""
            return Problem(number, f'it is no object like {{"id": ..., "prompt": ...}}{hint}')
        if self._read_row is not None:
            return self._line(number, given, self._read_row, self._id_column(given) or "id")
        if "custom_id" in given or "body" in given:
            return self._line(number, given, _read_openai, "custom_id")
        return self._line(number, given, read_request, "id")

    # ── rows of a table ──────────────────────────────────────────────────────────────────────

    def _csv(self) -> Iterator[Line | Problem]:
        csv.field_size_limit(self._longest)
        delimiter = self._shape.delimiter or ("\t" if self.path.suffix.lower() == ".tsv" else ",")
        number = 0
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            try:
                columns = list(reader.fieldnames or ())
                if len(set(columns)) < len(columns):
                    raise ConfigurationError(f"{self.path} has two columns of the same name.")
                read = self._table_reader(columns)
                for number, row in enumerate(reader, 1):
                    if None in row or None in row.values():
                        yield Problem(number, "it has not as many fields as the heading")
                    else:
                        yield read(number, row)
            except (csv.Error, UnicodeDecodeError) as error:
                what = str(error)
                if isinstance(error, UnicodeDecodeError):
                    what = f"it {_NOT_UTF_8}"
                yield Problem(number + 1, f"it cannot be read, nor what follows: {what}")

    def _parquet(self) -> Iterator[Line | Problem]:
        try:
            from pyarrow import ArrowException, parquet  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigurationError(
                'Parquet files need pyarrow: install "aigateway[parquet]".'
            ) from None
        try:
            with parquet.ParquetFile(self.path) as file:
                read = self._table_reader(list(file.schema_arrow.names))
                number = 0
                for rows in file.iter_batches(_ROWS_AT_ONCE):
                    for row in rows.to_pylist():
                        number += 1
                        yield read(number, row)
        except (ArrowException, UnicodeDecodeError, OSError) as error:
            raise ConfigurationError(
                f"{self.path} cannot be read as Parquet ({type(error).__name__})."
            ) from None

    def _table_reader(
        self, columns: list[str]
    ) -> Callable[[int, Mapping[str, Any]], Line | Problem]:
        """What makes lines of the rows of a table with these columns."""
        shape = self._shape
        if self._read_row is None:
            shape = replace(shape, prompt_column="prompt")
        read_row = self._read_row or _reader(shape)
        assert read_row is not None  # noqa: S101 - a table always has one
        needed = [shape.prompt_column, shape.id_column, *template_fields(shape.template or "")]
        for column in needed:
            if column is not None and column not in columns:
                raise ConfigurationError(
                    f'{self.path} has no column "{column}"; it has: {", ".join(columns)}.'
                    f" {_hint(columns)}"
                )
        id_column = self._id_column(columns)
        return lambda number, row: self._line(number, row, read_row, id_column)

    def _id_column(self, columns: Collection[str]) -> str | None:
        """Where the id stands, of the columns there are."""
        return self._shape.id_column or next((c for c in _ID_COLUMNS if c in columns), None)

    # ── either ───────────────────────────────────────────────────────────────────────────────

    def _line(
        self,
        number: int,
        row: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], Prompt],
        id_column: str | None,
    ) -> Line | Problem:
        """A row as a line. Without an `id_column` rows are called by their numbers."""
        line_id = str(number) if id_column is None else _text(row.get(id_column))
        if not line_id:
            missing = row.get(id_column or "") in (None, "")
            what = f'it has no "{id_column}"'
            return Problem(
                number, what if missing else f'its "{id_column}" is no text and no whole number'
            )
        try:
            wanted = read(row)
        except RequestRejectedError as error:
            return Problem(number, str(error).rstrip("."), line_id)
        options = wanted.options
        if self._shape.ignore_model:
            options = {name: value for name, value in options.items() if name != "model"}
        return Line(number, line_id, wanted.prompt, options)


def _hint(columns: list[str]) -> str:
    if len(columns) == 1 and ";" in columns[0]:
        return "It seems to be separated by semicolons: give --delimiter ';'."
    return "Name the one with the prompt by --prompt-column, or put several into a --template."


def _is_utf_8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{path} cannot be read: {error.strerror or type(error).__name__}.")


def _text(given: object) -> str | None:
    """An id as text; None if it cannot be one."""
    if isinstance(given, bool) or not isinstance(given, str | int):
        return None
    return str(given)


def _reader(shape: Shape) -> Callable[[Mapping[str, Any]], Prompt] | None:
    """What makes prompts of rows, if rows are what is wanted."""
    if shape.template is not None:
        try:
            read_row = row_reader(shape.template)
        except RequestRejectedError as error:
            raise ConfigurationError(f"--template: {error}") from None
        if not template_fields(shape.template):
            raise ConfigurationError(
                "--template: it has no field, so all rows would ask the same; write {name} for one."
            )
        return read_row
    column = shape.prompt_column
    if column is None:
        return None

    def read(row: Mapping[str, Any]) -> Prompt:
        if row.get(column) is None:
            raise RequestRejectedError(f'it has no "{column}"')
        prompt = row[column]
        return Prompt(str(prompt) if isinstance(prompt, int | float) else prompt, {})

    return read


def _read_openai(given: Mapping[str, Any]) -> Prompt:
    """A line in the form of https://platform.openai.com/docs/guides/batch."""
    if given.get("method", "POST") != "POST":
        raise RequestRejectedError('its "method" is not "POST"')
    if given.get("url", _ENDPOINT) != _ENDPOINT:
        raise RequestRejectedError(f'its "url" is not "{_ENDPOINT}", and nothing else is asked')
    body = given.get("body")
    if not isinstance(body, dict):
        raise RequestRejectedError('it has no "body"')
    if body.get("stream"):
        raise RequestRejectedError('its body asks for a "stream", which a file cannot take')
    options = {k: v for k, v in body.items() if v is not None and k != "stream"}
    if "messages" not in options:
        raise RequestRejectedError('its body has no "messages"')
    return Prompt(options.pop("messages"), options)


def _skip_the_rest(file: BinaryIO, text: bytes) -> None:
    """Read on to the end of a line that is too long."""
    while text and not text.endswith(b"\n"):
        text = file.readline(1 << 20)
