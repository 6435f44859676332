"""The level below the memory: its interface, and the form of an answer in it.

Values are JSON (orjson) and are read by pydantic, strictly: a value that is damaged, or of another
format, is a miss. A value says by whom it was made, since it outlives the configuration.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError

from aigateway.figures import SecondLevelMetrics
from aigateway.messages import Completion

if TYPE_CHECKING:
    from aigateway.cache.memory import ExpiringLRU

__all__ = [
    "FORMAT",
    "MAX_VALUE_BYTES",
    "SecondLevel",
    "Stored",
    "WrittenAnswer",
    "decoded",
    "encoded",
    "report_defect",
]

FORMAT = 1
"""Of the values. Raise it if an older release would misread a value, or this one an older value."""

MAX_VALUE_BYTES = 1_000_000
"""Longest value. A longer answer (pictures, speech) stays in memory."""

_log = logging.getLogger(__name__)
_reported: set[str] = set()


class Stored(NamedTuple):
    """A value that was found.

    Attributes:
        value: See `decoded`.
        seconds: For which it is still fresh; below 0 if it is stale.
        waited: It came while this waited for another process.
    """

    value: bytes
    seconds: float
    waited: bool = False


class SecondLevel(Protocol):
    """Where answers outlive the process or reach other ones.

    No method raises because the store is away. What is written goes out in the background.
    """

    @property
    def available(self) -> bool:
        """Whether a read may find something, as far as is known."""

    def attach(self, memory: ExpiringLRU[Any]) -> None:
        """Drop from this memory what another process clears or deletes."""

    async def read(self, key: str, *, stale: bool = False) -> Stored | None:
        """Return a fresh value (or a stale one). A read that takes too long is a miss."""

    async def fetch(self, key: str, *, patience: float, background: bool) -> Stored | None:
        """Return a fresh value, or wait for a process that is about to write it.

        After None the caller gets the answer itself. Then it calls `write` or `give_up`.

        Args:
            key: The cache key.
            patience: Seconds to wait at most.
            background: Processes with other requests must not wait for this one.
        """

    def give_up(self, key: str, *, background: bool) -> None:
        """Note that no answer comes after such a `fetch`, so that others do not wait."""

    def write(self, key: str, value: bytes, seconds: float, stale_seconds: float) -> None:
        """Store a value in the background; drop it if that is not possible.

        Args:
            key: The cache key.
            value: See `encoded`; b"" is no value, and the older one is dropped.
            seconds: For which it is fresh.
            stale_seconds: For which it is kept after that.
        """

    async def written(self) -> None:
        """Wait until what was written before is stored, but not for long."""

    async def delete(self, key: str) -> bool:
        """Drop a value, in every process; return whether there was a fresh one."""

    async def clear(self) -> None:
        """Drop every value, in every process."""

    def stats(self) -> SecondLevelMetrics:
        """Return counters."""


class WrittenAnswer(NamedTuple):
    """What a value holds.

    Attributes:
        format: See `FORMAT`.
        provider: Its name.
        made_by: Digest of the provider's configuration; "" for an answer put in by hand.
        completion: The answer.
    """

    format: int
    provider: str
    made_by: str
    completion: Completion


_ADAPTER = TypeAdapter(
    WrittenAnswer, config=ConfigDict(strict=True, extra="forbid", val_json_bytes="base64")
)


def encoded(completion: Completion, provider: str, made_by: str) -> bytes:
    """Return an answer as a value; b"" if it is too long, or JSON cannot say it."""
    try:
        value = orjson.dumps((FORMAT, provider, made_by, completion), default=_base64)
    except orjson.JSONEncodeError:  # half a surrogate pair, a number of more than 64 bits
        return b""
    return value if len(value) <= MAX_VALUE_BYTES else b""


def decoded(value: bytes) -> WrittenAnswer | None:
    """Return the answer of a value; None if it is damaged or of another format."""
    try:
        answer = _ADAPTER.validate_json(value)
    except ValidationError:
        return None
    return answer if answer.format == FORMAT else None


def report_defect(error: Exception) -> None:
    """Log that a level has failed in a way that it should not: once of each kind.

    Requests go on without it. The error's text is left out, since it could hold an answer.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = "" if frame is None else f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
    kind = f"{type(error).__name__} at {place}"
    if kind not in _reported:
        _reported.add(kind)
        text = "The second level of the cache failed unexpectedly (%s). Requests go on without it."
        _log.error(text, kind)


def _base64(value: object) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    raise TypeError
