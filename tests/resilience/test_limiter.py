import asyncio
import contextlib
import random

import pytest

from aigateway.errors import OverloadedError
from aigateway.resilience.concurrency import Limiter, Slots
from aigateway.testing import FakeClock


async def use(
    limiter: Limiter, slots: Slots, log: list[str], name: str, gate=None, **whose
) -> None:
    ticket = limiter.ticket(**whose)
    while not limiter.has_slot(slots):
        await limiter.wait(ticket, slots, lambda: limiter.has_slot(slots))
    limiter.take(slots)
    try:
        log.append(name)
        await (gate.wait() if gate else asyncio.sleep(0))
    finally:
        limiter.release(slots)


async def test_first_come_first_served():
    limiter, slots = Limiter(1, 100), Slots()
    log: list[str] = []
    await asyncio.gather(*(use(limiter, slots, log, str(i)) for i in range(20)))
    assert log == [str(i) for i in range(20)]
    assert (limiter.in_flight, limiter.waiting, slots.in_flight) == (0, 0, 0)


async def test_a_newcomer_does_not_overtake_one_that_was_just_woken():
    limiter, slots = Limiter(1, 100), Slots()
    log: list[str] = []
    gate = asyncio.Event()
    first = asyncio.create_task(use(limiter, slots, log, "first", gate))
    await asyncio.sleep(0)
    second = asyncio.create_task(use(limiter, slots, log, "second"))
    await asyncio.sleep(0)
    gate.set()
    while not first.done():  # noqa: ASYNC110 - it is about single steps of the loop
        await asyncio.sleep(0)
    third = asyncio.create_task(use(limiter, slots, log, "third"))
    await asyncio.gather(first, second, third)
    assert log == ["first", "second", "third"]


async def test_one_that_can_go_is_not_held_up_by_one_that_cannot():
    limiter, full, free = Limiter(10, 100), Slots(1), Slots(1)
    log: list[str] = []
    gate = asyncio.Event()
    holder = asyncio.create_task(use(limiter, full, log, "holder", gate))
    await asyncio.sleep(0)
    stuck = asyncio.create_task(use(limiter, full, log, "stuck"))
    await asyncio.sleep(0)
    await use(limiter, free, log, "passes")
    assert log == ["holder", "passes"]
    gate.set()
    await asyncio.gather(holder, stuck)


async def test_a_full_queue_refuses_and_says_what_to_raise():
    limiter, slots = Limiter(1, 2), Slots()
    log: list[str] = []
    gate = asyncio.Event()
    tasks = [asyncio.create_task(use(limiter, slots, log, str(i), gate)) for i in range(3)]
    await asyncio.sleep(0)
    assert limiter.waiting == 2
    with pytest.raises(OverloadedError, match="max_queue = 2"):
        await use(limiter, slots, log, "too many")
    gate.set()
    await asyncio.gather(*tasks)


async def queued(
    limiter: Limiter, background: bool = False, tenant: str = ""
) -> asyncio.Task[None]:
    """One that waits, and would for ever."""
    ticket = limiter.ticket(background=background, tenant=tenant)
    task = asyncio.create_task(limiter.wait(ticket, background, lambda: False))
    await asyncio.sleep(0)
    return task


async def test_those_in_the_background_keep_nobody_else_out():
    limiter = Limiter(1, 2)
    background = [await queued(limiter, background=True) for _ in range(2)]
    with pytest.raises(OverloadedError, match=r"2 requests are waiting .*max_queue = 2"):
        await (await queued(limiter, background=True))
    others = [await queued(limiter, background=False) for _ in range(2)]
    assert limiter.waiting == 4
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        await (await queued(limiter, background=False))
    background[0].cancel()
    others[0].cancel()
    await asyncio.wait([background[0], others[0]])
    others[0] = await queued(limiter, background=False)
    with pytest.raises(OverloadedError, match="3 requests are waiting"):
        await (await queued(limiter, background=True))
    for task in background + others:
        task.cancel()
    await asyncio.wait(background + others)
    assert limiter.waiting == 0


async def test_whoever_was_woken_is_counted_no_more():
    limiter, slots = Limiter(1, 1), Slots()
    for background in (True, False, True):
        limiter.take(slots)
        ticket = limiter.ticket(background=background)
        waiter = asyncio.create_task(limiter.wait(ticket, slots, lambda: limiter.has_slot(slots)))
        await asyncio.sleep(0)
        assert limiter.waiting == 1
        limiter.release(slots)
        await waiter
        assert limiter.waiting == 0


async def test_a_woken_waiter_that_is_cancelled_passes_the_place_on():
    limiter, slots = Limiter(1, 100), Slots()
    log: list[str] = []
    gate = asyncio.Event()
    holder = asyncio.create_task(use(limiter, slots, log, "holder", gate))
    await asyncio.sleep(0)
    unlucky = asyncio.create_task(use(limiter, slots, log, "unlucky"))
    next_one = asyncio.create_task(use(limiter, slots, log, "next"))
    await asyncio.sleep(0)
    gate.set()
    while limiter.waiting == 2:  # noqa: ASYNC110 - it is about single steps of the loop
        await asyncio.sleep(0)
    unlucky.cancel()
    await asyncio.gather(holder, unlucky, next_one, return_exceptions=True)
    assert log == ["holder", "next"]


