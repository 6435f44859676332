"""Logs as JSON: one object on one line for each event, on stderr.

For the service, and for applications that have no opinion of their own on logs. Everything that
the standard library's loggers say (uvicorn's too) goes the same way.

No line holds a prompt, an answer or a key. What an exception says may quote any of them, so of a
foreign one only its class and where it came from are told; the words of our own errors are safe.
The one exception is `log_prompts=True`, which is what that setting is for.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog

from aigateway.errors import GatewayError

__all__ = ["configure_json_logs", "silence_libraries"]

_SERVERS = ("uvicorn", "uvicorn.access", "uvicorn.error", "uvicorn.asgi")
"""Loggers that come with handlers of their own, if somebody lets them."""

_MUTED = frozenset(
    {"LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "anthropic", "httpcore", "httpx", "openai"}
)
"""Loggers of libraries below us, which quote what they send; the gateway tells what comes of it."""

_ACCESS = "uvicorn.access"
_NAME = re.compile(r"([a-z_]+\.[a-z_]+): (.*)", re.DOTALL)
_FRAMES = 20
"""The last of a traceback; that of a framework is long."""


def configure_json_logs(level: int | str = "INFO", stream: TextIO | None = None) -> None:
    """Send all logs of this process to stderr, as JSON.

    Each line has `timestamp` (UTC, ISO 8601), `level`, `event`, `logger`, and the event's own
    fields: `request_id`, `provider`, `attempt`, ...

    It replaces structlog's configuration and the root logger's handlers. Start uvicorn with
    `log_config=None`, so that it leaves them alone.

    Args:
        level: The least to be written: a name or a number of `logging`.
        stream: Where to; None is stderr, as it is when a line is written.

    Raises:
        ValueError: There is no such level.
    """
    least = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
    if least is None:
        raise ValueError(
            f"There is no log level {level!r}; use DEBUG, INFO, WARNING, ERROR or CRITICAL."
        )
    out = _Lines(stream)
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
    silence_libraries()
    root = logging.getLogger()
    root.handlers[:] = [_Handler(out)]
    root.setLevel(least)
    for name in _SERVERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def silence_libraries() -> None:
    """Let no line through of libraries below us, which quote what they send.

    litellm's loggers bring handlers of their own with them, which nobody else can bar: so they are
    silenced themselves, wherever their lines would go.
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
    """Writes whole lines."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, told: Mapping[str, Any]) -> None:
        try:
            line = orjson.dumps(told, default=_name_of, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # half an emoji, a number beyond 64 bits
            line = json.dumps(told, default=_name_of)
        stream = sys.stderr if self._stream is None else self._stream
        # Nobody reads any more, and that is no reason to fail a request.
        with contextlib.suppress(OSError, ValueError):
            stream.write(line + "\n")
            stream.flush()


class _Logger:
    """What structlog's bound loggers hand their finished events to."""

    def __init__(self, out: _Lines, name: str) -> None:
        self._out = out
        self.name = name

    def msg(self, told: Mapping[str, Any]) -> None:
        self._out.write(told)

    debug = info = warning = warn = error = critical = fatal = exception = log = failure = err = msg


def _with_logger_name(
    logger: Any, _method: str, told: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    told["logger"] = getattr(logger, "name", "")
    return told


def _rendered(
    _logger: Any, _method: str, told: MutableMapping[str, Any]
) -> tuple[tuple[dict[str, Any]], dict[str, Any]]:
    """The finished event, as the one argument of `_Logger`."""
    error = told.pop("exc_info", None)
    fields = _in_order(told.pop("level"), told.pop("event", ""), told.pop("logger"))
    fields |= told
    fields |= _of_error(sys.exc_info() if error is True else error)
    return (fields,), {}


class _Handler(logging.Handler):
    """The same for the standard library's records."""

    def __init__(self, out: _Lines) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        if not _may_speak(record):
            return
        try:
            event, name = _event_of(record)
            fields = _named(_in_order(record.levelname.lower(), event, name, record.created))
            if record.name == _ACCESS:
                fields |= _access(record)
            fields |= _of_error(record.exc_info)
            self._out.write(fields)
        except Exception:  # noqa: BLE001 - a line that cannot be written must not fail what it tells of
            self.handleError(record)


def _event_of(record: logging.LogRecord) -> tuple[str, str]:
    event = "http.request" if record.name == _ACCESS else record.getMessage()
    return event, record.name


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    """Of a line of ours that begins with the name of an event (`worker.died: ...`): that name."""
    named = _NAME.fullmatch(fields["event"]) if fields["logger"].startswith("aigateway") else None
    if named is None:
        return fields
    return fields | {"event": named[1], "message": named[2]}


def _in_order(level: str, event: Any, logger: str, at: float | None = None) -> dict[str, Any]:
    moment = dt.datetime.now(dt.UTC) if at is None else dt.datetime.fromtimestamp(at, dt.UTC)
    stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": stamp, "level": level, "event": event, "logger": logger}


def _access(record: logging.LogRecord) -> dict[str, Any]:
    """The five values that uvicorn tells, without the query, in which people put keys."""
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
    """What is told of an exception: its class, where it came from, and the words of ours."""
    if isinstance(given, BaseException):
        given = (type(given), given, given.__traceback__)
    if not isinstance(given, tuple) or len(given) != 3 or given[1] is None:
        return {}
    error: BaseException = given[1]
    told: dict[str, Any] = {
        "exception": type(error).__name__,
        "traceback": list(_frames(given[2])),
    }
    if isinstance(error, GatewayError):
        told["message"] = str(error)
    return told


def _frames(trace: TracebackType | None) -> Iterator[str]:
    for frame in traceback.extract_tb(trace)[-_FRAMES:]:
        yield f"{frame.filename}:{frame.lineno} in {frame.name}"


def _name_of(value: object) -> str:
    return f"<{type(value).__name__}>"
