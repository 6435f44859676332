"""One configured provider at run time: its guards, places, counters and connection.

Health, capabilities and disabling are kept per operation: what an embedding request meets says
nothing about chat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from aigateway.clock import Clock
from aigateway.errors import FailureKind, GatewayError, ProviderFailure
from aigateway.events import (
    CircuitChanged,
    Operation,
    ProviderCooledDown,
    ProviderDegraded,
    ProviderDisabled,
    ProviderEnabled,
    ProviderRecovered,
)
from aigateway.resilience.breaker import MOST_CAUSES, CircuitBreaker, CircuitState, Permit, Rejected
from aigateway.resilience.concurrency import AdaptiveLimit, Slots
from aigateway.resilience.cooldown import Cooldown, CooldownPolicy, Setup, SetupPolicy
from aigateway.resilience.guard import NEVER, AttemptOutcome, Effect, GuardRefusal
from aigateway.resilience.health import HealthPolicy, HealthWindow, OutstandingCall, ResponseTimes
from aigateway.resilience.last_resort import LastResort
from aigateway.resilience.rates import RateLimits
from aigateway.settings import GatewaySettings, LLMConfig, ProviderType
from aigateway.telemetry.metrics import LatencyWindow, ProviderCounters
from aigateway.telemetry.recorder import Emitter
from aigateway.wires.client import VendorClient, VendorClientFactory
from aigateway.wires.pricing import CostEstimator

__all__ = [
    "OPERATIONS",
    "CircuitOrder",
    "Guards",
    "OperationStatus",
    "Pass",
    "Provider",
    "ProviderStatus",
    "in_milliseconds",
]

OPERATIONS: tuple[Operation, ...] = ("chat", "embeddings")

CircuitOrder = Literal["open", "closed", "auto"]
"""What an operator wants of a circuit; "auto" leaves it to itself."""

_CIRCUIT_EVENTS = {
    CircuitState.OPEN: "circuit.opened",
    CircuitState.HALF_OPEN: "circuit.half_opened",
    CircuitState.CLOSED: "circuit.closed",
}


@dataclass(frozen=True, slots=True)
class OperationStatus:
    """What one operation of a provider is doing now.

    Attributes:
        active: Whether it could take a request now.
        circuit_state: As of the last request that looked.
        retry_after_seconds: When it is asked again as of right, beside others that answer; a
            request that has no other may ask it earlier, as last resort. None if it can be asked
            now, infinite while its circuit is forced open.
        disabled_reason: Why it is set up wrong, if it is.
        degraded: "errors" or "latency" while it works worse than it should, else None.
    """

    active: bool
    circuit_state: CircuitState
    retry_after_seconds: float | None
    disabled_reason: FailureKind | None
    degraded: str | None


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """What a provider is doing now.

    `active`, `circuit_state`, `retry_after_seconds`, `disabled_reason` and `degraded` are those of
    its main operation: chat, or embeddings where it only embeds.

    Attributes:
        name: Its one name.
        vendor: `ProviderType` value.
        model: The model it serves.
        priority: Higher is asked first.
        active: Whether it could take a request now.
        circuit_state: As of the last request that looked.
        retry_after_seconds: When it is asked again as of right, beside others that answer; a
            request that has no other may ask it earlier, as last resort. None if it can be asked
            now, infinite while its circuit is forced open.
        disabled_reason: Why it is set up wrong, if it is.
        in_flight: Calls that are out now.
        max_in_flight: Calls that may be out at once; falls when the vendor throttles, and recovers.
        forced: Whether its circuit stays as it is because an operator ordered it.
        aliases: Other names by which it may be asked for.
        degraded: "errors" or "latency" while it works worse than it should, else None.
        operations: Each of its operations by itself.
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
    degraded: str | None = None
    operations: Mapping[Operation, OperationStatus] = field(default_factory=dict)


_REPEATS_COUNT_AGAIN = 60.0
"""Seconds after which a repeat of a failed request is one more failure in a row."""


class Pass:
    """What an attempt holds of its provider's guards, from `Guards.begin` to its end.

    Attributes:
        permit: Of the circuit; None where it is settled and a new one was refused.
        last_resort: It was let through although the provider was to be left alone.
        unlocks: Its answer closes the circuit.
        answered: Its success has been counted: a stream's falls at its first content.
        checked, trial, trickled: What setup, cooldown and the purse of last resort want back.
    """

    answered = trial = trickled = False
    checked = -math.inf

    def __init__(self, permit: Permit, last_resort: bool) -> None:
        self.permit: Permit | None = permit
        self.last_resort = last_resort
        self.unlocks = permit.probe or permit.last_resort

    @property
    def probe(self) -> bool:
        """Whether the state of a half-open circuit hangs on this attempt."""
        return self.permit is not None and self.permit.probe


