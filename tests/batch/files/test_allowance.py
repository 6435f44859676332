"""Limits that workers share, on virtual time."""

import asyncio

import pytest

from aigateway.batch.files.allowance import (
    CostSoFar,
    JobAllowance,
    SharedLimits,
)
from aigateway.batch.files.totals import JobLimits
from aigateway.fleet.ledger import MemoryLedger
from tests.batch.files.workers import LedgerOfOne


class Asker:
    """A worker that begins requests as fast as it may."""

    def __init__(self, ledger, clock, name, limits, begun, pause=0.05, **more):
        self.clock = clock
        self.begun = begun
        self.pause = pause
        self.usd, self.in_flight = 0.0, 0
        self.ledger = LedgerOfOne(ledger)
        self.allowance = JobAllowance(
            limits,
            self.ledger,
            name,
            lambda: CostSoFar(self.usd, 0.01 if self.usd else None, self.in_flight),
            clock,
            **more,
        )
        self.exchange = asyncio.ensure_future(self.allowance.run())
        self.calls = set()
        self.work = asyncio.ensure_future(self._work())

    async def _work(self):
        while True:
            wait = self.allowance.wait(10)
            if wait:
                await self.clock.sleep(max(wait, 0.001))
                continue
            self.begun.append(self.clock.now())
            self.calls.add(asyncio.ensure_future(self._call(self.allowance.begin(10))))
            await self.clock.sleep(self.pause)

    async def _call(self, call):
        self.in_flight += 1
        await self.clock.sleep(0.05)
        self.in_flight -= 1
        self.usd += 0.01
        call.settle(8)

    async def die(self):
        """As by SIGKILL: it says no more. Return what the ledger goes on setting aside for it."""
        self.ledger.dead = True
        tasks = (self.exchange, self.work, *self.calls)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return self.ledger.held


def most_in_any_minute(moments):
    moments = sorted(moments)
    first = most = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 60:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("limits", [JobLimits(rpm=160), JobLimits(tpm=1600)], ids=["rpm", "tpm"])
async def test_together_they_never_exceed_a_rate_though_some_die(clock, limits):
    ledger = MemoryLedger(clock)
    begun: list[float] = []
    shared = SharedLimits("job", "run", limits, None)
    askers = [Asker(ledger, clock, f"worker {n}", shared, begun) for n in range(3)]
    left_held = []
    for step in range(140):
        await clock.advance(0.5)
        if step in {3, 40, 111}:
            left_held.append(await askers.pop(0).die())
            askers.append(Asker(ledger, clock, f"worker {step}", shared, begun))
    for asker in askers:
        await asker.die()
    assert any(left_held)
    most = most_in_any_minute(begun)
    assert most <= (160 if limits.rpm else 200)
    assert len(begun) >= 1.1 * 0.75 * 160  # and little is left unused


async def test_requests_of_nearly_the_whole_limit_take_turns(clock):
    ledger = MemoryLedger(clock)
    begun: list[float] = []
    shared = SharedLimits("job", "run", JobLimits(tpm=11), None)
    askers = [Asker(ledger, clock, f"worker {n}", shared, begun) for n in range(3)]
    await clock.advance(130)
    for asker in askers:
        await asker.die()
    assert 2 <= len(begun) <= 3
    assert most_in_any_minute(begun) == 1


async def test_a_cost_is_shared_and_that_of_earlier_runs_counts(clock):
    ledger = MemoryLedger(clock)
    begun: list[float] = []
    shared = SharedLimits("job", "run", JobLimits(max_cost=1.0), 0.5)
    askers = [Asker(ledger, clock, f"worker {n}", shared, begun) for n in range(3)]
    await clock.advance(20)
    assert 49 <= len(begun) <= 53  # one in flight at each is not known to the others
    assert all(asker.allowance.cost_is_reached for asker in askers)
    for asker in askers:
        await asker.die()


async def test_while_the_ledger_is_silent_nothing_begins_until_patience_ends(clock):
    begun: list[float] = []
    shared = SharedLimits("job", "run", JobLimits(max_cost=1.0), 0.5)
    silent = LedgerOfOne(MemoryLedger(clock))
    silent.dead = True
    asker = Asker(silent, clock, "worker", shared, begun, patience=10.0)
    await clock.advance(9.5)
    assert not begun
    await clock.advance(1.0)
    assert begun
    await asker.die()
