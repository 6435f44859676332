"""When a vendor says it wants to be left alone until, in seconds from now.

Vendors say it in four ways: `retry-after-ms`, `retry-after` in seconds, `retry-after` as an
HTTP date, and Google's `RetryInfo.retryDelay` in the body. A header stands over the body. What
cannot be read, or makes no sense, is as if it had not been said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["LONGEST_RETRY_AFTER", "retry_after_from_headers", "seconds_from_google_delay"]

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds. A vendor that asks for more is asked again after a day all the same."""

_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?", re.ASCII)
_GOOGLE_DELAY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)s", re.ASCII)


def retry_after_from_headers(headers: Mapping[str, str], *, now_wall: float) -> float | None:
    """Read the waiting time from response headers.

    Args:
        headers: Response headers with lower-case names.
        now_wall: Seconds since the Unix epoch, against which a date is read.

    Returns:
        Seconds in 0..`LONGEST_RETRY_AFTER`, or None if nothing readable was said.
    """
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
