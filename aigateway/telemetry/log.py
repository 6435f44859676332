"""Log events through structlog, as the application has configured logging.

With structlog configured, events go there. Otherwise they go to the standard library's logger
`aigateway`, as `event='provider.failed' provider='...'` lines; without any logging configuration,
nothing is printed.

Those lines are what structlog's `KeyValueRenderer` writes. They are formatted here, since a chain
of processors costs several times as much.
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
        level = _LEVELS.get(kind, logging.INFO)
        if structlog.is_configured():
            if kind in ON_REQUEST and not _structlog_shows_debug():
                return  # made for another hook; too frequent to be formatted for nothing
            name, *values = _plain(event)
            named = dict(zip(_FIELDS[kind], values, strict=True))
            structlog.get_logger(LOGGER_NAME).log(level, name, **named)
        elif _stdlib.isEnabledFor(level):
            _write(level, _LINES[kind] % _plain(event))

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


def _write(level: int, line: str) -> None:
    """Pass a finished line to the logger, without a walk up the stack: all come from here."""
    code = _write.__code__
    _stdlib.handle(
        _stdlib.makeRecord(
            LOGGER_NAME, level, code.co_filename, code.co_firstlineno, line, (), None, code.co_name
        )
    )


def _line(name: str, values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value!r}" for key, value in {"event": name, **values}.items())


def _plain(event: Event) -> tuple[Any, ...]:
    """Return the event's name and the values of its fields."""
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
