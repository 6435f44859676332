"""The backend as aiocache and its users see it."""

import asyncio

import pytest
from aiocache import Cache, cached, caches, multi_cached
from aiocache.lock import RedLock
from aiocache.plugins import HitMissRatioPlugin
from aiocache.serializers import JsonSerializer

from aigateway.cache.memory import LRUTTLBackend
from aigateway.errors import ConfigurationError
from aigateway.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(clock: FakeClock) -> LRUTTLBackend:
    return LRUTTLBackend(clock=clock)


class TestBackend:
    async def test_set_and_get(self, backend: LRUTTLBackend, clock: FakeClock) -> None:
        value = object()
        assert await backend.set("a", value, ttl=10) is True
        assert await backend.get("a") is value
        clock.tick(10)
        assert await backend.get("a") is None
        assert await backend.get("a", default=7) == 7

    @pytest.mark.parametrize("ttl", [None, 0])
    async def test_no_ttl_is_no_expiry(
        self, backend: LRUTTLBackend, clock: FakeClock, ttl: int | None
    ) -> None:
        await backend.set("a", 1, ttl=ttl)
        clock.tick(1e9)
        assert await backend.get("a") == 1

    async def test_a_negative_ttl_is_over_already(self, backend: LRUTTLBackend) -> None:
        await backend.set("a", 1)
        await backend.set("a", 2, ttl=-1)
        assert not await backend.exists("a")

    async def test_the_ttl_of_the_backend_is_the_default(self, clock: FakeClock) -> None:
        backend = LRUTTLBackend(clock=clock, ttl=5)
        await backend.set("a", 1)
        await backend.set("b", 1, ttl=None)
        clock.tick(6)
        assert await backend.multi_get(["a", "b"]) == [None, 1]

    async def test_add_takes_only_what_is_not_there(
        self, backend: LRUTTLBackend, clock: FakeClock
    ) -> None:
        assert await backend.add("a", 1, ttl=5)
        with pytest.raises(ValueError, match="already exists"):
            await backend.add("a", 2)
        clock.tick(5)
        assert await backend.add("a", 3)
        assert await backend.get("a") == 3

    async def test_many_at_once(self, backend: LRUTTLBackend, clock: FakeClock) -> None:
        await backend.multi_set([("a", 1), ("b", 2)], ttl=5)
        assert await backend.multi_get(["a", "c", "b"]) == [1, None, 2]
        clock.tick(5)
        assert await backend.multi_get(["a", "b"]) == [None, None]

    async def test_expire(self, backend: LRUTTLBackend, clock: FakeClock) -> None:
        await backend.set("a", 1, ttl=5)
        assert await backend.expire("a", 0)  # aiocache: 0 switches expiry off
        clock.tick(100)
        assert await backend.exists("a")
        assert await backend.expire("a", 1)
        clock.tick(1)
        assert not await backend.expire("a", 1)

    async def test_delete_counts(self, backend: LRUTTLBackend) -> None:
        await backend.set("a", 1)
        assert await backend.delete("a") == 1
        assert await backend.delete("a") == 0

    async def test_clear_keeps_to_the_namespace(self, clock: FakeClock) -> None:
        backend = LRUTTLBackend(clock=clock, namespace="mine:")
        await backend.set("a", 1)
        await backend.set("a", 2, namespace="theirs:")
        await backend.clear()
        assert await backend.get("a") is None
        assert await backend.get("a", namespace="theirs:") == 2
        await backend.clear(namespace="theirs:")
        assert len(backend.entries) == 0

    async def test_clear_without_a_namespace_takes_everything(self, backend: LRUTTLBackend) -> None:
        await backend.set("a", 1)
        await backend.clear()
        assert len(backend.entries) == 0

    async def test_closing_loses_nothing(self, backend: LRUTTLBackend) -> None:
        async with backend:
            await backend.set("a", 1)
        assert await backend.get("a") == 1

    async def test_a_stale_value_is_had_from_the_structure(self, clock: FakeClock) -> None:
        backend = LRUTTLBackend(clock=clock, stale_seconds=5)
        await backend.set("a", 1, ttl=1)
        clock.tick(1)
        assert (await backend.get("a"), backend.entries.get_stale("a")) == (None, 1)

    def test_no_room_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="max_entries"):
            LRUTTLBackend(0)


class TestWithAiocache:
    async def test_as_a_cache(self, clock: FakeClock) -> None:
        cache = Cache(LRUTTLBackend, max_entries=1, clock=clock, serializer=JsonSerializer())
        await cache.set("a", {"x": 1})
        await cache.set("b", [1])
        assert await cache.get("a") is None
        assert await cache.get("b") == [1]

    async def test_as_an_alias(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(caches, "_config", dict(caches.get_config()))
        caches.add("answers", {"cache": "aigateway.cache.memory.LRUTTLBackend", "max_entries": 5})
        cache = caches.create("answers")
        assert type(cache).__name__ == "LRUTTLBackend"
        assert cache.entries.max_entries == 5

    async def test_under_a_decorator(self) -> None:
        calls = []

        @cached(cache=LRUTTLBackend, max_entries=2, ttl=60, key_builder=lambda _f, n: str(n))
        async def double(n: int) -> int:
            calls.append(n)
            return 2 * n

        assert [await double(n) for n in (1, 2, 1, 3, 2)] == [2, 4, 2, 6, 4]
        assert calls == [1, 2, 3, 2]

    async def test_under_the_decorator_for_many(self) -> None:
        calls = []

        @multi_cached("keys", cache=LRUTTLBackend)
        async def lengths(keys: list[str]) -> dict[str, int]:
            calls.append(list(keys))
            return {key: len(key) for key in keys}

        await lengths(keys=["a", "bb"])
        assert await lengths(keys=["a", "ccc"]) == {"a": 1, "ccc": 3}
        assert calls == [["a", "bb"], ["ccc"]]

    async def test_with_a_plugin(self, clock: FakeClock) -> None:
        backend = LRUTTLBackend(clock=clock, plugins=[HitMissRatioPlugin()])
        await backend.set("a", 1)
        await backend.get("a")
        await backend.get("b")
        assert backend.hit_miss_ratio == {"total": 2, "hits": 1, "hit_ratio": 0.5}

    async def test_with_a_redlock(self, backend: LRUTTLBackend) -> None:
        calls = []

        async def fill() -> None:
            async with RedLock(backend, "a", lease=2):
                if await backend.get("a") is None:
                    calls.append(1)
                    await asyncio.sleep(0)
                    await backend.set("a", 1)

        await asyncio.gather(*(fill() for _ in range(5)))
        assert calls == [1]
        assert await backend._redlock_release("a", "not the owner") == 0
