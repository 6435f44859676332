"""Limits on the calls in flight, and the queue of requests that wait for a free slot.

Two limits hold at the same time: one for the whole gateway, one for each provider that sets
`max_concurrency`. A request that finds no free slot waits. Tenants get free slots in turn (round
robin), so a tenant with a thousand waiting requests gets no more of them than one with a few.
Within a tenant the order is first come, first served. Background requests wait behind all others.
A request that could be served never waits for one in front of it that could not.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from aigateway.clock import Clock
from aigateway.errors import OverloadedError

__all__ = ["AdaptiveLimit", "Limiter", "Slots", "Ticket"]

_MOST_GONE = 256
"""Waiters that have left and may stay in the heaps, so that these are seldom cleared."""


class Slots:
    """The slots of one provider. `limit=None` means no limit."""

    __slots__ = ("emptied", "in_flight", "limit")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.in_flight = 0
        self.emptied: asyncio.Future[None] | None = None

    async def empty(self) -> None:
        """Wait until no call is in flight."""
        while self.in_flight:
            self.emptied = asyncio.get_running_loop().create_future()
            await self.emptied

    def notify_empty(self) -> None:
        """Wake the waiter of `empty`, if it still waits."""
        waiter, self.emptied = self.emptied, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's place in the queue, which it keeps however often it waits."""

    tenant: str
    number: int  # by arrival
    background: bool
    waited: bool = False  # the queue has admitted it before


@dataclass(slots=True, eq=False)
class _Waiter:
    queue: _TenantQueue
    number: int
    ready: Callable[[], bool]
    woken: asyncio.Future[bool]  # True: go on; False: another tenant's request took its place

    def __lt__(self, other: _Waiter) -> bool:
        return self.number < other.number

    @property
    def turn(self) -> tuple[bool, int, int]:
        """The sort key: background last, then the turn of the queue, then the arrival."""
        return self.queue.background, self.queue.turn, self.number


@dataclass(slots=True, eq=False)
class _TenantQueue:
    """One tenant's waiting requests, in the background or not; exists only while there are any."""

    tenant: str
    turn: int  # the number of the latest grant to this queue; the queue with the least is next
    background: bool
    known: bool  # it got a slot lately
    waiters: dict[_Waiter, None] = field(default_factory=dict)  # in the order of arrival


class _Group:
    """Waiters of which all can go on, or none. Those that have left stay until they come up."""

    __slots__ = ("_pushed", "_queues", "by_queue")

    def __init__(self) -> None:
        self.by_queue: dict[_TenantQueue, list[_Waiter]] = {}  # heaps by order of arrival
        # By turn. An entry may show an outdated turn, which is corrected when the entry comes up.
        self._queues: list[tuple[bool, int, int, _TenantQueue]] = []
        self._pushed = 0

    def push(self, waiter: _Waiter) -> None:
        queue = waiter.queue
        heap = self.by_queue.get(queue)
        if heap is None:
            heap = self.by_queue[queue] = []
            heapq.heappush(self._queues, self._entry(queue))
        heapq.heappush(heap, waiter)

    def first(self) -> _Waiter | None:
        """Return the waiter whose turn it is; None if all have left."""
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
        """Remove waiters that have left."""
        for heap in self.by_queue.values():
            heap[:] = [waiter for waiter in heap if not waiter.woken.done()]
            heapq.heapify(heap)

    def _entry(self, queue: _TenantQueue) -> tuple[bool, int, int, _TenantQueue]:
        self._pushed += 1  # breaks ties: two queues cannot be compared
        return queue.background, queue.turn, self._pushed, queue


