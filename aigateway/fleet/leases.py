"""The local side of shared limits: what this process holds of each, and the exchange of all.

Everything that a request does here is synchronous. One loop exchanges for all limits; see
`ledger.py` for what is exchanged.

While the ledger cannot be reached, each process takes its share of a limit, by the last known
number of processes, and counts what it knows that others have used. It also keeps to its share for
`HOLD_SECONDS` after the ledger is back or has lost its memory: by then all have reported again.

A request waits for an exchange only where this process holds nothing of a limit, and at most for
`PATIENCE_SECONDS`. Then it counts as one without the ledger: late is not used up.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from weakref import WeakSet, WeakValueDictionary

from aigateway.clock import Clock
from aigateway.fleet.ledger import (
    DAY,
    HOLD_SECONDS,
    Claim,
    FleetUnavailableError,
    Grant,
    Ledger,
    LedgerAnswer,
    Limit,
    Spent,
)
from aigateway.resilience.rates import WINDOW, RateEntry
from aigateway.telemetry.log import log_event

__all__ = ["Leases", "SharedBudget", "SharedRates"]

ACTIVE_SECONDS = 0.25
"""Between two exchanges while requests begin; also the demand that a process holds in advance."""

IDLE_SECONDS = 1.0
"""Between two exchanges without requests."""

SPACING_SECONDS = 0.01
"""Between two exchanges at least, however soon a hold is used up."""

EXCHANGE_SECONDS = 0.5
"""A ledger that takes longer is not available."""

RETRY_SECONDS, TRIES = 0.05, 10
"""Between exchanges until there is a first answer, and after how many it is no longer expected.
While a process starts, connections open slowly, and it knows of no other processes."""

PATIENCE_SECONDS = 0.05
"""A request waits so long for an exchange."""

MOST_CLAIMS = 20
"""Limits in one exchange, so that each takes the ledger a short time. Others follow at once."""

SOON = 0.005
"""Seconds after which to ask again while an exchange is under way."""

GLITCH_SECONDS = 1.0
"""During a shorter outage a process may still use more than its share."""

LARGEST_PART = 16
"""A process holds at most one part of so many of a limit in advance."""

FORGOTTEN_SECONDS, MANY_SECONDS, MANY = 60.0, 10.0, 100
"""A limit of which nothing was wanted for so long is given back, unless it is to be kept ready; the
second, if the process holds parts of many limits."""

RENEWED_SECONDS = 0.75
"""A hold older than this is renewed in time also if there are more limits than one exchange has."""

REFRESH_SECONDS = 5.0
"""How old the figures of a limit that was given back may be."""

_PART_SECONDS = 0.25
"""Units that were begun within this time leave the window together."""

_PER_USD = 1_000_000

_NEVER = -math.inf


class _Slice:
    """Units that this process has begun at about the same time."""

    __slots__ = ("began", "day", "latest", "units", "unreported")

    def __init__(self, now: float, day: int) -> None:
        self.began = self.latest = now
        self.day = day
        self.units = self.unreported = 0


_Batch = list[tuple[_Slice, int]]


class _Lease:
    """One limit: what this process has spent of it within the window, and what it holds.

    Attributes:
        limit: As configured here.
        keepers: While there are any, a little is held also while nothing is wanted.
        grant: The ledger's last answer, if there was one.
        held: Units that may be spent now. Below 0: spent without having been held.
        own: Units that this process has begun within the window.
        reserved: Units that requests in flight will probably spend.
        touched: When a request last wanted some.
        answered_at: When the last answer came.
    """

    def __init__(self, leases: Leases, limit: Limit) -> None:
        self._leases = leases
        self._clock = leases.clock
        self.limit = limit
        self.keepers: WeakSet[SharedRates] = WeakSet()
        self.grant: Grant | None = None
        self.held = self.own = self.reserved = 0
        self.touched = self.answered_at = _NEVER
        self._parts: deque[_Slice] = deque()
        self._dirty: set[_Slice] = set()
        self._unreported = 0  # units of these
        self._booking = 0  # units that the ledger has heard of, and not confirmed
        self._epoch = ""
        self._valid_until = _NEVER
        self._target = 0  # the hold that the last claim asked for
        self._begun = self._missed = 0  # units begun, and not to be had, since the last answer
        self._demand = 0.0  # units in a second
        self._want, self._want_until = 0, _NEVER  # the largest call that waits
        self._lacking_since = math.inf  # since when a call waits for an answer
        self._others, self._others_at = 0, _NEVER  # units that others had taken by then
        self._taken = 0.0  # units that others took in a second, lately
        self._ceiling = 0  # own units that fit, by the last answer before an outage
        self._ceiling_at = _NEVER
        self._answered_day = -1

    # ── what requests do ─────────────────────────────────────────────────────────────────────

    def wait(self, units: int, now: float) -> float:
        """Return the seconds until so many units may be begun; 0.0 if now."""
        leases = self._leases
        self._touch(now)
        if leases.awaits_first(now):
            leases.ask_now()
            return SOON
        is_late = now >= self._lacking_since + PATIENCE_SECONDS
        if is_late or leases.keeps_to_shares(now):
            wait = self.wait_for_share(units, now)
            if wait > 0 or is_late or leases.is_alone:
                return wait
        need = min(units, self.limit.amount)
        if self._holds(need, now):
            self._lacking_since = math.inf
            return 0.0
        return self._ask_for(need, now)

    def may_gain(self, units: int, now: float, *, or_tell: bool = False) -> bool:
        """Return whether an exchange may let units begin that now cannot. It changes nothing.

        Args:
            units: Units.
            now: The time.
            or_tell: Whether it is enough that it may tell better when they can begin.
        """
        leases, need = self._leases, min(units, self.limit.amount)
        if leases.is_alone or self._holds(need, now):
            return leases.awaits_first(now)
        if self._is_worth_asking(now, need):
            return True
        # By now others may have spent or given back what they held.
        is_old = or_tell and now >= self.answered_at + PATIENCE_SECONDS
        return is_old and self.grant is not None and self._held_by_others(self.grant) >= need

    def covers(self, units: int, now: float, *, is_late: bool = False) -> bool:
        """Return whether units may be reserved in addition to those of the requests in flight.

        They are not spent yet, so more than what is held may be reserved, as long as the last
        answer shows more than all processes could reserve until the next. Where less is left than a
        request needs, the one process that holds most of that may have one in flight.

        Args:
            units: Units.
            now: The time.
            is_late: Whether the answer that would show more did not come in time.
        """
        leases, grant = self._leases, self.grant
        self._touch(now)
        if grant is None or now >= self._valid_until or leases.keeps_to_shares(now):
            leases.wake()
            return self._shares_cover(units, now)
        lacking = self.reserved + units - self.held
        if lacking <= 0:
            return True
        self._missed += units
        leases.wake()
        if lacking <= self._ample(grant) or self._lacks_of_most(units, grant) <= 0:
            return True
        self._want = units if self.reserved else self._most(units, grant)
        self._want_until = now + 2 * PATIENCE_SECONDS
        return is_late and self.may_cover(units, now) and self._shares_cover(units, now)

    def may_cover(self, units: int, now: float) -> bool:
        """Return whether `covers` may say yes after an exchange, or must know of one first."""
        leases, grant = self._leases, self.grant
        if leases.is_alone or leases.keeps_to_shares(now):
            return leases.awaits_first(now)
        if grant is None or now >= self._valid_until:
            return True  # it may be used up
        lacking = self.reserved + units - self.held
        if lacking <= self._ample(grant):
            return False
        return 0 < min(lacking, self._lacks_of_most(units, grant)) <= grant.free

    def reserve(self, by: int, now: float) -> None:
        """Change what requests in flight will probably spend."""
        self.reserved += by
        self._touch(now)

    def _ample(self, grant: Grant) -> int:
        """Return the free units that this process may reserve without having asked."""
        members = self._leases.members
        return max(0, grant.free if members == 1 else grant.free // (2 * members))

    def _most(self, units: int, grant: Grant) -> int:
        """Return the hold with which a request may begin: its own units, or most of what is left.

        No two processes hold most of the same, so what the request lacks is lacking once.
        """
        left = self.limit.amount - grant.used - self._booking - self._unreported
        return min(units, max(0, left) // 2 + 1)

    def _lacks_of_most(self, units: int, grant: Grant) -> float:
        """Return the units that this process lacks for `_most`; it has one such request at once."""
        if self.reserved:
            return math.inf
        at_hand = self.held + (grant.free if self._leases.members == 1 else 0)
        return self._most(units, grant) - at_hand

    def _shares_cover(self, units: int, now: float) -> bool:
        self._drop_old(now)
        room = self._room(now) - self.own
        return self.reserved + units <= room or (not self.reserved and room > 0)

    def _touch(self, now: float) -> None:
        self.touched = now
        self._leases.active[self] = None

    def _holds(self, need: int, now: float) -> bool:
        return self.held >= need and now < self._valid_until

    def _ask_for(self, need: int, now: float) -> float:
        """Want units from the next exchange; return the seconds until it is worth asking again."""
        self._missed += need
        wait = SOON
        if self._is_worth_asking(now, need):
            self._lacking_since = min(self._lacking_since, now)
            self._leases.wake()
        elif self.grant is not None and self.grant.free:
            wait = ACTIVE_SECONDS  # less than it needs
        elif self.grant is not None:
            wait = max(SOON, self.answered_at + self.grant.wait - now)
            if self._held_by_others(self.grant) >= need:
                wait = min(wait, IDLE_SECONDS)  # they give back what they do not need
        self._want = max(self._want, need) if now < self._want_until else need
        self._want_until = now + wait + IDLE_SECONDS
        return wait

    def begin(self, units: int, now: float) -> _Slice:
        """Spend units; return where they are counted."""
        part = self._parts[-1] if self._parts else None
        if part is None or (
            part.day != int(self._clock.wall() // DAY)
            if self.limit.window is None
            else now - part.began >= _PART_SECONDS
        ):
            part = _Slice(now, self._day())
            self._parts.append(part)
        self.touched = part.latest = now
        self._count(part, units)
        self._begun += units
        # Others must know what is used up, too.
        if self.held <= 0 or (self.held < self._target / 2 and self._is_worth_asking(now)):
            self._leases.wake()
        return part

    def correct(self, part: _Slice, units: int) -> None:
        """Correct what was begun then, unless it has left the window."""
        self._drop_old(self._clock.now())
        if units and self._parts and part.began >= self._parts[0].began:
            self._count(part, units)

    def spent(self) -> int:
        """Return the units that all have spent, as far as is known."""
        self._drop_old(self._clock.now())
        grant = self.grant
        if grant is None or (self.limit.window is None and self._answered_day != self._day()):
            return self.own
        return max(self.own, grant.used + self._booking + self._unreported)

    def _count(self, part: _Slice, units: int) -> None:
        part.units += units
        part.unreported += units
        self._dirty.add(part)
        self._leases.active[self] = None
        self._unreported += units
        self.held -= units
        self.own += units

    def _held_by_others(self, grant: Grant) -> int:
        return max(0, self.limit.amount - grant.used - grant.free - grant.held)

    def _is_worth_asking(self, now: float, need: int = 1) -> bool:
        """Return whether the ledger may have units that this process does not hold."""
        grant = self.grant
        if grant is None or now >= self._valid_until:
            return True
        if grant.free > 0:
            return grant.free + max(0, self.held) >= need
        return grant.wait > 0 and now >= self.answered_at + grant.wait

    def _day(self) -> int:
        return int(self._clock.wall() // DAY)

    def _drop_old(self, now: float) -> None:
        parts, window = self._parts, self.limit.window
        while parts and (
            parts[0].day < self._day() if window is None else parts[0].latest + window <= now
        ):
            self.own -= parts.popleft().units

    # ── without the ledger ───────────────────────────────────────────────────────────────────

    def _fair(self) -> int:
        """This process's share of the limit. The remainder goes to the first processes."""
        share, rest = divmod(self.limit.amount, self._leases.members)
        return share + (self._leases.rank < rest)

    def _room(self, now: float) -> int:
        """Return the own units that the window may have while this process keeps to its share.

        At first that is what it has used, what it holds, and a share of what was free. All these
        sum up to the limit at most, and so do the shares.
        """
        window = self.limit.window
        if self._ceiling_at == _NEVER:
            return self._fair()
        if window is None:
            return self._ceiling if self._answered_day == self._day() else self._fair()
        apart = self._leases.apart_since
        if now < apart + GLITCH_SECONDS and apart < self._ceiling_at + HOLD_SECONDS:
            return self._ceiling
        if now < self._ceiling_at + window + HOLD_SECONDS:
            return min(self._ceiling, self._fair())
        return self._fair()

    def wait_for_share(self, units: int, now: float) -> float:
        """Return the seconds until this process's share has room, whatever the ledger has."""
        self._drop_old(now)
        room, window, turn = self._room(now), self.limit.window or DAY, 0.0
        early = self._ceiling_at + window + HOLD_SECONDS - now  # old calls of others still count
        is_large = units > self.limit.amount // self._leases.members
        if is_large and early > 0:
            room = self._ceiling
        elif is_large and early + window > 0:  # turns begin when these have left the window
            room, early = 0, early + window
        elif is_large:
            room = max(room, units)  # alone in its window
            turn = self._wait_for_turn(units)
        wait, left = 0.0, self.own
        for part in self._parts:
            if left <= 0 or left + units <= room:
                break
            left -= part.units
            wait = part.latest + window - now
        if left + units > room:
            wait = max(wait, early, SOON)
        return max(wait, turn)

    def _wait_for_turn(self, units: int) -> float:
        """Return the seconds until this process may begin a call larger than its share.

        The processes take turns, by the wall clock. A turn is one window, and another window
        follows in which no turn is: so no sliding window has calls of two turns.
        """
        window = self.limit.window or DAY
        at_once = max(1, self.limit.amount // units)
        turns = math.ceil(self._leases.members / at_once)
        if turns < 2:
            return 0.0
        begins = (self._leases.rank // at_once) * 2 * window
        at = (self._clock.wall() - begins) % (2 * window * turns)
        return 0.0 if at < window - HOLD_SECONDS else 2 * window * turns - at  # clocks differ

    # ── the exchange ─────────────────────────────────────────────────────────────────────────

    def is_due(self, now: float) -> bool:
        """Return whether it belongs in every exchange."""
        return bool(
            self.keepers
            or self._dirty
            or self.reserved
            or now < self.touched + self._leases.forgotten_seconds
            or self.is_granted
            or self.is_forgotten(self._leases.epoch)
        )

    def is_urgent(self, now: float) -> bool:
        """Return whether it cannot wait for a later exchange, if there are many limits."""
        return bool(
            now < self._want_until
            or now >= self.answered_at + RENEWED_SECONDS
            or self.held < self._target / 2
        )

    def is_of_memory(self, epoch: str) -> bool:
        """Return whether the last answer came from this memory of the ledger."""
        return self._epoch.startswith(epoch)

    def is_forgotten(self, epoch: str) -> bool:
        """Return whether the ledger has a new memory, which does not know what was spent here."""
        return bool(self.own) and not self.is_of_memory(epoch)

    def is_active(self, now: float) -> bool:
        """Return whether it makes exchanges more frequent."""
        return bool(self._dirty or now < self._want_until or now < self.touched + IDLE_SECONDS)

    def turn(self, now: float) -> tuple[bool, bool, float]:
        """Return what orders limits of which not all fit into an exchange."""
        return now >= self._want_until, not self.is_urgent(now), self.answered_at

    @property
    def is_granted(self) -> bool:
        """Whether the ledger counts a hold of this process."""
        return self.grant is not None and self.grant.held > 0

    @property
    def has_news(self) -> bool:
        """Whether something was spent that is not reported yet."""
        return bool(self._dirty)

    def take_unreported(self) -> _Batch:
        """Take what the ledger is to book with the next exchange."""
        batch = [(part, part.unreported) for part in self._dirty if part.unreported]
        for part in self._dirty:
            part.unreported = 0
        self._dirty.clear()
        self._booking, self._unreported = self._unreported, 0
        return batch

    def claim(self, batch: _Batch, now: float, *, leaving: bool = False) -> Claim:
        """Return what to say to the ledger."""
        self._target = 0 if leaving else self._hold_wanted(now)
        # What is spent until the answer comes must be granted for sure.
        self.held = min(self.held, self._target)
        spent = [Spent(units, max(0.0, now - part.latest)) for part, units in batch]
        return Claim(self.limit, spent, self._target)

    def _hold_wanted(self, now: float) -> int:
        amount, members, grant = self.limit.amount, self._leases.members, self.grant
        if not self.keepers and now >= self.touched + self._leases.forgotten_seconds:
            return self.reserved
        most = max(1, min(amount // LARGEST_PART, amount // (2 * members)))
        if self.limit.window is None and grant is not None:
            # A request may reserve what is free. What is held in advance, another process lacks for
            # the last request of the budget.
            left = max(0, grant.free + grant.held - self._booking - self._unreported)
            most = min(most, left // (2 * members))
            if now >= self.touched + IDLE_SECONDS:
                most = 0
        # What a quiet process holds must not be what others lack.
        quiet = most if grant is None else (grant.free + grant.held) // (4 * members)
        wanted = min(max(round(self._demand * ACTIVE_SECONDS), quiet), most)
        if grant is not None and not grant.free and now >= self.touched + ACTIVE_SECONDS:
            wanted = 0  # others may lack it
        if self._missed and grant is not None:  # not in advance: these calls wait
            wanted = max(wanted, min(self._missed, (grant.free + grant.held) // members))
        if now < self._want_until:
            wanted = max(wanted, self._want)
            if self._want > 1 and grant is not None and grant.held + grant.free < self._want:
                wanted = 0  # a part of a call is of no use here, and may be what another lacks
        return min(amount, wanted + self.reserved)

    def take_answer(self, grant: Grant, epoch: str, batch: _Batch, asked_at: float) -> bool:
        """Take the ledger's answer to a claim; return whether it has lost its memory."""
        now = self._clock.now()
        # A limit that was not used for long may have been dropped by itself.
        lately = now < self.answered_at + (self.limit.window or DAY)
        lost = lately and self._epoch not in {"", epoch}
        self._epoch = epoch
        self._valid_until = asked_at + HOLD_SECONDS
        others = self.limit.amount - grant.free - grant.held - (self.own - self._unreported)
        self._measure(others, now)
        self._missed = 0
        self._lacking_since = math.inf
        self._booking = 0
        self.grant, self.answered_at, self._answered_day = grant, now, self._day()
        if lost:
            self._report_again(batch, now)
        self.held = grant.held - self._unreported
        return lost

    def _measure(self, others: int, now: float) -> None:
        """Note how much this process and the others take in a second, lately."""
        if self.answered_at != _NEVER:
            seconds = now - self.answered_at
            fade, seconds = 0.5**seconds, max(seconds, ACTIVE_SECONDS)
            self._demand = max(self._begun / seconds, self._demand * fade)
            # Exchanges may follow each other much sooner.
            seconds = max(now - self._others_at, ACTIVE_SECONDS)
            self._taken = max(0.0, (others - self._others) / seconds, self._taken * fade)
        self._begun = 0
        if now - self._others_at >= ACTIVE_SECONDS:
            self._others, self._others_at = others, now

    def settle(self, now: float) -> None:
        """Note what would be this process's part if the ledger were lost now."""
        assert self.grant is not None  # noqa: S101 - it has answered
        self._drop_old(now)
        free = self.grant.free - math.ceil(self._taken * IDLE_SECONDS)
        self._ceiling = self.own + self.held + max(0, free) // self._leases.members
        self._ceiling_at = now

    def _report_again(self, booked: _Batch, now: float) -> None:
        """Report all that is in the window, but for what the new memory has booked."""
        self._drop_old(now)
        known = dict(booked)
        for part in self._parts:
            part.unreported = part.units - known.get(part, 0)
            if part.unreported:
                self._dirty.add(part)
        self._unreported = sum(part.unreported for part in self._dirty)


class SharedRates:
    """Requests and tokens per minute of all processes; used like `RateLimits`."""

    __slots__ = ("__weakref__", "_calls", "_clock", "_tokens")

    def __init__(self, clock: Clock, calls: _Lease | None, tokens: _Lease | None) -> None:
        self._clock = clock
        self._calls = calls
        self._tokens = tokens

    def wait(self, tokens: int) -> float:
        """See `CallRates`."""
        now = self._clock.now()
        calls, used = self._calls, self._tokens
        wait = 0.0 if calls is None else calls.wait(1, now)
        return wait if used is None else max(wait, used.wait(tokens, now))

    @property
    def used(self) -> int:
        """Calls that all processes have begun in the last minute, as far as is known."""
        return 0 if self._calls is None else self._calls.spent()

    def wait_for_share(self, tokens: int) -> float:
        """Return the same where the answer that `wait` hopes for did not come in time."""
        now = self._clock.now()
        calls, used = self._calls, self._tokens
        wait = 0.0 if calls is None else calls.wait_for_share(1, now)
        return wait if used is None else max(wait, used.wait_for_share(tokens, now))

    def may_gain(self, tokens: int, *, or_tell: bool = False) -> bool:
        """Return whether an exchange may let a call begin that now cannot. It asks for none.

        Args:
            tokens: Of the call.
            or_tell: Whether it is enough that it may tell better when the call can begin.
        """
        now = self._clock.now()
        calls, used = self._calls, self._tokens
        return (calls is not None and calls.may_gain(1, now, or_tell=or_tell)) or (
            used is not None and used.may_gain(tokens, now, or_tell=or_tell)
        )

    def begin(self, tokens: int) -> RateEntry:
        """See `CallRates`."""
        now = self._clock.now()
        if self._calls is not None:
            self._calls.begin(1, now)
        part = None if self._tokens is None else self._tokens.begin(tokens, now)
        return RateEntry(self, part, tokens)

    def correct(self, part: _Slice, by: int) -> None:
        """Change the tokens of a part of the window, if it is still in it."""
        if self._tokens is not None:
            self._tokens.correct(part, by)


class SharedBudget:
    """US dollars that all processes together may spend in a day (UTC)."""

    __slots__ = ("_clock", "_fraction", "_lease", "_reserved")

    def __init__(self, clock: Clock, lease: _Lease) -> None:
        self._clock = clock
        self._lease = lease
        self._fraction = 0.0  # spent, but less than one unit
        self._reserved = 0

    @property
    def spent_usd(self) -> float:
        """US dollars of today, of all processes."""
        return self._lease.spent() / _PER_USD

    def spend(self, cost_usd: float) -> None:
        """Count what a call really cost."""
        self._fraction += cost_usd * _PER_USD
        units = math.floor(self._fraction)
        self._fraction -= units
        if units:
            self._lease.begin(units, self._clock.now())

    def reserve(self, usd: float) -> None:
        """Set what the requests in flight of this user of the budget will probably cost."""
        reserved = math.ceil(usd * _PER_USD)
        self._lease.reserve(reserved - self._reserved, self._clock.now())
        self._reserved = reserved

    def covers(self, price_usd: float, *, is_late: bool = False) -> bool:
        """Return whether one more request of this price may begin.

        Args:
            price_usd: US dollars.
            is_late: Whether an answer that may show more did not come in time.
        """
        units = math.ceil(price_usd * _PER_USD)
        return self._lease.covers(units, self._clock.now(), is_late=is_late)

    def may_cover(self, price_usd: float) -> bool:
        """Return whether an exchange may change the answer of `covers`. It asks for none."""
        return self._lease.may_cover(math.ceil(price_usd * _PER_USD), self._clock.now())


class Leases:
    """What this process holds of all shared limits, and the loop that exchanges.

    Args:
        ledger: Shares them.
        clock: Time.
        member: Returns what identifies this process.
        processes: How many share the limits for sure: the workers of a service. Counts until the
            ledger has said how many there are.

    Attributes:
        clock: As given.
        members: How many processes there are, as far as is known.
        rank: The place of this one among them.
        is_alone: Whether the ledger is out of reach, or has not answered yet.
        apart_since: When it was last lost.
        epoch: Of the ledger's memory.
        active: The limits to exchange for, each until it is not due any more.
    """

    def __init__(
        self, ledger: Ledger, clock: Clock, member: Callable[[], str], processes: int = 1
    ) -> None:
        self.clock = clock
        self.members = processes
        self.rank = processes - 1  # each could be the last, so none takes the remainder
        self.is_alone = True
        self.apart_since = _NEVER
        self.epoch = ""
        self._ledger = ledger
        self._member = member
        # A lease lives as long as something uses it, or as the ledger must know more of it.
        self._leases: WeakValueDictionary[str, _Lease] = WeakValueDictionary()
        self.active: dict[_Lease, None] = {}
        self._stale: list[str] = []  # names of those whose figures may be old
        self._shares_until = _NEVER
        self._serial = 0
        self._tries = 0  # since `join`, until there is an answer
        self._patience = math.inf  # until when requests wait for the first answer
        self._pending: dict[_Lease, _Batch] = {}  # said, but perhaps not booked
        self._behind = False  # whether not all fitted into the last exchange
        self._woken: asyncio.Event | None = None
        self._ended = asyncio.Event()  # of the exchange that is under way, or of the next
        self._broken = False

    def rates(
        self, name: str, rpm: int | None, tpm: int | None, *, kept: bool = False
    ) -> SharedRates:
        """Return shared rates.

        Args:
            name: Identifies them in the fleet.
            rpm: Most calls begun in any 60 seconds; None is no limit.
            tpm: Most tokens of the calls begun in any 60 seconds; None is no limit.
            kept: Whether to hold a little also while there are no calls, as long as it is used.
        """
        calls = None if rpm is None else self._lease(Limit(f"{name}:rpm", rpm, WINDOW))
        tokens = None if tpm is None else self._lease(Limit(f"{name}:tpm", tpm, WINDOW))
        rates = SharedRates(self.clock, calls, tokens)
        for lease in (calls, tokens) if kept else ():
            if lease is not None:
                lease.keepers.add(rates)
                self.active[lease] = None
        return rates

    def budget(self, name: str, usd: float) -> SharedBudget:
        """Return a shared daily budget."""
        units = max(1, round(usd * _PER_USD))
        return SharedBudget(self.clock, self._lease(Limit(f"{name}:usd", units, None)))

    def _lease(self, limit: Limit) -> _Lease:
        lease = self._leases.get(limit.name)
        if lease is None:
            lease = self._leases[limit.name] = _Lease(self, limit)
        lease.limit = limit
        return lease

    @property
    def forgotten_seconds(self) -> float:
        """Seconds after which a limit of which nothing was wanted is given back."""
        return MANY_SECONDS if len(self.active) > MANY else FORGOTTEN_SECONDS

    def keeps_to_shares(self, now: float) -> bool:
        """Return whether what the ledger says is not to be relied on."""
        return self.is_alone or now < self._shares_until

    def wake(self) -> None:
        """Exchange soon, unless the ledger is out of reach."""
        if not self.is_alone:
            self.ask_now()

    def ask_now(self) -> None:
        """Exchange soon: the ledger may be back."""
        if self._woken is not None:
            self._woken.set()

    async def gained(self, lacks: Callable[[], bool]) -> None:
        """Wait for exchanges until nothing is lacking, but not for long.

        Args:
            lacks: Whether a further exchange may help.
        """
        with contextlib.suppress(TimeoutError):
            async with self.clock.timeout(PATIENCE_SECONDS):
                while self._woken is not None and lacks():
                    self.ask_now()
                    await self._ended.wait()

    # ── the exchange ─────────────────────────────────────────────────────────────────────────

    def join(self) -> None:
        """Expect the ledger to answer; `run` is about to begin."""
        self._tries = 0
        self._patience = math.inf
        self._woken, self._ended = asyncio.Event(), asyncio.Event()

    @property
    def is_starting(self) -> bool:
        """Whether there was no answer yet, and one is still expected."""
        return self._woken is not None and self._tries < TRIES

    def awaits_first(self, now: float) -> bool:
        """Return whether requests wait for the first answer; all together not for long."""
        if not self.is_starting:
            return False
        self._patience = min(self._patience, now + PATIENCE_SECONDS)
        return now < self._patience

    def abandon(self) -> None:
        """Forget the loop: its event loop is gone."""
        self.is_alone, self._woken = True, None

    async def run(self) -> None:
        """Exchange until cancelled; then report what was spent and give all holds back."""
        if self._woken is None:
            self.join()
        try:
            await self._run()
        except asyncio.CancelledError:  # and not if a closed loop drops it
            self._woken = None
            await self._end()
            raise

    async def _run(self) -> None:
        clock, woken = self.clock, self._woken
        while woken is not None:
            woken.clear()
            await self._exchange()
            now = clock.now()
            await clock.sleep(SPACING_SECONDS)
            pause = IDLE_SECONDS
            if self.is_starting:
                pause = RETRY_SECONDS
            elif self._behind and not self.is_alone:
                continue
            elif self._pending or any(lease.is_active(now) for lease in self.active):
                # Drawn, so that of several processes not always the same one is first.
                pause = ACTIVE_SECONDS * (0.75 + clock.random() / 2)
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(pause - SPACING_SECONDS):
                    await woken.wait()

    async def _end(self) -> None:
        while not self.is_alone and (self._pending or self._has_more()):
            await self._exchange(leaving=True)
        self.is_alone = True
        self._ended.set()

    def _has_more(self) -> bool:
        """Return whether something is not reported, or not given back."""
        return any(lease.has_news or lease.is_granted for lease in self.active)

    async def _exchange(self, *, leaving: bool = False) -> None:
        asked_at = self.clock.now()
        pending = self._pending
        due = self._due(asked_at, pending)
        if not pending:
            self._serial += 1
            pending = {lease: batch for lease in due if (batch := lease.take_unreported())}
            self._pending = pending
        claims = [lease.claim(pending.get(lease, []), asked_at, leaving=leaving) for lease in due]
        try:
            async with self.clock.timeout(EXCHANGE_SECONDS):
                answer = await self._ledger.exchange(self._member(), claims, self._serial)
        except (FleetUnavailableError, TimeoutError):
            self._lost(asked_at)
        except Exception as error:  # noqa: BLE001 - requests go on whatever the ledger does
            self._lost(asked_at)
            if not self._broken:
                log_event(
                    logging.ERROR,
                    "fleet.exchange_failed",
                    "Limits are not shared: the exchange failed with {error}.",
                    error=type(error).__name__,
                    exc_info=True,
                )
            self._broken = True
        else:
            self._pending = {}
            self._broken = False
            self._take(answer, due, pending, asked_at)
        ended, self._ended = self._ended, asyncio.Event()
        ended.set()

    def _due(self, now: float, pending: dict[_Lease, _Batch]) -> list[_Lease]:
        """Return the limits of the next exchange: those that were said already, then the others."""
        for lease in [lease for lease in self.active if not lease.is_due(now)]:
            del self.active[lease]
        others = [lease for lease in self.active if lease not in pending]
        places = MOST_CLAIMS - len(pending)
        self._behind = sum(lease.is_urgent(now) for lease in others) > places
        if len(others) > places:
            others = heapq.nsmallest(places, others, key=lambda lease: lease.turn(now))
        due = [*pending, *others]
        return due + self._old(now, MOST_CLAIMS - len(due))

    def _old(self, now: float, most: int) -> list[_Lease]:
        """Return some of the limits that were given back and whose figures are old."""
        if not self._stale:
            self._stale = list(self._leases)
        names, self._stale = self._stale[-most:] if most else [], self._stale[: -most or None]
        leases = (self._leases.get(name) for name in names)
        return [
            lease
            for lease in leases
            if lease is not None
            and lease not in self.active
            and lease not in self._pending
            and now >= lease.answered_at + REFRESH_SECONDS
        ]

    def _lost(self, asked_at: float) -> None:
        self._tries += 1
        if not self.is_alone:
            self.is_alone = True
            if asked_at >= self._shares_until:  # else it is the same outage
                self.apart_since = asked_at

    def _take(
        self,
        answer: LedgerAnswer,
        due: Sequence[_Lease],
        booked: dict[_Lease, _Batch],
        asked_at: float,
    ) -> None:
        now = self.clock.now()
        is_first, self._tries = self.is_starting, TRIES
        was_long = self.is_alone and not is_first and now >= self.apart_since + GLITCH_SECONDS
        self.is_alone = False
        lost, before, self.epoch = False, self.epoch, answer.epoch
        if before != answer.epoch:
            for lease in self._leases.values():
                if lease.is_forgotten(answer.epoch):
                    self.active[lease] = None
        for lease, grant in zip(due, answer.grants, strict=True):
            epoch = answer.epoch + grant.epoch
            is_old = before == answer.epoch and not lease.is_of_memory(before)  # noted before
            is_lost = lease.take_answer(grant, epoch, booked.get(lease, []), asked_at)
            lost |= is_lost and not is_old
        if lost and now >= self._shares_until:
            self.apart_since = asked_at
        if was_long or lost:
            self._shares_until = now + HOLD_SECONDS
        if lost or (was_long and any(lease.has_news for lease in self.active)):
            self.ask_now()
        if now < self._shares_until:
            return
        self.members, self.rank = answer.members, answer.rank
        for lease in due:
            lease.settle(now)
