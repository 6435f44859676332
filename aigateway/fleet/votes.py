"""Circuits as votes, and cooldowns: what each process says of its providers, and hears of others.

Each process keeps circuits of its own. Of each one it makes a *statement* to the fleet: "I have
opened it", "it answered my probe", "the vendor asked me to wait". Statements are facts of one
process with the time at which they became true, so their order and a lost one do not matter: the
latest of each process counts, and all are read again each second.

A vote is an opening after failures of the voter's own. What others do with it:

- One vote: the first own failure opens the circuit, instead of the fifth in a row.
- *Doubts* are failures in a row that have not opened a circuit yet, from the second on. They count
  together: the fifth failure of distinct requests opens the circuit of each process that has one of
  them, whichever processes have the others.
- Two votes: it opens at once. Several processes of one other machine are one witness here: they
  share its network. Processes of the same machine count one by one, since what they see is what
  this process would see.
- None of these, if this process has had an answer since the voter's failures began. Nor does a
  process vote while its machine's network or its event loop is in doubt.
- An open circuit allows one probe at a time in the whole fleet, as far as this process knows. A
  process that probes says so, and the others wait. Busy processes settle in the background who may
  probe, shortly before the open time ends. A process that knows of no other probe sends its own: a
  request may be the only one for a long time, and recovery counts more than a second probe.
- A probe's answer ends all older votes: circuits that opened on the word of others close, and the
  others probe for themselves at once. Its failure puts off the others' probes, but each witness can
  do that only once between two own probes: a machine that sees failures for a reason of its own
  must not keep the others away.

A cooldown holds for all, until the latest end that any process was given. A misconfigured provider
(a bad key) is not voted on: each process learns that from its first request, and the vendor's
refusal costs nothing. An operator's order for a circuit stays in its process, too.

A request only reads local state. Without Redis each process goes on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from aigateway.clock import Clock
from aigateway.events import Operation
from aigateway.fleet.client import FleetClient, LuaScript
from aigateway.fleet.ledger import FleetUnavailableError
from aigateway.resilience.breaker import CircuitState, FleetBreaker
from aigateway.resilience.cooldown import Cooldown
from aigateway.settings import LLMConfig

__all__ = [
    "CircuitBus",
    "RedisCircuitBus",
    "SharedCircuit",
    "Votes",
    "host_identity",
    "shared_name",
]

POLL = 1.0
"""Seconds between two readings of all statements; messages come at once, but may be lost."""

BUSY_POLL = 0.25
"""Seconds between two passes while a circuit of this process waits for its probe."""

QUORUM = 2
"""Votes of distinct witnesses that open a circuit at once."""

RECENT_FAILURE = 10.0
"""Seconds for which a failure before the vote counts as the one failure that a vote asks for."""

VOTE_AFTERLIFE = 30.0
"""Seconds for which a vote counts after its open time, while a probe is under way."""

LONGEST_VOTE = 300.0
"""Seconds after which any vote ends."""

ANSWER_LIVES = LONGEST_VOTE + VOTE_AFTERLIFE
"""Seconds for which an answer counts: longer than any vote that it ends."""

PROBE_LEASE = 2.0
"""Seconds for which the right to probe is taken, and for which the others heed a probe. A process
repeats that it probes; so the probe of one that is killed ends."""

PATIENCE = 10.0
"""Seconds after the first refused request for which others' probes keep this process from its own.
"""

UNUSED = 1.0
"""Seconds after which the right is given back, if no request has come that could probe."""

DOUBT = 2
"""Failures in a row that are worth a message."""

DOUBT_LIVES = 2.0
"""Seconds after the latest failure for which a doubt counts."""

OLD_ANSWER = 1.0
"""Seconds for which an answer may count as one from when its call began."""

DOUBT_PAUSE = 0.5
"""Seconds between the beginnings of two doubts: a vendor that fails now and then makes many."""

WANTED = 1.0
"""Seconds for which a request that was refused is a reason to ask for the right."""

SAME = 0.1
"""Seconds by which times that were read twice may differ: the clocks are compared anew each time.
"""

LEAD = 0.1 + BUSY_POLL
"""Seconds before the end of the open time from which the right may be asked for."""


def shared_name(config: LLMConfig, operation: Operation | Literal["rates"]) -> str:
    """Return the name of a circuit, or of the rates, of a provider in the fleet.

    Processes share it if the provider has the same name, vendor, model and address in both. So a
    deployment that moves a name to another server begins anew. The key is no part of it: services
    that use one name for different keys need different names, or different fleets.
    """
    parts = (config.name, config.provider, config.model, config.api_base)
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return f"{config.name}:{digest}:{operation}"


def host_identity() -> str:
    """Return what all processes of one machine have in common, in containers, too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{uuid.getnode():x}"


