"""The input of a job: lines of JSON or rows of a table, one request each.

A bad line becomes a `Problem` and no exception, so that one run reports all of them. Memory holds
one line at a time.
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

from aigateway.batch.files.index import Index
from aigateway.batch.items import Prompt, read_request, row_reader, template_fields
from aigateway.errors import ConfigurationError, RequestRejectedError
from aigateway.messages import ChatRequest

__all__ = [
    "LINES_PER_TURN",
    "OPTIONS_WITHOUT_EFFECT",
    "Check",
    "Line",
    "Problem",
    "RowFormat",
    "Source",
    "checked",
    "problem_name",
    "repeated_id",
    "same_answer_key",
]

Check = Callable[..., ChatRequest]
"""`AsyncGateway.check`."""

LINES_PER_TURN = 256
"""Lines handled in one turn of the event loop while no request has to be sent."""

OPTIONS_WITHOUT_EFFECT = ("agent", "cache", "cache_ttl", "hedge", "timeout")
"""Options that do not change the answer itself."""

_NOT_UTF_8 = "is not UTF-8; convert the file first, e.g. with iconv -f WINDOWS-1252 -t UTF-8"
_ENDPOINT = "/v1/chat/completions"
_ID_COLUMNS = ("id", "custom_id")
_PARQUET_ROWS = 256
"""Rows of a Parquet file in memory at once."""

_BLOCK_BYTES = 1 << 22

_SPARE_BYTES = 1_000_000
"""A line may be that much longer than the longest prompt: its id, tools, a schema."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request of the input.

    Attributes:
        number: Its line from 1; in a table its row, without the heading.
        id: Unique in the input.
        prompt: A prompt, or messages.
        options: Keywords of `chat`.
    """

    number: int
    id: str
    prompt: Any
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that cannot be sent.

    Attributes:
        number: As in `Line`.
        what: What is wrong; quotes only names of fields.
        id: As in `Line`, if it has one.
    """

    number: int
    what: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a row becomes a request.

    Attributes:
        prompt_column: The field with the prompt.
        template: Or a prompt with `{field}`s in it.
        id_column: The field with the id.
        ignore_model: Whether to ignore the `model` of the lines.
        delimiter: Separates the fields of a .csv or .tsv; None takes the usual one.
    """

    prompt_column: str | None = None
    template: str | None = None
    id_column: str | None = None
    ignore_model: bool = False
    delimiter: str | None = None


class Source:
    """A file of requests: .csv, .tsv or .parquet by its name, else lines of JSON.

    Args:
        path: The file.
        row_format: How a row becomes a request.
        max_prompt_bytes: As in the settings; a line may be a little longer.

    Raises:
        ConfigurationError: The file cannot be read, or does not have that format.
    """

    def __init__(self, path: Path, row_format: RowFormat, max_prompt_bytes: int) -> None:
        self.path = path
        self._format = row_format
        self._longest = max_prompt_bytes + _SPARE_BYTES
        if row_format.delimiter is not None and len(row_format.delimiter) != 1:
            raise ConfigurationError("--delimiter must be one character.")
        if row_format.template is not None and row_format.prompt_column is not None:
            raise ConfigurationError("Give either --template or --prompt-column, not both.")
        self._read_row = _reader(row_format)
        rows = {".csv": self._csv, ".tsv": self._csv, ".parquet": self._parquet}
        self._rows = rows.get(path.suffix.lower())
        try:
            self._state = _state(path)
            if not path.is_file():
                raise ConfigurationError(
                    f"{path} is not a regular file; the input is read more than once."
                )
            with path.open("rb") as file:
                if not file.read(1):
                    raise ConfigurationError(f"{path} is empty.")
        except OSError as error:
            raise _unreadable(path, error) from None

    async def fingerprint(self) -> str:
        """Return a digest of the file. Raises `ConfigurationError` if it cannot be read."""
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    await asyncio.sleep(0)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return digest.hexdigest()

    @property
    def has_changed(self) -> bool:
        """Whether the file has changed since this object was made."""
        try:
            return _state(self.path) != self._state
        except OSError:
            return True

    def lines(self) -> Iterator[Line | Problem]:
        """Read the file from its beginning.

        Raises:
            ConfigurationError: The rest of the file cannot be read.
        """
        try:
            yield from self._json_lines() if self._rows is None else self._rows()
        except OSError as error:
            raise _unreadable(self.path, error) from None

    # ── lines of JSON ────────────────────────────────────────────────────────────────────────────

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
            return Problem(number, f"it is not JSON ({error.msg}, column {error.colno})")
        if not isinstance(given, dict):
            hint = "; jq -c '.[]' turns a list into lines" if isinstance(given, list) else ""
            return Problem(number, f'it is not an object like {{"id": ..., "prompt": ...}}{hint}')
        if self._read_row is not None:
            return self._line(number, given, self._read_row, self._id_column(given) or "id")
        if "custom_id" in given or "body" in given:
            return self._line(number, given, _read_openai, "custom_id")
        return self._line(number, given, read_request, "id")

    # ── rows of a table ──────────────────────────────────────────────────────────────────────────

    def _csv(self) -> Iterator[Line | Problem]:
        csv.field_size_limit(self._longest)
        delimiter = self._format.delimiter or ("\t" if self.path.suffix.lower() == ".tsv" else ",")
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
                        yield Problem(number, "its number of fields differs from the heading's")
                    else:
                        yield read(number, row)
            except (csv.Error, UnicodeDecodeError) as error:
                what = str(error)
                if isinstance(error, UnicodeDecodeError):
                    what = f"it {_NOT_UTF_8}"
                yield Problem(number + 1, f"it and the rest cannot be read: {what}")

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
                for rows in file.iter_batches(_PARQUET_ROWS):
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
        """Return a function that makes lines of the rows of a table with these columns."""
        row_format = self._format
        if self._read_row is None:
            row_format = replace(row_format, prompt_column="prompt")
        read_row = self._read_row or _reader(row_format)
        assert read_row is not None  # noqa: S101 - a table always has a prompt column
        needed = [
            row_format.prompt_column,
            row_format.id_column,
            *template_fields(row_format.template or ""),
        ]
        for column in needed:
            if column is not None and column not in columns:
                raise ConfigurationError(
                    f'{self.path} has no column "{column}"; it has: {", ".join(columns)}.'
                    f" {_hint(columns)}"
                )
        id_column = self._id_column(columns)
        return lambda number, row: self._line(number, row, read_row, id_column)

    def _id_column(self, columns: Collection[str]) -> str | None:
        return self._format.id_column or next((c for c in _ID_COLUMNS if c in columns), None)

    # ── either ───────────────────────────────────────────────────────────────────────────────────

    def _line(
        self,
        number: int,
        row: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], Prompt],
        id_column: str | None,
    ) -> Line | Problem:
        """Make a line of a row. Without an `id_column` the row's number is its id."""
        line_id = str(number) if id_column is None else _text(row.get(id_column))
        if not line_id:
            missing = row.get(id_column or "") in (None, "")
            what = f'it has no "{id_column}"'
            return Problem(
                number, what if missing else f'its "{id_column}" is not a text or a whole number'
            )
        try:
            prompt = read(row)
        except RequestRejectedError as error:
            return Problem(number, str(error).rstrip("."), line_id)
        options = prompt.options
        if self._format.ignore_model:
            options = {name: value for name, value in options.items() if name != "model"}
        return Line(number, line_id, prompt.prompt, options)


