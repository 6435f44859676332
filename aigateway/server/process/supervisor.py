"""The parent of several workers: it forks them, replaces them and passes on orders.

It loads everything before it forks, so a worker starts in a fraction of a second and shares the
loaded memory. A reload keeps the workers, with their circuits, counters and caches. uvicorn and
Granian spawn each worker from nothing: seconds, and a whole litellm in memory. gunicorn can fork a
loaded application, but its SIGHUP replaces all workers.

It has no event loop and no thread, since those cannot be forked. Orders are single letters over a
pipe to each worker. A worker whose pipe ends, because the parent has died, stops too. A SIGTERM may
therefore reach the parent alone or all processes (systemd).
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
from aigateway.server.process.reload import LOOK_SECONDS, FileWatch, try_to_read
from aigateway.server.process.shared_directory import SharedDirectory
from aigateway.telemetry.log import log_event

__all__ = ["DRAIN", "RELOAD", "STOP", "Supervisor"]

DRAIN, STOP, RELOAD = b"d", b"!", b"r"
"""Orders to a worker: drain, stop at once, read the configuration again."""

READY = b"k"
"""A worker sends it when it listens."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_QUICK_DEATH = 5.0
"""Seconds: a worker that ran for less is replaced after a pause, which doubles each time."""

_LONGEST_PAUSE = 30.0

_MARGIN = 5.0
"""Seconds after its time to drain at which a worker counts as stuck."""


@dataclass(slots=True)
class _Child:
    pid: int
    pipe: socket.socket
    began: float
    ready: bool = False


@dataclass(slots=True)
class _WorkerSlot:
    """A slot for one worker."""

    number: int
    child: _Child | None = None
    pause: float = 0.0
    start_at: float = 0.0

    def wait(self, now: float) -> None:
        """Stay empty for a pause, longer than the last one."""
        self.pause = min(max(0.5, self.pause * 2), _LONGEST_PAUSE)
        self.start_at = now + self.pause


Run = Callable[[Configuration, socket.socket, SharedDirectory], int]
"""Runs one worker with its configuration and its end of the pipe; returns its exit code."""


