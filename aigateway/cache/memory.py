"""The cache of answers, in memory. Only this module imports aiocache.

Top to bottom: the policy (`worth_keeping`, `ttl_for`), the structure (`ExpiringLRU`), the aiocache
backend over it, and `AnswerCache`, which the gateway holds.
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
    """A cached answer and the name of its provider."""

    completion: Completion
    provider: str


def worth_keeping(completion: Completion) -> bool:
    """Return whether an answer may be cached.

    Every choice must be complete (`stop`, `tool_calls`) and not empty. Answers that a content
    filter cut, refusals and empty ones are not kept, because another try may do better; nor are
    answers without a finish reason, which may be half. An answer that reached its limit (`length`)
    is kept if it is text, because the limit is part of the key, but not with tool calls, whose
    arguments are incomplete.
    """
    for choice in completion.choices:
        if choice.finish_reason == "length":
            whole = bool(choice.text) and not choice.tool_calls
        else:
            content = choice.text or choice.tool_calls or choice.images or choice.audio
            whole = choice.finish_reason in _WHOLE and bool(content)
        if choice.refusal is not None or not whole:
            return False
    return bool(completion.choices)


def ttl_for(
    agent: str | None, cache_ttl: float | None, agent_ttls: Mapping[str, float], default: float
) -> float:
    """Return the seconds an answer stays fresh: the call's, else the agent's, else the default."""
    if cache_ttl is not None:
        return cache_ttl
    return default if agent is None else agent_ttls.get(agent, default)


V = TypeVar("V")

_GARBAGE = 64
"""Outdated deadlines that the heap may always hold, so that small caches seldom rebuild it."""


class _Entry(NamedTuple, Generic[V]):
    value: V
    deadline: float  # as `Clock.now`; infinite for a value that does not expire
    serial: int  # which deadline in the heap is this entry's


class ExpiringLRU(Generic[V]):
    """A bounded mapping that evicts expired entries first, then the least recently used.

    Reads are O(1), other operations O(log n) amortised. Entries are evicted only when room is
    needed, expired ones in the order of their deadlines, stale ones included.

    Args:
        max_entries: Values held at most, including expired ones.
        stale_seconds: Seconds after its deadline for which `get_stale` still returns a value.
        clock: The source of time.

    Attributes:
        hits: Reads that found a fresh value.
        misses: Reads that did not.
        stale_hits: Reads by `get_stale` that found a value.
        evictions: Fresh values dropped to make room.
        expirations: Values dropped after their deadline.

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
        # Not a dict: finding the oldest entry of a dict used as a queue costs O(n).
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()
        self._heap: list[tuple[float, int, Hashable]] = []
        self._serial = 0

    def __len__(self) -> int:
        """Return the number of values that are not over, stale ones included."""
        over = self._clock.now() - self.stale_seconds
        while self._drop_expired(over):
            pass
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        """Return whether there is a fresh value. Does not count as a read."""
        entry = self._entries.get(key)
        return entry is not None and entry.deadline > self._clock.now()

    def get(self, key: Hashable) -> V | None:
        """Return the fresh value or None, count the read, and mark the entry as used."""
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
        """Return the value up to `stale_seconds` past its deadline, or None."""
        entry = self._entries.get(key)
        if entry is None or self._drop_if_over(key, entry, self._clock.now()):
            return None
        self.stale_hits += 1
        return entry.value

    def look(self, key: Hashable) -> V | None:
        """Return the fresh value or None, without counting a read."""
        return self._entries[key].value if key in self else None

    def put(self, key: Hashable, value: V, lifetime: float = math.inf) -> None:
        """Store a value for `lifetime` seconds. With 0 or less (or NaN), only drop the old one."""
        if not lifetime > 0:
            self.discard(key)
            return
        now = self._clock.now()
        if key in self._entries:
            self._entries.move_to_end(key)
        elif len(self._entries) >= self.max_entries:
            self._make_room(now)
        deadline = now + lifetime
        self._serial = serial = self._serial + 1
        self._entries[key] = _Entry(value, deadline, serial)
        if deadline < math.inf:
            heapq.heappush(self._heap, (deadline, serial, key))
            # Each new write of a key leaves an outdated deadline in the heap.
            if len(self._heap) > 2 * len(self._entries) + _GARBAGE:
                self._tidy_up()

    def expire(self, key: Hashable, lifetime: float) -> bool:
        """Give a fresh value a new lifetime in seconds from now; return whether there is one."""
        if key not in self:
            return False
        self.put(key, self._entries[key].value, lifetime)
        return True

    def discard(self, key: Hashable) -> bool:
        """Drop a value, stale or fresh; return whether it was fresh."""
        fresh = key in self
        self._entries.pop(key, None)
        return fresh

    def clear(self, prefix: str = "") -> None:
        """Drop everything, or the entries whose key is a text that begins with `prefix`."""
        if not prefix:
            self._entries.clear()
            self._heap.clear()
            return
        for key in list(self._entries):
            if isinstance(key, str) and key.startswith(prefix):
                del self._entries[key]

    def stats(self) -> dict[str, int]:
        """Return the counters, and `entries` (as `len`), as plain numbers."""
        entries = len(self)  # first, because it drops and counts what is over
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
        """Drop the entry with the earliest deadline unless that is after `until`."""
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
        """Drop the outdated deadlines from the heap."""
        self._heap = [
            (entry.deadline, entry.serial, key)
            for key, entry in self._entries.items()
            if entry.deadline < math.inf
        ]
        heapq.heapify(self._heap)


