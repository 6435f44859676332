"""How many calls a vendor bears at once, found out by asking.

Additive increase, multiplicative decrease, as TCP does it (RFC 5681).
Only what the vendor says about its load moves the limit (429, 529, no first token in time). Total
latency does not: it follows the length of the answer.
"""

from __future__ import annotations

import math

from aigateway.clock import Clock

__all__ = ["AdaptiveLimit"]

_COUNTABLE = 2**53
"""Above this a float no longer tells whole numbers apart, and far above there is none."""

DECREASE = 0.9
"""What a throttle leaves of the limit."""


class AdaptiveLimit:
    """The bound on one provider's calls in flight. Synchronous, for one event loop.

    Args:
        most: The bound is never above; it starts there.
        clock: The gateway's.
    """

    __slots__ = ("_clock", "_decreased", "_limit", "_most")

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = min(most, _COUNTABLE)
        self._clock = clock
        self._limit = float(self._most)
        self._decreased = -math.inf

    @property
    def limit(self) -> int:
        """Calls that may be out at once, from 1 to `most`."""
        return max(1, int(self._limit))

    @property
    def fallen(self) -> bool:
        """Whether the limit is below `most`; else success has nothing to give back."""
        return self._limit < self._most

    def throttled(self, in_flight: int, began: float) -> None:
        """The vendor refused a call because of its load.

        Args:
            in_flight: Calls that were out, this one included.
            began: When this one began. One that began before the latest decrease tells nothing
                new: the limit falls at most once in a round trip.
        """
        if began < self._decreased:
            return
        # Far above what is really out, the limit means nothing: it comes down to that, by halves.
        meant = min(self._limit, max(float(in_flight), self._limit / 2))
        self._limit = max(1.0, meant * DECREASE)
        self._decreased = self._clock.now()

    def succeeded(self, in_flight: int) -> None:
        """A call was answered: one place more for each window (`limit`) of successes.

        Args:
            in_flight: Calls that were out. Where less than half of the limit is used, success says
                nothing about a higher one (RFC 7661).
        """
        if self.fallen and in_flight * 2 >= self._limit:
            self._limit = min(float(self._most), self._limit + 1.0 / self._limit)