class Guards:
    """All guards of one operation of one provider, as one.

    Attributes:
        breaker: Stops us asking a provider that keeps failing.
        setup: Whether it is disabled.
        cooldown: Whether it asked to be left alone.
        health: Whether it is degraded.
        last_resort: How many attempts it gets while its circuit is not closed.
        answers: How quick its whole answers are.
        first_contents: How quick the first content of its streams is.
    """

    __slots__ = (
        "_emitter",
        "_operation",
        "_provider",
        "_repeats",
        "answers",
        "breaker",
        "cooldown",
        "first_contents",
        "health",
        "last_resort",
        "setup",
    )

    def __init__(
        self,
        operation: Operation,
        config: LLMConfig,
        settings: GatewaySettings,
        clock: Clock,
        emitter: Emitter,
    ) -> None:
        self._provider = config.name
        self._operation: Operation = operation
        self._emitter = emitter
        # Of the requests that failed in a row: when each counted first, and how often again.
        self._repeats: dict[Hashable, tuple[float, int]] = {}
        threshold = config.failure_threshold or settings.failure_threshold
        reset_timeout = config.reset_timeout_seconds or settings.reset_timeout_seconds
        # A probe may use its whole attempt timeout; only one that never settles is lost.
        lease = (config.timeout or settings.attempt_timeout) + 1
        self.breaker = CircuitBreaker(
            threshold,
            reset_timeout,
            max_open_seconds=settings.max_open_seconds,
            probe_lease_seconds=max(settings.probe_lease_seconds, lease),
            clock=clock,
            on_change=self._circuit_changed,
        )
        self.setup = Setup(clock, _setup_policy(settings, lease), self)
        self.cooldown = Cooldown(
            clock, CooldownPolicy(clamp=settings.max_cooldown_seconds, lease=lease), self
        )
        self.health = HealthWindow(clock, _health_policy(settings), self)
        self.last_resort = LastResort(clock)
        self.answers = ResponseTimes(clock, threshold, stale=reset_timeout)
        self.first_contents = ResponseTimes(clock, threshold, stale=reset_timeout)

    def refusal(self) -> GuardRefusal | None:
        """Why an attempt may not begin now, or None."""
        if self.setup.quiet and self.cooldown.quiet and self.breaker.state is CircuitState.CLOSED:
            return None
        if self.breaker.forced:  # the operator's order stands over all else
            closed = self.breaker.state is CircuitState.CLOSED
            return None if closed else GuardRefusal(FailureKind.CIRCUIT_OPEN, NEVER)
        refusal, cooling = self.setup.refusal(), self.cooldown.refusal()
        if cooling is not None:
            if self.cooldown.failing:  # then in doses, as through an open circuit
                doses = self.last_resort
                cooling = replace(cooling, last_resort=doses.wait(), pending=doses.pending)
            refusal = _both(refusal, cooling)
        if self.breaker.state is CircuitState.CLOSED:
            return refusal
        rejected = self.breaker.refusal()
        if rejected is None:
            return refusal
        doses, wait = self.last_resort, rejected.retry_after
        circuit = FailureKind.CIRCUIT_OPEN
        return _both(refusal, GuardRefusal(circuit, wait, doses.wait(), pending=doses.pending))

    def ramp_wait(self) -> float:
        """Seconds until a provider that has just come back takes one more call; 0.0 if now."""
        if not self.last_resort.ramping or self.breaker.state is not CircuitState.CLOSED:
            return 0.0
        return self.last_resort.ramp_wait()

    def is_degraded(self) -> bool:
        """Whether others had better be asked first: degraded, or it seems to hang."""
        if self.health.degraded is not None and self.health.is_degraded():
            return True
        return self.seems_to_hang()

    def is_in_service(self) -> bool:
        """Whether to ask it is neither a probe nor a check: circuit closed, and not disabled."""
        return self.breaker.state is CircuitState.CLOSED and self.setup.reason is None

    def seems_to_hang(self) -> bool:
        """Whether too many calls are out for too long. Settles calls that were outrun, if due."""
        answers, contents = self.answers.seems_to_hang(), self.first_contents.seems_to_hang()
        return answers or contents

    def begin(self, *, last_resort: bool) -> Pass | None:
        """An attempt begins; None if the circuit has changed meanwhile and refuses it.

        Args:
            last_resort: The request has no other provider left.
        """
        breaker = self.breaker
        permit = breaker.acquire_last_resort() if last_resort else breaker.acquire()
        if isinstance(permit, Rejected):
            return None
        held = Pass(permit, last_resort)
        dosed = held.unlocks
        if not (self.setup.quiet and self.cooldown.quiet):
            dosed = dosed or (last_resort and self.cooldown.failing)
            held.checked, held.trial = self.setup.begin(), self.cooldown.begin()
        if not self.last_resort.quiet or dosed:
            held.trickled = self.last_resort.begin(closed=not dosed)
        return held

    def answered(
        self, held: Pass, outcome: AttemptOutcome, pace: ResponseTimes, outstanding: OutstandingCall
    ) -> None:
        """A stream has given its first content, or an attempt its answer.

        The verdict on the provider falls here. What may break later is counted by `end`; where
        the state of the circuit hung on this attempt, under a permit of its own.
        """
        slow = pace.is_slow(outcome.seconds, self.health.policy.latency)
        pace.succeeded(outstanding, outcome.seconds, slow=slow)
        held.answered = True
        if not self.setup.quiet:
            self.setup.end(held.checked, outcome)
        if not self.cooldown.quiet:
            self.cooldown.end(held.trial, outcome)
        if slow or self.health.degraded is not None:
            self.health.end(None, outcome, slow=slow)
        else:
            self.health.good()
        if not self.last_resort.quiet:
            self.last_resort.end(held.trickled, outcome)
            held.trickled = False
        held.trial = False
        if held.unlocks and held.permit is not None:
            held.permit.success()
            held.permit = None
            if self.breaker.state is CircuitState.CLOSED:
                again = self.breaker.acquire()
                held.permit = None if isinstance(again, Rejected) else again

    def end(self, held: Pass, outcome: AttemptOutcome) -> None:
        """An attempt ended; every guard does with it what the table in `guard.py` says."""
        effect, permit = outcome.effect, held.permit
        if effect is Effect.ANSWERED:  # `answered` has told the others
            if permit is not None:
                permit.success()
            return
        if permit is not None and effect is Effect.FAILED:
            permit.failure(self._evidence(outcome.cause()))
        elif permit is not None:
            permit.release()
        proven = effect is Effect.MISCONFIGURED and self.health.has_answered()
        self.setup.end(held.checked, outcome, proven=proven)
        self.cooldown.end(held.trial, outcome)
        self.health.end(None, outcome)
        self.last_resort.end(held.trickled, outcome)

    def _evidence(self, cause: Hashable) -> Hashable:
        """What tells one failure of a row from another.

        Repeats of a request are one, but a vendor that fails the same request all day is left, too.
        """
        breaker, repeats = self.breaker, self._repeats
        if not breaker.consecutive_failures or len(repeats) >= MOST_CAUSES:
            repeats.clear()
        now = breaker.clock.now()
        first, times = repeats.get(cause, (now, 0))
        if now - first >= _REPEATS_COUNT_AGAIN:
            first, times = now, times + 1
        repeats[cause] = (first, times)
        return (cause, times)

    def force(self, order: CircuitOrder) -> None:
        """Take the circuit in hand, or leave it to itself again.

        "closed" ends whatever keeps requests away: a cooldown and a disabled state, too.
        """
        if order == "open":
            self.breaker.force_open()
        elif order == "closed":
            self.breaker.force_closed()
            for guard in (self.setup, self.cooldown, self.health, self.last_resort):
                guard.reset()
        elif self.breaker.forced:  # else it is left to itself already, and knows what it does
            self.breaker.reset()

    def take_over(self, other: Guards) -> None:
        """Go on where those of the same provider in another gateway are, as far as they agree."""
        if self.setup.policy == other.setup.policy:
            self.setup = other.setup
            self.setup.listener = self
        if self.cooldown.policy == other.cooldown.policy:
            self.cooldown = other.cooldown
            self.cooldown.listener = self
        if self.breaker.terms == other.breaker.terms:
            self.breaker = other.breaker
            self.breaker.on_change = self._circuit_changed
            self.last_resort = other.last_resort
        if self.health.policy == other.health.policy:
            self.health = other.health
            self.health.listener = self
            self.answers = other.answers
            self.first_contents = other.first_contents

    def abandon(self) -> None:
        """Forget what is out: its event loop is gone."""
        for part in (self.setup, self.cooldown, self.last_resort, self.answers):
            part.abandon()
        self.first_contents.abandon()

    def close(self) -> None:
        """Judge nothing any more of calls that were outrun."""
        self.answers.close()
        self.first_contents.close()

    def status(self) -> OperationStatus:
        """What the operation is doing now."""
        refusal = self.refusal()
        return OperationStatus(
            active=refusal is None,
            circuit_state=self.breaker.state,
            retry_after_seconds=in_milliseconds(refusal.retry_after) if refusal else None,
            disabled_reason=self.setup.reason,
            degraded=self.health.degraded if self.health.is_degraded() else None,
        )

    # ── what the guards decide, as events ────────────────────────────────────────────────────

    def cooled_down(self, seconds: float, *, limited: bool) -> None:
        """As `GuardListener`."""
        self._emitter.emit(
            ProviderCooledDown(self._provider, round(seconds, 3), self._operation, limited)
        )

    def disabled(self, reason: FailureKind, status: int | None, seconds: float) -> None:
        """As `GuardListener`."""
        self._emitter.emit(
            ProviderDisabled(self._provider, reason, status, round(seconds, 3), self._operation)
        )

    def enabled(self) -> None:
        """As `GuardListener`."""
        self._emitter.emit(ProviderEnabled(self._provider, self._operation))

    def degraded(self, reason: Literal["errors", "latency"], share: float) -> None:
        """As `GuardListener`."""
        event = ProviderDegraded(self._provider, reason, round(share, 3), self._operation)
        self._emitter.emit(event)

    def recovered(self) -> None:
        """As `GuardListener`."""
        self._emitter.emit(ProviderRecovered(self._provider, self._operation))

    def _circuit_changed(self, old: CircuitState, new: CircuitState) -> None:
        self._emitter.emit(
            CircuitChanged(
                _CIRCUIT_EVENTS[new], self._provider, old.value, new.value, self._operation
            )
        )


