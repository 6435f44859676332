"""One configured provider at run time: its circuit, gates, places, counters and connection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from aigateway.clock import Clock
from aigateway.errors import FailureKind, GatewayError, ProviderFailure
from aigateway.events import CircuitChanged
from aigateway.resilience.adaptive import AdaptiveLimit
from aigateway.resilience.breaker import CircuitBreaker, CircuitState
from aigateway.resilience.gates import GatePolicy, Gates
from aigateway.resilience.hangs import HangWatch
from aigateway.resilience.latency import RecentLatency
from aigateway.resilience.limiter import Slots
from aigateway.resilience.rates import RateLimits
from aigateway.settings import GatewaySettings, LLMConfig
from aigateway.telemetry.emitter import Emitter
from aigateway.telemetry.metrics import LatencyWindow, ProviderCounters
from aigateway.vendor.client import VendorClient, VendorClientFactory
from aigateway.vendor.pricing import CostEstimator

__all__ = ["CircuitOrder", "Pace", "Provider", "ProviderStatus", "in_milliseconds"]

CircuitOrder = Literal["open", "closed", "auto"]
"""What somebody wants of a circuit; "auto" leaves it to itself."""

_CIRCUIT_EVENTS = {
    CircuitState.OPEN: "circuit.opened",
    CircuitState.HALF_OPEN: "circuit.half_opened",
    CircuitState.CLOSED: "circuit.closed",
}


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """What a provider is doing now.

    Attributes:
        name: Its one name.
        vendor: `ProviderType` value.
        model: The model it serves.
        priority: Higher is asked first.
        active: Whether it could take a request now.
        circuit_state: As of the last request that looked.
        retry_after_seconds: When it can be asked again; None if it can be asked now, infinite
            while its circuit is forced open.
        disabled_reason: Why it is set up wrong, if it is.
        in_flight: Calls that are out now.
        max_in_flight: Calls that may be out at once; falls when the vendor throttles, and recovers.
        forced: Whether its circuit stays as it is because somebody ordered it.
        aliases: Other names by which it may be asked for.
    """

    name: str
    vendor: str
    model: str
    priority: int
    active: bool
    circuit_state: CircuitState
    retry_after_seconds: float | None
    disabled_reason: FailureKind | None
    in_flight: int
    max_in_flight: int
    forced: bool = False
    aliases: tuple[str, ...] = ()


class Pace:
    """How quick a provider is in one kind of thing (whole answers, first contents).

    Attributes:
        latency: What it took of late.
        watch: The calls that are out, and whether they take suspiciously long.
    """

    __slots__ = ("latency", "watch")

    def __init__(self, clock: Clock, threshold: int, stale: float) -> None:
        self.latency = RecentLatency()
        self.watch = HangWatch(clock, threshold, stale=stale)

    def seems_to_hang(self) -> bool:
        """Whether too many calls are out for too long. Settles calls that were given up, if due."""
        return self.watch.suspected(self.latency.p95)


class Provider:
    """The run-time side of an `LLMConfig`. Belongs to one gateway and one event loop at a time.

    Attributes:
        adaptive: How many calls the vendor bears at once; rules `slots.limit`.
        answers: How quick its answers are.
        first_contents: How quick the first content of its streams is.
        first_contents_seen: The latter's percentiles, for the metrics.
        rates: Its `rpm` and `tpm`, if it has such.
        retired: Taken out of the gateway; requests on their way pass it over.
        turn: Where it stands in the rotation among providers of equal priority (`plan.py`).
    """

    __slots__ = (
        "_client",
        "_clock",
        "_emitter",
        "_make_client",
        "adaptive",
        "answers",
        "answers_to",
        "attempt_timeout",
        "breaker",
        "config",
        "costs",
        "counters",
        "first_contents",
        "first_contents_seen",
        "first_token_timeout",
        "gates",
        "model",
        "name",
        "prepared",
        "priority",
        "rates",
        "retired",
        "slots",
        "turn",
        "weight",
    )

    def __init__(
        self,
        config: LLMConfig,
        settings: GatewaySettings,
        clock: Clock,
        emitter: Emitter,
        make_client: VendorClientFactory,
    ) -> None:
        self.config = config
        self.name = config.name
        self.model = config.model
        self.priority = config.priority
        self.weight = config.weight
        self.answers_to = frozenset({config.name, config.model, *config.aliases})
        self.attempt_timeout = config.timeout or settings.attempt_timeout
        self.turn = 0.0
        self.first_token_timeout = min(settings.first_token_timeout, self.attempt_timeout)
        self.adaptive = AdaptiveLimit(config.max_concurrency or settings.max_concurrency, clock)
        self.slots = Slots(self.adaptive.limit)
        self.rates = RateLimits(clock, config.rpm, config.tpm) if config.rpm or config.tpm else None
        threshold = config.failure_threshold or settings.failure_threshold
        reset_timeout = config.reset_timeout_seconds or settings.reset_timeout_seconds
        self.answers = Pace(clock, threshold, reset_timeout)
        self.first_contents = Pace(clock, threshold, reset_timeout)
        self.first_contents_seen = LatencyWindow()
        self.counters = ProviderCounters()
        self.costs = CostEstimator(config)
        self.gates = Gates(clock, _gate_policy(settings, self.attempt_timeout))
        self.breaker = CircuitBreaker(
            threshold,
            reset_timeout,
            max_open_seconds=settings.max_open_seconds,
            # A probe may use its whole attempt timeout; only one that never settles is lost.
            probe_lease_seconds=max(settings.probe_lease_seconds, self.attempt_timeout + 1),
            clock=clock,
            on_change=self._circuit_changed,
        )
        self._clock = clock
        self._emitter = emitter
        self._make_client = make_client
        self._client: VendorClient | None = None
        self.prepared = False
        self.retired = False

    def __repr__(self) -> str:
        return f"<Provider {self.name} {self.breaker.state}>"

    def refusal(self) -> ProviderFailure | None:
        """Why this provider should not be asked now, or None. Its places are a separate matter."""
        if self.retired:
            return ProviderFailure(self.name, FailureKind.DISABLED, retry_after_seconds=math.inf)
        closed = self.gates.closed()
        if closed is not None:
            return ProviderFailure(
                self.name, closed.kind, retry_after_seconds=in_milliseconds(closed.retry_after)
            )
        rejected = self.breaker.refusal()
        if rejected is not None:
            return ProviderFailure(
                self.name,
                FailureKind.CIRCUIT_OPEN,
                retry_after_seconds=in_milliseconds(rejected.retry_after),
            )
        return None

    def seems_to_hang(self) -> bool:
        """Whether others had better be asked first. Settles calls that were given up, if due."""
        answers, first_contents = self.answers.seems_to_hang(), self.first_contents.seems_to_hang()
        return answers or first_contents

    def force_circuit(self, order: CircuitOrder) -> None:
        """Take the circuit in hand, or leave it to itself again."""
        if order == "open":
            self.breaker.force_open()
        elif order == "closed":
            self.breaker.force_closed()
        elif self.breaker.forced:  # else it is left to itself already, and knows what it does
            self.breaker.reset()

    def pause(self) -> float | None:
        """Seconds until the vendor's own limits allow a call again, if it has just said so."""
        return None if self._client is None else self._client.pause()

    @property
    def client(self) -> VendorClient:
        """The connection to the vendor, opened on the running loop at first use."""
        if self._client is None:
            self._client = self._make_client(self.config, self._clock)
        return self._client

    async def prepare(self) -> None:
        """Load what the first attempt would otherwise wait for.

        Raises:
            GatewayError: It has been removed, before or meanwhile.
        """
        if not self.retired:
            client = self.client
            await client.prepare()
            self.prepared = client is self._client
        if not self.prepared:
            raise GatewayError(f"The provider {self.name} was removed or closed.")

    def take_over(self, other: Provider) -> None:
        """Go on where the run-time side of the same configuration in another gateway is.

        Both then have the same circuit and gates (if what governs them is the same), rates and
        counters: what calls of the other find out is true of this one's vendor, too.
        """
        self.counters = other.counters
        self.first_contents_seen = other.first_contents_seen
        self.rates = other.rates
        if self.gates.policy == other.gates.policy:
            self.gates = other.gates
        if self.breaker.terms == other.breaker.terms:
            self.breaker = other.breaker
            self.breaker.on_change = self._circuit_changed

    async def retire(self) -> None:
        """Let the calls that are out end, then close the connections."""
        await self.slots.empty()
        self.close_watches()
        await self.aclose()

    def close_watches(self) -> None:
        """Judge nothing any more of calls that were given up."""
        self.answers.watch.close()
        self.first_contents.watch.close()

    async def aclose(self) -> None:
        """Close the connections. The next attempt would open new ones."""
        client, self._client = self._client, None
        self.prepared = False
        if client is not None:
            await client.aclose()

    def abandon(self) -> None:
        """Let go of the connections without closing them: their event loop is gone."""
        self._client = None
        self.prepared = False
        self.close_watches()
        self.slots = Slots(self.adaptive.limit)  # what was out settles with the old one

    def status(self) -> ProviderStatus:
        """What it is doing now."""
        refusal = self.refusal()
        return ProviderStatus(
            name=self.name,
            vendor=str(self.config.provider),
            model=self.model,
            priority=self.priority,
            active=refusal is None,
            circuit_state=self.breaker.state,
            retry_after_seconds=refusal.retry_after_seconds if refusal else None,
            disabled_reason=self.gates.disabled_reason,
            in_flight=self.slots.in_flight,
            max_in_flight=self.adaptive.limit,
            forced=self.breaker.forced,
            aliases=self.config.aliases,
        )

    def metrics(self) -> dict[str, Any]:
        """Counters and state as plain values, fit for JSON."""
        refusal = self.refusal()
        return {
            **self.counters.snapshot(),
            "active": refusal is None,
            "circuit_state": str(self.breaker.state),
            "consecutive_failures": self.breaker.consecutive_failures,
            "late_results": self.breaker.late_results,
            "disabled_reason": str(self.gates.disabled_reason or "") or None,
            "first_content_seconds": self.first_contents_seen.percentiles(),
            "in_flight": self.slots.in_flight,
            "max_in_flight": self.adaptive.limit,
        }

    def _circuit_changed(self, old: CircuitState, new: CircuitState) -> None:
        self._emitter.emit(CircuitChanged(_CIRCUIT_EVENTS[new], self.name, old.value, new.value))


def in_milliseconds(seconds: float) -> float:
    """Rounded up, so that a wait is never taken for none."""
    return seconds if math.isinf(seconds) else math.ceil(seconds * 1000) / 1000


def _gate_policy(settings: GatewaySettings, attempt_timeout: float) -> GatePolicy:
    return GatePolicy(
        recheck=settings.disabled_recheck_seconds,
        max_recheck=settings.disabled_recheck_max_seconds,
        recheck_lease=attempt_timeout + 1,
    )
