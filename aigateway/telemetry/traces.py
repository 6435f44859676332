"""What follows a request from its beginning to its end, and each of its attempts.

A tracer is a hook that needs more than events: it is told of beginnings too, in the task and
context of the caller, it may give an attempt headers to carry to the vendor, and it sees the
request and the answer themselves. Whether it writes them down is between it and the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from aigateway.events import AttemptEnded, RequestEnded
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings
from aigateway.telemetry.log import report_broken_hook

__all__ = ["Answer", "AttemptTrace", "AttemptTraces", "RequestTrace", "RequestTraces", "Tracer"]

T = TypeVar("T")

Answer = Completion | Embeddings


class AttemptTrace(Protocol):
    """One attempt under way, as one tracer sees it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What is to go to the vendor, in place of the caller's headers of these names.

        Names are in lower case.
        """

    def ended(self, event: AttemptEnded, answer: Answer | None) -> None:
        """It is over; with what it brought, if anything."""


class RequestTrace(Protocol):
    """One request under way, as one tracer sees it.

    An attempt may begin and end after the request itself has: one that others have joined goes on
    for them when its own caller has left.
    """

    def attempt(self, provider: str, vendor: str, model: str, number: int) -> AttemptTrace:
        """An attempt begins: whom it asks, and which of the request's attempts it is, from 1."""

    def ended(self, event: RequestEnded, answer: Answer | None) -> None:
        """It is over; with the answer that the caller got, if there is one."""


@runtime_checkable
class Tracer(Protocol):
    """A hook that follows requests. What it raises is logged and changes nothing."""

    def trace(self, request: ChatRequest | EmbeddingRequest, *, streamed: bool) -> RequestTrace:
        """A request begins. Called in the caller's own context."""


class AttemptTraces:
    """One attempt, as all tracers see it.

    Attributes:
        headers: What they want to go to the vendor.
    """

    __slots__ = ("_traces", "headers")

    def __init__(self, traces: Sequence[AttemptTrace]) -> None:
        self._traces = traces
        self.headers: dict[str, str] = {}
        for trace in traces:
            self.headers.update(_guarded(trace, lambda: trace.headers) or {})  # noqa: B023 - at once

    def ended(self, event: AttemptEnded, answer: object) -> None:
        """Tell them its end."""
        known = answer if isinstance(answer, Completion | Embeddings) else None
        for trace in self._traces:
            _guarded(trace, partial(trace.ended, event, known))


class RequestTraces:
    """One request, as all tracers see it; begins at once.

    Args:
        tracers: Are told.
        request: What is asked.
        streamed: The answer is to come piece by piece.
    """

    __slots__ = ("_traces",)

    def __init__(
        self,
        tracers: Iterable[Tracer],
        request: ChatRequest | EmbeddingRequest,
        *,
        streamed: bool,
    ) -> None:
        begun = (
            _guarded(tracer, partial(tracer.trace, request, streamed=streamed))
            for tracer in tracers
        )
        self._traces = [trace for trace in begun if trace is not None]

    def attempt(self, provider: str, vendor: str, model: str, number: int) -> AttemptTraces:
        """Tell them that an attempt begins."""
        begun = (
            _guarded(trace, partial(trace.attempt, provider, vendor, model, number))
            for trace in self._traces
        )
        return AttemptTraces([trace for trace in begun if trace is not None])

    def ended(self, event: RequestEnded, answer: Answer | None) -> None:
        """Tell them its end."""
        for trace in self._traces:
            _guarded(trace, partial(trace.ended, event, answer))


def _guarded(listener: object, tell: Callable[[], T]) -> T | None:
    try:
        return tell()
    except Exception:  # noqa: BLE001 - a listener's fault must not fail the request it listens to
        report_broken_hook(listener)
        return None