class Provider:
    """The run-time side of an `LLMConfig`. Belongs to one gateway and one event loop at a time.

    Attributes:
        adaptive: How many calls the vendor bears at once; rules `slots.limit`.
        chat: The guards of chat; `embeddings` likewise.
        company: Whose API it is; servers of the same type at other addresses are others.
        costs: What its calls come to where the vendor has not counted.
        first_contents_seen: Percentiles of the time to the first content of streams, for metrics.
        known_operations: What its model is known to do; None where that is not known (yet).
        on_prepared: Called when `known_operations` may have changed.
        rates: Its `rpm` and `tpm`, if it has such.
        retired: Taken out of the gateway; requests on their way pass it over.
        turn: Where it stands in the rotation among providers of equal priority (`select.py`).
    """

    __slots__ = (
        "_client",
        "_clock",
        "_make_client",
        "adaptive",
        "answers_to",
        "attempt_timeout",
        "chat",
        "company",
        "config",
        "costs",
        "counters",
        "embeddings",
        "first_contents_seen",
        "first_token_timeout",
        "known_operations",
        "model",
        "name",
        "on_prepared",
        "prepared",
        "priority",
        "rates",
        "retired",
        "slots",
        "turn",
        "vendor",
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
        self.vendor = str(config.provider)
        self.company = _company(config)
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
        self.first_contents_seen = LatencyWindow()
        self.counters = ProviderCounters()
        self.costs = CostEstimator(config)
        self.chat = Guards("chat", config, settings, clock, emitter)
        self.embeddings = Guards("embeddings", config, settings, clock, emitter)
        given = config.operations
        self.known_operations = None if given is None else frozenset(given)
        self._clock = clock
        self._make_client = make_client
        self._client: VendorClient | None = None
        self.on_prepared: Callable[[], object] = lambda: None
        self.prepared = False
        self.retired = False

    def __repr__(self) -> str:
        return f"<Provider {self.name} {self.main.breaker.state}>"

    @property
    def main(self) -> Guards:
        """The guards of its main operation: chat, or embeddings where it only embeds."""
        return self.chat if self.offers("chat") else self.embeddings

    def guards(self, operation: Operation) -> Guards:
        """Those of one operation."""
        return self.chat if operation == "chat" else self.embeddings

    def offers(self, operation: Operation) -> bool:
        """Whether its model does that, as far as is known."""
        return self.known_operations is None or operation in self.known_operations

    def refusal(self, operation: Operation) -> GuardRefusal | None:
        """Why this provider should not be asked now, or None. Its places are a separate matter."""
        if self.retired:
            return GuardRefusal(FailureKind.DISABLED, math.inf)
        return self.guards(operation).refusal()

    def refused(self, refusal: GuardRefusal) -> ProviderFailure:
        """A refusal as the cause of an error."""
        wait = in_milliseconds(refusal.worth_asking_in)
        return ProviderFailure(self.name, refusal.kind, retry_after_seconds=wait)

    def force_circuit(self, order: CircuitOrder) -> None:
        """Take its circuits in hand, or leave them to themselves again."""
        self.chat.force(order)
        self.embeddings.force(order)

    def dropped(
        self, params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[str]:
        """Name the parameters of a chat that would be left out here, as far as is known."""
        return self._client.dropped(params, messages) if self.prepared and self._client else ()

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
            self.known_operations = client.operations
            self.prepared = client is self._client
            self.on_prepared()
        if not self.prepared:
            raise GatewayError(f"The provider {self.name} was removed or closed.")

    def take_over(self, other: Provider) -> None:
        """Go on where the run-time side of the same configuration in another gateway is.

        Both then have the same guards (where what governs them is the same), rates and counters:
        what calls of the other find out is true of this one's vendor, too.
        """
        self.counters = other.counters
        self.first_contents_seen = other.first_contents_seen
        self.rates = other.rates
        self.chat.take_over(other.chat)
        self.embeddings.take_over(other.embeddings)

    async def retire(self) -> None:
        """Let the calls that are out end, then close the connections."""
        await self.slots.empty()
        self.close_guards()
        await self.aclose()

    def close_guards(self) -> None:
        """Judge nothing any more of calls that were outrun."""
        self.chat.close()
        self.embeddings.close()

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
        self.chat.abandon()
        self.embeddings.abandon()
        self.slots = Slots(self.adaptive.limit)  # what was out settles with the old one

    def status(self) -> ProviderStatus:
        """What it is doing now."""
        operations = {name: self.guards(name).status() for name in OPERATIONS if self.offers(name)}
        main = operations["chat" if self.offers("chat") else "embeddings"]
        return ProviderStatus(
            name=self.name,
            vendor=self.vendor,
            model=self.model,
            priority=self.priority,
            active=main.active and not self.retired,
            circuit_state=main.circuit_state,
            retry_after_seconds=main.retry_after_seconds,
            disabled_reason=main.disabled_reason,
            in_flight=self.slots.in_flight,
            max_in_flight=self.adaptive.limit,
            forced=self.chat.breaker.forced,
            aliases=self.config.aliases,
            degraded=main.degraded,
            operations=operations,
        )

    def metrics(self) -> dict[str, Any]:
        """Counters and state as plain values, fit for JSON."""
        status, breaker = self.status(), self.main.breaker
        return {
            **self.counters.snapshot(),
            "active": status.active,
            "circuit_state": str(status.circuit_state),
            "consecutive_failures": breaker.consecutive_failures,
            "late_results": breaker.late_results,
            "disabled_reason": str(status.disabled_reason or "") or None,
            "degraded": status.degraded,
            "first_content_seconds": self.first_contents_seen.percentiles(),
            "in_flight": self.slots.in_flight,
            "max_in_flight": self.adaptive.limit,
        }


def _both(one: GuardRefusal | None, other: GuardRefusal) -> GuardRefusal:
    """What two guards say that refuse: the first one's reason, and the longer waits."""
    if one is None:
        return other
    return GuardRefusal(
        one.kind,
        max(one.retry_after, other.retry_after),
        max(one.last_resort, other.last_resort),
        min((c for c in (one.changes_in, other.changes_in) if c > 0), default=0.0),
        one.pending or other.pending,
    )


def in_milliseconds(seconds: float) -> float:
    """Rounded up, so that a wait is never taken for none."""
    return seconds if math.isinf(seconds) else math.ceil(seconds * 1000) / 1000


def _company(config: LLMConfig) -> tuple[str, ...]:
    """Equal for two providers that are the same vendor's."""
    if config.provider is ProviderType.OPENAI_COMPATIBLE:
        return (config.provider, urlsplit(config.api_base or "").netloc)
    if config.provider is ProviderType.LITELLM:
        return (config.provider, config.model.partition("/")[0], config.api_base or "")
    return (config.provider,)


def _setup_policy(settings: GatewaySettings, lease: float) -> SetupPolicy:
    return SetupPolicy(
        recheck=settings.disabled_recheck_seconds,
        longest_recheck=settings.disabled_recheck_max_seconds,
        lease=lease,
    )


def _health_policy(settings: GatewaySettings) -> HealthPolicy:
    return HealthPolicy(
        window=settings.degraded_window_seconds,
        least=settings.degraded_min_attempts,
        errors=settings.degraded_error_percent / 100,
        latency=settings.degraded_latency_factor,
        canaries=settings.degraded_canary_percent / 100,
    )
