"""Logs as JSON: one object on one line for each event, on stderr.

For the service, and for applications without a logging setup of their own. Records of all loggers
of the standard library, uvicorn's too, take the same form.

No line holds a prompt, an answer or a key. The message of an exception may quote any of them, so of
a foreign exception only its class and traceback are logged; our own messages are safe. The one
exception is `log_prompts=True`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog

from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import GatewayError
from aigateway.events import RequestServed
from aigateway.telemetry.log import (
    SERVER_LOGGER,
    LineHandler,
    StructlogLane,
    WaitingLines,
    in_pieces,
)

__all__ = ["configure_json_logs", "configure_service_logs"]

_SERVERS = ("uvicorn", "uvicorn.access", "uvicorn.error", "uvicorn.asgi")
"""Loggers that may have handlers of their own."""

_MUTED = frozenset(
    {"LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "anthropic", "httpcore", "httpx", "openai"}
)
"""Loggers of libraries that quote what they send; the gateway logs the results itself."""

_ACCESS = "uvicorn.access"
_FRAMES = 20
"""The last frames of a traceback that are logged."""


def configure_json_logs(level: int | str = "INFO", stream: TextIO | None = None) -> None:
    """Send all logs of this process to stderr, as JSON.

    Each line has `timestamp` (UTC, ISO 8601), `level`, `event`, `logger`, and the event's own
    fields: `request_id`, `provider`, `attempt`, ...

    It replaces structlog's configuration and the root logger's handlers. Start uvicorn with
    `log_config=None`, so that it leaves them alone.

    Args:
        level: The lowest level to write: a name or a number of `logging`.
        stream: Where to; None is the current `sys.stderr`.

    Raises:
        ValueError: There is no such level.
    """
    least = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
    if least is None:
        raise ValueError(
            f"There is no log level {level!r}; use DEBUG, INFO, WARNING, ERROR or CRITICAL."
        )
    _configure(_Lines(stream), least)


def _configure(out: _Lines, least: int) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _with_logger_name,
            _rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *names: _Logger(out, names[0] if names else ""),
        cache_logger_on_first_use=False,
    )
    StructlogLane(out.write_event, least)
    _silence_libraries()
    root = logging.getLogger()
    root.handlers[:] = [out.handler]
    root.setLevel(least)
    for name in _SERVERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


_TEXT = "%(asctime)s %(levelname)-7s [%(process)d] %(message)s"


def configure_service_logs(*, as_json: bool) -> None:
    """Send the log of `aigateway serve`, and of processes that it forks, to stderr.

    Other loggers write from WARNING on: at lower levels they repeat ours, and may quote secrets.
    """
    if as_json:
        _configure(_Lines(None, together=True), logging.INFO)
    else:
        handler = LineHandler(sys.stderr, _TEXT, _may_speak)
        logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
        logging.getLogger("aigateway").setLevel(logging.INFO)
        _silence_libraries()
    # Below that it logs requests that are not HTTP, which any port scan sends.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def _silence_libraries() -> None:
    """Drop the records of libraries that quote what they send.

    litellm's loggers have handlers of their own, so the loggers themselves need a filter.
    """
    for name in _MUTED:
        logging.getLogger(name).addFilter(_nothing)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_may_speak)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _may_speak(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] not in _MUTED


class _Lines:
    """Writes whole lines.

    Args:
        stream: Where to; None is the current `sys.stderr`.
        together: Whether those of served requests are written many together.

    Attributes:
        handler: Writes records here. Its lock is held for each line; `logging` renews it in a fork.
    """

    def __init__(self, stream: TextIO | None, *, together: bool = False) -> None:
        self._stream = stream
        self._together = together
        self.handler = _Handler(self)
        assert self.handler.lock is not None  # noqa: S101 - `logging.Handler` makes one
        self._lock = self.handler.lock
        self._waiting = WaitingLines(self._write_all, self._lock)

    def write(self, values: Mapping[str, Any]) -> None:
        with self._lock:
            self.flush()
            self._write_all((values,))

    def flush(self) -> None:
        """Write the lines that wait."""
        self._waiting.write()

    def _write_all(self, lines: Sequence[Mapping[str, Any]]) -> None:
        texts = [_line(values) for values in lines]
        stream = sys.stderr if self._stream is None else self._stream
        # A closed stream must not fail a request.
        with contextlib.suppress(OSError, ValueError):
            for piece in in_pieces(texts):
                stream.write("".join(texts[piece]))
                stream.flush()

    def write_event(self, values: MutableMapping[str, Any], level: str, logger: str) -> None:
        """Write an event as structlog's bound loggers do, by the same processors."""
        structlog.contextvars.merge_contextvars(None, level, values)
        values["level"], values["logger"] = level, logger
        waits = self._together and values.get("event") == RequestServed.name
        with self._lock:  # from its time on
            finished = _finished(values)
            if not waits or not self._waiting.add(finished):
                self.write(finished)


