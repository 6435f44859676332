"""Follow each request from its beginning to its end: count it, emit its events, trace it.

A *tracer* is a hook that needs more than events: it sees beginnings too, in the caller's task and
context, may give an attempt headers for the vendor, and gets the request and the answer themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeGuard, TypeVar

from aigateway.clock import Clock
from aigateway.errors import FailureKind, ProviderFailure
from aigateway.events import (
    ON_REQUEST,
    AnswerDiscarded,
    AttemptEnded,
    CacheHit,
    Event,
    Hook,
    Operation,
    Outcome,
    ProviderFailed,
    RequestEnded,
    RequestFailed,
    RequestServed,
)
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings, Usage
from aigateway.settings.secrets import tells_a_key
from aigateway.telemetry.log import LogHook, report_broken_hook
from aigateway.telemetry.metrics import RequestCounters

__all__ = [
    "AttemptTrace",
    "AttemptTraces",
    "Emitter",
    "RequestRecord",
    "RequestRecorder",
    "RequestTrace",
    "TracedAnswer",
    "Tracer",
]

L = TypeVar("L")
T = TypeVar("T")

TracedAnswer = Completion | Embeddings


# ── tracers ──────────────────────────────────────────────────────────────────────────────────────


class AttemptTrace(Protocol):
    """One attempt, as one tracer sees it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers for the vendor, by lower-case name; they replace the caller's."""

    def ended(self, event: AttemptEnded, answer: TracedAnswer | None) -> None:
        """Note that the attempt has ended, with this answer if it brought one."""


class RequestTrace(Protocol):
    """One request, as one tracer sees it.

    An attempt may begin and end after its request: if its caller leaves, it goes on for coalesced
    requests.
    """

    def attempt(self, provider: str, vendor: str, model: str, number: int) -> AttemptTrace:
        """Begin an attempt; `number` counts those of the request from 1."""

    def ended(self, event: RequestEnded, answer: TracedAnswer | None) -> None:
        """Note that the request has ended, with the caller's answer if there is one."""


class Tracer(Protocol):
    """A hook that follows requests. What it raises is logged and changes nothing."""

    def trace_request(
        self, request: ChatRequest | EmbeddingRequest, *, streamed: bool
    ) -> RequestTrace:
        """Begin a request. Called in the caller's own context."""


def _is_tracer(hook: object) -> TypeGuard[Tracer]:
    return callable(getattr(hook, "trace_request", None))


class AttemptTraces:
    """One attempt, as all tracers see it.

    Attributes:
        headers: Headers for the vendor.
    """

    __slots__ = ("_traces", "headers")

    def __init__(self, traces: Sequence[AttemptTrace]) -> None:
        self._traces = traces
        self.headers: dict[str, str] = {}
        for trace in traces:
            _guarded(trace, lambda trace: self.headers.update(trace.headers))

    def ended(self, event: AttemptEnded, answer: object) -> None:
        """Pass on its end."""
        known = answer if isinstance(answer, TracedAnswer) else None
        for trace in self._traces:
            _guarded(trace, lambda trace: trace.ended(event, known))


def _guarded(listener: L, call: Callable[[L], T]) -> T | None:
    try:
        return call(listener)
    except Exception:  # noqa: BLE001 - a listener's fault must not fail the request it listens to
        report_broken_hook(listener)
        return None


def _each(listeners: Iterable[L], call: Callable[[L], T]) -> list[T]:
    results = (_guarded(listener, call) for listener in listeners)
    return [result for result in results if result is not None]


# ── events ───────────────────────────────────────────────────────────────────────────────────────


