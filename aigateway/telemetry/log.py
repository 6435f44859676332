"""Log events through structlog, as the application has configured logging.

With structlog configured, events go there. Otherwise they go to the standard library's logger
`aigateway`, as `event='provider.failed' provider='...'` lines; without any logging configuration,
nothing is printed.

Those lines are what structlog's `KeyValueRenderer` writes. They are formatted here, since a chain
of processors costs several times as much.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from enum import Enum
from operator import attrgetter
from typing import Any, Generic, TextIO, TypeVar, get_args

import structlog

from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ProviderFailure
from aigateway.events import (
    ON_REQUEST,
    CacheHit,
    CircuitChanged,
    CircuitForced,
    Event,
    FleetLost,
    FleetRefused,
    LoopStalled,
    ProviderDegraded,
    ProviderDisabled,
    ProviderEnabled,
    ProviderFailed,
    ProviderRecovered,
    RequestFailed,
    RequestRetrying,
    RequestServed,
)
from aigateway.messages import Usage

__all__ = [
    "SERVER_LOGGER", "LineHandler", "LogHook", "StructlogLane", "WaitingLines", "in_pieces",
    "log_event", "report_broken_hook",
]  # fmt: skip

LOGGER_NAME = "aigateway"
SERVER_LOGGER = "aigateway.server"

_stdlib = logging.getLogger(LOGGER_NAME)
# A library must not print; without this, warnings would reach stderr in an unconfigured process.
_NOWHERE = logging.NullHandler()
_stdlib.addHandler(_NOWHERE)

_server = logging.getLogger(SERVER_LOGGER)

_LEVELS: dict[type, int] = {
    CacheHit: logging.DEBUG,
    **dict.fromkeys(ON_REQUEST, logging.DEBUG),
    ProviderFailed: logging.WARNING,
    ProviderDisabled: logging.ERROR,
    ProviderEnabled: logging.WARNING,
    ProviderDegraded: logging.WARNING,
    ProviderRecovered: logging.WARNING,
    LoopStalled: logging.WARNING,
    CircuitChanged: logging.WARNING,
    CircuitForced: logging.WARNING,
    FleetLost: logging.WARNING,
    FleetRefused: logging.ERROR,
    RequestRetrying: logging.WARNING,
    RequestFailed: logging.ERROR,
}
"""Other events are INFO."""

_FIELDS = {
    kind: tuple(field.name for field in fields(kind) if field.name != "name")
    for kind in get_args(Event)
}
_VALUES = {kind: attrgetter("name", *names) for kind, names in _FIELDS.items()}
_LINES = {
    kind: " ".join(f"{name}=%r" for name in ("event", *names)) for kind, names in _FIELDS.items()
}
_AS_THEY_ARE = frozenset(kind + none for kind in ("str", "int", "bool") for none in ("", " | None"))
_MADE_PLAIN = {
    kind: tuple(
        place
        for place, name in enumerate(("name", *names))
        if name != "name" and kind.__dataclass_fields__[name].type not in _AS_THEY_ARE
    )
    for kind, names in _FIELDS.items()
}
"""Places of the values that `_plain_value` converts."""


class LogHook:
    """Writes events to the log."""

    __slots__ = ()

    def wants(self, kind: type[Event]) -> bool:
        """Return whether an event of this kind would be written; if not, it need not be made."""
        if structlog.is_configured():
            return kind not in ON_REQUEST or _structlog_shows_debug()
        return _stdlib.isEnabledFor(_LEVELS.get(kind, logging.INFO))

    def wants_every_call(self) -> bool:
        """Return whether events in `ON_REQUEST` would be written."""
        if structlog.is_configured():
            return _structlog_shows_debug()
        return _stdlib.isEnabledFor(logging.DEBUG)

    def on_event(self, event: Event) -> None:
        """Write one event."""
        kind = type(event)
        self.write(kind, _VALUES[kind](event))

    def write(self, kind: type[Event], values: Sequence[Any]) -> None:
        """Write an event that need not be made.

        Args:
            kind: Its class.
            values: Its name, and the values of its fields in order.
        """
        level = _LEVELS.get(kind, logging.INFO)
        if structlog.is_configured():
            if kind in ON_REQUEST and not _structlog_shows_debug():
                return  # made for another hook; too frequent to be formatted for nothing
            name, *plain = _plain(kind, values)
            named = dict(zip(_FIELDS[kind], plain, strict=True))
            if StructlogLane.latest is None or not StructlogLane.latest.write(level, name, named):
                structlog.get_logger(LOGGER_NAME).log(level, name, **named)
        elif _stdlib.isEnabledFor(level):
            if kind is RequestServed:
                _write_served(values)
            else:
                _write(level, _LINES[kind] % _plain(kind, values))

    def write_served(self, values: Sequence[Any]) -> bool:
        """Write a `RequestServed` as `write` does, unless events in `ON_REQUEST` are written.

        Returns:
            False if they are: each call then has more lines than this one.
        """
        if structlog.is_configured():
            if _structlog_shows_debug():
                return False
            self.write(RequestServed, values)
        elif _stdlib.isEnabledFor(logging.INFO):
            if _stdlib.isEnabledFor(logging.DEBUG):
                return False
            _write_served(values)
        return True

    def content(
        self, request_id: str, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]
    ) -> None:
        """Write a prompt and its answers. Only called with `log_prompts=True`."""
        values = {"request_id": request_id, "messages": list(messages), "texts": list(texts)}
        if structlog.is_configured():
            structlog.get_logger(LOGGER_NAME).info("request.content", **values)
        elif _stdlib.isEnabledFor(logging.INFO):
            _write(logging.INFO, _line("request.content", values))


_shows_debug: tuple[object, bool] = (None, False)
"""structlog's wrapper class and whether it lets DEBUG through: a cache, since asking is slow."""