@pytest.mark.parametrize("seed", range(20))
async def test_random_schedules_lose_nobody_and_break_no_bound(seed):
    rng = random.Random(seed)
    limiter = Limiter(rng.randint(1, 5), 1000)
    providers = [Slots(rng.choice([None, 1, 2])) for _ in range(3)]
    worst: list[int] = [0]

    async def caller(slots: Slots) -> None:
        ticket = limiter.ticket(background=rng.random() < 0.3, tenant=rng.choice("abc"))
        while not limiter.has_slot(slots):
            await limiter.wait(ticket, slots, lambda: limiter.has_slot(slots))
        limiter.take(slots)
        try:
            worst[0] = max(worst[0], limiter.in_flight)
            assert slots.limit is None or slots.in_flight <= slots.limit
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)
        finally:
            limiter.release(slots)

    tasks = [asyncio.create_task(caller(rng.choice(providers))) for _ in range(60)]
    cancelled = set()
    for _ in range(40):
        await asyncio.sleep(0)
        if rng.random() < 0.3:
            victim = rng.choice(tasks)
            cancelled.add(victim)
            victim.cancel()
    async with asyncio.timeout(5):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for task, result in zip(tasks, results, strict=True):
        assert result is None or (isinstance(result, asyncio.CancelledError) and task in cancelled)
    assert (limiter.in_flight, limiter.waiting) == (0, 0)
    limiter.wake()
    assert not limiter._groups, "what has left is cleared when it comes up"
    assert worst[0] <= (limiter._slots.limit or 0)


# ── shares of tenants ────────────────────────────────────────────────────────────────────────────


class Crowd:
    """Requests of several tenants for one place, which is occupied until `go`."""

    def __init__(self, limiter: Limiter | None = None) -> None:
        self.limiter = limiter or Limiter(1, 10_000)
        self.slots = Slots()
        self.log: list[str] = []
        self.gate = asyncio.Event()
        self.tasks = [self._begin("holder", self.gate)]

    def _begin(self, name: str, gate=None, **whose) -> asyncio.Task[None]:
        return asyncio.create_task(use(self.limiter, self.slots, self.log, name, gate, **whose))

    async def add(self, tenant: str, count: int = 1, *, background: bool = False):
        tasks = [
            self._begin(f"{tenant}{number}", tenant=tenant, background=background)
            for number in range(count)
        ]
        self.tasks += tasks
        await asyncio.sleep(0)
        return tasks

    async def go(self) -> list[str]:
        """Let them all through; in this order they went."""
        self.gate.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert (self.limiter.in_flight, self.limiter.waiting) == (0, 0)
        return self.log[1:]


@pytest.fixture
async def crowd():
    crowd = Crowd()
    await asyncio.sleep(0)
    return crowd


async def test_tenants_get_places_in_turn_and_each_its_own_requests_in_order(crowd):
    await crowd.add("a", 4)
    await crowd.add("b", 2)
    await crowd.add("c", 3)
    assert await crowd.go() == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "c2", "a3"]


async def test_background_requests_are_shared_out_too_behind_all_others(crowd):
    await crowd.add("a", 3, background=True)
    await crowd.add("b", 2, background=True)
    await crowd.add("a", 2)
    await crowd.add("c", 1)
    assert await crowd.go() == ["a0", "c0", "a1", "a0", "b0", "a1", "b1", "a2"]


async def test_turns_hold_across_groups(crowd):
    """Two groups whose waiters could all go: the order is the same as if it were one."""

    async def one(tenant: str, number: int, group: str) -> None:
        ticket = crowd.limiter.ticket(tenant=tenant)
        while not crowd.limiter.has_slot(crowd.slots):
            ready = lambda: crowd.limiter.has_slot(crowd.slots)  # noqa: E731
            await crowd.limiter.wait(ticket, group, ready)
        crowd.limiter.take(crowd.slots)
        crowd.log.append(f"{tenant}{number}")
        await asyncio.sleep(0)
        crowd.limiter.release(crowd.slots)

    for tenant in "ab":
        for number in range(4):
            crowd.tasks.append(asyncio.create_task(one(tenant, number, "xy"[number % 2])))
            await asyncio.sleep(0)
    assert await crowd.go() == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


async def test_requests_that_left_do_not_count_against_their_tenant(crowd):
    gone = await crowd.add("a", 1500)
    for task in gone:
        task.cancel()
    await asyncio.sleep(0)
    assert crowd.limiter.waiting == 0
    await crowd.add("b", 10)
    await crowd.add("a", 2)
    assert (await crowd.go())[:4] == ["b0", "a0", "b1", "a1"]


