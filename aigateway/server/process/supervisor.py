"""The parent of several processes that answer: it starts them, replaces them and passes on orders.

It has loaded everything before it forks, so a process is there in a fraction of a second and shares
the memory of what was loaded. uvicorn's own supervisor starts each from nothing: seconds and a
whole litellm for each, and a SIGHUP replaces processes instead of reading the configuration.

It has no event loop and no thread, which could not be forked. Orders are single letters over a pipe
for each process; when the parent is gone the pipe ends, and they end too. So a SIGTERM may come to
the parent alone, or to all of them (systemd).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from aigateway.clock import SYSTEM_CLOCK
from aigateway.server.process.configuration import Configuration, Read
from aigateway.server.process.exchange_files import Workers
from aigateway.server.process.reload import LOOK_SECONDS, FileWatch, try_to_read

__all__ = ["DRAIN", "RELOAD", "STOP", "Supervisor"]

_log = logging.getLogger(__name__)

DRAIN, STOP, RELOAD = b"d", b"!", b"r"
"""What a process may be told: end in good order, end at once, read the configuration."""

READY = b"k"
"""What it says when it listens."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_QUICK_DEATH = 5.0
"""Seconds: a process that lived shorter is replaced only after a pause, which doubles."""

_LONGEST_PAUSE = 30.0

_MARGIN = 5.0
"""Seconds beyond its time to end after which a process is taken for stuck."""


@dataclass(slots=True)
class _Child:
    pid: int
    pipe: socket.socket
    began: float
    ready: bool = False


@dataclass(slots=True)
class _Place:
    """One of the places for a process."""

    number: int
    child: _Child | None = None
    pause: float = 0.0
    start_at: float = 0.0

    def wait(self, now: float) -> None:
        """Stay empty for a pause, longer than the one before."""
        self.pause = min(max(0.5, self.pause * 2), _LONGEST_PAUSE)
        self.start_at = now + self.pause


Run = Callable[[Configuration, socket.socket, Workers], int]
"""What a process does: gets what it starts from, its end of the pipe and the others; its code."""


