"""The choice of the next provider: no I/O, no waiting.

The order is not fixed when a request begins: while it waits for one provider, another may open its
circuit or use all its slots. So each step asks the policy again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aigateway.errors import FailureKind, ProviderFailure
from aigateway.resilience.concurrency import Slots
from aigateway.resilience.guard import NEVER, GuardRefusal
from aigateway.routing.affinity import Affinity, is_bearable
from aigateway.routing.candidates import Candidate, RequestState
from aigateway.routing.guards import in_milliseconds
from aigateway.routing.provider import Provider

__all__ = ["Policy", "PriorityPolicy", "Selection", "SessionPolicy", "advance_rotation"]


class Selection:
    """The result of a policy. Without an `__init__`, since one is made for each attempt.

    Attributes:
        candidate: The one to call, or None.
        last_resort: All candidates that are left are refused by their guards (or have had no free
            slot for too long): one of them is called nevertheless, or waited for.
        refused: Candidates that were passed over, and why.
        waits: Seconds until candidates that are worth waiting for may be called: they have no free
            slot, or are a last resort without a dose now. None: unknown, since it depends on the
            end of a call in flight.
        changes: Seconds after which a guard that refuses changes.
    """

    candidate: Candidate | None = None
    last_resort = False
    refused: Sequence[tuple[Candidate, ProviderFailure]] = ()
    waits: Sequence[float | None] = ()
    changes: Sequence[float] = ()

    def pass_over(self, candidate: Candidate, cause: ProviderFailure) -> None:
        """Note a candidate that is not called now, and why."""
        self.refused = [*self.refused, (candidate, cause)]

    def wait_for(self, seconds: float | None) -> None:
        """Note that a candidate is worth waiting for."""
        self.waits = [*self.waits, seconds]

    def look_again_in(self, seconds: float) -> None:
        """Note when a guard that refuses changes."""
        self.changes = [*self.changes, seconds]


class Policy(Protocol):
    """Chooses the candidate that a request calls next."""

    def choose(self, candidates: Sequence[Candidate], request: RequestState) -> Selection:
        """Choose by the present state of the candidates.

        Args:
            candidates: Best priority first; those `tried` are passed over.
            request: The request.
        """


@dataclass(frozen=True, slots=True)
class PriorityPolicy:
    """Chooses the highest priority; among equals the least loaded for its weight.

    In this order: healthy providers; degraded ones, and those that seem to hang; if none of them
    may be called, the last resort: the best of those that their guards refuse, in measured doses. A
    degraded provider keeps a small share of its requests.

    Attributes:
        has_slot: Returns whether one more call may begin at a provider with these slots.
    """

    has_slot: Callable[[Slots], bool]

    def choose(self, candidates: Sequence[Candidate], request: RequestState) -> Selection:
        """Choose the candidate to call now."""
        choice = Selection()
        best: Candidate | None = None
        least = turn = 0.0  # of the best: its load for its weight, its place in the rotation
        degraded: Candidate | None = None
        refusals: list[tuple[Candidate, GuardRefusal]] = []
        for candidate in candidates:
            provider = candidate.provider
            if best is not None and provider.priority < best.provider.priority:
                break
            if candidate.tried:
                continue
            guards = candidate.guards
            well = (
                not provider.retired
                and provider.rates is None
                and guards.is_healthy()
                and self.has_slot(provider.slots)
            )
            if not (well or self._is_available(candidate, request, choice, refusals)):
                continue
            if well or not guards.is_degraded():
                load = provider.slots.in_flight / provider.weight
                if best is None or load < least or (load == least and provider.turn < turn):
                    best, least, turn = candidate, load, provider.turn
            elif candidate.is_canary():
                choice.candidate = candidate
                return choice
            else:
                degraded = candidate if degraded is None else _better(degraded, candidate)
        choice.candidate = best or degraded
        if choice.candidate is None:
            self._choose_last_resort(choice, refusals, request)
        return choice

    def is_well(self, candidate: Candidate, request: RequestState) -> bool:
        """Return whether it may be called now without a probe, a check or a wait."""
        return (
            self.is_only_busy(candidate, request)
            and self.seconds_busy(candidate, request.tokens) == 0
        )

    def is_only_busy(self, candidate: Candidate, request: RequestState) -> bool:
        """Return whether nothing but a free slot was missing, so that it may be called soon."""
        guards, rates = candidate.guards, candidate.provider.rates
        return (
            not candidate.tried
            and not candidate.provider.retired
            and guards.is_in_service()
            and guards.refusal() is None
            and not guards.is_degraded()
            and (rates is None or rates.wait(request.tokens) == 0)
        )

    def _is_available(
        self,
        candidate: Candidate,
        request: RequestState,
        choice: Selection,
        refusals: list[tuple[Candidate, GuardRefusal]],
    ) -> bool:
        """Return whether it may be called now; note in `choice` or `refusals` why not."""
        provider = candidate.provider
        refusal = _RETIRED if provider.retired else candidate.guards.refusal()
        if refusal is not None:
            refusals.append((candidate, refusal))
            return False
        wait = self.seconds_busy(candidate, request.tokens)
        if wait != 0:
            choice.pass_over(candidate, _saturated(provider, wait))
            choice.wait_for(wait)
        return wait == 0

    def seconds_busy(self, candidate: Candidate, tokens: int) -> float | None:
        """Return the seconds until it can take one more call; 0 if now, None if unknown.

        A provider that has just recovered takes them at a measured pace.
        """
        provider = candidate.provider
        if not self.has_slot(provider.slots):
            return None
        guards, rates = candidate.guards, provider.rates
        wait = 0.0 if guards.last_resort.quiet else guards.ramp_wait()
        return wait if rates is None else max(wait, rates.wait(tokens))

    def _choose_last_resort(
        self,
        choice: Selection,
        refusals: Sequence[tuple[Candidate, GuardRefusal]],
        request: RequestState,
    ) -> None:
        """Choose the best of those that their guards refuse, if it has a dose now.

        A fuller balance shows recent answers; a disabled provider comes behind those that fail.
        Healthy ones without a free slot are waited for instead, but not for long if it is unknown
        when they will have one.
        """
        for candidate, refusal in refusals:
            choice.pass_over(candidate, candidate.provider.refused(refusal))
            choice.look_again_in(refusal.changes_in)
        if choice.waits and not (request.overdue and None in choice.waits):
            return
        choice.last_resort = True
        best: tuple[bool, float] | None = None
        for candidate, refusal in refusals:
            wait = candidate.last_resort_wait(refusal.last_resort, request.began)
            if wait == NEVER:
                continue
            if wait == 0:
                busy = self.seconds_busy(candidate, request.tokens)
                if busy != 0:
                    choice.wait_for(busy)
                    continue
                guards = candidate.guards
                rank = (guards.disabling.reason is not None, -guards.last_resort.balance)
                if best is None or rank < best:
                    best, choice.candidate = rank, candidate
            elif refusal.pending:
                choice.wait_for(None)
                choice.look_again_in(wait)
            else:
                choice.wait_for(wait)


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """Keeps the turns of a session at one provider; for all else it asks another policy.

    Attributes:
        policy: Chooses by health, priority and load.
        affinity: Which provider answered each session.
        is_well: Returns whether a candidate may be called now without a probe, a check or a wait.
        is_only_busy: Returns whether nothing but a free slot is missing for that.
    """

    policy: Policy
    affinity: Affinity
    is_well: Callable[[Candidate, RequestState], bool]
    is_only_busy: Callable[[Candidate, RequestState], bool]

    def at_home(self, candidates: Sequence[Candidate], request: RequestState) -> Selection | None:
        """Choose the provider of the session, before all priorities, while it is well."""
        session = request.session
        name = None if session is None else self.affinity.home(session)
        for candidate in candidates:
            if candidate.provider.name == name and self.is_well(candidate, request):
                choice = Selection()
                choice.candidate = candidate
                return choice
        return None

    def choose(self, candidates: Sequence[Candidate], request: RequestState) -> Selection:
        """Choose a new provider: of equals by the session's name, if their load allows it."""
        choice = self.policy.choose(candidates, request)
        session, found = request.session, choice.candidate
        # A last resort, a probe and a canary are needed by others, too.
        if session is None or found is None or not self.is_well(found, request):
            return choice
        priority = found.provider.priority
        equals = [
            candidate
            for candidate in candidates
            if candidate.provider.priority == priority and self.is_well(candidate, request)
        ]
        loads = {c: c.provider.slots.in_flight / c.provider.weight for c in equals}
        least = min(loads.values())
        bearable = [c for c in equals if is_bearable(loads[c], least, c.provider.weight)]
        choice.candidate = max(
            bearable, key=lambda c: session.score(c.provider.name, c.provider.weight)
        )
        self.affinity.sent(session, choice.candidate.provider.name)
        return choice

    def answered(self, request: RequestState, provider: str) -> None:
        """Remember who answered; the session stays with a provider that only had no free slot."""
        session = request.session
        if session is None:
            return
        name = self.affinity.home(session)
        away = name not in {None, provider} and any(
            candidate.provider.name == name and self.is_only_busy(candidate, request)
            for candidate in request.candidates
        )
        self.affinity.answered(session, provider, stays=away)


