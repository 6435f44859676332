"""One alarm for everybody who waits for a moment: when the first one comes, somebody looks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from aigateway.clock import Clock

__all__ = ["Alarm"]


class Alarm:
    """Rings once, at the earliest moment that it was asked for. Belongs to one event loop.

    With a timer for each of ten thousand waiters, all would wake for the one place that is free
    then, and all but one in vain.

    Args:
        clock: The gateway's.
        ring: Called then; it may ask for another moment.
    """

    __slots__ = ("_clock", "_ring", "_task", "_when")

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._task: asyncio.Task[None] | None = None
        self._when = math.inf

    def within(self, seconds: float) -> None:
        """Ring in so many seconds, or earlier if somebody else has asked for that."""
        when = self._clock.now() + seconds
        if when >= self._when:
            return
        self.stop()
        self._when = when
        self._task = asyncio.create_task(self._wait(seconds), name="aigateway-alarm")

    def stop(self) -> None:
        """Ring no more, unless asked again."""
        self._when = math.inf
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _wait(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._task, self._when = None, math.inf
        self._ring()