class LRUTTLBackend(BaseCache):  # type: ignore[misc]  # aiocache ships no types
    """An aiocache backend in memory, bounded in entries and in time.

    It replaces aiocache's `SimpleMemoryCache`, which is unbounded and keeps a timer on the event
    loop for each key: in `Cache(LRUTTLBackend, ...)`, under `@cached`, `@multi_cached` and
    `@cached_stampede`, with plugins and namespaces. A `ttl` is in seconds; as everywhere in
    aiocache, None and 0 mean no expiry. `increment`, `raw` and compare-and-set are not supported.

    Args:
        max_entries: Values held at most; the least recently used is evicted first.
        stale_seconds: Seconds after its ttl for which `entries.get_stale` still returns a value.
        clock: The source of time.
        serializer: As in aiocache; the default keeps the objects themselves.
        timeout: As in aiocache, but None by default: nothing here takes time, and a timeout
            costs a task for each call.
        **options: aiocache's other options: `plugins`, `namespace`, `key_builder`, `ttl`.

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

    # `_options` takes aiocache's `encoding` and `_conn`, which are for backends with a server.

    async def _get(self, key: str, **_options: Any) -> Any:
        return self.entries.get(key)

    async def _multi_get(self, keys: Iterable[str], **_options: Any) -> list[Any]:
        return [self.entries.get(key) for key in keys]

    async def _set(self, key: str, value: Any, ttl: float | None = None, **_options: Any) -> bool:
        self.entries.put(key, value, ttl or math.inf)
        return True

    async def _multi_set(
        self, pairs: Iterable[tuple[str, Any]], ttl: float | None = None, **_options: Any
    ) -> bool:
        for key, value in pairs:
            self.entries.put(key, value, ttl or math.inf)
        return True

    async def _add(self, key: str, value: Any, ttl: float | None = None, **_options: Any) -> bool:
        if key in self.entries:
            raise ValueError(f"Key {key} already exists, use .set to update the value")
        return await self._set(key, value, ttl)

    async def _exists(self, key: str, **_options: Any) -> bool:
        return key in self.entries

    async def _expire(self, key: str, ttl: float | None, **_options: Any) -> bool:
        return self.entries.expire(key, ttl or math.inf)

    async def _delete(self, key: str, **_options: Any) -> int:
        return int(self.entries.discard(key))

    async def _clear(self, namespace: str | None = None, **_options: Any) -> bool:
        self.entries.clear((self.namespace if namespace is None else namespace) or "")
        return True

    async def _redlock_release(self, key: str, value: Any) -> int:
        return int(self.entries.look(key) == value and self.entries.discard(key))


class AnswerCache:
    """The gateway's cache of answers; public as `gateway.cache`.

    The gateway uses the synchronous methods, by key. The asynchronous ones are the public face and
    take the prompt; they are async so that a backend that must be awaited can follow.

    Args:
        max_entries: Answers held at most; the least recently used is evicted first.
        ttl_seconds: Seconds an answer is fresh by default.
        stale_seconds: Seconds after that for which `lookup_stale` still returns it.
        clock: The source of time.
    """

    __slots__ = ("_clock", "_entries", "_ttl_seconds", "backend")

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
        """The aiocache backend."""
        # Not through aiocache: its decorators cost more than the rest of a cache hit.
        self._entries: ExpiringLRU[Remembered] = self.backend.entries

    def __len__(self) -> int:
        """Return the number of answers held, stale ones included."""
        return len(self._entries)

    def __bool__(self) -> bool:
        return True  # also when it is empty

    def stats(self) -> dict[str, int]:
        """Return hits, misses, stale_hits, evictions, expirations, entries and max_entries."""
        return self._entries.stats()

    def lookup(self, key: str) -> Remembered | None:
        """Return the fresh answer for a `cache_key`, or None."""
        return self._entries.get(key)

    def lookup_stale(self, key: str) -> Remembered | None:
        """Return the answer for a `cache_key` up to `stale_seconds` after its time, or None."""
        return self._entries.get_stale(key)

    def remember(
        self, key: str, completion: Completion, provider: str, ttl_seconds: float | None = None
    ) -> bool:
        """Store an answer if it is worth keeping.

        Args:
            key: The request's `cache_key`.
            completion: The vendor's answer.
            provider: The provider's name.
            ttl_seconds: Seconds it is fresh; None takes the default, infinity never expires. With
                0 or less it is not stored.

        Returns:
            Whether it was stored. If not, an older answer stays.
        """
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        if not ttl > 0 or not worth_keeping(completion):
            return False
        self._entries.put(key, Remembered(completion, provider), ttl)
        return True

    async def get(
        self, system: str | None, user: str, model: str | None = None, *, partition: str = ""
    ) -> ChatResponse | None:
        """Return the fresh answer to `chat(user, system=system, model=model)`, or None.

        Raises:
            RequestRejectedError: A text cannot be sent, so there can be no answer to it.
        """
        found = self.lookup(prompt_key(system, user, model, partition=partition))
        if found is None:
            return None
        return ChatResponse(found.completion, found.provider, cached=True)

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
        """Store the answer to `chat(user, system=system, model=model)`.

        It is stored as given, even if the gateway would not keep it.

        Args:
            system: Text of the system message; None or "" stands for none.
            user: Text of the user's message.
            model: As given to `chat()`; None for a call that names no model.
            response: The answer; a text is a complete answer without usage that cost nothing.
            ttl_seconds: Seconds it is fresh; None takes the gateway's `cache_ttl_seconds`.
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
            choices = (Choice(response, "stop"),)
            completion = Completion(
                f"cache-{key[:16]}", model or "", choices, cost_usd=0.0, created=created
            )
            record = Remembered(completion, "cache")
        else:
            raise TypeError(f"response must be a ChatResponse or a str, not {type(response)}")
        self._entries.put(key, record, ttl)

    async def delete(
        self, system: str | None, user: str, model: str | None = None, *, partition: str = ""
    ) -> bool:
        """Drop the answer to `chat(user, system=system, model=model)`; return if it was fresh."""
        return self._entries.discard(prompt_key(system, user, model, partition=partition))

    async def clear(self) -> None:
        """Drop every answer. The counters continue."""
        self._entries.clear()
