"""The records of a job, and the file that keeps them.

A record has OpenAI's batch output format (https://platform.openai.com/docs/guides/batch), so
programs that read OpenAI's files read these. Additional facts stand under "aigateway"; a resumed
job needs nothing else.

A `Journal` hands each record to the operating system in one write before anything else happens. A
kill or a full disk can leave a torn last line. The next open cuts it off, or completes it where
only the line end is missing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import orjson

from aigateway.batch.files.input import Problem
from aigateway.errors import (
    ConfigurationError,
    GatewayError,
    ProviderFailure,
    RequestRejectedError,
    error_words,
)
from aigateway.messages import BatchItem, ChatResponse

__all__ = [
    "Journal",
    "JournalError",
    "JournalInUseError",
    "Record",
    "answer_record",
    "body_of",
    "check_locks_are_seen",
    "copied",
    "encoded",
    "error_record",
    "item_record",
    "problem_record",
]

Record = dict[str, Any]
"""One line of the output, or of the errors file."""

_TAIL_BYTES = 1 << 16


# ── records ──────────────────────────────────────────────────────────────────────────────────────


def item_record(line_id: str, item: BatchItem) -> Record:
    """Return the record of a finished request."""
    if item.response is not None:
        return answer_record(line_id, item.response)
    assert item.error is not None  # noqa: S101 - an item has one of the two
    return error_record(line_id, item.error)


def answer_record(line_id: str, response: ChatResponse) -> Record:
    """Return the record of an answer."""
    body = {
        "status_code": 200,
        "request_id": response.request_id,
        "body": response.to_openai(),
    }
    about = {
        "provider": response.provider,
        "cost_usd": response.cost_usd,
        "cached": response.cached or response.coalesced,
        "latency_seconds": round(response.latency_seconds, 6),
        "attempts": [
            _attempt(each.provider, each.failure, each.status, round(each.latency_seconds, 6))
            for each in response.attempts
        ],
    }
    return _record(line_id, about, response=body)


def body_of(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a record's `chat.completion`, also of an answer that does not fit its schema."""
    body: Mapping[str, Any] | None = (record["response"] or record["aigateway"]).get("body")
    return body


def copied(record: Record, line_id: str) -> Record:
    """Return the record of a line that repeats another one: the same result, at no cost."""
    about = record["aigateway"] | {"cached": True, "cost_usd": 0.0, "attempts": []}
    about["same_as"] = record["custom_id"]
    return record | {"id": _new_id(), "custom_id": line_id, "aigateway": about}


def error_record(line_id: str, error: Exception) -> Record:
    """Return the record of a line without an answer.

    `final` marks an error of the request itself: sending it again is useless.
    """
    code, message = error_words(error)
    causes: tuple[ProviderFailure, ...] = getattr(error, "causes", ())
    about = {
        "final": isinstance(error, RequestRejectedError),
        "attempts": [_attempt(each.provider, each.kind, each.status, None) for each in causes],
    }
    return _record(line_id, about, error={"code": code, "message": message})


def problem_record(line_id: str, problem: Problem) -> Record:
    """Return the record of a line that cannot be sent."""
    error = {"code": "bad_line", "message": f"Line {problem.number}: {problem.what}."}
    return _record(line_id, {"final": True, "attempts": []}, error=error)