# ── a line as a request ──────────────────────────────────────────────────────────────────────────


def checked(
    line: Line | Problem, check: Check, shared: Mapping[str, Any]
) -> tuple[Line, ChatRequest] | Problem:
    """Check a line with its options; those of the line take precedence over `shared`."""
    if isinstance(line, Problem):
        return line
    try:
        return line, check(line.prompt, **{**shared, **line.options})
    except RequestRejectedError as error:
        what = str(error).rstrip(".")
    except TypeError:  # a field of the line that cannot be a keyword
        what = "it has a field that is not an option of chat"
    return Problem(line.number, what, line.id)


def same_answer_key(line: Line, shared: Mapping[str, Any]) -> bytes | None:
    """Return a key that checked lines share if one answer serves all; None without sharing."""
    options = {**shared, **line.options}
    if options.get("cache", True) is not True:
        return None
    for name in OPTIONS_WITHOUT_EFFECT:
        options.pop(name, None)
    prompt = line.prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return orjson.dumps([prompt, options], option=orjson.OPT_SORT_KEYS)


def problem_name(problem: Problem, index: Index) -> str:
    """Return the id of a bad line: its own, unless another line has it."""
    name = problem.id
    if name is None or index.find(name)[0] not in {0, problem.number}:
        name = f"(line {problem.number})"
    while index.find(name)[0] not in {0, problem.number}:
        name += "'"
    return name


def repeated_id(line: Line, first: int) -> Problem:
    """Return the problem of a line with the id of an earlier one. It then has no id of its own."""
    return Problem(line.number, f"its id is already that of line {first}")


def _hint(columns: list[str]) -> str:
    if len(columns) == 1 and ";" in columns[0]:
        return "Its fields seem to be separated by semicolons: give --delimiter ';'."
    return "Name the prompt's column with --prompt-column, or combine several with --template."


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
    if isinstance(given, bool) or not isinstance(given, str | int):
        return None
    return str(given)


def _reader(row_format: RowFormat) -> Callable[[Mapping[str, Any]], Prompt] | None:
    """Return a function that makes prompts of rows; None if the lines are requests."""
    if row_format.template is not None:
        try:
            read_row = row_reader(row_format.template)
        except RequestRejectedError as error:
            raise ConfigurationError(f"--template: {error}") from None
        if not template_fields(row_format.template):
            raise ConfigurationError(
                "--template: it has no field, so all rows would be the same; write {name} for one."
            )
        return read_row
    column = row_format.prompt_column
    if column is None:
        return None

    def read(row: Mapping[str, Any]) -> Prompt:
        if row.get(column) is None:
            raise RequestRejectedError(f'it has no "{column}"')
        prompt = row[column]
        return Prompt(str(prompt) if isinstance(prompt, int | float) else prompt, {})

    return read


def _read_openai(given: Mapping[str, Any]) -> Prompt:
    """Read a line in the form of https://platform.openai.com/docs/guides/batch."""
    if given.get("method", "POST") != "POST":
        raise RequestRejectedError('its "method" is not "POST"')
    if given.get("url", _ENDPOINT) != _ENDPOINT:
        raise RequestRejectedError(
            f'its "url" is not "{_ENDPOINT}", and no other endpoint is supported'
        )
    body = given.get("body")
    if not isinstance(body, dict):
        raise RequestRejectedError('it has no "body"')
    if body.get("stream"):
        raise RequestRejectedError('its body asks for a "stream", which a file cannot hold')
    options = {k: v for k, v in body.items() if v is not None and k != "stream"}
    if "messages" not in options:
        raise RequestRejectedError('its body has no "messages"')
    return Prompt(options.pop("messages"), options)


def _skip_the_rest(file: BinaryIO, text: bytes) -> None:
    while text and not text.endswith(b"\n"):
        text = file.readline(1 << 20)
