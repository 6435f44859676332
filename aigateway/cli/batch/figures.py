"""How numbers are written for people: on the screen, in the summary, in the report."""

from __future__ import annotations

import math

__all__ = ["clock_time", "count", "dollars", "duration", "per_second", "percent", "printable"]

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_SMALL_DOLLARS = 100
"""Below this the hundredths of a cent are of interest."""


def count(number: int) -> str:
    """1,234,567."""
    return f"{number:,}"


def percent(part: int, whole: int) -> str:
    """6.0 %; rounded down, so that 100.0 % means all."""
    share = math.floor(1000 * part / whole) / 10 if whole else 100.0
    return f"{share:.1f} %" if share or not part else "<0.1 %"


def dollars(cost: float) -> str:
    """$0.0123, $1,234.50."""
    return f"${cost:,.4f}" if cost < _SMALL_DOLLARS else f"${cost:,.2f}"


def duration(seconds: float | None) -> str:
    """How long a call took: 0.4 ms, 12 ms, 1.23 s, 95 s; "-" where nobody knows."""
    if seconds is None:
        return "-"
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    return f"{seconds:,.1f} s" if seconds < 99.95 else f"{seconds:,.0f} s"


def clock_time(seconds: float) -> str:
    """How long a job takes: 3:12, 1:05:00, 2 d 3:00:00."""
    whole = round(seconds)
    days, rest = divmod(whole, _DAY)
    hours, rest = divmod(rest, _HOUR)
    minutes, rest = divmod(rest, _MINUTE)
    text = f"{hours}:{minutes:02}:{rest:02}" if days or hours else f"{minutes}:{rest:02}"
    return f"{days} d {text}" if days else text


def per_second(rate: float | None) -> str:
    """A rate without its unit: 0.05, 3.2, 512; "-" where nobody knows."""
    if rate is None:
        return "-"
    if rate < 0.995:
        return f"{rate:.2f}"
    return f"{rate:.1f}" if rate < 99.95 else f"{rate:.0f}"


def printable(text: str) -> str:
    """A name that cannot move a cursor or break a page, whatever somebody has called a provider."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
