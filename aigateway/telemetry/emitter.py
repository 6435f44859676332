"""Hands events to whoever listens, and lets no listener do harm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aigateway.events import Event, Hook
from aigateway.telemetry.log import LogHook, report_broken_hook

__all__ = ["Emitter"]


class Emitter:
    """The log and the application's hooks, in this order.

    Args:
        hooks: The application's own listeners.
    """

    __slots__ = ("_hooks", "_listeners", "_log")

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._log = LogHook()
        self._hooks = tuple(hooks)
        self._listeners: tuple[Hook, ...] = (self._log, *self._hooks)

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody listens to this kind of event: ask before you build a frequent one."""
        return bool(self._hooks) or self._log.wants(kind)

    def emit(self, event: Event) -> None:
        """Tell everybody. What a listener raises is logged and goes no further."""
        for hook in self._listeners:
            try:
                hook.on_event(event)
            except Exception:  # noqa: BLE001 - a listener's fault must not fail the request it listens to
                report_broken_hook(hook)

    def log_content(
        self, request_id: str, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]
    ) -> None:
        """Write a prompt and its answers to the log. Only for `log_prompts=True`."""
        self._log.content(request_id, messages, texts)