def _line(values: Mapping[str, Any]) -> str:
    try:
        line = orjson.dumps(values, default=_name_of, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half an emoji, a number beyond 64 bits
        line = json.dumps(values, default=_name_of)
    return line + "\n"


class _Logger:
    """Writes the finished events of structlog's bound loggers."""

    def __init__(self, out: _Lines, name: str) -> None:
        self._out = out
        self.name = name

    def msg(self, values: Mapping[str, Any]) -> None:
        self._out.write(values)

    debug = info = warning = warn = error = critical = fatal = exception = log = failure = err = msg


def _with_logger_name(
    logger: Any, _method: str, values: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    values["logger"] = getattr(logger, "name", "")
    return values


def _rendered(
    _logger: Any, _method: str, values: MutableMapping[str, Any]
) -> tuple[tuple[dict[str, Any]], dict[str, Any]]:
    """Return the finished event, as the one argument of `_Logger`."""
    return (_finished(values),), {}


def _finished(values: MutableMapping[str, Any]) -> dict[str, Any]:
    error = values.pop("exc_info", None)
    fields = _in_order(values.pop("level"), values.pop("event", ""), values.pop("logger"))
    fields |= values
    if error is not None:
        fields |= _of_error(sys.exc_info() if error is True else error)
    return fields


class _Handler(logging.Handler):
    """Writes records of the standard library."""

    def __init__(self, out: _Lines) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        if not _may_speak(record):
            return
        try:
            level = record.levelname.lower()
            fields = _in_order(level, _event_of(record), record.name, record.created)
            if record.name == _ACCESS:
                fields |= _access(record)
            elif record.name == SERVER_LOGGER:
                fields |= getattr(record, "fields", {})  # of `log_event`
            fields |= _of_error(record.exc_info)
            self._out.write(fields)
        except Exception:  # noqa: BLE001 - a line that cannot be written must not fail its caller
            self.handleError(record)

    def flush(self) -> None:
        """Write the lines that wait; `logging.shutdown` asks for it."""
        self._out.flush()


def _event_of(record: logging.LogRecord) -> str:
    if record.name == _ACCESS:
        return "http.request"
    event = getattr(record, "event", None) if record.name == SERVER_LOGGER else None
    return record.getMessage() if event is None else str(event)


def _in_order(level: str, event: Any, logger: str, at: float | None = None) -> dict[str, Any]:
    at = SYSTEM_CLOCK.wall() if at is None else at
    stamp = f"{_second(int(at))}.{int(at % 1 * 1000):03d}Z"
    return {"timestamp": stamp, "level": level, "event": event, "logger": logger}


@functools.lru_cache(maxsize=1)  # many lines have the same
def _second(at: int) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _access(record: logging.LogRecord) -> dict[str, Any]:
    """Return uvicorn's five values, without the query, which may hold a key."""
    args = record.args
    if not isinstance(args, tuple) or len(args) != 5:
        return {"message": record.getMessage().partition("?")[0]}
    client, method, path, _, status = args
    return {
        "client": client,
        "method": method,
        "path": str(path).partition("?")[0],
        "status": status,
    }


def _of_error(given: Any) -> dict[str, Any]:
    """Return class and traceback of an exception, and the message of one of ours."""
    if isinstance(given, BaseException):
        given = (type(given), given, given.__traceback__)
    if not isinstance(given, tuple) or len(given) != 3 or given[1] is None:
        return {}
    error: BaseException = given[1]
    values: dict[str, Any] = {
        "exception": type(error).__name__,
        "traceback": list(_frames(given[2])),
    }
    if isinstance(error, GatewayError):
        values["message"] = str(error)
    return values


def _frames(trace: TracebackType | None) -> Iterator[str]:
    for frame in traceback.extract_tb(trace)[-_FRAMES:]:
        yield f"{frame.filename}:{frame.lineno} in {frame.name}"


def _name_of(value: object) -> str:
    return f"<{type(value).__name__}>"
