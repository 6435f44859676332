"""Circuits and doses of last resort together, against vendors that break: brownouts and outages.

The requests are as plain as can be: the first provider that lets one through, best first, each
once; where none does, the fullest balance; where that is used up, wait. What the gateway does on
top of that is tested in its own rooms.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable

import pytest

from aigateway.resilience.breaker import CircuitBreaker, CircuitState, Permit
from aigateway.resilience.last_resort import MOST, LastResort
from aigateway.testing import FakeClock
from tests.resilience.guarding import answered, failed

FAST = 4
"""Attempts a second on an empty balance, and `SLOW` once twenty of them have failed in a row."""

SLOW = 2

PATIENCE = 30.0
"""Seconds for which a request waits."""


class Provider:
    def __init__(self, clock, fails):
        self.fails = fails
        self.breaker = CircuitBreaker(clock=clock)
        self.last_resort = LastResort(clock)

    def fill_purse(self):
        while self.last_resort.balance < MOST:
            self.last_resort.end(self.last_resort.begin(closed=True), answered())

    def ramp_wait(self):
        ramping = self.breaker.state is CircuitState.CLOSED and self.last_resort.ramping
        return self.last_resort.ramp_wait() if ramping else 0.0


class Request:
    def __init__(self, number, came):
        self.number = number
        self.came = came
        self.tried = set()
        self.seen = set()


class World:
    """Requests at an even rate, providers with answers after 50 to 150 ms, and one queue."""

    def __init__(self, fails, rate, seconds, *, seed=1, last_resort=True, full=False):
        self.clock = FakeClock(0.0, seed=seed)
        self.luck = random.Random(seed)
        self.providers = [Provider(self.clock, f) for f in fails]
        self.last_resort = last_resort
        self.events: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self.order = itertools.count()
        self.waiting = {}  # by what they have tried, first come first served
        self.looks_at = math.inf
        self.ends = []  # (when, whether answered)
        self.began = []  # when each call did
        if full:
            for provider in self.providers:
                provider.fill_purse()
        for number in range(int(rate * seconds)):
            self.at(number / rate, self.arrive, number)
        while self.events:
            when, _, happen, args = heapq.heappop(self.events)
            self.clock.tick(max(0.0, when - self.clock.now()))
            happen(*args)

    def at(self, when, happen, *args):
        heapq.heappush(self.events, (when, next(self.order), happen, args))

    def arrive(self, number):
        self.go_on(Request(number, self.clock.now()))

    def go_on(self, request):
        waits = self.step(request)
        if waits is None:
            return
        if not waits:
            self.ends.append((self.clock.now(), False))
            return
        self.waiting.setdefault(frozenset(request.tried), deque()).append(request)
        self.look_at(self.clock.now() + min(waits))

    def step(self, request):
        """Ask one provider and return None, or return after how long it may be worth a look."""
        waits = []
        for provider in self.providers:
            if provider in request.tried:
                continue
            wait = provider.ramp_wait()
            if wait:
                waits.append(wait)
                continue
            permit = provider.breaker.acquire()
            if isinstance(permit, Permit):
                return self.ask(provider, permit, request)
        if waits or not self.last_resort:
            return waits
        rest = [p for p in self.providers if p not in request.tried]
        for provider in sorted(rest, key=lambda p: -p.last_resort.balance):
            if provider not in request.seen:
                request.seen.add(provider)
                provider.last_resort.seen()
            wait = provider.last_resort.wait()
            if not wait:
                permit = provider.breaker.acquire_last_resort()
                assert isinstance(permit, Permit)
                return self.ask(provider, permit, request)
            waits.append(wait)
        return waits

    def ask(self, provider, permit, request):
        self.began.append(self.clock.now())
        request.tried.add(provider)
        trickled = provider.last_resort.begin(closed=not (permit.probe or permit.last_resort))
        fails = self.luck.random() < provider.fails(self.clock.now())
        back = self.clock.now() + self.luck.uniform(0.05, 0.15)
        self.at(back, self.back, provider, permit, request, trickled, fails)

    def back(self, provider, permit, request, trickled, fails):
        provider.last_resort.end(trickled, failed() if fails else answered())
        if fails:
            permit.failure(request.number)
            self.go_on(request)
        else:
            permit.success()
            self.ends.append((self.clock.now(), True))
        self.look()

    def look_at(self, when):
        if when < self.looks_at:
            self.looks_at = when
            self.at(when, self.look, when)

    def look(self, when=math.inf):
        if when not in {math.inf, self.looks_at}:
            return  # an earlier look has been asked for since
        self.looks_at = math.inf
        now = self.clock.now()
        for queue in list(self.waiting.values()):
            while queue:
                if now - queue[0].came > PATIENCE:
                    queue.popleft()
                    self.ends.append((now, False))
                    continue
                waits = self.step(queue[0])
                if waits is not None:
                    self.look_at(now + min(waits))
                    break
                queue.popleft()

    @property
    def answered(self):
        return sum(good for _, good in self.ends) / len(self.ends)


def always(share):
    return lambda now: share


def dead_until(end):
    return lambda now: 1.0 if now < end else 0.0


@pytest.mark.parametrize(
    ("providers", "share", "rate", "seconds"),
    [
        (3, 0.5, 2, 300),
        (3, 0.5, 20, 60),
        (3, 0.5, 200, 15),
        (2, 0.5, 20, 60),
        (4, 0.5, 20, 60),
        (1, 0.5, 20, 60),
        (2, 0.3, 20, 60),
        (3, 0.8, 20, 60),
        (3, 0.9, 20, 120),
    ],
)
def test_a_brownout_of_all_is_as_good_as_trying_each_once(providers, share, rate, seconds):
    worlds = [World([always(share)] * providers, rate, seconds, seed=seed) for seed in (1, 2)]
    each_once = 1 - share**providers
    for world in worlds:
        assert len(world.ends) == rate * seconds
    assert sum(w.answered for w in worlds) / 2 >= each_once - 0.02


def test_circuits_alone_would_be_the_outage():
    """The same world shows what it is all for; else the tests above would prove little."""
    world = World([always(0.5)] * 3, 20, 60, last_resort=False)
    assert world.answered < 0.3


@pytest.mark.parametrize("full", [False, True])
def test_dead_providers_get_a_trickle(full):
    providers, rate = 3, 100
    world = World([always(1.0)] * providers, rate, 30, full=full)
    assert world.answered == 0
    begun = [sum(second <= at < second + 1 for at in world.began) for second in range(30)]
    # Each circuit opens on five failures, while others are out for 0.15 s at most.
    at_first = providers * (5 + 0.15 * rate + 1 + 2 * FAST) + full * providers * MOST
    assert sum(begun[:2]) <= at_first
    assert begun[2:5] == [providers * FAST] * 3, "few, but the end has to be noticed"
    assert begun[8:] == [providers * SLOW] * 22, "after twenty that failed in a row, fewer"


@pytest.mark.parametrize("providers", [1, 3])
@pytest.mark.parametrize(("outage", "rate"), [(10, 100), (600, 10), (3600, 1)])
def test_the_end_of_an_outage_is_noticed_at_once(providers, outage, rate):
    world = World([dead_until(outage)] * providers, rate, outage + 20)
    first = min(when for when, good in world.ends if good)
    assert first - outage <= (1.2 if rate == 1 else 0.5)


def test_one_that_is_well_in_turns_is_found_each_time():
    """Two that flap in antiphase: one of them is always up."""
    flapping = [lambda now: float(now % 20 < 10), lambda now: float(now % 20 >= 10)]
    world = World(flapping, 20, 120)
    assert world.answered >= 0.98


def test_the_return_is_no_herd():
    rate = 20
    world = World([dead_until(60)], rate, 90)
    back = min(when for when, good in world.ends if good)
    first, second = (sum(back + i <= at < back + i + 1 for at in world.began) for i in range(2))
    assert first <= 2 * rate
    assert second > rate, "and it does not stay slow"
