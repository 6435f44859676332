"""A semaphore for callers that begin thousands of calls in the same moment."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from types import TracebackType

__all__ = ["PacedSemaphore"]

_PER_TURN = 4
"""Entries in one turn of the event loop. Beginning a call takes some 100 microseconds, so a
thousand at once would block everything else on the loop."""


class PacedSemaphore:
    """`asyncio.Semaphore`, first in first out, that lets in a few waiters per event loop turn.

    Args:
        slots: How many may be inside at once.
    """

    __slots__ = ("_entered", "_inside", "_slots", "_turning", "_waiting")

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._inside = 0
        self._entered = 0  # in this turn of the event loop
        self._turning = False
        # Ordered, so that taking the first and removing any both take constant time.
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def __aenter__(self) -> None:
        if self._may_enter():  # then no one waits: a waiter would have been let in
            self._enter()
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._waiting.pop(waiter, None)
            else:
                self._leave()  # let in and cancelled in the same moment
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def _may_enter(self) -> bool:
        return self._inside < self._slots and self._entered < _PER_TURN

    def _enter(self) -> None:
        self._inside += 1
        self._entered += 1
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _leave(self) -> None:
        self._inside -= 1
        self._let_in()

    def _next_turn(self) -> None:
        self._turning = False
        self._entered = 0
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._may_enter():
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():  # else cancelled, and about to leave
                waiter.set_result(None)
                self._enter()
