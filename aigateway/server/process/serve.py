"""`aigateway serve`, with one process or several."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from uvicorn import Config

from aigateway.errors import ConfigurationError
from aigateway.server.http.app import service_app
from aigateway.server.process.configuration import (
    Configuration,
    Read,
    raise_descriptor_limit,
    read_configuration,
)
from aigateway.server.process.reload import FileWatch, watch
from aigateway.server.process.shared_directory import SharedDirectory
from aigateway.server.process.state import KeptState, prepare_state
from aigateway.server.process.supervisor import DRAIN, READY, RELOAD, STOP, Supervisor
from aigateway.server.process.worker import ListeningSocket, MakeApp, Process, return_freed_memory
from aigateway.server.service import Service
from aigateway.settings import LLMConfig, settings_file
from aigateway.settings.server import IN_MEMORY
from aigateway.telemetry.log import log_event
from aigateway.version import __version__
from aigateway.wires.direct_lane import keep_tried_lanes

__all__ = ["ServeOptions", "serve"]

_SHARED_DIRECTORY = "aigateway-workers-"
"""The names of shared directories begin with this."""

_THRESHOLDS = (10_000, 10, 10)
"""Of the garbage collector: Python's 700 new objects are those of a few requests, and to look
through the ones in flight as often takes an eighth of the CPU. 10,000 are 2 MB."""

_REFUSED = {
    errno.EADDRINUSE: "choose another with --port, or stop the process that uses it",
    errno.EACCES: "choose one from 1024 on with --port; those below need privileges",
    errno.EADDRNOTAVAIL: "this machine has no such address: choose another with --host",
}
"""What to do where an address cannot be had."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of the command line.

    Attributes:
        overrides: Fields of `ServerSettings`.
        simulate: Use four simulated vendors, in this process.
        announce: Called with the line that says where the service listens.
        make_app: Makes the application; only tests use another.
    """

    overrides: Mapping[str, Any]
    simulate: bool = False
    announce: Callable[[str], object] = print
    make_app: MakeApp = service_app


def serve(options: ServeOptions) -> int:
    """Serve until it is stopped.

    Returns:
        The exit code: 0 after a stop.

    Raises:
        ConfigurationError: Something cannot work, or the port is taken; nothing listens.
        GatewayError: The gateway cannot warm up.
    """
    with contextlib.ExitStack() as stack:
        providers = stack.enter_context(_simulated()) if options.simulate else None

        def read() -> Configuration:
            found = read_configuration(options.overrides, providers)
            if options.simulate and found.server.state_dir is None:  # it costs nothing
                server = found.server.model_copy(update={"state_dir": IN_MEMORY})
                return replace(found, server=server)
            return found

        file = FileWatch(settings_file())  # first, so that it sees changes during the start
        configuration = read()
        settings = configuration.server
        if options.simulate and settings.workers > 1:
            raise ConfigurationError(
                "--simulate runs the vendors in the one process that serves; use --workers 1, or"
                " run `aigateway simulate` beside it."
            )
        raise_descriptor_limit(configuration)
        if configuration.gateway.freeze_gc:
            stack.callback(gc.set_threshold, *gc.get_threshold())
            gc.set_threshold(*_THRESHOLDS)
        listener = stack.enter_context(_bound(settings.host, settings.port))
        where = _address(settings.host, listener)
        announce = _announcement(options, configuration, where)
        start = _alone if settings.workers == 1 else _several
        return start(configuration, read, listener, options.make_app, announce, file=file)


# ── one process ──────────────────────────────────────────────────────────────────────────────────


def _alone(
    configuration: Configuration,
    read: Read,
    listener: socket.socket,
    make_app: MakeApp,
    announce: Callable[[], object],
    *,
    file: FileWatch,
) -> int:
    path, shared = prepare_state(configuration.server, configuration.providers, None)

    async def live() -> None:
        state = None if path is None else KeptState(path)
        process = Process(
            configuration, read, listener, shared=shared, state=state, make_app=make_app
        )
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, process.shutdown.again)
        loop.add_signal_handler(signal.SIGHUP, process.reload)
        watching = asyncio.create_task(watch(file, process.reload_when_warm))

        def ready() -> None:
            sys.path_importer_cache.clear()  # names of all files beside each module: 1 MB
            if configuration.gateway.freeze_gc:
                gc.unfreeze()
                gc.collect()  # what is frozen is not collected
                gc.freeze()  # also what was loaded after litellm
            return_freed_memory()
            announce()

        try:
            await process.run(ready)
        finally:
            watching.cancel()

    with _port_errors_explained(configuration.server.port):
        _run(live())
    return 0


# ── several ──────────────────────────────────────────────────────────────────────────────────────


def _several(
    configuration: Configuration,
    read: Read,
    listener: socket.socket,
    make_app: MakeApp,
    announce: Callable[[], object],
    *,
    file: FileWatch,
) -> int:
    _run(_load(configuration))

    path: Path | None = None

    def run(start: Configuration, pipe: socket.socket, shared: SharedDirectory) -> int:
        async def live() -> None:
            state = None if path is None else KeptState(path)
            process = Process(start, read, listener, shared=shared, state=state, make_app=make_app)
            _follow_orders(process, pipe)
            await process.run(lambda: pipe.send(READY))

        with _port_errors_explained(start.server.port):
            _run(live())
        return 0

    with _shared_directory() as directory:
        path, _ = prepare_state(configuration.server, configuration.providers, directory)
        supervisor = Supervisor(
            configuration,
            read,
            run,
            listener=listener,
            directory=directory,
            file=file,
            ready=announce,
        )
        return supervisor.run()


async def _load(configuration: Configuration) -> None:
    """Load and build everything that workers then share. The parent itself is in no fleet."""
    alone = configuration.gateway.model_copy(update={"redis_url": None, "cache_url": None})
    async with replace(configuration, gateway=alone).make_gateway() as gateway:
        with keep_tried_lanes():
            await gateway.warmup()
        # Its application is dropped, but the schemas that it needed remain: 10 MB.
        service_app(Service(gateway, configuration.server))
    return_freed_memory()


def _follow_orders(process: Process, pipe: socket.socket) -> None:
    """Follow orders of the parent, and signals to this process."""
    loop = asyncio.get_running_loop()
    pipe.setblocking(False)
    actions = {
        DRAIN[0]: process.shutdown.begin,
        STOP[0]: process.shutdown.hurry,
        RELOAD[0]: process.reload,
    }

    def arrived() -> None:
        try:
            orders = pipe.recv(64)
        except BlockingIOError:
            return
        except OSError:
            orders = b""
        if not orders:  # the parent has died
            loop.remove_reader(pipe)
            log_event(
                logging.ERROR,
                "worker.orphaned",
                "The parent process has died: pid {pid} ends what is under way and exits. Restart"
                " the service.",
                pid=os.getpid(),
            )
            process.shutdown.begin()
        for letter in orders:
            actions[letter]()

    loop.add_reader(pipe, arrived)
    # systemd sends SIGTERM to all at once, so a second one does not mean to hurry. The parent
    # says if all workers stop.
    loop.add_signal_handler(signal.SIGTERM, partial(process.shutdown.begin, port_closes=False))
    loop.add_signal_handler(signal.SIGHUP, process.reload)


# ── common parts ─────────────────────────────────────────────────────────────────────────────────


def _run(main: Any) -> None:
    """Run on the fastest event loop that is installed."""
    with asyncio.Runner(
        loop_factory=Config(app=main, log_config=None).get_loop_factory()
    ) as runner:
        runner.run(main)


@contextlib.contextmanager
def _simulated() -> Iterator[tuple[LLMConfig, ...]]:
    from aigateway.simulator import Simulator  # noqa: PLC0415 - 2 MB that others do not need

    with Simulator.in_thread() as simulator:
        yield tuple(
            vendor.config(priority=-place) for place, vendor in enumerate(simulator.vendors)
        )


@contextlib.contextmanager
def _shared_directory() -> Iterator[Path]:
    """Make a directory that only this user can enter, and remove it at the end.

    The processes hold a lock on it: a directory without a lock was left by killed processes.
    """
    try:
        directory, lock = _locked_directory()
    except OSError as error:
        raise ConfigurationError(
            f"several workers need a shared directory, and none can be made"
            f" ({error.strerror}); set TMPDIR to one that can be written, or use --workers 1"
        ) from None
    try:
        _remove_left_behind()
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _locked_directory() -> tuple[Path, int]:
    """Make a directory and lock it. Forked processes hold the lock, too."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_SHARED_DIRECTORY))  # 0700
        with contextlib.suppress(FileNotFoundError):  # another start removed it before the lock
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # without locks nothing is removed either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if directory.exists():
                return directory, lock
            os.close(lock)


def _remove_left_behind() -> None:
    """Remove directories of this user whose processes have all exited."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_SHARED_DIRECTORY}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # in use, or not ours
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, lock)
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket to that address. It listens later, when everything is ready."""
    with _port_errors_explained(port):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise ConfigurationError(
                f"host {host!r} is not an address of this machine, nor a name of one."
            ) from None
        family, kind, protocol, _, address = min(found)  # IPv4 first
        listener = ListeningSocket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    with listener:
        yield listener


@contextlib.contextmanager
def _port_errors_explained(port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        if number not in _REFUSED:
            raise
        raise ConfigurationError(
            f"cannot listen at port {port} ({os.strerror(number)}); {_REFUSED[number]}."
        ) from None


def _address(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announcement(
    options: ServeOptions, configuration: Configuration, where: str
) -> Callable[[], object]:
    workers = configuration.server.workers
    names = ", ".join(config.name for config in configuration.providers)
    processes = "" if workers == 1 else f" with {workers} workers"
    simulated = " (simulated)" if options.simulate else ""
    line = f"aigateway {__version__} listens at {where}{processes}, asks {names}{simulated}"
    return lambda: options.announce(line)
