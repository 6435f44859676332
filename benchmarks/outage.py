"""The parts of an outage: healthy, broken, one call timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.clients import Ask, Pair
from benchmarks.measure import fresh_prompt
from benchmarks.server import Servers

HEALTHY = 0.05
"""Seconds of a healthy call."""


@dataclass(frozen=True)
class Call:
    """How long a call took, and whether it was answered."""

    seconds: float
    ok: bool


def pair_of(servers: Servers) -> Pair:
    return Pair(servers.roots["primary"], servers.roots["backup"])


async def heal(servers: Servers) -> None:
    for name in servers.roots:
        await servers.set(name, "ok", HEALTHY)


async def broken(servers: Servers, mode: str) -> None:
    await servers.set("primary", mode)


async def asked(ask: Ask) -> Call:
    began = time.perf_counter()
    try:
        await ask(fresh_prompt())
    except Exception:  # noqa: BLE001 - every library has its own; all that counts is that it came
        return Call(time.perf_counter() - began, ok=False)
    return Call(time.perf_counter() - began, ok=True)
