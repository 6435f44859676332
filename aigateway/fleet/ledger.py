"""The books of limits that processes share: rates and spend, as leases.

A process *holds* units of a limit and spends them without asking. It reports what it has spent, and
says how much it wants to hold from now on, in one exchange for all its limits, a few times a second
and whenever a hold runs low. A hold ends by itself: its owner may not spend it any more. What a
process spent before it died is not known, so a hold that ended by itself counts for one more
window, or until its owner is back.

Units are calls, tokens, or millionths of a US dollar. What was spent counts until it has left the
window (or until the day ends), and what is held counts as if it were spent. So processes together
never exceed a limit by what they have begun.

`MemoryLedger` is the rule itself. The ledgers over SQLite and Redis follow it to the letter, and
the same tests.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aigateway.clock import Clock
from aigateway.errors import GatewayError

__all__ = [
    "BUCKETS",
    "DAY",
    "HOLD_SECONDS",
    "UNSETTLED_SECONDS",
    "Account",
    "Claim",
    "FleetUnavailableError",
    "Grant",
    "Ledger",
    "LedgerAnswer",
    "Limit",
    "MemoryLedger",
    "Spent",
]

DAY = 86_400.0

HOLD_SECONDS = 2.0
"""A hold that is not renewed by then may not be spent. It counts for one more window."""

UNSETTLED_SECONDS = 60.0
"""The same for a limit without a window: seconds that such a hold counts after its end."""

BUCKETS = 30
"""Parts of a window. Units spent in one part leave the window together, when its last has left: up
to one part late, 2 seconds of a minute. More parts cost each exchange more."""


class FleetUnavailableError(GatewayError):
    """What processes share cannot be reached now. What was asked may have been done."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that processes share.

    Attributes:
        name: Identifies it in the fleet.
        amount: Units that may be spent within the window.
        window: Seconds, which slide; None is the day (UTC).
    """

    name: str
    amount: int
    window: float | None = 60.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Units spent (a correction may be negative), and how many seconds ago."""

    units: int
    ago: float = 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process says of one limit.

    Attributes:
        limit: The limit, as this process is configured.
        spent: What it has spent since its last exchange.
        hold: Units it wants to hold from now on, those of requests in flight included. Replaces
            what it holds; 0 gives all back.
    """

    limit: Limit
    spent: Sequence[Spent] = ()
    hold: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a claim.

    Attributes:
        held: Units that it holds now, for `HOLD_SECONDS` from when it asked.
        used: Units that all have spent within the window.
        free: Units that are neither spent nor held.
        wait: Seconds until the first of the spent units leave the window; 0.0 if units are free, or
            if none are spent.
        epoch: Changes when the ledger has lost what it knew of this limit alone.
    """

    held: int
    used: int
    free: int
    wait: float = 0.0
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class LedgerAnswer:
    """The answer to all claims of one process.

    Attributes:
        epoch: Changes when the ledger has lost its memory. Then each process reports again what it
            has spent within the windows.
        members: Processes that have exchanged within `HOLD_SECONDS`, this one included.
        grants: One for each claim.
        rank: The place of this process among them in the order of their names, from 0.
    """

    epoch: str
    members: int
    grants: Sequence[Grant]
    rank: int = 0


class Ledger(Protocol):
    """Where processes exchange. It may be slow, and it may raise `FleetUnavailableError`."""

    async def exchange(self, member: str, claims: Sequence[Claim], serial: int) -> LedgerAnswer:
        """Book what a process has spent, and grant it holds.

        Args:
            member: Identifies the process.
            claims: For each limit at most one. Without any, the process only says that it lives.
            serial: Numbers the exchanges of this process, from 1. After one without an answer, the
                next has the same number and says the same of what was spent. It is booked once.
                One that arrives after a later one changes nothing.

        Raises:
            FleetUnavailableError: Nothing may have been booked, or all of it.
        """


@dataclass(slots=True)
class Account:
    """The state of one limit, and the rule by which claims change it. It keeps no time itself.

    A wall clock that is set back gives nothing twice. Parts of a sliding window that lie ahead of
    it count as the present one. A day counts with the next, if that has begun before; days further
    ahead were a clock that was wrong, and are dropped.

    Attributes:
        buckets: Units spent, by the number of their part of the window.
        holds: By member: units held, and when the hold ends.
    """

    buckets: dict[int, int] = field(default_factory=dict)
    holds: dict[str, tuple[int, float]] = field(default_factory=dict)

    def grant(self, member: str, claim: Claim, now: float, *, is_new: bool = True) -> Grant:
        """Book what a member has spent, and grant it a hold.

        Args:
            member: Its name.
            claim: What it says.
            now: The wall clock's time.
            is_new: Whether its serial is; if not, what was spent has been booked.
        """
        limit = claim.limit
        width = DAY if limit.window is None else limit.window / BUCKETS
        parts = 1 if limit.window is None else BUCKETS + 1
        present = int(now // width)
        oldest = present - parts + 1  # the first part that still counts
        for spent in claim.spent if is_new else ():
            self._book(min(present, int((now - spent.ago) // width)), spent.units)
        self._tidy_up(limit, oldest, present)
        used = sum(units for number, units in self.buckets.items() if number >= oldest)
        kept = UNSETTLED_SECONDS if limit.window is None else limit.window
        self.holds = {
            name: (units, min(ends, now + HOLD_SECONDS))
            for name, (units, ends) in self.holds.items()
            if ends + kept > now and name != member
        }
        others = sum(units for units, _ in self.holds.values())
        left = limit.amount - max(0, used) - others
        held = max(0, min(claim.hold, left))
        if held:
            self.holds[member] = (held, now + HOLD_SECONDS)
        free = max(0, left - held)
        counting = [number for number in self.buckets if number >= oldest]
        wait = 0.0 if free or not counting else (min(counting) + parts) * width - now
        return Grant(held, used, free, wait)

    def _book(self, number: int, units: int) -> None:
        self.buckets[number] = self.buckets.get(number, 0) + units

    def _tidy_up(self, limit: Limit, oldest: int, present: int) -> None:
        """Drop the parts that have left the window, and bring in those ahead of the clock."""
        if limit.window is None:  # yesterday counts again if the clock is set back
            near = range(present - 1, present + 2)
            self.buckets = {n: units for n, units in self.buckets.items() if n in near}
            return
        ahead = [number for number in self.buckets if number > present]
        for number in ahead:
            self._book(present, self.buckets.pop(number))
        self.buckets = {n: units for n, units in self.buckets.items() if n >= oldest}


class MemoryLedger:
    """A ledger in this process.

    Args:
        clock: Its wall clock is that of the windows.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch = secrets.token_hex(8)
        self._members: dict[str, tuple[float, int]] = {}  # when each was here, and its last serial
        self._accounts: dict[str, Account] = {}

    async def exchange(self, member: str, claims: Sequence[Claim], serial: int) -> LedgerAnswer:
        """See `Ledger`."""
        now = self._clock.wall()
        last = self._members.get(member, (0.0, 0))[1]
        if serial < last:
            raise FleetUnavailableError("A later exchange has been booked.")
        self._members[member] = (now, serial)
        self._members = {
            name: (min(seen, now), last)
            for name, (seen, last) in self._members.items()
            if seen + DAY > now
        }
        grants = [
            self._accounts.setdefault(claim.limit.name, Account()).grant(
                member, claim, now, is_new=serial > last
            )
            for claim in claims
        ]
        live = [name for name, (seen, _) in self._members.items() if seen + HOLD_SECONDS > now]
        rank = sum(name < member for name in live)
        return LedgerAnswer(self._epoch, len(live), grants, rank)