class Emitter:
    """Delivers events to the log and the application's hooks, in this order.

    Args:
        hooks: Of the application.

    Attributes:
        hooks: As given.
        tracers: Those of them that follow requests.
    """

    __slots__ = ("_followed", "_listeners", "_log", "hooks", "tracers")

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._log = LogHook()
        self.hooks = tuple(hooks)
        self.tracers: tuple[Tracer, ...] = tuple(hook for hook in self.hooks if _is_tracer(hook))
        self._listeners: dict[type[Event], tuple[Hook, ...]] = {}
        self._followed = bool(self.tracers) or any(
            len(self._listeners_of(kind)) > 1 for kind in ON_REQUEST
        )

    def wants(self, kind: type[Event]) -> bool:
        """Return whether anything listens to this kind of event. Check before making one."""
        listeners = self._listeners.get(kind) or self._listeners_of(kind)
        return len(listeners) > 1 or self._log.wants(kind)

    def follows_requests(self) -> bool:
        """Return whether anything listens to the end of each request and each attempt."""
        return self._followed or self._log.wants_every_call()

    def emit(self, event: Event) -> None:
        """Deliver an event. What a listener raises is logged and goes no further.

        An `AttemptEnded` or a `RequestEnded` is delivered under its short name, too, if it has one.
        """
        if isinstance(event, (AttemptEnded, RequestEnded)):
            short = _short_kind(event)
            if short is not None and self.wants(short):
                self._deliver(_short_form(event))
        self._deliver(event)

    def log_content(
        self, request_id: str, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]
    ) -> None:
        """Write a prompt and its answers to the log. Only for `log_prompts=True`."""
        self._log.content(request_id, messages, texts)

    def _deliver(self, event: Event) -> None:
        kind = type(event)
        for hook in self._listeners.get(kind) or self._listeners_of(kind):
            try:
                hook.on_event(event)
            except Exception:  # noqa: BLE001 - as above
                report_broken_hook(hook)

    def _listeners_of(self, kind: type[Event]) -> tuple[Hook, ...]:
        listeners = (self._log, *(hook for hook in self.hooks if _wants(hook, kind)))
        self._listeners[kind] = listeners
        return listeners


def _wants(hook: Hook, kind: type[Event]) -> bool:
    wanted = getattr(hook, "wants", None)
    return kind not in ON_REQUEST if wanted is None else kind in wanted


_NO_FAILURE = frozenset({FailureKind.CANCELLED, FailureKind.HEDGE_LOST})
"""Ends of an attempt that are no `ProviderFailed`."""

_SHORT_FORMS: dict[Outcome, type[Event]] = {
    "served": RequestServed,
    "failed": RequestFailed,
    "hit": CacheHit,
    "stale": CacheHit,
}


def _short_kind(event: AttemptEnded | RequestEnded) -> type[Event] | None:
    if isinstance(event, RequestEnded):
        return _SHORT_FORMS.get(event.outcome)
    return None if event.failure is None or event.failure in _NO_FAILURE else ProviderFailed


def _short_form(event: AttemptEnded | RequestEnded) -> Event:
    """Return what hooks get that do not ask for every end."""
    if isinstance(event, AttemptEnded):
        assert event.failure is not None  # noqa: S101 - it has a short form
        return ProviderFailed(
            event.request_id,
            event.provider,
            event.failure,
            event.status,
            event.code,
            event.latency_seconds,
            event.attempt,
            event.last_resort,
        )
    if event.outcome == "failed":
        return RequestFailed(
            event.request_id, event.agent, event.error, event.causes, event.latency_seconds
        )
    provider = event.provider or ""
    if event.outcome != "served":
        return CacheHit(event.request_id, provider, event.agent, event.outcome == "stale")
    return RequestServed(
        event.request_id,
        provider,
        event.model,
        event.agent,
        event.attempts,
        event.latency_seconds,
        event.total_tokens,
        event.cost_usd,
    )


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


