"""One request across providers: ask, judge, go on, and give up in the right words.

Everything that decides is elsewhere: who is next (`plan.py`), what a call's end means (`call.py`),
whose fault a failure is (`vendor/failures.py`), whether a second provider is asked meanwhile
(`hedge.py`), whether waiting helps (`resilience/retry.py`). This file does the walking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from aigateway.clock import Timeout
from aigateway.errors import (
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    ProviderFailure,
    describe,
)
from aigateway.events import RequestHedged, RequestRetrying
from aigateway.messages import Attempt, Completion
from aigateway.resilience.breaker import CircuitState, Rejected
from aigateway.resilience.budget import ExtraCalls
from aigateway.resilience.retry import NobodyLeftError, RetryPolicy, retry_rounds
from aigateway.routing.alarm import Alarm
from aigateway.routing.call import FIRST_TOKEN_TIMEOUT, Answer, Call, Surroundings
from aigateway.routing.hedge import Hedges, Race
from aigateway.routing.journey import MAY_PASS, Journey, final_error
from aigateway.routing.plan import Choice, busy, choose, take_turn
from aigateway.routing.provider import Pace, Provider
from aigateway.settings import GatewaySettings
from aigateway.vendor.client import Failure, VendorCallError
from aigateway.vendor.failures import Failover

__all__ = ["Dispatcher", "Operation", "Served"]

_log = logging.getLogger(__name__)

LONGEST_WAIT = 3600.0
"""Seconds after which a waiting request looks around again, if nothing else wakes it."""

T = TypeVar("T")
A = TypeVar("A", bound=Answer)
A_co = TypeVar("A_co", bound=Answer, covariant=True)


@dataclass(frozen=True, slots=True)
class Operation(Generic[A]):
    """What is wanted of a provider.

    Attributes:
        ask: Makes a call. Raises `VendorCallError` for what went wrong at the vendor.
        streamed: It ends at the first content, and the call stays out; else at the answer.
        discard: Closes what `ask` brought back when it is not used after all.
    """

    ask: Callable[[Call], Awaitable[A]]
    streamed: bool = False
    discard: Callable[[A], Coroutine[Any, Any, None]] | None = None

    def pace(self, provider: Provider) -> Pace:
        """How quick this provider is in what is wanted."""
        return provider.first_contents if self.streamed else provider.answers


@dataclass(frozen=True, slots=True)
class Served(Generic[A_co]):
    """An answer, who gave it, and every call it took. Of a stream the call is still out."""

    answer: A_co
    provider: str
    attempts: tuple[Attempt, ...]
    call: Call


class Dispatcher:
    """Takes requests across providers. One for each gateway and event loop.

    Args:
        settings: Timeouts, retries, hedging.
        around: What its calls share.
    """

    def __init__(self, settings: GatewaySettings, around: Surroundings) -> None:
        self._around = around
        self._clock = around.clock
        self._limiter = around.limiter
        self._emitter = around.emitter
        self._alarm = Alarm(self._clock, around.limiter.wake)
        self._extra = ExtraCalls(self._clock)
        self._hedges = Hedges(settings, self._clock, self._extra)
        self._retries_per_provider = settings.retries_per_provider
        self._retries = RetryPolicy(settings.retry_rounds, settings.max_retry_wait_seconds)
        self._under_way: set[Timeout] = set()
        self._losers: set[asyncio.Task[Any]] = set()
        self._stopped = False
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
        self.refuse_if_stopped()
        if not journey.attempts:  # else a stream is resumed: the same request
            self._extra.request()
            if journey.hedge:
                self._hedges.request()
        try:
            async with self._clock.timeout(journey.deadline - self._clock.now()) as scope:
                self._under_way.add(scope)
                try:
                    return await self._rounds(journey, operation)
                finally:
                    self._under_way.discard(scope)
        except NobodyLeftError as nobody:
            error = final_error(nobody.causes, offline=journey.looks_offline)
        except TimeoutError:
            error = self._out_of_time(journey)
        raise error

    async def bounded(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """Run something that ends with `TimeoutError` after so long, or when the gateway closes."""
        if self._stopped:
            work.close()
            self.refuse_if_stopped()
        try:
            async with self._clock.timeout(seconds) as scope:
                self._under_way.add(scope)
                try:
                    return await work
                finally:
                    self._under_way.discard(scope)
        except TimeoutError:
            if not self._stopped:
                raise
        raise GatewayError("The gateway was closed while it streamed.")

    def refuse_if_stopped(self) -> None:
        """Raise if the gateway is closed.

        Raises:
            GatewayError: It is.
        """
        if self._stopped:
            raise GatewayError("This gateway is closed; make another one.")

    async def stop(self) -> None:
        """End every request that is under way with an error that says so, and wait for it."""
        self._stopped = True
        self._alarm.stop()
        while self._under_way:
            for scope in self._under_way:
                if not scope.expired():
                    scope.reschedule(asyncio.get_running_loop().time())
            await asyncio.sleep(0)
        if self._losers:
            await asyncio.wait(self._losers)
        for provider in self._around.providers():
            provider.close_watches()

    # ── rounds ───────────────────────────────────────────────────────────────────────────────

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
            lambda: self._round(journey, operation, extra=True),
            first,
            policy=self._retries,
            clock=self._clock,
            time_left=lambda: journey.deadline - self._clock.now(),
            before_wait=announce,
        )

    async def _round(
        self, journey: Journey, operation: Operation[A], *, extra: bool = False
    ) -> Served[A]:
        """Ask everybody who can be asked, best first, until one answers.

        A further round is made of extra calls, which are budgeted: where many requests fail, more
        calls would not mend it.
        """
        journey.begin_round()
        while True:
            choice = self._choose(journey)
            provider = choice.provider
            if provider is None:
                if not choice.full:
                    journey.note(choice.refused)
                    raise self._nobody_left(journey)
                await self._wait_for_place(journey, choice)
                continue
            if not provider.prepared:
                if not await self._prepare(provider):
                    journey.tried.add(provider.name)
                    journey.note([ProviderFailure(provider.name, FailureKind.UNKNOWN)])
                continue  # that may have taken seconds: look again
            if (extra or provider.name in journey.asked) and not self._extra.take():
                if extra:
                    raise NobodyLeftError(tuple(journey.causes.values()), None)
                journey.tried.add(provider.name)
                continue
            call = self._begin(provider, journey, operation)
            if call is None:
                continue  # a listener of the circuit took the place: `choose` sees it now
            served = await self._ask(call, journey, operation) or await self._ask_again(
                provider, journey, operation
            )
            if served is not None:
                return served

    def _choose(self, journey: Journey) -> Choice:
        return choose(journey.candidates, journey.tried, self._limiter.has_place, journey.tokens)

    async def _wait_for_place(self, journey: Journey, choice: Choice) -> None:
        """Wait for a free place, or until a provider that was passed over may be asked again."""

        def to_be_looked_at() -> bool:
            found = self._choose(journey)
            # With nobody full any more, waiting has no point: the others were refused meanwhile.
            if found.provider is not None or not found.full:
                return True
            self._look_again_after(found)
            return False

        if journey.ticket is None:
            journey.ticket = self._limiter.ticket(
                background=journey.background, tenant=journey.tenant
            )
        passed_over = choice.refused + choice.full
        journey.note(passed_over)
        left = journey.deadline - self._clock.now()
        if all(
            cause.retry_after_seconds and cause.retry_after_seconds > left for cause in passed_over
        ):
            raise self._nobody_left(journey)  # waiting would only use the time up
        self._look_again_after(choice)
        group = (journey.candidates, frozenset(journey.tried), journey.tokens.bit_length())
        with contextlib.suppress(TimeoutError):  # the request's own deadline comes as cancellation
            async with self._clock.timeout(LONGEST_WAIT):
                try:
                    await self._limiter.wait(journey.ticket, group, to_be_looked_at)
                finally:
                    if not self._limiter.waiting:
                        self._alarm.stop()
        for waited_for in passed_over:
            if journey.causes.get(waited_for.provider) == waited_for:
                del journey.causes[waited_for.provider]

    def _look_again_after(self, choice: Choice) -> None:
        """See that the queue is looked at when the first who was passed over may be asked again."""
        waits = [
            cause.retry_after_seconds
            for cause in choice.refused + choice.full
            if cause.retry_after_seconds and math.isfinite(cause.retry_after_seconds)
        ]
        if waits:
            self._alarm.within(min(waits))

    async def _prepare(self, provider: Provider) -> bool:
        try:
            await provider.prepare()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the others may still answer
            _log.warning("Provider %s cannot be prepared: %s.", provider.name, type(exc).__name__)
            return False
        return True

    async def _ask_again(
        self, provider: Provider, journey: Journey, operation: Operation[A]
    ) -> Served[A] | None:
        """Try the same provider again, where `retries_per_provider` allows it."""
        for retry in range(1, self._retries_per_provider + 1):
            cause = journey.causes.get(provider.name)
            if cause is None or cause.kind not in MAY_PASS:
                return None
            refusal = provider.refusal()
            if refusal is not None and refusal.kind is not FailureKind.COOLING_DOWN:
                return None
            hint = cause.retry_after_seconds or (refusal.retry_after_seconds if refusal else None)
            wait = self._retries.pause(retry, hint or 0.0, self._clock.random())
            left = journey.deadline - self._clock.now()
            if wait > self._retries.max_wait or wait >= left or self._extra.balance < 1:
                return None
            await self._clock.sleep(wait)
            if (
                provider.refusal() is not None
                or busy(provider, self._limiter.has_place, journey.tokens) is not None
                or not self._extra.take()
            ):
                return None
            call = self._begin(provider, journey, operation)
            served = None if call is None else await self._ask(call, journey, operation)
            if served is not None:
                return served
        return None

    # ── one provider ─────────────────────────────────────────────────────────────────────────

    def _begin(self, provider: Provider, journey: Journey, operation: Operation[A]) -> Call | None:
        permit = provider.breaker.acquire()
        if isinstance(permit, Rejected):
            return None
        journey.tried.add(provider.name)
        take_turn(provider, journey.candidates)
        return Call(provider, permit, journey, self._around, operation.pace(provider))

    async def _ask(self, call: Call, journey: Journey, operation: Operation[A]) -> Served[A] | None:
        """Make one call, or two where the first is slow. None if the next should be asked."""
        if journey.hedge:
            won = await self._race(call, journey, operation)
            if won is None:
                return None
            call, answer = won
        else:
            found = await self._attempt(call, journey, operation)
            if found is None:
                return None
            answer = found
        if operation.streamed:
            call.first_content()
        else:
            call.succeeded(answer)
        return Served(answer, call.provider.name, tuple(journey.attempts), call)

    async def _race(
        self, call: Call, journey: Journey, operation: Operation[A]
    ) -> tuple[Call, A] | None:
        delay = call.patience = self._hedges.delay(operation.pace(call.provider))
        for provider in journey.candidates:
            if not (provider.prepared or provider.retired):
                self._prepare_meanwhile(provider)

        def second() -> Call | None:
            other = self._healthy_one(journey)
            if other is None or not self._hedges.may():
                return None
            rival = self._begin(other, journey, operation)
            if rival is not None:
                rival.patience = self._hedges.delay(operation.pace(other))
                self._emitter.emit(
                    RequestHedged(
                        journey.request_id, call.provider.name, other.name, round(call.seconds(), 6)
                    )
                )
            return rival

        race = Race(
            lambda runner: self._attempt(runner, journey, operation),
            operation.discard,
            self._losers,
        )
        return await race.run(call, self._clock, delay, second)

    def _healthy_one(self, journey: Journey) -> Provider | None:
        """Who else could be asked, without a probe, a check or a wait."""
        unfit = set(journey.tried)
        for provider in journey.candidates:
            if (
                not provider.prepared
                or provider.breaker.state is not CircuitState.CLOSED
                or provider.gates.disabled_reason is not None
                or provider.seems_to_hang()
            ):
                unfit.add(provider.name)
        tried, journey.tried = journey.tried, unfit
        try:
            return self._choose(journey).provider
        finally:
            journey.tried = tried

    def _prepare_meanwhile(self, provider: Provider) -> None:
        """Prepare a provider that may be wanted soon; once at a time."""
        name = f"aigateway-prepare-{provider.name}"
        if any(task.get_name() == name for task in self._losers):
            return
        task = asyncio.create_task(self._prepare(provider), name=name)
        self._losers.add(task)
        task.add_done_callback(self._losers.discard)

    async def _attempt(self, call: Call, journey: Journey, operation: Operation[A]) -> A | None:
        """Wait for one call. What it brings is not settled yet.

        Returns:
            The answer, or None if the next provider should be asked.

        Raises:
            GatewayError: No other should be asked.
        """
        limit, cut = self._time_for(call.provider, journey, operation)
        call.limit = limit
        failure: Failure
        unusable: Completion | None = None
        try:
            async with self._clock.timeout(limit):
                return await operation.ask(call)
        except VendorCallError as error:
            failure = error.failure
            unusable = error.answer
        except TimeoutError:
            slow_start = operation.streamed and cut is FailureKind.TIMEOUT
            failure = Failure(cut, code=FIRST_TOKEN_TIMEOUT if slow_start else None)
        except Exception as exc:  # noqa: BLE001 - none should come through; go on
            _log.warning("Provider %s raised %s.", call.provider.name, type(exc).__name__)
            failure = Failure(FailureKind.UNKNOWN)
        except BaseException:
            if not call.over:  # else a race that it has lost has settled it
                call.cut_short()
            raise
        if not call.over:
            await self._go_on(call, journey, failure, unusable)
        return None

    def _time_for(
        self, provider: Provider, journey: Journey, operation: Operation[Any]
    ) -> tuple[float, FailureKind]:
        """How long an attempt may take, and what it means if that is not enough.

        Where the provider's own timeout would use up all that is left of the request, half of it
        is kept for the next one. A provider that was cut for that reason is not to blame.
        """
        own = provider.first_token_timeout if operation.streamed else provider.attempt_timeout
        left = journey.deadline - self._clock.now()
        if own < left or not any(
            other.name not in journey.tried and other.refusal() is None
            for other in journey.candidates
        ):
            return own, FailureKind.TIMEOUT
        return left / 2, FailureKind.DEADLINE

    # ── after a failure ──────────────────────────────────────────────────────────────────────

    async def _go_on(
        self, call: Call, journey: Journey, failure: Failure, unusable: Completion | None
    ) -> None:
        """Settle a failed call, and raise if nobody else should be asked."""
        verdict = call.failed(failure, unusable)
        if verdict.failover is Failover.LARGER_WINDOW:
            journey.candidates = await self._with_larger_window(call.provider, journey)
        elif verdict.failover is Failover.NEVER and not (
            journey.lenient or self._go_on_after.get(failure.kind)
        ):
            raise final_error(tuple(journey.causes.values()), failure.kind)

    async def _with_larger_window(
        self, provider: Provider, journey: Journey
    ) -> tuple[Provider, ...]:
        """The candidates that are known to take more input than `provider` does."""
        limit = provider.client.max_input_tokens or math.inf
        larger = [
            other
            for other in journey.candidates
            if (other.prepared or await self._prepare(other))
            and (other.client.max_input_tokens or 0) > limit
        ]
        if not larger:
            raise final_error(tuple(journey.causes.values()), FailureKind.CONTEXT_WINDOW)
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
        hopeless = journey.not_to_probe() | journey.set_aside
        for provider in journey.candidates:
            cause = journey.causes.get(provider.name)
            if cause is None or cause.kind not in MAY_PASS:
                continue
            refusal = provider.refusal()
            wait = refusal.retry_after_seconds if refusal else None
            if wait and cause.retry_after_seconds is None:
                journey.causes[provider.name] = replace(cause, retry_after_seconds=wait)
            if provider.name not in hopeless:
                waits.append(wait or 0.0)
        return NobodyLeftError(tuple(journey.causes.values()), min(waits, default=None))
