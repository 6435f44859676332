"""The last things that happened to providers, in words for a person."""

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
    CacheHit,
    CircuitChanged,
    CircuitForced,
    Event,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    ProviderFailed,
    RequestFailed,
    RequestServed,
)
from aigateway.telemetry.metrics import LatencyWindow, Percentiles

__all__ = ["KEPT", "Kind", "RecentEvent", "RecentEvents"]

KEPT = 40
"""RecentEvents that are remembered; the oldest go."""

_LATELY = 60.0
"""Seconds within which the same thing again is counted and not told anew; and within which
answers count for the latency."""

_MOST_REQUESTS = 1024
"""Requests under way, with a failure so far, that are remembered: some never end in an event."""

_MOST_FAILURES = 8
"""Failures of one request that are told."""

Kind = Literal[
    "failover", "failed", "opened", "half_opened", "closed", "cooled_down", "disabled", "enabled",
    "forced",
]  # fmt: skip


class RecentEvent(TypedDict):
    """Something that happened. Plain values, fit for JSON."""

    at: float
    """Seconds since the Unix epoch; of what happened several times, the last time."""
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
    "auto": "The circuit of {} was left to itself again{}.",
}

_ENDS = {
    "AllProvidersFailedError": "Nobody answered a request",
    "DeadlineExceededError": "A request ran out of time",
    "StreamInterruptedError": "A stream broke",
}
"""Errors that are the providers' doing; the others are the caller's."""


class RecentEvents:
    """A hook of the gateway (`AsyncGateway(hooks=[events])`) that remembers a little.

    Belongs to the gateway's event loop. Its memory is bounded, whatever happens.

    Args:
        clock: Time.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._kept: deque[tuple[object, RecentEvent]] = deque(maxlen=KEPT)  # newest first
        self._failures: OrderedDict[str, list[str]] = OrderedDict()  # by request
        self._latencies = LatencyWindow()
        self._watchers: set[asyncio.Event] = set()

    @property
    def recent(self) -> list[RecentEvent]:
        """The last ones, newest first."""
        return [event for _, event in self._kept]

    def latency(self) -> Percentiles | None:
        """How long the answers of the last minute took (at most the last 512), failover included.

        In seconds; None if there was none.
        """
        return self._latencies.percentiles(since=self._clock.now() - _LATELY)

    @contextlib.contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something happens; clear it yourself."""
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def on_event(self, event: Event) -> None:
        """Take note of what a person would want to know."""
        match event:
            case ProviderFailed():
                self._note_failure(event)
            case RequestServed():
                self._latencies.add(event.latency_seconds, self._clock.now())
                self._failover(event.request_id, f"{event.provider} answered")
            case CacheHit(stale=True):
                self._failover(event.request_id, "an older answer was given")
            case RequestFailed():
                self._failures.pop(event.request_id, None)
                if event.error in _ENDS:
                    causes = _causes((c.provider, c.kind, c.status) for c in event.causes)
                    self._tell("failed", f"{_ENDS[event.error]}{causes}.", once=True)
            case CircuitChanged() if event.name in _CIRCUIT:
                kind, text = _CIRCUIT[event.name]
                self._tell(kind, text.format(event.provider))
            case CircuitForced():
                by = f" by {event.by}" if event.by else ""
                self._tell("forced", _ORDERS[event.state].format(event.provider, by))
            case _:
                self._gate(event)

    def _gate(self, event: Event) -> None:
        match event:
            case ProviderCooledDown():
                text = f"{event.provider} is left alone for {math.ceil(event.seconds)} s: its rate"
                self._tell("cooled_down", f"{text} limit is reached.", once=event.provider)
            case ProviderDisabled():
                why = _why(event.reason, event.status)
                text = f"{event.provider} is set up wrong ({why}) and is tried again in"
                wait = math.ceil(event.recheck_in_seconds)
                self._tell("disabled", f"{text} {wait} s.", once=event.provider)
            case ProviderEnabled():
                self._tell("enabled", f"{event.provider} answers again and is asked as before.")
            case _:
                pass  # told elsewhere, or a kind that is newer than this file

    def _note_failure(self, event: ProviderFailed) -> None:
        failures = self._failures.setdefault(event.request_id, [])
        if len(failures) < _MOST_FAILURES:
            failures.append(f"{event.provider} failed ({_why(event.kind, event.status)})")
        while len(self._failures) > _MOST_REQUESTS:
            self._failures.popitem(last=False)

    def _failover(self, request_id: str, end: str) -> None:
        failures = self._failures.pop(request_id, None)
        if failures:
            self._tell("failover", f"{', '.join((*failures, end))}.", once=True)

    def _tell(self, kind: Kind, text: str, *, once: bool | str = False) -> None:
        """Remember something.

        Args:
            kind: What it is.
            text: The same in words.
            once: Whether the same thing lately makes it one that happened several times: True goes
                by the text, a string is what it goes by.
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
    told = ", ".join(f"{name}: {_why(kind, status)}" for name, kind, status in causes)
    return f" ({told})" if told else ""
