"""Many callers in one outage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.clients import PAIRS, Ask, Pair
from benchmarks.measure import fresh_prompt
from benchmarks.options import Options
from benchmarks.outage import Call, asked, broken, heal
from benchmarks.server import Servers

CALLERS = 50
PAUSE = 1.0
"""Seconds between a caller's calls: 50 calls a second, which the slowest peer can still send."""
HERD = 40


@dataclass(frozen=True)
class Crowd:
    """What the callers saw.

    Attributes:
        calls: Those begun during the outage.
        wasted: Requests that reached the dead primary.
        back_seconds: From the healing to the primary's first answer; None if none came.
    """

    calls: Sequence[Call]
    wasted: int
    back_seconds: float | None


@dataclass(frozen=True)
class Herd:
    """How many of the callers met the dead primary, and how many got no answer."""

    callers: int
    met: int
    errors: int


async def crowd(servers: Servers, pair: Pair, peer: str, mode: str, options: Options) -> Crowd:
    """An outage of a few seconds, and its end."""
    await heal(servers)
    calls: list[Call] = []
    out = asyncio.Event()
    over = asyncio.Event()

    async def caller(ask: Ask, index: int) -> None:
        await asyncio.sleep(index / CALLERS * PAUSE)
        while not over.is_set():
            during = out.is_set()
            call = await asked(ask)
            if during:
                calls.append(call)
            await asyncio.sleep(PAUSE)

    async with PAIRS[peer](pair) as ask, asyncio.TaskGroup() as callers:
        await ask(fresh_prompt())
        for index in range(CALLERS):
            callers.create_task(caller(ask, index))
        await asyncio.sleep(PAUSE)  # now all have begun
        await broken(servers, mode)
        out.set()
        await asyncio.sleep(options.pick(4, 2))
        out.clear()
        wasted = (await servers.state())["received"]
        await servers.set("primary", "ok", 0.05)
        back = await _back(servers)
        over.set()
    return Crowd(calls, wasted, back)


async def _back(servers: Servers) -> float | None:
    for _ in range(35):
        await asyncio.sleep(0.1)
        seconds = (await servers.state())["first_answer_seconds"]
        if seconds is not None:
            return seconds
    return None


async def herd(servers: Servers, pair: Pair, peer: str) -> Herd:
    """Callers who come together when a circuit's open time is over and nothing has healed."""
    await heal(servers)
    async with PAIRS[peer](pair) as ask:
        await ask(fresh_prompt())
        await broken(servers, "500")
        for _ in range(6):
            await asked(ask)
        await asyncio.sleep(pair.reset_seconds * 1.2)  # with the jitter
        await broken(servers, "500")  # counts anew
        calls = await asyncio.gather(*(asked(ask) for _ in range(HERD)))
        met = (await servers.state())["received"]
    return Herd(HERD, met, sum(not call.ok for call in calls))
