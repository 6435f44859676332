"""Faults of this machine, not of a provider: a dead network, a blocked event loop.

When no provider at all can be connected to, the network is down. When a blocking call in the
application (`time.sleep`, a long computation) stops the event loop, answers that have arrived are
not read while the time of their timeouts passes. So a tick every quarter of a second, while calls
are out, measures how long the loop stood still; timeouts are extended by that time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from aigateway.clock import Clock, Timer

__all__ = ["REPORTED", "Reachability", "StallDetector"]

RECENT = 60.0
"""Seconds for which an answer proves that the network is up."""


class Reachability:
    """The providers that could and could not be connected to. Synchronous, for one event loop.

    A provider that was never tried does not count: the request that finds the others unreachable
    tries it, and if it answers the network is up again.
    """

    __slots__ = ("_clock", "_down", "_up")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._up: dict[str, float] = {}  # when each last answered
        self._down: set[str] = set()

    @property
    def down(self) -> frozenset[str]:
        """Names of providers to which no connection could be made."""
        return frozenset(self._down)

    @property
    def network_is_down(self) -> bool:
        """Whether two or more could not be connected to, and none has answered recently."""
        since = self._clock.now() - RECENT
        return len(self._down) > 1 and not any(at > since for at in self._up.values())

    def is_proven_without(self, name: str) -> bool:
        """Return whether a provider can be connected to, or another one has answered recently.

        If not, the network may be down: a failure of this provider proves nothing.
        """
        since = self._clock.now() - RECENT
        return name not in self._down or any(at > since for at in self._up.values())

    def reached(self, name: str) -> None:
        """Record that a provider answered."""
        self._up[name] = self._clock.now()
        if self._down:
            self._down.discard(name)

    def unreachable(self, name: str) -> bool:
        """Record that no connection could be made; return whether the network is at fault."""
        self._up.pop(name, None)
        self._down.add(name)
        return self.network_is_down

    def forget(self, name: str) -> None:
        """Forget a provider that is removed or disabled."""
        self._up.pop(name, None)
        self._down.discard(name)


INTERVAL = 0.25
"""Seconds between two ticks."""

TOLERANCE = 0.1
"""Seconds by which a tick may be late on a busy machine; less does not count."""

GRACE = 0.1
"""Seconds to read what came during a stall, if no other time is left."""

REPORTED = 0.5
"""Seconds of a stall that is worth an event."""


_KEPT = 256
"""Stalls that are remembered; a timeout is not extended by older ones."""


class StallDetector:
    """Measures how long the event loop stood still while calls were in flight.

    Args:
        clock: The gateway's.
        on_stall: Called with the seconds of each longer stall.

    Attributes:
        calls: Calls in flight.
    """

    __slots__ = ("_clock", "_due", "_on_stall", "_stalls", "_stopped", "_timer", "calls")

    def __init__(self, clock: Clock, on_stall: Callable[[float], None]) -> None:
        self._clock = clock
        self._on_stall = on_stall
        self.calls = 0
        self._stalls: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # end and seconds of each
        self._due = math.inf
        self._timer: Timer | None = None
        self._stopped = False

    def begin(self) -> None:
        """Count a call that begins. Its end subtracts one from `calls`."""
        self.calls += 1
        if self._timer is None and not self._stopped:
            self._schedule_tick()

    def stalled(self, since: float, now: float) -> float:
        """Return the seconds for which the loop has stood still, a present stall included.

        Args:
            since: The beginning of the measured time, on the clock's own scale.
            now: Its end.
        """
        late = now - self._due
        seconds = min(late, now - since) if late > TOLERANCE else 0.0
        stalls = self._stalls
        if not stalls or stalls[-1][0] <= since:
            return seconds
        for end, stall in reversed(stalls):
            if end <= since:
                break
            seconds += min(stall, end - since)
        return seconds

    def more(self, limit: float, began: float, looked: float) -> float:
        """Return the seconds by which to extend a timeout that is due, or 0.0.

        It gets back the time of a stall, up to the rest of its limit, and at least a moment to read
        what came meanwhile.

        Args:
            limit: Seconds of the timeout.
            began: When it began, on the clock's own scale.
            looked: When it was extended before, else as `began`.
        """
        now = self._clock.now()
        new = self.stalled(looked, now)
        if new <= TOLERANCE or self._stopped:
            return 0.0
        return min(new, max(GRACE, began + limit + self.stalled(began, now) - now))

    def stop(self) -> None:
        """Stop the ticks, and extend no more timeouts."""
        timer, self._timer = self._timer, None
        self._due = math.inf
        self._stopped = True
        if timer is not None:
            timer.cancel()

    def _schedule_tick(self) -> None:
        self._due = self._clock.now() + INTERVAL
        self._timer = self._clock.call_later(INTERVAL, self._tick)

    def _tick(self) -> None:
        now = self._clock.now()
        late = now - self._due
        if self.calls:
            self._schedule_tick()
        else:  # one tick after the last call: the next call often comes soon
            self._timer, self._due = None, math.inf
        if late > TOLERANCE:
            self._stalls.append((now, late))
            if late >= REPORTED and self.calls:
                self._on_stall(late)