class Supervisor:
    """Keeps processes running until it is told to stop.

    Args:
        configuration: What they start from; says how many.
        read: Reads it anew.
        run: What each does, in its own process.
        listener: The bound socket that they share.
        directory: Where they meet; private.
        file: The configuration file; its mark is of before `configuration` was read.
        ready: Called when the first of them listens.
    """

    def __init__(
        self,
        configuration: Configuration,
        read: Read,
        run: Run,
        *,
        listener: socket.socket,
        directory: Path,
        file: FileWatch,
        ready: Callable[[], object],
    ) -> None:
        self._configuration = configuration
        self._read = read
        self._run = run
        self._listener = listener
        self._directory = directory
        self._file = file
        self._ready = ready
        self._clock = SYSTEM_CLOCK
        self._places = [_Place(number) for number in range(configuration.server.workers)]
        self._ending = False
        self._kill_at = math.inf
        self._was_ready = False
        self._failed = False

    def run(self) -> int:
        """Start them, and keep them, until told to stop and all have ended.

        Returns:
            The exit code: 0 when it was told to stop, 1 when none could be started.
        """
        gc.collect()
        gc.freeze()  # what is loaded stays where it is, in memory that all share
        with self._signals() as arrived:
            while not self._ending or self._children():
                self._fill_places()
                self._listen(arrived)
                self._kill_stuck()
                self._reap()
        return 1 if self._failed else 0

    # ── starting ─────────────────────────────────────────────────────────────────────────────

    def _children(self) -> list[_Child]:
        return [place.child for place in self._places if place.child is not None]

    def _fill_places(self) -> None:
        now = self._clock.now()
        for place in self._places:
            if not self._ending and place.child is None and now >= place.start_at:
                self._start(place)

    def _start(self, place: _Place) -> None:
        """Put a process there, or try again later: those that run do not suffer for it."""
        try:
            place.child = self._fork(place)
        except OSError as error:
            place.wait(self._clock.now())
            _log.error(
                "worker.not_started: process %d cannot be started (%s); tried again in %g s. Look"
                " at the limits of open files, processes and memory.",
                place.number + 1,
                error.strerror,
                place.pause,
            )
            if not self._was_ready and not self._children():
                self._give_up()

    def _fork(self, place: _Place) -> _Child:
        ours, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # it must not act as the parent
        try:
            pid = os.fork()
            if pid == 0:
                self._become(place.number, ours, theirs)
        except OSError:
            ours.close()
            theirs.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        ours.setblocking(False)
        return _Child(pid, ours, self._clock.now())

    def _become(self, number: int, parents: socket.socket, pipe: socket.socket) -> NoReturn:
        """Be a process that answers."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for sign in _SIGNALS:
                signal.signal(sign, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all; the parent says
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            parents.close()
            for sibling in self._children():
                sibling.pipe.close()  # else nobody would notice that the parent is gone
            code = self._run(self._configuration, pipe, Workers(self._directory, number))
        except Exception:  # noqa: BLE001 - whatever it was, the parent must not run on in here
            _log.exception("worker.failed: process %d (pid %d) failed.", number + 1, os.getpid())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    # ── what arrives ─────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Have signals arrive as bytes, so that nothing happens in the middle of something."""
        assert threading.current_thread() is threading.main_thread()  # noqa: S101 - of the command
        arrived, wakeup = socket.socketpair()
        arrived.setblocking(False)
        wakeup.setblocking(False)
        before = {sign: signal.signal(sign, _noted) for sign in _SIGNALS}
        woken = signal.set_wakeup_fd(wakeup.fileno())
        try:
            yield arrived
        finally:
            signal.set_wakeup_fd(woken)
            for sign, handler in before.items():
                signal.signal(sign, handler)
            arrived.close()
            wakeup.close()

    def _listen(self, arrived: socket.socket) -> None:
        """Wait for a signal or a word of a process, and look at the file."""
        pipes = {child.pipe.fileno(): child for child in self._children()}
        poll = select.poll()
        poll.register(arrived, select.POLLIN)
        for child in self._children():
            if not child.ready:
                poll.register(child.pipe, select.POLLIN)
        for number, _ in poll.poll(LOOK_SECONDS * 1000):
            if number in pipes:
                self._heard(pipes[number])
            else:
                for sign in arrived.recv(4096):
                    self._signalled(sign)
        if not self._ending and self._file.has_changed():
            self._reload()

    def _heard(self, child: _Child) -> None:
        try:
            word = child.pipe.recv(1)
        except OSError:
            word = b""
        child.ready = True  # or dead, which SIGCHLD tells
        if word == READY and not self._was_ready:
            self._was_ready = True
            self._ready()

    def _signalled(self, sign: int) -> None:
        if sign == signal.SIGHUP:
            self._reload()
        elif sign in {signal.SIGTERM, signal.SIGINT}:
            self._end(STOP if self._ending else DRAIN)

    def _reload(self) -> None:
        """Read it here first, so that what cannot work is said once and disturbs nobody."""
        new = try_to_read(self._read, self._configuration)
        if new is not None:
            self._configuration = new  # for those that start later
            self._tell(RELOAD)

    def _end(self, order: bytes) -> None:
        self._ending = True
        drain = self._configuration.server.drain_seconds if order == DRAIN else 0.0
        self._kill_at = self._clock.now() + drain + _MARGIN
        self._tell(order)
        # Else the port would still seem to be open when the last of them has left it.
        self._listener.close()

    def _tell(self, order: bytes) -> None:
        for child in self._children():
            with contextlib.suppress(OSError):  # it is dead, which SIGCHLD tells
                child.pipe.send(order)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────

    def _reap(self) -> None:
        for place in self._places:
            child = place.child
            if child is None:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.pipe.close()
                place.child = None
                Workers.archive_metrics(self._directory, place.number, pid)
                if not self._ending:
                    self._replace(place, child, os.waitstatus_to_exitcode(status))

    def _kill_stuck(self) -> None:
        if self._clock.now() < self._kill_at:
            return
        self._kill_at = math.inf
        for child in self._children():
            _log.error("worker.stuck: pid %d does not end in its time; killed.", child.pid)
            os.kill(child.pid, signal.SIGKILL)

    def _replace(self, place: _Place, child: _Child, code: int) -> None:
        now = self._clock.now()
        if code == 0:
            _log.warning(
                "worker.ended: process %d (pid %d) was told to end by somebody else, and has;"
                " another one takes its place.",
                place.number + 1,
                child.pid,
            )
            return
        if now - child.began < _QUICK_DEATH:
            place.wait(now)
        else:
            place.pause = 0.0
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        _log.error(
            "worker.died: process %d (pid %d) died of %s; another one takes its place%s. What it"
            " was answering is lost.",
            place.number + 1,
            child.pid,
            reason,
            f" in {place.pause:g} s" if place.pause else "",
        )
        if not self._was_ready and code > 0:
            self._give_up()

    def _give_up(self) -> None:
        _log.error("worker.never_ready: not even the first process could start; giving up.")
        self._failed = True
        self._end(DRAIN)


def _noted(*_: object) -> None:
    """The wakeup descriptor has it."""
