"""Who is asked next. No I/O, no waiting: it looks at the candidates as they are this instant.

The order is not fixed when a request begins: while it waits for one provider, another may open
its circuit or run full. So each step asks the policy anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aigateway.errors import FailureKind, ProviderFailure
from aigateway.resilience.concurrency import Slots
from aigateway.resilience.guard import NEVER, GuardRefusal
from aigateway.routing.candidates import Candidate, RequestState
from aigateway.routing.guards import in_milliseconds
from aigateway.routing.provider import Provider

__all__ = ["Policy", "PriorityPolicy", "Selection", "advance_rotation"]


class Selection:
    """What a policy found.

    Attributes:
        candidate: Whom to ask, or None.
        last_resort: No other is left than those that are to be left alone, or none that has had
            a place for too long: one of them is asked all the same, or waited for.
        refused: Those that were passed over, and why.
        waits: Seconds after which those that are worth waiting for may be asked: they have no free
            place, or they are a last resort whose dose is used up. None: that is not known, since
            it hangs on the end of a call that is out.
        changes: Seconds after which a guard that refuses says otherwise.
    """

    candidate: Candidate | None = None
    last_resort = False
    refused: Sequence[tuple[Candidate, ProviderFailure]] = ()
    waits: Sequence[float | None] = ()
    changes: Sequence[float] = ()

    def pass_over(self, candidate: Candidate, cause: ProviderFailure) -> None:
        """It is not asked now, and why."""
        self.refused = [*self.refused, (candidate, cause)]

    def wait_for(self, seconds: float | None) -> None:
        """One that was passed over is worth waiting for."""
        self.waits = [*self.waits, seconds]

    def look_again_in(self, seconds: float) -> None:
        """A guard that refuses says otherwise then."""
        self.changes = [*self.changes, seconds]


class Policy(Protocol):
    """Picks the candidate that a request asks next."""

    def choose(self, candidates: Sequence[Candidate], request: RequestState) -> Selection:
        """Look at the candidates as they are now.

        Args:
            candidates: Best priority first; those `tried` are passed over.
            request: Whose they are.
        """


@dataclass(frozen=True, slots=True)
class PriorityPolicy:
    """The highest priority that can be asked; among equals the least loaded for its weight.

    In this order: healthy providers; degraded ones, and those that seem to hang; and if none of
    them may be asked, the last resort: the least bad of those that are to be left alone, in
    measured doses. A degraded provider keeps a small share of the requests that it would have had.

    Attributes:
        has_place: Whether one more call may go out to a provider with these places.
    """

    has_place: Callable[[Slots], bool]

    def choose(self, candidates: Sequence[Candidate], request: RequestState) -> Selection:
        """Pick the candidate to ask now."""
        choice = Selection()
        best: Candidate | None = None
        degraded: Candidate | None = None
        refusals: list[tuple[Candidate, GuardRefusal]] = []
        for candidate in candidates:
            provider = candidate.provider
            if best is not None and provider.priority < best.provider.priority:
                break
            if candidate.tried:
                continue
            refusal = _RETIRED if provider.retired else candidate.guards.refusal()
            if refusal is not None:
                refusals.append((candidate, refusal))
            elif (wait := self.seconds_busy(candidate, request.tokens)) != 0:
                choice.pass_over(candidate, _saturated(provider, wait))
                choice.wait_for(wait)
            elif not candidate.guards.is_degraded():
                if best is None or _rank(provider) < _rank(best.provider):
                    best = candidate
            elif candidate.is_canary():
                choice.candidate = candidate
                return choice
            else:
                degraded = candidate if degraded is None else _better(degraded, candidate)
        choice.candidate = best or degraded
        if choice.candidate is None:
            self._choose_last_resort(choice, refusals, request)
        return choice

    def seconds_busy(self, candidate: Candidate, tokens: int) -> float | None:
        """Seconds until it can take one more call, if it may be asked; 0 if now, None if unknown.

        A provider that has just come back takes them at a measured pace.
        """
        provider = candidate.provider
        if not self.has_place(provider.slots):
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
        """Pick the least bad of those that are to be left alone, if its dose allows it now.

        A fuller balance has answered of late; a disabled provider comes behind those that fail.
        Healthy ones that only have no place are waited for instead, but not for long if it is not
        known when they will have one.
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


_RETIRED = GuardRefusal(FailureKind.DISABLED, NEVER)


def advance_rotation(provider: Provider, candidates: Sequence[Candidate]) -> None:
    """Move a chosen provider back in the rotation, by less the more weight it has.

    Stride scheduling (Waldspurger and Weihl, 1995): over time each gets calls in proportion to
    its weight. One that was away does not get all it missed: it starts where the others stand.
    """
    if len(candidates) == 1:
        return
    start = provider.turn
    for candidate in candidates:
        peer = candidate.provider
        if peer.priority == provider.priority:
            # While both are asked, no two are further apart than the longest stride.
            start = max(start, peer.turn - max(1.0 / peer.weight, 1.0 / provider.weight))
    provider.turn = start + 1.0 / provider.weight


def _saturated(provider: Provider, wait: float | None) -> ProviderFailure:
    retry_after = None if wait is None else in_milliseconds(wait)
    return ProviderFailure(provider.name, FailureKind.SATURATED, retry_after_seconds=retry_after)


def _better(first: Candidate, second: Candidate) -> Candidate:
    """Which of two degraded ones is asked; the first one's priority is not the lower one."""
    one, other = first.provider, second.provider
    equal = one.priority == other.priority
    return second if equal and _rank(other) < _rank(one) else first


def _rank(provider: Provider) -> tuple[float, float]:
    return (provider.slots.in_flight / provider.weight, provider.turn)
