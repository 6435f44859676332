"""How a process ends: what is under way is finished, and nobody who asks meanwhile is dropped.

    told to stop     `/ready` says no; everything is answered, connections are kept
    notice is over   the port takes no new connections; those made before are accepted, and the
                     port is closed
    port is closed   each answer is the last of its connection (`Connection: close`); connections
                     without a request are closed when no request is under way any more
    time is over     streams are told (`Service.stopping`), requests not begun get 503
    a second later   what is left is cut

Told a second time, it goes to the end at once.

`Connection: close` does not come earlier: a client that is sent away connects again at once, and at
full load a port cannot answer all of them before it closes.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from aigateway.server.http.errors import stopping
from aigateway.server.service import Service

__all__ = ["Ending", "Traffic"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_CLOSE = (b"connection", b"close")
_LOOK_SECONDS = 0.02


class Ending:
    """Whether a process has been told to end, until when, and whether it is in a hurry.

    Args:
        service: What is to end.

    Attributes:
        begun: It has been told.
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
        """Whether it was told twice."""
        return self._hurry.is_set()

    def begin(self, *, port_closes: bool = True) -> None:
        """End in good order. Does nothing the second time, but for learning that the port closes.

        Args:
            port_closes: False when other processes go on.
        """
        self.port_closes |= port_closes
        if not self.begun.is_set():
            self._service.draining = True
            self._deadline = self._clock.now() + self._service.settings.drain_seconds
            self.begun.set()

    def hurry(self) -> None:
        """End at once."""
        self.begin()
        self._hurry.set()

    def again(self) -> None:
        """Told by somebody who sits in front of it: first in good order, then at once."""
        if self.begun.is_set():
            self.hurry()
        else:
            self.begin()

    async def notice(self) -> None:
        """Wait while load balancers find out."""
        seconds = min(self._service.settings.drain_notice_seconds, self._left())
        try:
            async with self._clock.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def until(self, over: Callable[[], bool], seconds: float = math.inf) -> None:
        """Wait until something is over, or the time for it all, or `seconds` if they are given."""
        enough = self._clock.now() + seconds
        while not over() and not (math.isinf(seconds) and (self.hurried or self._left() <= 0)):
            if self._clock.now() >= enough:
                return
            await self._clock.sleep(_LOOK_SECONDS)

    def _left(self) -> float:
        return max(0.0, self._deadline - self._clock.now())


class Traffic:
    """The requests under way: a layer of ASGI around the whole application.

    Args:
        app: The application.

    Attributes:
        closing: Each answer that begins from now on is the last of its connection.
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
        request = self._under_way[task] = _Request(send, self)
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
        """End requests: those whose answer has begun, or those that still wait for one."""
        for task, request in self._under_way.items():
            if request.begun == begun and not request.cut:
                request.cut = True
                task.cancel()


class _Request:
    """One request under way.

    Attributes:
        begun: Whether its answer has begun.
        cut: Whether it was ended by us.
    """

    __slots__ = ("_send", "_traffic", "begun", "cut")

    def __init__(self, send: Send, traffic: Traffic) -> None:
        self._send = send
        self._traffic = traffic
        self.begun = False
        self.cut = False

    async def send(self, message: Message) -> None:
        """Pass on what the application says."""
        if message["type"] == "http.response.start":
            self.begun = True
            if self._traffic.closing:
                message["headers"] = [*message.get("headers", ()), _CLOSE]
        await self._send(message)

    async def refuse(self) -> None:
        """Say that it will not be answered, if nothing has been said."""
        if self.begun:
            return
        refusal = stopping()
        body = json.dumps(refusal.body).encode()
        headers = {**refusal.headers, "content-type": "application/json"}
        headers["content-length"] = str(len(body))
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": 503, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})
