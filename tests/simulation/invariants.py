"""What must hold in every run, whatever happens; looked at from outside.

The watch sees what users and vendors see: events (it is a hook), calls as they reach the vendors,
what callers got and when, and the metrics. What is told of permits and of the queue comes from
`inside.py`, the one module that knows the gateway's inner parts.

What can be said only when a run is over stands in `laws.py`.

A promise that is broken is written down and does not stop the run: what the gateway catches would
hide it. `SLACK` is the time in which several turns of the loop may pass, and nothing else.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aigateway.errors import GatewayError
from aigateway.events import (
    CircuitChanged,
    CircuitForced,
    Event,
    Operation,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    RequestFailed,
    RequestHedged,
    RequestRetrying,
    RequestServed,
)
from tests.simulation.scenario import Ask
from tests.simulation.vendors import PRICE, VendorCall

__all__ = ["CHECKS", "SLACK", "Asked", "Broken", "Watch"]

SLACK = 1e-3
"""Seconds: some turns of the loop."""

CHECKS = 5.0
"""Seconds between two checks of a disabled provider, where there is no other to ask."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that was not kept."""

    promise: str
    how: str
    at: float

    def __str__(self) -> str:
        return f"{self.promise}: {self.how} (at {self.at:.6f})"


@dataclass(eq=False, slots=True)
class Asked:
    """One request as its caller sees it."""

    ask: Ask
    began: float
    timeout: float
    first_at: float | None = None
    ended: float | None = None
    end: str = ""
    cancelled: bool = False
    error: BaseException | None = None
    """What the caller got, if not an answer."""
    full: frozenset[str] = frozenset()
    """Providers that had no place for one more call when it got that."""
    was_full: frozenset[str] = frozenset()
    """Providers that had none at some time in the second before; "" is the gateway itself."""

    @property
    def answered(self) -> bool:
        """Whether the caller got an answer."""
        return self.end in {"coalesced", "hit", "resumed", "served", "stale"}


@dataclass(slots=True)
class _Operation:
    """What the events have said of one operation of one provider."""

    circuit: str = "closed"
    since: float = 0.0
    """When the circuit got into that state."""
    cooling_from: float = 0.0
    cooling_until: float = 0.0
    disabled_from: float | None = None
    recheck_at: float = 0.0
    checked: float = -math.inf
    """When it was last called while it was disabled."""
    ill: list[tuple[tuple[str, str, str | None], float]] = field(default_factory=list)
    """What the calls asked that met trouble since the circuit was last closed."""


@dataclass(slots=True)
class _Health:
    """What the events have said of one provider."""

    operations: defaultdict[Operation, _Operation] = field(
        default_factory=lambda: defaultdict(_Operation)
    )
    removed_at: float | None = None
    forced_open_at: float | None = None
    forced_closed: bool = False
    """An operator wants it to be asked, whatever it says."""
    out: list[VendorCall] = field(default_factory=list)


