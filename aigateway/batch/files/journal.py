"""Records in a file, one line each, written so that a kill at any moment loses none.

A record is handed to the operating system in one piece before anything else happens. What a kill
(or a full disk) can leave is a torn last line, which is cut off when the file is opened again, or
completed where only its end of line is missing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import orjson

from aigateway.batch.files.records import Record, encoded, is_record
from aigateway.errors import ConfigurationError, GatewayError

__all__ = ["Journal", "JournalError"]

_TAIL = 1 << 16


class JournalError(GatewayError):
    """A record could not be written, or read. The file ends with a whole one."""


class Journal:
    """A file of records that this process alone writes to.

    Args:
        path: The file; made if it is not there. A torn last line is repaired.

    Raises:
        ConfigurationError: It cannot be written, or another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is no file that records could be kept in.")
        try:
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None
        try:
            _lock(self._file, path)
            self._end = self._repair()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_empty(self) -> bool:
        """Whether there is no record in it."""
        return self._end == 0

    def append(self, record: Record) -> int:
        """Write a record, and return where it begins.

        Raises:
            JournalError: The disk is full, or the like.
        """
        text, place = encoded(record), self._end
        written = 0
        with self._telling():
            try:
                while written < len(text):
                    written += os.write(self._file.fileno(), text[written:])
            except OSError:
                if written:
                    os.ftruncate(self._file.fileno(), place)
                raise
        self._end = place + len(text)
        return place

    def at(self, place: int) -> Record:
        """The record that begins there.

        Raises:
            JournalError: It cannot be read.
        """
        with self._telling("read"), self.path.open("rb") as file:
            file.seek(place)
            record: Record = orjson.loads(file.readline())
            return record

    def records(self) -> Iterator[tuple[int, Record]]:
        """All records, each with the place where it begins.

        Raises:
            ConfigurationError: Something in the file is no record.
        """
        place = 0
        with self.path.open("rb") as file:
            for number, text in enumerate(file, 1):
                record = _record(text)
                if record is None:
                    raise ConfigurationError(
                        f"{self.path}, line {number} is no record of a batch, so there is nothing"
                        " to go on from. Move the file away, or name another one."
                    )
                yield place, record
                place += len(text)

    def sync(self) -> None:
        """Have the disk itself keep everything written so far.

        Raises:
            JournalError: It does not.
        """
        with self._telling():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync, and let others write."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    @contextlib.contextmanager
    def _telling(self, what: str = "written") -> Iterator[None]:
        """Say which file it was."""
        try:
            yield
        except OSError as error:
            problem = error.strerror
        else:
            return
        raise JournalError(f"{self.path} cannot be {what}: {problem}.")

    def _repair(self) -> int:
        """Mend what a kill has left of the last line. Returns where the next record begins."""
        end = os.fstat(self._file.fileno()).st_size
        torn = self._after_last_end_of_line(end)
        if torn == end:
            return end
        self._file.seek(torn)
        if _record(self._file.read()) is None:
            os.ftruncate(self._file.fileno(), torn)
            return torn
        os.write(self._file.fileno(), b"\n")  # only that was missing
        return end + 1

    def _after_last_end_of_line(self, end: int) -> int:
        while end > 0:
            begin = max(0, end - _TAIL)
            self._file.seek(begin)
            found = self._file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0


def _record(text: bytes) -> Record | None:
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return record if is_record(record) else None


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep other processes from writing here; the lock goes with this one, even if it is killed."""
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415 - there is none on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigurationError(
            f"Another process is writing to {path}. Wait for it, or name another file."
        ) from None
