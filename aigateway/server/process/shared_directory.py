"""A private directory through which the processes of one service exchange reports and orders.

A *report* is what one process says of itself under a name, such as its metrics: written anew every
second. A *standing order* is what all processes do about one subject, such as a circuit that is
forced open: the last order counts, also for a process that starts later.

Every file is written under another name and then renamed, so no process reads half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.telemetry.log import log_event

__all__ = ["Collected", "SharedDirectory"]

INTERVAL = 0.5
"""Seconds between two rounds, so that "within a second" holds on a busy machine too."""

MOST_EXITED = 64
"""Reports of exited processes that are kept under each name; the oldest are removed."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What the processes report under one name.

    Attributes:
        running: One report for each process that runs.
        exited: The last report of each that has exited, so that counts do not fall.
    """

    running: tuple[bytes, ...]
    exited: tuple[bytes, ...] = ()


class SharedDirectory:
    """The processes of one service, as seen from one of them.

    Args:
        path: An existing private directory. None: this process is alone, and nothing is written.
        place: A number that no other running process has.
        clock: Time.

    Attributes:
        on_order: Called with an order that is given here, to keep it over a restart.
    """

    def __init__(
        self, path: Path | None = None, place: int = 0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._path = path
        self._place = f"{place}-{os.getpid()}"
        self._clock = clock
        self._reporters: dict[str, Callable[[], bytes]] = {}
        self._written: dict[str, bytes] = {}
        self._subscribers: list[Callable[[str, bytes], object]] = []
        self._orders: dict[str, bytes] = {}
        self.on_order: Callable[[str, bytes], object] = lambda *_: None
        self._seen: dict[str, tuple[int, int]] = {}

    # ── reports ──────────────────────────────────────────────────────────────────────────────

    def report(self, name: str, make: Callable[[], bytes]) -> None:
        """Publish `make()` under that name every second, and whenever it is collected.

        Without other processes, which read it, it is made only when it is collected.
        """
        self._reporters[name] = make

    def publish(self, name: str, content: bytes) -> None:
        """Replace what this process reports under that name.

        Raises:
            OSError: It cannot be written.
        """
        self._written[name] = content
        if self._path is not None:
            _write(self._path / f"report.{_checked(name)}.{self._place}", content)

    def collect(self, name: str) -> Collected:
        """Return the reports of all: of this process now, of the others at most a second old.

        If the directory fails, the report of this process is there at least.
        """
        if name in self._reporters:
            with contextlib.suppress(OSError):  # `run` logs that, once
                self._publish(name)
        running = self._contents(f"report.{_checked(name)}.*")
        if name in self._written:
            running[f".{self._place}"] = self._written[name]
        exited = self._contents(f"exited.{_checked(name)}.*")
        for place in exited:
            running.pop(place, None)  # it exited between the two reads
        return Collected(tuple(running.values()), tuple(exited.values()))

    def _publish(self, name: str) -> None:
        self.publish(name, self._reporters[name]())

    def _contents(self, pattern: str) -> dict[str, bytes]:
        """Return what files hold, by their process; without those that cannot be read."""
        found: dict[str, bytes] = {}
        if self._path is None:
            return found
        with contextlib.suppress(OSError):
            for path in sorted(self._path.glob(pattern)):
                with contextlib.suppress(OSError):  # its process has just exited
                    found[path.suffix] = path.read_bytes()
        return found

    # ── orders ───────────────────────────────────────────────────────────────────────────────

    def subscribe(self, handler: Callable[[str, bytes], object]) -> None:
        """Call `handler(subject, order)` for each standing order, now and whenever one changes."""
        self._read_orders()
        self._subscribers.append(handler)
        for subject, order in self._orders.items():
            _call(handler, subject, order)

    def order(self, subject: str, content: bytes) -> None:
        """Give all processes an order: this one at once, the others within a second.

        If it cannot be written, only this process carries it out, which is logged as an error.

        Args:
            subject: What it is about, on one line; a later order about the same replaces it.
            content: What to do.

        Raises:
            ValueError: `subject` has a line break.
        """
        if "\n" in subject:
            raise ValueError("subject must be one line")
        self._take(subject, content)
        self.on_order(subject, content)
        if self._path is None:
            return
        path = self._path / f"order.{hashlib.sha256(subject.encode()).hexdigest()[:32]}"
        try:
            self._seen[path.name] = _write(path, subject.encode() + b"\n" + content)
        except OSError as error:
            log_event(
                logging.ERROR,
                "workers.order_not_passed_on",
                "pid {pid} carries out an order about {subject}; the other processes do not know it"
                " ({reason}). Check the disk that holds {directory}, and give the order again.",
                pid=os.getpid(),
                subject=subject,
                reason=error.strerror,
                directory=str(self._path),
            )

    def replay(self) -> None:
        """Carry out all standing orders again, after a reload has made providers anew."""
        for subject, order in self._orders.items():
            self._deliver(subject, order)

    def _read_orders(self) -> None:
        if self._path is None:
            return
        for path in sorted(self._path.glob("order.*")):
            try:
                mark = _mark(path)
                if self._seen.get(path.name) == mark:
                    continue
                subject, _, content = path.read_bytes().partition(b"\n")
            except FileNotFoundError:  # replaced meanwhile; the next round reads it
                continue
            self._seen[path.name] = mark
            self._take(subject.decode(), content)

    def _take(self, subject: str, content: bytes) -> None:
        self._orders[subject] = content
        self._deliver(subject, content)

    def _deliver(self, subject: str, content: bytes) -> None:
        for handler in self._subscribers:
            _call(handler, subject, content)

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Publish reports and read orders until cancelled."""
        logged: type[Exception] | None = None
        while True:
            error = self._round()
            if error is not None and type(error) is not logged:  # once, not twice a second
                self._log(error)
            logged = None if error is None else type(error)
            await self._clock.sleep(INTERVAL)

    def _round(self) -> Exception | None:
        """Do everything that works. Returns the last error of the rest."""
        error = None
        read_by_others = () if self._path is None else self._reporters
        steps: list[Callable[[], None]] = [partial(self._publish, name) for name in read_by_others]
        for step in (*steps, self._read_orders):
            try:
                step()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the service goes on
                error = exc
        return error

    def _log(self, error: Exception) -> None:
        if isinstance(error, OSError):
            log_event(
                logging.ERROR,
                "workers.silent",
                "The processes cannot reach each other ({reason}): figures and orders are of one"
                " process only. Check the disk that holds {directory}.",
                reason=error.strerror,
                directory=str(self._path),
            )
        else:  # only its type: its message may quote anything
            log_event(
                logging.ERROR,
                "workers.failed",
                "pid {pid} cannot exchange everything with the other processes ({reason}); the rest"
                " goes on. Please report this.",
                pid=os.getpid(),
                reason=type(error).__name__,
            )

    @staticmethod
    def archive_metrics(path: Path, place: int, pid: int) -> None:
        """Keep the last reports of a process that has exited; a failure is only logged."""
        try:
            for report in path.glob(f"report.*.{place}-{pid}"):
                name = report.name.split(".")[1]
                report.replace(path / f"exited.{name}.{place}-{pid}")
                kept = sorted(path.glob(f"exited.{name}.*"), key=_modified)
                for old in kept[:-MOST_EXITED]:
                    old.unlink(missing_ok=True)
        except OSError as error:
            log_event(
                logging.ERROR,
                "workers.not_archived",
                "pid {pid} has exited, and figures go on to show its last state ({reason}). Check"
                " the disk that holds {directory}.",
                pid=pid,
                reason=error.strerror,
                directory=str(path),
            )


def _call(handler: Callable[[str, bytes], object], subject: str, content: bytes) -> None:
    try:
        handler(subject, content)
    except Exception:  # noqa: BLE001 - a handler's fault does not reach the others
        log_event(
            logging.ERROR,
            "workers.order_failed",
            "This process could not carry out an order about {subject}.",
            subject=subject,
            exc_info=True,
        )


def _write(path: Path, content: bytes) -> tuple[int, int]:
    """Returns the mark of what was written, whatever has replaced it by now."""
    beside = path.with_name(f"new.{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    mark = _mark(beside)
    beside.replace(path)
    return mark


def _mark(path: Path) -> tuple[int, int]:
    """Return what distinguishes a file from an earlier one of the same name."""
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _checked(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"the name of a report must be one word, not {name!r}")
    return name
