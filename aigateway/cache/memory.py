"""The cache of answers, in memory.

Top to bottom: the policy (`worth_keeping`, `ttl_for`), the structure (`ExpiringLRU`), and
`AnswerCache`, which the gateway holds. `backend.py` makes the structure a backend of aiocache; a
second level may be below it, see `second_level.py`.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from aigateway.cache.key import prompt_key
from aigateway.cache.size import answer_size, entry_size
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import ConfigurationError, RequestRejectedError
from aigateway.figures import CacheMetrics
from aigateway.messages import ChatResponse, Choice, Completion, Embeddings, NativeAnswer
from aigateway.records import Record

if TYPE_CHECKING:
    from aigateway.cache.backend import LRUTTLBackend
    from aigateway.cache.second_level import SecondLevel, Stored

__all__ = ["AnswerCache", "ExpiringLRU", "LRUTTLBackend", "Remembered", "ttl_for", "worth_keeping"]

_WHOLE = frozenset({"stop", "tool_calls", "function_call"})


@dataclass(frozen=True, slots=True)
class Remembered(Record):
    """A cached answer and the name of its provider; `waited` for while another process got it."""

    completion: Completion
    provider: str
    waited: bool = False


_MOST_NUMBERS = 65_536
"""Numbers of the vectors that are kept of one request; they take 2 MB."""

Accepts = Callable[[str, str], bool]
"""Whether an answer of this provider, made by this configuration, will do."""


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


def _compact(completion: Completion) -> Completion:
    """Return an answer without the events of its stream, which no hit needs."""
    native = completion.native
    if native is None or not native.events:
        return completion
    body = bytes(memoryview(native.body))  # what orjson returns may occupy ten times its length
    return replace(completion, native=NativeAnswer(native.protocol, body))


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

_SHARE = 8
"""A value of more than this part of `max_bytes` would push too many others out."""


class ExpiringLRU(Generic[V]):
    """A bounded mapping that evicts expired entries first, then the least recently used.

    Reads are O(1), other operations O(log n) amortised. Entries are evicted only when room is
    needed, expired ones in the order of their deadlines, stale ones included. While none has
    expired, new deadlines are only noted, and are put in order when the first of them passes.

    Args:
        max_entries: Values held at most, including expired ones.
        max_bytes: Bytes that they and their keys may take, as `entry_size` estimates it; None does
            not bound and count them. A value of more than an eighth of it is not held.
        stale_seconds: Seconds after its deadline for which `get_stale` still returns a value.
        clock: The source of time.

    Attributes:
        hits: Reads that found a fresh value.
        misses: Reads that did not.
        stale_hits: Reads by `get_stale` that found a value.
        evictions: Fresh values dropped to make room.
        expirations: Values dropped after their deadline.
        too_large: Values that were not held, because they are too large.
        bytes: What `max_bytes` bounds.

    Raises:
        ConfigurationError: `max_entries` or `max_bytes` is below 1, or `stale_seconds` below 0.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_entries",
        "_heap",
        "_noted",
        "_serial",
        "_soonest",
        "bytes",
        "evictions",
        "expirations",
        "hits",
        "max_bytes",
        "max_entries",
        "misses",
        "stale_hits",
        "stale_seconds",
        "too_large",
    )

    def __init__(
        self,
        max_entries: int = 1000,
        *,
        max_bytes: int | None = None,
        stale_seconds: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if max_entries < 1:
            raise ConfigurationError(f"max_entries must be at least 1, not {max_entries}.")
        if max_bytes is not None and max_bytes < 1:
            raise ConfigurationError(f"max_bytes must be at least 1, not {max_bytes}.")
        if not stale_seconds >= 0:
            raise ConfigurationError(f"stale_seconds must be at least 0, not {stale_seconds}.")
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.stale_seconds = stale_seconds
        self.hits = self.misses = self.stale_hits = self.evictions = self.expirations = 0
        self.bytes = self.too_large = 0
        self._clock = clock
        # Not a dict: finding the oldest entry of a dict used as a queue costs O(n).
        # The value, its deadline on the clock's scale, which of its key's deadlines that is, and
        # its size.
        self._entries: OrderedDict[Hashable, tuple[V, float, int, int]] = OrderedDict()
        self._heap: list[tuple[float, int, Hashable]] = []
        self._noted: list[tuple[float, int, Hashable]] = []  # deadlines that are not in it yet
        self._soonest = math.inf  # no deadline is before
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
        return entry is not None and entry[1] > self._clock.now()

    def get(self, key: Hashable) -> V | None:
        """Return the fresh value or None, count the read, and mark the entry as used."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        now = self._clock.now()
        if entry[1] > now:
            self._entries.move_to_end(key)
            self.hits += 1
            return entry[0]
        self.misses += 1
        self._drop_if_over(key, entry, now)
        return None

    def get_stale(self, key: Hashable) -> V | None:
        """Return the value up to `stale_seconds` past its deadline, or None."""
        entry = self._entries.get(key)
        if entry is None or self._drop_if_over(key, entry, self._clock.now()):
            return None
        self.stale_hits += 1
        return entry[0]

    def look(self, key: Hashable) -> V | None:
        """Return the fresh value or None, without counting a read."""
        return self._entries[key][0] if key in self else None

    def put(self, key: Hashable, value: V, lifetime: float = math.inf) -> bool:
        """Store a value for `lifetime` seconds, in place of an old one.

        It is not stored, and False is returned, with a lifetime of 0 or less (or NaN), or if it is
        too large.
        """
        now, entries, size, most = self._clock.now(), self._entries, 0, self.max_bytes
        if key in entries:
            self._remove(key)
        if not lifetime > 0:
            return False
        if most is not None:
            known: object = value  # `entry_size` walks through all that it holds
            if type(known) is Remembered and type(key) is str:
                size = answer_size(key, known.completion)
            else:
                size = entry_size(key, value)
            if size > most // _SHARE:
                self.too_large += 1
                return False
        if len(entries) >= self.max_entries or (most is not None and self.bytes + size > most):
            self._make_room(now, size)
        deadline = now + lifetime
        self._serial = serial = self._serial + 1
        self.bytes += size
        entries[key] = (value, deadline, serial, size)
        if deadline < math.inf:
            self._soonest = min(self._soonest, deadline)
            noted = self._noted
            noted.append((deadline, serial, key))
            # Each entry that was dropped or written anew leaves an outdated deadline.
            if len(noted) + len(self._heap) > 2 * len(entries) + _GARBAGE:
                self._tidy_up()
        return True

    def expire(self, key: Hashable, lifetime: float) -> bool:
        """Give a fresh value a new lifetime in seconds from now; return whether there was one."""
        if key not in self:
            return False
        self.put(key, self._entries[key][0], lifetime)
        return True

    def discard(self, key: Hashable) -> bool:
        """Drop a value, stale or fresh; return whether it was fresh."""
        fresh = key in self
        if key in self._entries:
            self._remove(key)
        return fresh

    def clear(self, prefix: str = "") -> None:
        """Drop everything, or the entries whose key is a text that begins with `prefix`."""
        if not prefix:
            self._entries.clear()
            self.bytes = 0
            self._tidy_up()
            return
        for key in list(self._entries):
            if isinstance(key, str) and key.startswith(prefix):
                self._remove(key)

    def stats(self) -> CacheMetrics:
        """Return the counters, `entries` (as `len`), and `bytes`, as plain numbers.

        Without a bound in bytes, `bytes` and `max_bytes` are 0.
        """
        entries = len(self)  # first, because it drops and counts what is over
        return {
            "hits": self.hits,
            "misses": self.misses,
            "stale_hits": self.stale_hits,
            "evictions": self.evictions,
            "expirations": self.expirations,
            "entries": entries,
            "max_entries": self.max_entries,
            "bytes": self.bytes,
            "max_bytes": self.max_bytes or 0,
            "too_large": self.too_large,
        }

    def _make_room(self, now: float, size: int) -> None:
        most = math.inf if self.max_bytes is None else self.max_bytes - size
        while len(self._entries) >= self.max_entries or self.bytes > most:
            if now < self._soonest or not self._drop_expired(now):
                self._remove(next(iter(self._entries)))
                self.evictions += 1

    def _remove(self, key: Hashable) -> None:
        self.bytes -= self._entries.pop(key)[3]

    def _drop_expired(self, until: float) -> bool:
        """Drop the entry with the earliest deadline unless that is after `until`."""
        for noted in self._noted:
            heapq.heappush(self._heap, noted)
        self._noted.clear()
        while self._heap:
            deadline, serial, key = self._heap[0]
            self._soonest = deadline
            entry = self._entries.get(key)
            if entry is None or entry[2] != serial:
                heapq.heappop(self._heap)  # the entry was replaced or dropped since
                continue
            if deadline > until:
                return False
            heapq.heappop(self._heap)
            self._remove(key)
            self.expirations += 1
            return True
        self._soonest = math.inf
        return False

    def _drop_if_over(self, key: Hashable, entry: tuple[V, float, int, int], now: float) -> bool:
        if entry[1] + self.stale_seconds > now:
            return False
        self._remove(key)
        self.expirations += 1
        return True

    def _tidy_up(self) -> None:
        """Forget outdated deadlines."""
        self._heap.clear()
        self._noted = [
            (deadline, serial, key)
            for key, (_, deadline, serial, _) in self._entries.items()
            if deadline < math.inf
        ]
        self._soonest = min([deadline for deadline, _, _ in self._noted], default=math.inf)


class AnswerCache:
    """The gateway's cache of answers; public as `gateway.cache`.

    The gateway uses the methods that take a key: the synchronous ones for the memory, and `fetch`
    and `fetch_stale` for the level below. The others are the public face and take the prompt.

    Args:
        max_entries: Answers held at most; the least recently used is evicted first.
        max_bytes: Bytes that they may take, likewise. See `ExpiringLRU`.
        ttl_seconds: Seconds an answer is fresh by default.
        stale_seconds: Seconds after that for which `lookup_stale` still returns it.
        clock: The source of time.
    """

    __slots__ = (
        "_backend",
        "_clock",
        "_damaged",
        "_entries",
        "_second_hits",
        "_second_misses",
        "_stale_seconds",
        "_ttl_seconds",
        "lookup",
        "second",
    )

    def __init__(
        self,
        *,
        max_entries: int = 1000,
        max_bytes: int = 134_217_728,
        ttl_seconds: float = 3600.0,
        stale_seconds: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self._ttl_seconds = ttl_seconds
        self._stale_seconds = stale_seconds
        # Not through aiocache: its decorators cost more than the rest of a cache hit.
        # A `Remembered`; by an `embedding_key`, vectors with their provider and `made_by`.
        self._entries: ExpiringLRU[Any] = ExpiringLRU(
            max_entries, max_bytes=max_bytes, stale_seconds=stale_seconds, clock=clock
        )
        self._backend: LRUTTLBackend | None = None
        self.second: SecondLevel | None = None
        """The level below the memory, if there is one; see `put_over`."""
        self._second_hits = self._second_misses = self._damaged = 0
        self.lookup: Callable[[str], Remembered | None] = self._entries.get
        """Returns the fresh answer for a `cache_key` from memory, or None."""

    def __len__(self) -> int:
        """Return the number of answers in memory, stale ones included."""
        return len(self._entries)

    def __bool__(self) -> bool:
        return True  # also when it is empty

    @property
    def backend(self) -> LRUTTLBackend:
        """The aiocache backend over the answers in memory."""
        if self._backend is None:
            from aigateway.cache.backend import LRUTTLBackend  # noqa: PLC0415 - aiocache is slow

            self._backend = LRUTTLBackend(entries=self._entries)
        return self._backend

    def put_over(self, second: SecondLevel | None) -> None:
        """Set the level below the memory."""
        self.second = second
        if second is not None:
            second.attach(self._entries)

    def stats(self) -> CacheMetrics:
        """Return counters as plain numbers.

        `hits`, `misses`, `stale_hits`, `evictions`, `expirations`, `entries`, `max_entries`,
        `bytes`, `max_bytes` and `too_large` are of the memory. Only with a second level:
        `second_hits`, `second_misses`, `second_damaged` (values that could not be read),
        `second_writes` and `second_dropped` (values that could not be written, or are too long).
        """
        stats = self._entries.stats()
        if self.second is not None:
            stats["second_hits"] = self._second_hits
            stats["second_misses"] = self._second_misses
            stats["second_damaged"] = self._damaged
            second = self.second.stats()
            stats["second_writes"] = second["second_writes"]
            stats["second_dropped"] = second["second_dropped"]
        return stats

    def lookup_vectors(self, key: str) -> tuple[Embeddings, str, str] | None:
        """Return fresh vectors for an `embedding_key`, their provider and `made_by`, or None."""
        found: tuple[Embeddings, str, str] | None = self._entries.get(key)
        return found

    def remember_vectors(
        self, key: str, vectors: Embeddings, provider: str, ttl: float, *, made_by: str
    ) -> None:
        """Store vectors in memory, unless they are too long. `made_by` is as in `WrittenAnswer`."""
        if sum(map(len, vectors.vectors)) <= _MOST_NUMBERS:
            self._entries.put(key, (vectors, provider, made_by), ttl)

    def lookup_stale(self, key: str) -> Remembered | None:
        """Return the answer in memory up to `stale_seconds` after its time, or None."""
        found: Remembered | None = self._entries.get_stale(key)
        return found

    async def fetch(
        self, key: str, accepts: Accepts, *, patience: float | None = None, background: bool = False
    ) -> Remembered | None:
        """Return the fresh answer for a `cache_key` from the second level, or None.

        Args:
            key: The key; the memory has no fresh answer for it.
            accepts: Whether an answer will do.
            patience: Seconds to wait for another process that gets this answer. After None the
                caller gets it, and ends that with `remember` or the level's `give_up`. None: only
                read.
            background: As for `SecondLevel.fetch`.
        """
        second = self.second
        if second is None or not second.available:
            return None
        try:
            if patience is None:
                entry = await second.read(key)
            else:
                entry = await second.fetch(key, patience=patience, background=background)
            found = None if entry is None else self._decoded(entry, accepts)
        except Exception as error:  # noqa: BLE001 - no surprise of a store may fail a request
            _report(error)
            return None
        if entry is None or found is None:
            self._second_misses += 1
            return None
        self._second_hits += 1
        self._entries.put(key, found, entry.seconds)
        return Remembered(found.completion, found.provider, waited=True) if entry.waited else found

    async def fetch_stale(self, key: str, accepts: Accepts) -> Remembered | None:
        """Return the answer for a `cache_key` from the second level, up to `stale_seconds` old."""
        second = self.second
        if second is None or not second.available or not self._stale_seconds:
            return None
        try:
            entry = await second.read(key, stale=True)
            if entry is None or entry.seconds + self._stale_seconds <= 0:
                return None
            return self._decoded(entry, accepts)
        except Exception as error:  # noqa: BLE001 - as above
            _report(error)
            return None

    def remember(
        self,
        key: str,
        completion: Completion,
        provider: str,
        ttl_seconds: float | None = None,
        *,
        made_by: str = "",
    ) -> bool:
        """Store an answer if it is worth keeping.

        Args:
            key: The request's `cache_key`.
            completion: The vendor's answer.
            provider: The provider's name.
            ttl_seconds: Seconds it is fresh; None takes the default, infinity never expires. With
                0 or less it is not stored.
            made_by: As in `WrittenAnswer`.

        Returns:
            Whether the memory holds it. An older answer stays unless this one is too large.
        """
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        if not ttl > 0 or not worth_keeping(completion):
            return False
        if completion.native is not None:
            completion = _compact(completion)
        record = Remembered(completion, provider)
        is_held = self._entries.put(key, record, ttl)
        if self.second is not None:
            self._write(self.second, key, record, ttl, made_by)
        return is_held

    async def get(
        self, system: str | None, user: str, model: str | None = None, *, partition: str = ""
    ) -> ChatResponse | None:
        """Return the fresh answer to `chat(user, system=system, model=model)`, or None.

        Raises:
            RequestRejectedError: A text cannot be sent, so there can be no answer to it.
        """
        key = prompt_key(system, user, model, partition=partition)
        found = self.lookup(key) or await self.fetch(key, lambda *_: True)
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

        It is stored as given, even if the gateway would not keep it; but not in memory if it takes
        more than an eighth of its room.

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
            record = Remembered(_compact(response.completion), response.provider)
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
        if self.second is not None:
            self._write(self.second, key, record, ttl, "")
            await self.second.written()

    async def delete(
        self, system: str | None, user: str, model: str | None = None, *, partition: str = ""
    ) -> bool:
        """Drop the answer to `chat(user, system=system, model=model)`; return if it was fresh."""
        key = prompt_key(system, user, model, partition=partition)
        fresh = self._entries.discard(key)
        if self.second is not None:
            fresh = await self.second.delete(key) or fresh
        return fresh

    async def clear(self) -> None:
        """Drop every answer, in every process that shares them. The counters continue."""
        self._entries.clear()
        if self.second is not None:
            await self.second.clear()

    def _write(
        self, second: SecondLevel, key: str, record: Remembered, ttl: float, made_by: str
    ) -> None:
        from aigateway.cache.second_level import encoded  # noqa: PLC0415 - pydantic's is slow

        try:
            value = encoded(record.completion, record.provider, made_by)
            second.write(key, value, ttl, self._stale_seconds)
        except Exception as error:  # noqa: BLE001 - as above
            _report(error)

    def _decoded(self, entry: Stored, accepts: Accepts) -> Remembered | None:
        from aigateway.cache.second_level import decoded  # noqa: PLC0415 - likewise

        stored = decoded(entry.value)
        if stored is None:
            self._damaged += 1
        if stored is None or not accepts(stored.provider, stored.made_by):
            return None
        return Remembered(_compact(stored.completion), stored.provider)


def _report(error: Exception) -> None:
    from aigateway.cache.second_level import report_defect  # noqa: PLC0415 - likewise

    report_defect(error)


def __getattr__(name: str) -> Any:
    if name == "LRUTTLBackend":
        from aigateway.cache.backend import LRUTTLBackend  # noqa: PLC0415 - as above

        return LRUTTLBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
