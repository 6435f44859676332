"""Log events through structlog, in the application's way of logging.

An application that has configured structlog gets the events there. One that has not gets them in
the standard library's logger `aigateway`, as `event='provider.failed' provider='...'` lines; with
no logging configured at all, nothing is printed.

Those lines are what structlog's `KeyValueRenderer` would write. They are put together here, because
a chain of processors for each answer costs several times what the line itself does.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from operator import attrgetter
from typing import Any, get_args

import structlog

from aigateway.errors import ProviderFailure
from aigateway.events import (
    ON_REQUEST,
    CacheHit,
    CircuitChanged,
    CircuitForced,
    Event,
    LoopStalled,
    ProviderDegraded,
    ProviderDisabled,
    ProviderEnabled,
    ProviderFailed,
    ProviderRecovered,
    RequestFailed,
    RequestRetrying,
)
from aigateway.messages import Usage

__all__ = ["SERVER_LOGGER", "LogHook", "log_event", "report_broken_hook"]

LOGGER_NAME = "aigateway"
SERVER_LOGGER = "aigateway.server"

_stdlib = logging.getLogger(LOGGER_NAME)
# A library must not print; without this, warnings would reach stderr in an unconfigured process.
_stdlib.addHandler(logging.NullHandler())

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
    RequestRetrying: logging.WARNING,
    RequestFailed: logging.ERROR,
}
"""Everything else is INFO: nothing that needs a person."""

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
"""Which values of an event are not written as they are."""


class LogHook:
    """Writes events to the log."""

    __slots__ = ()

    def wants(self, kind: type[Event]) -> bool:
        """Whether an event of this kind would be written; lets the caller not make it."""
        if structlog.is_configured():
            return kind not in ON_REQUEST or _structlog_shows_debug()
        return _stdlib.isEnabledFor(_LEVELS.get(kind, logging.INFO))

    def wants_every_call(self) -> bool:
        """The same for `ON_REQUEST`, which are asked for more often than written."""
        if structlog.is_configured():
            return _structlog_shows_debug()
        return _stdlib.isEnabledFor(logging.DEBUG)

    def on_event(self, event: Event) -> None:
        """Write one event."""
        kind = type(event)
        level = _LEVELS.get(kind, logging.INFO)
        if structlog.is_configured():
            if kind in ON_REQUEST and not _structlog_shows_debug():
                return  # made for somebody else, and too many to be put together for nothing
            name, *values = _plain(event)
            told = dict(zip(_FIELDS[kind], values, strict=True))
            structlog.get_logger(LOGGER_NAME).log(level, name, **told)
        elif _stdlib.isEnabledFor(level):
            _write(level, _LINES[kind] % _plain(event))

    def content(
        self, request_id: str, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]
    ) -> None:
        """Write a prompt and its answers. Nothing calls this unless the user asked for it."""
        told = {"request_id": request_id, "messages": list(messages), "texts": list(texts)}
        if structlog.is_configured():
            structlog.get_logger(LOGGER_NAME).info("request.content", **told)
        elif _stdlib.isEnabledFor(logging.INFO):
            _write(logging.INFO, _line("request.content", told))


_shows_debug: tuple[object, bool] = (None, False)
"""structlog's kind of logger, and whether it lets DEBUG through; to ask one takes microseconds."""


def _structlog_shows_debug() -> bool:
    """Whether the application's structlog says that it lets events of level DEBUG through."""
    global _shows_debug  # noqa: PLW0603 - it follows what is one for the whole process
    kind = structlog.get_config()["wrapper_class"]
    if hasattr(kind, "isEnabledFor"):  # it leaves that to the standard library
        return _stdlib.isEnabledFor(logging.DEBUG)
    if not hasattr(kind, "is_enabled_for"):  # it does not say
        return False
    if kind is not _shows_debug[0]:
        shows = structlog.get_logger(LOGGER_NAME).is_enabled_for(logging.DEBUG)
        _shows_debug = (kind, bool(shows))
    return _shows_debug[1]


def report_broken_hook(hook: object) -> None:
    """Log that a hook raised; to be called while its exception is being handled."""
    told = {"hook": type(hook).__qualname__}
    if structlog.is_configured():
        structlog.get_logger(LOGGER_NAME).exception("hook.raised", **told)
    elif _stdlib.isEnabledFor(logging.ERROR):
        told["exception"] = traceback.format_exc().rstrip("\n")
        _write(logging.ERROR, _line("hook.raised", told))


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
        told = {"event": event, "fields": {"message": message, **fields}}
        _server.log(level, "%s: %s", event, message, exc_info=exc_info, extra=told, stacklevel=2)


def _write(level: int, line: str) -> None:
    """Give the logger a finished line.

    All lines come from here, so nobody need walk up the stack to find out where.
    """
    code = _write.__code__
    _stdlib.handle(
        _stdlib.makeRecord(
            LOGGER_NAME, level, code.co_filename, code.co_firstlineno, line, (), None, code.co_name
        )
    )


def _line(name: str, told: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value!r}" for key, value in {"event": name, **told}.items())


def _plain(event: Event) -> tuple[Any, ...]:
    """The event's name and the values of its fields."""
    kind = type(event)
    values = list(_VALUES[kind](event))
    for place in _MADE_PLAIN[kind]:
        values[place] = _plain_value(values[place])
    return tuple(values)


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
