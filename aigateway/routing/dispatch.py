"""One request across providers: ask, judge, go on, and give up in the right words.

Everything that decides is elsewhere: who is next (`plan.py`), whose fault a failure is
(`vendor/failures.py`), whether waiting helps (`resilience/retry.py`). This file does the walking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
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
from aigateway.resilience.breaker import CircuitState, Permit, Rejected
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

LONGEST_WAIT = 3600.0
"""Seconds after which a waiting request looks around again, if nothing else wakes it."""


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


class _Call:
    """One attempt under way: who is asked, under which permit, since when."""

    __slots__ = ("_began", "_clock", "entry", "permit", "provider", "slots")

    def __init__(self, provider: Provider, permit: Permit, clock: Clock) -> None:
        self.provider = provider
        self.permit = permit
        self.slots = provider.slots
        self.entry = provider.gates.enter()
        self._clock = clock
        self._began = clock.now()

    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._clock.now() - self._began


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

    def book(self, call: _Call, failure: Failure) -> float:
        """Write down an attempt that gave no answer; returns how long it took, in seconds."""
        provider, seconds = call.provider, call.seconds()
        kind, status = failure.kind, failure.status
        provider.counters.failed(kind)
        self.attempts.append(Attempt(provider.name, provider.model, kind, status, seconds))
        self.causes[provider.name] = ProviderFailure(
            provider.name, kind, status, failure.retry_after
        )
        return seconds

    def not_to_probe(self) -> set[str]:
        """Providers that this request has seen fail and whose circuit is not closed.

        To probe one would count a second failure of one request against it.
        """
        return {
            provider.name
            for provider in self.candidates
            if provider.name in self.blamed and provider.breaker.state is not CircuitState.CLOSED
        }


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
        if self._stopped:
            raise GatewayError("This gateway is closed; make another one.")
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
        journey.tried = journey.not_to_probe()
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
            answer = await self._attempt(_Call(provider, permit, self._clock), journey, operation)
            if answer is not None:
                return Served(answer, provider.name, tuple(journey.attempts))

    async def _wait_for_place(self, journey: Journey, choice: Choice) -> None:
        """Wait for a free place, or until a provider that was passed over may be asked again."""

        def to_be_looked_at() -> bool:
            found = choose(journey.candidates, journey.tried, self._limiter.has_place)
            # With nobody full any more, waiting has no point: the others were refused meanwhile.
            return found.provider is not None or not found.full

        if not journey.ticket:
            journey.ticket = self._limiter.ticket()
        journey.note(choice.refused + choice.full)
        group = (journey.candidates, frozenset(journey.tried))
        waits = [f.retry_after_seconds for f in choice.refused if f.retry_after_seconds]
        soonest = min(waits, default=math.inf)
        with contextlib.suppress(TimeoutError):  # the request's own deadline comes as cancellation
            async with self._clock.timeout(min(soonest, LONGEST_WAIT)):
                await self._limiter.wait(journey.ticket, group, to_be_looked_at)
        for waited_for in choice.refused + choice.full:
            if journey.causes.get(waited_for.provider) == waited_for:
                del journey.causes[waited_for.provider]

    async def _prepare(self, provider: Provider, journey: Journey) -> None:
        try:
            await provider.prepare()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the others may still answer
            _log.warning("Provider %s cannot be prepared: %s.", provider.name, type(exc).__name__)
            journey.tried.add(provider.name)
            journey.note([ProviderFailure(provider.name, FailureKind.UNKNOWN)])

    async def _attempt(self, call: _Call, journey: Journey, operation: Operation[A]) -> A | None:
        """Make one call. None if the next provider should be asked; raises if none should."""
        limit, cut = self._time_for(call.provider, journey)
        failure: Failure
        self._limiter.take(call.slots)
        try:
            try:
                async with self._clock.timeout(limit):
                    answer = await operation(call.provider.client)
            except VendorCallError as error:
                failure = error.failure
                self._book_unusable(call, error.answer)
            except TimeoutError:
                failure = Failure(cut)
            except Exception as exc:  # noqa: BLE001 - none should come through; go on
                _log.warning("Provider %s raised %s.", call.provider.name, type(exc).__name__)
                failure = Failure(FailureKind.UNKNOWN)
            except BaseException:
                self._cut_short(call, journey)
                raise
            else:
                self._succeeded(call, journey, answer)
                return answer
            await self._failed(call, journey, failure)
            return None
        finally:
            self._limiter.give_back(call.slots)

    def _time_for(self, provider: Provider, journey: Journey) -> tuple[float, FailureKind]:
        """How long an attempt may take, and what it means if that is not enough.

        Where the provider's own timeout would use up all that is left of the request, half of it
        is kept for the next one. A provider that was cut for that reason is not to blame.
        """
        left = journey.deadline - self._clock.now()
        if provider.attempt_timeout < left or not any(
            other.name not in journey.tried and other.refusal() is None
            for other in journey.candidates
        ):
            return provider.attempt_timeout, FailureKind.TIMEOUT
        return left / 2, FailureKind.DEADLINE

    # ── what an attempt's end means ──────────────────────────────────────────────────────────

    def _succeeded(self, call: _Call, journey: Journey, answer: Answer) -> None:
        provider, seconds = call.provider, call.seconds()
        call.permit.success()
        if provider.gates.succeeded(call.entry):
            self._emitter.emit(ProviderEnabled(provider.name))
        provider.counters.succeeded(seconds, answer.usage, answer.cost_usd)
        journey.attempts.append(Attempt(provider.name, provider.model, None, None, seconds))

    def _cut_short(self, call: _Call, journey: Journey) -> None:
        """The caller went away, or the request's own deadline came: nobody is to blame."""
        call.permit.release()
        call.provider.gates.leave(call.entry)
        late = self._clock.now() >= journey.deadline
        failure = Failure(FailureKind.DEADLINE if late else FailureKind.CANCELLED)
        journey.book(call, failure)

    async def _failed(self, call: _Call, journey: Journey, failure: Failure) -> None:
        provider, verdict = call.provider, VERDICTS[failure.kind]
        if verdict.counts and provider.name not in journey.blamed:
            journey.blamed.add(provider.name)
            call.permit.failure()
        else:
            call.permit.release()
        provider.gates.leave(call.entry)
        self._close_gates(provider, failure, verdict)
        seconds = journey.book(call, failure)
        self._emitter.emit(
            ProviderFailed(
                journey.request_id,
                provider.name,
                failure.kind,
                failure.status,
                failure.code,
                seconds,
            )
        )
        if verdict.failover is Failover.LARGER_WINDOW:
            journey.candidates = await self._with_larger_window(provider, journey)
        elif verdict.failover is Failover.NEVER and not self._go_on_after.get(failure.kind):
            raise _final_error(tuple(journey.causes.values()), failure.kind)

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

    def _book_unusable(self, call: _Call, answer: Answer | None) -> None:
        """An answer that was no use was still paid for."""
        if answer is not None:
            call.provider.counters.spent(answer.usage, answer.cost_usd)

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
        hopeless = journey.not_to_probe()
        for provider in journey.candidates:
            cause = journey.causes.get(provider.name)
            if cause is None or cause.kind not in _MAY_PASS:
                continue
            refusal = provider.refusal()
            wait = refusal.retry_after_seconds if refusal else None
            if wait and cause.retry_after_seconds is None:
                journey.causes[provider.name] = replace(cause, retry_after_seconds=wait)
            if provider.name not in hopeless:
                waits.append(wait or 0.0)
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
