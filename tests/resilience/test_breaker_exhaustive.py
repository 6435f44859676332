"""Every history of a circuit with a few calls out: the breaker beside its rules, event by event.

Breadth first, so that a difference is shown with the shortest history that leads to it. Histories
after which neither the rules nor the breaker itself can tell what went before count as one state.
Of these there are finitely many, and all are visited: for a few calls out at once here, for more
with `nox -s model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from aigateway.resilience.breaker import (
    Change,
    CircuitBreaker,
    CircuitState,
    FleetBreaker,
    Permit,
    Rejected,
)
from aigateway.testing import FakeClock
from tests.resilience.breaker_rules import Call, Limits, Rules, Settlement

SETTLEMENTS: dict[str, tuple[Settlement, str | None]] = {
    "success": ("success", None),
    "failure": ("failure", None),
    "failure of x": ("failure", "x"),
    "release": ("release", None),
}
"""What can become of a call, and its cause. One cause is enough: any other counts as none does."""
JUST = 2.0**-10
"""Seconds; a moment."""
ROUNDING = 2.0**-30
"""Seconds; what a sum of a jittered time may be off by."""
LONG = 2.0**12
"""Seconds; longer than any circuit stays open here."""
START = 2.0**20
"""From here sums of all the durations below are exact, so "just at the end" can be hit."""

ASK: dict[str, Callable[[CircuitBreaker], Permit | Rejected | None]] = {
    "acquire": CircuitBreaker.acquire,
    "last resort": CircuitBreaker.acquire_last_resort,
    "refusal": CircuitBreaker.refusal,
}

Event = tuple[str, int | float]
Path = tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Setup:
    """One circuit to explore.

    Attributes:
        limits: What it is set to.
        luck: What every random number is.
        calls: How many may be out at once.
        kind: Whose circuit.
    """

    limits: Limits
    luck: float = 0.0
    calls: int = 3
    kind: type[CircuitBreaker] = CircuitBreaker


class Clock(FakeClock):
    """Time that the explorer moves, and one and the same random number."""

    def __init__(self, luck: float) -> None:
        super().__init__(START)
        self.luck = luck

    def random(self) -> float:
        return self.luck


class Others:
    """What other processes say, as the explorer wants it; see `CircuitAdvisor`."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def failed(self) -> bool:
        return self._rules.warned

    def probe_wait(self) -> float:
        return self._rules.held

    def probe_begun(self) -> None:
        """Nothing is passed on."""

    def changed(self, how: Change) -> None:
        """Nothing is passed on."""


HELD = 0.25
"""Seconds after which to ask again for the right to probe."""