def _structlog_shows_debug() -> bool:
    """Return whether the application's structlog lets events of level DEBUG through."""
    global _shows_debug  # noqa: PLW0603 - structlog's configuration is global, too
    kind = structlog.get_config()["wrapper_class"]
    if hasattr(kind, "isEnabledFor"):  # the standard library decides
        return _stdlib.isEnabledFor(logging.DEBUG)
    if not hasattr(kind, "is_enabled_for"):  # unknown
        return False
    if kind is not _shows_debug[0]:
        shows = structlog.get_logger(LOGGER_NAME).is_enabled_for(logging.DEBUG)
        _shows_debug = (kind, bool(shows))
    return _shows_debug[1]


def report_broken_hook(hook: object) -> None:
    """Log that a hook raised; call it while its exception is being handled."""
    values = {"hook": type(hook).__qualname__}
    if structlog.is_configured():
        structlog.get_logger(LOGGER_NAME).exception("hook.raised", **values)
    elif _stdlib.isEnabledFor(logging.ERROR):
        values["exception"] = traceback.format_exc().rstrip("\n")
        _write(logging.ERROR, _line("hook.raised", values))


def log_event(
    level: int, event: str, text: str, *, exc_info: bool = False, **fields: object
) -> None:
    """Log something that happened to the service itself.

    A text log shows `event: text`; a JSON log has the name, the text and each field by itself.

    Args:
        level: Of `logging`.
        event: Its stable name, such as `worker.died`.
        text: A sentence for people, with `{field}` where a field's value stands.
        exc_info: Log the exception that is being handled, too.
        fields: Plain values.
    """
    if _server.isEnabledFor(level):
        message = text.format(**fields)
        extra = {"event": event, "fields": {"message": message, **fields}}
        _server.log(level, "%s: %s", event, message, exc_info=exc_info, extra=extra, stacklevel=2)


_SOON_SECONDS = 0.05
"""The line of a served request waits so long for others: to write one costs more than to make it,
and each that comes alone makes the CPU forget what the requests need."""

_MOST_WAITING = 256
"""Lines that wait at most."""

T = TypeVar("T")


