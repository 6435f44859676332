"""Values with a deadline, and a bound on how many: the structure under the answer cache.

Plain synchronous code for one event loop; it knows nothing of aiocache or of answers. There is no
timer per key: the deadline is stored in the entry and looked at when somebody asks.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import ConfigurationError

__all__ = ["ExpiringLRU"]

V = TypeVar("V")

_GARBAGE = 64
"""Outdated deadlines that are always tolerated, so that a small cache does not tidy up all day."""


class _Entry(NamedTuple, Generic[V]):
    value: V
    deadline: float  # on the clock's `now`; infinite for a value that does not expire
    serial: int  # tells this entry's deadline in the heap from those of its predecessors


class ExpiringLRU(Generic[V]):
    """A bounded mapping that forgets what is over first, and then what was unused longest.

    Every operation is O(log n) amortised, and O(1) for reads. Room is made only when it is
    needed: expired entries go first (in the order of their deadlines, the stale ones among them
    too, since a fresh value is worth more), and only then the least recently used.

    Args:
        max_entries: How many values are held at most, expired ones that nobody asked for included.
        stale_seconds: How long after its deadline a value can still be had from `get_stale`.
        clock: Where the time comes from.

    Attributes:
        hits: Reads that found a fresh value.
        misses: Reads that did not.
        stale_hits: Reads by `get_stale` that found a value.
        evictions: Fresh values dropped to make room.
        expirations: Values dropped because their time was over.

    Raises:
        ConfigurationError: `max_entries` is below 1, or `stale_seconds` below 0.
    """

    __slots__ = (
        "_clock",
        "_entries",
        "_heap",
        "_serial",
        "evictions",
        "expirations",
        "hits",
        "max_entries",
        "misses",
        "stale_hits",
        "stale_seconds",
    )

    def __init__(
        self, max_entries: int = 1000, *, stale_seconds: float = 0.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if max_entries < 1:
            raise ConfigurationError(f"max_entries must be at least 1, not {max_entries}.")
        if not stale_seconds >= 0:
            raise ConfigurationError(f"stale_seconds must be at least 0, not {stale_seconds}.")
        self.max_entries = max_entries
        self.stale_seconds = stale_seconds
        self.hits = self.misses = self.stale_hits = self.evictions = self.expirations = 0
        self._clock = clock
        # Not a dict: finding the oldest entry of one that is used as a queue costs O(n).
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()
        self._heap: list[tuple[float, int, Hashable]] = []
        self._serial = 0

    def __len__(self) -> int:
        """Values that can still be had, the stale ones included."""
        over = self._clock.now() - self.stale_seconds
        while self._drop_expired(over):
            pass
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        """Whether there is a fresh value. Counts as no read."""
        entry = self._entries.get(key)
        return entry is not None and entry.deadline > self._clock.now()

    def get(self, key: Hashable) -> V | None:
        """The fresh value, or None. A read: it is counted, and it protects from eviction."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        now = self._clock.now()
        if entry.deadline > now:
            self._entries.move_to_end(key)
            self.hits += 1
            return entry.value
        self.misses += 1
        self._drop_if_over(key, entry, now)
        return None

    def get_stale(self, key: Hashable) -> V | None:
        """The value, fresh or not more than `stale_seconds` past its deadline, or None."""
        entry = self._entries.get(key)
        if entry is None or self._drop_if_over(key, entry, self._clock.now()):
            return None
        self.stale_hits += 1
        return entry.value

    def look(self, key: Hashable) -> V | None:
        """The fresh value, or None, without counting as a read."""
        return self._entries[key].value if key in self else None

    def put(self, key: Hashable, value: V, lifetime: float = math.inf) -> None:
        """Hold a value for `lifetime` seconds. With 0 or less (or NaN), only drop the old one."""
        if not lifetime > 0:
            self.discard(key)
            return
        now = self._clock.now()
        if key in self._entries:
            self._entries.move_to_end(key)
        else:
            self._make_room(now)
        deadline = now + lifetime
        self._serial = serial = self._serial + 1
        self._entries[key] = _Entry(value, deadline, serial)
        if deadline < math.inf:
            heapq.heappush(self._heap, (deadline, serial, key))
            self._tidy_up()

    def replace(self, key: Hashable, value: V) -> None:
        """Change the value of a key that is held, and leave its deadline alone.

        Raises:
            KeyError: Nothing is held for it.
        """
        self._entries[key] = self._entries[key]._replace(value=value)
        self._entries.move_to_end(key)

    def expire(self, key: Hashable, lifetime: float) -> bool:
        """Give a fresh value a new lifetime in seconds from now. False if there is none."""
        if key not in self:
            return False
        self.put(key, self._entries[key].value, lifetime)
        return True

    def discard(self, key: Hashable) -> bool:
        """Drop a value, stale or fresh. Says whether there was a fresh one."""
        fresh = key in self
        self._entries.pop(key, None)
        return fresh

    def clear(self, prefix: str = "") -> None:
        """Drop everything, or what has a text that begins with `prefix` as its key."""
        if not prefix:
            self._entries.clear()
            self._heap.clear()
            return
        for key in list(self._entries):
            if isinstance(key, str) and key.startswith(prefix):
                del self._entries[key]

    def stats(self) -> dict[str, int]:
        """The counters, and `entries` (as `len`), as plain numbers."""
        entries = len(self)  # first: it counts what is over
        return {
            "hits": self.hits,
            "misses": self.misses,
            "stale_hits": self.stale_hits,
            "evictions": self.evictions,
            "expirations": self.expirations,
            "entries": entries,
            "max_entries": self.max_entries,
        }

    def _make_room(self, now: float) -> None:
        while len(self._entries) >= self.max_entries:
            if not self._drop_expired(now):
                self._entries.popitem(last=False)
                self.evictions += 1

    def _drop_expired(self, until: float) -> bool:
        """Drop the entry with the earliest deadline, if that is not after `until`."""
        while self._heap:
            deadline, serial, key = self._heap[0]
            entry = self._entries.get(key)
            if entry is None or entry.serial != serial:
                heapq.heappop(self._heap)  # the entry was replaced or dropped since
                continue
            if deadline > until:
                return False
            heapq.heappop(self._heap)
            del self._entries[key]
            self.expirations += 1
            return True
        return False

    def _drop_if_over(self, key: Hashable, entry: _Entry[V], now: float) -> bool:
        if entry.deadline + self.stale_seconds > now:
            return False
        del self._entries[key]
        self.expirations += 1
        return True

    def _tidy_up(self) -> None:
        """Bound the heap: a key that is written again and again leaves a deadline each time."""
        if len(self._heap) <= 2 * len(self._entries) + _GARBAGE:
            return
        self._heap = [
            (entry.deadline, entry.serial, key)
            for key, entry in self._entries.items()
            if entry.deadline < math.inf
        ]
        heapq.heapify(self._heap)
