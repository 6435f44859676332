"""All that one process shares with others, and its life."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigateway.clock import Clock
from aigateway.events import Event
from aigateway.figures import FleetMetrics
from aigateway.fleet.client import FleetClient
from aigateway.fleet.leases import Leases
from aigateway.fleet.ledger import Ledger
from aigateway.fleet.redis_ledger import RedisLedger
from aigateway.fleet.votes import CircuitBus, RedisCircuitBus, Votes
from aigateway.settings import GatewaySettings

if TYPE_CHECKING:
    from aigateway.cache.second_level import SecondLevel
    from aigateway.fleet.disk_cache import DiskCache
    from aigateway.fleet.shared_cache import SharedCache

__all__ = ["Fleet"]


_log = logging.getLogger(__name__)


def _report_crash(task: asyncio.Task[None]) -> None:
    """Log that a part has ended by itself, which is a defect of ours."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.error("A part of the fleet crashed; it shares no more.", exc_info=error)


class Fleet:
    """What this process shares. Each part is None where nothing shares it.

    Several gateways of a process may have one fleet, one after the other or at once (a reload);
    each calls `join` and `leave`.

    Args:
        settings: `redis_url`, `fleet_name`, and the cache's.
        clock: Time.
        ledger: Shares limits where there is no Redis: that of the workers of one service.
        bus: Shares circuits in place of Redis, for tests.
        workers: Processes of this service, which share the limits before the ledger has answered.

    Attributes:
        client: The connection to Redis.
        ledger: Shares limits.
        leases: This process's part of the limits.
        votes: Shares circuits and cooldowns.

    Raises:
        ConfigurationError: Options of `redis_url` cannot work, or there can be no such file.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        clock: Clock,
        *,
        ledger: Ledger | None = None,
        bus: CircuitBus | None = None,
        workers: int = 1,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.ledger = ledger
        self._users = 0
        self._work: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._emit: Callable[[Event], object] = lambda _: None
        self.client: FleetClient | None = None
        if settings.redis_url is not None:
            self.client = FleetClient(settings, clock, self._report)
            self._work.append(self.client.listen)
            self.ledger = RedisLedger(self.client)
            if bus is None:
                bus = RedisCircuitBus(self.client)
        self.votes: Votes | None = None
        if bus is not None:
            self.votes = Votes(bus, clock)
            self._work.append(self.votes.run)
        self.leases: Leases | None = None
        if self.ledger is not None:
            member, client = secrets.token_hex(8), self.client
            # Another one after a fork.
            name = (lambda: member) if client is None else (lambda: client.member)
            self.leases = Leases(self.ledger, clock, name, workers)
            self._work.append(self.leases.run)
            if self.client is not None:
                self.client.on_return(self.leases.ask_now)
        self._disk: DiskCache | None = None
        self._shared_cache: SharedCache | None = None
        if settings.cache_enabled and settings.cache_url != "memory://":
            self._add_cache()

    @property
    def members(self) -> int:
        """Processes of the fleet at the latest exchange, this one included."""
        return 1 if self.leases is None else self.leases.members

    def _add_cache(self) -> None:
        settings = self._settings
        if settings.cache_url is not None:
            from aigateway.fleet.disk_cache import DiskCache  # noqa: PLC0415 - where it is used

            path = Path(settings.cache_url.removeprefix("sqlite:///")).expanduser().absolute()
            self._disk = DiskCache(path, settings.cache_max_bytes, self._clock)
        elif self.client is not None:
            from aigateway.fleet.shared_cache import SharedCache  # noqa: PLC0415 - likewise

            self._shared_cache = SharedCache(self.client, self._clock)
            self._work += [self._shared_cache.write_all, self._shared_cache.keep]

    @property
    def answers(self) -> SecondLevel | None:
        """Where answers are beside memory, if anywhere."""
        return self._disk or self._shared_cache

    def same_as(self, settings: GatewaySettings) -> bool:
        """Return whether a gateway with these settings would be in the same fleet."""
        names = ("redis_url", "fleet_name", "cache_enabled", "cache_url", "cache_max_bytes")
        return all(getattr(settings, n) == getattr(self._settings, n) for n in names)

    def _report(self, event: Event) -> None:
        self._emit(event)

    def metrics(self) -> FleetMetrics | None:
        """Return its part of the gateway's metrics; None without Redis."""
        if self.client is None:
            return None
        return {"available": self.client.available, "members": self.members}

    def join(self, emit: Callable[[Event], object]) -> None:
        """Begin to share, on the running event loop, if it is the first gateway.

        Args:
            emit: Gets the events of the fleet, until another gateway joins.
        """
        self._emit = emit
        self._users += 1
        if self._users == 1 and self._work:
            self._loop = asyncio.get_running_loop()
            if self.leases is not None:
                self.leases.join()
            self._tasks = {asyncio.create_task(work()) for work in self._work}
            for task in self._tasks:
                task.add_done_callback(_report_crash)

    async def leave(self) -> None:
        """End it, if it is the last gateway: what was spent is settled, holds are given back."""
        self._users -= 1
        if self._users:
            return
        if self._disk is not None:
            await self._disk.aclose()
        if self._loop is not asyncio.get_running_loop():
            self.abandon()
            return
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.client is not None:
            await self.client.aclose()

    def abandon(self) -> None:
        """Forget tasks and connections: their event loop is gone."""
        self._users = 0
        if self.leases is not None:
            self.leases.abandon()
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - nothing is wrong with it
        self._tasks = set()
        if self.client is not None:
            self.client.abandon()
        if self.votes is not None:
            self.votes.abandon()
        if self._shared_cache is not None:
            self._shared_cache.abandon()
