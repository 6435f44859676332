"""Where answers are kept. The one user of aiocache.

`LRUTTLBackend` makes our own structure (`lru.py`) a full aiocache backend. `AnswerCache` is what
the gateway holds, over such a backend. Which answers are worth keeping is said in `answers.py`,
what makes two requests the same in `key.py`, and who waits for whom in `flight.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from aigateway.cache.answers import Remembered, ttl_for, worth_keeping, written_by_hand
from aigateway.cache.key import prompt_key
from aigateway.cache.lru import ExpiringLRU
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import RequestRejectedError
from aigateway.messages import ChatResponse, Completion

__all__ = ["AnswerCache", "LRUTTLBackend", "Remembered", "ttl_for"]


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
