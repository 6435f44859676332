"""Which lines are done, and where their records are, without holding a million of them in memory.

A private database on disk (SQLite's, which deletes it by itself), made anew at each start from the
input and the records: they are the truth, this only finds things in them.
"""

from __future__ import annotations

import hashlib
import sqlite3

__all__ = ["Index"]

_CACHE_KIB = 8192
_NOWHERE = -1
"""The place of a line that is done and has no record to copy: it failed for good."""


class Index:
    """Lines by id, and answers by what was asked. Close it after use."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(
            f"""
            PRAGMA cache_size = -{_CACHE_KIB};
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE lines (id BLOB PRIMARY KEY, number INTEGER, place INTEGER) WITHOUT ROWID;
            CREATE TABLE answers (asked BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID;
            BEGIN
            """
        )

    def close(self) -> None:
        """Give the disk space back."""
        self._base.close()

    def enter(self, line_id: str, number: int) -> int | None:
        """Enter a line of the input; returns the number of the line that has this id already."""
        key = _digest(line_id.encode("utf-8", "surrogatepass"))
        fresh = self._base.execute(
            "INSERT OR IGNORE INTO lines VALUES (?, ?, NULL)", (key, number)
        ).rowcount
        if fresh:
            return None
        (first,) = self._base.execute("SELECT number FROM lines WHERE id = ?", (key,)).fetchone()
        return int(first)

    def finish(self, line_id: str, place: int = _NOWHERE) -> bool:
        """Note that a line is done; returns whether it is one of the input and was not yet."""
        key = _digest(line_id.encode("utf-8", "surrogatepass"))
        changed = self._base.execute(
            "UPDATE lines SET place = ? WHERE id = ? AND place IS NULL", (place, key)
        ).rowcount
        return bool(changed)

    def is_done(self, line_id: str) -> bool:
        """Whether the line is done."""
        return self.find(line_id)[1] is not None

    def find(self, line_id: str) -> tuple[int, int | None]:
        """The number of the line with this id, and where its record begins.

        That is negative for one that failed for good, and None for one that is not done.
        """
        key = _digest(line_id.encode("utf-8", "surrogatepass"))
        found = self._base.execute(
            "SELECT number, place FROM lines WHERE id = ?", (key,)
        ).fetchone()
        return (0, None) if found is None else (found[0], found[1])

    def first(self, asked: bytes) -> bool:
        """Whether this is asked for the first time (and note that it is)."""
        return bool(
            self._base.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, NULL)", (_digest(asked),)
            ).rowcount
        )

    def answered(self, asked: bytes, place: int) -> None:
        """Note where the answer to this is."""
        self._base.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (_digest(asked), place))

    def answer(self, asked: bytes) -> int | None:
        """Where the answer to this is, if there is one."""
        found = self._base.execute(
            "SELECT place FROM answers WHERE asked = ?", (_digest(asked),)
        ).fetchone()
        return None if found is None else int(found[0])


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()
