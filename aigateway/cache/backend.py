"""The memory as a backend of aiocache. Only this module imports aiocache.

It is loaded when it is asked for: aiocache imports redis where that is installed, which takes long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from aigateway.cache.memory import ExpiringLRU
from aigateway.clock import SYSTEM_CLOCK, Clock

__all__ = ["LRUTTLBackend"]


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
        entries: The structure itself, in place of what is above.
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
        entries: ExpiringLRU[Any] | None = None,
        serializer: Any = None,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(serializer=serializer or NullSerializer(), timeout=timeout, **options)
        if entries is None:
            entries = ExpiringLRU(max_entries, stale_seconds=stale_seconds, clock=clock)
        self.entries: ExpiringLRU[Any] = entries

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
