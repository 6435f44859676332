"""The input of a job: lines of JSON or rows of a table, one request each.

A bad line becomes a `Problem` and no exception, so that one run reports all of them. Memory holds
one line at a time.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import csv
import hashlib
import io
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from aigateway.batch.files.index import Index
from aigateway.batch.items import Prompt, id_of, read_request, row_reader, template_fields
from aigateway.errors import ConfigurationError, RequestRejectedError
from aigateway.messages import ChatRequest
from aigateway.options import ChatOptions

__all__ = [
    "ALL_COLUMNS",
    "LINES_PER_TURN",
    "OPTIONS_WITHOUT_EFFECT",
    "Check",
    "Line",
    "Problem",
    "RowFormat",
    "Shard",
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

ALL_COLUMNS = ("all",)
"""Keeps every column of the input."""

OPTIONS_WITHOUT_EFFECT = ("agent", "cache", "cache_ttl", "hedge", "timeout")
"""Options that do not change the answer itself."""

_REQUEST_FIELDS = ChatOptions.__optional_keys__ - {"origin"} | {
    "id",
    "messages",
    "prompt",
    "response_format",
}
"""Fields of a line of JSON that belong to the request, also if they are kept as columns."""

_UNREADABLE_REST = "it and the rest cannot be read: "
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_ENDPOINT = "/v1/chat/completions"
_ID_COLUMNS = ("id", "custom_id")
_PARQUET_ROWS = 256
"""Rows of a Parquet file in memory at once."""

_SPREADSHEET = "is a spreadsheet; save it as CSV UTF-8"
_COMPRESSED = "is compressed; unpack it first"
_UNREAD_NAMES = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), _SPREADSHEET),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), _COMPRESSED),
}

_BLOCK_BYTES = 1 << 22

_SPARE_BYTES = 1_000_000
"""Bytes of a line beside its prompt: its id, tools, a schema."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request of the input.

    Attributes:
        number: Its line from 1; in a table its row, without the heading.
        id: Unique in the input.
        prompt: A prompt, or messages.
        options: Keywords of `chat`.
        row: As it was read.
    """

    number: int
    id: str
    prompt: Any
    options: Mapping[str, Any]
    row: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that cannot be sent.

    Attributes:
        number: As in `Line`.
        what: What is wrong; quotes only names of fields.
        id: As in `Line`, if it has one.
        row: As in `Line`, if it can be read.
    """

    number: int
    what: str
    id: str | None = None
    row: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a row becomes a request.

    Attributes:
        prompt_column: The field with the prompt.
        template: Or a prompt with `{field}`s in it.
        id_column: The field with the id.
        ignore_model: Whether to ignore the `model` of the lines.
        delimiter: Separates the fields of a .csv or .tsv; None takes the usual one.
        keep: The columns to put into the records; `ALL_COLUMNS` takes all, None takes none.
    """

    prompt_column: str | None = None
    template: str | None = None
    id_column: str | None = None
    ignore_model: bool = False
    delimiter: str | None = None
    keep: tuple[str, ...] | None = None

    @property
    def kept_by_name(self) -> tuple[str, ...]:
        """The columns to keep that have to be there."""
        return () if self.keep is None or self.keep == ALL_COLUMNS else self.keep


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of an input, which one worker answers.

    Attributes:
        number: Its number in the job, from 0.
        offset: The byte at which its first line begins; 0 in a Parquet file.
        first: Its first line from 1; in a table its first row.
        last: Its last one.
        skipped: Lines between them that need no answer any more, or cannot have one.
    """

    number: int
    offset: int
    first: int
    last: int
    skipped: frozenset[int] = frozenset()

    @property
    def lines(self) -> int:
        """Lines to answer."""
        return self.last - self.first + 1 - len(self.skipped)

    def __str__(self) -> str:
        return f"lines {self.first} to {self.last}"


