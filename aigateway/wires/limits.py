"""Rate limits: what is left of them, and how long a vendor asks for a pause.

The headers of every response may say that nothing is left; then no request is spent on finding
that out. These figures are hints. Where they are missing or unreadable, the vendor's refusal comes
soon enough.

A refusal gives the pause in one of four ways: `retry-after-ms`, `retry-after` in seconds,
`retry-after` as an HTTP date, and Google's `RetryInfo.retryDelay` in the body. A header takes
precedence. What cannot be read, or makes no sense, is ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from aigateway.clock import Clock
from aigateway.wires.wire import LimitHeaders

__all__ = [
    "LONGEST_PAUSE",
    "LONGEST_RETRY_AFTER",
    "Quota",
    "retry_after_from_headers",
    "seconds_from_google_delay",
    "seconds_of_duration",
    "seconds_until",
]

LONGEST_PAUSE = 60.0
"""Seconds. These limits are counted per minute. One per day names hours: too long for a hint, and
its refusal names them again."""


_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6}
_PART = r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|us|µs|[dhms])"
_PARTS = re.compile(_PART, re.ASCII)
_DURATION = re.compile(f"(?:{_PART})+", re.ASCII)
_PLAIN_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?", re.ASCII)


class Quota:
    """What one provider's latest response said about its limits.

    Attributes:
        over: When the limits allow a call again, on the clock's scale; None if they do now.
    """

    __slots__ = ("_clock", "_limits", "over")

    def __init__(self, limits: LimitHeaders | None, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self.over: float | None = None

    def note(self, headers: Mapping[str, str]) -> None:
        """Read the headers (names in any case). Never raises."""
        self.over = None
        for remaining, reset in self._limits.headers if self._limits else ():
            if headers.get(remaining) == "0":
                self._note_reset(headers.get(reset, ""))

    def pause(self) -> float | None:
        """Return the seconds (at most `LONGEST_PAUSE`) until the limits allow a call, once.

        None also where something is used up and no readable time was given for it.
        """
        over, self.over = self.over, None
        return None if over is None else max(0.0, over - self._clock.now())

    def _note_reset(self, text: str) -> None:
        assert self._limits is not None  # noqa: S101 - a header of theirs came
        text = text.strip()
        if self._limits.are_times:
            seconds = seconds_until(text, self._clock.wall())
        else:
            seconds = seconds_of_duration(text)
        if seconds is not None:
            over = self._clock.now() + min(seconds, LONGEST_PAUSE)
            self.over = max(over, self.over or over)  # all that is used up has to come back


def seconds_of_duration(text: str) -> float | None:
    """Read "1s", "6m0s", "12ms", "1h2m3.5s" or plain seconds; None for anything else."""
    if _PLAIN_SECONDS.fullmatch(text):
        return float(text)
    if len(text) > 64 or not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))


def seconds_until(text: str, now_wall: float) -> float | None:
    """Read an RFC 3339 time as seconds from now, at least 0; None for anything else."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    if when.tzinfo is None:  # the time zone is unknown
        return None
    try:
        return max(0.0, when.timestamp() - now_wall)
    except OverflowError:
        return None


LONGEST_RETRY_AFTER = 86_400.0
"""Seconds. A vendor that asks for more is asked again after a day all the same."""

_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?", re.ASCII)
_GOOGLE_DELAY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)s", re.ASCII)


def retry_after_from_headers(headers: Mapping[str, str], *, now_wall: float) -> float | None:
    """Read the waiting time from response headers (names in lower case), in seconds."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return _clamped(float(milliseconds) / 1000)
    value = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(value):
        return _clamped(float(value))
    return _until_date(value, now_wall)


def seconds_from_google_delay(value: object) -> float | None:
    """Read a protobuf duration such as `"34s"` or `"0.5s"`."""
    match = _GOOGLE_DELAY.fullmatch(value.strip()) if isinstance(value, str) else None
    return _clamped(float(match[1])) if match else None


def _until_date(value: str, now_wall: float) -> float | None:
    # Every HTTP date names a month; the parser is lenient enough to make dates of stray numbers.
    if not value or len(value) > 64 or not any(map(str.isalpha, value)):
        return None
    try:
        when = parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = when.timestamp() - now_wall
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    # A date in the past means "now": the vendor's clock and ours need not agree.
    return _clamped(max(0.0, seconds)) if math.isfinite(seconds) else None


def _clamped(seconds: float) -> float:
    return min(seconds, LONGEST_RETRY_AFTER)
