"""A provider that hangs, noticed before its timeouts say so.

A hang costs most: each caller waits out the whole timeout to learn what the one before it is just
learning. So when enough calls are out for much longer than the provider usually takes, and none
came back meanwhile, that is taken as a sign, and new requests look elsewhere first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

from aigateway.clock import Clock

__all__ = ["HangWatch", "Out"]

BEYOND = 4.0
"""Times the 95th percentile after which a call is overdue."""


class Out:
    """A call that is out, or would be, had it not been cancelled for a quicker one."""

    __slots__ = ("began", "settle", "until")

    def __init__(self, began: float) -> None:
        self.began = began
        self.until = math.inf
        self.settle: Callable[[bool], None] | None = None


class HangWatch:
    """The calls of one provider that are out. Synchronous, for one event loop.

    Args:
        clock: The gateway's.
        threshold: Overdue calls that make a hang; the circuit's threshold.
        stale: Seconds after which it does not matter any more that a call would have failed: the
            circuit's open time.
    """

    __slots__ = ("_clock", "_last_success", "_next_due", "_out", "_outrun", "_stale", "_threshold")

    def __init__(self, clock: Clock, threshold: int, *, stale: float = 60.0) -> None:
        self._clock = clock
        self._stale = stale
        self._threshold = threshold
        self._out: dict[Out, None] = {}  # begun since the last success, in that order
        self._outrun: dict[Out, None] = {}  # those of them that were cancelled
        self._last_success = -math.inf
        self._next_due = math.inf  # no cancelled one is due before

    def begin(self) -> Out:
        """A call goes out."""
        call = Out(self._clock.now())
        self._out[call] = None
        return call

    def succeeded(self, call: Out) -> None:  # noqa: ARG002 - it speaks for every call
        """It brought something: the provider is alive."""
        self._last_success = self._clock.now()
        self._out.clear()  # all of them began before it, and it speaks for them
        if self._outrun:
            self._settle(list(self._outrun), failed=False)

    def ended(self, call: Out) -> None:
        """It ended in another way. May be called after `succeeded`."""
        self._out.pop(call, None)

    def outrun(self, call: Out, until: float, settle: Callable[[bool], None]) -> None:
        """It was cancelled, because another provider was quicker.

        Nobody knows whether it would have been answered. It counts as if it were still out until
        its timeout would have come, and then as a failure, unless the provider has answered
        somebody in the meantime.

        Args:
            call: From `begin`.
            until: When its timeout would have come, on the clock's own scale.
            settle: Called once, with whether to count a failure.
        """
        call.until, call.settle = until, settle
        self._outrun[call] = None
        self._next_due = min(self._next_due, until)
        if self._last_success >= call.began:
            self._settle([call], failed=False)

    def suspected(self, p95: float | None) -> bool:
        """Whether the provider seems to hang.

        Args:
            p95: The 95th percentile of what its calls take, in seconds, if it is known.
        """
        if self._outrun and self._next_due <= self._clock.now():
            self._settle_due()
        if p95 is None or len(self._out) < self._threshold:
            return False
        oldest = next(islice(self._out, self._threshold - 1, None))
        return oldest.began < self._clock.now() - BEYOND * p95

    def close(self) -> None:
        """Settle what is open, and blame nobody."""
        self._settle(list(self._outrun), failed=False)

    def _settle_due(self) -> None:
        now = self._clock.now()
        due = [call for call in self._outrun if call.until <= now]
        self._next_due = min(
            (call.until for call in self._outrun if call.until > now), default=math.inf
        )
        # Nobody has asked since: what was so a while ago says nothing of now.
        self._settle([call for call in due if now - call.until > self._stale], failed=False)
        self._settle([call for call in due if now - call.until <= self._stale], failed=True)

    def _settle(self, calls: list[Out], *, failed: bool) -> None:
        for call in calls:
            self._out.pop(call, None)
            self._outrun.pop(call, None)
            settle, call.settle = call.settle, None
            if settle is not None:  # else somebody whom the one before told has come back here
                settle(failed)
