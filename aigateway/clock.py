"""Time, sleep and randomness. Everything else takes a `Clock`.

So a test or a simulation can let hours pass in a millisecond. Durations are in seconds. `now` is
monotonic: changes of the wall clock do not affect it.

Nearly every timeout ends long before it is due. So all timeouts of an event loop share one timer,
which is reset only for one that is due earlier. `asyncio.timeout` sets and cancels a timer for
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
"""Called when a timeout is due; returns the seconds by which to put it off, or 0.0. The arguments:
the timeout in seconds, when it began, and when this was last called (at first: when it began)."""


class Timeout(Protocol):
    """A block with a time limit, like `asyncio.Timeout`."""

    def reschedule(self, when: float) -> None:
        """Change when it is due, in the event loop's time."""

    def expired(self) -> bool:
        """Return whether it was due before the block ended."""


class Timer(Protocol):
    """A scheduled call, like `asyncio.TimerHandle`."""

    def cancel(self) -> None:
        """Cancel the call; repeating this has no effect."""


class Clock(Protocol):
    """Time, sleep and randomness, as the gateway needs them."""

    def now(self) -> float:
        """Return the seconds of a monotonic clock; only differences have a meaning."""

    def wall(self) -> float:
        """Return the seconds since the Unix epoch; only to interpret dates of vendors."""

    def random(self) -> float:
        """Return a random number in [0, 1)."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call something on the running event loop after this time."""

    def timeout(
        self, seconds: float, *, more: PutOff | None = None
    ) -> AbstractAsyncContextManager[Timeout]:
        """Return a context manager that raises `TimeoutError` if its block takes longer.

        Args:
            seconds: The time limit.
            more: Called when the timeout is due, and may put it off.
        """


_GARBAGE = 256
"""Timeouts no longer waited for that the heap may always hold, so that it is seldom rebuilt."""


class _Alarm:
    """The timeouts of one event loop, on one timer."""

    __slots__ = ("_due", "_left", "_serial", "_timer", "_when", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._due: list[tuple[float, int, _Timeout]] = []  # a heap
        self._left = 0  # how many of these are no longer waited for
        self._serial = 0  # so that the heap need not compare timeouts
        self._timer: asyncio.TimerHandle | None = None
        self._when = math.inf  # what the timer is set to

    def add(self, timeout: _Timeout, when: float) -> None:
        self._serial += 1
        heapq.heappush(self._due, (when, self._serial, timeout))
        if when < self._when:
            self._set(when)

    def leave(self) -> None:
        """Note that one of the timeouts is no longer waited for."""
        self._left += 1
        if self._left > _GARBAGE and self._left > len(self._due) // 2:
            self._due = [entry for entry in self._due if entry[2].waits_for(entry[0])]
            heapq.heapify(self._due)
            self._left = 0

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._when = when
        self._timer = self.loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer, self._when = None, math.inf
        now = self.loop.time()
        while self._due:
            when, _, timeout = self._due[0]
            waited_for = timeout.waits_for(when)
            if waited_for and when > now:
                self._set(when)
                return
            heapq.heappop(self._due)
            if not waited_for:
                self._left -= 1
            elif more := timeout.put_off(now):
                self.add(timeout, more)
            else:
                timeout.expire()


class _Alarms(threading.local):
    """The latest of each thread, which runs one event loop at a time."""

    latest: _Alarm | None = None


_alarms = _Alarms()


class _Timeout:
    """Like `asyncio.Timeout`, but with the shared timer."""

    _task: asyncio.Task[Any] | None = None
    _waiting = False  # inside, and not expired
    _expired = False
    _looked = 0.0  # when it was last put off; 0.0: never

    def __init__(self, seconds: float, more: PutOff | None) -> None:
        self._seconds = seconds
        self._more = more

    async def __aenter__(self) -> Self:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        if task is None:
            raise RuntimeError("A timeout can be used inside a task only.")
        alarm = _alarms.latest
        if alarm is None or alarm.loop is not loop:
            alarm = _alarms.latest = _Alarm(loop)
        self._task, self._alarm, self._waiting = task, alarm, True
        self._cancelling = task.cancelling()
        self._when = when = loop.time() + self._seconds
        alarm.add(self, when)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        self._more = None  # it refers to the caller, and the heap may keep this for a while
        if self._waiting:
            self._waiting = False
            self._alarm.leave()
        # Another cancellation of the task must propagate.
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
        self._alarm.leave()
        self._alarm.add(self, when)

    def expired(self) -> bool:
        return self._expired

    def waits_for(self, when: float) -> bool:
        return self._waiting and self._when == when

    def put_off(self, now: float) -> float:
        """Return the moment to which the timeout is put off, or 0.0."""
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
        self._waiting, self._expired = False, True
        assert self._task is not None  # noqa: S101 - it was inside
        self._task.cancel()


class SystemClock:
    """The real clock."""

    __slots__ = ()

    now = staticmethod(time.monotonic)  # asked ten times for each request

    def wall(self) -> float:
        return time.time()

    def random(self) -> float:
        return random.random()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)

    def timeout(
        self, seconds: float, *, more: PutOff | None = None
    ) -> AbstractAsyncContextManager[Timeout]:
        return _Timeout(seconds, more)


SYSTEM_CLOCK = SystemClock()
