"""The local side of shared limits: on virtual time over a ledger in memory, and really."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigateway.clock import SYSTEM_CLOCK
from aigateway.fleet.fleet import Fleet
from aigateway.fleet.leases import MOST_CLAIMS, PATIENCE_SECONDS, SOON, Leases
from aigateway.fleet.ledger import Claim, FleetUnavailableError, Ledger, LedgerAnswer, MemoryLedger
from aigateway.resilience.rates import WINDOW
from aigateway.settings import GatewaySettings
from aigateway.testing import FakeClock
from tests.fleet.servers import Server
from tests.processes import PATIENCE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class QuickClock(FakeClock):
    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)


def most_in_a_window(moments: Sequence[float]) -> int:
    moments, most, first = sorted(moments), 0, 0
    for number, moment in enumerate(moments):
        while moments[first] <= moment - WINDOW + 1e-3:
            first += 1
        most = max(most, number - first + 1)
    return most


def leases_of(ledger: Ledger, clock: FakeClock, name: str) -> Leases:
    return Leases(ledger, clock, lambda: name)


class Member:
    """One process of the world: its leases, its way to the ledger, and what it has begun."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.cut = False
        self.exchanges = 0
        self.begun: list[float] = []
        self.longest = 0.0
        self.leases = Leases(self, world.clock, lambda: name)
        self.rates = self.leases.rates("a", world.rpm, None, kept=True)
        self.task = asyncio.create_task(self.leases.run())

    async def exchange(self, member: str, claims: Sequence[Claim], serial: int) -> LedgerAnswer:
        world = self.world
        self.exchanges += 1
        await world.clock.sleep(0.004 * world.clock.random())
        if self.cut:
            await world.clock.sleep(1e6)  # killed
        if world.down and world.clock.random() < 0.5:
            raise FleetUnavailableError
        answer = await world.ledger.exchange(member, claims, serial)
        if world.down:
            raise FleetUnavailableError  # booked, and not known
        return answer

    async def ask(self, patience: float) -> None:
        clock = self.world.clock
        began = clock.now()
        while (wait := self.rates.wait(0)) > 0:
            if clock.now() - began > patience or self.cut:
                return
            await clock.sleep(min(wait, 1.0))
        if not self.cut:
            self.rates.begin(0).settle(None)
            self.begun.append(clock.now())
            self.longest = max(self.longest, clock.now() - began)

    async def demand(self, per_second: float, patience: float = 5.0) -> None:
        clock, tasks = self.world.clock, set()
        try:
            while True:
                await clock.sleep((0.5 + clock.random()) / per_second)
                task = asyncio.create_task(self.ask(patience))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            for task in tasks:
                task.cancel()


class World:
    def __init__(self, rpm: int, demands: Sequence[float], seed: int = 0) -> None:
        self.clock = QuickClock(seed=seed)
        self.ledger = MemoryLedger(self.clock)
        self.down = False
        self.rpm = rpm
        self.members = [Member(self, f"m{number}") for number in range(len(demands))]
        pairs = zip(self.members, demands, strict=True)
        self.tasks = [asyncio.create_task(m.demand(rate)) for m, rate in pairs if rate]

    @property
    def begun(self) -> list[float]:
        return [moment for member in self.members for moment in member.begun]

    def kill(self) -> None:
        self.members[0].cut = True

    def flush(self) -> None:
        self.ledger = MemoryLedger(self.clock)

    def lose(self) -> None:
        self.down = True

    def find(self) -> None:
        self.down = False

    async def live(self, *events: tuple[float, Callable[[World], None]], until: float) -> None:
        now = 0.0
        for moment, event in events:
            await self.clock.advance(moment - now)
            event(self)
            now = moment
        await self.clock.advance(until - now)
        for task in (*self.tasks, *(member.task for member in self.members)):
            task.cancel()
        await self.clock.advance(2.0)


@settings(max_examples=5, deadline=None)
@given(
    st.sampled_from([2, 5, 30, 100]),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 2.0]), min_size=2, max_size=4),
    st.sampled_from([None, World.kill, World.flush]),
    st.floats(0.0, 90.0),
    st.integers(0, 1000),
)
def test_a_limit_is_one_limit(
    rpm: int,
    demands: list[float],
    event: Callable[[World], None] | None,
    moment: float,
    seed: int,
) -> None:
    async def check() -> None:
        world = World(rpm, demands, seed)
        await world.live(*([] if event is None else [(moment, event)]), until=130.0)
        assert most_in_a_window(world.begun) <= rpm
        wanted = sum(demands) * 60
        if event is not World.kill:  # what the dead held counts for a minute
            assert len(world.begun) >= 0.9 * min(2 * rpm, 1.8 * wanted) - len(demands)

    asyncio.run(check())


