"""One request across providers: call, judge, go on, and raise the right error.

The decisions are elsewhere: the next provider (`select.py`), the meaning of an attempt's end
(`attempt.py`) and of a failure (`wires/failures.py`), hedges (`hedge.py`), pauses
(`resilience/retry.py`). This file carries them out.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from aigateway.cache.key import NEUTRAL
from aigateway.clock import Clock, PutOff, Timeout
from aigateway.errors import (
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    ProviderFailure,
    describe,
)
from aigateway.events import RequestHedged, RequestRetrying
from aigateway.messages import Attempt as AttemptRecord
from aigateway.messages import Completion
from aigateway.resilience.breaker import CircuitState
from aigateway.resilience.retry import NoCandidateLeftError, RetryBudget, RetryPolicy, retry_rounds
from aigateway.routing.attempt import (
    FIRST_TOKEN_TIMEOUT,
    AttemptEnd,
    Billable,
    CallContext,
    PendingAttempt,
)
from aigateway.routing.candidates import (
    TRANSIENT,
    Candidate,
    RequestState,
    final_error,
    none_offers,
)
from aigateway.routing.guards import in_milliseconds
from aigateway.routing.hedge import Hedges, Race
from aigateway.routing.provider import Provider
from aigateway.routing.select import (
    Policy,
    PriorityPolicy,
    Selection,
    SessionPolicy,
    advance_rotation,
)
from aigateway.routing.work import Work
from aigateway.settings import GatewaySettings
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.failures import VERDICTS, Failover

__all__ = ["Failovers", "Served"]

_log = logging.getLogger(__name__)

LONGEST_WAIT = 3600.0
"""Seconds after which a waiting request looks again, if nothing else wakes it."""

LAST_RESORT_NEEDS = 1.0
"""Seconds before its deadline (at most a quarter of its time) from which a request takes no last
resort. Else the oldest of many waiting requests would take each dose, and reach its deadline before
a recovered vendor can answer."""

SLOT_OVERDUE = 1.0
"""Seconds (at most a quarter of its time) after which a request that waits for a slot of a healthy
provider may use a last resort. The calls that hold the slots may never end; but a short queue is
better than a provider that fails."""

_NOT_ASKED = frozenset(
    {
        FailureKind.CIRCUIT_OPEN,
        FailureKind.COOLING_DOWN,
        FailureKind.DISABLED,
        FailureKind.SATURATED,
    }
)
"""Kinds of causes without an attempt."""

_RETRY_AT_ONCE = TRANSIENT - {FailureKind.TIMEOUT}
"""Failures after which the same provider may be called at once. After a timeout it would probably
use as much time again, while others may answer."""

_ANSWERED = AttemptEnd.ANSWERED  # a name of its own: Python looks it up slowly

T = TypeVar("T")
A = TypeVar("A", bound=Billable)
A_co = TypeVar("A_co", bound=Billable, covariant=True)


@dataclass(slots=True)
class Served(Generic[A_co]):
    """An answer, its provider, and its attempts; of a stream the last one is still in flight."""

    answer: A_co
    provider: str
    attempts: tuple[AttemptRecord, ...]
    attempt: PendingAttempt
    loading_seconds: float = 0.0


class Failovers:
    """Serves requests across providers. One for each gateway and event loop."""

    def __init__(self, settings: GatewaySettings, context: CallContext) -> None:
        self._context = context
        self._clock = context.clock
        self._limiter = context.limiter
        self._emitter = context.emitter
        by_priority = PriorityPolicy(context.limiter.has_slot)
        self._policy: Policy = by_priority
        self._affinity = context.affinity
        self._sessions = SessionPolicy(
            self._policy, context.affinity, by_priority.is_well, by_priority.is_only_busy
        )
        self._timer = _WakeUpTimer(self._clock, context.limiter.wake)
        self._budget = RetryBudget(self._clock)
        self._hedges = Hedges(settings, self._clock, self._budget)
        self._retries_per_provider = settings.retries_per_provider
        self._thinking_timeout = settings.thinking_timeout
        self._retries = RetryPolicy(settings.retry_rounds, settings.max_retry_wait_seconds)
        self._timeouts: set[Timeout] = set()
        self._losers: set[asyncio.Task[Any]] = set()
        self._stopped = False
        self._on_rejection: bool | Literal["once"] = settings.failover_on_rejection
        self._on_content_policy = settings.failover_on_content_policy

    async def run(self, request: RequestState, work: Work[A]) -> Served[A]:
        """Return an answer from the best provider that gives one, within the deadline.

        Raises:
            RequestRejectedError: The request is at fault (or a subclass of it).
            AllProvidersFailedError: Every provider was called or passed over.
            DeadlineExceededError: The deadline passed first.
            OverloadedError: The queue for free slots is full.
        """
        first = self._first(request, work)
        try:
            if first is not None:
                answer = await self._attempt(first, request, work, bounds_all=True)
                if answer is not None:
                    return self._served(first, answer, request, work)
            now = self._clock.now()
            more = self._more_since(now if first is None else first.began)
            async with self._clock.timeout(request.deadline - now, more=more) as scope:
                self._timeouts.add(scope)
                try:
                    if first is not None:
                        await self._go_on(first, request)
                        served = await self._ask_again(first.candidate, request, work)
                        if served is not None:
                            return served
                    return await self._round(request, work)
                except NoCandidateLeftError as none_left:
                    return await self._further_rounds(request, work, none_left)
                finally:
                    self._timeouts.discard(scope)
        except NoCandidateLeftError as none_left:
            error = final_error(
                none_left.causes, offline=request.looks_offline, operation=request.operation
            )
        except TimeoutError:
            error = self._out_of_time(request)
        raise error

    def _first(self, request: RequestState, work: Work[A]) -> PendingAttempt | None:
        """Begin the first attempt, if it has neither to wait nor to be hedged.

        One timeout is enough for it, the earlier one of its own and the deadline. Nearly all
        requests need no other.

        Raises:
            GatewayError: The gateway is closed.
        """
        if self._stopped:
            self.refuse_if_stopped()
        if request.native is not None:
            request.pin_to_keeper(self._affinity)
        if not request.attempts:  # else a stream is resumed: the same request
            self._budget.requests += 1
            if request.hedge:
                self._hedges.request()
        if request.begun:
            request.begin_round()
        if request.begun or request.hedge:
            return None
        choice = self._choose(request)
        candidate = choice.candidate
        if candidate is None or not candidate.provider.prepared:
            return None  # the same choice is made again, in the first round
        return self._begin(candidate, request, work, last_resort=choice.last_resort)

    def _more_since(self, began: float) -> PutOff:
        """Return what extends a deadline by the stalls since `began`, before it was set, too."""
        looks = iter((began,))

        def more(seconds: float, entered: float, looked: float) -> float:
            since = next(looks, looked)
            return self._context.stalls.more(seconds + entered - began, began, since)

        return more

    async def in_time(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine with a timeout; stalls of our own event loop do not count."""
        async with self._clock.timeout(seconds, more=self._context.stalls.more):
            return await work

    async def bounded(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine as `in_time`; it also ends when the gateway closes."""
        if self._stopped:
            work.close()
            self.refuse_if_stopped()
        try:
            async with self._clock.timeout(seconds, more=self._context.stalls.more) as scope:
                self._timeouts.add(scope)
                try:
                    return await work
                finally:
                    self._timeouts.discard(scope)
        except TimeoutError:
            if not self._stopped:
                raise
        raise GatewayError("The gateway was closed while it streamed.")

    def refuse_if_stopped(self) -> None:
        """Raise `GatewayError` if the gateway is closed."""
        if self._stopped:
            raise GatewayError("This gateway is closed; make another one.")

    async def stop(self) -> None:
        """End every request in progress with an error, and wait for that."""
        self._stopped = True
        self._context.stalls.stop()  # first, else it would extend timeouts
        self._timer.stop()
        while self._timeouts:
            for scope in self._timeouts:
                if not scope.expired():
                    scope.reschedule(asyncio.get_running_loop().time())
            await asyncio.sleep(0)
        if self._losers:
            await asyncio.wait(self._losers)
        for provider in self._context.providers():
            provider.close_guards()

    # ── rounds ───────────────────────────────────────────────────────────────────────────────

    async def _further_rounds(
        self, request: RequestState, work: Work[A], first: NoCandidateLeftError
    ) -> Served[A]:
        """Run further rounds after a wait, if that may help; else raise `NoCandidateLeftError`."""
        if self._retries.rounds == 0 or first.worth_waiting is None:
            raise first

        def announce(round_number: int, wait: float) -> None:
            self._emitter.emit(RequestRetrying(request.request_id, round_number, round(wait, 3)))

        return await retry_rounds(
            lambda: self._round(request, work, extra=True),
            first,
            policy=self._retries,
            clock=self._clock,
            time_left=lambda: request.deadline - self._clock.now(),
            before_wait=announce,
        )

    async def _round(
        self, request: RequestState, work: Work[A], *, extra: bool = False
    ) -> Served[A]:
        """Call every candidate that may be called, best first, until one answers.

        A second call of the same candidate is an extra call and needs the retry budget.
        """
        if extra:
            request.begin_round()
        while True:
            if request.rejected_by is not None:
                return await self._second_opinion(request, work)
            choice = self._choose(request)
            candidate = choice.candidate
            if candidate is None:
                await self._wait_for_slot(request, choice)
                continue
            if not candidate.provider.prepared:
                await self._prepare_candidate(candidate, request)
                continue  # that may have taken seconds: choose again
            if candidate.calls and not self._budget.take():
                self._pass_over_unpaid(candidate, request, extra=extra)
                continue
            attempt = self._begin(candidate, request, work, last_resort=choice.last_resort)
            if attempt is None:
                continue  # a listener of the circuit took the permit: choose again
            if request.hedge:
                served = await self._race(attempt, request, work)
            else:
                answer = await self._attempt(attempt, request, work)
                served = None if answer is None else self._served(attempt, answer, request, work)
            served = served or await self._ask_again(candidate, request, work)
            if served is not None:
                return served

    @staticmethod
    def _pass_over_unpaid(candidate: Candidate, request: RequestState, *, extra: bool) -> None:
        """Exclude a candidate that was called before: the retry budget is used up.

        If a further round has only extra calls left, raise `NoCandidateLeftError`.
        """
        if extra and all(c.tried or c.calls for c in request.candidates):
            raise NoCandidateLeftError(request.causes, None)
        candidate.tried = True

    async def _wait_for_slot(self, request: RequestState, choice: Selection) -> None:
        """Wait until a candidate may be called; `NoCandidateLeftError` if none may in time."""
        for candidate, cause in choice.refused:
            candidate.note(cause)
        if self._is_hopeless(choice, request):
            return self._skip_saturated(request, choice)

        version = request.version

        def may_go_on() -> bool:
            if request.roster.version != version:
                return True  # it may have other candidates now than the rest of its group
            found = self._choose(request)
            if found.candidate is not None or self._is_hopeless(found, request):
                return True
            self._schedule_wake_up(found)
            return False

        self._schedule_wake_up(choice)
        await self._queued(request, choice, may_go_on)
        for candidate, cause in choice.refused:
            if candidate.cause is cause:
                candidate.cause = None
        return None

    async def _queued(
        self, request: RequestState, choice: Selection, may_go_on: Callable[[], bool]
    ) -> None:
        """Wait in the queue until woken, or until the request may call others than before."""
        if request.ticket is None:
            request.ticket = self._limiter.ticket(
                background=request.background, tenant=request.tenant
            )
        began, longest = self._clock.now(), LONGEST_WAIT
        last_resort = choice.last_resort and not request.nearly_over
        blind = None in choice.waits and not choice.last_resort
        if last_resort:
            longest = request.deadline - began - request.share(LAST_RESORT_NEEDS)
        elif blind:
            longest = request.share(SLOT_OVERDUE) - request.waited
        try:
            async with self._clock.timeout(longest):
                await self._limiter.wait(request.ticket, request.group(), may_go_on)
        except TimeoutError:
            request.overdue = request.overdue or blind
            request.nearly_over = request.nearly_over or last_resort
        finally:
            request.waited += (self._clock.now() - began) * blind
            if not self._limiter.waiting:
                self._timer.stop()

    def _choose(self, request: RequestState) -> Selection:
        """Choose the next candidate; near its deadline a request calls proven ones only."""
        if request.roster.version != request.version:
            request.add_new_providers()
        candidates: Sequence[Candidate] = request.candidates
        if request.nearly_over:
            candidates = [c for c in candidates if c.guards.is_in_service()]
        policy: Policy = self._policy
        home: Selection | None = None
        if request.session is not None:
            policy = self._sessions
            home = self._sessions.at_home(candidates, request)
        params = request.params
        if params is not None and len(candidates) > 1 and request.native is None:
            # Those that take every parameter that changes the answer come first, if one of them
            # may be called now.
            taking = [c for c in candidates if NEUTRAL.issuperset(c.provider.dropped(params))]
            if len(taking) < len(candidates) and (home is None or home.candidate not in taking):
                choice = policy.choose(taking, request)
                if choice.candidate is not None and not choice.last_resort:
                    return choice
        return home or policy.choose(candidates, request)

    def _is_hopeless(self, choice: Selection, request: RequestState) -> bool:
        """Return whether there is none to wait for, or none before the deadline."""
        if request.nearly_over:
            return all(candidate.tried for candidate in request.candidates)
        left = request.deadline - self._clock.now()
        return all(wait is not None and wait > left for wait in choice.waits)

    def _skip_saturated(self, request: RequestState, choice: Selection) -> None:
        """Exclude healthy providers without a slot in time; `NoCandidateLeftError` if no others."""
        late = [c for c, cause in choice.refused if cause.kind is FailureKind.SATURATED]
        if not late or all(c.tried or c in late for c in request.candidates):
            raise self._no_candidate_left(request)
        for candidate in late:
            candidate.tried = True

    def _schedule_wake_up(self, choice: Selection) -> None:
        """Have the queue woken when the first one that was passed over may be called."""
        waits = [wait for wait in (*choice.waits, *choice.changes) if wait]
        soonest = min(waits, default=math.inf)
        if soonest < math.inf:
            # Rounded up: a timer that fires too early finds nothing and would fire for ever.
            self._timer.within(in_milliseconds(soonest))

    async def _ask_again(
        self, candidate: Candidate, request: RequestState, work: Work[A]
    ) -> Served[A] | None:
        """Call the same provider again, if `retries_per_provider` allows it."""
        provider, guards = candidate.provider, candidate.guards
        for retry in range(1, self._retries_per_provider + 1):
            cause = candidate.cause
            if cause is None or cause.kind not in _RETRY_AT_ONCE or not provider.prepared:
                return None
            refusal = guards.refusal()
            if refusal is not None and refusal.kind is not FailureKind.COOLING_DOWN:
                return None
            hint = cause.retry_after_seconds or (refusal.retry_after if refusal else None)
            wait = self._retries.pause(retry, hint or 0.0, self._clock.random())
            left = request.deadline - self._clock.now()
            if wait > self._retries.max_wait or wait >= left or self._budget.balance < 1:
                return None
            await self._clock.sleep(wait)
            candidate.tried = False
            again = self._policy.choose([candidate], request)
            candidate.tried = True
            if again.candidate is None or again.last_resort or not self._budget.take():
                return None
            served = await self._ask(candidate, request, work)
            if served is not None:
                return served
        return None

    async def _second_opinion(self, request: RequestState, work: Work[A]) -> Served[A]:
        """Call one healthy provider of another vendor for a rejected request, or raise.

        It must have a free slot now, and the call needs the retry budget.
        """
        company = request.rejected_by
        while True:
            others = self._healthy(
                [c for c in request.candidates if c.provider.company != company and not c.calls],
                prepared=False,
            )
            candidate = self._policy.choose(others, request).candidate
            if candidate is None or not self._budget.take():
                break
            if not candidate.provider.prepared:
                await self._prepare_candidate(candidate, request)
                continue
            served = await self._ask(candidate, request, work)
            if served is not None:
                return served
            break
        raise final_error(request.causes, FailureKind.REJECTED)

    # ── one provider ─────────────────────────────────────────────────────────────────────────

    async def _prepare_candidate(self, candidate: Candidate, request: RequestState) -> None:
        """Prepare its provider; exclude it if that fails, or if it lacks the operation."""
        provider = candidate.provider
        if not await self._prepare(provider, request):
            candidate.tried = True
            candidate.note(ProviderFailure(provider.name, FailureKind.UNKNOWN))
        elif request.model is None and not provider.offers(candidate.operation):
            candidate.tried = candidate.barred = True
            candidate.note(ProviderFailure(provider.name, FailureKind.UNSUPPORTED))
            if all(c.barred for c in request.candidates):
                raise none_offers(request.operation, [c.provider for c in request.candidates])
        elif request.lacks(provider):
            request.bar(candidate)

    async def _prepare(self, provider: Provider, waiting: RequestState | None = None) -> bool:
        began = self._clock.now()
        try:
            await provider.prepare()
        except Exception as exc:  # noqa: BLE001 - the others may still answer
            _log.warning("Provider %s cannot be prepared: %s.", provider.name, type(exc).__name__)
            return False
        finally:
            if waiting is not None:
                waiting.loading_seconds += self._clock.now() - began
        return True

    def _begin(
        self,
        candidate: Candidate,
        request: RequestState,
        work: Work[A],
        *,
        last_resort: bool = False,
    ) -> PendingAttempt | None:
        held = candidate.guards.begin(last_resort=last_resort)
        if held is None:
            return None
        candidate.tried = True
        candidate.calls += 1
        provider, guards = candidate.provider, candidate.guards
        advance_rotation(provider, request.candidates)
        times = guards.first_contents if work.streamed else guards.answers
        attempt = PendingAttempt(candidate, held, request, self._context, times)
        limit = provider.first_token_timeout if work.streamed else provider.attempt_timeout
        if request.thinks:
            limit = max(limit, self._thinking_timeout)
        left = request.deadline - attempt.began
        if limit >= left:
            if any(self._may_be_next(c, left) for c in request.candidates):
                # Half of the rest is kept for the next provider; this one is not to blame.
                limit, attempt.cut = left / 2, FailureKind.DEADLINE
            else:
                attempt.cut = None
        attempt.limit = limit
        return attempt

    async def _ask(
        self, candidate: Candidate, request: RequestState, work: Work[A]
    ) -> Served[A] | None:
        """Make one more attempt at a candidate. None means: go on to the next."""
        attempt = self._begin(candidate, request, work)
        if attempt is None:
            return None
        if request.hedge:
            return await self._race(attempt, request, work)
        answer = await self._attempt(attempt, request, work)
        return None if answer is None else self._served(attempt, answer, request, work)

    def _served(
        self, attempt: PendingAttempt, answer: A, request: RequestState, work: Work[A]
    ) -> Served[A]:
        """Settle the attempt whose answer is used."""
        if work.streamed:
            attempt.first_content()
        else:
            if isinstance(answer, Completion) and not answer.created:  # Gemini, Anthropic
                answer = replace(answer, created=int(self._clock.wall()))
            attempt.end(_ANSWERED, answer=answer)
        if request.session is not None:
            self._sessions.answered(request, attempt.provider.name)
        if request.native is not None:
            request.remember_stored(self._affinity, attempt.provider.name, work.native_id(answer))
        attempts, loading = tuple(request.attempts), request.loading_seconds
        return Served(answer, attempt.provider.name, attempts, attempt, loading)

    async def _race(
        self, attempt: PendingAttempt, request: RequestState, work: Work[A]
    ) -> Served[A] | None:
        """Make an attempt, and a hedge if it is slow. None if both failed."""
        first = attempt.candidate
        delay = attempt.patience = self._hedges.delay(attempt.times)
        for candidate in request.candidates:
            provider = candidate.provider
            if not (provider.prepared or provider.retired):
                self._prepare_in_background(provider)

        def second() -> PendingAttempt | None:
            other = self._policy.choose(
                self._healthy(request.candidates, prepared=True), request
            ).candidate
            if other is None or not self._hedges.try_acquire():
                return None
            rival = self._begin(other, request, work)
            if rival is not None:
                rival.patience = self._hedges.delay(rival.times)
                names = first.provider.name, other.provider.name
                after = round(attempt.seconds(), 6)
                self._emitter.emit(RequestHedged(request.request_id, *names, after))
            return rival

        race = Race(lambda runner: self._attempt(runner, request, work), work.discard, self._losers)
        won = await race.run(attempt, self._clock, self._context.stalls, delay, second)
        return None if won is None else self._served(*won, request, work)

    @staticmethod
    def _healthy(candidates: Sequence[Candidate], *, prepared: bool) -> list[Candidate]:
        """Return those that may be called without a probe, a check or a wait."""
        return [
            candidate
            for candidate in candidates
            if not candidate.tried
            and candidate.guards.is_in_service()
            and candidate.guards.refusal() is None
            and not candidate.guards.is_degraded()
            and (candidate.provider.prepared or not prepared)
        ]

    def _prepare_in_background(self, provider: Provider) -> None:
        """Prepare a provider for a possible hedge; once at a time."""
        name = f"aigateway-prepare-{provider.name}"
        if any(task.get_name() == name for task in self._losers):
            return
        task = asyncio.create_task(self._prepare(provider), name=name)
        self._losers.add(task)
        task.add_done_callback(self._losers.discard)

    async def _attempt(
        self,
        attempt: PendingAttempt,
        request: RequestState,
        work: Work[A],
        *,
        bounds_all: bool = False,
    ) -> A | None:
        """Wait for one attempt, and settle a failure; the caller settles an answer.

        None means: go on to the next provider. An error ends the request.

        Args:
            attempt: The attempt.
            request: The request.
            work: What it asks for.
            bounds_all: There is no other timeout around it, so it also ends at the deadline, with
                `TimeoutError`. The caller decides what follows from a failure.
        """
        at_deadline = bounds_all and attempt.cut is None
        seconds = request.deadline - self._clock.now() if at_deadline else attempt.limit
        failure: Failure
        unusable: Completion | None = None
        timeout: Timeout | None = None
        try:
            async with self._clock.timeout(seconds, more=self._context.stalls.more) as timeout:
                if bounds_all:
                    self._timeouts.add(timeout)
                answer = await work.ask(attempt)
                work.check(answer)
                return answer
        except VendorCallError as error:
            failure = error.failure
            unusable = error.answer
        except TimeoutError:
            over = timeout is not None and timeout.expired()
            ends_all = at_deadline or self._stopped or self._is_over(request, attempt.began)
            if over and bounds_all and ends_all:
                attempt.end(AttemptEnd.CANCELLED)
                raise
            kind = attempt.cut or FailureKind.TIMEOUT
            slow_start = work.streamed and kind is FailureKind.TIMEOUT
            failure = Failure(kind, code=FIRST_TOKEN_TIMEOUT if slow_start else None)
        except Exception as exc:  # noqa: BLE001 - a wire raises `VendorCallError` only
            _log.warning("Provider %s raised %s.", attempt.provider.name, type(exc).__name__)
            failure = Failure(FailureKind.UNKNOWN)
        except BaseException:
            if not attempt.over:  # else the race has settled it
                attempt.end(AttemptEnd.CANCELLED)
            raise
        finally:
            if timeout is not None:
                self._timeouts.discard(timeout)
        attempt.fail(failure, unusable)
        if not bounds_all:
            await self._go_on(attempt, request)
        return None

    def _is_over(self, request: RequestState, began: float) -> bool:
        """Return whether the deadline has passed, without the stalls since its attempt began."""
        now = self._clock.now()
        return now >= request.deadline + self._context.stalls.stalled(began, now)

    @staticmethod
    def _may_be_next(candidate: Candidate, left: float) -> bool:
        """Return whether it may be called after this attempt, possibly as last resort."""
        if candidate.tried or candidate.provider.retired:
            return False
        refusal = candidate.guards.refusal()
        return refusal is None or (not candidate.calls and refusal.last_resort < left / 2)

    # ── after a failure ──────────────────────────────────────────────────────────────────────

    async def _go_on(self, failed: PendingAttempt, request: RequestState) -> None:
        """Raise if no other provider is to be called after this failure."""
        if failed.failure is None:
            return  # the race has settled it
        kind, provider = failed.failure.kind, failed.provider
        verdict = VERDICTS[kind]
        if verdict.failover is Failover.LARGER_WINDOW:
            await self._keep_larger_windows(provider, request)
        elif verdict.failover is Failover.ALWAYS or request.go_on_when_refused:
            return
        elif verdict.failover is Failover.SECOND_OPINION and self._on_rejection:
            if self._on_rejection == "once":
                # Two concurrent attempts at the same company are no second opinion.
                if request.rejected_by not in {None, provider.company}:
                    raise final_error(request.causes, FailureKind.REJECTED)
                request.rejected_by = provider.company
        elif not (kind is FailureKind.CONTENT_POLICY and self._on_content_policy):
            raise final_error(request.causes, kind)

    async def _keep_larger_windows(self, provider: Provider, request: RequestState) -> None:
        """Exclude the candidates that are not known to take more input than `provider`."""
        limit = provider.client.max_input_tokens or math.inf
        larger = [
            candidate
            for candidate in request.candidates
            if (candidate.provider.prepared or await self._prepare(candidate.provider, request))
            and (candidate.provider.client.max_input_tokens or 0) > limit
        ]
        if not larger:
            raise final_error(request.causes, FailureKind.CONTEXT_WINDOW)
        for candidate in request.candidates:
            if candidate not in larger:
                candidate.tried = candidate.barred = True

    def _out_of_time(self, request: RequestState) -> GatewayError:
        self._refresh_causes(request)
        causes = request.causes
        if self._stopped:
            return GatewayError(f"The gateway was closed during the request ({describe(causes)}).")
        waited, loading = "", request.loading_seconds
        advice = "Raise `timeout`."
        if len(request.candidates) > 1:
            advice = (
                f"{advice[:-1]}, or lower `attempt_timeout` so that more providers get a chance."
            )
        if not request.attempts:
            waited = ", waiting for its turn"
            advice = "Its providers fail, or have no free slot: look at `gateway.providers`."
        if loading >= (self._clock.now() - request.began) / 2:
            waited = f", while litellm was loading ({loading:.1f} s)"
            advice = "Call `await gateway.warmup()` first, or enter the gateway earlier."
        return DeadlineExceededError(
            f"The request's deadline passed after {len(request.attempts)} attempts"
            f" ({describe(causes)}){waited}. {advice}",
            causes,
        )

    @staticmethod
    def _refresh_causes(request: RequestState) -> None:
        """Update the causes of candidates without an attempt: they may have changed."""
        for candidate in request.candidates:
            waits = candidate.cause is None and not candidate.calls
            if waits or (candidate.cause is not None and candidate.cause.kind in _NOT_ASKED):
                refusal = candidate.provider.refusal(candidate.operation)
                if refusal is not None:
                    candidate.cause = candidate.provider.refused(refusal)

    def _no_candidate_left(self, request: RequestState) -> NoCandidateLeftError:
        self._refresh_causes(request)
        waits = []
        for candidate in request.candidates:
            cause = candidate.cause
            if cause is None or cause.kind not in TRANSIENT:
                continue
            refusal = candidate.provider.refusal(candidate.operation)
            wait = in_milliseconds(refusal.retry_after) if refusal else None
            if refusal is None and cause.kind is FailureKind.SATURATED:
                wait = cause.retry_after_seconds  # its slot comes too late for this round
            if refusal is not None and wait and cause.retry_after_seconds is None:
                seconds = candidate.provider.refused(refusal).retry_after_seconds
                candidate.cause = replace(cause, retry_after_seconds=seconds)
            open_again = candidate.guards.breaker.state is CircuitState.CLOSED
            if not candidate.barred and (open_again or not candidate.blamed):
                waits.append(wait or 0.0)
        return NoCandidateLeftError(request.causes, min(waits, default=None))


class _WakeUpTimer:
    """Calls `wake` once, at the earliest of the requested moments.

    With a timer for each of ten thousand waiters, all would wake for one free slot.
    """

    __slots__ = ("_clock", "_task", "_wake", "_when")

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._when = math.inf

    def within(self, seconds: float) -> None:
        """Wake the queue in so many seconds, or earlier if requested before."""
        when = self._clock.now() + seconds
        if when >= self._when:
            return
        self.stop()
        self._when = when
        self._task = asyncio.create_task(self._wait(seconds), name="aigateway-wake-up")

    def stop(self) -> None:
        """Cancel the timer."""
        self._when = math.inf
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _wait(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._task, self._when = None, math.inf
        self._wake()
