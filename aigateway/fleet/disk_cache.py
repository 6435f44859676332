"""The second level on disk, for scripts and notebooks: one SQLite file, for several processes.

The standard library's sqlite3, since no library keeps the promises. diskcache has had no release
since 2023, and reads pickles from its file (CVE-2025-69872), with `JSONDisk` too; the disk stores
of cashews and py-key-value are diskcache. cachelib, dogpile and sqlitedict pickle, and none of them
is bounded in bytes.

SQLite blocks, so all of it runs in two threads: one reads, one writes. They belong to no event
loop. The interpreter waits for the one that writes when it ends, so a script loses no answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from aigateway.cache.memory import ExpiringLRU
from aigateway.cache.second_level import Stored
from aigateway.clock import Clock
from aigateway.errors import ConfigurationError
from aigateway.figures import SecondLevelMetrics
from aigateway.fleet.sqlite_file import SqliteFile, foreign, is_damage, reason_of
from aigateway.telemetry.log import log_event

__all__ = ["DiskCache"]

T = TypeVar("T")

_APPLICATION = 0x41694361  # "AiCa"

_MIGRATIONS = (
    """
    CREATE TABLE answers (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, stale REAL NOT NULL, over REAL NOT NULL,
        used REAL NOT NULL
    );
    CREATE INDEX by_end ON answers (over);
    CREATE INDEX by_use ON answers (used)
    """,
)

_READ_SECONDS = 0.5
"""A read that takes longer is a miss. A busy disk is slow, and a vendor is slower."""

_DONE_SECONDS = 2.0
"""How long callers wait for the thread that writes, where they do."""

_QUEUE_BYTES = 64_000_000
"""Values that may wait to be written; more are dropped."""

_USED_SECONDS = 60.0
"""A further use within this time is not noted, since a note costs a write."""

_RETRY_SECONDS = 30.0
"""How long a file that cannot be used is left alone."""

_FULL, _ROOM = 0.95, 0.85
"""Parts of the bound: above the first, answers are dropped until it is below the second."""

_MOST_PURGES = 1000
"""Deletions that may wait for the file; with more, everything is cleared."""

_inherited: list[object] = []
"""Connections of a parent process; closing them here could harm the parent's."""


