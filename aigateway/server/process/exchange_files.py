"""What the processes of one service tell each other, through files in a private directory.

Two kinds of things. A *share* is what one process says of itself, under a name (its metrics, say):
written anew every second, and whoever is asked puts those of all together. A *standing order* is
what all are to do about one subject (a circuit forced open): the last one given counts, and a
process that starts later obeys it too.

Every file is written beside its place and then moved there, so that nobody reads half of one.
What a share or an order means is known to those who use this.
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

__all__ = ["Shares", "Workers"]

_log = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between two looks, so that "within a second" holds on a busy machine too."""

MOST_DEPARTED = 64
"""Shares of processes that are gone, for each name; of more, the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What the processes say under one name.

    Attributes:
        living: One for each process that runs; what describes the present (calls in flight) is
            the sum of these.
        departed: The last word of each that is gone; what only grows (requests answered) is the
            sum of both, and does not fall when a process dies.
    """

    living: tuple[bytes, ...]
    departed: tuple[bytes, ...] = ()

    @property
    def all(self) -> tuple[bytes, ...]:
        """Both."""
        return self.living + self.departed


class Workers:
    """The processes of one service, as seen from one of them.

    Args:
        directory: Where they meet; exists, and is private. None: this process is alone, and
            nothing is written.
        place: Which of them this one is: a number that no other one that runs has.
        clock: Time.
    """

    def __init__(
        self, directory: Path | None = None, place: int = 0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._directory = directory
        self._place = f"{place}-{os.getpid()}"
        self._clock = clock
        self._shared: dict[str, Callable[[], bytes]] = {}
        self._written: dict[str, bytes] = {}
        self._handlers: list[Callable[[str, bytes], object]] = []
        self._orders: dict[str, bytes] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    # ── shares ───────────────────────────────────────────────────────────────────────────────

    def share(self, name: str, say: Callable[[], bytes]) -> None:
        """Have `say()` published under that name every second, and whenever it is collected."""
        self._shared[name] = say

    def publish(self, name: str, content: bytes) -> None:
        """Say something under that name; it takes the place of what was said before.

        Raises:
            OSError: The others cannot be told.
        """
        self._written[name] = content
        if self._directory is not None:
            _write(self._directory / f"share.{_plain(name)}.{self._place}", content)

    def collect(self, name: str, *, own: bool = True) -> Shares:
        """What all say under that name: this process now, the others at most a second ago.

        When the directory fails, it is what can still be known: this process at least.

        Args:
            name: As it was shared.
            own: Whether what this process says is among it.
        """
        if own and name in self._shared:
            with contextlib.suppress(OSError):  # `attend` tells that, once
                self._say(name)
        living = self._contents(f"share.{_plain(name)}.*")
        if not own:
            living.pop(f".{self._place}", None)
        elif name in self._written:
            living[f".{self._place}"] = self._written[name]
        departed = self._contents(f"departed.{_plain(name)}.*")
        for who in departed:
            living.pop(who, None)  # it went between the two looks
        return Shares(tuple(living.values()), tuple(departed.values()))

    def _say(self, name: str) -> None:
        self.publish(name, self._shared[name]())

    def _contents(self, pattern: str) -> dict[str, bytes]:
        """What files hold, by the process that wrote them; without those that cannot be read."""
        found: dict[str, bytes] = {}
        if self._directory is None:
            return found
        with contextlib.suppress(OSError):
            for path in sorted(self._directory.glob(pattern)):
                with contextlib.suppress(OSError):  # its process has just gone
                    found[path.suffix] = path.read_bytes()
        return found

    # ── orders ───────────────────────────────────────────────────────────────────────────────

    def obey(self, handler: Callable[[str, bytes], object]) -> None:
        """Call `handler(subject, order)` for each standing order, now and whenever one changes."""
        self._look()
        self._handlers.append(handler)
        for subject, order in self._orders.items():
            _call(handler, subject, order)

    def order(self, subject: str, content: bytes) -> None:
        """Have all obey this about that subject: this process at once, the others in a second.

        If they cannot be told, it is obeyed here alone, and the log says so at level ERROR.

        Args:
            subject: What it is about, on one line; a later order about the same replaces it.
            content: What to do.

        Raises:
            ValueError: `subject` has a line break.
        """
        if "\n" in subject:
            raise ValueError("subject must be one line")
        self._take(subject, content)
        if self._directory is None:
            return
        path = self._directory / f"order.{hashlib.sha256(subject.encode()).hexdigest()[:32]}"
        try:
            self._seen[path.name] = _write(path, subject.encode() + b"\n" + content)
        except OSError as error:
            _log.error(
                "workers.order_not_passed_on: pid %d obeys an order about %s, the other processes"
                " do not know of it (%s). Look at the disk that holds %s, and give it again.",
                os.getpid(),
                subject,
                error.strerror,
                self._directory,
            )

    def replay(self) -> None:
        """Obey all standing orders again: what they are about has been made anew."""
        for subject, order in self._orders.items():
            self._tell(subject, order)

    async def attend(self) -> None:
        """Publish and obey until cancelled."""
        told: type[Exception] | None = None
        while True:
            wrong = self._publish_and_look()
            if wrong is not None and type(wrong) is not told:  # once, not twice a second
                self._complain(wrong)
            told = None if wrong is None else type(wrong)
            await self._clock.sleep(INTERVAL)

    def _publish_and_look(self) -> Exception | None:
        """Do all that can be done. Returns what was in the way of the rest, if anything was."""
        wrong = None
        steps: list[Callable[[], None]] = [partial(self._say, name) for name in self._shared]
        for step in (*steps, self._look):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - whatever it is, the service goes on
                wrong = error
        return wrong

    def _complain(self, wrong: Exception) -> None:
        if isinstance(wrong, OSError):
            _log.error(
                "workers.silent: the processes cannot tell each other what they do (%s); figures"
                " are of one of them, orders reach one of them. Look at the disk that holds %s.",
                wrong.strerror,
                self._directory,
            )
        else:  # only its type: what it says may quote anything
            _log.error(
                "workers.failed: pid %d cannot say all of itself to the other processes, or not"
                " hear all of them (%s); the rest goes on. Please report this.",
                os.getpid(),
                type(wrong).__name__,
            )

    def _look(self) -> None:
        if self._directory is None:
            return
        for path in sorted(self._directory.glob("order.*")):
            try:
                mark = _mark(path)
                if self._seen.get(path.name) == mark:
                    continue
                subject, _, content = path.read_bytes().partition(b"\n")
            except FileNotFoundError:  # replaced between two looks; next time
                continue
            self._seen[path.name] = mark
            self._take(subject.decode(), content)

    def _take(self, subject: str, content: bytes) -> None:
        self._orders[subject] = content
        self._tell(subject, content)

    def _tell(self, subject: str, content: bytes) -> None:
        for handler in self._handlers:
            _call(handler, subject, content)

    # ── coming and going ─────────────────────────────────────────────────────────────────────

    @staticmethod
    def archive_metrics(directory: Path, place: int, pid: int) -> None:
        """Keep the last word of a process that is gone, apart from those that run.

        If the disk is in the way, the log says so, and that is all.
        """
        try:
            for path in directory.glob(f"share.*.{place}-{pid}"):
                name = path.name.split(".")[1]
                path.replace(directory / f"departed.{name}.{place}-{pid}")
                before = sorted(directory.glob(f"departed.{name}.*"), key=_age)
                for old in before[:-MOST_DEPARTED]:
                    old.unlink(missing_ok=True)
        except OSError as error:
            _log.error(
                "workers.not_archived: figures go on to show pid %d, which is gone, as it last was"
                " (%s). Look at the disk that holds %s.",
                pid,
                error.strerror,
                directory,
            )


def _call(handler: Callable[[str, bytes], object], subject: str, content: bytes) -> None:
    try:
        handler(subject, content)
    except Exception:  # noqa: BLE001 - one handler's fault is not the others'
        _log.exception("workers.order_failed: an order could not be obeyed here: %s", subject)


def _write(path: Path, content: bytes) -> tuple[int, int]:
    """Returns the mark of what was written, whatever is in its place by now."""
    beside = path.with_name(f"new.{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    mark = _mark(beside)
    beside.replace(path)
    return mark


def _mark(path: Path) -> tuple[int, int]:
    """What tells a file from the one that was there before."""
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _plain(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"the name of a share must be one word, not {name!r}")
    return name