@pytest.mark.parametrize(("rpm", "rate", "lost", "found"), [(2, 0.1, 40, 360), (40, 1, 40, 180)])
async def test_without_the_ledger_each_takes_its_share(
    rpm: int, rate: float, lost: float, found: float
) -> None:
    world = World(rpm, [rate] * 4)
    await world.live((lost, World.lose), (found, World.find), until=found + 60)
    assert most_in_a_window(world.begun) <= rpm
    assert len(world.begun) > 0.4 * rpm * (found + 60) / 60
    if rpm >= 4:  # all get something
        assert all(any(lost + 62 < t - 1000 < found for t in m.begun) for m in world.members)


@pytest.mark.slow
async def test_with_a_limit_below_the_processes_all_get_calls() -> None:
    world = World(2, [0.1] * 4)
    await world.live(until=600.0)
    assert most_in_a_window(world.begun) <= 2
    assert len(world.begun) >= 18
    assert all(member.begun for member in world.members)


async def test_first_requests_of_a_quiet_process_do_not_wait() -> None:
    world = World(600, [0.0, 5.0])
    await world.clock.advance(5.0)
    quiet = world.members[0]
    for _ in range(8):
        assert quiet.rates.wait(0) == 0
        quiet.rates.begin(0)
    await world.live(until=1.0)


async def test_a_stopped_process_does_not_spend_its_old_hold() -> None:
    world = World(60, [0.0, 0.0])
    await world.clock.advance(3.0)
    stopped = world.members[0]
    assert stopped.rates.wait(0) == 0
    world.clock.tick(2.5)  # no task runs, as while it is stopped
    assert stopped.rates.wait(0) == SOON
    await world.clock.advance(0.1)
    assert stopped.rates.wait(0) == 0
    await world.live(until=1.0)


async def test_leaving_settles_and_gives_back() -> None:
    world = World(60, [0.0, 0.0])
    await world.clock.advance(2.0)
    first = world.members[0]
    first.rates.begin(0)
    first.task.cancel()
    await world.clock.advance(0.1)
    answer = await world.ledger.exchange("other", [Claim(first.rates._calls.limit)], 1)  # type: ignore[union-attr]
    assert answer.grants[0].used == 1
    held_by_the_other = 60 - 1 - answer.grants[0].free
    assert held_by_the_other <= 60 // 16
    await world.live(until=1.0)


async def test_a_correction_of_tokens_is_shared() -> None:
    clock = QuickClock()
    ledger = MemoryLedger(clock)
    one, other = (leases_of(ledger, clock, name) for name in "ab")
    tasks = [asyncio.create_task(leases.run()) for leases in (one, other)]
    mine, its = (leases.rates("a", None, 1000, kept=True) for leases in (one, other))
    await clock.advance(1.5)
    assert 0 < mine.wait(900) <= 1.0
    await clock.advance(0.9)
    assert mine.wait(900) == 0
    entry = mine.begin(900)
    await clock.advance(1.0)
    assert its.wait(500) > SOON
    entry.settle(100)
    await clock.advance(1.5)
    assert its.wait(500) <= 1.0
    await clock.advance(0.9)
    assert its.wait(500) == 0
    for task in tasks:
        task.cancel()
    await clock.settle()


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_budget_is_one_budget_to_what_is_in_flight() -> None:
    clock = QuickClock(wall=86_400.0 * 20_000 + 3600)
    ledger = MemoryLedger(clock)
    processes = [leases_of(ledger, clock, name) for name in "abcd"]
    tasks = [asyncio.create_task(leases.run()) for leases in processes]
    budgets = [leases.budget("key", 1.0) for leases in processes]
    paid = []

    async def use(budget: Any) -> None:
        in_flight = 0

        async def call() -> None:
            nonlocal in_flight
            await clock.sleep(0.05 + 0.1 * clock.random())
            in_flight -= 1
            budget.reserve(0.01 * in_flight)
            budget.spend(0.01)
            paid.append(0.01)

        calls = set()
        for _ in range(200):
            if in_flight < 4 and budget.spent_usd < 1.0 and budget.covers(0.01):
                in_flight += 1
                budget.reserve(0.01 * in_flight)
                calls.add(asyncio.create_task(call()))
            await clock.sleep(0.02)

    users = [asyncio.create_task(use(budget)) for budget in budgets]
    await clock.advance(8.0)
    assert 0.99 <= sum(paid) <= 1.0 + 4 * 4 * 0.01
    assert all(budget.spent_usd == pytest.approx(sum(paid)) for budget in budgets)
    for task in (*users, *tasks):
        task.cancel()
    await clock.settle()


