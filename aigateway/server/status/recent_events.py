"""The last events of providers, as sentences for the status page."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Literal, TypedDict

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import FailureKind
from aigateway.events import (
    AttemptEnded,
    CacheHit,
    CircuitChanged,
    CircuitForced,
    Event,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    ProviderFailed,
    RequestEnded,
    RequestFailed,
)
from aigateway.figures import Percentiles
from aigateway.server.status.history import RecentHistory

__all__ = ["KEPT", "Kind", "RecentEvent", "RecentEvents"]

KEPT = 40
"""Events that are kept; the oldest go."""

_LATELY = 60.0
"""Seconds within which an event that recurs is counted, not listed again; and within which answers
count for the latency."""

_MOST_REQUESTS = 1024
"""Requests with a failure so far that are remembered: some never end in an event."""

_MOST_FAILURES = 8
"""Failures of one request that are listed."""

Kind = Literal[
    "failover", "failed", "opened", "half_opened", "closed", "cooled_down", "disabled", "enabled",
    "forced",
]  # fmt: skip


class RecentEvent(TypedDict):
    """One event. Plain values, fit for JSON."""

    at: float
    """Seconds since the Unix epoch; of several times the last."""
    kind: Kind
    text: str
    times: int


_CIRCUIT: dict[str, tuple[Kind, str]] = {
    "circuit.opened": ("opened", "The circuit of {} opened."),
    "circuit.half_opened": ("half_opened", "The circuit of {} is half-open: one request probes."),
    "circuit.closed": ("closed", "The circuit of {} closed."),
}

_ORDERS = {
    "open": "The circuit of {} was forced open{}.",
    "closed": "The circuit of {} was forced closed{}.",
    "auto": "The circuit of {} was released{}.",
}

_ENDS = {
    "AllProvidersFailedError": "No provider answered a request",
    "DeadlineExceededError": "A request ran out of time",
    "StreamInterruptedError": "A stream broke",
}
"""Errors caused by providers; the others are the caller's."""


class RecentEvents:
    """A hook of the gateway (`AsyncGateway(hooks=[events])`) that keeps the last events.

    Belongs to the gateway's event loop. Its memory is bounded, whatever happens.

    Args:
        clock: Time.

    Attributes:
        history: Requests, failures and latency of the last three minutes.
    """

    wants: tuple[type[Event], ...] = (
        AttemptEnded, RequestEnded, RequestFailed, CacheHit, CircuitChanged,
        CircuitForced, ProviderFailed, ProviderCooledDown, ProviderDisabled, ProviderEnabled,
    )  # fmt: skip

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._kept: deque[tuple[object, RecentEvent]] = deque(maxlen=KEPT)  # newest first
        self._failures: OrderedDict[str, list[str]] = OrderedDict()  # by request
        self.history = RecentHistory(clock)
        self.uncounted = self.history.uncounted
        self._watchers: set[asyncio.Event] = set()

    @property
    def recent(self) -> list[RecentEvent]:
        """The last events, newest first."""
        return [event for _, event in self._kept]

    def latency(self) -> Percentiles | None:
        """Return how long the answers of the last minute took (the last 512), with failover.

        None if there was none.
        """
        return self.history.latency(_LATELY)

    @contextlib.contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """Give an `asyncio.Event` that is set by every event; clear it yourself."""
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def on_event(self, event: Event) -> None:
        """Note an event, if it is of interest to an operator."""
        if isinstance(event, (RequestEnded, AttemptEnded)):
            self.history.note(event)
            if (
                isinstance(event, RequestEnded)
                and event.outcome == "served"
                and event.request_id in self._failures
            ):
                self._failover(event.request_id, f"{event.provider} answered")
        else:
            self._note(event)

    def count(self) -> None:
        """Count requests and attempts that have ended."""
        self.history.count()

    def _note(self, event: Event) -> None:
        match event:
            case ProviderFailed():
                self._note_failure(event)
            case CacheHit(stale=True):
                self._failover(event.request_id, "an older answer was given")
            case RequestFailed():
                self._failures.pop(event.request_id, None)
                if event.error in _ENDS:
                    causes = _causes((c.provider, c.kind, c.status) for c in event.causes)
                    self._add("failed", f"{_ENDS[event.error]}{causes}.", once=True)
            case CircuitChanged() if event.name in _CIRCUIT:
                kind, text = _CIRCUIT[event.name]
                self._add(kind, text.format(event.provider))
            case CircuitForced():
                by = f" by {event.by}" if event.by else ""
                self._add("forced", _ORDERS[event.state].format(event.provider, by))
            case _:
                self._gate(event)

    def _gate(self, event: Event) -> None:
        match event:
            case ProviderCooledDown():
                text = f"{event.provider} has reached its rate limit and is not asked for"
                seconds = math.ceil(event.seconds)
                self._add("cooled_down", f"{text} {seconds} s.", once=event.provider)
            case ProviderDisabled():
                why = _why(event.reason, event.status)
                text = f"{event.provider} is misconfigured ({why}); it is checked again in"
                wait = math.ceil(event.recheck_in_seconds)
                self._add("disabled", f"{text} {wait} s.", once=event.provider)
            case ProviderEnabled():
                self._add("enabled", f"{event.provider} answers again and is enabled.")
            case _:
                pass  # shown elsewhere, or unknown here

    def _note_failure(self, event: ProviderFailed) -> None:
        failures = self._failures.setdefault(event.request_id, [])
        if len(failures) < _MOST_FAILURES:
            failures.append(f"{event.provider} failed ({_why(event.kind, event.status)})")
        while len(self._failures) > _MOST_REQUESTS:
            self._failures.popitem(last=False)

    def _failover(self, request_id: str, end: str) -> None:
        failures = self._failures.pop(request_id, None)
        if failures:
            self._add("failover", f"{', '.join((*failures, end))}.", once=True)

    def _add(self, kind: Kind, text: str, *, once: bool | str = False) -> None:
        """Add an event.

        Args:
            kind: Its kind.
            text: Its sentence.
            once: Count it with an equal one of the last minute: True compares the text, a string
                stands in for it.
        """
        now, times = self._clock.wall(), 1
        name = (kind, text if once is True else once)
        for index, (other, event) in enumerate(self._kept):
            if once and other == name and event["at"] > now - _LATELY:
                times += event["times"]
                del self._kept[index]
                break
        self._kept.appendleft((name, {"at": now, "kind": kind, "text": text, "times": times}))
        for watcher in self._watchers:
            watcher.set()


def _why(kind: FailureKind, status: int | None) -> str:
    return str(kind) if status is None else f"{kind}, HTTP {status}"


def _causes(causes: Iterable[tuple[str, FailureKind, int | None]]) -> str:
    reasons = ", ".join(f"{name}: {_why(kind, status)}" for name, kind, status in causes)
    return f" ({reasons})" if reasons else ""
