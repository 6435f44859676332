"""One process that answers requests: uvicorn with the application, from warm-up to shutdown."""

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
from aigateway.server.http.app import service_app
from aigateway.server.http.connections import protocol_for
from aigateway.server.http.cycle import App
from aigateway.server.process.configuration import Configuration, Read
from aigateway.server.process.draining import Shutdown
from aigateway.server.process.reload import Reloader
from aigateway.server.process.shared_directory import SharedDirectory
from aigateway.server.process.state import KeptState
from aigateway.server.service import Service
from aigateway.server.status.recent_events import RecentEvents
from aigateway.settings import ServerSettings
from aigateway.telemetry.log import log_event
from aigateway.telemetry.prometheus import Prometheus

__all__ = ["BACKLOG", "ListeningSocket", "MakeApp", "Process", "return_freed_memory"]

MakeApp = Callable[[Service], App]
"""Makes the application; only tests use another than `service_app`."""

BACKLOG = 2048
"""Connections that may wait to be accepted; the default limit of Linux is 4096."""

_AT_A_TIME = 8
"""Connections accepted at once. With more, one process would take those of the others."""

_LAST_EVENT_SECONDS = 1.0
"""For streams to send their last event."""

_FLUSHING_SECONDS = 0.5
"""For the last bytes to leave."""

_HANDSHAKE_SECONDS = 0.3
"""For handshakes that are under way when the port stops taking new connections."""

_ACCEPTING_SECONDS = 0.05
"""For the last accepted connections to be counted."""

_IDLE_SECONDS = 10.0
"""Between two checks for a moment without requests, in which memory is returned."""

_QUIET_SECONDS = 2.0
"""A connection without a request for that long is closed; a busy client sends one sooner."""

_BIND_TO_INTERFACE = 62
"""`SO_BINDTOIFINDEX` of Linux, which `socket` does not name. Needs no rights since Linux 5.7."""

_NO_INTERFACE = 2**31 - 1


