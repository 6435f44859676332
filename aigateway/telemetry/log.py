"""Log events through structlog, in the application's way of logging.

An application that has configured structlog gets the events there. One that has not gets them in
the standard library's logger `aigateway`, as `event='provider.failed' provider='...'` lines; with
no logging configured at all, nothing is printed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, get_args

import structlog

from aigateway.errors import ProviderFailure
from aigateway.events import (
    CacheHit,
    CircuitChanged,
    Event,
    ProviderDisabled,
    ProviderEnabled,
    ProviderFailed,
    RequestFailed,
    RequestRetrying,
)

__all__ = ["LogHook", "report_broken_hook"]

LOGGER_NAME = "aigateway"

_stdlib = logging.getLogger(LOGGER_NAME)
# A library must not print; without this, warnings would reach stderr in an unconfigured process.
_stdlib.addHandler(logging.NullHandler())

_LEVELS: dict[type, int] = {
    CacheHit: logging.DEBUG,
    ProviderFailed: logging.WARNING,
    ProviderDisabled: logging.ERROR,
    ProviderEnabled: logging.WARNING,
    CircuitChanged: logging.WARNING,
    RequestRetrying: logging.WARNING,
    RequestFailed: logging.ERROR,
}
"""Everything else is INFO: nothing that needs a person."""

_FIELDS = {
    kind: tuple(field.name for field in fields(kind) if field.name != "name")
    for kind in get_args(Event)
}


class LogHook:
    """Writes events to the log."""

    __slots__ = ()

    def wants(self, kind: type[Event]) -> bool:
        """Whether an event of this kind would be written; lets the caller not make it."""
        return structlog.is_configured() or _stdlib.isEnabledFor(_LEVELS.get(kind, logging.INFO))

    def on_event(self, event: Event) -> None:
        """Write one event."""
        level = _LEVELS.get(type(event), logging.INFO)
        if structlog.is_configured() or _stdlib.isEnabledFor(level):
            _logger().log(level, event.name, **_plain(event))

    def content(
        self, request_id: str, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]
    ) -> None:
        """Write a prompt and its answers. Nothing calls this unless the user asked for it."""
        if structlog.is_configured() or _stdlib.isEnabledFor(logging.INFO):
            _logger().info(
                "request.content", request_id=request_id, messages=list(messages), texts=list(texts)
            )


def report_broken_hook(hook: object) -> None:
    """Log that a hook raised; to be called while its exception is being handled."""
    _logger().exception("hook.raised", hook=type(hook).__qualname__)


def _logger() -> Any:
    if structlog.is_configured():
        return structlog.get_logger(LOGGER_NAME)
    return _logger_over_stdlib()


@functools.cache
def _logger_over_stdlib() -> Any:
    return structlog.wrap_logger(
        _stdlib,
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _plain(event: Event) -> dict[str, Any]:
    return {name: _plain_value(getattr(event, name)) for name in _FIELDS[type(event)]}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, ProviderFailure):
        return str(value)
    if isinstance(value, float):
        return round(value, 6)
    return value
