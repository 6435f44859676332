"""One process that answers: uvicorn over the application, from warming up to its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import select
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

import uvicorn

from aigateway.events import Hook
from aigateway.server.http.app import create_app
from aigateway.server.http.connections import protocol_for
from aigateway.server.process.configuration import Configuration, Read
from aigateway.server.process.draining import App, Ending, Traffic
from aigateway.server.process.exchange_files import Workers
from aigateway.server.process.reload import Reloader
from aigateway.server.process.sharing import share
from aigateway.server.service import Service
from aigateway.server.status.recent_events import Happenings
from aigateway.settings import ServerSettings
from aigateway.telemetry.prometheus import Prometheus

__all__ = ["BACKLOG", "Listener", "MakeApp", "Process"]

_log = logging.getLogger(__name__)

MakeApp = Callable[[Service], App]
"""Makes the application; only tests give another than `create_app`."""

BACKLOG = 2048
"""Connections that wait to be accepted; Linux allows 4096 unless told otherwise."""

_AT_A_TIME = 8
"""Connections accepted in one go. More, and one process would take what all should share."""

_TELLING_SECONDS = 1.0
"""For streams to say that they end."""

_FLUSHING_SECONDS = 0.5
"""For the last bytes to leave."""

_HANDSHAKE_SECONDS = 0.3
"""For connections that are half made when the port stops taking new ones."""

_ACCEPTING_SECONDS = 0.05
"""For connections that were accepted last to be counted."""

_IDLE_SECONDS = 10.0
"""Between two looks whether nothing is under way, so that memory can be given back."""

_QUIET_SECONDS = 2.0
"""A connection without a request for that long is closed; a client that is busy asks sooner."""

_BIND_TO_INTERFACE = 62
"""`SO_BINDTOIFINDEX` of Linux, which `socket` does not name. Needs no rights since Linux 5.7."""

_NO_INTERFACE = 2**31 - 1


class Process:
    """One process of the service, in the running event loop.

    Args:
        configuration: What it starts from.
        read: Reads it anew.
        listener: A bound socket; it listens when the gateway is warm. Closed at the end.
        workers: The other processes.
        make_app: Makes the application.
        hooks: Get the gateway's events, also of one that takes its place.
    """

    def __init__(
        self,
        configuration: Configuration,
        read: Read,
        listener: socket.socket,
        *,
        workers: Workers | None = None,
        make_app: MakeApp = create_app,
        hooks: Sequence[Hook] = (),
    ) -> None:
        happenings, metrics = Happenings(), Prometheus()
        hooks = (*hooks, happenings, metrics, *_traces(configuration.server))
        self.service = Service(
            configuration.make_gateway(hooks),
            configuration.server,
            workers=workers,
            happenings=happenings,
        )
        share(self.service, metrics)
        self.ending = Ending(self.service)
        self.reloader = Reloader(self.service, configuration, read, hooks)
        self._listener = listener
        self._make_app = make_app
        self._tasks: set[asyncio.Task[Any]] = set()
        self._warm = asyncio.Event()

    def reload(self) -> None:
        """Read the configuration anew, in the background."""
        self._spawn(self.reload_when_warm())

    async def reload_when_warm(self) -> None:
        """Read the configuration anew; not while what is there is made ready, which would fail."""
        await self._warm.wait()
        await self.reloader.reload()

    async def run(self, ready: Callable[[], object]) -> None:
        """Answer until told to end.

        Args:
            ready: Called when it listens.

        Raises:
            OSError: The port was taken just now.
            GatewayError: The gateway cannot be made ready.
        """
        self._spawn(self.service.workers.attend())
        self._spawn(self._give_memory_back())
        try:
            await self._unless_told(self.service.gateway.warmup())
            self._warm.set()
            if not self.ending.begun.is_set():
                await self._serve(ready)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.reloader.aclose()
            await self.service.gateway.aclose()

    async def _serve(self, ready: Callable[[], object]) -> None:
        server = _Server(self._make_app(self.service), self.service, self.ending, ready)
        serving = asyncio.create_task(server.serve([self._listener]))
        await self._unless_told(asyncio.shield(serving))
        await self.ending.notice()
        server.should_exit = True
        await serving

    async def _give_memory_back(self) -> None:
        """Return what a burst of requests took; glibc keeps it, however much is free."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        while trim is not None:
            await self.service.clock.sleep(_IDLE_SECONDS)
            if self.service.is_idle:
                await asyncio.to_thread(trim, 0)

    async def _unless_told(self, waiting: Any) -> None:
        """Wait for something, or for being told to end."""
        first = asyncio.ensure_future(waiting)
        told = asyncio.ensure_future(self.ending.begun.wait())
        try:
            done, _ = await asyncio.wait((first, told), return_when=asyncio.FIRST_COMPLETED)
            if first in done:
                await first
        finally:
            for task in (first, told):
                task.cancel()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _traces(settings: ServerSettings) -> tuple[Hook, ...]:
    if not settings.otel:
        return ()
    from aigateway.telemetry import OpenTelemetry  # noqa: PLC0415 - an extra of its own

    if OpenTelemetry.goes_nowhere():
        _log.warning(
            "otel.nowhere: otel is on, and this process has nothing to send spans to; start it with"
            " opentelemetry-instrument."
        )
    return (OpenTelemetry(),)


