"""`aigateway serve`: one process or several, from the configuration to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from uvicorn import Config

from aigateway.errors import ConfigurationError
from aigateway.server.http.app import create_app
from aigateway.server.process.configuration import Configuration, Read, read_configuration
from aigateway.server.process.descriptors import raise_limit
from aigateway.server.process.exchange_files import Workers
from aigateway.server.process.reload import FileWatch, watch
from aigateway.server.process.supervisor import DRAIN, READY, RELOAD, STOP, Supervisor
from aigateway.server.process.worker import Listener, MakeApp, Process
from aigateway.settings import LLMConfig, settings_file
from aigateway.simulator import Simulator
from aigateway.version import __version__

__all__ = ["Order", "serve"]


_MEETING_PLACE = "aigateway-workers-"
"""How the names of directories begin in which processes meet."""

_REFUSED = (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL)


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line says.

    Attributes:
        overrides: Fields of `ServerSettings`.
        simulate: Ask four simulated vendors, in this process.
        announce: Gets the line that says where it listens.
        make_app: Makes the application; only tests give another.
    """

    overrides: Mapping[str, Any]
    simulate: bool = False
    announce: Callable[[str], object] = print
    make_app: MakeApp = create_app


def serve(order: Order) -> int:
    """Serve until told to stop.

    Returns:
        The exit code: 0 when it was told to stop.

    Raises:
        ConfigurationError: Something cannot work, or the port is taken; nothing listens yet.
        GatewayError: The gateway cannot be made ready.
    """
    with contextlib.ExitStack() as stack:
        providers = stack.enter_context(_simulated()) if order.simulate else None

        def read() -> Configuration:
            return read_configuration(order.overrides, providers)

        file = FileWatch(settings_file())  # first: what changes while it starts is seen, too
        configuration = read()
        settings = configuration.server
        if order.simulate and settings.workers > 1:
            raise ConfigurationError(
                "--simulate runs the vendors in the one process that serves; use --workers 1, or"
                " run `aigateway simulate` beside it."
            )
        raise_limit(configuration)
        listener = stack.enter_context(_bound(settings.host, settings.port))
        where = _address(settings.host, listener)
        announce = _announcement(order, configuration, where)
        if settings.workers == 1:
            return _alone(configuration, read, listener, order.make_app, announce, file=file)
        return _several(configuration, read, listener, order.make_app, announce, file=file)


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
    async def live() -> None:
        process = Process(configuration, read, listener, make_app=make_app)
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, process.ending.again)
        loop.add_signal_handler(signal.SIGHUP, process.reload)
        watching = asyncio.create_task(watch(file, process.reload_when_warm))

        def ready() -> None:
            gc.freeze()  # what is loaded stays: looking through it holds up everybody for 0.3 s
            announce()

        try:
            await process.run(ready)
        finally:
            watching.cancel()

    with _port_taken_in_words(configuration.server.port):
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
    asyncio.run(_load(configuration))

    def run(start: Configuration, pipe: socket.socket, workers: Workers) -> int:
        async def live() -> None:
            process = Process(start, read, listener, workers=workers, make_app=make_app)
            _obey(process, pipe)
            await process.run(lambda: pipe.send(READY))

        with _port_taken_in_words(start.server.port):
            _run(live())
        return 0

    with _meeting_place() as directory:
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
    """Load what every process would load."""
    async with configuration.make_gateway() as gateway:
        await gateway.warmup()


def _obey(process: Process, pipe: socket.socket) -> None:
    """Do what the parent says, and what this process itself is told."""
    loop = asyncio.get_running_loop()
    pipe.setblocking(False)
    actions = {
        DRAIN[0]: process.ending.begin,
        STOP[0]: process.ending.hurry,
        RELOAD[0]: process.reload,
    }

    def arrived() -> None:
        try:
            orders = pipe.recv(64)
        except BlockingIOError:
            return
        except OSError:
            orders = b""
        if not orders:  # the parent is gone
            loop.remove_reader(pipe)
            process.ending.begin()
        for letter in orders:
            actions[letter]()

    loop.add_reader(pipe, arrived)
    # systemd sends a SIGTERM to all at once: once more is no hurry. The parent says that all end.
    loop.add_signal_handler(signal.SIGTERM, partial(process.ending.begin, port_closes=False))
    loop.add_signal_handler(signal.SIGHUP, process.reload)


# ── what both need ───────────────────────────────────────────────────────────────────────────────


def _run(main: Any) -> None:
    """Run on the quickest event loop that is installed."""
    with asyncio.Runner(
        loop_factory=Config(app=main, log_config=None).get_loop_factory()
    ) as runner:
        runner.run(main)


@contextlib.contextmanager
def _simulated() -> Iterator[tuple[LLMConfig, ...]]:
    with Simulator.in_thread() as simulator:
        yield tuple(
            vendor.config(priority=-place) for place, vendor in enumerate(simulator.vendors)
        )


@contextlib.contextmanager
def _meeting_place() -> Iterator[Path]:
    """A directory that only this user can enter, for as long as the processes live.

    They hold a lock on it: one that is not locked was left by processes that were killed.
    """
    try:
        directory, lock = _locked_directory()
    except OSError as error:
        raise ConfigurationError(
            f"several workers need a directory to meet in, and none can be made"
            f" ({error.strerror}); set TMPDIR to one that can be written, or use --workers 1"
        ) from None
    try:
        _remove_left_behind()
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _locked_directory() -> tuple[Path, int]:
    """Make a directory and lock it. Every process that is forked holds the lock, too."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_MEETING_PLACE))  # 0700
        with contextlib.suppress(FileNotFoundError):  # removed by another start: not locked yet
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # without locks nothing is removed, either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if directory.exists():
                return directory, lock
            os.close(lock)


def _remove_left_behind() -> None:
    """Remove directories of this user whose processes are all gone."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_MEETING_PLACE}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # in use, or not ours
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, lock)
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at that address. It does not listen yet: nobody is let in before all is ready."""
    with _port_taken_in_words(port):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise ConfigurationError(
                f"host {host!r} is no address of this machine, and no name of one."
            ) from None
        family, kind, protocol, _, address = min(found)  # IPv4 first
        listener = Listener(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    with listener:
        yield listener


@contextlib.contextmanager
def _port_taken_in_words(port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise ConfigurationError(
            f"cannot listen at port {port} ({os.strerror(error.errno or 0)}); choose another with"
            " --port, or end what is there."
        ) from None


def _address(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announcement(order: Order, configuration: Configuration, where: str) -> Callable[[], object]:
    workers = configuration.server.workers
    names = ", ".join(config.name for config in configuration.providers)
    processes = "" if workers == 1 else f" with {workers} workers"
    simulated = " (simulated)" if order.simulate else ""
    line = f"aigateway {__version__} listens at {where}{processes}, asks {names}{simulated}"
    return lambda: order.announce(line)
