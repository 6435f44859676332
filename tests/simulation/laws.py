"""What can be said of the guards when a run is over, from outside: two of the three laws.

- The last candidate is asked: no request ends because a provider that it has not asked was left
  alone. Excused are an operator's order, a provider without a place, a vendor that refused its
  setup since the request began, a model that is not known to take more input than one for which
  the prompt was too long, and a dose that comes only after the deadline.
- Last resort is dosed: a provider that answers nothing gets a trickle.

`invariants.py` holds blame to the second law while the run goes on. What is said of many requests
together (brownouts, recovery, innocents beside bad prompts) is in `test_brownouts.py` and its
neighbours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from aigateway.errors import AllProvidersFailedError, DeadlineExceededError, ProviderFailure
from aigateway.events import CircuitForced, Event, Operation, ProviderDisabled
from tests.simulation.invariants import CHECKS, SLACK, Asked
from tests.simulation.scenario import Scenario
from tests.simulation.vendors import VendorCall

__all__ = ["FAST", "MANY", "PURSE", "SLOW", "check", "overdoses", "refusals"]

PURSE = 100
"""Attempts that answers have paid for at most."""

FAST = 4.0
"""Attempts a second that a provider gets at most on an empty balance."""

SLOW = 2.0
"""Likewise, once `MANY` in a row have failed."""

MANY = 20

AT_ONCE = 5
"""Attempts that were begun before the circuit opened, or whose failure is not known yet."""

DOSES = {"circuit_open": 1.0, "disabled": CHECKS}
"""Why a provider is left alone that may be asked all the same, and the seconds until its next dose.

A circuit's is a quarter of a second after the one before, or half; while that is out, a second."""

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

    def stood(self, since: float, until: float) -> float:
        """Seconds of that time in which the loop stood still."""


def check(seen: Seen, scenario: Scenario, log: Sequence[VendorCall]) -> None:
    """Write down every law that was broken.

    Args:
        seen: By the watch.
        scenario: What was played.
        log: Every call that reached a vendor, in the order in which they began.
    """
    for how in refusals(seen, scenario, log):
        seen.broken("last_candidate", how)
    for how in overdoses(seen, log):
        seen.broken("dose", how)


def refusals(seen: Seen, scenario: Scenario, log: Sequence[VendorCall]) -> Iterator[str]:
    """Requests that ended though there was a candidate that could have been asked."""
    rpm = {plan.name: plan.rpm for plan in scenario.providers}
    windows = {plan.name: plan.window for plan in scenario.providers}
    removed = [chore for chore in scenario.chores if chore.what == "remove"]
    calls: defaultdict[str, list[VendorCall]] = defaultdict(list)
    for call in log:
        calls[call.provider].append(call)
    longest = seen.settings["max_cooldown_seconds"] + 2 * SLACK  # errors round it up
    for asked in seen.asked:
        error, ended = asked.error, asked.ended
        if not isinstance(error, AllProvidersFailedError | DeadlineExceededError):
            continue
        assert ended is not None
        since = _begun(asked, seen.asked)

        def meanwhile(at: float, since: float = since, ended: float = ended) -> bool:
            # What was due while the loop stood still came after that.
            return since - seen.stood(at, since) - SLACK <= at <= ended + SLACK

        # One that is well and has no place is waited for instead, and there may be a queue.
        busy = asked.full or asked.was_full or any(c.kind == "saturated" for c in error.causes)
        for cause in error.causes:
            name = cause.provider
            wait = cause.retry_after_seconds or 0.0
            if cause.kind == "cooling_down" and wait > longest:
                yield f"{_who(asked)}, and {name} was to cool down for {wait} s more"
            if (
                cause.kind in DOSES
                and not (busy and _left(asked) <= SLACK)
                and name not in asked.full
                and not any(c.provider == name and meanwhile(c.at) for c in removed)
                and not _rate_used_up(rpm.get(name), asked, calls[name], seen.asked)
                and not _ordered_away(cause, asked, since, seen.happened)
                and not _takes_no_more(name, windows, asked, since, calls)
                and not _has_asked(asked, since, calls[name])
                and not _dose_is_too_late(cause, asked, calls[name], seen)
            ):
                yield f"{_who(asked)} because of {cause}, which it had not asked"


def _who(asked: Asked) -> str:
    return f"#{asked.ask.number} ended at {asked.ended:.6f}"


def _begun(asked: Asked, everyone: Sequence[Asked]) -> float:
    """When the request began that this one is, or has joined."""
    since = asked.began
    for other in reversed(everyone):
        if (
            other.began <= since
            and (other.ended is None or other.ended >= since)
            and (other.ask.text, other.ask.model) == (asked.ask.text, asked.ask.model)
        ):
            since = other.began
    return since


def _left(asked: Asked) -> float:
    """Seconds that a request had left when it ended."""
    assert asked.ended is not None
    return asked.began + asked.timeout - asked.ended


