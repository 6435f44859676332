"""What can be said of the guards when a run is over, from outside: two of the three laws.

- The last candidate is asked: no request ends because a provider that it has not tried was left
  alone, unless that one was forced open, cooled down, or had its dose taken by others.
- Last resort is dosed: a provider that answers nothing gets a trickle.

`invariants.py` holds blame to the second law while the run goes on. What is said of many requests
together (brownouts, recovery, innocents beside bad prompts) is in `test_brownouts.py` and its
neighbours.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from aigateway.errors import AllProvidersFailedError, DeadlineExceededError, ProviderFailure
from aigateway.events import CircuitForced, Event, Operation
from tests.simulation.invariants import SLACK, Asked
from tests.simulation.vendors import VendorCall

__all__ = ["MAX_COOLDOWN", "PURSE", "TRICKLE", "check", "overdoses", "refusals"]

TRICKLE = 4.0
"""Attempts a second that a provider gets at most whose purse is empty."""

PURSE = 200
"""Attempts that successes have saved up at most."""

MAX_COOLDOWN = 300.0
"""Seconds after which a cooling provider may be asked, whatever it said; where no setting does."""

LEFT_ALONE = {"circuit_open": 1 / TRICKLE, "degraded": 1 / TRICKLE, "disabled": 10.0}
"""Reasons that keep nobody from a last candidate, and the seconds between two of its doses."""

_DEADLY = frozenset({"brownout", "crash", "malformed", "outage", "overloaded", "reset"})
"""Troubles that a circuit counts for certain."""


class Seen(Protocol):
    """What a watch has seen of a run."""

    asked: list[Asked]
    happened: list[tuple[float, Event]]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The gateway's."""

    def broken(self, promise: str, how: str) -> None:
        """Write down a promise that was not kept."""


def check(seen: Seen, log: Sequence[VendorCall]) -> None:
    """Write down every law that was broken.

    Args:
        seen: By the watch.
        log: Every call that reached a vendor, in the order in which they began.
    """
    for how in refusals(seen, log):
        seen.broken("last_candidate", how)
    for how in overdoses(seen, log):
        seen.broken("dose", how)


def refusals(seen: Seen, log: Sequence[VendorCall]) -> Iterator[str]:
    """Requests that ended though there was a candidate that could have been asked."""
    calls: defaultdict[tuple[str, Operation], list[VendorCall]] = defaultdict(list)
    for call in log:
        calls[call.provider, call.operation].append(call)
    longest = seen.settings.get("max_cooldown_seconds", MAX_COOLDOWN)
    for asked in seen.asked:
        error = asked.error
        if asked.ended is None or not isinstance(
            error, AllProvidersFailedError | DeadlineExceededError
        ):
            continue
        operation: Operation = "embeddings" if asked.ask.kind == "embed" else "chat"
        for cause in error.causes:
            name, who = cause.provider, f"#{asked.ask.number} ended at {asked.ended:.3f}"
            wait = cause.retry_after_seconds or 0.0
            if cause.kind == "cooling_down" and longest + SLACK < wait < math.inf:
                yield f"{who}, and {name} was to cool down for {wait} s more"
            if (
                cause.kind in LEFT_ALONE
                and not _forced_open(name, asked, seen.happened)
                and not _dose_taken(cause, asked, calls[name, operation])
            ):
                yield f"{who} because of {cause}, which nobody had asked"


def _forced_open(name: str, asked: Asked, happened: Sequence[tuple[float, Event]]) -> bool:
    """Whether the operator kept requests away at any time while this one was under way."""
    forced = False
    for at, event in happened:
        if not isinstance(event, CircuitForced) or event.provider != name:
            continue
        assert asked.ended is not None
        if asked.began <= at <= asked.ended + SLACK and event.state == "open":
            return True
        if at < asked.began:
            forced = event.state == "open"
    return forced


def _dose_taken(cause: ProviderFailure, asked: Asked, calls: Sequence[VendorCall]) -> bool:
    """Whether the request has asked this provider itself, or others had just done so.

    Who waits for the next dose may do so up to the deadline. A request that ends there is excused
    if the doses were given out all the time, which its last second tells.
    """
    ended = asked.ended
    assert ended is not None
    late = ended >= asked.began + asked.timeout - SLACK
    pause = max(LEFT_ALONE[cause.kind], 1.0 if late else 0.0) + SLACK
    # A call takes no longer than an hour in any world.
    first = bisect_left(calls, ended - 3600.0, key=lambda call: call.began)
    for call in calls[first:]:
        if call.began > ended + SLACK:
            break
        over = math.inf if call.ended is None else call.ended
        if over >= ended - pause:
            return True
        if over >= asked.began and call.prompt == asked.ask.text:
            return True
    return False


def overdoses(seen: Seen, log: Sequence[VendorCall]) -> Iterator[str]:
    """Calls that a provider got beyond its dose, while it answered nothing."""
    streaks: defaultdict[tuple[str, int, Operation], _Streak] = defaultdict(_Streak)
    excused = {event.provider for _, event in seen.happened if isinstance(event, CircuitForced)}
    threshold, reset = seen.settings["failure_threshold"], seen.settings["reset_timeout_seconds"]
    moments = [(call.began, 1, call) for call in log]
    moments += [(call.ended, 0, call) for call in log if call.ended is not None]
    for at, begins, call in sorted(moments, key=lambda moment: moment[:2]):
        streak = streaks[call.provider, call.life, call.operation]
        if not begins:
            streak.ended(call, at, threshold)
        elif at > streak.opened_at + SLACK and call.provider not in excused:
            streak.doses += 1
            seconds = at - streak.opened_at
            most = 2 + streak.purse + TRICKLE * seconds + seconds / reset
            if streak.doses > most:
                yield f"{call.provider} got {streak.doses} calls in {seconds:.3f} s of an outage"
                streak.begin()


class _Streak:
    """The failures of a provider in one operation since it last answered."""

    def __init__(self) -> None:
        self.purse = 0
        self.begin()

    def begin(self) -> None:
        self.failed: set[tuple[str, str, str | None]] = set()
        self.opened_at = math.inf
        self.doses = 0

    def ended(self, call: VendorCall, at: float, threshold: int) -> None:
        """Count a call's end. All but a certain failure may be taken for a sign of life."""
        if call.trouble not in _DEADLY or call.how in {"cancelled", "left"}:
            self.purse = PURSE
            self.begin()
            return
        self.failed.add(call.asks)
        if len(self.failed) >= threshold and self.opened_at == math.inf:
            self.opened_at = at
