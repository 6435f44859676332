"""The circuit's rules in their plainest form: a machine that is told every event, and the hour.

Written from what is promised to users (docs/guides/guards.md) and not from the breaker's code, so
that the two can be held against each other. Where the promise leaves room (how much jitter), the
reference says what is allowed and takes over what happened.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Call", "Limits", "Rules", "Settlement"]

Settlement = Literal["success", "failure", "release"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a circuit is set to. Durations are seconds."""

    threshold: int
    open_seconds: float
    max_open: float
    lease: float


@dataclass(slots=True)
class Call:
    """One call that was let through.

    Attributes:
        era: Of which state it is; its result counts in that one only.
        began: At which event.
        probe: Whether it was sent to find out.
        last_resort: Whether it was let through although the circuit was not closed.
    """

    era: int
    began: int
    probe: bool
    last_resort: bool = False


@dataclass(slots=True)
class Rules:
    """What must be so after the events so far.

    Time alone changes nothing: what time has brought is noticed by the next who asks.

    Attributes:
        state: "closed", "open" or "half_open".
        forced: By hand; nothing but another hand changes that.
        failures: In a row; those of one cause are one.
        causes: Of these failures, as far as they have one.
        late: Results that came after their state was over.
        open_until: While open, when a probe may go.
        probe: The one that is out.
        changes: Every change of state so far.
        hearsay: While open on the word of others: the era before.
        warned: Whether others see the provider fail.
        held: Seconds for which another process has the right to probe; 0.0 if none has.
    """

    limits: Limits
    state: str = "closed"
    forced: bool = False
    failures: int = 0
    causes: set[Hashable] = field(default_factory=set)
    late: int = 0
    openings: int = 0
    open_until: float = math.inf
    probe: Call | None = None
    lease_ends: float = math.inf
    changes: list[tuple[str, str]] = field(default_factory=list)
    streak_began: int = 0
    era: int = 0
    events: int = 0
    hearsay: int | None = None
    warned: bool = False
    held: float = 0.0

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    def refusal(self, now: float) -> float | None:
        """Seconds after which a refused caller should come again; None lets the caller through."""
        if self.state == "closed":
            return None
        if self.forced:
            return math.inf
        if self.state == "half_open" and self.probe is not None:
            if now < self.lease_ends:
                return 0.0
            self._open(now)
        if self.state == "open" and now < self.open_until:
            return self.open_until - now
        return self.held or None

    def let_through(self, now: float) -> Call:
        """Somebody whom `refusal` does not turn away begins a call."""
        self.events += 1
        probe = self.state != "closed"
        if self.state == "open":
            self._enter("half_open")
        call = Call(self.era, self.events, probe)
        if probe:
            self.probe, self.lease_ends = call, now + self.limits.lease
        return call

    def let_through_all_the_same(self) -> Call:
        """A caller whom `refusal` turns away has no other provider left; nothing is forced."""
        self.events += 1
        return Call(self.era, self.events, probe=False, last_resort=True)

    # ── what comes back ──────────────────────────────────────────────────────────────────────

    def settle(self, call: Call, how: Settlement, now: float, cause: Hashable = None) -> None:
        """The first result of a call. Any further one means nothing and does not come here."""
        self.events += 1
        if call.era == self.hearsay and how == "success":
            self.openings = 0
            self._enter("closed")
        elif call.era != self.era:
            self.late += 1
        elif call is self.probe:
            self._probed(how, now)
        elif call.last_resort:
            if how == "success":
                self.openings = 0
                self._enter("closed")
        elif how == "failure":
            if cause is None or cause not in self.causes:
                self._failed(cause, now)
        elif how == "success" and call.began > self.streak_began:
            self.failures = 0
            self.causes = set()

    def _failed(self, cause: Hashable, now: float) -> None:
        if self.failures == 0:
            self.streak_began = self.events
        self.failures += 1
        if cause is not None:
            self.causes.add(cause)
        if (self.warned or self.failures >= self.limits.threshold) and not self.forced:
            self._open(now)

    def _probed(self, how: Settlement, now: float) -> None:
        if how == "success":
            self.openings = 0
            self._enter("closed")
        elif how == "failure":
            self._open(now)
        else:
            self.probe = None

    # ── by hand ──────────────────────────────────────────────────────────────────────────────

    def force_open(self) -> None:
        """Nobody is let through until the next command."""
        self.forced = True
        self._enter("open")

    def force_closed(self) -> None:
        """Everybody is let through until the next command."""
        self.forced, self.openings = True, 0
        self._enter("closed")

    def reset(self) -> None:
        """As new."""
        self.forced, self.openings = False, 0
        self._enter("closed")

    # ── other processes; what an operator has ordered stays ───────────────────────────────────

    def others_fail(self, seconds: float, openings: int, now: float) -> None:
        """Several others have opened, and the provider has not answered here since."""
        if self.state == "closed" and not self.forced:
            era = self.era
            self._enter("open")
            self.hearsay, self.openings = era, openings
            self.open_until = now + min(seconds, self.limits.max_open)

    def another_fails(self, now: float) -> None:
        """One other has opened; here there are failures in a row, or not."""
        if self.state == "closed" and self.failures and not self.forced:
            self._open(now)

    def probe_of_another_failed(self, seconds: float, openings: int, now: float) -> None:
        """The next probe is put off."""
        if self.state == "open" and not self.forced:
            self.openings = max(self.openings, openings)
            self.open_until = max(self.open_until, now + min(seconds, self.limits.max_open))

    def another_was_answered(self, now: float) -> None:
        """What others said is over; who has seen it fail may look at once."""
        if self.forced or self.state == "closed":
            return
        if self.hearsay is not None:
            self.openings = 0
            self._enter("closed")
        elif self.state == "open":
            self.open_until = min(self.open_until, now)

    # ── opening ──────────────────────────────────────────────────────────────────────────────

    def open_time(self) -> tuple[float, float]:
        """Least and most seconds that the latest opening may take."""
        base = min(self.limits.open_seconds * 2.0 ** (self.openings - 1), self.limits.max_open)
        if self.openings == 1:
            return base, base  # "stays open for 60 seconds"
        if base * 1.1 <= self.limits.max_open:
            return base, base * 1.1
        return base * 0.9, self.limits.max_open

    def opened_for(self, seconds: float, now: float) -> None:
        """How long the latest opening takes, within `open_time`."""
        self.open_until = now + seconds

    def _open(self, now: float) -> None:
        self.openings += 1
        self._enter("open")
        self.open_until = now + self.open_time()[0]

    def _enter(self, state: str) -> None:
        if state != self.state:
            self.changes.append((self.state, state))
        self.state = state
        if state != "half_open":
            self.hearsay = None
        self.era += 1
        self.failures = self.streak_began = 0
        self.causes = set()
        self.probe = None
        self.open_until = self.lease_ends = math.inf
