"""Shut a process down: requests in flight are finished, and no new one is dropped.

    stop begins      `/ready` fails; everything is answered, connections are kept
    notice is over   the port takes no new connections; earlier ones are accepted, then it closes
    port is closed   each answer is the last on its connection (`Connection: close`); idle
                     connections are closed once no request is in flight
    time is over     streams end with an error (`Service.stopping`), unanswered requests get 503
    a second later   the rest is cut

A second stop goes to the end at once.

`Connection: close` does not come earlier: a client that is sent away connects again at once, and
under full load the port could not answer all of them before it closes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from aigateway.server.service import Service

__all__ = ["Shutdown"]


_LOOK_SECONDS = 0.02


class Shutdown:
    """Whether a process is stopping, until when, and whether it hurries.

    Args:
        service: It stops.

    Attributes:
        begun: It is stopping.
        port_closes: No other process goes on accepting at the same port.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._clock = service.clock
        self._deadline = math.inf
        self._hurry = asyncio.Event()
        self.begun = asyncio.Event()
        self.port_closes = False

    @property
    def hurried(self) -> bool:
        """Whether it stops without waiting."""
        return self._hurry.is_set()

    def begin(self, *, port_closes: bool = True) -> None:
        """Begin to drain. A second call only notes that the port closes.

        Args:
            port_closes: False if other processes go on accepting.
        """
        self.port_closes |= port_closes
        if not self.begun.is_set():
            self._service.draining = True
            self._deadline = self._clock.now() + self._service.settings.drain_seconds
            self.begun.set()

    def hurry(self) -> None:
        """Stop without waiting."""
        self.begin()
        self._hurry.set()

    def again(self) -> None:
        """Drain; the second time, hurry. For Ctrl-C and SIGTERM of a single process."""
        if self.begun.is_set():
            self.hurry()
        else:
            self.begin()

    async def notice(self) -> None:
        """Wait while load balancers notice."""
        seconds = min(self._service.settings.drain_notice_seconds, self._left())
        try:
            async with self._clock.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def until(self, over: Callable[[], bool], seconds: float = math.inf) -> None:
        """Wait until something is over, for `seconds` or the rest of the time to drain."""
        enough = self._clock.now() + seconds
        while not over() and not (math.isinf(seconds) and (self.hurried or self._left() <= 0)):
            if self._clock.now() >= enough:
                return
            await self._clock.sleep(_LOOK_SECONDS)

    def _left(self) -> float:
        return max(0.0, self._deadline - self._clock.now())
