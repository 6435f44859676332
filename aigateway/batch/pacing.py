"""A bound for those who begin thousands of calls in the same moment."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from types import TracebackType

__all__ = ["Turnstile"]

_AT_ONCE = 4
"""Entries in one turn of the event loop. To begin a call takes some 100 microseconds, so that a
thousand begun in one go would hold up everybody else."""


class Turnstile:
    """Lets in so many at once, first come, first served, and never a crowd in one go.

    As an async context manager it is what `asyncio.Semaphore` is, but for the second part: of ten
    thousand who come in the same moment, a few begin at each turn of the event loop, so that
    others on it are not held up.

    Args:
        places: How many may be inside.
    """

    __slots__ = ("_entered", "_inside", "_places", "_turning", "_waiting")

    def __init__(self, places: int) -> None:
        self._places = places
        self._inside = 0
        self._entered = 0  # in this turn of the event loop
        self._turning = False
        # Ordered, so that the first can be taken and any can leave in the same short time.
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def __aenter__(self) -> None:
        if self._may_enter():  # then nobody waits: whoever did would have been let in
            self._enter()
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[place] = None
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._waiting.pop(place, None)
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
        return self._inside < self._places and self._entered < _AT_ONCE

    def _enter(self) -> None:
        self._inside += 1
        self._entered += 1
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _leave(self) -> None:
        self._inside -= 1
        self._let_in()

    def _turn(self) -> None:
        """The event loop has gone round: the next few may enter."""
        self._turning = False
        self._entered = 0
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._may_enter():
            place, _ = self._waiting.popitem(last=False)
            if not place.done():  # else cancelled, and about to leave
                place.set_result(None)
                self._enter()