class World:
    """A breaker and its rules, after the same events."""

    def __init__(self, setup: Setup) -> None:
        self.limits = limits = setup.limits
        self.most_calls = setup.calls
        self.clock = Clock(setup.luck)
        self.rules = Rules(limits)
        self.told: list[tuple[str, str]] = []
        self.breaker = setup.kind(
            limits.threshold,
            limits.open_seconds,
            max_open_seconds=limits.max_open,
            probe_lease_seconds=limits.lease,
            clock=self.clock,
            on_change=self._told,
        )
        if isinstance(self.breaker, FleetBreaker):
            self.breaker.advisor = Others(self.rules)
        self.out: list[tuple[Permit, Call]] = []
        self.settled: list[Permit] = []

    def _told(self, old: CircuitState, new: CircuitState) -> None:
        assert self.breaker.state is new, "a listener is told before the state is complete"
        self.told.append((old.value, new.value))

    def events(self) -> Iterator[Event]:
        """What can happen next, each kind of call and each moment once."""
        rules, now = self.rules, self.clock.now()
        yield from (("refusal", 0), ("force_open", 0), ("force_closed", 0), ("reset", 0))
        free = len(self.out) < self.most_calls
        if free or self._would_refuse():
            yield ("acquire", 0)
        if rules.state != "closed" and (free or rules.forced):
            yield ("last resort", 0)
        if isinstance(self.breaker, FleetBreaker):
            yield from (("warn", not rules.warned), ("hold", not rules.held), ("answered", 0))
            yield from (("hearsay", 1), ("hearsay", 2), ("warning", 0), ("put off", 2))
        kinds = set()
        for place, (permit, call) in enumerate(self.out):
            kind = self._kind(permit, call)
            if kind not in kinds:
                kinds.add(kind)
                yield from ((how, place) for how in SETTLEMENTS)
        end = rules.lease_ends if rules.probe is not None else rules.open_until
        if rules.state != "closed" and end < math.inf:
            moments = (end - JUST - now, end - now, end + JUST - now, LONG)
            yield from (("wait", seconds) for seconds in moments if seconds > 0)

    def _would_refuse(self) -> bool:
        rules, now = self.rules, self.clock.now()
        if rules.state == "closed":
            return False
        if rules.held and rules.probe is None:
            return True
        return rules.forced or now < (rules.open_until if rules.probe is None else rules.lease_ends)

    def happen(self, event: Event) -> None:
        """Let it happen to both, and hold what it brings against each other."""
        name, number = event
        rules, breaker, now = self.rules, self.breaker, self.clock.now()
        openings = rules.openings
        if name == "wait":
            self.clock.tick(number)
        elif name in {"acquire", "refusal", "last resort"}:
            self._ask(name, now)
        elif name in SETTLEMENTS:
            permit, call = self.out.pop(int(number))
            settle(permit, name)
            how, cause = SETTLEMENTS[name]
            rules.settle(call, how, now, cause)
            self.settled.append(permit)
        elif name in OTHERS:
            OTHERS[name](self, int(number))
        else:
            getattr(breaker, name)()
            getattr(rules, name)()
        if rules.openings > openings and name in SETTLEMENTS:
            self._take_over(breaker.refusal(), now)

    def _ask(self, name: str, now: float) -> None:
        rules = self.rules
        openings = rules.openings
        expected = rules.refusal(now)
        answer = ASK[name](self.breaker)
        if rules.openings > openings:
            expected = self._take_over(self.breaker.refusal(), now)
        if expected is not None and name == "last resort" and not rules.forced:
            assert isinstance(answer, Permit), f"{answer}, and this is the last resort"
            assert answer.last_resort, "the permit does not say that it is a last resort"
            assert not answer.probe, "the permit of a last resort says that it is a probe"
            self.out.append((answer, rules.let_through_all_the_same()))
        elif expected is not None:
            assert isinstance(answer, Rejected), f"{name} let a call through"
            assert answer.retry_after == expected, f"{answer} instead of {expected}"
        elif name == "refusal":
            assert answer is None, f"refusal says {answer}, and nothing is in the way"
        else:
            assert isinstance(answer, Permit), f"{answer}, and nothing is in the way"
            call = rules.let_through(now)
            assert answer.probe is call.probe, f"the permit says probe={answer.probe}"
            assert not answer.last_resort, "the permit says that it is a last resort"
            self.out.append((answer, call))

    def _take_over(self, answer: object, now: float) -> float:
        """How long the breaker has opened for: the rules leave it some room."""
        least, most = self.rules.open_time()
        assert isinstance(answer, Rejected), "it did not open"
        within = least - ROUNDING <= answer.retry_after <= most + ROUNDING
        assert within, f"open for {answer}, not {least} to {most}"
        self.rules.opened_for(answer.retry_after, now)
        return answer.retry_after

    def _hearsay(self, openings: int) -> None:
        seconds, now = openings * self.limits.open_seconds, self.clock.now()
        self._fleet.open_on_hearsay(seconds, openings)
        self.rules.others_fail(seconds, openings, now)

    def _warning(self, _: int) -> None:
        self._fleet.open_on_warning()
        self.rules.another_fails(self.clock.now())

    def _put_off(self, openings: int) -> None:
        seconds, now = openings * self.limits.open_seconds, self.clock.now()
        self._fleet.put_off(seconds, openings)
        self.rules.probe_of_another_failed(seconds, openings, now)

    def _answered(self, _: int) -> None:
        self._fleet.answered_elsewhere()
        self.rules.another_was_answered(self.clock.now())

    def _warn(self, warned: int) -> None:
        self.rules.warned = bool(warned)

    def _hold(self, held: int) -> None:
        self.rules.held = HELD * held

    @property
    def _fleet(self) -> FleetBreaker:
        assert isinstance(self.breaker, FleetBreaker)
        return self.breaker

    def recover(self) -> None:
        """From here the circuit closes, whatever the others say, if the provider is well."""
        if self.rules.forced:
            return
        last_resort = self.breaker.acquire_last_resort()
        assert isinstance(last_resort, Permit), "the last candidate is refused"
        last_resort.release()
        self.rules.held = 0.0
        self.clock.tick(LONG)
        self.breaker.refusal()  # a probe that is out and lost counts as failed now
        self.clock.tick(LONG)
        permit = self.breaker.acquire()
        assert isinstance(permit, Permit), f"{permit} for ever"
        permit.success()
        assert self.breaker.state is CircuitState.CLOSED, "an answer does not close it"

    def compare(self) -> None:
        """Everything that can be seen from outside."""
        rules, breaker = self.rules, self.breaker
        assert breaker.state.value == rules.state, f"state: {breaker.state}, not {rules.state}"
        seen = (breaker.consecutive_failures, breaker.late_results)
        assert seen == (rules.failures, rules.late), (
            f"failures and late results: {seen}, not {(rules.failures, rules.late)}"
        )
        assert self.told == rules.changes, f"told {self.told}, not {rules.changes}"

    def settle_again(self) -> None:
        """Whatever has been settled once changes nothing any more."""
        before = self.key()
        for permit in self.settled:
            for how in SETTLEMENTS:
                settle(permit, how)
        self.compare()
        assert self.key() == before, "a second settlement changed something"

    # ── which histories are one state ────────────────────────────────────────────────────────

    def key(self) -> tuple[Any, ...]:
        """The same for histories that nothing to come can tell apart.

        The breaker's own fields are in it, so that what the rules hold to be one state is
        explored twice if the breaker remembers a difference.
        """
        rules, breaker, most = self.rules, self.breaker, self.limits.threshold + 1
        probe_is_out = any(permit is breaker._probe for permit, _ in self.out)
        return (
            (rules.state, rules.forced, min(rules.failures, most), self._row(rules.openings)),
            (self._left(rules.open_until), self._left(rules.lease_ends, rules.probe)),
            (breaker.state, breaker._forced, min(breaker._streak, most)),
            (frozenset(rules.causes), frozenset(breaker._causes)),
            (rules.warned, rules.held, rules.hearsay is None, self._hearsay_of(breaker) < 0),
            (self._row(breaker._openings), breaker._probe is None, probe_is_out),
            (self._left(breaker._open_until), self._left(breaker._lease_ends, breaker._probe)),
            tuple(sorted(self._kind(permit, call) for permit, call in self.out)),
        )

    def _kind(self, permit: Permit, call: Call) -> tuple[bool, ...]:
        """What a call's result can still mean; two of the same kind are interchangeable."""
        rules, breaker = self.rules, self.breaker
        return (
            call.era != rules.era,
            call is rules.probe,
            call.last_resort,
            call.era == rules.era and call.began > rules.streak_began,
            call.era == rules.hearsay,
            permit._generation == self._hearsay_of(breaker),
            permit._generation != breaker._generation,
            permit is breaker._probe,
            permit.last_resort,
            permit._generation == breaker._generation and permit._number > breaker._streak_began,
        )

    @staticmethod
    def _hearsay_of(breaker: CircuitBreaker) -> int:
        return breaker._hearsay if isinstance(breaker, FleetBreaker) else -1

    def _left(self, end: float, probe: object = True) -> float:
        return math.inf if probe is None else max(end - self.clock.now(), -JUST)

    def _row(self, openings: int) -> int:
        """Openings beyond the one that lasts longest are all alike."""
        row = 2
        while self.limits.open_seconds * 2.0 ** (row - 1) < self.limits.max_open:
            row += 1
        return min(openings, row)