async def test_tenants_that_come_anew_pass_no_waiter_for_ever():
    """Two new tenants for each place that becomes free; one that waits longer has its turn."""
    limiter = Limiter(1, 10_000)
    log: list[str] = []

    async def wait(tenant: str) -> None:
        await limiter.wait(limiter.ticket(tenant=tenant), "all", lambda: True)
        log.append(tenant)

    tasks = [asyncio.create_task(wait("old")) for _ in range(2)]
    for number in range(40):
        tasks += [asyncio.create_task(wait(f"{place}-{number}")) for place in range(2)]
        await asyncio.sleep(0)
        limiter.wake()  # and each that was woken wakes another
    await asyncio.gather(*tasks)
    first, second = (place for place, tenant in enumerate(log) if tenant == "old")
    assert first == 0
    assert second < 8


@pytest.mark.parametrize("places", [1, 2, 8])
async def test_a_flood_makes_another_tenant_wait_less_than_two_service_times(places):
    """1,500 requests of one tenant at once; the other asks one after another."""
    limiter, slots, clock = Limiter(places, 10_000), Slots(), FakeClock()
    waits: list[float] = []

    async def ask(tenant: str) -> None:
        began, ticket = clock.now(), limiter.ticket(tenant=tenant)
        while not limiter.has_slot(slots):
            await limiter.wait(ticket, slots, lambda: limiter.has_slot(slots))
        limiter.take(slots)
        if tenant == "other":
            waits.append(clock.now() - began)
        try:
            await clock.sleep(1.0)
        finally:
            limiter.release(slots)

    async def other() -> None:
        for _ in range(40):
            await clock.sleep(clock.random())
            await ask("other")

    flood = [asyncio.create_task(ask("flood")) for _ in range(1500)]
    await clock.settle()
    asking = asyncio.create_task(other())
    while not asking.done():
        await clock.advance(0.25)
    await asking
    assert len(waits) == 40
    assert max(waits) < 2.0
    assert sum(task.done() for task in flood) > 20 * places  # none of it stood still
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def test_a_full_queue_still_takes_a_tenant_that_has_less_than_its_share():
    limiter = Limiter(1, 6)
    flood = [await queued(limiter, tenant="a") for _ in range(6)]
    with pytest.raises(OverloadedError, match="max_queue = 6"):
        await (await queued(limiter, tenant="a"))
    others = [await queued(limiter, tenant="b") for _ in range(3)]
    await asyncio.sleep(0)
    assert [task.done() for task in flood] == [False] * 3 + [True] * 3  # the newest gave way
    with pytest.raises(OverloadedError, match="max_queue = 6"):
        await flood[-1]
    assert not any(task.done() for task in others)
    with pytest.raises(OverloadedError):
        await (await queued(limiter, tenant="b"))
    third = [await queued(limiter, tenant="c") for _ in range(2)]
    assert not any(task.done() for task in third)
    assert limiter.waiting == 6
    everybody = [*flood, *others, *third]
    for task in everybody:
        task.cancel()
    await asyncio.gather(*everybody, return_exceptions=True)
    assert limiter.waiting == 0
    limiter.wake()
    assert not limiter._groups, "what has left is cleared when it comes up"


async def test_background_requests_push_out_none_of_the_others():
    limiter = Limiter(1, 4)
    others = [await queued(limiter, tenant="a") for _ in range(4)]
    with pytest.raises(OverloadedError):
        await (await queued(limiter, background=True, tenant="b"))
    others[0].cancel()
    others[1].cancel()
    await asyncio.sleep(0)
    batch = [await queued(limiter, background=True, tenant="b") for _ in range(2)]
    another = await queued(limiter, background=True, tenant="c")
    with pytest.raises(OverloadedError):
        await batch.pop()
    assert not any(task.done() for task in (*batch, another, *others[2:]))
    for task in (*others, *batch, another):
        task.cancel()
    await asyncio.gather(*others, *batch, another, return_exceptions=True)


async def test_a_queue_of_nothing_takes_nobody():
    limiter = Limiter(1, 0)
    with pytest.raises(OverloadedError, match="0 requests are waiting"):
        await (await queued(limiter, tenant="b"))


async def test_one_that_waits_again_is_not_refused_by_a_queue_that_filled_meanwhile():
    limiter, slots = Limiter(1, 1), Slots()
    limiter.take(slots)
    ticket = limiter.ticket(tenant="a")

    async def wait_twice() -> None:
        await limiter.wait(ticket, slots, lambda: True)
        await limiter.wait(ticket, slots, lambda: limiter.has_slot(slots))

    task = asyncio.create_task(wait_twice())
    await asyncio.sleep(0)
    later = limiter.ticket(tenant="a")
    waiting = asyncio.create_task(limiter.wait(later, "another", lambda: False))
    limiter.wake()  # the other one runs first, and fills the place that this one has left
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert limiter.waiting == 2
    limiter.release(slots)
    await task
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