class Process:
    """One process of the service, in the running event loop.

    Args:
        configuration: What it starts from.
        read: Reads it again.
        listener: A bound socket; it listens when the gateway is warm. Closed at the end.
        shared: Reaches the other processes.
        state: What it keeps over a restart.
        make_app: Makes the application.
        hooks: Hooks of the gateway, and of one that replaces it.
    """

    def __init__(
        self,
        configuration: Configuration,
        read: Read,
        listener: socket.socket,
        *,
        shared: SharedDirectory | None = None,
        state: KeptState | None = None,
        make_app: MakeApp = service_app,
        hooks: Sequence[Hook] = (),
    ) -> None:
        recent_events, prometheus = RecentEvents(), Prometheus()
        hooks = (*hooks, recent_events, prometheus, *_traces(configuration.server))
        gateway = configuration.make_gateway(hooks if state is None else (*hooks, state.usage))
        if state is not None:
            gateway.use_fleet(state.fleet(configuration.gateway, configuration.server.workers))
        self.service = Service(
            gateway,
            configuration.server,
            recent_events=recent_events,
            prometheus=prometheus,
            shared=shared,
        )
        if configuration.server.state_directory is not None:
            self.service.state_is_kept = lambda: (
                state is not None and state.is_kept(configuration.server)
            )
        self.shutdown = Shutdown(self.service)
        self.reloader = Reloader(self.service, configuration, read, hooks, state)
        self._state = state
        self._listener = listener
        self._make_app = make_app
        self._tasks: set[asyncio.Task[Any]] = set()
        self._warm = asyncio.Event()

    def reload(self) -> None:
        """Reload the configuration, in the background."""
        self._spawn(self.reload_when_warm())

    async def reload_when_warm(self) -> None:
        """Reload the configuration, once the gateway is warm."""
        await self._warm.wait()
        await self.reloader.reload()

    async def run(self, ready: Callable[[], object]) -> None:
        """Answer until it is stopped.

        Args:
            ready: Called when it listens.

        Raises:
            OSError: Another process has just taken the port.
            GatewayError: The gateway cannot warm up.
        """
        self._spawn(self.service.shared.run())
        self._spawn(self._return_memory())
        try:
            await self._or_shutdown(self.service.gateway.warmup())
            self._warm.set()
            if self._state is not None:
                await self._state.begin(self.service)
            if not self.shutdown.begun.is_set():
                await self._serve(ready)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.reloader.aclose()
            await self.service.gateway.aclose()
            if self._state is not None:
                await self._state.aclose()

    async def _serve(self, ready: Callable[[], object]) -> None:
        server = _Server(self._make_app(self.service), self.service, self.shutdown, ready)
        serving = asyncio.create_task(server.serve([self._listener]))
        await self._or_shutdown(asyncio.shield(serving))
        await self.shutdown.notice()
        server.should_exit = True
        await serving

    async def _return_memory(self) -> None:
        """Return the memory of past bursts."""
        while True:
            await self.service.clock.sleep(_IDLE_SECONDS)
            if self.service.is_idle:
                await asyncio.to_thread(return_freed_memory)

    async def _or_shutdown(self, waiting: Any) -> None:
        """Wait for something, or for the shutdown to begin."""
        first = asyncio.ensure_future(waiting)
        begun = asyncio.ensure_future(self.shutdown.begun.wait())
        try:
            done, _ = await asyncio.wait((first, begun), return_when=asyncio.FIRST_COMPLETED)
            if first in done:
                await first
        finally:
            for task in (first, begun):
                task.cancel()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def return_freed_memory() -> None:
    """Return freed memory to the system: glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _traces(settings: ServerSettings) -> tuple[Hook, ...]:
    if not settings.otel:
        return ()
    from aigateway.telemetry import OpenTelemetry  # noqa: PLC0415 - an extra of its own

    if OpenTelemetry.goes_nowhere():
        log_event(
            logging.WARNING,
            "otel.nowhere",
            "otel is on, but no SDK is set up that sends spans; start the service with"
            " opentelemetry-instrument.",
        )
    return (OpenTelemetry(),)


class ListeningSocket(socket.socket):
    """A socket whose queue never gets shorter, also when another worker begins to accept."""

    def listen(self, backlog: int = BACKLOG) -> None:
        """Listen, with room for `BACKLOG` connections or more: uvicorn asks for `_AT_A_TIME`."""
        super().listen(max(backlog, BACKLOG))


class _Server(uvicorn.Server):
    """uvicorn's server with another shutdown, and without signal handlers."""

    def __init__(
        self, app: App, service: Service, shutdown: Shutdown, ready: Callable[[], object]
    ) -> None:
        self._protocol = protocol_for(service)
        self._service = service
        self._shutdown = shutdown
        self._ready = ready
        config = uvicorn.Config(
            app,
            http=self._protocol,
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
        """Leave signals to `serve`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # uvloop itself has set `_AT_A_TIME`
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down: see `draining`."""
        await self._stop_accepting(sockets or [])
        self._protocol.closing = True
        await self._shutdown.until(self._is_drained)
        for connection in self._connections():
            if not connection.transport.is_closing():
                connection.shutdown()  # one with a request closes after its answer
        self._service.stopping.set()
        self._cut(begun=False)
        if not self._shutdown.hurried:
            await self._shutdown.until(self._is_over, _LAST_EVENT_SECONDS)
        self._cut(begun=True)
        await self._shutdown.until(self._is_over, _FLUSHING_SECONDS)
        for connection in self._connections():
            connection.transport.abort()

    def _is_drained(self) -> bool:
        """Return whether no request is in flight, and none is expected."""
        return not self.server_state.tasks and all(
            connection.is_quiet(_QUIET_SECONDS) and not _has_news(connection)
            for connection in self._connections()
        )

    def _cut(self, *, begun: bool) -> None:
        """Stop requests whose answer has begun, or those whose answer has not."""
        for request in list(self._protocol.under_way):
            if request.started == begun and not request.cut:
                request.stop()

    def _is_over(self) -> bool:
        return not self.server_state.connections and not self.server_state.tasks

    def _connections(self) -> list[Any]:
        return list(self.server_state.connections)

    async def _stop_accepting(self, sockets: Sequence[socket.socket]) -> None:
        """Take no new connections, accept those that wait, and close the port.

        Closing the port resets connections that wait to be accepted. If only this one of several
        processes stops, the others accept them.
        """
        enough = self._service.clock.now() + _HANDSHAKE_SECONDS

        def is_empty() -> bool:
            if self._shutdown.port_closes:
                for listener in sockets:
                    _refuse_new(listener)
                if any(map(_is_readable, sockets)):
                    return False
            return self._service.clock.now() >= enough

        await self._shutdown.until(is_empty)
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        # An accepted socket becomes a connection in one of the next turns of the loop.
        await self._service.clock.sleep(_ACCEPTING_SECONDS)


def _refuse_new(listener: socket.socket) -> None:
    """Have the kernel refuse new connections, and keep those that wait to be accepted.

    A listening socket that is bound to a network interface takes connections from it only; here it
    is bound to one that does not exist. Where that is not possible the queue becomes short, and
    connections made between the last check and the closing of the port are reset.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # Once: binding it again needs privileges, and other processes share the socket.
            if listener.getsockopt(socket.SOL_SOCKET, _BIND_TO_INTERFACE) != _NO_INTERFACE:
                listener.setsockopt(socket.SOL_SOCKET, _BIND_TO_INTERFACE, _NO_INTERFACE)
            return
    listener.listen(1)


def _has_news(connection: Any) -> bool:
    """Return whether bytes have arrived that are not read yet."""
    return _is_readable(connection.transport.get_extra_info("socket"))


def _is_readable(sock: Any) -> bool:
    """Return whether a connection or bytes wait there."""
    number = -1 if sock is None else sock.fileno()
    if number < 0:
        return False
    poll = select.poll()  # `select` itself cannot look at numbers above 1023
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
