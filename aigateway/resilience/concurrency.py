"""How many calls may be out at once, and who waits for a place.

Two bounds hold at the same time: one for the whole gateway, one for each provider that sets
`max_concurrency`. A request that finds no place waits. Free places are shared out by tenant, round
robin, so that a tenant with a thousand waiting requests takes no more of them than one with a few.
Within a tenant the order is first come, first served. Background requests wait behind all others.
A request that could go somewhere is never held up by one in front of it that could not.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable

from aigateway.clock import Clock
from aigateway.errors import OverloadedError

__all__ = ["AdaptiveLimit", "Limiter", "Slots", "Ticket"]

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


class Ticket:
    """A request's place in the queue. It keeps it however often it waits.

    Attributes:
        background: Whether it is behind all that are not.
        tenant: Whose request it is.
        number: The order of arrival.
        waited: It was admitted to the queue before.
    """

    __slots__ = ("background", "number", "tenant", "waited")

    def __init__(self, tenant: str, number: int, *, background: bool) -> None:
        self.background = background
        self.tenant = tenant
        self.number = number
        self.waited = False


class _Waiter:
    __slots__ = ("number", "queue", "ready", "woken")

    def __init__(
        self,
        queue: _TenantQueue,
        number: int,
        ready: Callable[[], bool],
        woken: asyncio.Future[bool],
    ) -> None:
        self.queue = queue
        self.number = number
        self.ready = ready
        self.woken = woken  # True: go; False: another tenant's request took its place

    def __lt__(self, other: _Waiter) -> bool:
        return self.number < other.number

    @property
    def turn(self) -> tuple[bool, int, int]:
        """The least goes first: background last, then by the queue's turn, then by arrival."""
        return self.queue.background, self.queue.turn, self.number


class _TenantQueue:
    """One tenant's waiting requests, in the background or not; exists only while there are any.

    Attributes:
        tenant: Whose they are.
        background: Whether they are in the background.
        turn: The number of the latest grant to this queue; the queue with the least is next.
        known: A place was granted to it lately.
        waiters: All of them, in the order in which they began to wait.
    """

    __slots__ = ("background", "known", "tenant", "turn", "waiters")

    def __init__(self, tenant: str, turn: int, *, background: bool, known: bool) -> None:
        self.tenant = tenant
        self.background = background
        self.turn = turn
        self.known = known
        self.waiters: dict[_Waiter, None] = {}


class _Group:
    """Waiters that can all go, or none of them. Those that left stay until they come up.

    Attributes:
        by_queue: A heap by order of arrival for each queue.
    """

    __slots__ = ("_pushed", "_queues", "by_queue")

    def __init__(self) -> None:
        self.by_queue: dict[_TenantQueue, list[_Waiter]] = {}
        # By turn. An entry may show a turn that has passed; it is put right when it comes up.
        self._queues: list[tuple[bool, int, int, _TenantQueue]] = []
        self._pushed = 0

    def push(self, waiter: _Waiter) -> None:
        """Add one."""
        queue = waiter.queue
        heap = self.by_queue.get(queue)
        if heap is None:
            heap = self.by_queue[queue] = []
            heapq.heappush(self._queues, self._entry(queue))
        heapq.heappush(heap, waiter)

    def first(self) -> _Waiter | None:
        """The one whose turn it is; None if all have left."""
        queues = self._queues
        while queues:
            _, turn, _, queue = queues[0]
            heap = self.by_queue[queue]
            while heap and heap[0].woken.done():
                heapq.heappop(heap)
            if not heap:
                heapq.heappop(queues)
                del self.by_queue[queue]
            elif turn < queue.turn:
                heapq.heapreplace(queues, self._entry(queue))
            else:
                return heap[0]
        return None

    def clear(self) -> None:
        """Take those out that have left."""
        for heap in self.by_queue.values():
            heap[:] = [waiter for waiter in heap if not waiter.woken.done()]
            heapq.heapify(heap)

    def _entry(self, queue: _TenantQueue) -> tuple[bool, int, int, _TenantQueue]:
        self._pushed += 1  # between equals; and two queues cannot be compared
        return queue.background, queue.turn, self._pushed, queue


