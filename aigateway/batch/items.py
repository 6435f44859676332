"""Read one element of a batch's input as a prompt and its options. The prompt is not checked."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import (
    AsyncIterable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from string import Formatter
from typing import Any

from aigateway.cache.key import same_number
from aigateway.errors import RequestRejectedError, refuse
from aigateway.messages import ChatRequest, Origin

__all__ = [
    "Prompt",
    "given_id",
    "id_of",
    "read_request",
    "reader_of",
    "row_reader",
    "rows_of",
    "template_fields",
]

_CHUNK = 1024
"""Rows of an Arrow table that are read at once."""

_MISSING = ("NAType", "NaTType")
"""Types of missing values in pandas, beside NaN."""

_SHOWN_COLUMNS = 20
_PLAIN_NAME = re.compile(r"[\w .:/#%()+-]+(\[[^\]]*\]|\.\w+)*")
"""The names of fields as they usually are; JSON whose braces are not doubled has others."""

_BRACES = "write {{ and }} for braces that are text"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request as it was read.

    Attributes:
        prompt: A prompt, or messages.
        options: Keywords of `chat`.
        id: The caller's name for it, if any.
    """

    prompt: Any
    options: Mapping[str, Any]
    id: str | None = None


def read_request(given: Any) -> Prompt:
    """Read a prompt, a list of messages, a mapping or a `ChatRequest`.

    A mapping has "prompt" or "messages" and optionally an "id"; its other fields are options of
    `chat`. A field that is None counts as absent.

    Raises:
        RequestRejectedError: A mapping has neither or both of "prompt" and "messages".
    """
    if isinstance(given, ChatRequest):
        return _from_chat_request(given)
    if not isinstance(given, Mapping):
        return Prompt(given, {})
    options = {name: value for name, value in given.items() if value is not None}
    options.pop("id", None)
    name = _row_id(given)
    if ("prompt" in options) == ("messages" in options):
        refuse('A request needs either "prompt" or "messages".')
    return Prompt(options.pop("prompt" if "prompt" in options else "messages"), options, name)


def _from_chat_request(request: ChatRequest) -> Prompt:
    options = dict(request.params)
    for name in ("model", "timeout", "agent", "cache_ttl", "hedge", "session"):
        value = getattr(request, name)
        if value is not None:
            options[name] = value
    if request.cache is not True:
        options["cache"] = request.cache
    if request.response_model is not None:
        options["response_format"] = request.response_model
    if request.partition or request.headers or request.on_cost or request.tenant:
        options["origin"] = Origin(
            partition=request.partition,
            headers=request.headers,
            on_cost=request.on_cost,
            tenant=request.tenant,
            needs_price=request.needs_price,
        )
    return Prompt(request.messages, options, request.request_id or None)


def id_of(given: object) -> str | None:
    """Return an id as text; None if it is neither a text nor a whole number.

    A column of numbers with a gap has floats in pandas: 1.0 is 1.
    """
    given = same_number(given)
    if isinstance(given, bool) or not isinstance(given, str | int):
        return None
    return str(given)


def _checked_id(given: object) -> str | None:
    name = id_of(given)
    if name is None and given is not None:
        refuse(f'"id" must be a text or a whole number, not {type(given).__name__}.')
    return name or None


def _row_id(row: Mapping[str, Any]) -> str | None:
    """Return the id of a mapping, as text. In a frame any plain value is one, dates in ISO form."""
    given = row.get("id")
    if not isinstance(row, _FrameRow):
        return _checked_id(given)
    given = same_number(given)
    if given is None or (isinstance(given, Iterable) and not isinstance(given, str)):
        return None
    form = getattr(given, "isoformat", None)
    return (str(given) if form is None else str(form())) or None


def given_id(given: Any) -> str | None:
    """Return the id of an element that cannot be read, if it has one."""
    if isinstance(given, ChatRequest):
        return given.request_id or None
    try:
        return _row_id(given) if isinstance(given, Mapping) else None
    except Exception:  # noqa: BLE001 - a mapping of the caller may raise anything
        return None


class _RowReader:
    """Fills a template from rows; see `row_reader`."""

    def __init__(self, template: str) -> None:
        _check_template(template)
        self.template = template
        self._needs = f"The template needs {', '.join(_fields(template)) or 'no field'}; this row"

    def __call__(self, row: Any) -> Prompt:
        if not isinstance(row, Mapping):
            refuse(f"A row must be a mapping of field names to values, not {type(row).__name__}.")
        try:
            prompt = _filler.vformat(self.template, (), row)
        except KeyError as missing:
            plain = _PLAIN_NAME.fullmatch(str(missing.args[0]))
            problem = f"has no {str(missing)[:64]}{'' if plain else f'; {_BRACES}'}."
        except _NoneError as none:
            problem = f"has None for {str(none)[:64]!r}."
        except Exception as exc:  # noqa: BLE001 - a value may raise anything when it is formatted
            problem = f"has a value that cannot be formatted ({type(exc).__name__})."
        else:
            return Prompt(prompt, {}, _row_id(row))
        raise RequestRejectedError(f"{self._needs} {problem}")


def row_reader(template: str) -> Callable[[Any], Prompt]:
    """Return a function that fills the template from a row.

    `{field}` stands for that field of the row, `{{` and `}}` for braces. A row's "id" becomes the
    item's. A field that is None counts as missing (as does `{a[b]}` or `{a.b}` that leads to None),
    so that no prompt contains the word "None".

    Raises:
        RequestRejectedError: The template is invalid.
    """
    return _RowReader(template)


class _NoneError(Exception):
    """A field of a row is None; names the field."""