class Watch:
    """Looks on at one run.

    Args:
        time: Seconds since the run began.
        settings: The gateway's.
        most: Each provider's own bound on calls at once.
        begun: How many requests the gateway has begun so far.
        places: How many calls a provider takes at once now; None is what its plan says.

    Attributes:
        happened: Every event, and when it came.
    """

    def __init__(
        self,
        time: Callable[[], float],
        settings: Mapping[str, Any],
        most: Mapping[str, int | None],
        begun: Callable[[], int],
        places: Callable[[str], int] | None = None,
    ) -> None:
        self.time = time
        self.settings = settings
        self._most = most
        self._begun = begun
        self._places = places
        self.happened: list[tuple[float, Event]] = []
        self.trace: list[str] = []
        self.violations: list[Broken] = []
        self.asked: list[Asked] = []
        self._stood: list[tuple[float, float]] = []
        self._ordered = False
        self.batch_ends: Counter[str] = Counter()
        self.health: defaultdict[str, _Health] = defaultdict(_Health)
        self.retired: dict[tuple[str, int], _Health] = {}
        """Providers that were removed, while another has their name."""
        self.calls = 0
        self.calls_to: Counter[str] = Counter()
        self.answered_by: set[tuple[str, str]] = set()
        self.answers_paid: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.extra = 0
        self._called: set[tuple[str, str, int]] = set()
        self._hedged: Counter[tuple[str, str]] = Counter()
        self._crowded: dict[str, float] = {}
        self._full_until: dict[str, float] = {}
        self._ids: dict[str, str] = {}

    def broken(self, promise: str, how: str) -> None:
        self.note(f"BROKEN {promise}: {how}")
        self.violations.append(Broken(promise, how, self.time()))

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.time():11.6f}  {text}")

    def _name(self, request_id: str) -> str:
        """A request's name in the trace: its own is random."""
        return self._ids.setdefault(request_id, f"r{len(self._ids)}")

    def replaced(self, name: str, life: int) -> None:
        """Another provider takes the name of one that was removed."""
        self.retired[name, life] = self.health[name]
        self.health[name] = _Health()

    # ── the loop stands still ────────────────────────────────────────────────────────────────

    def stalls(self, seconds: float) -> None:
        """The event loop is about to stand still for so long."""
        self.note(f"world   stands still for {seconds} s")
        self._stood.append((self.time(), self.time() + seconds))

    def stood(self, since: float, until: float) -> float:
        """Seconds of that time in which the loop stood still: nobody could have done anything."""
        return sum(max(0.0, min(until, b) - max(since, a)) for a, b in self._stood)

    def _passed(self, since: float) -> float:
        """Seconds since then in which the loop has run."""
        now = self.time()
        return now - since - self.stood(since, now) if self._stood else now - since

    # ── events ───────────────────────────────────────────────────────────────────────────────

    def on_event(self, event: Event) -> None:
        self.events[event.name] += 1
        self.happened.append((self.time(), event))
        self.note(f"event   {self._told(event)}")
        if isinstance(event, CircuitChanged):
            self._check_circuit(event, self.health[event.provider])
        elif isinstance(event, ProviderCooledDown | ProviderDisabled | ProviderEnabled):
            self._left_alone(event, self.health[event.provider].operations[event.operation])
        elif isinstance(event, CircuitForced):
            health, opened = self.health[event.provider], event.state == "open"
            health.forced_open_at = self.time() if opened else None
            health.forced_closed = event.state == "closed"
            if event.state == "closed":  # which ends a cooldown and a disabled state, too
                for seen in health.operations.values():
                    seen.cooling_until, seen.disabled_from = 0.0, None
        elif isinstance(event, RequestHedged):
            self._hedged[event.request_id, event.second] += 1  # what comes now is no free call
        elif isinstance(event, RequestRetrying) and event.round > self.settings["retry_rounds"]:
            self.broken("rounds", f"round {event.round}")

    @contextlib.contextmanager
    def by_order(self) -> Iterator[None]:
        """What changes within is an operator's doing."""
        self._ordered = True
        try:
            yield
        finally:
            self._ordered = False

    def _check_circuit(self, event: CircuitChanged, health: _Health) -> None:
        """Circuits open for the failures of late, and for long enough."""
        seen = health.operations[event.operation]
        if event.old != seen.circuit:
            self.broken("circuit_events", f"{event.provider}: {event.old} after {seen.circuit}")
        if not self._ordered:
            self._check_blame(event, seen)
        if event.new == "closed":
            seen.ill = [
                (call.asks, call.began)
                for call in health.out
                if call.trouble is not None and call.operation == event.operation
            ]
        seen.circuit, seen.since = event.new, self.time()

    def _check_blame(self, event: CircuitChanged, seen: _Operation) -> None:
        """A circuit opens for failures of distinct requests, and stays open for its time."""
        times: dict[Hashable, list[float]] = {}
        for asks, began in seen.ill:
            times.setdefault(asks, []).append(began)
        # Repeats count again after a minute.
        ill = sum(
            min(len(began), 1 + int((self.time() - min(began)) // 60)) for began in times.values()
        )
        if event.old == "closed" and ill < self.settings["failure_threshold"]:
            self.broken("blame", f"{event.provider}: opened after {ill} requests met trouble")
        opened_for = self.time() - seen.since
        # Jitter takes at most a tenth off.
        if event.new == "half_open" and opened_for < 0.9 * self.settings["reset_timeout_seconds"]:
            self.broken("open_circuit", f"{event.provider}: probed after {opened_for} s")

    def _left_alone(
        self, event: ProviderCooledDown | ProviderDisabled | ProviderEnabled, seen: _Operation
    ) -> None:
        now = self.time()
        if isinstance(event, ProviderCooledDown):
            if event.rate_limited:  # else it is a last resort meanwhile
                if seen.cooling_until <= now + 2 * SLACK:
                    seen.cooling_from = now
                seen.cooling_until = max(seen.cooling_until, now + event.seconds)
            if event.seconds > self.settings["max_cooldown_seconds"] + SLACK:
                self.broken("cooldown", f"{event.provider} cools down for {event.seconds} s")
        elif isinstance(event, ProviderDisabled):
            if seen.disabled_from is None:
                seen.disabled_from, seen.checked = now, -math.inf
            seen.recheck_at = now + event.recheck_in_seconds
        else:
            seen.disabled_from = None

    def _told(self, event: Event) -> str:
        fields = {
            name: getattr(event, name) for name in event.__dataclass_fields__ if name != "name"
        }
        if "request_id" in fields:
            fields["request_id"] = self._name(fields["request_id"])
        fields.pop("causes", None)
        return event.name + "".join(f" {name}={value}" for name, value in fields.items())

    # ── vendors ──────────────────────────────────────────────────────────────────────────────

    def call_began(self, call: VendorCall) -> None:
        health = self.health[call.provider]
        self.calls += 1
        self.calls_to[f"{call.provider}/{call.life}"] += 1
        self.note(
            f"vendor  {call.provider} <- {self._name(call.request_id)} {call.prompt!r}"
            f" ({call.trouble or 'well'})"
        )
        self._check_left_alone(call, health)
        self._check_budget(call)
        if call.trouble is not None:
            health.operations[call.operation].ill.append((call.asks, call.began))
        health.out.append(call)
        self._check_crowd()

    def call_ended(self, call: VendorCall, how: str) -> None:
        self._note_full(call.provider)
        for health in (self.health[call.provider], self.retired.get((call.provider, call.life))):
            if health is not None and call in health.out:
                health.out.remove(call)
        self.note(f"vendor  {call.provider} -> {self._name(call.request_id)} {how}")
        self._check_crowd()

    def answered(self, call: VendorCall) -> None:
        self.answered_by.add((call.provider, call.prompt))
        self.answers_paid[call.provider] += 1

    def _check_left_alone(self, call: VendorCall, health: _Health) -> None:
        now, name, passed = self.time(), call.provider, self._passed
        seen = health.operations[call.operation]
        ordered = health.forced_closed
        if (
            not ordered
            and passed(seen.cooling_from) > SLACK
            and now < seen.cooling_until - 2 * SLACK
        ):
            self.broken("cooldown", f"{name} was called while it cooled down")
        if health.removed_at is not None and passed(health.removed_at) > SLACK:
            self.broken("removed", f"{name} was called after it had been removed")
        if health.forced_open_at is not None and passed(health.forced_open_at) > SLACK:
            self.broken("forced", f"{name} was called though its circuit was forced open")
        if not ordered and seen.disabled_from is not None and passed(seen.disabled_from) > SLACK:
            ago = now - max(seen.checked, seen.disabled_from)
            if ago < CHECKS - SLACK and now < seen.recheck_at - SLACK:
                self.broken("disabled", f"{name} is disabled and was checked {ago} s ago")
            seen.checked = now

    def _check_budget(self, call: VendorCall) -> None:
        """Calls beyond one per provider and request draw on one bucket.

        A provider that was removed and added is another.
        """
        key, hedged = (call.request_id, call.provider, call.life), (call.request_id, call.provider)
        if self._hedged[hedged]:
            self._hedged[hedged] -= 1
        elif key not in self._called:
            self._called.add(key)
            return
        self._called.add(key)
        self.extra += 1
        asked = self._begun()
        most = 10 + 0.2 * asked + self.time() + SLACK
        if self.extra > most:
            self.broken("budget", f"{self.extra} extra calls after {asked} requests")

    def _out(self) -> dict[str, int]:
        """Calls that are out, by provider; "" is all of them."""
        out = {name: len(health.out) for name, health in self.health.items()}
        out[""] = sum(out.values()) + sum(len(health.out) for health in self.retired.values())
        return out

    def _note_full(self, name: str) -> None:
        """A call is about to end: until now there may have been no place for another."""
        out, most = self._out(), int(self.settings["max_concurrency"])
        if out[""] >= most:
            self._full_until[""] = self.time()
        bound = self._most.get(name) or most
        if out.get(name, 0) >= (bound if self._places is None else self._places(name)):
            self._full_until[name] = self.time()

    def _check_crowd(self) -> None:
        """No bound is exceeded for longer than it takes to cancel a call."""
        now, out = self.time(), self._out()
        bounds: dict[str, int | None] = {**self._most, "": int(self.settings["max_concurrency"])}
        for name, bound in bounds.items():
            if bound is None or out.get(name, 0) <= bound:
                since = self._crowded.pop(name, None)
                if since is not None and self._passed(since) > SLACK:
                    self.broken(
                        "crowd", f"more than {bound} calls at {name or 'all'} since {since}"
                    )
            else:
                self._crowded.setdefault(name, now)

    # ── callers ──────────────────────────────────────────────────────────────────────────────

    def began(self, ask: Ask) -> Asked:
        """A caller asks."""
        timeout = self.settings["timeout"] if ask.timeout is None else ask.timeout
        asked = Asked(ask, self.time(), timeout)
        self.asked.append(asked)
        self.note(f"caller  #{ask.number} asks {ask.kind} p{ask.prompt}")
        return asked

    def first_content(self, asked: Asked) -> None:
        """A stream gave something, or came to its end."""
        if asked.first_at is None:
            asked.first_at = self.time()

    def ended(self, asked: Asked, end: str) -> None:
        """A caller has what it will ever get."""
        number = asked.ask.number
        if asked.ended is not None:
            self.broken("one_end", f"#{number} ended as {asked.end} and as {end}")
        asked.ended, asked.end = self.time(), end
        self.note(f"caller  #{number} ends: {end}")
        first = asked.ended if asked.first_at is None else asked.first_at
        took = first - asked.began - self.stood(asked.began, first)
        # After each stall there is a moment to read what came meanwhile.
        stalls = sum(began < first and ended > asked.began for began, ended in self._stood)
        if took > asked.timeout + SLACK + 0.1 * stalls:
            self.broken("deadline", f"#{number} had {asked.timeout} s and took {took}")

    def failed(self, asked: Asked, error: BaseException) -> None:
        """A caller got an error."""
        if not isinstance(error, GatewayError):
            twice = "already running" in str(error)
            promise = "closed_twice" if twice else "typed_error"
            self.broken(promise, f"#{asked.ask.number} got {error!r}")
        asked.error = error
        of_late = self.time() - 1.0
        asked.was_full = frozenset(n for n, until in self._full_until.items() if until >= of_late)
        self.ended(asked, type(error).__name__)

    # ── the books ────────────────────────────────────────────────────────────────────────────

    def check_books(
        self, metrics: Mapping[str, Any], spared: set[str], batched: Counter[str]
    ) -> None:
        """After the gateway has closed: everything is given back, and the books balance.

        Args:
            metrics: The gateway's.
            spared: Providers that were removed at some time: their counters went with them.
            batched: How the requests of batches ended; their callers do not see each.
        """
        self._check_requests(metrics, batched)
        for name, provider in metrics["providers"].items():
            if name not in spared:
                self._check_provider(name, provider)

    def _check_requests(self, metrics: Mapping[str, Any], batched: Counter[str]) -> None:
        ends = ("cache_hits", "stale_answers", "coalesced", "served", "failures", "cancelled")
        if metrics["total_requests"] != sum(metrics[end] for end in ends):
            self.broken("books", f"{metrics['total_requests']} requests, {metrics}")
        seen = Counter(asked.end for asked in self.asked)
        # Whoever left, or was cut off at closing, may have been so at the very last word.
        perhaps = seen["left"] + seen["cancelled"] + seen["GatewayError"]
        for booked, told in (
            ("cache_hits", seen["hit"] + batched["hit"]),
            ("stale_answers", seen["stale"] + batched["stale"]),
            ("coalesced", seen["coalesced"] + batched["coalesced"]),
            ("served", seen["served"] + seen["resumed"] + batched["served"]),
        ):
            if not told <= metrics[booked] <= told + perhaps:
                self.broken("books", f"{booked}: {metrics[booked]}, and callers saw {told}")
        if metrics["in_flight"] or metrics["waiting"]:
            self.broken("in_flight", f"{metrics['in_flight']}, waiting {metrics['waiting']}")
        if metrics["served"] != self.events[RequestServed.name]:
            self.broken("served_events", f"{metrics['served']} served")
        if metrics["failures"] != self.events[RequestFailed.name]:
            self.broken("failed_events", f"{metrics['failures']} failures")
        for asked in self.asked:
            if asked.ended is None:
                self.broken("lost", f"#{asked.ask.number} never ended")

    def _check_provider(self, name: str, provider: Mapping[str, Any]) -> None:
        failures = provider["failures"]
        if provider["attempts"] != provider["successes"] + sum(failures.values()):
            self.broken("attempts", f"{name}: {provider}")
        if provider["in_flight"]:
            self.broken("in_flight", f"{name}: {provider['in_flight']}")
        calls = self.calls_to[f"{name}/0"]
        # A call that is cancelled before its first step never reaches the vendor.
        unsent = sum(failures.get(kind, 0) for kind in ("cancelled", "outrun", "deadline"))
        if not calls <= provider["attempts"] <= calls + unsent:
            self.broken("attempts", f"{name}: {provider['attempts']} attempts, {calls} calls")
        if provider["cost_usd"] > PRICE * self.answers_paid[name] + 1e-9:
            self.broken("cost", f"{name}: {provider['cost_usd']} for {self.answers_paid[name]}")
