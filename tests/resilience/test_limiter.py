import asyncio
import random

import pytest

from aigateway.errors import OverloadedError
from aigateway.resilience.limiter import Limiter, Slots


async def use(limiter: Limiter, slots: Slots, log: list[str], name: str, gate=None) -> None:
    ticket = limiter.ticket()
    while not limiter.has_place(slots):
        await limiter.wait(ticket, slots, lambda: limiter.has_place(slots))
    limiter.take(slots)
    try:
        log.append(name)
        await (gate.wait() if gate else asyncio.sleep(0))
    finally:
        limiter.give_back(slots)


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


async def queued(limiter: Limiter, background: bool) -> asyncio.Task[None]:
    """One that waits, and would for ever."""
    ticket = limiter.ticket(background=background)
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
        waiter = asyncio.create_task(limiter.wait(ticket, slots, lambda: limiter.has_place(slots)))
        await asyncio.sleep(0)
        assert limiter.waiting == 1
        limiter.give_back(slots)
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
        ticket = limiter.ticket()
        while not limiter.has_place(slots):
            await limiter.wait(ticket, slots, lambda: limiter.has_place(slots))
        limiter.take(slots)
        try:
            worst[0] = max(worst[0], limiter.in_flight)
            assert slots.limit is None or slots.in_flight <= slots.limit
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)
        finally:
            limiter.give_back(slots)

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
    assert worst[0] <= (limiter._slots.limit or 0)
