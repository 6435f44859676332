"""A service that runs: real HTTP on loopback, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from aigateway.server.http.app import service_app
from aigateway.server.http.connections import protocol_for
from aigateway.server.service import Service


class _Server(uvicorn.Server):
    """It ends at once; uvicorn's own takes two tenths of a second to see that it is to end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told_to_end = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.told_to_end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while state.connections or state.tasks:  # noqa: ASYNC110 - uvicorn tells nobody
                    await asyncio.sleep(0.001)
        for task in state.tasks:
            task.cancel()


def _known(service: Service | None) -> Service:
    assert service is not None
    return service


@contextlib.asynccontextmanager
async def running(
    service: Service | None,
    app: ASGIApp | None = None,
    *,
    port: int = 0,
    http: Literal["h11", "httptools"] = "h11",
    **bounds: float,
) -> AsyncIterator[str]:
    """The URL of a service, or of another application in its place; port 0 takes a free one.

    Without a service the connections are uvicorn's own, by `http`, as in applications of others.

    Bounds are those of `protocol_for`.
    """
    config = uvicorn.Config(
        app or service_app(_known(service)),
        host="127.0.0.1",
        port=port,
        http=http if service is None else protocol_for(service, **bounds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
        await asyncio.sleep(0.001)
    bound = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{bound}"
    finally:
        server.told_to_end.set()
        await serving
