"""A failing scenario made smaller, until every part of it is needed to break the promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.simulation.scenario import Scenario
from tests.simulation.world import Played, play

__all__ = ["shrunk"]

_PARTS = ("asks", "batches", "troubles", "stalls", "chores", "providers")

_PLAIN: dict[str, Any] = {
    "cancelled_after": None,
    "leaves_after": None,
    "dawdles": 0.0,
    "timeout": None,
    "model": None,
    "hedge": None,
    "resume": None,
    "cache": False,
}
"""A request without frills."""


def shrunk(scenario: Scenario, promise: str, most: int = 400) -> tuple[Scenario, Played]:
    """The smallest scenario found that still breaks this promise, and how it goes.

    Args:
        scenario: Breaks it.
        promise: As in `Broken.promise`.
        most: Runs that may be spent.
    """
    runs = 0
    best, played = scenario, play(scenario)

    def still_breaks(smaller: Scenario) -> bool:
        nonlocal runs, best, played
        runs += 1
        try:
            result = play(smaller)
        except ValueError:  # no gateway can be made of it
            return False
        if not any(broken.promise == promise for broken in result.broken):
            return False
        best, played = smaller, result
        return True

    progress = True
    while progress and runs < most:
        progress = False
        for part in _PARTS:
            progress |= _halve(part, lambda: best, still_breaks)
        for smaller in _simpler(best):
            if runs >= most:
                break
            progress |= still_breaks(smaller(best))
    return best, played


def _halve(
    part: str, current: Callable[[], Scenario], still_breaks: Callable[[Scenario], bool]
) -> bool:
    """Leave out halves, then quarters, ... of one part of the scenario."""
    progress = False
    size = len(getattr(current(), part))
    while size:
        begin = 0
        while begin < len(items := getattr(current(), part)):
            less = items[:begin] + items[begin + size :]
            if (part == "providers" and not less) or not still_breaks(
                replace(current(), **{part: less})
            ):
                begin += size
            else:
                progress = True
        size //= 2
    return progress


def _simpler(scenario: Scenario) -> Iterator[Callable[[Scenario], Scenario]]:
    """Ways to make what is left plainer, one at a time."""
    if scenario.leaks:
        yield lambda now: replace(now, leaks=0.0)
    if scenario.closes_at is not None:
        yield lambda now: replace(now, closes_at=None)
    for name in scenario.settings:
        yield lambda now, name=name: replace(  # type: ignore[misc]  # bound now
            now, settings={k: v for k, v in now.settings.items() if k != name}
        )
    for place, ask in enumerate(scenario.asks):
        for name, value in _PLAIN.items():
            if getattr(ask, name) != value:
                yield lambda now, at=place, plain={name: value}: _with(now, at, plain)  # type: ignore[misc]


def _with(scenario: Scenario, place: int, plain: dict[str, Any]) -> Scenario:
    asks = list(scenario.asks)
    if place < len(asks):
        asks[place] = replace(asks[place], **plain)
    return replace(scenario, asks=tuple(asks))
