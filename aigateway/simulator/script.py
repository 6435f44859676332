"""The fault of the next request: a rule, a rule for a few requests, or a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aigateway.clock import Clock
from aigateway.simulator.faults import Fault

__all__ = ["Script", "Step"]

Step = tuple[float, Fault | None]
"""From this many seconds on, this fault; None is healthy."""


class Script:
    """The script of one vendor. No I/O; time comes from the given clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.recover()

    def recover(self) -> None:
        """Healthy from now on."""
        self._faults: tuple[Fault | None, ...] = ()
        self._left: int | None = None
        self._turn = 0
        self._steps: tuple[Step, ...] = ()
        self._begin = 0.0

    def behave(self, faults: Sequence[Fault | None], times: int | None) -> None:
        """Apply these faults in turn, without end or for `times` requests."""
        refusing = any(fault is not None and fault.name == "refuse" for fault in faults)
        if not faults:
            raise ValueError("behave() needs a fault; recover() makes the vendor healthy")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, not {times}")
        if refusing and (times is not None or len(faults) > 1):
            raise ValueError(
                "refuse() stands alone and without times: a refused connect is never a request"
            )
        self.recover()
        self._faults = tuple(faults)
        self._left = times

    def timeline(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """Follow these steps, counted from now; returns them in order."""
        ordered = tuple(sorted(steps, key=lambda step: step[0]))
        if ordered and ordered[0][0] < 0:
            raise ValueError("a timeline's seconds count from now and cannot be negative")
        self.recover()
        self._steps = ordered
        self._begin = self._clock.now()
        return ordered

    def current(self) -> Fault | None:
        """Return the current rule, without using it up or drawing a random number."""
        if self._faults:
            return self._faults[self._turn % len(self._faults)]
        fault = None
        passed = self._clock.now() - self._begin
        for at, step in self._steps:
            if at <= passed:
                fault = step
        return fault

    def take(self, body: Any = None) -> Fault | None:
        """Return the fault for a request with this body."""
        fault = self.current()
        if self._faults:
            self._turn += 1
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    self.recover()
        return fault.roll(body) if fault else None