class Limiter:
    """The gateway's places, and the queue for them.

    Args:
        limit: Calls to vendors that may be out at once, over all providers.
        max_queue: Requests that may wait. Those in the background count only against others in the
            background. When the queue is full, a tenant that has less than an equal share of it
            still gets in, and the newest request of the tenant with most of them is refused in its
            place ("longest queue drop", Suter et al. 1998).
    """

    __slots__ = (
        "_background",
        "_gone",
        "_grants",
        "_groups",
        "_known",
        "_max_queue",
        "_queues",
        "_served",
        "_slots",
        "_tickets",
        "_waiting",
        "_woken",
    )

    def __init__(self, limit: int, max_queue: int) -> None:
        self._slots = Slots(limit)
        self._max_queue = max_queue
        self._tickets = 0
        self._grants = 0
        self._groups: dict[Hashable, _Group] = {}
        # By tenant; first those not in the background, then those in it.
        self._queues: tuple[dict[str, _TenantQueue], dict[str, _TenantQueue]] = {}, {}
        self._known = [0, 0]  # likewise: how many of them are
        # Likewise: tenants granted a place lately and the number of the grant, the oldest first.
        self._served: tuple[OrderedDict[str, int], OrderedDict[str, int]]
        self._served = OrderedDict(), OrderedDict()
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

    def ticket(self, *, background: bool = False, tenant: str = "") -> Ticket:
        """A place in the queue; a request keeps its own however often it waits.

        Args:
            background: Whether it is behind all that are not, those still to come included.
            tenant: Whose request it is. Tenants that wait get free places in turn.
        """
        self._tickets += 1
        return Ticket(tenant, self._tickets, background=background)

    async def wait(self, ticket: Ticket, group: Hashable, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` may be true. Another request may have been quicker: check again.

        Args:
            ticket: The place in the queue.
            group: Waiters for which `ready` says the same share one: it is asked once for all.
            ready: Whether to go on, to a free place or because no place is of use any more.

        Raises:
            OverloadedError: The queue is full, or became full and this request had to leave it for
                one of a tenant that has less than its share.
        """
        if not ticket.waited:
            self._make_room(ticket)
            ticket.waited = True
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()
        waiter = _Waiter(self._queue(ticket), ticket.number, ready, woken)
        self._groups.setdefault(group, _Group()).push(waiter)
        self._join(waiter)
        try:
            await woken
        finally:
            if woken.cancelled():
                self._leave(waiter)  # its place in the heap is cleared later
                self._first(group)
                self._note_gone()
            elif woken.result():
                self._woken -= 1
                # What it was woken for may be of use to the next, if this one is cancelled now.
                loop.call_soon(self.wake)
        if not woken.result():
            raise self._full(self._max_queue)

    def wake(self) -> None:
        """Wake the first waiter that could go now."""
        best: _Waiter | None = None
        for group in list(self._groups):
            waiter = self._first(group)
            if waiter is not None and (best is None or waiter.turn < best.turn) and waiter.ready():
                best = waiter
        if best is not None:
            self._grant(best)

    def _grant(self, waiter: _Waiter) -> None:
        """Tell a waiter to go; its queue's next turn comes after those of all others."""
        queue = waiter.queue
        served = self._served[queue.background]
        self._grants += 1
        self._known[queue.background] += not queue.known
        queue.known = True
        queue.turn = served[queue.tenant] = self._grants
        served.move_to_end(queue.tenant)
        while served[oldest := next(iter(served))] < self._is_first_in_line(queue.background):
            del served[oldest]
        self._leave(waiter)
        self._woken += 1
        waiter.woken.set_result(True)

    def _is_first_in_line(self, background: bool) -> int:
        """The turn of a queue that was not served lately: about that of the one that is next.

        It grows with each grant, so that those who come anew pass no waiter for ever.
        """
        return self._grants - self._known[background]

    def _queue(self, ticket: Ticket) -> _TenantQueue:
        background, tenant = ticket.background, ticket.tenant
        queue = self._queues[background].get(tenant)
        if queue is None:
            served, turn = self._served[background], self._is_first_in_line(background)
            known = tenant in served
            turn = max(turn, served[tenant]) if known else turn
            self._known[background] += known
            queue = _TenantQueue(tenant, turn, background=background, known=known)
            self._queues[background][tenant] = queue
        return queue

    def _join(self, waiter: _Waiter) -> None:
        waiter.queue.waiters[waiter] = None
        self._waiting += 1
        self._background += waiter.queue.background

    def _leave(self, waiter: _Waiter) -> None:
        queue = waiter.queue
        del queue.waiters[waiter]
        if not queue.waiters:
            self._known[queue.background] -= queue.known
            del self._queues[queue.background][queue.tenant]
        self._waiting -= 1
        self._background -= queue.background

    def _make_room(self, ticket: Ticket) -> None:
        """See that the queue has room for one more.

        Raises:
            OverloadedError: It has none, and this tenant has its share of it already.
        """
        background = ticket.background
        ahead = self._waiting if background else self._waiting - self._background
        if ahead < self._max_queue:
            return
        queues = self._queues[background]
        own = queues.get(ticket.tenant)
        share = (self._background if background else ahead) // (len(queues) + (own is None))
        if (0 if own is None else len(own.waiters)) >= share:
            raise self._full(ahead)
        longest = max(queues.values(), key=lambda queue: len(queue.waiters))
        newest = next(reversed(longest.waiters))
        self._leave(newest)
        newest.woken.set_result(False)
        self._note_gone()

    def _full(self, ahead: int) -> OverloadedError:
        return OverloadedError(
            f"{ahead} requests are waiting for a free provider already"
            f" (max_queue = {self._max_queue}). Slow down, or raise max_concurrency"
            f" or max_queue."
        )

    def _note_gone(self) -> None:
        """One more in the heaps waits no more: those who wait for long may stand before it."""
        self._gone += 1
        if self._gone > _MOST_GONE + self._waiting:
            self._gone = 0
            for name, group in list(self._groups.items()):
                group.clear()
                self._first(name)

    def _first(self, name: Hashable) -> _Waiter | None:
        """The first of a group that is still waiting; an empty group goes."""
        group = self._groups.get(name)
        waiter = None if group is None else group.first()
        if waiter is None:
            self._groups.pop(name, None)
        return waiter


_COUNTABLE = 2**53
"""Above this a float no longer tells whole numbers apart, and far above there is none."""

DECREASE = 0.9
"""What a throttle leaves of the adaptive limit."""


class AdaptiveLimit:
    """The bound on one provider's calls in flight, found out by asking. For one event loop.

    Additive increase, multiplicative decrease, as TCP does it (RFC 5681). Only what the vendor says
    about its load moves it (429, 529, no first token in time). Total latency does not: it follows
    the length of the answer.

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
