"""What one process of the service keeps over a restart, and when it is written.

Usage is written four times a second, an operator's order at once, what was learned every five
seconds. The accounts of limits are written by the exchanges of the fleet (`aigateway/fleet/`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.fleet.fleet import Fleet
from aigateway.fleet.ledger import FleetUnavailableError
from aigateway.fleet.store import (
    STATE_FILE,
    SqliteLedger,
    Store,
    UsageRecorder,
    begin_store,
    read_learned,
    write_learned,
)
from aigateway.server.process.shared_directory import SharedDirectory
from aigateway.server.service import Service
from aigateway.settings import GatewaySettings, LLMConfig, ServerSettings
from aigateway.telemetry.log import log_event

__all__ = ["KeptState", "prepare_state"]

_INTERVAL = 0.25
"""Seconds between two writes of usage. A killed process loses what it counted since the last."""

_LEARNED_EVERY = 20
"""Intervals between two writes of what was learned."""

_LATENCY_SECONDS = 86_400.0
"""A latency that was learned longer ago says nothing about today."""

_ORDER_SECONDS = 1.0
"""An operator waits so long for the disk."""

_RESTORE_SECONDS = 2.0
"""A disk that takes longer does not hold up the start."""


def prepare_state(
    settings: ServerSettings, providers: Iterable[LLMConfig], directory: Path | None
) -> tuple[Path | None, SharedDirectory]:
    """Prepare the file, before any worker starts, and repeat operators' orders of the last run.

    Args:
        settings: Say where it is.
        providers: Those whose circuits may be forced.
        directory: The private directory of several workers. It has the file if nothing outlives
            this run, so that they still share their accounts.

    Returns:
        The file, None if this process is alone and keeps nothing; and a shared directory with the
        orders.
    """
    shared = SharedDirectory(directory)
    place = settings.state_directory
    if place is not None:
        file = place.absolute() / STATE_FILE
        orders = begin_store(file)
        if orders is not None:
            for provider, content in orders.items():
                shared.order(provider, content)
            _log_forced(orders, {config.name for config in providers})
            return file, shared
    if directory is None or begin_store(directory / "state" / STATE_FILE) is None:
        return None, shared
    return directory / "state" / STATE_FILE, shared


def _log_forced(orders: Mapping[str, bytes], names: set[str]) -> None:
    forced = [
        f"{provider} {orjson.loads(content)['order']}"
        for provider, content in orders.items()
        if provider in names
    ]
    if forced:
        log_event(
            logging.WARNING,
            "state.circuits_forced",
            "Circuits are still forced by an operator's order from before the restart: {circuits}."
            ' POST /admin/providers/NAME/circuit with {{"state": "auto"}} ends an order.',
            circuits=", ".join(forced),
        )


class KeptState:
    """What this process keeps. Made in the process itself, after a fork.

    Args:
        path: The file, prepared.
        clock: Time.

    Attributes:
        usage: A hook of the gateway, which counts who uses what.
    """

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = path
        self._store = Store(path, clock)
        self._clock = clock
        self._ledger = SqliteLedger(self._store)
        self.usage = UsageRecorder(self._store)
        self._orders: dict[str, bytes | None] = {}  # not written yet
        self._given: dict[str, bytes | None] = {}  # the latest of each
        self._written: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def is_kept(self, settings: ServerSettings) -> bool:
        """Return whether what is written now outlives a restart, as these settings want."""
        place = settings.state_directory
        return place is not None and self._store.available and self._path.parent == place.absolute()

    def fleet(self, settings: GatewaySettings, workers: int) -> Fleet:
        """Return what a gateway with these settings shares; with Redis, that has the limits.

        Args:
            settings: The gateway's.
            workers: How many processes the service has.
        """
        ledger = self._ledger if settings.redis_url is None else None
        return Fleet(settings, self._clock, ledger=ledger, workers=workers)

    async def begin(self, service: Service) -> None:
        """Restore what was learned, and begin to write."""
        service.keep_order = self._keep_order
        with contextlib.suppress(FleetUnavailableError, TimeoutError, ValueError):  # only a hint
            async with self._clock.timeout(_RESTORE_SECONDS):
                self._restore(service, await self._store.run(read_learned))
        self._task = asyncio.create_task(self._run(service))

    async def aclose(self) -> None:
        """Write the rest, and close the file. The gateway is closed already."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=_RESTORE_SECONDS)
            self._task.cancel()  # a disk that does not answer
        await self._store.aclose()

    async def _keep_order(self, provider: str, content: bytes | None) -> None:
        """Write an order before it is confirmed, or later if the disk does not answer."""
        self._given[provider] = self._orders[provider] = content
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(_ORDER_SECONDS):
                await self._write({})

    async def _run(self, service: Service) -> None:
        for number in itertools.count(1):
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(_INTERVAL):
                    await self._wake.wait()
            self._wake.clear()
            last = self._closing
            await self.usage.flush()
            learned = _learned(service) if last or number % _LEARNED_EVERY == 0 else {}
            await self._write(learned)
            if last:
                return

    async def _write(self, learned: Mapping[str, str]) -> None:
        orders, self._orders = self._orders, {}
        changed = {n: value for n, value in learned.items() if self._written.get(n) != value}
        if not orders and not changed:
            return
        try:
            await self._store.run(partial(write_learned, orders, changed, self._clock.wall()))
        except (FleetUnavailableError, asyncio.CancelledError) as error:
            self._orders |= {provider: self._given[provider] for provider in orders}
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._written.update(changed)

    def _restore(self, service: Service, found: Mapping[str, tuple[str, float]]) -> None:
        recent = self._clock.wall() - _LATENCY_SECONDS
        prices: dict[tuple[str, str], float] = {}
        latencies: dict[tuple[str, ...], tuple[float, float]] = {}
        for name, (value, at) in found.items():
            kind, *place = orjson.loads(name)
            if kind == "price":
                key, model = place
                prices[key, model] = orjson.loads(value)
            elif at >= recent:
                usual, p95 = orjson.loads(value)
                latencies[tuple(place)] = (usual, p95)
        service.access.restore_prices(prices)
        service.gateway.restore_latencies(latencies)
        self._written = _learned(service)


def _learned(service: Service) -> dict[str, str]:
    """Return what was learned, as JSON by name, which is JSON too."""
    found: dict[tuple[Any, ...], Any] = {}
    for place, usual in service.access.usual_prices().items():
        found["price", *place] = float(f"{usual:.4g}")
    for name, times in service.gateway.usual_latencies().items():
        found["latency", *name] = [float(f"{seconds:.4g}") for seconds in times]
    return {
        orjson.dumps(place).decode(): orjson.dumps(value).decode() for place, value in found.items()
    }
