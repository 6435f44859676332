"""Remembered answers: which are worth keeping, for how long, and where. The one user of aiocache.

Top to bottom: the policy (`worth_keeping`, `ttl_for`), the structure (`ExpiringLRU`), the aiocache
backend over it, and `AnswerCache`, which the gateway holds. What makes two requests the same is
`key.py`; requests in flight that share one call are `request/coalesce.py`.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from aigateway.cache.key import prompt_key
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import ConfigurationError, RequestRejectedError
from aigateway.messages import ChatResponse, Choice, Completion

__all__ = ["AnswerCache", "ExpiringLRU", "LRUTTLBackend", "Remembered", "ttl_for", "worth_keeping"]

_WHOLE = frozenset({"stop", "tool_calls", "function_call"})


@dataclass(frozen=True, slots=True)
class Remembered:
    """An answer, and the name of the provider that gave it."""

    completion: Completion
    provider: str


def worth_keeping(completion: Completion) -> bool:
    """Whether asking again could not plausibly do better.

    Every choice must have ended by itself (`stop`, `tool_calls`) and say something. Not worth
    keeping are answers that a content filter cut, refusals and blanks (sampling may well give
    another next time), and those that do not say how they ended (what is there may be half).
    One that reached its limit (`length`) is kept if it is text, because the limit is part of the
    key; with tool calls it is not, since their arguments are broken off.
    """
    return bool(completion.choices) and all(map(_is_whole, completion.choices))


def _is_whole(choice: Choice) -> bool:
    if choice.refusal is not None:
        return False
    if choice.finish_reason == "length":
        return bool(choice.text) and not choice.tool_calls
    said = choice.text or choice.tool_calls or choice.images or choice.audio
    return choice.finish_reason in _WHOLE and bool(said)


def ttl_for(
    agent: str | None, cache_ttl: float | None, agent_ttls: Mapping[str, float], default: float
) -> float:
    """How many seconds an answer stays fresh: the call's word, else the agent's, else the default.

    Args:
        agent: Who asked, if the call says.
        cache_ttl: What the call says, if anything.
        agent_ttls: Seconds by agent.
        default: Seconds for everybody else.
    """
    if cache_ttl is not None:
        return cache_ttl
    return default if agent is None else agent_ttls.get(agent, default)


def written_by_hand(text: str, model: str | None, key: str, created: int) -> Completion:
    """A text that no vendor gave, as an answer that cost nothing."""
    return Completion(
        id=f"cache-{key[:16]}",
        model=model or "",
        choices=(Choice(text, "stop"),),
        cost_usd=0.0,
        created=created,
    )


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


class LRUTTLBackend(BaseCache):  # type: ignore[misc]  # aiocache ships no types
    """An aiocache backend in memory, bounded in entries as well as in time.

    It takes the place of aiocache's `SimpleMemoryCache` anywhere (`Cache(LRUTTLBackend, ...)`,
    `@cached(cache=LRUTTLBackend, ...)`, plugins, locks), which is unbounded and keeps a timer on
    the event loop for each key. A `ttl` is in seconds as everywhere in aiocache: None and 0 stand
    for no expiry; a negative one is over already. `clear()` keeps to the namespace, if one is set.

    The `peek` methods are the same reads and writes without the coroutine around them. aiocache's
    decorators (timeout, plugins, switch) cost more than everything else a cache hit needs, and a
    dictionary lookup can neither block nor time out. They apply namespace and `key_builder` like
    `get` and `set`; they skip plugins, serializer and the `AIOCACHE_DISABLE` variable.

    Args:
        max_entries: How many values are held; the least recently used goes first.
        stale_seconds: How long after its ttl a value can still be had from `peek_stale`.
        clock: Where the time comes from.
        serializer: As in aiocache; the default keeps the objects themselves.
        timeout: As in aiocache, but None by default: here, nothing takes time, and a timeout
            costs a task for each call.
        **options: The rest of aiocache's: `plugins`, `namespace`, `key_builder`, `ttl`.

    Raises:
        ConfigurationError: `max_entries` is below 1, or `stale_seconds` below 0.
    """

    NAME = "lru-ttl"

    def __init__(
        self,
        max_entries: int = 1000,
        *,
        stale_seconds: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
        serializer: Any = None,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(serializer=serializer or NullSerializer(), timeout=timeout, **options)
        self.entries: ExpiringLRU[Any] = ExpiringLRU(
            max_entries, stale_seconds=stale_seconds, clock=clock
        )

    def peek(self, key: str) -> Any:
        """The fresh value, or None."""
        return self.entries.get(self.build_key(key, namespace=self.namespace))

    def peek_stale(self, key: str) -> Any:
        """The value, fresh or not more than `stale_seconds` past its ttl, or None."""
        return self.entries.get_stale(self.build_key(key, namespace=self.namespace))

    def poke(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Hold a value for `ttl` seconds, with aiocache's reading of None and 0."""
        self.entries.put(self.build_key(key, namespace=self.namespace), value, _lifetime(ttl))

    def drop(self, key: str) -> bool:
        """Forget a value, stale or fresh. Says whether there was a fresh one."""
        return self.entries.discard(self.build_key(key, namespace=self.namespace))

    # What follows implements `BaseCache`; `_options` takes aiocache's `encoding` and `_conn`,
    # which are for backends that speak with a server.

    async def _get(self, key: str, **_options: Any) -> Any:
        return self.entries.get(key)

    async def _gets(self, key: str, **_options: Any) -> Any:
        return self.entries.get(key)

    async def _multi_get(self, keys: Iterable[str], **_options: Any) -> list[Any]:
        return [self.entries.get(key) for key in keys]

    async def _set(
        self,
        key: str,
        value: Any,
        ttl: float | None = None,
        _cas_token: Any = None,
        **_options: Any,
    ) -> int:
        if _cas_token is not None and _cas_token != self.entries.look(key):
            return 0
        self.entries.put(key, value, _lifetime(ttl))
        return True

    async def _multi_set(
        self, pairs: Iterable[tuple[str, Any]], ttl: float | None = None, **_options: Any
    ) -> bool:
        for key, value in pairs:
            self.entries.put(key, value, _lifetime(ttl))
        return True

    async def _add(self, key: str, value: Any, ttl: float | None = None, **_options: Any) -> bool:
        if key in self.entries:
            raise ValueError(f"Key {key} already exists, use .set to update the value")
        self.entries.put(key, value, _lifetime(ttl))
        return True

    async def _exists(self, key: str, **_options: Any) -> bool:
        return key in self.entries

    async def _increment(self, key: str, delta: int, **_options: Any) -> int:
        value = self.entries.look(key)
        if value is None:
            self.entries.put(key, delta)
            return delta
        try:
            total = int(value) + delta
        except ValueError:
            raise TypeError("Value is not an integer") from None
        self.entries.replace(key, total)
        return total

    async def _expire(self, key: str, ttl: float | None, **_options: Any) -> bool:
        return self.entries.expire(key, _lifetime(ttl))

    async def _delete(self, key: str, **_options: Any) -> int:
        return int(self.entries.discard(key))

    async def _clear(self, namespace: str | None = None, **_options: Any) -> bool:
        self.entries.clear((self.namespace if namespace is None else namespace) or "")
        return True

    async def _raw(self, command: str, *args: Any, **options: Any) -> Any:
        if command.startswith("_"):
            raise AttributeError(f"There is no command {command!r}")
        for option in ("encoding", "_conn"):
            options.pop(option, None)
        return getattr(self.entries, command)(*args, **options)

    async def _redlock_release(self, key: str, value: Any) -> int:
        return int(self.entries.look(key) == value and self.entries.discard(key))

    async def _close(self, *_args: Any, **_options: Any) -> None:
        """Nothing is open. The values stay: aiocache allows commands after closing."""


