"""What follows a request from its beginning to its end, and each of its attempts.

A tracer is a hook that needs more than events: it is told of beginnings too, in the task and
context of the caller, it may give an attempt headers to carry to the vendor, and it sees the
request and the answer themselves. Whether it writes them down is between it and the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeGuard, TypeVar

from aigateway.events import AttemptEnded, RequestEnded
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings
from aigateway.telemetry.log import report_broken_hook

__all__ = [
    "Answer",
    "AttemptTrace",
    "AttemptTraces",
    "RequestTrace",
    "RequestTraces",
    "Tracer",
    "is_tracer",
]

L = TypeVar("L")
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


class Tracer(Protocol):
    """A hook that follows requests. What it raises is logged and changes nothing."""

    def trace_request(
        self, request: ChatRequest | EmbeddingRequest, *, streamed: bool
    ) -> RequestTrace:
        """A request begins. Called in the caller's own context."""


def is_tracer(hook: object) -> TypeGuard[Tracer]:
    """Whether a hook follows requests."""
    return callable(getattr(hook, "trace_request", None))


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
            _guarded(trace, lambda trace: self.headers.update(trace.headers))

    def ended(self, event: AttemptEnded, answer: object) -> None:
        """Tell them its end."""
        known = answer if isinstance(answer, Completion | Embeddings) else None
        for trace in self._traces:
            _guarded(trace, lambda trace: trace.ended(event, known))


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
            _guarded(tracer, lambda tracer: tracer.trace_request(request, streamed=streamed))
            for tracer in tracers
        )
        self._traces = [trace for trace in begun if trace is not None]

    def attempt(self, provider: str, vendor: str, model: str, number: int) -> AttemptTraces:
        """Tell them that an attempt begins."""
        begun = (
            _guarded(trace, lambda trace: trace.attempt(provider, vendor, model, number))
            for trace in self._traces
        )
        return AttemptTraces([trace for trace in begun if trace is not None])

    def ended(self, event: RequestEnded, answer: Answer | None) -> None:
        """Tell them its end."""
        for trace in self._traces:
            _guarded(trace, lambda trace: trace.ended(event, answer))


def _guarded(listener: L, tell: Callable[[L], T]) -> T | None:
    try:
        return tell(listener)
    except Exception:  # noqa: BLE001 - a listener's fault must not fail the request it listens to
        report_broken_hook(listener)
        return None