class WaitingLines(Generic[T]):
    """Lines of served requests, which are written many together.

    Args:
        write: Writes them.
        lock: Of what they go to, reentrant: no other line comes between taking and writing them.

    Attributes:
        lines: Those that wait.
    """

    def __init__(
        self, write: Callable[[list[T]], object], lock: AbstractContextManager[object]
    ) -> None:
        self._write = write
        self._lock = lock
        self.lines: deque[T] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None  # whose timer writes them

    def add(self, line: T) -> bool:
        """Add a line, on the event loop's thread; return False where there is no loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self.lines.append(line)
        if len(self.lines) >= _MOST_WAITING:
            self.write()
        elif len(self.lines) == 1 or loop is not self._loop:
            self._loop = loop
            loop.call_later(_SOON_SECONDS, self.write)
        return True

    def write(self) -> None:
        """Write what waits. A thread with a line of its own holds the lock for both."""
        with self._lock:
            if self.lines:
                taken = [self.lines.popleft() for _ in range(len(self.lines))]
                self._write(taken)


_PLACE = "\0"
"""Stands in a line for what differs from the one before."""


def in_pieces(texts: Sequence[str]) -> Iterator[slice]:
    """Return which lines to write at once, so that a pipe of several processes mixes none."""
    first = size = 0
    for place, text in enumerate(texts):
        length = len(text) if text.isascii() else len(text.encode(errors="replace"))
        if size + length > select.PIPE_BUF and place > first:
            yield slice(first, place)
            first, size = place, 0
        size += length
    yield slice(first, len(texts))


class LineHandler(logging.StreamHandler[TextIO]):
    """The one handler of a process that logs text. Finished lines need no record.

    The lines of served requests are written many together, before any other line is: all stand in
    the order of their times, and `logging.shutdown` writes the last.

    Args:
        stream: Where to.
        form: Of a line: what `logging.Formatter` takes, of `asctime`, `levelname`, `process` and
            `message`.
        may_write: Its filter.
    """

    def __init__(
        self, stream: TextIO, form: str, may_write: Callable[[logging.LogRecord], bool]
    ) -> None:
        super().__init__(stream)
        self.setFormatter(logging.Formatter(form))
        self.addFilter(may_write)
        self._form = form + self.terminator
        self._filters = [may_write]
        # The parts of the last line that the next one of this second, level and process has, too.
        self._parts, self._parts_of = ("", "", ""), (-1, 0, 0)
        assert self.lock is not None  # noqa: S101 - `logging.Handler` makes one
        self._lock = self.lock
        self._waiting = WaitingLines(self._write_together, self._lock)

    def write_line(self, level: int, line: str) -> bool:
        """Write a line of `LOGGER_NAME`; return False if it has to take the way of a record.

        That is so where something else may see the record: another handler, a filter, an
        application's own kind of record.
        """
        with self._lock:
            self._waiting.write()
            if not self._sees_alone(level):
                return False
            return self._write(self._finished(level, SYSTEM_CLOCK.wall(), line))

    def write_soon(self, values: Sequence[Any]) -> bool:
        """Write the line of a `RequestServed` with those of the next moment.

        Returns:
            False where it has to be written at once: without a loop, or by the way of a record.
        """
        waiting = self._waiting
        with self._lock:  # another thread's later line must not be written before this one waits
            # With others it may wait in any case: when they are written, that is looked at again.
            if not (waiting.lines or self._sees_alone(logging.INFO)):
                return False
            return waiting.add((SYSTEM_CLOCK.wall(), values))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, after the lines that wait."""
        self._waiting.write()
        super().emit(record)

    def flush(self) -> None:
        """Write the lines that wait, and flush the stream."""
        self._waiting.write()
        super().flush()

    def _sees_alone(self, level: int) -> bool:
        """Return whether nothing but this handler would see a record."""
        return (
            logging.root.handlers == [self]
            and _stdlib.handlers == [_NOWHERE]
            and _stdlib.propagate
            and not _stdlib.filters
            and self.filters == self._filters
            and level >= self.level
            and logging.getLogRecordFactory() is logging.LogRecord
        )

    def _finished(self, level: int, at: float, line: str) -> str:
        second = int(at)
        parts_of = (second, level, os.getpid())
        if parts_of != self._parts_of:
            shown = time.strftime(logging.Formatter.default_time_format, time.localtime(second))
            whole = self._form % {
                "asctime": f"{shown},{_PLACE}",
                "levelname": logging.getLevelName(level),
                "process": parts_of[2],
                "message": _PLACE,
            }
            beginning, middle, end = whole.split(_PLACE)
            self._parts, self._parts_of = (beginning, middle, end), parts_of
        beginning, middle, end = self._parts
        return f"{beginning}{int((at - second) * 1000):03d}{middle}{line}{end}"

    def _write(self, text: str) -> bool:
        try:
            self.stream.write(text)
            self.stream.flush()
        except Exception:  # noqa: BLE001 - the way of a record fails likewise, and reports that
            return False
        return True

    def _write_together(self, served: list[tuple[float, Sequence[Any]]]) -> None:
        lines = [_served_line(values) for _, values in served]
        texts = [
            self._finished(logging.INFO, at, line)
            for (at, _), line in zip(served, lines, strict=True)
        ]
        for piece in in_pieces(texts):
            alone = self._sees_alone(logging.INFO)
            if not alone or not self._write("".join(texts[piece])):
                for line in lines[piece]:
                    _handle(logging.INFO, line)