async def test_what_is_spent_never_seems_less_while_an_exchange_is_under_way() -> None:
    clock = QuickClock(wall=86_400.0 * 20_000 + 3600)
    ledger = MemoryLedger(clock)

    class Slow:
        async def exchange(self, *said: Any) -> LedgerAnswer:
            answer = await ledger.exchange(*said)
            await clock.sleep(0.2)
            return answer

    processes = [leases_of(Slow(), clock, name) for name in "ab"]
    tasks = [asyncio.create_task(leases.run()) for leases in processes]
    budgets = [leases.budget("key", 10.0) for leases in processes]
    await clock.advance(1.0)
    shown = [0.0, 0.0]
    for _ in range(30):
        for place, budget in enumerate(budgets):
            budget.spend(0.01)
            assert budget.spent_usd >= shown[place]
            shown[place] = budget.spent_usd
        await clock.advance(0.07)
    await clock.advance(2.0)
    assert [budget.spent_usd for budget in budgets] == pytest.approx([0.6, 0.6])
    for task in tasks:
        task.cancel()
    await clock.settle()


async def test_a_small_budget_is_not_blocked_by_what_a_request_might_cost() -> None:
    clock = QuickClock(wall=86_400.0 * 20_000 + 3600)
    ledger = MemoryLedger(clock)
    processes = [leases_of(ledger, clock, name) for name in "ab"]
    tasks = [asyncio.create_task(leases.run()) for leases in processes]
    budgets = [leases.budget("key", 0.002) for leases in processes]
    await clock.advance(1.0)
    for budget in budgets:
        assert not budget.covers(0.10)  # before it holds most of what is left
        assert budget.may_cover(0.10)
        await clock.advance(0.05)
        assert budget.covers(0.10)
        budget.reserve(0.10)
        await clock.advance(0.5)
        assert not any(each.covers(0.10) for each in budgets)  # one at once, at one of both
        budget.spend(0.0005)
        budget.reserve(0.0)
        await clock.advance(2.0)
    assert all(budget.spent_usd == pytest.approx(0.001) for budget in budgets)
    ledger._epoch = "lost"
    ledger._accounts.clear()
    await clock.advance(3.0)
    assert all(budget.spent_usd == pytest.approx(0.001) for budget in budgets)
    for task in tasks:
        task.cancel()
    await clock.settle()


# ── a ledger that is late, and the start ─────────────────────────────────────────────────────────


class Late:
    """A ledger that answers only while it is let."""

    def __init__(self, clock: FakeClock) -> None:
        self.ledger = MemoryLedger(clock)
        self.answers = True
        self.most = self.exchanges = 0
        self._clock = clock

    async def exchange(self, member: str, claims: Sequence[Claim], serial: int) -> LedgerAnswer:
        self.exchanges += 1
        self.most = max(self.most, len(claims))
        if not self.answers:
            await self._clock.sleep(1e6)
        return await self.ledger.exchange(member, claims, serial)


