"""The rule of shared limits; every ledger follows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from aigateway.fleet.client import BOUND, FleetClient, LuaScript
from aigateway.fleet.ledger import (
    Claim,
    FleetUnavailableError,
    Ledger,
    Limit,
    MemoryLedger,
    Spent,
)
from aigateway.fleet.redis_ledger import RedisLedger
from aigateway.fleet.store import SqliteLedger, Store, begin_store
from aigateway.testing import FakeClock
from tests.fleet.servers import Server

CALLS = Limit("rpm:alpha", 10)


async def test_what_is_held_or_spent_is_not_granted_again() -> None:
    clock = FakeClock(wall=120_000.0)
    ledger = MemoryLedger(clock)
    first = (await ledger.exchange("a", [Claim(CALLS, hold=6)], 1)).grants[0]
    second = (await ledger.exchange("b", [Claim(CALLS, hold=6)], 1)).grants[0]
    assert (first.held, second.held, second.free) == (6, 4, 0)
    spent = (await ledger.exchange("a", [Claim(CALLS, [Spent(6)])], 2)).grants[0]
    assert (spent.held, spent.used, spent.free) == (0, 6, 0)
    clock.tick(1.0)
    assert (await ledger.exchange("b", [Claim(CALLS, hold=6)], 2)).grants[0].held == 4
    clock.tick(61.0)  # "b" may have spent its hold until it ended
    assert (await ledger.exchange("a", [Claim(CALLS, hold=9)], 3)).grants[0].held == 6
    clock.tick(1.0)
    assert (await ledger.exchange("a", [Claim(CALLS, hold=9)], 4)).grants[0].held == 9


# ── every ledger follows the rule ────────────────────────────────────────────────────────────────

MINUTE, DAILY = Limit("a:rpm", 20), Limit("a:usd", 1_000_000, None)
TICKS = st.sampled_from([0.0, 0.125, 0.25, 1.0, 1.875, 2.0, 2.125, 30.0, 59.875, 61.0, 86_000.0])
"""Exact in binary, and in milliseconds."""
CLAIMS = st.tuples(
    st.sampled_from([MINUTE, DAILY, Limit("a:rpm", 7)]),  # a limit that has been changed, too
    st.lists(st.builds(Spent, st.integers(-3, 12), TICKS), max_size=3),
    st.integers(0, 9),
).map(lambda drawn: Claim(*drawn))
STEP = st.tuples(
    TICKS,
    st.sampled_from("cab"),
    st.lists(CLAIMS, max_size=2, unique_by=lambda claim: claim.limit.name),
    st.booleans(),
)


class ServerTime:
    """Runs the ledger's script at a real server, which takes its time from a clock."""

    def __init__(self, redis: Redis, clock: FakeClock) -> None:
        self._redis, self._clock = redis, clock

    async def run(
        self, script: LuaScript, keys: Sequence[str], args: Sequence[Any], *, seconds: float
    ) -> Any:
        assert seconds > BOUND
        whole, part = divmod(self._clock.wall(), 1)
        asked = "redis.call('TIME')"
        assert asked in script.text
        text = script.text.replace(asked, f"{{{int(whole)}, {int(part * 1_000_000)}}}")
        return self._redis.eval(text, len(keys), *keys, *args)


def test_the_ledger_in_redis_answers_as_the_one_in_memory(server: Server) -> None:
    async def compare(steps: list[tuple[float, str, list[Claim], bool]]) -> None:
        clock = FakeClock()
        rule = MemoryLedger(clock)
        redis.flushall()
        ledger = RedisLedger(cast("FleetClient", ServerTime(redis, clock)))
        serials, seen = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0.0)
        for seconds, member, claims, again in steps:
            clock.tick(seconds)
            # A serial is known for a day, by the server's own clock.
            is_known = clock.now() - seen[member] < 80_000 and serials[member] > 0
            seen[member] = clock.now()
            serials[member] += not (again and is_known)
            answer = await ledger.exchange(member, claims, serials[member])
            right = await rule.exchange(member, claims, serials[member])
            assert (answer.members, answer.rank) == (right.members, right.rank)
            for own, grant in zip(answer.grants, right.grants, strict=True):
                assert replace(own, epoch="") == grant

    @settings(max_examples=40, deadline=None)
    @given(st.lists(STEP, max_size=25))
    def follow(steps: list[tuple[float, str, list[Claim], bool]]) -> None:
        asyncio.run(compare(steps))

    with contextlib.closing(Redis(port=server.port)) as redis:
        follow()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_an_exchange_that_is_overtaken_changes_nothing(
    kind: str, tmp_path: Path, server: Server
) -> None:
    clock = FakeClock()
    store = Store(tmp_path / "state.sqlite", clock)
    begin_store(store.path)
    with contextlib.closing(Redis(port=server.port)) as redis:
        redis.flushall()
        ledgers: dict[str, Ledger] = {
            "memory": MemoryLedger(clock),
            "sqlite": SqliteLedger(store),
            "redis": RedisLedger(cast("FleetClient", ServerTime(redis, clock))),
        }
        ledger = ledgers[kind]
        await ledger.exchange("a", [Claim(CALLS, [Spent(2)], hold=3)], 1)
        await ledger.exchange("a", [Claim(CALLS, [Spent(1)], hold=1)], 2)
        with pytest.raises(FleetUnavailableError):
            await ledger.exchange("a", [Claim(CALLS, [Spent(2)], hold=3)], 1)
        grant = (await ledger.exchange("b", [Claim(CALLS)], 1)).grants[0]
        assert (grant.used, grant.free) == (3, 6)
    await store.aclose()
