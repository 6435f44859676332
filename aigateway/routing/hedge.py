"""Hedges: a second call at another provider, when the first is slower than usual.

The idea and the limit of extra load are those of Dean and Barroso, "The Tail at Scale" (2013): a
second call after the 95th percentile costs at most 5 % more calls and shortens the slowest answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from aigateway.clock import Clock
from aigateway.errors import GatewayError
from aigateway.resilience.health import ResponseTimes
from aigateway.resilience.local_faults import StallDetector
from aigateway.resilience.retry import HedgeBudget, RetryBudget, hedge_delay
from aigateway.routing.attempt import AttemptEnd, Billable, PendingAttempt
from aigateway.settings import GatewaySettings

__all__ = ["Hedges", "Race"]

_ASK_AGAIN = 0.05
"""Least seconds between two tries to begin a hedge."""

A = TypeVar("A", bound=Billable)


class Hedges:
    """Decides when to hedge, and how often at most. One for each gateway."""

    __slots__ = ("_budget", "_delay", "_extra")

    def __init__(self, settings: GatewaySettings, clock: Clock, extra: RetryBudget) -> None:
        self._delay = settings.hedge_delay_seconds
        self._budget = HedgeBudget(clock, most_percent=settings.hedge_max_percent)
        self._extra = extra

    def request(self) -> None:
        """Count a request."""
        self._budget.request()

    def delay(self, times: ResponseTimes) -> float:
        """Return the seconds to wait for a provider before a hedge."""
        return hedge_delay(times.p95, times.samples, self._delay)

    def try_acquire(self) -> bool:
        """Take one more hedge from the budgets; return whether they allow it."""
        return self._extra.balance >= 1 and self._budget.take() and self._extra.take()


class Race(Generic[A]):
    """One call, and perhaps a second one: the first answer wins.

    Args:
        attempt: Waits for a call: returns its answer, None if it has failed, or raises.
        discard: Closes an answer that came too late.
        losers: Holds the tasks of calls that lost, until they have ended.
    """

    __slots__ = ("_attempt", "_discard", "_losers", "_runners")

    def __init__(
        self,
        attempt: Callable[[PendingAttempt], Coroutine[Any, Any, A | None]],
        discard: Callable[[A], Coroutine[Any, Any, None]] | None,
        losers: set[asyncio.Task[Any]],
    ) -> None:
        self._attempt = attempt
        self._discard = discard
        self._losers = losers
        self._runners: dict[asyncio.Task[A | None], PendingAttempt] = {}

    async def run(
        self,
        call: PendingAttempt,
        clock: Clock,
        stalls: StallDetector,
        delay: float,
        second: Callable[[], PendingAttempt | None],
    ) -> tuple[PendingAttempt, A] | None:
        """Run a call, and a second one after `delay` seconds.

        `second` begins the second call; if it returns None, because no provider or no budget is
        free now, it is called again after a while. Stalls extend the delay.

        Returns:
            The call that won and its answer, not settled yet; None if all failed.
        """
        self._start(call)
        won = False
        refusal: GatewayError | None = None
        try:
            while not await self._done_within(delay, clock, stalls):
                other = second()
                if other is not None:
                    self._start(other)
                    break
                delay = max(delay, _ASK_AGAIN)
            while self._runners:
                done, _ = await asyncio.wait(self._runners, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    runner = self._runners.pop(task)
                    try:
                        answer = task.result()
                    except GatewayError as error:  # the other may still answer
                        refusal = error
                        continue
                    if answer is not None:
                        won = True
                        return runner, answer
        finally:
            for task, runner in self._runners.items():
                self._end(task, runner, won)
        if refusal is not None:
            raise refusal
        return None

    def _start(self, call: PendingAttempt) -> None:
        task = asyncio.create_task(
            self._attempt(call), name=f"aigateway-attempt-{call.provider.name}"
        )
        self._runners[task] = call

    async def _done_within(self, delay: float, clock: Clock, stalls: StallDetector) -> bool:
        try:
            async with clock.timeout(delay, more=stalls.more):
                await asyncio.wait(self._runners)
        except TimeoutError:
            return False
        return True

    def _end(self, task: asyncio.Task[A | None], call: PendingAttempt, lost: bool) -> None:
        """Cancel a call without waiting for its end."""
        answer = _result_of(task)
        if answer is not None:  # in the same moment as the one that won
            call.end(AttemptEnd.UNUSED, answer=answer)
            self._close(answer)
        elif not call.over:  # settled now, so that the response or error lists it
            call.end(AttemptEnd.HEDGE_LOST if lost else AttemptEnd.CANCELLED)

        def ended(task: asyncio.Task[A | None]) -> None:
            self._losers.discard(task)
            late = None if answer is not None else _result_of(task)
            if late is not None:
                call.count_late_answer(late)
                self._close(late)

        self._losers.add(task)
        task.cancel()
        task.add_done_callback(ended)

    def _close(self, answer: A) -> None:
        if self._discard is None:
            return
        closing = asyncio.create_task(self._discard(answer))
        self._losers.add(closing)
        closing.add_done_callback(self._losers.discard)


def _result_of(task: asyncio.Task[A | None]) -> A | None:
    if not task.done() or task.cancelled() or task.exception() is not None:
        return None
    return task.result()
