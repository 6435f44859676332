"""The only source of time, sleep and randomness.

Everything else takes a `Clock`, so that a test (or a simulation) can let hours pass in a
millisecond. Durations are seconds. `now` is monotonic: a change of the wall clock moves nothing.

Nearly every timeout ends long before it is due, so they share one timer of the event loop,
which is set anew only for one that is due earlier. `asyncio.timeout` sets and cancels a timer for
each, which costs three times as much.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, Self

__all__ = ["SYSTEM_CLOCK", "Clock", "PutOff", "SystemClock", "Timeout", "Timer"]

PutOff = Callable[[float, float, float], float]
"""Called when a timeout is due, with its seconds, when it began, and when this was called before
(else when it began). Returns the seconds by which to extend the timeout, or 0.0."""


class Timeout(Protocol):
    """A block with a bound on its time, like `asyncio.Timeout`."""

    def reschedule(self, when: float) -> None:
        """Make it due at another moment, on the event loop's scale."""

    def expired(self) -> bool:
        """Return whether the time was over before the block ended."""


class Timer(Protocol):
    """A scheduled call, like `asyncio.TimerHandle`."""

    def cancel(self) -> None:
        """Cancel it. A second time does nothing."""


class Clock(Protocol):
    """Time, sleep and randomness, as the gateway needs them."""

    def now(self) -> float:
        """Return seconds on a clock that never goes back; only differences mean anything."""

    def wall(self) -> float:
        """Return seconds since the Unix epoch; only for reading dates that vendors send."""

    def random(self) -> float:
        """Return a random number in [0, 1)."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the running event loop after this time."""

    def timeout(
        self,
        seconds: float,
        *,
        more: PutOff | None = None,
        task: asyncio.Task[Any] | None = None,
    ) -> AbstractAsyncContextManager[Timeout]:
        """Bound a block: it raises `TimeoutError` if it takes longer, or once rescheduled to now.

        Args:
            seconds: The bound.
            more: Called when the time is over; may extend it.
            task: The task that enters the block, where that is at hand: to look for it and its
                event loop may take a call of the system.
        """


_GARBAGE = 256
"""Timeouts that have ended and may stay in the heap, so that it is seldom tidied up."""


class _SharedTimer:
    """The timeouts of one event loop, on one timer.

    Most timeouts end before the timer fires again, so a new one is not sorted in before that.
    """

    __slots__ = ("_serial", "_timer", "due", "ended", "loop", "new", "when")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.due: list[tuple[float, int, _TimeLimit]] = []  # a heap
        self.ended = 0  # how many of these have ended
        self.new: dict[_TimeLimit, float] = {}  # when those are due that are not in the heap yet
        self._serial = 0  # so that the heap need not compare timeouts
        self._timer: asyncio.TimerHandle | None = None
        self.when = math.inf  # what the timer is set to

    def add(self, timeout: _TimeLimit, when: float) -> None:
        """Let the timeout expire at that moment, if it still waits."""
        self._push(timeout, when)
        if when < self.when:
            self.set(when)

    def _push(self, timeout: _TimeLimit, when: float) -> None:
        self._serial += 1
        heapq.heappush(self.due, (when, self._serial, timeout))

    def note_end(self) -> None:
        """Count a timeout in the heap that has ended; if many have, take them out."""
        self.ended += 1
        if self.ended > _GARBAGE:
            self.tidy_up()

    def tidy_up(self) -> None:
        """Take timeouts that have ended out of the heap, if they are the larger part of it."""
        if self.ended > len(self.due) // 2:
            self.due = [entry for entry in self.due if entry[2].waits_for(entry[0])]
            heapq.heapify(self.due)
            self.ended = 0

    def set(self, when: float) -> None:
        """Fire at that moment."""
        if self._timer is not None:
            self._timer.cancel()
        self.when = when
        self._timer = self.loop.call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer, self.when = None, math.inf
        now = self.loop.time()
        for timeout, when in self.new.items():
            self._push(timeout, when)
        self.new.clear()
        while self.due:
            when, _, timeout = self.due[0]
            waited_for = timeout.waits_for(when)
            if waited_for and when > now:
                self.set(when)
                return
            heapq.heappop(self.due)
            if not waited_for:
                self.ended -= 1
            elif more := timeout.extend(now):
                self.add(timeout, more)
            else:
                timeout.expire()


class _SharedTimers(threading.local):
    """A thread runs one event loop at a time, so each keeps its latest at hand."""

    latest: _SharedTimer | None = None


_timers = _SharedTimers()


class _TimeLimit:
    """`asyncio.Timeout`, but for the timer."""

    _began: float
    _cancelling: int
    _timer: _SharedTimer
    _when: float
    _waiting = _expired = False  # inside, and not expired
    _looked = 0.0  # when it was extended; not yet

    def __init__(
        self,
        seconds: float,
        *,
        more: PutOff | None = None,
        task: asyncio.Task[Any] | None = None,
    ) -> None:
        self._seconds = seconds
        self._more = more
        self._task = task

    async def __aenter__(self) -> Self:
        task = self._task
        if task is None:
            loop = asyncio.get_running_loop()
            task = asyncio.current_task(loop)
            if task is None:
                raise RuntimeError("A timeout can be used inside a task only.")
        else:
            loop = task.get_loop()
        timer = _timers.latest
        if timer is None or timer.loop is not loop:
            timer = _timers.latest = _SharedTimer(loop)
        self._task, self._timer, self._waiting = task, timer, True
        self._cancelling = task.cancelling()
        timer.new[self] = self._when = when = loop.time() + self._seconds
        if when < timer.when:
            timer.set(when)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        self._more = None  # the heap may keep this for a while, and it holds its caller
        if self._waiting:
            self._waiting = False
            if self._timer.new.pop(self, None) is None:
                self._timer.note_end()
        # A cancellation that did not come from this timeout must go on outwards.
        elif (
            task is not None
            and task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise TimeoutError from error

    def reschedule(self, when: float) -> None:
        if not self._waiting:
            raise RuntimeError("Only a timeout that is entered and not over can be moved.")
        self._when = when
        if self._timer.new.pop(self, None) is None:
            self._timer.ended += 1
        self._timer.add(self, when)

    def expired(self) -> bool:
        return self._expired

    def waits_for(self, when: float) -> bool:
        """Return whether it is to expire at that moment."""
        return self._waiting and self._when == when

    def extend(self, now: float) -> float:
        """Return the moment to which the timeout is extended, or 0.0."""
        if self._more is None:
            return 0.0
        if self._looked == 0.0:  # due for the first time
            self._began = self._looked = self._when - self._seconds
        more = self._more(self._seconds, self._began, self._looked)
        if more <= 0:
            return 0.0
        self._looked = now
        self._when = now + more
        return self._when

    def expire(self) -> None:
        """Cancel the block: its time is over."""
        self._waiting, self._expired = False, True
        assert self._task is not None  # noqa: S101 - it was inside
        self._task.cancel()


class SystemClock:
    """The system's clock."""

    __slots__ = ()

    now = staticmethod(time.monotonic)  # without a call of our own: it is read often
    wall = staticmethod(time.time)
    timeout = _TimeLimit

    def random(self) -> float:
        return random.random()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


SYSTEM_CLOCK = SystemClock()
