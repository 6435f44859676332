"""Follow each request from its beginning to its end: count it, emit its events, trace it.

A *tracer* is a hook that needs more than events: it sees beginnings too, in the caller's task and
context, may give an attempt headers for the vendor, and gets the request and the answer themselves.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeGuard, TypeVar, get_args

from aigateway.clock import Clock
from aigateway.errors import (
    ConfigurationError,
    FailureKind,
    ProviderFailure,
    RequestRejectedError,
)
from aigateway.events import (
    MOST_UNCOUNTED,
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
    ServedCall,
)
from aigateway.figures import RequestMetrics
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings, Usage
from aigateway.settings.secrets import tells_a_key
from aigateway.telemetry.log import LogHook, report_broken_hook
from aigateway.telemetry.metrics import RequestCounters

__all__ = [
    "AttemptTrace",
    "AttemptTraces",
    "CallCounter",
    "Emitter",
    "FirstAnswer",
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


# ── counters ─────────────────────────────────────────────────────────────────────────────────────


class CallCounter(Protocol):
    """A hook that only counts the ends of attempts and requests.

    Of a request that its first attempt served, not as last resort, it gets no events, but a
    `ServedCall`: most requests end so, and two events for each hook cost several times as much.

    Attributes:
        uncounted: What it has got; events too, in order.
    """

    uncounted: deque[Any]

    def count(self) -> None:
        """Count them, and empty `uncounted`."""


def _is_counter(hook: object) -> TypeGuard[CallCounter]:
    """Return whether a hook takes a `ServedCall`; a class that has its own `on_event` does not."""
    kind = next((each for each in type(hook).__mro__ if "on_event" in vars(each)), object)
    wanted = getattr(hook, "wants", None) or ()
    return (
        {"count", "wants"} <= vars(kind).keys()
        and "on_event" not in getattr(hook, "__dict__", ())
        and isinstance(getattr(hook, "uncounted", None), deque)
        and AttemptEnded in wanted
        and RequestEnded in wanted
    )


# ── events ───────────────────────────────────────────────────────────────────────────────────────


class Emitter:
    """Delivers events to the log and the application's hooks, in this order.

    Args:
        hooks: Of the application.

    Raises:
        ConfigurationError: One of them is no hook.

    Attributes:
        hooks: As given.
        counters: Those of them that count calls.
        is_followed: Whether another one listens to the end of each request and each attempt.
        has_listeners: Whether a counter or another hook listens to the end of requests or attempts.
        log: The log.
        tracers: Those of them that follow requests.
    """

    __slots__ = (
        "_listeners", "counters", "has_listeners", "hooks", "is_followed", "log", "tracers",
    )  # fmt: skip

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self.log = LogHook()
        self.hooks = _checked(hooks)
        self.tracers: tuple[Tracer, ...] = tuple(hook for hook in self.hooks if _is_tracer(hook))
        self._listeners: dict[type[Event], tuple[Hook, ...]] = {
            kind: tuple(hook for hook in self.hooks if _wants(hook, kind))
            for kind in get_args(Event)
        }
        self.counters: tuple[CallCounter, ...] = tuple(filter(_is_counter, self.hooks))
        self.is_followed = bool(self.tracers) or any(
            not _is_counter(hook) for kind in ON_REQUEST for hook in self._listeners[kind]
        )
        self.has_listeners = self.is_followed or bool(self.counters)

    def wants(self, kind: type[Event]) -> bool:
        """Return whether anything listens to this kind of event. Check before making one."""
        return bool(self._listeners[kind]) or self.log.wants(kind)

    def emit(self, event: Event) -> None:
        """Deliver an event. What a listener raises is logged and goes no further.

        An `AttemptEnded` or a `RequestEnded` is delivered under its short name, too, if it has one.
        """
        if isinstance(event, (AttemptEnded, RequestEnded)):
            short = _short_kind(event)
            if short is not None and (listeners := self._listening(short)):
                _tell(listeners, _short_form(event))
        _tell(self._listening(type(event)), event)

    def emit_served(self, call: ServedCall, values: Sequence[Any]) -> bool:
        """Deliver a request that its first attempt served.

        Args:
            call: For the counters.
            values: Of its `RequestServed`: the name, and the fields in order.

        Returns:
            False if the log shows the end of each attempt: nothing was delivered then.
        """
        if not self.log.write_served(values):
            return False
        for counter in self.counters:
            uncounted = counter.uncounted
            uncounted.append(call)
            if len(uncounted) >= MOST_UNCOUNTED:
                _guarded(counter, lambda counter: counter.count())
        if listeners := self._listeners[RequestServed]:
            _tell(listeners, RequestServed(*values[1:]))
        return True

    def log_content(
        self, request_id: str, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]
    ) -> None:
        """Write a prompt and its answers to the log. Only for `log_prompts=True`."""
        self.log.content(request_id, messages, texts)

    def _listening(self, kind: type[Event]) -> Sequence[Hook]:
        listeners = self._listeners[kind]
        return (self.log, *listeners) if self.log.wants(kind) else listeners


def _tell(listeners: Sequence[Hook], event: Event) -> None:
    for hook in listeners:
        try:
            hook.on_event(event)
        except Exception:  # noqa: BLE001 - as above
            report_broken_hook(hook)


def _checked(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    if not isinstance(hooks, Iterable):
        raise ConfigurationError("hooks: must be a list, such as hooks=[MyHook()].")
    given = tuple(hooks)
    for hook in given:
        on_event, wants = getattr(hook, "on_event", None), getattr(hook, "wants", None)
        problem = None
        if isinstance(hook, type):
            problem = "is a class; give an object of it"
        elif not callable(on_event):
            problem = "has no method on_event(event); give an object with one"
        elif inspect.iscoroutinefunction(on_event):
            problem = "has an async on_event; write `def on_event`, which may start a task"
        elif not isinstance(wants, Container | None) or isinstance(wants, str):
            problem = "has a `wants` that is no collection of event classes"
        if problem is not None:
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            raise ConfigurationError(f"hooks: {name} {problem}.")
    return given


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


class FirstAnswer(NamedTuple):
    """The end of a request's first attempt, while it may still become a `ServedCall`.

    Attributes:
        provider: The provider that was asked.
        model: The model asked.
        seconds: How long it took.
        first_content: Of a stream: seconds to its first content.
        usage: Of the answer.
        cost_usd: Of the answer.
        event: Makes the event of its end.
    """

    provider: str
    model: str
    seconds: float
    first_content: float | None
    usage: Usage
    cost_usd: float | None
    event: Callable[[], AttemptEnded]


class RequestRecord:
    """One request, for as long as the context lasts. An error inside is its end.

    Its attempts report to it only if something listens, see `follow`. They may overlap, and may
    outlive it. A class, since every request passes here and a generator costs three times as much.

    Attributes:
        began: When it began, on the clock's scale.
        followed: Something listens to each attempt, as far as `follow` has looked.
        streamed: The answer comes piece by piece.
    """

    __slots__ = (
        "_agent", "_answer", "_attempts", "_first", "_first_content_at", "_outcome", "_over",
        "_provider", "_recorder", "_request", "_traces", "_waited", "_waiting", "_waiting_since",
        "began", "followed", "streamed",
    )  # fmt: skip

    def __init__(
        self,
        recorder: RequestRecorder,
        request: ChatRequest | EmbeddingRequest,
        *,
        streamed: bool = False,
    ) -> None:
        agent, tenant = request.agent, request.tenant
        if tenant and agent != tenant:
            # The caller's word does not stand in for the name of its key.
            agent = f"{tenant}/{agent}" if agent else tenant
        self._recorder = recorder
        self._request = request
        self._agent = agent
        self.streamed = streamed
        self._outcome: Outcome = "cancelled"
        self._provider: str | None = None
        self._answer: TracedAnswer | None = None
        self._attempts = 0
        self._first: FirstAnswer | None = None
        self._over = False
        self._first_content_at: float | None = None
        self._waiting = 0  # for how many attempts or other requests
        self._waiting_since = self._waited = 0.0
        self._traces: Sequence[RequestTrace] = ()
        self.began = recorder.clock.now()
        emitter = recorder.emitter
        self.followed = emitter.has_listeners
        if emitter.tracers:
            self._traces = _each(
                emitter.tracers,
                lambda tracer: tracer.trace_request(request, streamed=streamed),
            )

    @property
    def request_id(self) -> str:
        """Names the request in events."""
        return self._request.request_id

    @property
    def tenant(self) -> str:
        """The caller on whose behalf it is."""
        return self._request.tenant

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

    def changed(self, answer: TracedAnswer) -> None:
        """Note that the caller gets its answer in this form."""
        self._answer = answer

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
            self._recorder.counters.rejected += isinstance(error, RequestRejectedError)
        recorder = self._recorder
        recorder.counters.ended[self._outcome] += 1
        self._over = True
        if (first := self._first) is not None:
            self._first = None  # it refers to this record: a cycle
            if self._outcome == "served" and self._emit_served(first):
                return
            recorder.emitter.emit(first.event())
        # What is written of each request is written of its short form, too.
        told = _SHORT_FORMS.get(self._outcome, RequestEnded)
        if self.followed or recorder.emitter.wants(told):
            self._emit_end(error)

    def _emit_served(self, first: FirstAnswer) -> bool:
        """Emit its end and that of its only attempt in one, unless they are needed apart."""
        clock, answer = self._recorder.clock, self._answer
        now = clock.now()
        latency = now - self.began
        waited = self._waited + (now - self._waiting_since if self._waiting else 0.0)
        call = ServedCall(
            self._request.tenant,
            first.provider,
            first.model,
            first.seconds,
            first.first_content,
            first.usage.prompt_tokens,
            first.usage.completion_tokens,
            first.cost_usd,
            latency,
            max(0.0, latency - waited),
            now,
            clock.wall(),
        )
        served = (
            RequestServed.name,
            self._request.request_id,
            self._provider or "",
            "" if answer is None or tells_a_key(answer.model) else answer.model,
            self._agent,
            self._attempts,
            latency,
            0 if answer is None else answer.usage.total_tokens,
            None if answer is None else answer.cost_usd,
        )
        return self._recorder.emitter.emit_served(call, served)

    def _emit_end(self, error: BaseException | None) -> None:
        event, answer = self._end(error), self._answer
        self._recorder.emitter.emit(event)
        for trace in self._traces:
            _guarded(trace, lambda trace: trace.ended(event, answer))

    def _end(self, error: BaseException | None) -> RequestEnded:
        now, answer = self._recorder.clock.now(), self._answer
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
            self._waited + (now - self._waiting_since if self._waiting else 0.0),
            None if first is None else first - self.began,
            "" if answer is None or tells_a_key(answer.model) else answer.model,
            0 if answer is None else answer.usage.total_tokens,
            None if answer is None else answer.cost_usd,
            causes,
            self.tenant,
            isinstance(error, RequestRejectedError),
        )

    # ── its attempts ─────────────────────────────────────────────────────────────────────────

    def follow(self) -> Self | None:
        """Return it for attempts and other waits to report to; None if nothing listens to them."""
        if not self.followed:
            self.followed = self._recorder.emitter.log.wants_every_call()
        return self if self.followed else None

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
        if (first := self._first) is not None:
            self._first = None
            self._recorder.emitter.emit(first.event())
        self._attempts += 1
        if not self._waiting:
            self._waiting_since = self._recorder.clock.now()
        self._waiting += 1
        if not self._traces:
            return None
        return AttemptTraces(
            _each(self._traces, lambda trace: trace.attempt(provider, vendor, model, number))
        )

    def first_content(self) -> None:
        """Note that a stream has brought content; only the first time counts."""
        if self._first_content_at is None:
            self._first_content_at = self._recorder.clock.now()

    def first_answered(self, answer: FirstAnswer) -> bool:
        """Note that the first attempt has answered; return False if its event is needed now."""
        recorder = self._recorder
        if self._over or self._attempts != 1 or recorder.emitter.is_followed:
            return False
        self._waiting -= 1
        if not self._waiting:
            self._waited += recorder.clock.now() - self._waiting_since
        self._first = answer
        return True

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
            self._recorder.emitter.emit(
                AnswerDiscarded(self.request_id, provider, usage, cost_usd, self.tenant)
            )


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

    def snapshot(self) -> RequestMetrics:
        """Return the counters as plain values."""
        return self.counters.snapshot()
