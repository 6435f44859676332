"""Which lines are done and where their records are, on disk instead of in memory.

A private SQLite database, deleted by SQLite itself. Each start rebuilds it from the input and the
records, which are the only truth.
"""

from __future__ import annotations

import hashlib
import sqlite3

from aigateway.errors import GatewayError

__all__ = ["Index", "failed_at"]

_CACHE_KIB = 8192

_SCHEMA = (
    f"PRAGMA cache_size = -{_CACHE_KIB}",
    "PRAGMA journal_mode = OFF",
    "PRAGMA synchronous = OFF",
    "CREATE TABLE lines (id BLOB PRIMARY KEY, number INTEGER, place INTEGER) WITHOUT ROWID",
    "CREATE TABLE answers (asked BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID",
    "BEGIN",
)


class Index:
    """Lines by id, and answers by request. Close it after use.

    Raises:
        GatewayError: From any method: its disk is full.
    """

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None)
        for statement in _SCHEMA:
            self._execute(statement)

    def close(self) -> None:
        """Free the disk space."""
        self._base.close()

    def enter(self, line_id: str, number: int) -> int | None:
        """Enter a line. Return the number of the earlier line with this id, if there is one."""
        key = _name(line_id)
        fresh = self._execute("INSERT OR IGNORE INTO lines VALUES (?, ?, NULL)", key, number)
        if fresh.rowcount:
            return None
        return int(self._execute("SELECT number FROM lines WHERE id = ?", key).fetchone()[0])

    def finish(self, line_id: str, place: int) -> bool:
        """Mark a line as done. Return whether it is in the input and was not done yet."""
        changed = self._execute(
            "UPDATE lines SET place = ? WHERE id = ? AND place IS NULL", place, _name(line_id)
        )
        return bool(changed.rowcount)

    def find(self, line_id: str) -> tuple[int, int | None]:
        """Return the number of a line and the offset of its record.

        The number is 0 if no line has this id. The offset is None for a line that is not done, and
        below 0 for one that failed: see `failed_at`.
        """
        found = self._execute("SELECT number, place FROM lines WHERE id = ?", _name(line_id))
        number, place = found.fetchone() or (0, None)
        return number, place

    def first(self, request: bytes) -> bool:
        """Note a request, and return whether it is new."""
        fresh = self._execute("INSERT OR IGNORE INTO answers VALUES (?, NULL)", _digest(request))
        return bool(fresh.rowcount)

    def answered(self, request: bytes, place: int) -> None:
        """Note the offset of a request's answer."""
        self._execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", _digest(request), place)

    def answer(self, request: bytes) -> int | None:
        """Return the offset of a request's answer, if there is one."""
        found = self._execute("SELECT place FROM answers WHERE asked = ?", _digest(request))
        row = found.fetchone()
        return None if row is None else int(row[0])

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._base.execute(statement, values)
        except sqlite3.Error as error:
            problem = str(error)
        raise GatewayError(
            f"The index of the lines cannot be written to the temporary folder ({problem}). Free"
            " disk space there, or name another folder in SQLITE_TMPDIR."
        )


def failed_at(offset: int) -> int:
    """Return how the index notes a record of the errors file; its own inverse."""
    return -1 - offset


def _name(line_id: str) -> bytes:
    return _digest(line_id.encode("utf-8", "surrogatepass"))


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()
