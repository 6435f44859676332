"""`PacedSemaphore`: its bound, its order, and its pace."""

import asyncio
import random

import pytest

from aigateway.batch.pacing import PacedSemaphore
from tests.processes import PATIENCE


async def all_at_once(semaphore, places):
    """Go in with as many as there are places, and out when all of them are in."""
    together = asyncio.Barrier(places)

    async def one():
        async with semaphore:
            await together.wait()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(one() for _ in range(places)))


async def test_ten_thousand_do_not_begin_at_once():
    semaphore = PacedSemaphore(5000)
    begun = 0
    together = asyncio.Event()

    async def one():
        nonlocal begun
        async with semaphore:
            begun += 1
            await together.wait()

    tasks = [asyncio.create_task(one()) for _ in range(10_000)]
    before = most = 0
    while begun < 5000:
        await asyncio.sleep(0)
        most = max(most, begun - before)
        before = begun
    assert most <= 8
    together.set()
    await asyncio.gather(*tasks)
    assert begun == 10_000


@pytest.mark.parametrize("seed", range(20))
async def test_random_schedules_lose_no_waiter_and_break_no_bound(seed):
    rng = random.Random(seed)
    places = rng.randint(1, 20)
    semaphore = PacedSemaphore(places)
    inside, order = 0, []

    async def one(number):
        nonlocal inside
        async with semaphore:
            inside += 1
            order.append(number)
            assert inside <= places
            try:
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(0)
            finally:
                inside -= 1

    tasks = [asyncio.create_task(one(n)) for n in range(200)]
    cancelled = set()
    for _ in range(30):
        await asyncio.sleep(0)
        if rng.random() < 0.5:
            victim = rng.choice(tasks)
            cancelled.add(victim)
            victim.cancel()
    async with asyncio.timeout(PATIENCE):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for task, result in zip(tasks, results, strict=True):
        assert result is None or task in cancelled
    assert order == sorted(order)
    assert inside == 0
    await all_at_once(semaphore, places)


async def test_one_that_is_let_in_and_cancelled_at_once_passes_the_place_on():
    semaphore = PacedSemaphore(1)
    async with semaphore:
        unlucky = asyncio.create_task(all_at_once(semaphore, 1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    unlucky.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    await all_at_once(semaphore, 1)