_RETIRED = GuardRefusal(FailureKind.DISABLED, NEVER)


def advance_rotation(provider: Provider, candidates: Sequence[Candidate]) -> None:
    """Move a chosen provider back in the rotation: the more weight, the less far.

    Stride scheduling (Waldspurger and Weihl, 1995): over time each gets calls in proportion to its
    weight. A provider that was not available does not catch up: it starts where the others are.
    """
    if len(candidates) == 1:
        return
    start, stride, priority = provider.turn, 1.0 / provider.weight, provider.priority
    for candidate in candidates:
        peer = candidate.provider
        if peer.priority == priority and peer.turn - stride > start:
            # While both are called, no two are further apart than the longest stride.
            start = max(start, peer.turn - max(stride, 1.0 / peer.weight))
    provider.turn = start + stride


def _saturated(provider: Provider, wait: float | None) -> ProviderFailure:
    retry_after = None if wait is None else in_milliseconds(wait)
    return ProviderFailure(provider.name, FailureKind.SATURATED, retry_after_seconds=retry_after)


def _better(first: Candidate, second: Candidate) -> Candidate:
    """Return which of two degraded candidates to call; the priority of the first is not lower."""
    one, other = first.provider, second.provider
    equal = one.priority == other.priority
    return second if equal and _rank(other) < _rank(one) else first


def _rank(provider: Provider) -> tuple[float, float]:
    return (provider.slots.in_flight / provider.weight, provider.turn)
