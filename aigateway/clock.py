"""The only place that knows time, sleep and randomness.

Everything else takes a `Clock`, so that a test (or a simulation) can let hours pass in a
millisecond. Durations are seconds. `now` is monotonic: a change of the wall clock moves nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock"]


class Clock(Protocol):
    """Time, sleep and randomness, as the gateway needs them."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""

    def wall(self) -> float:
        """Seconds since the Unix epoch; only for reading dates that vendors send."""

    def random(self) -> float:
        """A random number in [0, 1)."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """A block that raises `TimeoutError` if it takes longer, or when it is told to."""


class SystemClock:
    """The real one."""

    __slots__ = ()

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def random(self) -> float:
        return random.random()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[asyncio.Timeout]:
        return asyncio.timeout(seconds)


SYSTEM_CLOCK = SystemClock()