class RequestRecord:
    """One request, as a context from its beginning to its end; see `RequestRecorder.open`.

    Its attempts report to it only if it is `followed`. They may overlap, and may outlive it. A
    class, since every request passes here and a generator costs three times as much.

    Attributes:
        began: When it began, on the clock's scale.
        followed: Something listens to each attempt, so attempts report to it.
        streamed: The answer comes piece by piece.
    """

    _outcome: Outcome = "cancelled"
    _provider: str | None = None
    _answer: TracedAnswer | None = None
    _attempts = 0
    followed = False
    _first_content_at: float | None = None
    _waiting = 0  # for how many attempts or other requests
    _waiting_since = _waited = 0.0
    _traces: Sequence[RequestTrace] = ()

    def __init__(
        self,
        recorder: RequestRecorder,
        request: ChatRequest | EmbeddingRequest,
        agent: str | None,
        streamed: bool,
    ) -> None:
        self._recorder = recorder
        self._request = request
        self._agent = agent
        self.streamed = streamed
        self.began = recorder.clock.now()
        if recorder.emitter.follows_requests():
            self.followed = True
            if recorder.emitter.tracers:
                self._traces = _each(
                    recorder.emitter.tracers,
                    lambda tracer: tracer.trace_request(request, streamed=streamed),
                )

    @property
    def request_id(self) -> str:
        """Names the request in events."""
        return self._request.request_id

    @property
    def operation(self) -> Operation:
        """The operation that is asked for."""
        return "chat" if isinstance(self._request, ChatRequest) else "embeddings"

    # ── its answer ───────────────────────────────────────────────────────────────────────────

    def served(self, provider: str, answer: TracedAnswer, *, attempts: int) -> None:
        """Note that a vendor answered this request itself."""
        self._outcome, self._provider, self._answer = "served", provider, answer
        if not self.followed:
            self._attempts = attempts

    def coalesced(self, provider: str, answer: TracedAnswer) -> None:
        """Note that it shared the answer to an identical request."""
        self._outcome, self._provider, self._answer = "coalesced", provider, answer

    def remembered(self, provider: str, answer: TracedAnswer, *, stale: bool) -> None:
        """Note that it was answered from the cache."""
        self._outcome = "stale" if stale else "hit"
        self._provider, self._answer = provider, answer

    def __enter__(self) -> Self:
        self._recorder.counters.total += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._outcome = "failed" if isinstance(error, Exception) else "cancelled"
            self._provider = self._answer = None
        recorder = self._recorder
        recorder.counters.ended[self._outcome] += 1
        if self.followed:
            self._emit_end(error)
        else:
            short = _SHORT_FORMS.get(self._outcome)
            if short is not None and recorder.emitter.wants(short):
                self._emit_end(error)

    def _emit_end(self, error: BaseException | None) -> None:
        event, answer = self._end(error), self._answer
        self._recorder.emitter.emit(event)
        for trace in self._traces:
            _guarded(trace, lambda trace: trace.ended(event, answer))

    def _end(self, error: BaseException | None) -> RequestEnded:
        now, answer = self._recorder.clock.now(), self._answer
        waited = self._waited + (now - self._waiting_since if self._waiting else 0.0)
        first = self._first_content_at
        causes: tuple[ProviderFailure, ...] = getattr(error, "causes", ())
        return RequestEnded(
            self._request.request_id,
            self.operation,
            self.streamed,
            self._agent,
            self._outcome,
            self._provider,
            "" if error is None else type(error).__name__,
            self._attempts,
            now - self.began,
            waited,
            None if first is None else first - self.began,
            "" if answer is None or tells_a_key(answer.model) else answer.model,
            0 if answer is None else answer.usage.total_tokens,
            None if answer is None else answer.cost_usd,
            causes,
        )

    # ── its attempts ─────────────────────────────────────────────────────────────────────────

    def wait(self) -> None:
        """Begin to wait for a vendor, or for another request."""
        if not self._waiting:
            self._waiting_since = self._recorder.clock.now()
        self._waiting += 1

    def go_on(self) -> None:
        """End a wait. Call it once for each `wait`."""
        self._waiting -= 1
        if not self._waiting:
            self._waited += self._recorder.clock.now() - self._waiting_since

    def attempt_began(
        self, provider: str, vendor: str, model: str, number: int
    ) -> AttemptTraces | None:
        """Begin an attempt."""
        self._attempts += 1
        self.wait()
        if not self._traces:
            return None
        return AttemptTraces(
            _each(self._traces, lambda trace: trace.attempt(provider, vendor, model, number))
        )

    def first_content(self) -> None:
        """Note that a stream has brought content; only the first time counts."""
        if self._first_content_at is None:
            self._first_content_at = self._recorder.clock.now()

    def attempt_ended(
        self, event: AttemptEnded, trace: AttemptTraces | None, answer: object
    ) -> None:
        """Note that an attempt has ended, and emit its event."""
        self.go_on()
        self._recorder.emitter.emit(event)
        if trace is not None:
            trace.ended(event, answer)

    def discarded(self, provider: str, usage: Usage, cost_usd: float | None) -> None:
        """Report an answer that came although its attempt had ended."""
        if self._recorder.emitter.wants(AnswerDiscarded):
            self._recorder.emitter.emit(AnswerDiscarded(self.request_id, provider, usage, cost_usd))


class RequestRecorder:
    """Records the requests of one gateway.

    Attributes:
        clock: As given.
        emitter: As given.
        counters: How many requests there were, and how they ended.
    """

    __slots__ = ("clock", "counters", "emitter")

    def __init__(self, clock: Clock, emitter: Emitter) -> None:
        self.clock = clock
        self.emitter = emitter
        self.counters = RequestCounters()

    def open(
        self,
        request: ChatRequest | EmbeddingRequest,
        agent: str | None,
        *,
        streamed: bool = False,
    ) -> RequestRecord:
        """Record a request for as long as the context lasts. An error inside is its end."""
        if request.tenant and agent != request.tenant:
            # The caller's word does not stand in for the name of its key.
            agent = f"{request.tenant}/{agent}" if agent else request.tenant
        return RequestRecord(self, request, agent, streamed)

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as plain values."""
        return self.counters.snapshot()