def encoded(record: Record) -> bytes:
    """Return the record as a line of JSON.

    A vendor may cut an answer in the middle of a character. JSON cannot hold the rest of that
    character, so a question mark replaces it.
    """
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _record(
    line_id: str,
    about: Mapping[str, Any],
    *,
    response: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> Record:
    return {
        "id": _new_id(),
        "custom_id": line_id,
        "response": response,
        "error": error,
        "aigateway": about,
    }


def _new_id() -> str:
    return f"batch_req_{os.urandom(12).hex()}"


def _attempt(
    provider: str, failure: str | None, status: int | None, latency_seconds: float | None
) -> dict[str, Any]:
    return {
        "provider": provider,
        "failure": failure,
        "status": status,
        "latency_seconds": latency_seconds,
    }


def _decoded(text: bytes) -> Record | None:
    """Return the record on a line; None if the line is not a whole record."""
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    whole = (
        isinstance(record, dict)
        and isinstance(record.get("custom_id"), str)
        and isinstance(record.get("aigateway"), dict)
        and (record.get("response") is None) != (record.get("error") is None)
    )
    return record if whole else None


# ── their file ───────────────────────────────────────────────────────────────────────────────────


class JournalError(GatewayError):
    """A record could not be written, or read. The file ends with a whole one."""


class JournalInUseError(ConfigurationError):
    """Another process writes to the file."""


class Journal:
    """A file of records that only this process writes to.

    Args:
        path: The file; created if missing. A torn last line is repaired.

    Raises:
        ConfigurationError: The file cannot be written, or another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is not a regular file.")
        self._file = _locked(path)
        try:
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
        """Whether the file holds no record."""
        return self._end == 0

    def append(self, record: Record) -> int:
        """Write a record, and return its byte offset.

        Raises:
            JournalError: The disk is full, or the like.
        """
        text, place = encoded(record), self._end
        written = 0
        with self._naming_errors():
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
        """Return the record at a byte offset. Raises `JournalError` if it cannot be read."""
        with self._naming_errors("read"), self.path.open("rb") as file:
            return _read(file, place)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[int], Record]]:
        """Give a function that returns the record at a byte offset, for many of them.

        Raises:
            OSError: The file cannot be read.
        """
        with self.path.open("rb") as file:
            yield functools.partial(_read, file)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield all records with their byte offsets.

        Raises:
            ConfigurationError: A line of the file is not a record.
        """
        place = 0
        with self.path.open("rb") as file:
            for number, text in enumerate(file, 1):
                record = _decoded(text)
                if record is None:
                    raise ConfigurationError(
                        f"{self.path}, line {number} is not a record of a batch, so the job cannot"
                        " be resumed. Move the file away, or name another one."
                    )
                yield place, record
                place += len(text)

    def sync(self) -> None:
        """Force everything written so far to the disk.

        Raises:
            JournalError: The disk refuses.
        """
        with self._naming_errors():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync, close and unlock the file."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    @contextlib.contextmanager
    def _naming_errors(self, what: str = "written") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = error.strerror
        else:
            return
        raise JournalError(f"{self.path} cannot be {what}: {problem}.")

    def _repair(self) -> int:
        """Repair a torn last line. Return the offset of the next record."""
        end = os.fstat(self._file.fileno()).st_size
        torn = self._after_last_line_end(end)
        if torn == end:
            return end
        self._file.seek(torn)
        if _decoded(self._file.read()) is None:
            os.ftruncate(self._file.fileno(), torn)
            return torn
        os.write(self._file.fileno(), b"\n")  # only the line end is missing
        return end + 1

    def _after_last_line_end(self, end: int) -> int:
        while end > 0:
            begin = max(0, end - _TAIL_BYTES)
            self._file.seek(begin)
            found = self._file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0


def _read(file: IO[bytes], place: int) -> Record:
    file.seek(place)
    record: Record = orjson.loads(file.readline())
    return record


def check_locks_are_seen(path: Path) -> None:
    """Check that this process sees the lock of the one that writes to a file.

    Raises:
        ConfigurationError: It does not, or the disk has no locks.
    """
    if sys.platform == "win32":
        return
    with contextlib.suppress(JournalInUseError), _locked(path):
        raise ConfigurationError(
            f"A lock of {path} on one machine is not seen on another, so two could write the same"
            " file. Use a file system whose locks hold for all machines, such as NFS 4, and mount"
            " it without local_lock."
        )


def _locked(path: Path) -> IO[bytes]:
    """Open a file, and lock it against other processes. A kill of this one also unlocks it."""
    while True:
        try:
            file = path.open("ab+", buffering=0)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None
        try:
            _lock(file, path)
            if _is_at(path, file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # it was removed or replaced just before


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock(file: IO[bytes], path: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415 - missing on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EAGAIN}:
            raise JournalInUseError(
                f"Another process is writing to {path}. Wait for it, or name another file."
            ) from None
        raise ConfigurationError(
            f"{path} cannot be locked: {error.strerror}. Its file system must have locks (flock),"
            " so that no two processes write to it."
        ) from None
