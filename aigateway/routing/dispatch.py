"""One request across providers: ask, judge, go on, and give up in the right words.

Everything that decides is elsewhere: who is next (`plan.py`), whose fault a failure is
(`vendor/failures.py`), whether waiting helps (`resilience/retry.py`). This file does the walking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from aigateway.clock import Clock
from aigateway.errors import (
    AllProvidersFailedError,
    ContentPolicyError,
    ContextWindowExceededError,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    ProviderFailure,
    RequestRejectedError,
    describe,
)
from aigateway.events import (
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    ProviderFailed,
    RequestRetrying,
)
from aigateway.messages import Attempt, Usage
from aigateway.resilience.breaker import Permit, Rejected
from aigateway.resilience.limiter import Limiter
from aigateway.resilience.retry import NobodyLeftError, RetryPolicy, retry_rounds
from aigateway.routing.plan import Choice, choose, take_turn
from aigateway.routing.provider import Provider
from aigateway.settings import GatewaySettings
from aigateway.telemetry.emitter import Emitter
from aigateway.vendor.client import Failure, VendorCallError, VendorClient
from aigateway.vendor.failures import VERDICTS, Failover, Gate, Verdict

__all__ = ["Dispatcher", "Journey", "Served"]

_log = logging.getLogger(__name__)


class Answer(Protocol):
    """What any operation brings back."""

    @property
    def usage(self) -> Usage: ...
    @property
    def cost_usd(self) -> float | None: ...


A = TypeVar("A", bound=Answer)
A_co = TypeVar("A_co", bound=Answer, covariant=True)
Operation = Callable[[VendorClient], Awaitable[A]]
"""One call to one vendor. Raises `VendorCallError` for what went wrong there."""

_CALLERS_OWN = {
    FailureKind.CONTEXT_WINDOW: (ContextWindowExceededError, "The prompt is too long"),
    FailureKind.CONTENT_POLICY: (ContentPolicyError, "The content policy refused the request"),
    FailureKind.REJECTED: (RequestRejectedError, "The request was rejected as invalid"),
    FailureKind.UNSUPPORTED: (
        RequestRejectedError,
        "No provider supports these parameters (drop_unsupported_params leaves them out)",
    ),
}
"""Failures that another try cannot mend, and the error each becomes; the first listed wins."""

_MAY_PASS = frozenset(
    {
        FailureKind.RATE_LIMITED,
        FailureKind.SERVER_ERROR,
        FailureKind.BAD_ANSWER,
        FailureKind.CONNECTION,
        FailureKind.TIMEOUT,
        FailureKind.UNKNOWN,
        FailureKind.CIRCUIT_OPEN,
        FailureKind.COOLING_DOWN,
        FailureKind.SATURATED,
    }
)
"""Failures after which asking the same provider again, a little later, makes sense."""


@dataclass(frozen=True, slots=True)
class Served(Generic[A_co]):
    """An answer, who gave it, and every call it took."""

    answer: A_co
    provider: str
    attempts: tuple[Attempt, ...]


class Journey:
    """What one request has met so far.

    Attributes:
        candidates: Whom it may ask; shrinks when only a larger context window helps.
        deadline: On the clock's own scale.
        causes: The latest failure of each provider, by name.
        attempts: Every call made, in order.
        tried: Names asked in this round.
        blamed: Names whose breaker this request has counted against: at most once each.
        ticket: Its place in the queue for free providers; 0 until it has to wait.
    """

    __slots__ = (
        "attempts",
        "blamed",
        "candidates",
        "causes",
        "deadline",
        "request_id",
        "ticket",
        "tried",
    )

    def __init__(self, request_id: str, candidates: Sequence[Provider], deadline: float) -> None:
        self.request_id = request_id
        self.candidates = tuple(candidates)
        self.deadline = deadline
        self.causes: dict[str, ProviderFailure] = {}
        self.attempts: list[Attempt] = []
        self.tried: set[str] = set()
        self.blamed: set[str] = set()
        self.ticket = 0

    def note(self, causes: Sequence[ProviderFailure]) -> None:
        """Remember why these gave no answer. What an attempt showed stands over a mere refusal."""
        for cause in causes:
            self.causes.setdefault(cause.provider, cause)


class Dispatcher:
    """Takes requests across providers. One for each gateway."""

    def __init__(
        self, settings: GatewaySettings, clock: Clock, limiter: Limiter, emitter: Emitter
    ) -> None:
        self._clock = clock
        self._limiter = limiter
        self._emitter = emitter
        self._under_way: set[asyncio.Timeout] = set()
        self._stopped = False
        self._retries = RetryPolicy(settings.retry_rounds, settings.max_retry_wait_seconds)
        self._go_on_after = {
            FailureKind.REJECTED: settings.failover_on_rejection,
            FailureKind.CONTENT_POLICY: settings.failover_on_content_policy,
        }

    async def dispatch(self, journey: Journey, operation: Operation[A]) -> Served[A]:
        """Get an answer from the best provider that gives one, within the deadline.

        Raises:
            RequestRejectedError: The request is at fault (or one of its subclasses).
            AllProvidersFailedError: Everybody was asked or passed over.
            DeadlineExceededError: The request's time ran out first.
            OverloadedError: The queue for free providers is full.
        """
        try:
            async with self._clock.timeout(journey.deadline - self._clock.now()) as scope:
                self._under_way.add(scope)
                try:
                    return await self._rounds(journey, operation)
                finally:
                    self._under_way.discard(scope)
        except NobodyLeftError as nobody:
            error = _final_error(nobody.causes)
        except TimeoutError:
            error = self._out_of_time(journey)
        raise error

    async def stop(self) -> None:
        """End every request that is under way with an error that says so, and wait for it."""
        self._stopped = True
        while self._under_way:
            for scope in self._under_way:
                if not scope.expired():
                    scope.reschedule(asyncio.get_running_loop().time())
            await asyncio.sleep(0)

    async def _rounds(self, journey: Journey, operation: Operation[A]) -> Served[A]:
        try:
            return await self._round(journey, operation)
        except NobodyLeftError as nobody:
            if self._retries.rounds == 0 or nobody.worth_waiting is None:
                raise
            first = nobody

        def announce(round_number: int, wait: float) -> None:
            self._emitter.emit(RequestRetrying(journey.request_id, round_number, round(wait, 3)))

        return await retry_rounds(
            lambda: self._round(journey, operation),
            first,
            policy=self._retries,
            clock=self._clock,
            time_left=lambda: journey.deadline - self._clock.now(),
            before_wait=announce,
        )

    async def _round(self, journey: Journey, operation: Operation[A]) -> Served[A]:
        """Ask everybody who can be asked, best first, until one answers."""
        journey.tried.clear()
        while True:
            choice = choose(journey.candidates, journey.tried, self._limiter.has_place)
            provider = choice.provider
            if provider is None:
                if not choice.full:
                    journey.note(choice.refused)
                    raise self._nobody_left(journey)
                await self._wait_for_place(journey, choice)
                continue
            if not provider.prepared:
                await self._prepare(provider, journey)
                continue  # that may have taken seconds: look again
            permit = provider.breaker.acquire()
            if isinstance(permit, Rejected):
                continue  # a listener of the circuit took the place: `choose` sees it now
            journey.tried.add(provider.name)
            take_turn(provider, journey.candidates)
            answer = await self._attempt(provider, permit, journey, operation)
            if answer is not None:
                return Served(answer, provider.name, tuple(journey.attempts))

    async def _wait_for_place(self, journey: Journey, choice: Choice) -> None:
        def somebody_is_free() -> bool:
            found = choose(journey.candidates, journey.tried, self._limiter.has_place)
            return found.provider is not None

        if not journey.ticket:
            journey.ticket = self._limiter.ticket()
        journey.note(choice.refused + choice.full)
        await self._limiter.wait(journey.ticket, somebody_is_free)
        for waited_for in choice.full:
            journey.causes.pop(waited_for.provider, None)

    async def _prepare(self, provider: Provider, journey: Journey) -> None:
        try:
            await provider.prepare()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the other providers may still answer
            _log.warning("Provider %s cannot be prepared: %s.", provider.name, type(exc).__name__)
            journey.tried.add(provider.name)
            journey.note([ProviderFailure(provider.name, FailureKind.UNKNOWN)])

    async def _attempt(
        self, provider: Provider, permit: Permit, journey: Journey, operation: Operation[A]
    ) -> A | None:
        """Make one call. None if the next provider should be asked; raises if none should."""
        clock = self._clock
        failure: Failure
        self._limiter.take(provider.slots)
        provider.gates.enter()
        began = clock.now()
        try:
            try:
                async with clock.timeout(provider.attempt_timeout):
                    answer = await operation(provider.client)
            except VendorCallError as error:
                failure = error.failure
            except TimeoutError:
                failure = Failure(FailureKind.TIMEOUT)
            except Exception as exc:  # noqa: BLE001 - none should come through; go on
                _log.warning("Provider %s raised %s.", provider.name, type(exc).__name__)
                failure = Failure(FailureKind.UNKNOWN)
            except BaseException:
                self._cut_short(provider, permit, journey, began)
                raise
            else:
                self._succeeded(provider, permit, journey, answer, clock.now() - began)
                return answer
            await self._failed(provider, permit, journey, failure, clock.now() - began)
            return None
        finally:
            self._limiter.give_back(provider.slots)

    # ── what an attempt's end means ──────────────────────────────────────────────────────────

    def _succeeded(
        self, provider: Provider, permit: Permit, journey: Journey, answer: Answer, seconds: float
    ) -> None:
        permit.success()
        if provider.gates.succeeded():
            self._emitter.emit(ProviderEnabled(provider.name))
        provider.counters.succeeded(seconds, answer.usage, answer.cost_usd)
        journey.attempts.append(Attempt(provider.name, provider.model, None, None, seconds))

    def _cut_short(
        self, provider: Provider, permit: Permit, journey: Journey, began: float
    ) -> None:
        """The caller went away, or the request's own deadline came: nobody is to blame."""
        permit.release()
        provider.gates.leave()
        now = self._clock.now()
        kind = FailureKind.DEADLINE if now >= journey.deadline else FailureKind.CANCELLED
        provider.counters.failed(kind)
        journey.attempts.append(Attempt(provider.name, provider.model, kind, None, now - began))
        journey.causes[provider.name] = ProviderFailure(provider.name, kind)

    async def _failed(
        self,
        provider: Provider,
        permit: Permit,
        journey: Journey,
        failure: Failure,
        seconds: float,
    ) -> None:
        verdict = VERDICTS[failure.kind]
        self._settle(provider, permit, journey, verdict)
        self._close_gates(provider, failure, verdict)
        self._book(provider, journey, failure, seconds)
        if verdict.failover is Failover.LARGER_WINDOW:
            journey.candidates = await self._with_larger_window(provider, journey)
        elif verdict.failover is Failover.NEVER and not self._go_on_after.get(failure.kind):
            raise _final_error(tuple(journey.causes.values()), failure.kind)

    def _settle(
        self, provider: Provider, permit: Permit, journey: Journey, verdict: Verdict
    ) -> None:
        # A probe's failure always counts: it says whether the circuit may close, not how long
        # the streak is.
        if verdict.counts and (permit.probe or provider.name not in journey.blamed):
            journey.blamed.add(provider.name)
            permit.failure()
        else:
            permit.release()

    def _close_gates(self, provider: Provider, failure: Failure, verdict: Verdict) -> None:
        gates = provider.gates
        if verdict.gate is Gate.DISABLE:
            pause = gates.disable(failure.kind)
            self._emitter.emit(
                ProviderDisabled(provider.name, failure.kind, failure.status, round(pause, 3))
            )
        elif verdict.gate is Gate.COOLDOWN and not (verdict.counts and failure.retry_after is None):
            # A sick provider is the breaker's affair; it cools down only if it said for how long.
            pause = gates.throttled(failure.retry_after)
            self._emitter.emit(ProviderCooledDown(provider.name, round(pause, 3)))
        else:
            gates.leave()

    def _book(self, provider: Provider, journey: Journey, failure: Failure, seconds: float) -> None:
        kind, status = failure.kind, failure.status
        provider.counters.failed(kind)
        journey.attempts.append(Attempt(provider.name, provider.model, kind, status, seconds))
        journey.causes[provider.name] = ProviderFailure(
            provider.name, kind, status, failure.retry_after
        )
        self._emitter.emit(
            ProviderFailed(journey.request_id, provider.name, kind, status, failure.code, seconds)
        )

    async def _with_larger_window(
        self, provider: Provider, journey: Journey
    ) -> tuple[Provider, ...]:
        """The candidates that are known to take more input than `provider` does."""
        limit = provider.client.max_input_tokens
        larger = []
        for other in journey.candidates:
            if not other.prepared:
                await self._prepare(other, journey)
            if other.prepared and limit and (other.client.max_input_tokens or 0) > limit:
                larger.append(other)
        if not larger:
            raise _final_error(tuple(journey.causes.values()), FailureKind.CONTEXT_WINDOW)
        return tuple(larger)

    def _out_of_time(self, journey: Journey) -> GatewayError:
        causes = tuple(journey.causes.values())
        if self._stopped:
            return GatewayError(f"The gateway was closed while it asked ({describe(causes)}).")
        return DeadlineExceededError(
            f"The request's deadline passed after {len(journey.attempts)} attempts"
            f" ({describe(causes)}). Raise `timeout`, or lower `attempt_timeout` so that"
            " more providers get a chance within it.",
            causes,
        )

    def _nobody_left(self, journey: Journey) -> NobodyLeftError:
        waits = []
        for provider in journey.candidates:
            cause = journey.causes.get(provider.name)
            if cause is not None and cause.kind in _MAY_PASS:
                refusal = provider.refusal()
                waits.append((refusal and refusal.retry_after_seconds) or 0.0)
        return NobodyLeftError(tuple(journey.causes.values()), min(waits, default=None))


def _final_error(
    causes: Sequence[ProviderFailure], decided_by: FailureKind | None = None
) -> GatewayError:
    """The error for a request that got no answer: the caller's own fault, or everybody's."""
    kinds = {decided_by} if decided_by else {cause.kind for cause in causes}
    if kinds and kinds <= _CALLERS_OWN.keys():
        kind = next(kind for kind in _CALLERS_OWN if kind in kinds)
        error, what = _CALLERS_OWN[kind]
        return error(f"{what}: {describe(causes)}.", causes)
    return AllProvidersFailedError.of(causes)