class Supervisor:
    """Keeps workers running until it is stopped.

    Args:
        configuration: What they start from, and how many.
        read: Reads it again.
        run: Runs in each worker.
        listener: The bound socket that they share.
        directory: Their private shared directory.
        file: The configuration file, watched since before `configuration` was read.
        ready: Called when the first worker listens.
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
        self._slots = [_WorkerSlot(number) for number in range(configuration.server.workers)]
        self._ending = False
        self._kill_at = math.inf
        self._was_ready = False
        self._failed = False

    def run(self) -> int:
        """Run workers until it is stopped and all have exited.

        Returns:
            The exit code: 0 after a stop, 1 if no worker could start.
        """
        if self._configuration.gateway.freeze_gc:
            gc.collect()
            gc.freeze()  # keeps what is loaded in memory that all share
        with self._signals() as arrived:
            while not self._ending or self._children():
                self._fill_places()
                self._listen(arrived)
                self._kill_stuck()
                self._reap()
        return 1 if self._failed else 0

    # ── starting ─────────────────────────────────────────────────────────────────────────────

    def _children(self) -> list[_Child]:
        return [slot.child for slot in self._slots if slot.child is not None]

    def _fill_places(self) -> None:
        now = self._clock.now()
        for slot in self._slots:
            if not self._ending and slot.child is None and now >= slot.start_at:
                self._start(slot)

    def _start(self, slot: _WorkerSlot) -> None:
        """Fork a worker, or try again later; running workers are not affected."""
        try:
            slot.child = self._fork(slot)
        except OSError as error:
            slot.wait(self._clock.now())
            log_event(
                logging.ERROR,
                "worker.not_started",
                "Worker {worker} cannot start ({reason}); next try in {wait_seconds:g} s. Check"
                " the limits of open files, processes and memory.",
                worker=slot.number + 1,
                reason=error.strerror,
                wait_seconds=slot.pause,
            )
            if not self._was_ready and not self._children():
                self._give_up()

    def _fork(self, slot: _WorkerSlot) -> _Child:
        ours, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # the child must not act as the parent
        try:
            pid = os.fork()
            if pid == 0:
                self._become(slot.number, ours, theirs)
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
        """Run the worker, in the forked process."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for sign in _SIGNALS:
                signal.signal(sign, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            parents.close()
            for sibling in self._children():
                sibling.pipe.close()  # else siblings do not notice that the parent has died
            code = self._run(self._configuration, pipe, SharedDirectory(self._directory, number))
        except Exception:  # noqa: BLE001 - whatever it was, the parent's code must not go on here
            log_event(
                logging.ERROR,
                "worker.failed",
                "Worker {worker} (pid {pid}) failed.",
                exc_info=True,
                worker=number + 1,
                pid=os.getpid(),
            )
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()  # writes the lines that wait
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    # ── what arrives ─────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Receive signals as bytes, so that none interrupts anything."""
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
        """Wait for a signal or a message of a worker, and check the file."""
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
        child.ready = True  # or dead: then SIGCHLD comes
        if word == READY and not self._was_ready:
            self._was_ready = True
            self._ready()

    def _signalled(self, sign: int) -> None:
        if sign == signal.SIGHUP:
            self._reload()
        elif sign in {signal.SIGTERM, signal.SIGINT}:
            self._end(STOP if self._ending else DRAIN)

    def _reload(self) -> None:
        """Read it here first, so that an error is logged once and no worker is disturbed."""
        new = try_to_read(self._read, self._configuration)
        if new is not None:
            self._configuration = new  # for workers that start later
            self._tell(RELOAD)

    def _end(self, order: bytes) -> None:
        self._ending = True
        drain = self._configuration.server.drain_seconds if order == DRAIN else 0.0
        self._kill_at = self._clock.now() + drain + _MARGIN
        self._tell(order)
        # Else the port would stay open after the last worker has closed it.
        self._listener.close()

    def _tell(self, order: bytes) -> None:
        for child in self._children():
            with contextlib.suppress(OSError):  # it is dead, and SIGCHLD comes
                child.pipe.send(order)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────

    def _reap(self) -> None:
        for slot in self._slots:
            child = slot.child
            if child is None:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.pipe.close()
                slot.child = None
                SharedDirectory.archive_metrics(self._directory, slot.number, pid)
                if not self._ending:
                    self._replace(slot, child, os.waitstatus_to_exitcode(status))

    def _kill_stuck(self) -> None:
        if self._clock.now() < self._kill_at:
            return
        self._kill_at = math.inf
        for child in self._children():
            log_event(
                logging.ERROR,
                "worker.stuck",
                "pid {pid} has not exited in time and is killed.",
                pid=child.pid,
            )
            os.kill(child.pid, signal.SIGKILL)

    def _replace(self, slot: _WorkerSlot, child: _Child, code: int) -> None:
        now = self._clock.now()
        if code == 0:
            log_event(
                logging.WARNING,
                "worker.ended",
                "Worker {worker} (pid {pid}) was stopped from outside; another one replaces it.",
                worker=slot.number + 1,
                pid=child.pid,
            )
            return
        if now - child.began < _QUICK_DEATH:
            slot.wait(now)
        else:
            slot.pause = 0.0
        log_event(
            logging.ERROR,
            "worker.died",
            "Worker {worker} (pid {pid}) died ({reason}) with the requests that it was answering;"
            " another one replaces it in {wait_seconds:g} s.",
            worker=slot.number + 1,
            pid=child.pid,
            reason=signal.Signals(-code).name if code < 0 else f"exit code {code}",
            wait_seconds=slot.pause,
        )
        if not self._was_ready and code > 0:
            self._give_up()

    def _give_up(self) -> None:
        log_event(
            logging.ERROR, "worker.never_ready", "Not even the first worker could start; giving up."
        )
        self._failed = True
        self._end(DRAIN)


def _noted(*_: object) -> None:
    """Do nothing: the wakeup descriptor has the signal."""
