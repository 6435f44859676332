"""The guards of one operation of one provider, driven as one.

What each end of an attempt means for each guard is the table in `resilience/guard.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.events import (
    CircuitChanged,
    CircuitOrder,
    Degradation,
    Event,
    Operation,
    ProviderCooledDown,
    ProviderDegraded,
    ProviderDisabled,
    ProviderEnabled,
    ProviderRecovered,
)
from aigateway.fleet.votes import SharedCircuit, Votes, shared_name
from aigateway.records import Record
from aigateway.resilience.breaker import MOST_CAUSES, CircuitState, FleetBreaker, Permit, Rejected
from aigateway.resilience.cooldown import Cooldown, CooldownPolicy, Disabling, DisablingPolicy
from aigateway.resilience.guard import NEVER, AttemptOutcome, Effect, GuardRefusal
from aigateway.resilience.health import HealthPolicy, HealthWindow, OutstandingCall, ResponseTimes
from aigateway.resilience.last_resort import LastResort
from aigateway.settings import GatewaySettings, LLMConfig
from aigateway.telemetry.recorder import Emitter

__all__ = ["GuardPass", "Guards", "OperationStatus", "in_milliseconds"]

_CLOSED = CircuitState.CLOSED
"""A name of its own: Python looks members of enumerations up slowly."""

_CIRCUIT_EVENTS: Mapping[
    CircuitState, Literal["circuit.opened", "circuit.half_opened", "circuit.closed"]
] = {
    CircuitState.OPEN: "circuit.opened",
    CircuitState.HALF_OPEN: "circuit.half_opened",
    CircuitState.CLOSED: "circuit.closed",
}


@dataclass(frozen=True, slots=True)
class OperationStatus(Record):
    """The present state of one operation of a provider; fields as in `ProviderStatus`."""

    active: bool
    circuit_state: CircuitState
    retry_after_seconds: float | None
    disabled_reason: FailureKind | None
    degraded: Degradation | None


_REPEATS_COUNT_AGAIN = 60.0
"""Seconds after which a repeat of a failed request counts as one more failure in a row."""


class GuardPass:
    """The tokens of all guards for one attempt, from `Guards.begin` to its end.

    Without an `__init__`, since one is made for each attempt.

    Attributes:
        permit: The circuit's; None if it is settled.
        last_resort: The guards refused it, and it began nevertheless.
        unlocks: Its answer closes the circuit.
        answered: Its success has been counted, for a stream at its first content.
        checked, trial, trickled: The tokens of disabling, cooldown and last resort.
    """

    permit: Permit | None
    last_resort = unlocks = answered = trial = trickled = False
    checked = -math.inf

    @property
    def probe(self) -> bool:
        """Whether the state of a half-open circuit depends on this attempt."""
        return self.permit is not None and self.permit.probe


class Guards:
    """All guards of one operation of one provider.

    `answers` has the latencies of whole answers, `first_contents` those to the first content of
    streams. `shared` is its circuit in the fleet, if there is one.
    """

    def __init__(
        self,
        operation: Operation,
        config: LLMConfig,
        settings: GatewaySettings,
        clock: Clock,
        emitter: Emitter,
    ) -> None:
        self._provider = config.name
        self._config = config
        self.shared: SharedCircuit | None = None
        self._operation = operation
        self._emitter = emitter
        self._retired = False
        # For each request that failed in a row: when it counted first, and how often again.
        self._repeats: dict[Hashable, tuple[float, int]] = {}
        threshold = config.failure_threshold or settings.failure_threshold
        reset_timeout = config.reset_timeout_seconds or settings.reset_timeout_seconds
        # A probe may use its whole attempt timeout; only one that is never settled is lost.
        lease = (config.timeout or settings.attempt_timeout) + 1
        self.breaker = FleetBreaker(
            threshold,
            reset_timeout,
            max_open_seconds=settings.max_open_seconds,
            probe_lease_seconds=max(settings.probe_lease_seconds, lease),
            clock=clock,
            on_change=self._circuit_changed,
        )
        recheck, longest = settings.disabled_recheck_seconds, settings.disabled_recheck_max_seconds
        self.disabling = Disabling(clock, DisablingPolicy(recheck, longest, lease), self)
        cooling = CooldownPolicy(clamp=settings.max_cooldown_seconds, lease=lease)
        self.cooldown = Cooldown(clock, cooling, self)
        self.health = HealthWindow(clock, _health_policy(settings), self)
        self.last_resort = LastResort(clock)
        self.answers = ResponseTimes(clock, threshold, stale=reset_timeout)
        self.first_contents = ResponseTimes(clock, threshold, stale=reset_timeout)

    def share(self, votes: Votes, is_sound: Callable[[], bool]) -> None:
        """Share circuit and cooldown with other processes.

        Args:
            votes: Where.
            is_sound: Returns whether failures seen here are evidence against the provider.
        """
        name = shared_name(self._config, self._operation)
        self.shared = votes.share(name, self.breaker, self.cooldown)
        self.shared.is_sound = is_sound

    def unshare(self) -> None:
        """Share nothing: circuits may come from a gateway that did."""
        self.shared = self.breaker.advisor = None

    def retire(self) -> None:
        """Emit no more events: another provider may have the name by now."""
        self._retired = True

    def refusal(self, *, for_request: bool = True) -> GuardRefusal | None:
        """Return why an attempt may not begin now, or None.

        Args:
            for_request: A request asks, which could be the probe of an open circuit.
        """
        if self.breaker.forced:  # the operator's order comes first
            closed = self.breaker.state is _CLOSED
            return None if closed else GuardRefusal(FailureKind.CIRCUIT_OPEN, NEVER)
        refusal, cooling = self.disabling.refusal(), self.cooldown.refusal()
        if cooling is not None:
            if self.cooldown.failing:  # in doses, as with an open circuit
                doses = self.last_resort
                cooling = replace(cooling, last_resort=doses.wait(), pending=doses.pending)
            refusal = _combined(refusal, cooling)
        if self.breaker.state is _CLOSED:
            return refusal
        rejected = self.breaker.refusal()
        if rejected is None:
            return refusal
        if for_request and self.shared is not None:
            self.shared.wanted()
        doses, wait = self.last_resort, rejected.retry_after
        circuit = FailureKind.CIRCUIT_OPEN
        return _combined(refusal, GuardRefusal(circuit, wait, doses.wait(), pending=doses.pending))

    def is_healthy(self) -> bool:
        """Return True only if `refusal`, `is_degraded` and `ramp_wait` have no objection.

        A short form of these for most requests.
        """
        answers, contents = self.answers, self.first_contents
        return (
            self.breaker.state is _CLOSED
            and self.disabling.quiet
            and self.cooldown.quiet
            and self.last_resort.quiet
            and self.health.degraded is None
            and not answers.hedges_lost
            and not contents.hedges_lost
            and len(answers.outstanding) < answers.threshold
            and len(contents.outstanding) < contents.threshold
        )

    def ramp_wait(self) -> float:
        """Return the seconds until a recovered provider takes one more call; 0.0 if now."""
        if not self.last_resort.ramping or self.breaker.state is not CircuitState.CLOSED:
            return 0.0
        return self.last_resort.ramp_wait()

    def is_degraded(self) -> bool:
        """Return whether others are to be preferred: degraded, or it seems to hang."""
        if self.health.degraded is not None and self.health.is_degraded():
            return True
        return self.seems_to_hang()

    def is_in_service(self) -> bool:
        """Return whether a call is neither a probe nor a check: circuit closed, not disabled."""
        return self.breaker.state is _CLOSED and self.disabling.reason is None

    def seems_to_hang(self) -> bool:
        """Return whether too many calls take too long. Settles lost hedges that are due."""
        answers, contents = self.answers.seems_to_hang(), self.first_contents.seems_to_hang()
        return answers or contents

    def begin(self, *, last_resort: bool) -> GuardPass | None:
        """Begin an attempt. Return None if the circuit has changed meanwhile and refuses it.

        Args:
            last_resort: The request has no other provider left.
        """
        breaker = self.breaker
        permit = breaker.acquire_last_resort() if last_resort else breaker.acquire()
        if isinstance(permit, Rejected):
            return None
        held = GuardPass()
        held.permit = permit
        dosed = permit.probe or permit.last_resort
        if last_resort or dosed:
            held.last_resort, held.unlocks = last_resort, dosed
        if not (self.disabling.quiet and self.cooldown.quiet):
            dosed = dosed or (last_resort and self.cooldown.failing)
            held.checked, held.trial = self.disabling.begin(), self.cooldown.begin()
        if not self.last_resort.quiet or dosed:
            held.trickled = self.last_resort.begin(closed=not dosed)
        return held

    def answered_as_usual(
        self,
        held: GuardPass,
        seconds: float,
        times: ResponseTimes,
        outstanding: OutstandingCall,
    ) -> bool:
        """Record a whole answer that changes no guard; return False if it may change one.

        A short form of `answered` for most requests.
        """
        permit, health, usual = held.permit, self.health, times.usual
        if (
            permit is None
            or self.shared is not None
            or health.degraded is not None
            or (usual is not None and seconds > usual * health.policy.latency)
            or not (self.disabling.quiet and self.cooldown.quiet and self.last_resort.quiet)
        ):
            return False
        times.succeeded(outstanding, seconds)
        held.answered, held.permit = True, None
        health.good()
        permit.success()
        return True

    def answered(
        self,
        held: GuardPass,
        outcome: AttemptOutcome,
        times: ResponseTimes,
        outstanding: OutstandingCall,
        *,
        whole: bool = False,
    ) -> None:
        """Record a success: the whole answer, or the first content of a stream.

        A stream that breaks later is a failure of its own, which `end` records; if its first
        content has closed the circuit, under a new permit.
        """
        seconds, usual = outcome.seconds, times.usual
        slow = (
            usual is not None
            and seconds > usual
            and times.is_slow(seconds, self.health.policy.latency)
        )
        times.succeeded(outstanding, seconds, slow=slow)
        held.answered = True
        if self.shared is not None:
            self.shared.answered(seconds)
        if not self.disabling.quiet:
            self.disabling.end(held.checked, outcome)
        if not self.cooldown.quiet:
            self.cooldown.end(held.trial, outcome)
        if slow or self.health.degraded is not None:
            self.health.end(outcome, slow=slow)
        else:
            self.health.good()
        if not self.last_resort.quiet:
            self.last_resort.end(held.trickled, outcome)
            held.trickled = False
        held.trial = False
        if held.permit is not None and (whole or held.unlocks):
            held.permit.success()
            held.permit = None
            if not whole and self.breaker.state is _CLOSED:
                again = self.breaker.acquire()
                held.permit = None if isinstance(again, Rejected) else again

    def end(self, held: GuardPass, outcome: AttemptOutcome) -> None:
        """Record how an attempt ended, as the table in `resilience/guard.py` says."""
        effect, permit = outcome.effect, held.permit
        if effect is Effect.ANSWERED:  # all but the permit is done by `answered`
            if permit is not None:
                permit.success()
            return
        if permit is not None and effect is Effect.FAILED:
            permit.failure(self._evidence(outcome.cause()))
        elif permit is not None:
            permit.release()
        proven = effect is Effect.MISCONFIGURED and self.health.has_answered()
        self.disabling.end(held.checked, outcome, proven=proven)
        self.cooldown.end(held.trial, outcome)
        self.health.end(outcome)
        self.last_resort.end(held.trickled, outcome)

    def _evidence(self, cause: Hashable) -> Hashable:
        """Return what distinguishes this failure from others in a row.

        Repeats of a request count once a minute: a vendor may fail the same request all day.
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
        """Force the circuit open or closed, or end that.

        "closed" ends all that stops requests: a cooldown and a disabled state, too.
        """
        if order == "open":
            self.breaker.force_open()
        elif order == "closed":
            self.breaker.force_closed()
            for guard in (self.disabling, self.cooldown, self.health, self.last_resort):
                guard.reset()
        elif self.breaker.forced:  # else the circuit is automatic already, and keeps its state
            self.breaker.reset()

    def take_over(self, other: Guards) -> None:
        """Share the state of the same provider's guards in another gateway, if policies agree."""
        if self.disabling.policy == other.disabling.policy:
            self.disabling = other.disabling
            self.disabling.listener = self
        if self.cooldown.policy == other.cooldown.policy:
            self.cooldown = other.cooldown
            self.cooldown.listener = self
        if self.breaker.terms == other.breaker.terms:
            self.breaker = other.breaker
            self.shared = other.shared
            self.breaker.on_change = self._circuit_changed
            self.last_resort = other.last_resort
        if self.health.policy == other.health.policy:
            self.health = other.health
            self.health.listener = self
            self.answers = other.answers
            self.first_contents = other.first_contents

    def abandon(self) -> None:
        """Forget the attempts in flight: their event loop is gone."""
        for part in (self.disabling, self.cooldown, self.last_resort, self.answers):
            part.abandon()
        self.first_contents.abandon()

    def close(self) -> None:
        """Settle lost hedges without a failure."""
        self.answers.close()
        self.first_contents.close()

    def status(self) -> OperationStatus:
        """Return the present state of the operation."""
        refusal = self.refusal(for_request=False)
        return OperationStatus(
            active=refusal is None,
            circuit_state=self.breaker.state,
            retry_after_seconds=in_milliseconds(refusal.retry_after) if refusal else None,
            disabled_reason=self.disabling.reason,
            degraded=self.health.degraded if self.health.is_degraded() else None,
        )

    # ── events ───────────────────────────────────────────────────────────────────────────────

    def cooled_down(self, seconds: float, *, limited: bool, by_others: bool = False) -> None:
        """See `GuardListener`."""
        by = "fleet" if by_others else None
        self._emit(
            ProviderCooledDown(self._provider, round(seconds, 3), self._operation, limited, by)
        )
        if self.shared is not None and not by_others:
            self.shared.cooled_down()

    def disabled(self, reason: FailureKind, status: int | None, seconds: float) -> None:
        """See `GuardListener`."""
        self._emit(
            ProviderDisabled(self._provider, reason, status, round(seconds, 3), self._operation)
        )

    def enabled(self) -> None:
        """See `GuardListener`."""
        self._emit(ProviderEnabled(self._provider, self._operation))

    def degraded(self, reason: Literal["errors", "latency"], share: float) -> None:
        """See `GuardListener`."""
        event = ProviderDegraded(self._provider, reason, round(share, 3), self._operation)
        self._emit(event)

    def recovered(self) -> None:
        """See `GuardListener`."""
        self._emit(ProviderRecovered(self._provider, self._operation))

    def _emit(self, event: Event) -> None:
        if not self._retired:
            self._emitter.emit(event)

    def _circuit_changed(self, old: CircuitState, new: CircuitState) -> None:
        name, by = _CIRCUIT_EVENTS[new], "fleet" if self.breaker.by_others else None
        self._emit(CircuitChanged(name, self._provider, old.value, new.value, self._operation, by))


def _combined(one: GuardRefusal | None, other: GuardRefusal) -> GuardRefusal:
    """Combine the refusals of two guards: the reason of the first, and the longer waits."""
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
    """Return seconds rounded up to milliseconds, so that a short wait does not become 0."""
    return seconds if math.isinf(seconds) else math.ceil(seconds * 1000) / 1000


def _health_policy(settings: GatewaySettings) -> HealthPolicy:
    return HealthPolicy(
        window=settings.degraded_window_seconds,
        least=settings.degraded_min_attempts,
        errors=settings.degraded_error_percent / 100,
        latency=settings.degraded_latency_factor,
        canaries=settings.degraded_canary_percent / 100,
    )
