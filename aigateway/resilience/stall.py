"""Notice that our own event loop stood still, so that no provider is blamed for it.

A blocking call in the application (`time.sleep`, a long computation) keeps answers that have
arrived from being read, while the time of their timeouts passes. While calls are out, a tick every
quarter of a second shows how long the loop stood; timeouts get that time again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from aigateway.clock import Clock, Timer

__all__ = ["StallWatch"]

INTERVAL = 0.25
"""Seconds between two ticks."""

TOLERANCE = 0.1
"""Seconds by which a tick may be late on a busy machine; less counts for nothing."""

GRACE = 0.1
"""Seconds to read what came during a stall, where no other time is left."""

REPORTED = 0.5
"""Seconds of a stall that is worth an event."""


class StallWatch:
    """Measures how long the event loop stood still while calls were out. For one event loop.

    Args:
        clock: The gateway's.
        on_stall: Called with the seconds of each longer stall.
    """

    __slots__ = ("_calls", "_clock", "_due", "_on_stall", "_stalled", "_timer")

    def __init__(self, clock: Clock, on_stall: Callable[[float], None]) -> None:
        self._clock = clock
        self._on_stall = on_stall
        self._calls = 0
        self._stalled = 0.0
        self._due = math.inf
        self._timer: Timer | None = None

    def begin(self) -> float:
        """A call goes out. Returns the mark for `since`."""
        self._calls += 1
        if self._timer is None:
            self._tick_later()
        return self.seconds()

    def end(self) -> None:
        """It is back."""
        self._calls -= 1

    def seconds(self) -> float:
        """Seconds for which the loop has stood still so far, the present stall included."""
        late = self._clock.now() - self._due
        return self._stalled + late if late > TOLERANCE else self._stalled

    def since(self, mark: float) -> float:
        """Seconds for which it has stood still since `begin` gave that mark."""
        return self.seconds() - mark

    def allowance(self, limit: float) -> Callable[[], float]:
        """Make what gives a timeout the time again in which the loop stood still.

        Args:
            limit: Seconds of the timeout, which begins now.

        Returns:
            To be called when the timeout is due: the seconds by which to put it off, or 0.0. After
            each stall it is what is left of `limit`, with a moment to read what came meanwhile.
        """
        began, mark, seen = self._clock.now(), self.seconds(), 0.0

        def more() -> float:
            nonlocal seen
            stood = self.since(mark)
            new, seen = stood - seen, stood
            if new <= TOLERANCE:
                return 0.0
            return min(new, max(GRACE, began + limit + stood - self._clock.now()))

        return more

    def stop(self) -> None:
        """Tick no more."""
        timer, self._timer = self._timer, None
        self._due = math.inf
        if timer is not None:
            timer.cancel()

    def _tick_later(self) -> None:
        self._due = self._clock.now() + INTERVAL
        self._timer = self._clock.call_later(INTERVAL, self._tick)

    def _tick(self) -> None:
        late = self._clock.now() - self._due
        if self._calls:
            self._tick_later()
        else:  # the tick after the last call: the next one often comes soon
            self._timer, self._due = None, math.inf
        if late > TOLERANCE:
            self._stalled += late
            if late >= REPORTED and self._calls:
                self._on_stall(late)