class StructlogLane:
    """The short way of events into a configuration of structlog that this package has made.

    Bound loggers cost several times as much as the processors that they call.

    Args:
        finish: Writes an event's values, the name of its level and that of its logger.
        level: The lowest one that is written.

    Attributes:
        latest: The one whose configuration was made last.
    """

    latest: StructlogLane | None = None

    def __init__(
        self, finish: Callable[[MutableMapping[str, Any], str, str], object], level: int
    ) -> None:
        self._finish = finish
        self._level = level
        made = structlog.get_config()
        self._made = made | {"processors": list(made["processors"])}
        StructlogLane.latest = self

    def write(self, level: int, name: str, values: dict[str, Any]) -> bool:
        """Write an event of `LOGGER_NAME`; return False if there is another configuration now."""
        if structlog.get_config() != self._made:
            return False
        if level >= self._level:
            values["event"] = name
            self._finish(values, logging.getLevelName(level).lower(), LOGGER_NAME)
        return True


def _write_served(values: Sequence[Any]) -> None:
    """Write a `RequestServed`, with others if that is possible."""
    handlers = logging.root.handlers
    lines = handlers[0] if handlers else None
    if type(lines) is not LineHandler or not lines.write_soon(values):
        _write(logging.INFO, _served_line(values))


def _served_line(values: Sequence[Any]) -> str:
    """Return the line of a `RequestServed`, of which there are most."""
    *others, seconds, tokens, cost_usd = values
    cost_usd = None if cost_usd is None else round(cost_usd, 6)
    return _LINES[RequestServed] % (*others, round(seconds, 6), tokens, cost_usd)


def _write(level: int, line: str) -> None:
    """Pass a finished line to the logger, without a walk up the stack: all come from here."""
    handlers = logging.root.handlers
    if handlers and type(handlers[0]) is LineHandler and handlers[0].write_line(level, line):
        return
    _handle(level, line)


def _handle(level: int, line: str) -> None:
    """Pass a finished line to the logger, as a record."""
    code = _write.__code__
    _stdlib.handle(
        _stdlib.makeRecord(
            LOGGER_NAME, level, code.co_filename, code.co_firstlineno, line, (), None, code.co_name
        )
    )


def _line(name: str, values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value!r}" for key, value in {"event": name, **values}.items())


def _plain(kind: type[Event], values: Sequence[Any]) -> tuple[Any, ...]:
    """Return an event's name and the values of its fields, as they are written."""
    plain = list(values)
    for place in _MADE_PLAIN[kind]:
        plain[place] = _plain_value(plain[place])
    return tuple(plain)


def _plain_value(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, ProviderFailure):
        return str(value)
    if isinstance(value, Usage):
        return {"prompt_tokens": value.prompt_tokens, "completion_tokens": value.completion_tokens}
    return value
