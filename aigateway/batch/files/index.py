"""Which lines are done, and where their records are, without holding a million of them in memory.

A private database on disk (SQLite's, which deletes it by itself), made anew at each start from the
input and the records: they are the truth, this only finds things in them.
"""

from __future__ import annotations

import hashlib
import sqlite3

from aigateway.errors import GatewayError

__all__ = ["NOWHERE", "Index"]

_CACHE_KIB = 8192
NOWHERE = -1
"""The place of a line that is done and has no record to copy: it failed for good."""

_SCHEMA = (
    f"PRAGMA cache_size = -{_CACHE_KIB}",
    "PRAGMA journal_mode = OFF",
    "PRAGMA synchronous = OFF",
    "CREATE TABLE lines (id BLOB PRIMARY KEY, number INTEGER, place INTEGER) WITHOUT ROWID",
    "CREATE TABLE answers (asked BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID",
    "BEGIN",
)


class Index:
    """Lines by id, and answers by what was asked. Close it after use.

    Raises:
        GatewayError: From any method: its disk is full.
    """

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None)
        for statement in _SCHEMA:
            self._execute(statement)

    def close(self) -> None:
        """Give the disk space back."""
        self._base.close()

    def enter(self, line_id: str, number: int) -> int | None:
        """Enter a line of the input; returns the number of the line that has this id already."""
        key = _name(line_id)
        fresh = self._execute("INSERT OR IGNORE INTO lines VALUES (?, ?, NULL)", key, number)
        if fresh.rowcount:
            return None
        return int(self._execute("SELECT number FROM lines WHERE id = ?", key).fetchone()[0])

    def finish(self, line_id: str, place: int = NOWHERE) -> bool:
        """Note that a line is done; returns whether it is one of the input and was not yet."""
        changed = self._execute(
            "UPDATE lines SET place = ? WHERE id = ? AND place IS NULL", place, _name(line_id)
        )
        return bool(changed.rowcount)

    def find(self, line_id: str) -> tuple[int, int | None]:
        """The number of the line with this id, and where its record begins.

        The number is 0 where no line is called so. The place is `NOWHERE` for a line that failed
        for good, and None for one that is not done.
        """
        found = self._execute("SELECT number, place FROM lines WHERE id = ?", _name(line_id))
        number, place = found.fetchone() or (0, None)
        return number, place

    def first(self, asked: bytes) -> bool:
        """Whether this is asked for the first time (and note that it is)."""
        fresh = self._execute("INSERT OR IGNORE INTO answers VALUES (?, NULL)", _digest(asked))
        return bool(fresh.rowcount)

    def answered(self, asked: bytes, place: int) -> None:
        """Note where the answer to this is."""
        self._execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", _digest(asked), place)

    def answer(self, asked: bytes) -> int | None:
        """Where the answer to this is, if there is one."""
        found = self._execute("SELECT place FROM answers WHERE asked = ?", _digest(asked))
        row = found.fetchone()
        return None if row is None else int(row[0])

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._base.execute(statement, values)
        except sqlite3.Error as error:
            problem = str(error)
        raise GatewayError(
            f"The index of the lines cannot be kept in the temporary folder ({problem}). Make room"
            " there, or name another folder in SQLITE_TMPDIR."
        )


def _name(line_id: str) -> bytes:
    return _digest(line_id.encode("utf-8", "surrogatepass"))


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()