class DiskCache:
    """A second level in a file. Belongs to no event loop.

    Args:
        path: The file; it and its directory are made if need be.
        max_bytes: Bound of its size.
        clock: Time.

    Raises:
        ConfigurationError: There can be no such file.
    """

    def __init__(self, path: Path, max_bytes: int, clock: Clock) -> None:
        _check_place(path)
        self._file = SqliteFile(
            path,
            _APPLICATION,
            _MIGRATIONS,
            "cache.file_damaged",
            "The cache begins anew in a new file.",
            prepare="PRAGMA auto_vacuum = INCREMENTAL",
            thorough=False,  # the file is large, and what it has lost is asked for again
            busy_seconds=5.0,
        )
        self._max_bytes = max_bytes
        self._clock = clock
        self._overdue: Future[Any] | None = None
        self._unusable_until = -1.0
        self._failing = False
        self._queued = 0
        # What is cleared (None) or deleted and may still be in the file, by number; not read.
        self._purges: dict[int, str | None] = {}
        self._purge_number = 0
        self._late = False
        self._writes = self._dropped = 0
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._purging: Future[Any] | None = None  # the latest try
        self._lock = threading.Lock()
        self._connections: dict[str, tuple[sqlite3.Connection, tuple[int, int] | None]] = {}
        self._threads = {
            purpose: ThreadPoolExecutor(1, f"aigateway-cache-{purpose}")
            for purpose in ("read", "write")
        }
        self._close_at_end = weakref.finalize(self, _close, self._connections)

    @property
    def available(self) -> bool:
        """Whether it can be used now."""
        if self._overdue is not None and self._overdue.done():
            self._overdue = None
        return self._overdue is None and self._clock.now() >= self._unusable_until

    def attach(self, memory: ExpiringLRU[Any]) -> None:
        """Do nothing: other processes keep what they have in memory."""

    async def read(self, key: str, *, stale: bool = False) -> Stored | None:
        """See `SecondLevel`."""
        if self._purges and self._is_purged(key):
            return None
        future = self._submit("read", self._find, key)
        if future is None:
            return None
        try:
            async with self._clock.timeout(_READ_SECONDS):
                entry = await asyncio.wrap_future(future)
        except TimeoutError:
            if future.running():
                self._overdue = future  # the disk hangs: until it goes on, do not ask again
            return None
        if self._purges and self._is_purged(key):  # meanwhile
            return None
        return entry if entry is None or stale or entry.seconds > 0 else None

    def _is_purged(self, key: str) -> bool:
        """Return whether an answer is to be deleted; try again, if that has failed."""
        if self._purging is None or self._purging.done():
            self._purging = self._submit("write", self._purge, self._purge_number)
        purges = list(self._purges.values())
        return None in purges or key in purges

    async def fetch(self, key: str, *, patience: float, background: bool) -> Stored | None:
        """Read: no process waits for another one here."""
        del patience, background
        return await self.read(key)

    def give_up(self, key: str, *, background: bool) -> None:
        """Do nothing, likewise."""

    def write(self, key: str, value: bytes, seconds: float, stale_seconds: float) -> None:
        """See `SecondLevel`."""
        stale = self._clock.wall() + seconds
        future = None
        if not value:
            self._begin_purge(key)
        elif self._queued + len(value) <= _QUEUE_BYTES:
            over = stale + stale_seconds
            row = (key, value, stale, over)
            future = self._submit("write", self._store, self._purge_number, row)
        if future is None:
            self._dropped += 1
            return
        with self._lock:
            self._queued += len(value)
        future.add_done_callback(lambda _: self._unqueue(len(value)))

    async def written(self) -> None:
        """See `SecondLevel`."""
        await self._done(self._submit("write", lambda _: None))

    async def delete(self, key: str) -> bool:
        """See `SecondLevel`."""
        fresh = await self._done(self._begin_purge(key))
        return bool(fresh)

    async def clear(self) -> None:
        """See `SecondLevel`."""
        await self._done(self._begin_purge(None))

    def _begin_purge(self, key: str | None) -> Future[bool | None] | None:
        """Delete one answer, or all; what cannot be deleted now is not read until it is."""
        if len(self._purges) >= _MOST_PURGES:
            key = None
        if key is None:
            self._purges.clear()
        self._purge_number = number = self._purge_number + 1
        self._purges[number] = key
        self._purging = future = self._submit("write", self._purge, number)
        if future is None:
            self._tell_delay("it cannot be used now")
        return future

    def stats(self) -> SecondLevelMetrics:
        """See `SecondLevel`."""
        return {"second_writes": self._writes, "second_dropped": self._dropped}

    async def aclose(self) -> None:
        """Finish what is to be written, and close the file. The next use opens it again."""
        if self._purges:
            await self._done(self._submit("write", self._purge, self._purge_number))
        for purpose in ("write", "read"):
            await self._done(self._submit(purpose, self._close, purpose, opens=False))

    def _unqueue(self, size: int) -> None:
        with self._lock:
            self._queued -= size

    async def _done(self, future: Future[T] | None) -> T | None:
        if future is None:
            return None
        try:
            async with self._clock.timeout(_DONE_SECONDS):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            return None

    def _submit(
        self, purpose: str, work: Callable[..., T], *args: Any, opens: bool = True
    ) -> Future[T | None] | None:
        """Run work in a thread, with a connection first; return None if that cannot be."""
        if opens and not self.available:
            return None
        if self._process != os.getpid():  # forked: threads and connections are the parent's
            _inherited.append((self._connections, self._threads))
            self._close_at_end.detach()
            self._begin()
        run = self._run if opens else _call
        try:
            return self._threads[purpose].submit(run, purpose, work, args)
        except RuntimeError:  # the interpreter ends
            return None

    # ── in the threads ───────────────────────────────────────────────────────────────────────

    def _run(self, purpose: str, work: Callable[..., T], args: tuple[Any, ...]) -> T | None:
        try:
            try:
                result = work(self._connection(purpose), *args)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._file.discard(self._connections[purpose][1], error)
                self._close(purpose)
                result = work(self._connection(purpose), *args)
        except Exception as error:  # noqa: BLE001 - no surprise of a file may fail a request
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                self._close(purpose)
                self._fail(error)
            self._dropped += work == self._store
            if purpose == "write":
                self._tell_delay(reason_of(error))
            return None
        if self._failing:
            self._failing = False
            text = "The cache {path} can be used again."
            log_event(logging.WARNING, "cache.disk_back", text, path=str(self._file.path))
        return result

    def _fail(self, error: Exception) -> None:
        self._unusable_until = self._clock.now() + _RETRY_SECONDS
        if not self._failing:
            self._failing = True
            log_event(
                logging.WARNING,
                "cache.disk_lost",
                "The cache {path} cannot be used ({reason}): answers stay in memory alone. Check"
                " the disk, and who owns the file.",
                path=str(self._file.path),
                reason=reason_of(error),
            )

    def _tell_delay(self, reason: str) -> None:
        if self._purges and not self._late:
            self._late = True
            log_event(
                logging.WARNING,
                "cache.clear_delayed",
                "Answers could not be deleted from the cache {path} ({reason}). This process reads"
                " them no more, and deletes them when the file can be written. If it ends before"
                " that, clear again, or delete the file.",
                path=str(self._file.path),
                reason=reason,
            )

    def _connection(self, purpose: str) -> sqlite3.Connection:
        """Return the thread's connection to the file that is there now."""
        known = self._connections.get(purpose)
        mark = self._file.mark()
        if known is not None and known[1] == mark:
            return known[0]
        self._close(purpose)  # another process has set it aside, or it was removed
        self._file.path.parent.mkdir(parents=True, exist_ok=True)
        db = self._file.open()
        self._connections[purpose] = (db, self._file.mark())
        page = db.execute("PRAGMA page_size").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {max(1, self._max_bytes // page)}")
        return db

    def _close(self, purpose: str) -> None:
        known = self._connections.pop(purpose, None)
        if known is not None:
            known[0].close()

    def _find(self, db: sqlite3.Connection, key: str) -> Stored | None:
        now = self._clock.wall()
        row = db.execute(
            "SELECT value, stale, used FROM answers WHERE key = ? AND over > ?", (key, now)
        ).fetchone()
        if row is None:
            return None
        value, stale, used = row
        if abs(now - used) > _USED_SECONDS:
            self._submit("write", self._note_use, key, now)
        return Stored(value, stale - now)

    def _note_use(self, db: sqlite3.Connection, key: str, now: float) -> None:
        db.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))

    def _store(
        self, db: sqlite3.Connection, after: int, answer: tuple[str, bytes, float, float]
    ) -> None:
        self._purge(db, after)
        row = (*answer, self._clock.wall())
        if self._bytes(db) > self._max_bytes * _FULL:
            self._make_room(db)
        insert = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)"
        try:
            db.execute(insert, row)
        except sqlite3.OperationalError as error:  # the disk may be full before the bound is
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
                raise
            self._make_room(db)
            db.execute(insert, row)
        self._writes += 1

    def _bytes(self, db: sqlite3.Connection) -> int:
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _make_room(self, db: sqlite3.Connection) -> None:
        """Drop expired answers, then those that were not used for longest."""
        db.execute("DELETE FROM answers WHERE over <= ?", (self._clock.wall(),))
        some = max(1, db.execute("SELECT count(*) FROM answers").fetchone()[0] // 20)
        oldest = "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY used LIMIT ?)"
        while self._bytes(db) > self._max_bytes * _ROOM:
            if not db.execute(oldest, (some,)).rowcount:
                break
        db.executescript("PRAGMA incremental_vacuum")  # execute() frees one page

    def _purge(self, db: sqlite3.Connection, number: int) -> bool:
        """Do all that was ordered up to a number; return whether that one met a fresh answer."""
        fresh = False
        for each, key in sorted(self._purges.copy().items(), key=itemgetter(0)):
            if each <= number:
                fresh = self._clear(db) if key is None else self._delete(db, key)
                self._purges.pop(each, None)
        self._late = self._late and bool(self._purges)
        return fresh

    def _delete(self, db: sqlite3.Connection, key: str) -> bool:
        fresh = "SELECT 1 FROM answers WHERE key = ? AND stale > ?"
        found = db.execute(fresh, (key, self._clock.wall())).fetchone()
        db.execute("DELETE FROM answers WHERE key = ?", (key,))
        return found is not None

    def _clear(self, db: sqlite3.Connection) -> bool:
        found = db.execute("DELETE FROM answers").rowcount
        db.executescript("PRAGMA incremental_vacuum")  # execute() frees one page
        return found > 0


def _call(_purpose: str, work: Callable[..., T], args: tuple[Any, ...]) -> T:
    return work(*args)


def _close(connections: dict[str, tuple[sqlite3.Connection, Any]]) -> None:
    for db, _ in connections.values():
        db.close()


def _check_place(path: Path) -> None:
    """Raise if there can be no file here."""
    nearest = path.parent
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if path.is_dir():
        problem = "is a directory"
    elif path.exists() and not os.access(path, os.R_OK | os.W_OK):
        problem = "cannot be read and written"
    elif path.exists() and foreign(path, _APPLICATION):
        problem = "is a file of something else"
    elif not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        problem = f"cannot be made: {nearest} is no directory that can be written"
    else:
        return
    raise ConfigurationError(f'cache_url: {path} {problem}. Give a file, as "sqlite:///cache.db".')
