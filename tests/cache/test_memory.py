"""Which answers are kept, for how long, and the gateway's cache of them."""

import math
from typing import Any

import pytest

from aigateway.cache.key import prompt_key
from aigateway.cache.memory import AnswerCache, ttl_for, worth_keeping
from aigateway.errors import RequestRejectedError
from aigateway.messages import ChatResponse, Choice, Completion, ToolCall, Usage
from aigateway.testing import FakeClock

CALL = (ToolCall("c1", "add", "{}"),)
ANSWER = Completion("id-1", "gpt", (Choice("4", "stop"),), Usage(1, 2, 3), cost_usd=0.5)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> AnswerCache:
    return AnswerCache(max_entries=3, ttl_seconds=100, stale_seconds=50, clock=clock)


class TestAnswers:
    def test_what_is_remembered_is_found_until_it_is_over(
        self, cache: AnswerCache, clock: FakeClock
    ) -> None:
        assert cache.remember("k", ANSWER, "openai/gpt", 10)
        found = cache.lookup("k")
        assert found is not None
        assert (found.completion, found.provider) == (ANSWER, "openai/gpt")
        clock.tick(10)
        assert cache.lookup("k") is None
        assert cache.lookup_stale("k") == found
        clock.tick(50)
        assert cache.lookup_stale("k") is None

    def test_the_default_time(self, cache: AnswerCache, clock: FakeClock) -> None:
        cache.remember("k", ANSWER, "p")
        cache.remember("forever", ANSWER, "p", math.inf)
        clock.tick(99)
        assert cache.lookup("k")
        clock.tick(1)
        assert cache.lookup("k") is None
        clock.tick(1e9)
        assert cache.lookup("forever")

    @pytest.mark.parametrize("ttl", [0, -1, math.nan])
    def test_no_time_is_not_remembered(self, cache: AnswerCache, ttl: float) -> None:
        cache.remember("k", ANSWER, "p")
        assert not cache.remember("k", Completion("2", "gpt", ANSWER.choices), "p", ttl)
        found = cache.lookup("k")
        assert found is not None
        assert found.completion.id == "id-1"

    def test_what_is_not_worth_it_is_not_remembered(self, cache: AnswerCache) -> None:
        cut = Completion("1", "gpt", (Choice("half", "content_filter"),))
        assert not cache.remember("k", cut, "p")
        assert len(cache) == 0
        assert cache

    def test_stats_are_plain_numbers(self, cache: AnswerCache, clock: FakeClock) -> None:
        for key in "abcd":
            cache.remember(key, ANSWER, "p", 10)
        cache.lookup("d")
        cache.lookup("a")
        clock.tick(10)
        cache.lookup_stale("d")
        clock.tick(50)
        assert cache.stats() == {
            "hits": 1,
            "misses": 1,
            "stale_hits": 1,
            "evictions": 1,
            "expirations": 3,
            "entries": 0,
            "max_entries": 3,
            "bytes": 0,
            "max_bytes": 134_217_728,
            "too_large": 0,
        }


class TestPublicFace:
    async def test_a_text(self, cache: AnswerCache, clock: FakeClock) -> None:
        await cache.set("sys", "2+2?", None, "4", ttl_seconds=60)
        reply = await cache.get("sys", "2+2?")
        assert reply is not None
        assert (reply.text, reply.finish_reason, reply.cached) == ("4", "stop", True)
        assert (reply.usage, reply.cost_usd) == (Usage(), 0.0)
        assert reply.completion.created == int(clock.wall())
        assert reply.to_openai()["choices"][0]["message"]["content"] == "4"
        clock.tick(60)
        assert await cache.get("sys", "2+2?") is None

    async def test_a_response_keeps_its_provider(self, cache: AnswerCache) -> None:
        await cache.set(None, "2+2?", "gpt", ChatResponse(ANSWER, "openai/gpt"))
        reply = await cache.get("", "2+2?", "gpt")
        assert reply == ChatResponse(ANSWER, "openai/gpt", cached=True)
        assert await cache.get(None, "2+2?") is None

    async def test_the_gateway_finds_it(self, cache: AnswerCache) -> None:
        await cache.set("sys", "2+2?", "gpt", "4")
        assert cache.lookup(prompt_key("sys", "2+2?", "gpt"))

    async def test_partitions(self, cache: AnswerCache) -> None:
        await cache.set("sys", "2+2?", None, "4", partition="a")
        assert await cache.get("sys", "2+2?") is None
        assert await cache.get("sys", "2+2?", partition="a")
        assert not await cache.delete("sys", "2+2?")
        assert await cache.delete("sys", "2+2?", partition="a")

    async def test_the_caller_may_keep_what_the_gateway_would_not(self, cache: AnswerCache) -> None:
        await cache.set(None, "say nothing", None, "")
        reply = await cache.get(None, "say nothing")
        assert reply is not None
        assert not reply.text

    async def test_delete_and_clear(self, cache: AnswerCache) -> None:
        await cache.set(None, "a", None, "1")
        await cache.set(None, "b", None, "2")
        assert await cache.delete(None, "a")
        assert not await cache.delete(None, "a")
        await cache.clear()
        assert len(cache) == 0

    @pytest.mark.parametrize("ttl", [0, -1, math.nan])
    async def test_a_time_that_is_none_is_refused(self, cache: AnswerCache, ttl: float) -> None:
        with pytest.raises(RequestRejectedError, match="ttl_seconds"):
            await cache.set(None, "a", None, "1", ttl_seconds=ttl)

    async def test_something_else_is_refused(self, cache: AnswerCache) -> None:
        answer: Any = 4
        with pytest.raises(TypeError, match="int"):
            await cache.set(None, "a", None, answer)

    async def test_tool_calls_survive(self, cache: AnswerCache) -> None:
        call = ToolCall("c1", "add", '{"a": 2}')
        calling = Completion("1", "gpt", (Choice("", "tool_calls", (call,)),))
        await cache.set(None, "a", None, ChatResponse(calling, "p"))
        reply = await cache.get(None, "a")
        assert reply is not None
        assert reply.tool_calls == (call,)


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (Choice("4", "stop"), True),
        (Choice("", "tool_calls", CALL), True),
        (Choice("", "stop", CALL), True),
        (Choice("", "function_call", CALL), True),
        (Choice("a long story", "length"), True),
        (Choice("", "length"), False),
        (Choice("so: ", "length", CALL), False),
        (Choice("", "stop"), False),
        (Choice("half", "content_filter"), False),
        (Choice("half", None), False),
        (Choice("half", "insufficient_system_resource"), False),
        (Choice("", "stop", refusal="I cannot help with that."), False),
        (Choice("well", "stop", refusal="no"), False),
    ],
)
def test_worth_keeping(choice: Choice, kept: bool) -> None:
    assert worth_keeping(Completion("1", "gpt", (choice,))) is kept


def test_every_choice_counts() -> None:
    good, bad = Choice("4", "stop"), Choice("4", "content_filter")
    assert worth_keeping(Completion("1", "gpt", (good, good)))
    assert not worth_keeping(Completion("1", "gpt", (good, bad)))
    assert not worth_keeping(Completion("1", "gpt", ()))


@pytest.mark.parametrize(
    ("agent", "cache_ttl", "expected"),
    [
        (None, None, 3600),
        ("news", None, 60),
        ("other", None, 3600),
        ("news", 5, 5),
        (None, 5, 5),
        ("news", 0, 0),
    ],
)
def test_the_closest_word_counts(
    agent: str | None, cache_ttl: float | None, expected: float
) -> None:
    assert ttl_for(agent, cache_ttl, {"news": 60}, 3600) == expected