class Limiter:
    """The gateway's slots, and the queue for them.

    Args:
        limit: Most calls in flight, over all providers.
        max_queue: Most waiting requests. Those in the background count only against others in the
            background. When the queue is full, a tenant that has less than an equal share of it
            still gets in, and the newest request of the tenant with most of them is refused
            instead ("longest queue drop", Suter et al. 1998).
    """

    def __init__(self, limit: int, max_queue: int) -> None:
        self._slots = Slots(limit)
        self._max_queue = max_queue
        self._tickets = 0
        self._grants = 0
        self._groups: dict[Hashable, _Group] = {}
        # By tenant; first those not in the background, then those in it.
        self._queues: tuple[dict[str, _TenantQueue], dict[str, _TenantQueue]] = {}, {}
        self._known = [0, 0]  # likewise: how many of them are known
        # Likewise: tenants that got a slot lately, and the number of the grant; oldest first.
        self._served: tuple[OrderedDict[str, int], OrderedDict[str, int]]
        self._served = OrderedDict(), OrderedDict()
        self._waiting = 0
        self._background = 0  # how many of them are in the background
        self._gone = 0  # upper bound of the waiters in the heaps that have left
        self._woken = 0  # waiters that were woken and have not run yet

    @property
    def in_flight(self) -> int:
        """Calls in flight now."""
        return self._slots.in_flight

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    def has_slot(self, slots: Slots) -> bool:
        """Return whether one more call may begin, here and at the provider.

        Slots of waiters that were woken and have not run yet count as taken, so that a newcomer
        does not overtake them.
        """
        calls, own = self._woken + 1, self._slots
        return (own.limit is None or own.in_flight + calls <= own.limit) and (
            slots.limit is None or slots.in_flight + calls <= slots.limit
        )

    def take(self, slots: Slots) -> None:
        """Take a slot here and at the provider. The caller has checked that both are free."""
        slots.in_flight += 1
        self._slots.in_flight += 1
        if self._waiting:
            self.wake()  # a woken waiter may have chosen another provider than expected

    def release(self, slots: Slots) -> None:
        """Free the slot, and wake the first waiter that can use what is free now."""
        self._slots.in_flight -= 1
        slots.in_flight -= 1
        if slots.emptied is not None and not slots.in_flight:
            slots.notify_empty()
        if self._waiting:
            self.wake()

    def ticket(self, *, background: bool = False, tenant: str = "") -> Ticket:
        """Return a new place in the queue; those in the background come after all others."""
        self._tickets += 1
        return Ticket(tenant, self._tickets, background=background)

    async def wait(self, ticket: Ticket, group: Hashable, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` may be true. Another request may have been quicker: check again.

        Args:
            ticket: The place in the queue.
            group: Equal for waiters whose `ready` gives the same result: one is called for all.
            ready: Returns whether to go on: to a free slot, or because no slot helps any more.

        Raises:
            OverloadedError: The queue is full, or this request had to leave it for one of a tenant
                that has less than its share.
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
                # If this one is cancelled now, the next may use what it was woken for.
                loop.call_soon(self.wake)
        if not woken.result():
            raise self._full(self._max_queue)

    def wake(self) -> None:
        """Wake the first waiter that could go on now."""
        best: _Waiter | None = None
        for group in list(self._groups):
            waiter = self._first(group)
            if waiter is not None and (best is None or waiter.turn < best.turn) and waiter.ready():
                best = waiter
        if best is not None:
            self._grant(best)

    def _grant(self, waiter: _Waiter) -> None:
        """Wake a waiter; the next turn of its queue comes after those of all others."""
        queue = waiter.queue
        served = self._served[queue.background]
        self._grants += 1
        self._known[queue.background] += not queue.known
        queue.known = True
        queue.turn = served[queue.tenant] = self._grants
        served.move_to_end(queue.tenant)
        while served[oldest := next(iter(served))] < self._turn_of_new_queue(queue.background):
            del served[oldest]
        self._leave(waiter)
        self._woken += 1
        waiter.woken.set_result(True)

    def _turn_of_new_queue(self, background: bool) -> int:
        """Return the turn of a queue that was not served lately: about that of the next one.

        It grows with each grant, so that new queues do not overtake a waiter for ever.
        """
        return self._grants - self._known[background]

    def _queue(self, ticket: Ticket) -> _TenantQueue:
        background, tenant = ticket.background, ticket.tenant
        queue = self._queues[background].get(tenant)
        if queue is None:
            served, turn = self._served[background], self._turn_of_new_queue(background)
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
        """Make room in the queue, or raise `OverloadedError` if this tenant has its share."""
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
            f" (max_queue = {self._max_queue}). Slow down, or raise max_concurrency or max_queue."
        )

    def _note_gone(self) -> None:
        """Count a waiter that has left and is still in a heap; clear the heaps of many such."""
        self._gone += 1
        if self._gone > _MOST_GONE + self._waiting:
            self._gone = 0
            for name, group in list(self._groups.items()):
                group.clear()
                self._first(name)

    def _first(self, name: Hashable) -> _Waiter | None:
        """Return the first waiter of a group; remove a group that is empty."""
        group = self._groups.get(name)
        waiter = None if group is None else group.first()
        if waiter is None:
            self._groups.pop(name, None)
        return waiter


_COUNTABLE = 2**53
"""Above this a float cannot represent every whole number."""

DECREASE = 0.9
"""Factor by which a throttled call lowers the adaptive limit."""


class AdaptiveLimit:
    """The limit on one provider's calls in flight, adapted to its throttling. For one event loop.

    Additive increase, multiplicative decrease, as in TCP (RFC 5681). Only signs of the vendor's
    load change it (429, 529, no first token in time). Total latency does not: it depends on the
    length of the answer.

    Args:
        most: The start and upper limit.
        clock: The gateway's.

    Attributes:
        fallen: Whether the limit is below `most`; else a success cannot raise it.
    """

    __slots__ = ("_clock", "_decreased", "_limit", "_most", "fallen")

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = min(most, _COUNTABLE)
        self._clock = clock
        self._limit = float(self._most)
        self._decreased = -math.inf
        self.fallen = False

    @property
    def limit(self) -> int:
        """Most calls in flight, from 1 to `most`."""
        return max(1, int(self._limit))

    def throttled(self, in_flight: int, began: float) -> None:
        """Lower the limit: the vendor refused a call because of its load.

        Args:
            in_flight: Calls in flight, this one included.
            began: When this one began. One that began before the latest decrease says nothing new:
                the limit falls at most once in a round trip.
        """
        if began < self._decreased:
            return
        # A limit far above the calls in flight means nothing: it falls to their number, by halves.
        meant = min(self._limit, max(float(in_flight), self._limit / 2))
        self._limit = max(1.0, meant * DECREASE)
        self._decreased = self._clock.now()
        self.fallen = self._limit < self._most

    def succeeded(self, in_flight: int) -> None:
        """Raise the limit by one slot for each window (`limit`) of successes.

        Args:
            in_flight: Calls in flight. While less than half of the limit is used, success says
                nothing about a higher one (RFC 7661).
        """
        if self.fallen and in_flight * 2 >= self._limit:
            self._limit = min(float(self._most), self._limit + 1.0 / self._limit)
            self.fallen = self._limit < self._most
