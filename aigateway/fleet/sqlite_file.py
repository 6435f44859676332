"""An SQLite file that several processes use: made whole, checked, and set aside when damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aigateway.clock import SYSTEM_CLOCK
from aigateway.telemetry.log import log_event

__all__ = ["DamagedFileError", "SqliteFile", "foreign", "is_damage", "reason_of"]

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

_PAGE = 4096
"""Bytes of a page of the file."""

_LOCK_SECONDS, _LOCK_STEP = 5.0, 0.02
"""How long a process that opens the file waits for another one that does, and between two tries."""

_MOST_SET_ASIDE = 5
"""Damaged files that are kept; the oldest are removed."""


class DamagedFileError(Exception):
    """A file that cannot be used. Its text says why."""


def is_damage(error: Exception) -> bool:
    """Return whether an error says that the file is damaged, not that the disk is."""
    damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
    return damaged or isinstance(error, DamagedFileError)


def foreign(path: Path, application: int) -> bool:
    """Return whether this is a database of another program, or a text."""
    with path.open("rb") as file:
        header = file.read(72)
    if header.startswith(b"SQLite format 3\0"):
        return header[68:] != application.to_bytes(4, "big")
    return bool(header) and min(header.translate(None, b"\t\n\r"), default=0) >= ord(" ")


def reason_of(error: Exception) -> str:
    """Return an error of a file in words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """One file, and how it is made.

    Attributes:
        path: Where it is.
        application: SQLite's `application_id`: whose file it is.
        migrations: Each makes a file of the version before it one of the next.
        event: Name of the log event when it is set aside.
        loss: What begins anew then, as a sentence.
        prepare: SQL for an empty file, before its first table.
        thorough: Whether it is read as a whole when it is opened.
        busy_seconds: How long a transaction waits for that of another process.
        keeps_others: Whether a file of another program, or of a newer release, is left where it is,
            and refused. Else it counts as damaged.
    """

    path: Path
    application: int
    migrations: Sequence[str]
    event: str
    loss: str
    prepare: str = ""
    thorough: bool = True
    busy_seconds: float = 1.0
    keeps_others: bool = True

    def open(self) -> sqlite3.Connection:
        """Open it, for any thread; make it if it is missing, set it aside if it is damaged.

        Raises:
            sqlite3.Error: It cannot be opened or written.
            OSError: Likewise.
        """
        with self._one_at_a_time():
            try:
                return self._opened()
            except (DamagedFileError, sqlite3.DatabaseError) as error:
                if not is_damage(error):
                    raise
                self._set_aside(error)
                return self._opened()

    def mark(self) -> tuple[int, int] | None:
        """Return what tells the file that is there now from another one; None if there is none."""
        try:
            about = self.path.stat()
        except OSError:
            return None
        return about.st_dev, about.st_ino

    def discard(self, mark: tuple[int, int] | None, error: Exception) -> None:
        """Set the file of this mark aside, unless another process has done so."""
        with self._one_at_a_time():
            if mark is not None and self.mark() == mark:
                self._set_aside(error)

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Let no other process open a file of this directory, where locks are supported."""
        if os.name != "posix":
            yield
            return
        import fcntl  # noqa: PLC0415 - of POSIX alone

        lock = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _ in range(int(_LOCK_SECONDS / _LOCK_STEP)):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # another process opens it, or was stopped meanwhile
                    time.sleep(_LOCK_STEP)
                    continue
                except OSError:
                    pass
                break
            yield
        finally:
            os.close(lock)

    def _opened(self) -> sqlite3.Connection:
        if not self.path.exists():
            self._make()
        elif self._is_cut_off():
            raise DamagedFileError("it is empty, or not whole, or no SQLite file")
        db = self._connect(self.path)
        try:
            self._check(db)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA journal_size_limit = 4000000")
            self._migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def _is_cut_off(self) -> bool:
        """Return whether the file does not end with a page. With a log beside it, it need not."""
        size, log = self.path.stat().st_size, self.path.with_name(f"{self.path.name}-wal")
        return not size or (size % _PAGE != 0 and not (log.exists() and log.stat().st_size))

    def _connect(self, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(
            path, timeout=self.busy_seconds, isolation_level=None, check_same_thread=False
        )

    def _make(self) -> None:
        """Make a new file under another name first, so that no process sees half of one."""
        for left in self.path.parent.glob(f"{self.path.name}.new-*"):  # by killed processes
            left.unlink(missing_ok=True)
        new = self.path.with_name(f"{self.path.name}.new-{os.getpid()}")
        try:
            os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with contextlib.closing(self._connect(new)) as db:
                db.execute(f"PRAGMA page_size = {_PAGE}")
                db.executescript(f"{self.prepare}; PRAGMA application_id = {self.application}")
                self._migrate(db)
            for suffix in ("-wal", "-shm"):  # of a file that was removed without them
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            new.replace(self.path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def _check(self, db: sqlite3.Connection) -> None:
        """Raise if this is no file of this release or an earlier one.

        What others use is no damage, if it is to be kept: such a file stays where it is.
        """
        not_ours = OSError if self.keeps_others else DamagedFileError
        if db.execute("PRAGMA application_id").fetchone()[0] != self.application:
            raise not_ours("another program has written it")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(self.migrations):
            raise not_ours(
                f"a newer release has written it (version {version}; this one reads"
                f" {len(self.migrations)})"
            )
        if self.thorough:
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise DamagedFileError(found.splitlines()[0])
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        made = re.findall(r"CREATE TABLE (\w+)", " ".join(self.migrations[:version]))
        for name in made:
            if name not in tables:
                raise DamagedFileError(f"it has no table {name}")

    def _migrate(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(self.migrations[version:], version + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT")

    def _set_aside(self, error: Exception) -> None:
        """Rename the file, with what belongs to it, and log where it is."""
        path = self.path
        date = datetime.fromtimestamp(SYSTEM_CLOCK.wall(), UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = path.with_name(f"{path.stem}.damaged-{date}{path.suffix}")
        for suffix in ("-wal", "-shm", ""):  # the file last: it must not go on without its log
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        log_event(
            logging.ERROR,
            self.event,
            "The file {path} is damaged ({reason}); it is now {aside}. " + self.loss,
            path=str(path),
            reason=reason_of(error),
            aside=str(aside),
        )
        old_ones = sorted(path.parent.glob(f"{path.stem}.damaged-*{path.suffix}"))
        for old in old_ones[:-_MOST_SET_ASIDE]:
            for suffix in ("-wal", "-shm", ""):
                old.with_name(old.name + suffix).unlink(missing_ok=True)
