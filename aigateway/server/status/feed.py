"""The status page's feed: server-sent events, each of them the whole picture."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import orjson

from aigateway.clock import Clock
from aigateway.server.auth.keys import Caller
from aigateway.server.service import Service

__all__ = ["feed"]

EVERY = 1.0
"""Seconds between two snapshots when nothing happens."""

_SOONEST = 0.2
"""Seconds between two snapshots however much happens."""


async def feed(service: Service, caller: Caller) -> AsyncIterator[bytes]:
    """A snapshot at once, then every second, and when something happens.

    Ends when the service is told to stop, so that nobody who only watches holds that up, and when
    others may watch than before: who may still watch comes again.

    Args:
        service: What is watched.
        caller: Who watches; it is told whether it may do more.
    """
    access = service.access
    with service.happenings.watch() as happened:
        while not service.draining and service.access is access:
            happened.clear()
            told = {"admin": caller.is_admin, "snapshot": service.snapshot()}
            yield b"data: " + orjson.dumps(told) + b"\n\n"
            await _news(service.clock, happened)


async def _news(clock: Clock, happened: asyncio.Event) -> None:
    await clock.sleep(_SOONEST)
    with contextlib.suppress(TimeoutError):
        async with clock.timeout(EVERY - _SOONEST):
            await happened.wait()