class _Filler(Formatter):
    """`str.format_map` that refuses None, and takes `{a.b}` for a field "a.b" if there is one."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if field_name in kwargs:
            found = kwargs[field_name], field_name
        else:
            found = super().get_field(field_name, args, kwargs)
        if found[0] is None:
            raise _NoneError(field_name)
        return found


_filler = _Filler()


def _fields(template: str) -> list[str]:
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


def template_fields(template: str, columns: Collection[str] = ()) -> list[str]:
    """Return the fields of a row that a template needs.

    For `{a.b}` and `{a[b]}` that is `a`, unless there is a column of the whole name.
    """
    return list(
        dict.fromkeys(
            name if name in columns else re.split(r"[.\[]", name, maxsplit=1)[0]
            for name in _fields(template)
        )
    )


# ── data frames ──────────────────────────────────────────────────────────────────────────────────


class _FrameRow(dict[str, Any]):
    """A row of a frame."""


class _FrameRows:
    """The rows of a frame as mappings, read as far as they are needed, as often as wanted."""

    def __init__(
        self, columns: Iterable[Any], rows: int, read: Callable[[], Iterable[Any]]
    ) -> None:
        self.columns = [str(name) for name in columns]
        self._rows, self._read = rows, read
        if len(set(self.columns)) < len(self.columns):
            refuse("The frame has two columns of the same name.")

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._read():
            yield _FrameRow(zip(self.columns, map(_present, row), strict=True))


def reader_of(rows: Any, read: Callable[[Any], Prompt]) -> Callable[[Any], Prompt]:
    """Return what reads these rows: `read`, or for a frame of one column its prompts.

    Raises:
        RequestRejectedError: A column of the frame is missing, so that every row would fail.
    """
    if not isinstance(rows, _FrameRows):
        return read
    columns = rows.columns
    has = ", ".join(columns[:_SHOWN_COLUMNS]) + (", ..." if len(columns) > _SHOWN_COLUMNS else "")
    if isinstance(read, _RowReader):
        for name in template_fields(read.template, columns):
            if name not in columns:
                refuse(
                    f'The frame has no column "{name[:64]}"; it has: {has}. In the template'
                    f" {_BRACES}."
                )
    elif "prompt" not in columns and "messages" not in columns:
        if len(columns) != 1:
            refuse(
                f'The frame has no column "prompt" or "messages"; it has: {has}. Rename one, give'
                " that column alone, or use map() with a template."
            )
        return lambda row: Prompt(row[columns[0]], {})
    return read


def rows_of(given: Any) -> Any:
    """Return a data frame as its rows, and anything else as it is.

    pandas, modin and dask, polars and pyarrow are read by their own iterators. Any other frame
    that speaks the Arrow PyCapsule interface, or the older interchange protocol, is read through
    pyarrow.

    Raises:
        RequestRejectedError: The frame needs pyarrow, or has two columns of the same name.
    """
    rows = given
    if hasattr(given, "itertuples") and hasattr(given, "columns"):  # pandas
        read = functools.partial(given.itertuples, index=False, name=None)
        rows = _FrameRows(given.columns, len(given), read)
    elif hasattr(given, "iter_rows") and hasattr(given, "columns"):  # polars
        rows = _FrameRows(given.columns, len(given), given.iter_rows)
    elif hasattr(given, "column_names") and hasattr(given, "to_pylist"):  # pyarrow
        rows = _FrameRows(given.column_names, given.num_rows, lambda: _arrow_rows(given))
    elif hasattr(given, "to_pylist"):  # a column of pyarrow
        rows = given.to_pylist()
    elif type(given).__name__ == "LazyFrame":
        refuse("A LazyFrame has no rows yet; call its collect().")
    elif not isinstance(given, Iterable | AsyncIterable) and _is_frame(given):
        rows = rows_of(_as_arrow(given))
    return rows


def _is_frame(given: Any) -> bool:
    """Return whether it speaks a protocol of frames; columns do so, too, and are iterable."""
    return hasattr(given, "__arrow_c_stream__") or hasattr(given, "__dataframe__")


def _arrow_rows(table: Any) -> Iterator[tuple[Any, ...]]:
    for start in range(0, table.num_rows, _CHUNK):
        columns = [column.to_pylist() for column in table.slice(start, _CHUNK).columns]
        yield from zip(*columns, strict=True)


def _as_arrow(frame: Any) -> Any:
    try:
        import pyarrow  # noqa: PLC0415, ICN001 - an extra
        import pyarrow.interchange  # noqa: PLC0415 - an extra
    except ImportError:
        refuse(f'A {type(frame).__name__} is read with pyarrow: install "aigateway[parquet]".')
    if hasattr(frame, "__arrow_c_stream__"):
        return pyarrow.table(frame)
    return pyarrow.interchange.from_dataframe(frame)


def _present(value: Any) -> Any:
    """Return a value of a frame as Python has it; None for one that is missing."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    kind = type(value)
    if kind.__name__ in _MISSING:
        return None
    return _present(value.tolist()) if kind.__module__ == "numpy" else value


def _check_template(template: object) -> None:
    if not isinstance(template, str):
        refuse(f"template must be a text, not {type(template).__name__}.")
    fix = "write {{ and }} for braces, and {name} for a field"
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError:
        names = None
    if names is None:
        refuse(f"The template's braces are not balanced; {fix}.")
    if any(not name or name[0].isdigit() for name in names):
        refuse(f"The template has a field without a name; {fix}.")
    if any("._" in name for name in names):
        refuse(f"The template reads a private attribute of a value; {fix}.")