def _operation(asked: Asked) -> Operation:
    return "embeddings" if asked.ask.kind == "embed" else "chat"


def _rate_used_up(
    rpm: int | None, asked: Asked, calls: Sequence[VendorCall], everyone: Sequence[Asked]
) -> bool:
    """Whether the provider's own rate allowed no call.

    A call counts from when it begins here. One whose caller leaves in that moment never reaches
    the vendor.
    """
    ended = asked.ended
    assert ended is not None
    if rpm is None:
        return False
    begun = [call.began for call in calls]
    begun += [other.began for other in everyone if other.cancelled]
    return sum(ended - 60 <= began <= ended + SLACK for began in begun) >= rpm


def _ordered_away(
    cause: ProviderFailure, asked: Asked, since: float, happened: Sequence[tuple[float, Event]]
) -> bool:
    """Whether an operator, or the vendor itself, has kept this request away."""
    forced, ended = False, asked.ended
    assert ended is not None
    for at, event in happened:
        if at > ended + SLACK:
            break
        if getattr(event, "provider", None) != cause.provider:
            continue
        if isinstance(event, CircuitForced):
            forced = event.state == "open" or (forced and at >= since)
        elif (
            isinstance(event, ProviderDisabled)
            and cause.kind == "disabled"
            and at >= since
            and event.operation == _operation(asked)
        ):
            return True  # it has said since then what it would say to this one
    return forced


def _takes_no_more(
    name: str,
    windows: Mapping[str, int | None],
    asked: Asked,
    since: float,
    calls: Mapping[str, Sequence[VendorCall]],
) -> bool:
    """Whether the prompt was too long for a model, and this one is not known to take more."""
    return any(
        (windows[name] or 0) <= (windows[other] or math.inf)
        and _has_asked(asked, since, [call for call in made if call.how == "context_window"])
        for other, made in calls.items()
    )


def _has_asked(asked: Asked, since: float, calls: Sequence[VendorCall]) -> bool:
    """Whether the request, or one like it that it has joined, has asked this provider."""
    assert asked.ended is not None
    return any(
        call.prompt == asked.ask.text
        and call.began <= asked.ended
        and (call.ended is None or call.ended >= since)
        for call in calls
    )


def _dose_is_too_late(
    cause: ProviderFailure, asked: Asked, calls: Sequence[VendorCall], seen: Seen
) -> bool:
    """Whether its last dose was taken so shortly before that the next is after the deadline.

    Or so near to it that no answer could be expected: the turn is left to others.
    """
    ended, pause = asked.ended, DOSES[cause.kind]
    assert ended is not None
    if _left(asked) > pause + SLACK:
        return False
    since = ended - pause - SLACK - min(1.0, asked.timeout / 4)
    since -= seen.stood(since, ended)
    operation = _operation(asked)
    for call in calls:
        # Of a disabled provider what counts is what it said, and of another what it was asked.
        at = call.began if cause.kind == "circuit_open" or call.ended is None else call.ended
        if call.operation == operation and since <= at and call.began <= ended + SLACK:
            return True
    return False


def overdoses(seen: Seen, log: Sequence[VendorCall]) -> Iterator[str]:
    """Calls that a provider got beyond its dose, while it answered nothing."""
    streaks: defaultdict[tuple[str, int, Operation], _Streak] = defaultdict(_Streak)
    excused = {event.provider for _, event in seen.happened if isinstance(event, CircuitForced)}
    settings = seen.settings
    threshold, reset = settings["failure_threshold"], settings["reset_timeout_seconds"]
    moments = [(call.began, 1, call) for call in log]
    moments += [(call.ended, 0, call) for call in log if call.ended is not None]
    for at, begins, call in sorted(moments, key=lambda moment: moment[:2]):
        streak = streaks[call.provider, call.life, call.operation]
        if not begins:
            streak.ended(call, at, threshold)
        elif at > streak.opened_at + SLACK and call.provider not in excused:
            streak.doses += 1
            seconds = at - streak.opened_at
            trickle = min(FAST * seconds, MANY + SLOW * seconds)
            most = AT_ONCE + streak.balance + seconds / reset + trickle
            if streak.doses > most:
                yield f"{call.provider} got {streak.doses} calls in {seconds:.3f} s of an outage"
                streak.begin()


class _Streak:
    """The failures of a provider in one operation since it last answered."""

    def __init__(self) -> None:
        self.balance = 0
        self.begin()

    def begin(self) -> None:
        self.failed: set[tuple[str, str, str | None]] = set()
        self.opened_at = math.inf
        self.doses = 0

    def ended(self, call: VendorCall, at: float, threshold: int) -> None:
        """Count a call's end. All but a certain failure may be taken for a sign of life."""
        if call.trouble not in _DEADLY or call.how in {"cancelled", "left"}:
            self.balance = PURSE
            self.begin()
            return
        self.failed.add(call.asks)
        if len(self.failed) >= threshold and self.opened_at == math.inf:
            self.opened_at = at