@dataclass(frozen=True, slots=True)
class Statement:
    """What one process says of one circuit; times are on the local clock's own scale.

    Attributes:
        circuit: Its name in the fleet.
        member: The process.
        host: The machine of that process.
        at: When it was said.
        failing: When the failures began that this is a vote or a doubt about; -inf if it is none.
        until: The end of the open time.
        ends: When the vote or the doubt ends.
        openings: How often the circuit has opened in a row; 0 if it is closed.
        causes: Digests of the requests that failed; of a doubt only.
        answered: When an answer last closed its circuit; -inf if none has.
        cooling: The end of its cooldown; -inf if there is none.
        limited: The same, if it is for a rate limit.
        clamped: The vendor asked for a longer one.
        probing: Until when its probe is to be heeded; -inf if none is in flight.
    """

    circuit: str
    member: str
    host: str
    at: float = -math.inf
    failing: float = -math.inf
    until: float = -math.inf
    ends: float = -math.inf
    openings: int = 0
    answered: float = -math.inf
    cooling: float = -math.inf
    limited: float = -math.inf
    clamped: bool = False
    causes: tuple[str, ...] = ()
    probing: float = -math.inf

    _TIMES: ClassVar = ("failing", "until", "ends", "answered", "cooling", "limited", "probing")

    def text(self, now: float) -> str:
        """Return it as JSON, with times in seconds from now."""
        times = {name: getattr(self, name) for name in self._TIMES}
        relative = {name: round(t - now, 3) for name, t in times.items() if t > -math.inf}
        who = {"circuit": self.circuit, "member": self.member, "host": self.host}
        what = {"openings": self.openings, "clamped": self.clamped, "causes": self.causes}
        return json.dumps({**who, **what, **relative})

    def lives(self, now: float) -> float:
        """Return the seconds for which it has a meaning."""
        return max(self.ends, self.cooling, self.answered + ANSWER_LIVES, self.probing) - now

    @classmethod
    def parse(cls, text: str | bytes, offset: float) -> Statement | None:
        """Read what a `CircuitBus` hands out; None if it is nothing that this version can read.

        Args:
            text: JSON: `at` on the bus's clock in milliseconds, and `said`, as from `text`.
            offset: The local clock minus that of the bus, in seconds.
        """
        try:
            value = json.loads(text)
            at, said = value["at"] / 1000 + offset, value["said"]
            times = {name: at + float(said[name]) for name in cls._TIMES if name in said}
            who = (str(said["circuit"]), str(said["member"]), str(said["host"]))
            openings, clamped = int(said["openings"]), bool(said["clamped"])
            causes = tuple(map(str, said["causes"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return cls(*who, at=at, openings=openings, clamped=clamped, causes=causes, **times)


class CircuitBus(Protocol):
    """The way to the other processes. Calls are bounded, and may raise `FleetUnavailableError`."""

    @property
    def member(self) -> str:
        """Identifies this process."""

    async def say(self, circuit: str, said: str, seconds: float) -> None:
        """Replace this process's statement on a circuit, for so long, and send it to all others.

        Args:
            circuit: The circuit's name in the fleet.
            said: JSON.
            seconds: For how long it is kept.
        """

    async def read(self) -> tuple[float, Sequence[str | bytes]]:
        """Return the bus's time in seconds, and all statements that are kept."""

    async def take_probe(self, circuit: str, seconds: float) -> bool:
        """Take the right to probe, or keep it; False if another process has it."""

    async def drop_probe(self, circuit: str) -> None:
        """Give the right back."""

    def connect(
        self, hear: Callable[[str | bytes], object], returned: Callable[[], object]
    ) -> None:
        """Call `hear` with each statement that is sent, and `returned` when the bus is back."""


class SharedCircuit:
    """One circuit of this process with its cooldown, in the fleet. Synchronous.

    Attributes:
        name: The circuit's name in the fleet.
        breaker: The circuit.
        cooldown: The cooldown.
        is_sound: Returns whether failures seen here are evidence against the provider.
    """

    def __init__(self, name: str, votes: Votes, breaker: FleetBreaker, cooldown: Cooldown) -> None:
        self.name = name
        self.votes = votes
        self.breaker = breaker
        self.cooldown = cooldown
        self.is_sound: Callable[[], bool] = lambda: True
        self._clock = votes.clock
        self._others: Sequence[Statement] = ()
        self._said: Statement | None = None
        self._news = False  # something may have to be said
        self._seen_answer = -math.inf  # the latest answer of others that was heeded
        self._seen_cooling = (-math.inf, -math.inf)  # cooldowns and rate limits, likewise
        self._answered_at = -math.inf  # the latest answer here
        self._closed_at = -math.inf  # when an answer last closed the circuit
        self._failed_at = self._failing_since = -math.inf
        self._doubts = False  # the present failures in a row are known to the others
        self._doubts_again = -math.inf
        self._opened_at = self._vote_until = -math.inf
        self._wanted_at = -math.inf  # when a request was last refused
        self._put_off_by: set[str] = set()  # witnesses, since the last own probe
        self._free = False  # it answered another process: each may probe
        self._right_since = self._right_until = -math.inf
        self._ask_at = self._denied_until = -math.inf
        self._kept_since = math.inf  # when a request was first refused for the probe of another
        breaker.advisor = self

    # ── what the breaker asks and tells; see `CircuitAdvisor` ────────────────────────────────

    def failed(self) -> bool:
        """See `CircuitAdvisor`."""
        now = self._failed_at = self._clock.now()
        streak = self.breaker.consecutive_failures
        if streak == 1:
            self._failing_since = now
        elif streak >= DOUBT and (self._doubts or now >= self._doubts_again):
            self._doubts, self._doubts_again = True, now + DOUBT_PAUSE
            self._tell()
        return self._is_confirmed()

    def probe_wait(self) -> float:
        """See `CircuitAdvisor`."""
        now = self._clock.now()
        if self._free or not self.votes.reachable or now >= self._kept_since + PATIENCE:
            return 0.0
        elsewhere = now < self._denied_until or any(said.probing > now for said in self._others)
        return BUSY_POLL if elsewhere else 0.0

    def probe_begun(self) -> None:
        """See `CircuitAdvisor`."""
        self._tell()

    def changed(self, how: Literal["failed", "answered", "set"]) -> None:
        """See `CircuitAdvisor`."""
        now = self._clock.now()
        self._doubts, self._kept_since = False, math.inf
        if how == "failed":
            self._opened_at, self._vote_until = now, self.breaker.open_until
            if self.breaker.openings > 1:  # a probe has failed
                self._failing_since = now
            self._free = False
        elif how == "answered":
            self._closed_at = self._answered_at = now
        if how != "set" or self.breaker.state is CircuitState.CLOSED:
            self._put_off_by.clear()
        self._tell()

    # ── what the guards tell ─────────────────────────────────────────────────────────────────

    def answered(self, seconds: float = 0.0) -> None:
        """Note an answer of the provider.

        When a vendor dies, answers to calls from before still come for a while. They are no
        evidence against failures since then, unless the circuit is open on the word of others.

        Args:
            seconds: How long it took.
        """
        now = self._clock.now()
        at = now if self.breaker.on_hearsay else now - min(seconds, OLD_ANSWER)
        self._answered_at = max(self._answered_at, at)
        if self._doubts and at > self._failing_since:
            self._doubts = False
            self._tell()

    def cooled_down(self) -> None:
        """Note that the cooldown has changed."""
        self._tell()

    def wanted(self) -> None:
        """Note that the circuit refused a request: this process has a use for the probe."""
        now = self._wanted_at = self._clock.now()
        if self._is_over(now):
            self._kept_since = min(self._kept_since, now)
        if now >= self._ask_at and now >= self._right_until:
            self.votes.wake()

    # ── what others say ──────────────────────────────────────────────────────────────────────

    def heed(self, others: Sequence[Statement]) -> None:
        """Take in what the others say now."""
        self._others = others
        self._heed_cooldowns(others)
        self._heed_answer(max((said.answered for said in others), default=-math.inf))
        breaker, now = self.breaker, self._clock.now()
        if breaker.state is CircuitState.OPEN:
            self._heed_failed_probes()
        elif breaker.state is CircuitState.CLOSED:
            votes = self._votes()
            if len({self._witness(vote) for vote in votes}) >= QUORUM:
                latest = max(votes, key=lambda vote: vote.until)
                self._opened_at, self._free = now, False
                breaker.open_on_hearsay(max(0.0, latest.until - now), latest.openings)
            elif now - self._failed_at < RECENT_FAILURE and self._is_confirmed():
                breaker.open_on_warning()

    def _heed_cooldowns(self, others: Sequence[Statement]) -> None:
        """Heed each cooldown once: an operator may end it here."""
        cooling = max((said.cooling for said in others), default=-math.inf)
        limited = max((said.limited for said in others), default=-math.inf)
        seen, seen_limited = self._seen_cooling
        if cooling <= seen + SAME and limited <= seen_limited + SAME:
            return
        self._seen_cooling = (max(cooling, seen), max(limited, seen_limited))
        clamped = any(said.clamped for said in others)
        self.cooldown.lengthen(cooling, limited, clamped=clamped)

    def _heed_answer(self, answered: float) -> None:
        if answered <= self._seen_answer + SAME:
            return
        self._seen_answer = answered
        if answered > self._opened_at and self.breaker.state is not CircuitState.CLOSED:
            self._free = True
            self._put_off_by.clear()
            self.breaker.answered_elsewhere()

    def _heed_failed_probes(self) -> None:
        now = self._clock.now()
        for vote in self._votes():
            witness = self._witness(vote)
            probed = vote.openings > 1 and vote.failing > self._opened_at
            if probed and vote.until > now and witness not in self._put_off_by:
                self._put_off_by.add(witness)
                self._kept_since = math.inf
                self.breaker.put_off(vote.until - now, vote.openings)

    def _is_confirmed(self) -> bool:
        """Return whether what others see makes one own failure enough to open the circuit."""
        against = self._against()
        if any(said.openings for said in against):
            return True
        causes = {cause for said in against for cause in said.causes}.union(self._causes())
        return bool(against) and len(causes) >= self.breaker.failure_threshold

    def _votes(self) -> list[Statement]:
        return [said for said in self._against() if said.openings]

    def _against(self) -> list[Statement]:
        """Return the others' votes and doubts that count here now."""
        if not self._others:
            return []
        now = self._clock.now()
        since = max(self._answered_at, *(said.answered for said in self._others))
        return [said for said in self._others if said.failing > since and said.ends > now]

    def _causes(self) -> tuple[str, ...]:
        causes = sorted(map(repr, self.breaker.causes))[: self.breaker.failure_threshold]
        return tuple(hashlib.sha256(cause.encode()).hexdigest()[:8] for cause in causes)

    def _witness(self, vote: Statement) -> str:
        return vote.member if vote.host == self.votes.host else vote.host

    # ── what is said ─────────────────────────────────────────────────────────────────────────

    def _tell(self) -> None:
        self._news = True
        self.votes.wake()

    def repeat(self) -> None:
        """Say it again: the bus has lost it."""
        self._said = None
        self._news = True

    def misses(self, own: Statement | None) -> None:
        """Say it again if the bus should have a statement and has not."""
        if own is None and self._said is not None and self._said.lives(self._clock.now()) > 1.0:
            self.repeat()

    def statement(self) -> Statement | None:
        """Return what is to be said now, or None."""
        left = -math.inf if self._said is None else self._said.probing - self._clock.now()
        if left < PROBE_LEASE / 2 if self.breaker.probing else left > 0:
            self._news = True
        if not self._news:
            return None
        self._news = False
        new = self._statement()
        if self._said == new or (self._said is None and new.lives(self._clock.now()) <= 0):
            return None
        self._said = new
        return new

    def _statement(self) -> Statement:
        breaker, now = self.breaker, self._clock.now()
        cooling, limited, clamped = self.cooldown.shared
        if cooling <= now:
            cooling, limited, clamped = -math.inf, -math.inf, False
        said = Statement(
            self.name,
            self.votes.member,
            self.votes.host,
            answered=self._closed_at,
            cooling=cooling,
            limited=limited,
            clamped=clamped,
            probing=now + PROBE_LEASE if breaker.probing else -math.inf,
        )
        closed = breaker.state is CircuitState.CLOSED
        if breaker.on_hearsay or breaker.forced or (closed and not self._doubts):
            return said
        if not self.is_sound():
            self._news = True  # perhaps later
            return said
        if closed:
            ends, causes = self._failed_at + DOUBT_LIVES, self._causes()
            return replace(said, failing=self._failing_since, ends=ends, causes=causes)
        until = self._vote_until
        ends = min(until + VOTE_AFTERLIFE, self._opened_at + LONGEST_VOTE)
        since, openings = self._failing_since, breaker.openings
        return replace(said, failing=since, until=until, ends=ends, openings=openings)

    # ── the right to probe ───────────────────────────────────────────────────────────────────

    @property
    def busy(self) -> bool:
        """Whether it needs passes at short intervals."""
        now = self._clock.now()
        waits = self.breaker.state is not CircuitState.CLOSED and now - self._wanted_at < WANTED
        probed = self.breaker.probing or (self._said is not None and self._said.probing > now)
        return waits or probed or self._news or now < self._right_until

    def due(self) -> Literal["take", "drop"] | None:
        """Return what is to be done about the right to probe now."""
        breaker, now = self.breaker, self._clock.now()
        needless = self._free or breaker.forced or breaker.state is CircuitState.CLOSED
        if now < self._right_until:
            unused = not breaker.probing and now - self._right_since > UNUSED
            return "drop" if needless or unused else None
        if needless or breaker.probing or now < self._ask_at or now - self._wanted_at > WANTED:
            return None
        return "take" if self._is_over(now + LEAD) else None

    def _is_over(self, now: float) -> bool:
        """Return whether the open time is over then."""
        return self.breaker.state is CircuitState.HALF_OPEN or self.breaker.open_until <= now

    def taken(self, asked_at: float, *, granted: bool) -> None:
        """Note the answer to "take"."""
        if not granted:
            self._ask_at, self._denied_until = asked_at + BUSY_POLL, asked_at + PROBE_LEASE
            return
        self._right_since, self._right_until = asked_at, asked_at + PROBE_LEASE
        self._denied_until = -math.inf

    def dropped(self) -> None:
        """Note that the right was given back, or is lost."""
        self._right_until = -math.inf
        self._ask_at = self._clock.now() + UNUSED


class Votes:
    """The circuits that this process shares.

    Args:
        bus: The way to the others.
        clock: Time.
        host: Identifies this machine.

    Attributes:
        reachable: Whether the bus answered the latest call.
    """

    def __init__(self, bus: CircuitBus, clock: Clock, host: str | None = None) -> None:
        self.clock = clock
        self.host = host or host_identity()
        self.reachable = False
        self._bus = bus
        self._circuits: dict[str, list[weakref.ref[SharedCircuit]]] = {}
        self._heard: dict[str, dict[str, Statement]] = {}  # of each circuit, by member
        self._offset: float | None = None  # our clock minus that of the bus
        self._poll_at = -math.inf
        self._wakeup: asyncio.Event | None = None  # only while it runs
        bus.connect(self._hear, self._poll_now)

    @property
    def member(self) -> str:
        """Identifies this process in the fleet."""
        return self._bus.member

    def share(self, name: str, breaker: FleetBreaker, cooldown: Cooldown) -> SharedCircuit:
        """Share a circuit and its cooldown from now on.

        A circuit that one gateway took over from another is shared once.
        """
        circuit = breaker.advisor
        if isinstance(circuit, SharedCircuit) and circuit.votes is self and circuit.name == name:
            circuit.cooldown = cooldown
            return circuit
        circuit = SharedCircuit(name, self, breaker, cooldown)
        self._circuits.setdefault(name, []).append(weakref.ref(circuit))
        self._poll_now()
        return circuit

    def wake(self) -> None:
        """Look at once whether there is something to do."""
        if self._wakeup is not None:
            self._wakeup.set()

    async def run(self) -> None:
        """Exchange statements and rights to probe, until cancelled."""
        self._wakeup = wakeup = asyncio.Event()
        self._poll_at = -math.inf
        try:
            while True:
                wakeup.clear()
                await self._pass()
                pause = BUSY_POLL if self.reachable and self._is_busy() else POLL
                pause = min(pause, max(0.0, self._poll_at - self.clock.now()))
                with contextlib.suppress(TimeoutError):
                    async with self.clock.timeout(pause):
                        await wakeup.wait()
        finally:
            if self._wakeup is wakeup:  # else another event loop runs it by now
                self.abandon()

    def abandon(self) -> None:
        """Forget what the event loop held: it is gone."""
        self._wakeup = None
        self._lose()

    async def _pass(self) -> None:
        now = self.clock.now()
        if not self.reachable and now < self._poll_at:
            return
        try:
            if now >= self._poll_at:
                self._poll_at = now + POLL
                await self._read()
            for circuit in self._all():
                await self._say(circuit)
                await self._settle_right(circuit)
        except FleetUnavailableError:  # the client says so, once
            self._lose()

    def _lose(self) -> None:
        self.reachable = False
        for circuit in self._all():
            circuit.dropped()

    def _is_busy(self) -> bool:
        return any(circuit.busy for circuit in self._all())

    def _all(self) -> list[SharedCircuit]:
        found = [circuit for name in self._circuits for circuit in self._of(name)]
        self._circuits = {n: refs for n, refs in self._circuits.items() if refs}
        return found

    def _of(self, name: str) -> list[SharedCircuit]:
        """Return the circuits of one name: several, while a reload replaces one."""
        references = self._circuits.get(name, [])
        found = [circuit for ref in references if (circuit := ref()) is not None]
        if len(found) < len(references):
            self._circuits[name] = [ref for ref in references if ref() is not None]
        return found

    async def _say(self, circuit: SharedCircuit) -> None:
        said = circuit.statement()
        if said is None:
            return
        now = self.clock.now()
        try:
            await self._bus.say(circuit.name, said.text(now), max(1.0, said.lives(now)))
        except BaseException:
            circuit.repeat()
            raise

    async def _settle_right(self, circuit: SharedCircuit) -> None:
        order, now = circuit.due(), self.clock.now()
        if order == "take":
            granted = await self._bus.take_probe(circuit.name, PROBE_LEASE)
            circuit.taken(now, granted=granted)
        elif order == "drop":
            circuit.dropped()
            await self._bus.drop_probe(circuit.name)

    async def _read(self) -> None:
        asked = self.clock.now()
        at, texts = await self._bus.read()
        self._offset = offset = (asked + self.clock.now()) / 2 - at
        self.reachable = True
        heard: dict[str, dict[str, Statement]] = {name: {} for name in self._circuits}
        for text in texts:
            said = Statement.parse(text, offset)
            if said is not None and said.circuit in heard:
                heard[said.circuit][said.member] = said
        for name, before in self._heard.items():  # what a message brought since
            newer = {m: said for m, said in before.items() if said.at > at + offset}
            if name in heard:
                heard[name].update(newer)
        self._heard = heard
        for name in heard:
            self._pass_on(name, read=True)

    def _hear(self, text: str | bytes) -> None:
        said = None if self._offset is None else Statement.parse(text, self._offset)
        if said is None or said.member == self.member or said.circuit not in self._circuits:
            return
        heard = self._heard.setdefault(said.circuit, {})
        before = heard.get(said.member)
        if before is None or said.at >= before.at:
            heard[said.member] = said
            self._pass_on(said.circuit)

    def _pass_on(self, name: str, *, read: bool = False) -> None:
        heard = self._heard.get(name, {})
        others = [said for member, said in heard.items() if member != self.member]
        for circuit in self._of(name):
            if read:
                circuit.misses(heard.get(self.member))
            circuit.heed(others)

    def _poll_now(self) -> None:
        self._poll_at = -math.inf
        self.wake()


_SAY = LuaScript(
    "circuits.say",
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ms = tonumber(ARGV[2])
local value = string.format('{"at":%.0f,"ends":%.0f,"said":', now, now + ms) .. ARGV[3] .. '}'
redis.call('HSET', KEYS[1], ARGV[1], value)
if redis.call('PTTL', KEYS[1]) < ms then redis.call('PEXPIRE', KEYS[1], ms) end
redis.call('PUBLISH', ARGV[4], value)
""",
)
_READ = LuaScript(
    "circuits.read",
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = {string.format('%.0f', now)}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local ends = tonumber(string.match(all[i + 1], '"ends":(%d+)') or 0)
  -- A server that refuses to write can still be read.
  if ends > now then kept[#kept + 1] = all[i + 1] else redis.pcall('HDEL', KEYS[1], all[i]) end
end
return kept
""",
    writes=False,
)
_TAKE = LuaScript(
    "circuits.take_probe",
    """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
""",
)
_DROP = LuaScript(
    "circuits.drop_probe",
    """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
""",
)


class RedisCircuitBus:
    """A `CircuitBus` over Redis: one hash with a field for each statement, and a channel.

    Times are those of the server, so that processes need not agree on theirs.
    """

    _KEY = "circuits"

    def __init__(self, client: FleetClient) -> None:
        self._client = client

    @property
    def member(self) -> str:
        """See `CircuitBus`."""
        return self._client.member

    async def say(self, circuit: str, said: str, seconds: float) -> None:
        """See `CircuitBus`."""
        client, field = self._client, f"{self.member} {circuit}"
        args = (field, math.ceil(seconds * 1000), said, client.channel_name(self._KEY))
        await client.run(_SAY, [self._KEY], args)

    async def read(self) -> tuple[float, Sequence[str | bytes]]:
        """See `CircuitBus`."""
        now, *statements = await self._client.run(_READ, [self._KEY])
        return int(now) / 1000, statements

    async def take_probe(self, circuit: str, seconds: float) -> bool:
        """See `CircuitBus`."""
        args = (self.member, math.ceil(seconds * 1000))
        return bool(await self._client.run(_TAKE, [f"probe:{circuit}"], args))

    async def drop_probe(self, circuit: str) -> None:
        """See `CircuitBus`."""
        await self._client.run(_DROP, [f"probe:{circuit}"], (self.member,))

    def connect(
        self, hear: Callable[[str | bytes], object], returned: Callable[[], object]
    ) -> None:
        """See `CircuitBus`."""
        self._client.subscribe(self._KEY, hear)
        self._client.on_return(returned)