OTHERS: dict[str, Callable[[World, int], None]] = {
    "warn": World._warn,
    "hold": World._hold,
    "hearsay": World._hearsay,
    "warning": World._warning,
    "put off": World._put_off,
    "answered": World._answered,
}


def settle(permit: Permit, name: str) -> None:
    how, cause = SETTLEMENTS[name]
    if cause is None:
        getattr(permit, how)()
    else:
        permit.failure(cause)


def at(path: Path, setup: Setup) -> World:
    world = World(setup)
    for event in path:
        world.happen(event)
    return world


def told(path: Path, difference: AssertionError) -> str:
    steps = [f"  {n}. {name}({number:g})" for n, (name, number) in enumerate(path, 1)]
    return "\n".join(["The breaker differs from its rules after:", *steps, str(difference)])


def explore(setup: Setup) -> str:
    """Visit every state, and say how many there are."""
    seen = {at((), setup).key()}
    frontier: list[Path] = [()]
    transitions = depth = 0
    while frontier:
        following: list[Path] = []
        for path in frontier:
            for event in tuple(at(path, setup).events()):
                transitions += 1
                longer = (*path, event)
                key = step(longer, setup, seen)
                if key not in seen:
                    seen.add(key)
                    following.append(longer)
        frontier = following
        depth += bool(following)
    return f"{len(seen)} states, {transitions} transitions, all within {depth} events"