class Source:
    """A file of requests: .csv, .tsv or .parquet by its name, else lines of JSON.

    Args:
        path: The file.
        row_format: How a row becomes a request.
        max_prompt_bytes: As in the settings; a line may be a little longer.
        shard: The part to read; None reads the whole file.
        limit: Lines to read; None reads all.

    Attributes:
        path: The file.
        row_format: How a row becomes a request.
        limit: Lines to read; None reads all.
        columns: The columns of the lines that were read, if some are kept: of a .parquet with their
            Arrow types, of lines of JSON with the names of their values' types.
        offset: The byte at which the line begins that was read last; 0 in a Parquet file.
        template_columns: The columns of a table that the template puts into prompts.

    Raises:
        ConfigurationError: The file cannot be read, or does not have that format.
    """

    def __init__(
        self,
        path: Path,
        row_format: RowFormat,
        max_prompt_bytes: int,
        shard: Shard | None = None,
        *,
        limit: int | None = None,
    ) -> None:
        self.path = path
        self.limit = limit
        self.columns: dict[str, Any] = {}
        self.row_format = row_format
        self.offset = 0
        self.template_columns: tuple[str, ...] = ()
        self._shard = shard
        self._format = row_format
        self._longest = max_prompt_bytes + _SPARE_BYTES
        if row_format.delimiter is not None and len(row_format.delimiter) != 1:
            raise ConfigurationError("--delimiter must be one character.")
        if row_format.template is not None and row_format.prompt_column is not None:
            raise ConfigurationError("Give either --template or --prompt-column, not both.")
        self._read_row = _reader(row_format)
        unread = _UNREAD_NAMES.get(path.suffix.lower())
        if unread is not None:
            raise ConfigurationError(f"{path} {unread}.")
        rows = {".csv": self._csv, ".tsv": self._csv, ".parquet": self._parquet}
        self._rows = rows.get(path.suffix.lower())
        try:
            self._state = _state(path)
            if not path.is_file():
                raise ConfigurationError(
                    f"{path} is not a regular file; the input is read more than once."
                )
            with path.open("rb") as file:
                begin = file.read(4)
            if not begin:
                raise ConfigurationError(f"{path} is empty.")
        except OSError as error:
            raise _unreadable(path, error) from None
        marked = (name for mark, name in _BYTE_ORDER_MARKS.items() if begin.startswith(mark))
        self._marked_encoding = next(marked, None)

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
    def unit(self) -> str:
        """The word for one request of the file."""
        return "line" if self._rows is None else "row"

    @property
    def has_changed(self) -> bool:
        """Whether the file has changed since this object was made."""
        try:
            return _state(self.path) != self._state
        except OSError:
            return True

    def lines(self) -> Iterator[Line | Problem]:
        """Read the file, or the shard, from its beginning.

        Raises:
            ConfigurationError: The rest of the file cannot be read.
        """
        shard = self._shard
        all_lines = self._json_lines() if self._rows is None else self._rows()
        try:
            for line in itertools.islice(all_lines, self.limit):
                if shard is None:
                    yield line
                elif line.number > shard.last:
                    return
                elif line.number not in shard.skipped:
                    yield line
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def kept(self, line: Line | Problem) -> dict[str, Any] | None:
        """Return the columns of a line to put into its record, as plain JSON; None without any."""
        keep, row = self.row_format.keep, line.row
        if keep is None or row is None:
            return None
        wanted = row if keep == ALL_COLUMNS else {name: row.get(name) for name in keep}
        plain: dict[str, Any] = orjson.loads(orjson.dumps(wanted, default=str))
        return plain

    @property
    def size(self) -> int:
        """Bytes of the file when this object was made."""
        return self._state[1]

    @property
    def changed_at(self) -> int:
        """When the file was last changed, in nanoseconds, as of when this object was made."""
        return self._state[2]

    @property
    def _not_utf_8(self) -> str:
        encoding = self._marked_encoding or "WINDOWS-1252"
        return f"it is not UTF-8; convert the file first, e.g. with iconv -f {encoding} -t UTF-8"

    @property
    def _rows_before(self) -> int:
        return 0 if self._shard is None else self._shard.first - 1

    # ── lines of JSON ────────────────────────────────────────────────────────────────────────────

    def _json_lines(self) -> Iterator[Line | Problem]:
        if self._marked_encoding is not None:  # a line feed is more than a byte there
            yield Problem(1, f"{_UNREADABLE_REST}{self._not_utf_8}")
            return
        with self.path.open("rb") as file:
            number, offset = self._rows_before, self._shard.offset if self._shard else 0
            file.seek(offset)
            while text := file.readline(self._longest + 1):
                number += 1
                self.offset, offset = offset, offset + len(text)
                if len(text) > self._longest:
                    _skip_the_rest(file, text)
                    offset = file.tell()
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
                return Problem(number, self._not_utf_8)
            return Problem(number, f"it is not JSON ({error.msg}, column {error.colno})")
        if not isinstance(given, dict):
            hint = "; jq -c '.[]' turns a list into lines" if isinstance(given, list) else ""
            return Problem(number, f'it is not an object like {{"id": ..., "prompt": ...}}{hint}')
        if self._format.keep is not None:
            for name, value in given.items():
                self.columns.setdefault(name, set()).add(type(value).__name__)
        if self._read_row is not None:
            return self._line(number, given, self._read_row, self._id_column(given) or "id")
        if "custom_id" in given or "body" in given:
            return self._line(number, given, _read_openai, "custom_id")
        return self._line(number, given, self._read_request, "id")

    def _read_request(self, given: Mapping[str, Any]) -> Prompt:
        """Read a line without the columns that are only kept."""
        keep = self._format.keep
        if keep is not None:
            given = {
                name: value
                for name, value in given.items()
                if name in _REQUEST_FIELDS or (name not in keep and keep != ALL_COLUMNS)
            }
        return read_request(given)

    # ── rows of a table ──────────────────────────────────────────────────────────────────────────

    def _csv(self) -> Iterator[Line | Problem]:
        csv.field_size_limit(self._longest)
        delimiter = self._format.delimiter or ("\t" if self.path.suffix.lower() == ".tsv" else ",")
        number = self._rows_before
        with contextlib.ExitStack() as opened:
            lines = opened.enter_context(contextlib.closing(_TableLines(self.path)))
            reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
            try:
                columns = list(reader.fieldnames or ())
                if len(set(columns)) < len(columns):
                    raise ConfigurationError(f"{self.path} has two columns of the same name.")
                read = self._table_reader(columns)
                self.columns = dict.fromkeys(columns, "string")
                if self._shard is not None:
                    lines = _TableLines(self.path, self._shard.offset)
                    opened.enter_context(contextlib.closing(lines))
                    reader = csv.DictReader(lines, columns, delimiter=delimiter, strict=True)
                while True:
                    self.offset = lines.offset
                    row = next(reader, None)
                    if row is None:
                        return
                    number += 1
                    if None in row or None in row.values():
                        yield Problem(number, "its number of fields differs from the heading's")
                    else:
                        yield read(number, row)
            except (csv.Error, UnicodeDecodeError) as error:
                what = str(error)
                if isinstance(error, UnicodeDecodeError):
                    what = self._not_utf_8
                yield Problem(number + 1, f"{_UNREADABLE_REST}{what}")

    def _parquet(self) -> Iterator[Line | Problem]:
        try:
            from pyarrow import ArrowException, parquet  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigurationError(
                'Parquet files need pyarrow: pip install "aigateway[parquet]".'
            ) from None
        try:
            with parquet.ParquetFile(self.path) as file:
                read = self._table_reader(list(file.schema_arrow.names))
                self.columns = {each.name: each.type for each in file.schema_arrow}
                groups, number = self._row_groups(file)
                for rows in file.iter_batches(_PARQUET_ROWS, row_groups=groups):
                    unread = max(0, min(rows.num_rows, self._rows_before - number))
                    number += unread
                    for row in rows.slice(unread).to_pylist():
                        number += 1
                        yield read(number, row)
        except (ArrowException, UnicodeDecodeError, OSError) as error:
            raise ConfigurationError(
                f"{self.path} cannot be read as Parquet ({type(error).__name__})."
            ) from None

    def _row_groups(self, file: Any) -> tuple[list[int], int]:
        """Return the groups of rows of a Parquet file to read, and the number of rows before."""
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        skipped = before = 0
        while skipped < len(sizes) and before + sizes[skipped] <= self._rows_before:
            before += sizes[skipped]
            skipped += 1
        return list(range(skipped, len(sizes))), before

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
            *template_fields(row_format.template or "", columns),
        ]
        for column in needed:
            if column is not None and column not in columns:
                raise ConfigurationError(
                    f'{self.path} has no column "{column}"; it has: {", ".join(columns)}.'
                    f" {_hint(columns, row_format.template)}"
                )
        self.template_columns = tuple(template_fields(row_format.template or "", columns))
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
        line_id = str(number) if id_column is None else id_of(row.get(id_column))
        if not line_id:
            missing = row.get(id_column or "") in (None, "")
            what = f'it has no "{id_column}"'
            what = what if missing else f'its "{id_column}" is not a text or a whole number'
            return Problem(number, what, row=row)
        try:
            prompt = read(row)
        except RequestRejectedError as error:
            return Problem(number, str(error).rstrip("."), line_id, row)
        options = prompt.options
        if self._format.ignore_model:
            options = {name: value for name, value in options.items() if name != "model"}
        return Line(number, line_id, prompt.prompt, options, row)


