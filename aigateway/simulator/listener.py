"""A loopback server that can be closed and reopened at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

__all__ = ["MAX_BODY_BYTES", "LoopbackServer"]

MAX_BODY_BYTES = 64 * 1024 * 1024
_HOST = "127.0.0.1"
_BACKLOG = 1024
_CLOSING_TURNS = 50
_CLOSING_SECONDS = 1.0


class LoopbackServer:
    """An HTTP server on 127.0.0.1.

    Opening and refusing are immediate and synchronous: when the call returns, the kernel already
    accepts (or refuses) connections.
    """

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], port: int = 0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._http = web.Server(
            handler,
            request_factory=self._request,
            handler_cancellation=True,  # a client that left must not keep a hanging handler alive
            access_log=None,
        )
        self._socket: socket.socket | None = None
        self._held: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = port

    @property
    def open_connections(self) -> int:
        """Sockets open now, idle ones included."""
        return sum(handler.transport is not None for handler in self._http.connections)

    async def start(self) -> None:
        """Open the port, and return when it is served."""
        self.accept()
        if self._serving:
            await self._serving

    def accept(self) -> None:
        """Listen, on the same port as before if there was one."""
        if self._socket is not None:
            return
        self._release()
        sock = _bound(self.port)
        sock.listen(_BACKLOG)
        self._socket = sock
        self.port = sock.getsockname()[1]
        self._serving = self._loop.create_task(self._serve(sock, self._serving))

    def refuse(self) -> None:
        """Drop every connection and refuse new ones. The port stays reserved."""
        if self._socket is None:
            return
        sock, self._socket = self._socket, None
        with contextlib.suppress(OSError):
            # Stops listening at once; closing alone may wait for the loop's next turn.
            sock.shutdown(socket.SHUT_RDWR)
        if self._server is not None:
            self._server.close()
            self._server = None
        # else `_serve` is not done with this socket yet, and closes it
        for handler in self._http.connections:
            if handler.transport is not None:
                handler.transport.abort()
        with contextlib.suppress(OSError):
            self._held = _bound(self.port)  # bound but not listening: connections are refused

    async def close(self) -> None:
        """Close the port and end every request, even hanging ones."""
        self.refuse()
        self._release()
        if self._serving:
            await self._serving
        for _ in range(_CLOSING_TURNS):
            if not self._http.connections:
                break
            await asyncio.sleep(0)  # aborted connections end their handlers in the next turns
        await self._http.shutdown(_CLOSING_SECONDS)

    async def _serve(self, sock: socket.socket, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        if sock is not self._socket:
            sock.close()  # refused again meanwhile
            return
        server = await self._loop.create_server(self._http, sock=sock, backlog=_BACKLOG)
        if sock is self._socket:
            self._server = server
        else:
            server.close()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: object,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,  # type: ignore[arg-type]
            task,
            self._loop,
            client_max_size=MAX_BODY_BYTES,
        )


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((_HOST, port))
    except OSError:
        sock.close()
        raise
    return sock