def step(path: Path, setup: Setup, seen: set[Any]) -> Any:
    """Let the last event of a path happen, and compare; in a new state more closely."""
    world = at(path[:-1], setup)
    try:
        world.happen(path[-1])
        world.compare()
        key = world.key()
        if key not in seen:
            world.settle_again()
            if isinstance(world.breaker, FleetBreaker):
                world.recover()
    except AssertionError as difference:
        pytest.fail(told(path, difference), pytrace=False)
    return key


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(Setup(Limits(5, 60.0, 120.0, 60.0), 0.75), id="as shipped"),
        pytest.param(Setup(Limits(1, 64.0, 128.0, 16.0)), id="opens at the first failure"),
        pytest.param(Setup(Limits(2, 64.0, 256.0, 16.0), 1.0), id="most jitter"),
        pytest.param(Setup(Limits(3, 64.0, 64.0, 128.0), 0.5), id="a lease beyond the open time"),
    ],
)
def test_no_history_tells_the_breaker_from_its_rules(setup: Setup, most_calls: int) -> None:
    print(explore(replace(setup, calls=most_calls)))


def test_no_history_in_a_fleet_does(most_calls: int) -> None:
    limits = Limits(2, 64.0, 128.0, 16.0)
    print(explore(Setup(limits, calls=most_calls - 2, kind=FleetBreaker)))


class Amnesiac(CircuitBreaker):
    """Any success ends a streak."""

    __slots__ = ()

    def _succeeded(self, permit: Permit, generation: int, number: int) -> None:
        super()._succeeded(permit, generation, self._issued + 1)


class Miser(CircuitBreaker):
    """Keeps the place of a probe that was given back."""

    __slots__ = ()

    def _released(self, permit: Permit, generation: int) -> None:
        if permit is not self._probe:
            super()._released(permit, generation)


class Unforgiving(CircuitBreaker):
    """Remembers the causes of a streak that is over."""

    __slots__ = ()

    def _succeeded(self, permit: Permit, generation: int, number: int) -> None:
        causes = set(self._causes)
        super()._succeeded(permit, generation, number)
        self._causes |= causes


class Forgetful(CircuitBreaker):
    """Counts each failure, also those of one cause."""

    __slots__ = ()

    def _failed(self, permit: Permit, generation: int, cause: Hashable) -> None:
        super()._failed(permit, generation, None)


class Strict(CircuitBreaker):
    """Takes the failure of a last resort for that of a probe."""

    __slots__ = ()

    def _failed(self, permit: Permit, generation: int, cause: Hashable) -> None:
        if permit.last_resort and generation == self._generation:
            self._open()
        else:
            super()._failed(permit, generation, cause)


class Sceptical(CircuitBreaker):
    """Stays as it is when a last resort answers."""

    __slots__ = ()

    def _succeeded(self, permit: Permit, generation: int, number: int) -> None:
        if not permit.last_resort:
            super()._succeeded(permit, generation, number)


class Impatient(CircuitBreaker):
    """Never waits longer than the first time."""

    __slots__ = ()

    def _open_time(self, openings: int) -> float:
        return super()._open_time(1)


class Deaf(FleetBreaker):
    """Believes others more than an answer that was in flight."""

    __slots__ = ()

    def _succeeded(self, permit: Permit, generation: int, number: int) -> None:
        CircuitBreaker._succeeded(self, permit, generation, number)


class Held(FleetBreaker):
    """Refuses a last resort while another process has the right to probe."""

    __slots__ = ()

    def acquire_last_resort(self) -> Permit | Rejected:
        closed = self.state is CircuitState.CLOSED
        refusal = None if closed else self._probe_refusal()
        return super().acquire_last_resort() if refusal is None else refusal


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param(Deaf, 3, id="an answer in flight does not count more than others"),
        pytest.param(Held, 2, id="a last resort waits for the right to probe"),
        pytest.param(Amnesiac, 4, id="any success ends a streak"),
        pytest.param(Miser, 8, id="a released probe keeps its place"),
        pytest.param(Impatient, 7, id="the open time does not double"),
        pytest.param(Forgetful, 4, id="one cause counts twice"),
        pytest.param(Unforgiving, 6, id="a cause outlives its streak"),
        pytest.param(Strict, 7, id="a failure of the last resort counts"),
        pytest.param(Sceptical, 6, id="an answer of the last resort changes nothing"),
    ],
)
def test_a_broken_breaker_is_found_by_the_shortest_way(
    kind: type[CircuitBreaker], steps: int
) -> None:
    with pytest.raises(pytest.fail.Exception) as found:
        explore(Setup(Limits(2, 64.0, 256.0, 16.0), kind=kind))
    assert f"  {steps}. " in str(found.value)
    assert f"  {steps + 1}. " not in str(found.value)
