"""Hands events to whoever listens, and lets no listener do harm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aigateway.events import ON_REQUEST, Event, Hook
from aigateway.messages import ChatRequest, EmbeddingRequest
from aigateway.telemetry.log import LogHook, report_broken_hook
from aigateway.telemetry.traces import RequestTraces, is_tracer

__all__ = ["Emitter"]


class Emitter:
    """The log and the application's hooks, in this order.

    Args:
        hooks: The application's own listeners.
    """

    __slots__ = ("_followed", "_hooks", "_listeners", "_log", "_tracers")

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._log = LogHook()
        self._hooks = tuple(hooks)
        self._tracers = tuple(hook for hook in self._hooks if is_tracer(hook))
        self._listeners: dict[type[Event], tuple[Hook, ...]] = {}
        self._followed = bool(self._tracers) or any(
            len(self._listeners_of(kind)) > 1 for kind in ON_REQUEST
        )

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody listens to this kind of event: ask before you build a frequent one."""
        listeners = self._listeners.get(kind) or self._listeners_of(kind)
        return len(listeners) > 1 or self._log.wants(kind)

    def follows_requests(self) -> bool:
        """Whether anybody wants to know of each request and each attempt, well or not."""
        return self._followed or self._log.wants_every_call()

    def emit(self, event: Event) -> None:
        """Tell everybody. What a listener raises is logged and goes no further."""
        kind = type(event)
        for hook in self._listeners.get(kind) or self._listeners_of(kind):
            try:
                hook.on_event(event)
            except Exception:  # noqa: BLE001 - a listener's fault must not fail the request it listens to
                report_broken_hook(hook)

    def trace(
        self, request: ChatRequest | EmbeddingRequest, *, streamed: bool
    ) -> RequestTraces | None:
        """Let the tracers follow a request; None if there are none."""
        return RequestTraces(self._tracers, request, streamed=streamed) if self._tracers else None

    def log_content(
        self, request_id: str, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]
    ) -> None:
        """Write a prompt and its answers to the log. Only for `log_prompts=True`."""
        self._log.content(request_id, messages, texts)

    def _listeners_of(self, kind: type[Event]) -> tuple[Hook, ...]:
        listeners = (self._log, *(hook for hook in self._hooks if _wants(hook, kind)))
        self._listeners[kind] = listeners
        return listeners


def _wants(hook: Hook, kind: type[Event]) -> bool:
    wanted = getattr(hook, "wants", None)
    return kind not in ON_REQUEST if wanted is None else kind in wanted
