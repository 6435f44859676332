"""What the endpoints share: the gateway of the moment, the settings, who may ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.gateway import AsyncGateway
from aigateway.server.access import Access
from aigateway.server.workers import Workers
from aigateway.settings import ServerSettings

__all__ = ["Service"]


class Service:
    """One process's service.

    Args:
        gateway: Answers; closed by whoever made it.
        settings: Of the service.
        clock: Time.

    Attributes:
        gateway: The one that answers what comes now; see `in_use`.
        settings: As given.
        access: Who may ask.
        draining: It is told to stop: `/ready` says no, what is under way goes on.
        stopping: Its time is over, too: a stream that still goes on says so and ends.
        workers: The other processes of the same service.
        clock: As given.
    """

    def __init__(
        self,
        gateway: AsyncGateway,
        settings: ServerSettings,
        clock: Clock = SYSTEM_CLOCK,
        workers: Workers | None = None,
    ) -> None:
        self.gateway = gateway
        self.settings = settings
        self.access = Access(settings)
        self.draining = False
        self.stopping = asyncio.Event()
        self.workers = workers or Workers()
        self.clock = clock
        self._uses: dict[AsyncGateway, int] = {}
        self._left = asyncio.Event()

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
