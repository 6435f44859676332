"""Requests that come at a steady rate, whether the ones before have been answered or not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from benchmarks.clients import Ask
from benchmarks.outage import Call, asked


@dataclass(frozen=True)
class Arrived:
    """When a request came, in seconds from the first one, and what became of it."""

    at: float
    call: Call


async def arrivals(ask: Ask, *, rate: float, count: int) -> list[Arrived]:
    """Let `count` requests come, `rate` a second, and wait for them all."""
    found: list[Arrived] = []

    async def one(at: float) -> None:
        found.append(Arrived(at, await asked(ask)))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        for index in range(count):
            at = index / rate
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            requests.create_task(one(at))
    return found