async def _end(clock: FakeClock, *tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await clock.advance(2.0)


async def test_a_late_answer_holds_no_call_up_for_long() -> None:
    clock = QuickClock()
    ledger = Late(clock)
    leases = leases_of(ledger, clock, "a")
    task = asyncio.create_task(leases.run())
    rates = leases.rates("a", 60, None)
    await clock.advance(1.0)
    ledger.answers = False
    assert rates.wait(0) == SOON  # nothing is held, so it asks
    await clock.advance(PATIENCE_SECONDS + 0.001)
    assert not leases.is_alone
    assert rates.wait(0) == 0
    await _end(clock, task)


async def test_workers_that_start_without_the_ledger_share_a_limit() -> None:
    clock = QuickClock()
    ledger = Late(clock)
    ledger.answers = False
    workers = [Leases(ledger, clock, lambda: "a", 4) for _ in range(4)]
    tasks = [asyncio.create_task(leases.run()) for leases in workers]
    rates = [leases.rates("a", 61, None) for leases in workers]
    budgets = [leases.budget("a", 1.0) for leases in workers]
    await clock.settle()
    assert [each.wait(0) for each in rates] == [SOON] * 4  # the first answer may come
    await clock.advance(PATIENCE_SECONDS + 0.001)
    begun = spent = 0
    for each, budget in zip(rates, budgets, strict=True):
        while each.wait(0) == 0:
            each.begin(0)
            begun += 1
        while budget.spent_usd < 1.0 and budget.covers(0.01):
            budget.spend(0.01)
            spent += 1
    assert (begun, spent) == (60, 100)
    await _end(clock, *tasks)


async def test_many_limits_are_exchanged_in_turns() -> None:
    clock = QuickClock()
    ledger = Late(clock)
    leases = leases_of(ledger, clock, "a")
    task = asyncio.create_task(leases.run())
    many = [leases.rates(f"{number}", 600, None) for number in range(150)]
    for _ in range(12):
        for rates in many:
            if rates.wait(0) == 0:
                rates.begin(0)
        await clock.advance(0.25)
    assert ledger.most == MOST_CLAIMS
    assert [rates.wait(0) for rates in many] == [0.0] * 150
    await _end(clock, task)
    checks = [Claim(rates._calls.limit) for rates in many]  # type: ignore[union-attr]
    answer = await ledger.ledger.exchange("b", checks, 1)
    assert all(grant.used >= 9 and grant.used + grant.free == 600 for grant in answer.grants)


async def test_what_is_not_used_any_more_is_given_back_and_dropped() -> None:
    clock = QuickClock()
    ledger = Late(clock)
    leases = leases_of(ledger, clock, "a")
    task = asyncio.create_task(leases.run())
    rates = leases.rates("a", 600, None, kept=True)
    limit = rates._calls.limit  # type: ignore[union-attr]
    rates.begin(0)
    await clock.advance(120.0)
    assert (await ledger.ledger.exchange("b", [Claim(limit)], 1)).grants[0].free < 600
    del rates
    await clock.advance(70.0)
    assert (await ledger.ledger.exchange("b", [Claim(limit)], 2)).grants[0].free == 600
    gc.collect()
    assert not list(leases._leases)
    await _end(clock, task)


async def test_two_users_of_a_budget_reserve_together() -> None:
    clock = QuickClock()
    leases = leases_of(MemoryLedger(clock), clock, "a")
    old, new = (leases.budget("key", 1.0) for _ in range(2))
    old.reserve(0.5)
    new.reserve(0.4)
    assert not new.covers(0.2)
    old.reserve(0.0)
    assert new.covers(0.2)


def test_a_loop_that_is_closed_by_hand_leaves_nothing_that_waits() -> None:
    loop = asyncio.new_event_loop()
    fleet = Fleet(GatewaySettings(), SYSTEM_CLOCK, ledger=MemoryLedger(SYSTEM_CLOCK))
    assert fleet.leases is not None
    fleet.leases.rates("a", 60, None, kept=True)

    async def join() -> None:
        fleet.join(lambda _: None)
        await asyncio.sleep(0.05)

    loop.run_until_complete(join())
    loop.close()
    unraisable: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        fleet.abandon()
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert not unraisable


# ── really: processes over Valkey ────────────────────────────────────────────────────────────────


async def _call(url: str, rpm: int, seconds: float, ready: Any) -> tuple[list[float], int]:
    fleet = Fleet(GatewaySettings(redis_url=url), SYSTEM_CLOCK)
    fleet.join(lambda _: None)
    assert fleet.leases is not None
    rates = fleet.leases.rates("provider:a", rpm, None, kept=True)
    begun: list[float] = []
    await asyncio.to_thread(ready.wait)
    end = SYSTEM_CLOCK.now() + seconds
    while SYSTEM_CLOCK.now() < end:
        if (wait := rates.wait(0)) == 0:
            rates.begin(0)
            begun.append(SYSTEM_CLOCK.wall())
            wait = 0.002
        await asyncio.sleep(min(wait, 0.05))
    members = fleet.leases.members
    await fleet.leave()
    return begun, members


def _run(results: Any, *args: Any) -> None:
    results.put(asyncio.run(_call(*args)))


@pytest.mark.proof
@pytest.mark.slow
def test_four_processes_have_one_limit_and_use_it(valkey: Server) -> None:
    """litellm #40291, #27736: a limit times the number of processes."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    args = (results, valkey.url, 400, 4.0, context.Barrier(4))
    processes = [context.Process(target=_run, args=args) for _ in range(4)]
    for process in processes:
        process.start()
    try:
        ends = [results.get(timeout=PATIENCE) for _ in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    begun = [moment for moments, _ in ends for moment in moments]
    assert 0.9 * 400 <= len(begun) <= 400
    assert all(moments for moments, _ in ends)
    stats = valkey("INFO", "commandstats")
    scripts = sum(s["calls"] for name, s in stats.items() if name.startswith("cmdstat_eval"))
    assert scripts < len(begun)