class Listener(socket.socket):
    """A socket whose queue is never made shorter: not while another worker begins to accept."""

    def listen(self, backlog: int = BACKLOG) -> None:
        """Listen, with room for `BACKLOG` connections or more: uvicorn asks for `_AT_A_TIME`."""
        super().listen(max(backlog, BACKLOG))


class _Server(uvicorn.Server):
    """uvicorn's, but for how it ends. Signals are not its affair."""

    def __init__(
        self, app: App, service: Service, ending: Ending, ready: Callable[[], object]
    ) -> None:
        self._traffic = Traffic(app)
        self._service = service
        self._ending = ending
        self._ready = ready
        config = uvicorn.Config(
            self._traffic,
            http=protocol_for(service),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            backlog=_AT_A_TIME,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to whoever runs this."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # uvloop has asked the kernel itself for `_AT_A_TIME`
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: see `draining`."""
        await self._stop_accepting(sockets or [])
        self._traffic.closing = True
        await self._ending.until(self._is_drained)
        for connection in self._connections():
            if not connection.transport.is_closing():
                connection.shutdown()  # where there is a request: after its answer
        self._service.stopping.set()
        self._traffic.cut(begun=False)
        if not self._ending.hurried:
            await self._ending.until(self._is_over, _TELLING_SECONDS)
        self._traffic.cut(begun=True)
        await self._ending.until(self._is_over, _FLUSHING_SECONDS)
        for connection in self._connections():
            connection.transport.abort()

    def _is_drained(self) -> bool:
        """Whether no request is under way, and none is to be expected."""
        return not self.server_state.tasks and all(
            connection.is_quiet(_QUIET_SECONDS) and not _has_news(connection)
            for connection in self._connections()
        )

    def _is_over(self) -> bool:
        return not self.server_state.connections and not self.server_state.tasks

    def _connections(self) -> list[Any]:
        return list(self.server_state.connections)

    async def _stop_accepting(self, sockets: Sequence[socket.socket]) -> None:
        """Take no new connections, accept those that were made, and close the port.

        To close it over connections that wait to be accepted would reset them. While only this one
        of several processes ends, the others accept what waits.
        """
        enough = self._service.clock.now() + _HANDSHAKE_SECONDS

        def is_empty() -> bool:
            if self._ending.port_closes:
                for listener in sockets:
                    _refuse_new(listener)
                if any(map(_is_readable, sockets)):
                    return False
            return self._service.clock.now() >= enough

        await self._ending.until(is_empty)
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        # What was accepted a moment ago becomes a connection in one of the loop's next turns.
        await self._service.clock.sleep(_ACCEPTING_SECONDS)


def _refuse_new(listener: socket.socket) -> None:
    """Have the kernel refuse who connects from now on, and keep who has connected.

    A listening socket that is bound to a network interface takes connections from that one only;
    here it is one that does not exist. Connections that wait to be accepted, or are half made, stay
    as they are. Where a system cannot do that, few may wait: those that connect between the last
    look and the closing of the port are reset.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # Once is enough: to bind it again takes rights, and other processes share the socket.
            if listener.getsockopt(socket.SOL_SOCKET, _BIND_TO_INTERFACE) != _NO_INTERFACE:
                listener.setsockopt(socket.SOL_SOCKET, _BIND_TO_INTERFACE, _NO_INTERFACE)
            return
    listener.listen(1)


def _has_news(connection: Any) -> bool:
    """Whether something has arrived that was not read yet."""
    return _is_readable(connection.transport.get_extra_info("socket"))


def _is_readable(sock: Any) -> bool:
    """Whether something has arrived there that was not taken yet."""
    number = -1 if sock is None else sock.fileno()
    if number < 0:
        return False
    poll = select.poll()  # `select` itself cannot look at numbers above 1023
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
