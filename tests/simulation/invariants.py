"""What must hold in every run, whatever happens; looked at from outside.

The watch sees what users and vendors see: events (it is a hook), calls as they reach the vendors,
what callers got and when, and the metrics. What is told of permits and of the queue comes from
`inside.py`, the one module that knows the gateway's inner parts.

With `laws` the guards are held to the three laws of the design, and what they replace is not
asked for: see `known.py`. What can be said only when a run is over stands in `laws.py`.

A promise that is broken is written down and does not stop the run: what the gateway catches would
hide it. `SLACK` is the time in which several turns of the loop may pass, and nothing else.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
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
from tests.simulation.known import KNOWN
from tests.simulation.scenario import Ask
from tests.simulation.vendors import PRICE, VendorCall

__all__ = ["RECHECK_PAUSE", "SLACK", "Asked", "Broken", "Watch"]

SLACK = 1e-3
"""Seconds: some turns of the loop."""

RECHECK_PAUSE = 1.0
"""Seconds that a disabled provider has at least between two calls, with nobody else to ask."""


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

    @property
    def answered(self) -> bool:
        """Whether the caller got an answer."""
        return self.end in {"coalesced", "hit", "resumed", "served", "stale"}


@dataclass(slots=True)
class _Health:
    """What the events have said of one provider."""

    circuits: dict[Operation | None, tuple[str, float]] = field(default_factory=dict)
    """Their states and since when, by operation; None is of all that have none of their own."""
    cooling_from: float = 0.0
    cooling_until: float = 0.0
    disabled: bool = False
    disabled_from: float = 0.0
    recheck_at: float = 0.0
    refusing: dict[Operation | None, float] = field(default_factory=dict)
    """Since when it is disabled, by operation; None is all of them."""
    removed_at: float | None = None
    forced_open_at: float | None = None
    ill: list[tuple[str, str, str | None]] = field(default_factory=list)
    """What the calls asked that met trouble since the circuit was last closed."""
    ended_at: float = 0.0
    """When a call last ended."""
    out: list[VendorCall] = field(default_factory=list)

    def circuit(self, operation: Operation | None) -> tuple[str, float]:
        """Its state, and since when."""
        return self.circuits.get(operation) or self.circuits.get(None, ("closed", 0.0))


class Watch:
    """Looks on at one run.

    Args:
        time: Seconds since the run began.
        settings: The gateway's.
        most: Each provider's own bound on calls at once.
        begun: How many requests the gateway has begun so far.
        laws: Hold the guards to the three laws.

    Attributes:
        happened: Every event, and when it came.
    """

    def __init__(
        self,
        time: Callable[[], float],
        settings: Mapping[str, Any],
        most: Mapping[str, int | None],
        begun: Callable[[], int],
        *,
        laws: bool,
    ) -> None:
        self.time = time
        self.settings = settings
        self._most = most
        self._begun = begun
        self.laws = laws
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
        self._free: Counter[tuple[str, str]] = Counter()
        self._overlaps: list[tuple[VendorCall, float, str]] = []
        self._crowded: dict[str, float] = {}
        self._ids: dict[str, str] = {}
        self._rechecked: dict[tuple[str, Operation | None], float] = {}

    def broken(self, promise: str, how: str) -> None:
        self.note(f"BROKEN {promise}: {how}")
        if promise not in KNOWN:
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
        if not self.laws:
            for health in (*self.health.values(), *self.retired.values()):
                health.ill += [call.asks for call in health.out]

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
            self._gate(event, self.health[event.provider])
        elif isinstance(event, CircuitForced):
            opened = event.state == "open"
            self.health[event.provider].forced_open_at = self.time() if opened else None
        elif isinstance(event, RequestHedged):
            self._free[event.request_id, event.second] -= 1  # what comes now is no free call
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
        operation = getattr(event, "operation", None)
        before, since = health.circuits.get(operation, ("closed", 0.0))
        if event.old != before:
            self.broken("circuit_events", f"{event.provider}: {event.old} after {before}")
        if not self._ordered:
            self._check_blame(event, health, since)
        if event.new == "closed":
            others = [asks for asks in health.ill if operation not in {None, asks[0]}]
            health.ill = others + [call.asks for call in health.out if call.trouble is not None]
        health.circuits[operation] = event.new, self.time()

    def _check_blame(self, event: CircuitChanged, health: _Health, since: float) -> None:
        now, name, settings = self.time(), event.provider, self.settings
        operation = getattr(event, "operation", None)
        own = [asks for asks in health.ill if operation in {None, asks[0]}]
        # By law, repeats of one request count once.
        ill = len(set(own) if self.laws else own)
        if event.old == "closed" and ill < settings["failure_threshold"]:
            self.broken("blame", f"{name}: opened after {ill} calls met trouble")
        age = now - health.ended_at - settings["attempt_timeout"]
        if event.old == "closed" and age > settings["reset_timeout_seconds"]:
            self.broken("late_blame", f"{name}: its last call ended {age:.3f} s ago")
        opened_for = now - since
        # Jitter takes at most a tenth off.
        if event.new == "half_open" and opened_for < 0.9 * settings["reset_timeout_seconds"]:
            self.broken("open_circuit", f"{name}: probed after {opened_for} s")

    def _gate(
        self, event: ProviderCooledDown | ProviderDisabled | ProviderEnabled, health: _Health
    ) -> None:
        now = self.time()
        if isinstance(event, ProviderCooledDown):
            if health.cooling_until <= now + 2 * SLACK:
                health.cooling_from = now
            most = self.settings.get("max_cooldown_seconds", math.inf)
            health.cooling_until = max(health.cooling_until, now + min(event.seconds, most))
        elif isinstance(event, ProviderDisabled):
            health.refusing.setdefault(getattr(event, "operation", None), now)
            if not health.disabled or health.recheck_at <= now + SLACK:
                health.disabled_from = now
            health.disabled, health.recheck_at = True, now + event.recheck_in_seconds
        else:
            health.disabled = False
            health.refusing.pop(getattr(event, "operation", None), None)

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
        self._check_gates(call, health)
        self._check_probe(call, health)
        self._check_budget(call)
        if call.trouble is not None:
            health.ill.append(call.asks)
        health.out.append(call)
        self._check_crowd()

    def call_ended(self, call: VendorCall, how: str) -> None:
        for health in (self.health[call.provider], self.retired.get((call.provider, call.life))):
            if health is not None and call in health.out:
                health.out.remove(call)
                health.ended_at = self.time()
        self._check_overlap(call)
        self.note(f"vendor  {call.provider} -> {self._name(call.request_id)} {how}")
        self._check_crowd()

    def answered(self, call: VendorCall) -> None:
        self.answered_by.add((call.provider, call.prompt))
        self.answers_paid[call.provider] += 1

    def _check_gates(self, call: VendorCall, health: _Health) -> None:
        now, name, passed = self.time(), call.provider, self._passed
        if passed(health.cooling_from) > SLACK and now < health.cooling_until - 2 * SLACK:
            self.broken("cooldown", f"{name} was called while it cooled down")
        if health.removed_at is not None and passed(health.removed_at) > SLACK:
            self.broken("removed", f"{name} was called after it had been removed")
        if health.forced_open_at is not None and passed(health.forced_open_at) > SLACK:
            self.broken("forced", f"{name} was called though its circuit was forced open")
        if self.laws:
            self._check_recheck(call, health)
            return
        state, since = health.circuit(call.operation)
        if state == "open" and passed(since) > SLACK:
            self.broken("open_circuit", f"{name} was called while its circuit was open")
        disabled = health.disabled and passed(health.disabled_from) > SLACK
        if disabled and now < health.recheck_at - SLACK:
            self.broken("disabled", f"{name} was called while it was disabled")

    def _check_recheck(self, call: VendorCall, health: _Health) -> None:
        """A disabled provider is asked by one request at a time, and seldom."""
        for operation, since in health.refusing.items():
            if operation not in {None, call.operation} or self._passed(since) <= SLACK:
                continue
            key = (call.provider, operation)
            ago = call.began - self._rechecked.get(key, -math.inf)
            if ago < RECHECK_PAUSE:
                self.broken("disabled", f"{call.provider} is disabled and was called {ago} s ago")
            self._rechecked[key] = call.began

    def _check_probe(self, call: VendorCall, health: _Health) -> None:
        """A half-open circuit has one call out that began since; a disabled provider one check."""
        if self.laws:
            return  # a last resort may be out beside a probe; the breaker counts its probes itself
        now = self.time()
        state, circuit_since = health.circuit(call.operation)
        half_open = state == "half_open"
        if not half_open and not health.disabled:
            return
        since = circuit_since if half_open else health.disabled_from
        lease = max(self.settings["probe_lease_seconds"], self.settings["attempt_timeout"] + 1)
        for other in health.out:
            earlier = since < other.began and self._passed(other.began) > SLACK
            if earlier and now - other.began < lease:
                what = "probe" if half_open else "check"
                self._overlaps.append((other, now, what))

    def _check_overlap(self, call: VendorCall) -> None:
        """A probe that was given up may take some turns to end, while the next one goes out."""
        for pair in [pair for pair in self._overlaps if pair[0] is call]:
            self._overlaps.remove(pair)
            if self._passed(pair[1]) > SLACK:
                self.broken(f"one_{pair[2]}", f"{call.provider}: two were out since {pair[1]}")

    def _check_budget(self, call: VendorCall) -> None:
        """Calls beyond one per provider and request draw on one bucket."""
        key = (call.request_id, call.provider)
        free = self._free.setdefault(key, 1)
        self._free[key] -= 1
        if free > 0:
            return
        self.extra += 1
        asked = self._begun()
        most = 10 + 0.2 * asked + self.time() + SLACK
        if self.extra > most:
            self.broken("budget", f"{self.extra} extra calls after {asked} requests")

    def _check_crowd(self) -> None:
        """No bound is exceeded for longer than it takes to cancel a call."""
        now = self.time()
        out = {name: len(health.out) for name, health in self.health.items()}
        bounds: dict[str, int | None] = {**self._most, "": int(self.settings["max_concurrency"])}
        out[""] = sum(out.values()) + sum(len(health.out) for health in self.retired.values())
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
        if took > asked.timeout + SLACK:
            self.broken("deadline", f"#{number} had {asked.timeout} s and took {took}")

    def failed(self, asked: Asked, error: BaseException) -> None:
        """A caller got an error."""
        if not isinstance(error, GatewayError):
            twice = "already running" in str(error)
            promise = "closed_twice" if twice else "typed_error"
            self.broken(promise, f"#{asked.ask.number} got {error!r}")
        asked.error = error
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
