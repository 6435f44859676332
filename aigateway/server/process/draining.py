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
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from aigateway.server.http.errors import stopping, written_refusal
from aigateway.server.service import Service

__all__ = ["Shutdown", "Traffic"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_CLOSE = (b"connection", b"close")
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


class Traffic:
    """The requests in flight: a layer of ASGI around the whole application.

    Args:
        app: The application.

    Attributes:
        closing: Each answer that begins from now on is the last on its connection.
    """

    def __init__(self, app: App) -> None:
        self.closing = False
        self._app = app
        self._under_way: dict[asyncio.Task[Any], _Request] = {}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        request = self._under_way[task] = _Request(scope, send, self)
        try:
            await self._app(scope, receive, request.send)
        except asyncio.CancelledError:
            if not request.cut:
                raise
            task.uncancel()
            await request.refuse()
        finally:
            del self._under_way[task]

    def cut(self, *, begun: bool) -> None:
        """Cancel requests whose answer has begun, or those whose answer has not."""
        for task, request in self._under_way.items():
            if request.begun == begun and not request.cut:
                request.cut = True
                task.cancel()


class _Request:
    """One request in flight.

    Attributes:
        begun: Its answer has begun.
        cut: It was cancelled here.
    """

    __slots__ = ("_scope", "_send", "_traffic", "begun", "cut")

    def __init__(self, scope: MutableMapping[str, Any], send: Send, traffic: Traffic) -> None:
        self._scope = scope
        self._send = send
        self._traffic = traffic
        self.begun = False
        self.cut = False

    async def send(self, message: Message) -> None:
        """Pass on a message of the application."""
        if message["type"] == "http.response.start":
            self.begun = True
            if self._traffic.closing:
                message["headers"] = [*message.get("headers", ()), _CLOSE]
        await self._send(message)

    async def refuse(self) -> None:
        """Answer that the service stops, unless the answer has begun."""
        if self.begun:
            return
        refusal = stopping()
        status, written = written_refusal(self._scope, refusal)
        body = json.dumps(written).encode()
        headers = {**refusal.headers, "content-type": "application/json"}
        headers["content-length"] = str(len(body))
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})
