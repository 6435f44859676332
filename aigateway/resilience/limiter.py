"""How many calls may be out at once, and who waits for a place.

Two bounds hold at the same time: one for the whole gateway, one for each provider that sets
`max_concurrency`. A request that finds no place waits in one queue, first come, first served, and
those in the background behind all others; a request that could go somewhere is never held up by one
in front of it that could not.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable

from aigateway.errors import OverloadedError

__all__ = ["Limiter", "Slots", "Ticket"]

Ticket = tuple[bool, int]
"""A place in the queue: whether it is in the background, then the order of arrival."""

_MOST_GONE = 256
"""Waiters that left and may stay in the heaps, so that these are seldom cleared."""


class Slots:
    """The places of one provider. `limit=None` means as many as are asked for."""

    __slots__ = ("_emptied", "in_flight", "limit")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.in_flight = 0
        self._emptied: asyncio.Future[None] | None = None

    def room_for(self, calls: int) -> bool:
        """Whether that many more calls may go out."""
        return self.limit is None or self.in_flight + calls <= self.limit

    async def empty(self) -> None:
        """Wait until no call is out."""
        while self.in_flight:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def give_back(self) -> None:
        """One call less is out."""
        self.in_flight -= 1
        if self._emptied is not None and not self.in_flight and not self._emptied.done():
            self._emptied.set_result(None)


class _Waiter:
    __slots__ = ("ready", "ticket", "woken")

    def __init__(
        self, ticket: Ticket, ready: Callable[[], bool], woken: asyncio.Future[None]
    ) -> None:
        self.ticket = ticket
        self.ready = ready
        self.woken = woken

    def __lt__(self, other: _Waiter) -> bool:
        return self.ticket < other.ticket


class Limiter:
    """The gateway's places, and the queue for them.

    Args:
        limit: Calls to vendors that may be out at once, over all providers.
        max_queue: Requests that may wait; one more gets `OverloadedError`. Those in the background
            count only against others in the background.
    """

    __slots__ = (
        "_background",
        "_gone",
        "_groups",
        "_max_queue",
        "_slots",
        "_tickets",
        "_waiting",
        "_woken",
    )

    def __init__(self, limit: int, max_queue: int) -> None:
        self._slots = Slots(limit)
        self._max_queue = max_queue
        self._tickets = 0
        self._groups: dict[Hashable, list[_Waiter]] = {}  # heaps by ticket
        self._waiting = 0
        self._background = 0  # how many of them are in the background
        self._gone = 0  # at most this many in the heaps wait no more
        self._woken = 0  # waiters that were told to go and have not run yet

    @property
    def in_flight(self) -> int:
        """Calls that are out now."""
        return self._slots.in_flight

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    def has_place(self, slots: Slots) -> bool:
        """Whether one more call may go out, here and at the provider.

        Places promised to waiters that are about to run count as taken, so that a newcomer does
        not overtake them.
        """
        return self._slots.room_for(self._woken + 1) and slots.room_for(self._woken + 1)

    def take(self, slots: Slots) -> None:
        """Occupy a place here and at the provider. The caller has checked that both are free."""
        slots.in_flight += 1
        self._slots.in_flight += 1
        if self._waiting:
            self.wake()  # a waiter may have gone elsewhere than where it was expected

    def give_back(self, slots: Slots) -> None:
        """Free the place, and wake the first waiter that can use what is free now."""
        slots.give_back()
        self._slots.give_back()
        if self._waiting:
            self.wake()

    def ticket(self, *, background: bool = False) -> Ticket:
        """A place in the queue; a request keeps its own however often it waits.

        Args:
            background: Whether it is behind all that are not, those still to come included.
        """
        self._tickets += 1
        return background, self._tickets

    async def wait(self, ticket: Ticket, group: Hashable, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` may be true. Somebody else may have been quicker: check again.

        Args:
            ticket: The place in the queue.
            group: Waiters for which `ready` says the same share one: it is asked once for all.
            ready: Whether to go on, to a free place or because no place is of use any more.

        Raises:
            OverloadedError: The queue is full.
        """
        self._refuse_if_full(ticket)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(ticket, ready, loop.create_future())
        heapq.heappush(self._groups.setdefault(group, []), waiter)
        self._count(waiter, 1)
        try:
            await waiter.woken
        finally:
            if waiter.woken.cancelled():
                self._count(waiter, -1)  # its place in the heap is cleared when it comes up
                self._tidy(group)
                self._gone += 1
                if self._gone > _MOST_GONE + self._waiting:
                    self._clear()
            else:
                self._woken -= 1
                # What it was woken for may be of use to the next, if this one is cancelled now.
                loop.call_soon(self.wake)

    def wake(self) -> None:
        """Wake the first waiter that could go now."""
        first: Hashable = None
        earliest: _Waiter | None = None
        for group in list(self._groups):
            waiter = self._tidy(group)
            if waiter is not None and (earliest is None or waiter < earliest) and waiter.ready():
                first, earliest = group, waiter
        if earliest is not None:
            heapq.heappop(self._groups[first])
            self._count(earliest, -1)
            self._woken += 1
            earliest.woken.set_result(None)

    def _refuse_if_full(self, ticket: Ticket) -> None:
        in_background, _ = ticket
        ahead = self._waiting if in_background else self._waiting - self._background
        if ahead >= self._max_queue:
            raise OverloadedError(
                f"{ahead} requests are waiting for a free provider already"
                f" (max_queue = {self._max_queue}). Slow down, or raise max_concurrency"
                f" or max_queue."
            )

    def _count(self, waiter: _Waiter, change: int) -> None:
        in_background, _ = waiter.ticket
        self._waiting += change
        self._background += change * in_background

    def _clear(self) -> None:
        """Take those who wait no more out of the heaps: somebody patient may stand before them."""
        self._gone = 0
        for group, heap in list(self._groups.items()):
            heap[:] = [waiter for waiter in heap if not waiter.woken.done()]
            heapq.heapify(heap)
            if not heap:
                del self._groups[group]

    def _tidy(self, group: Hashable) -> _Waiter | None:
        """The first of a group that is still waiting; an empty group goes."""
        heap = self._groups.get(group)
        while heap:
            if not heap[0].woken.done():
                return heap[0]
            heapq.heappop(heap)
        self._groups.pop(group, None)
        return None