class _TableLines:
    """The lines of a table in UTF-8.

    Attributes:
        offset: The byte at which the next line begins.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.offset = offset
        file = path.open("rb")
        file.seek(offset)
        # In Latin-1 a character is a byte. `csv` needs line ends as they are.
        self._text = io.TextIOWrapper(file, "latin-1", newline="")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._text)
        begin, self.offset = self.offset, self.offset + len(line)
        if not line.isascii():
            line = line.encode("latin-1").decode()
        return line if begin else line.removeprefix("\ufeff")

    def close(self) -> None:
        self._text.close()


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
    return Problem(line.number, what, line.id, line.row)


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


def repeated_id(line: Line, first: int, unit: str = "line") -> Problem:
    """Return the problem of a line with the id of an earlier one. It then has no id of its own.

    Args:
        line: The line.
        first: The number of the earlier one.
        unit: As in `Source`.
    """
    return Problem(line.number, f"its id is already that of {unit} {first}", row=line.row)


def _hint(columns: list[str], template: str | None) -> str:
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(columns) == 1 and mark in columns[0]:
            shown = "$'\\t'" if mark == "\t" else f"'{mark}'"
            return f"Its fields seem to be separated by {name}: give --delimiter {shown}."
    if template is not None:
        return "In a template write {{ and }} for braces that are text."
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
