"""What a vendor says is left of its limits, read from the headers of every response.

Who knows that nothing is left need not spend a request on finding it out. The figures are hints:
where they are missing or cannot be read, the vendor's own refusal says it soon enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from aigateway.clock import Clock
from aigateway.wires.wire import LimitHeaders

__all__ = ["LONGEST_PAUSE", "Quota", "seconds_of_duration", "seconds_until"]

LONGEST_PAUSE = 60.0
"""Seconds. These limits are counted per minute. One that is counted per day names hours, for which
nobody should be left alone on a hint: its refusal names them again."""


_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6}
_PART = r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|us|µs|[dhms])"
_PARTS = re.compile(_PART, re.ASCII)
_DURATION = re.compile(f"(?:{_PART})+", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?", re.ASCII)


class Quota:
    """What one provider's latest response said about its limits.

    Args:
        limits: The vendor's headers; None if it sends none.
        clock: Reads dates, and lets a pause that has been noted grow shorter.
    """

    __slots__ = ("_clock", "_limits", "_over")

    def __init__(self, limits: LimitHeaders | None, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._over: float | None = None

    def note(self, headers: Mapping[str, str]) -> None:
        """Read the headers (names in any case). Never raises."""
        self._over = None
        for remaining, reset in self._limits.headers if self._limits else ():
            if headers.get(remaining) == "0":
                self._note_reset(headers.get(reset, ""))

    def pause(self) -> float | None:
        """Seconds until the limits allow a call again, if nothing is left now. Said once.

        Returns:
            At most `LONGEST_PAUSE`; None also where something is used up and no readable time was
            given for it.
        """
        over, self._over = self._over, None
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
            self._over = max(over, self._over or over)  # all that is used up has to come back


def seconds_of_duration(text: str) -> float | None:
    """Read "1s", "6m0s", "12ms", "1h2m3.5s" or plain seconds; None for anything else."""
    if _NUMBER.fullmatch(text):
        return float(text)
    if len(text) > 64 or not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))


def seconds_until(text: str, now_wall: float) -> float | None:
    """Read an RFC 3339 time as seconds from now, at least 0; None for anything else.

    Args:
        text: "2026-01-31T12:00:00Z".
        now_wall: Seconds since the Unix epoch.
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    if when.tzinfo is None:  # whose clock that is, nobody knows
        return None
    try:
        return max(0.0, when.timestamp() - now_wall)
    except OverflowError:
        return None
