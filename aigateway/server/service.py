"""What the endpoints share: the gateway of the moment, the settings, who may ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.gateway import AsyncGateway
from aigateway.routing.provider import CircuitOrder
from aigateway.server.auth.keys import Access
from aigateway.server.http.errors import RefusalLog
from aigateway.server.http.sse import Turns
from aigateway.server.process.exchange_files import Workers
from aigateway.server.status.recent_events import Happenings
from aigateway.server.status.snapshot import Snapshot, snapshot
from aigateway.settings import ServerSettings

__all__ = ["Service"]


class Service:
    """One process's service.

    Args:
        gateway: Answers; closed by whoever made it.
        settings: Of the service.
        clock: Time.
        happenings: The hook that the gateway was made with; without it the status page shows
            figures and nothing that happened.

    Attributes:
        gateway: The one that answers what comes now; see `in_use`.
        settings: As given.
        access: Who may ask.
        refusal_log: What was refused.
        draining: It is told to stop: `/ready` says no, what is under way goes on.
        stopping: Its time is over, too: a stream that still goes on says so and ends.
        turns: Shares out the event loop's time among streams.
        workers: The other processes of the same service.
        clock: As given.
        happenings: As given.
        snapshot: What the status page shows; one of several processes puts the sum of all there.
        force_circuit: Gives an operator's order for a provider (its name, the order, who gives
            it); one of several processes passes it on to all. Raises `ConfigurationError` where
            there is no such provider.
        figures: The metrics as JSON; likewise.
        scrape: The metrics for a scraper: from its `Accept` the content type and the body of the
            answer; None where there are only those in JSON.
    """

    def __init__(
        self,
        gateway: AsyncGateway,
        settings: ServerSettings,
        clock: Clock = SYSTEM_CLOCK,
        *,
        happenings: Happenings | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.gateway = gateway
        self.settings = settings
        self.access = Access(settings, clock)
        self.refusal_log = RefusalLog(clock)
        self.draining = False
        self.stopping = asyncio.Event()
        self.turns = Turns(clock)
        self.workers = workers or Workers()
        self.clock = clock
        self.happenings = happenings or Happenings(clock)
        self.snapshot: Callable[[], Snapshot] = self.own_snapshot
        self.force_circuit: Callable[[str, CircuitOrder, str | None], Awaitable[None]] = (
            self.force_own_circuit
        )
        self.figures: Callable[[], dict[str, Any]] = self.own_figures
        self.scrape: Callable[[str], tuple[str, bytes]] | None = None
        self._uses: dict[AsyncGateway, int] = {}
        self._left = asyncio.Event()

    def own_snapshot(self) -> Snapshot:
        """How this process stands."""
        return snapshot(
            self.gateway.providers,
            self.gateway.get_metrics(),
            self.happenings.recent,
            self.happenings.latency(),
            self.clock.wall(),
        )

    def own_figures(self) -> dict[str, Any]:
        """The metrics of this process, what it has refused, and what each key has used."""
        keys = {
            usage.name: {
                "spent_usd": usage.spent_usd,
                "budget_usd": usage.budget_usd,
                "in_flight": usage.in_flight,
            }
            for usage in self.access.usage()
        }
        refused = dict(self.refusal_log.counts)
        return {**self.gateway.get_metrics(), "refused": refused, "keys": keys}

    async def force_own_circuit(self, name: str, order: CircuitOrder, by: str | None) -> None:
        """Take a circuit of this process in hand; see `AsyncGateway.force_circuit`."""
        self.gateway.force_circuit(name, order, by=by)

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._uses

    @contextlib.contextmanager
    def in_use(self) -> Iterator[AsyncGateway]:
        """The gateway for one request: it is not closed before the request is over."""
        gateway = self.gateway
        self._uses[gateway] = self._uses.get(gateway, 0) + 1
        try:
            yield gateway
        finally:
            self._uses[gateway] -= 1
            if not self._uses[gateway]:
                del self._uses[gateway]
                self._left.set()

    async def replace(self, gateway: AsyncGateway) -> AsyncGateway:
        """Let another gateway answer from now on. Returns the old one when nobody uses it."""
        old, self.gateway = self.gateway, gateway
        while self._uses.get(old):
            self._left.clear()
            await self._left.wait()
        return old