class AnswerCache:
    """The gateway's memory of answers; public as `gateway.cache`.

    The gateway uses the synchronous methods, by key. The public face is asynchronous and takes
    the prompt, so that it need not change when a backend that must be awaited comes.

    Args:
        max_entries: How many answers are held; the least recently used goes first.
        ttl_seconds: How long an answer is fresh if nothing else is said.
        stale_seconds: How much longer it stays for `lookup_stale`.
        clock: Where the time comes from.
    """

    __slots__ = ("_clock", "_ttl_seconds", "backend")

    def __init__(
        self,
        *,
        max_entries: int = 1000,
        ttl_seconds: float = 3600.0,
        stale_seconds: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self._ttl_seconds = ttl_seconds
        self.backend = LRUTTLBackend(max_entries, stale_seconds=stale_seconds, clock=clock)
        """The aiocache backend underneath."""

    def __len__(self) -> int:
        """Answers that are held, the stale ones included."""
        return len(self.backend.entries)

    def __bool__(self) -> bool:
        return True  # empty, but there

    def stats(self) -> dict[str, int]:
        """Hits, misses, stale_hits, evictions, expirations, entries and max_entries."""
        return self.backend.entries.stats()

    def lookup(self, key: str) -> Remembered | None:
        """The fresh answer for a `cache_key`, or None."""
        found: Remembered | None = self.backend.peek(key)
        return found

    def lookup_stale(self, key: str) -> Remembered | None:
        """The answer for a `cache_key`, even up to `stale_seconds` after its time, or None."""
        found: Remembered | None = self.backend.peek_stale(key)
        return found

    def remember(
        self, key: str, completion: Completion, provider: str, ttl_seconds: float | None = None
    ) -> bool:
        """Keep an answer, if it is worth keeping.

        Args:
            key: The request's `cache_key`.
            completion: What the vendor answered.
            provider: The name of the provider that answered.
            ttl_seconds: How long it is fresh; None takes the default, infinity lasts for ever,
                and with 0 or less it is not kept.

        Returns:
            Whether it was kept. If not, an older answer stays.
        """
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        if not ttl > 0 or not worth_keeping(completion):
            return False
        self.backend.poke(key, Remembered(completion, provider), ttl)
        return True

    async def get(
        self, system: str | None, user: str, model: str | None = None, *, partition: str = ""
    ) -> ChatResponse | None:
        """The fresh answer to `chat(user, system=system, model=model)`, or None.

        Raises:
            RequestRejectedError: A text cannot be sent, so no answer can have come.
        """
        found = self.lookup(prompt_key(system, user, model, partition=partition))
        return (
            None if found is None else ChatResponse(found.completion, found.provider, cached=True)
        )

    async def set(
        self,
        system: str | None,
        user: str,
        model: str | None,
        response: ChatResponse | str,
        ttl_seconds: float | None = None,
        *,
        partition: str = "",
    ) -> None:
        """Have `chat(user, system=system, model=model)` answer this, until it is over.

        It is kept as given, also if the gateway would not have remembered it by itself.

        Args:
            system: Text of the system message; None or "" stands for none.
            user: Text of the user's message.
            model: As given to `chat()`; None for a call that names no model.
            response: The answer; a text counts as whole, with no usage and no price.
            ttl_seconds: How long it is fresh; None takes the gateway's `cache_ttl_seconds`.
            partition: As for `cache_key`.

        Raises:
            RequestRejectedError: `ttl_seconds` is not above 0, or a text cannot be sent.
            TypeError: `response` is neither.
        """
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        if not ttl > 0:
            raise RequestRejectedError("ttl_seconds must be above 0; leave it out for the default.")
        key = prompt_key(system, user, model, partition=partition)
        if isinstance(response, ChatResponse):
            record = Remembered(response.completion, response.provider)
        elif isinstance(response, str):
            created = int(self._clock.wall())
            record = Remembered(written_by_hand(response, model, key, created), "cache")
        else:
            raise TypeError(f"response must be a ChatResponse or a str, not {type(response)}")
        self.backend.poke(key, record, ttl)

    async def delete(
        self, system: str | None, user: str, model: str | None = None, *, partition: str = ""
    ) -> bool:
        """Forget the answer to `chat(user, system=system, model=model)`. Says if one was fresh."""
        return self.backend.drop(prompt_key(system, user, model, partition=partition))

    async def clear(self) -> None:
        """Forget every answer. The counters go on."""
        self.backend.entries.clear()


def _lifetime(ttl: float | None) -> float:
    return ttl or math.inf
