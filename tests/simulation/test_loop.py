"""The simulated loop shuffles what asyncio leaves open, and nothing else."""

import asyncio

import pytest

from tests.simulation.loop import START, SimulatedLoop, StuckError


@pytest.fixture
def make():
    made = []

    def make_loop(seed="0", **options):
        made.append(SimulatedLoop(seed, **options))
        return made[-1]

    yield make_loop
    for loop in made:
        loop.close()


def order_of(loop, plan):
    """What `plan(loop, note)` sets up to be noted within a minute, in the order it came."""
    noted: list[object] = []
    plan(loop, noted.append)
    loop.run_until_complete(asyncio.sleep(60))
    return noted


def test_time_jumps(make):
    loop = make()
    loop.run_until_complete(asyncio.sleep(3600))
    assert loop.time() == START + 3600
    assert loop.turns < 10


def test_what_one_timer_sets_off_keeps_its_order(make):
    def plan(loop, note):
        def first():
            for number in range(5):
                loop.call_soon(note, number)

        loop.call_later(1, first)

    for seed in range(20):
        assert order_of(make(str(seed)), plan) == [0, 1, 2, 3, 4]


def test_what_different_timers_set_off_is_shuffled(make):
    def plan(loop, note):
        for number in range(3):
            loop.call_later(1, note, number)

    orders = {tuple(order_of(make(str(seed)), plan)) for seed in range(50)}
    assert len(orders) == 6


def test_a_turn_is_not_overtaken_by_the_next(make):
    def plan(loop, note):
        def twice(number):
            note(("first", number))
            loop.call_soon(note, ("second", number))

        for number in range(3):
            loop.call_later(1, twice, number)

    for seed in range(20):
        noted = order_of(make(str(seed)), plan)
        assert [turn for turn, _ in noted] == ["first"] * 3 + ["second"] * 3


def test_timers_of_different_moments_are_in_order(make):
    def plan(loop, note):
        for number in (3, 1, 2):
            loop.call_later(number, note, number)

    assert order_of(make(), plan) == [1, 2, 3]


def test_a_cancelled_timer_does_not_ring(make):
    def plan(loop, note):
        loop.call_later(1, note, "no").cancel()
        loop.call_later(2, note, "yes")

    assert order_of(make(), plan) == ["yes"]


def test_turns_may_take_time(make):
    async def turns():
        for _ in range(100):
            await asyncio.sleep(0)

    steady, leaking = make(), make(leaks=0.5)
    steady.run_until_complete(turns())
    leaking.run_until_complete(turns())
    assert steady.time() == START
    assert START < leaking.time() < START + 1e-3


def test_waiting_for_nothing_is_an_error(make):
    loop = make()
    with pytest.raises(StuckError, match="Everybody waits"):
        loop.run_until_complete(loop.create_future())


def test_running_for_ever_is_an_error(make, monkeypatch):
    monkeypatch.setattr("tests.simulation.loop.MOST_TURNS", 100)

    async def spin():
        while True:  # noqa: ASYNC110 - this is what it is about
            await asyncio.sleep(0)

    with pytest.raises(StuckError, match="nothing comes to an end"):
        make().run_until_complete(spin())


def test_asyncio_itself_works_on_it(make):
    async def work(seconds):
        await asyncio.sleep(seconds)
        return seconds

    async def all_of_it():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work(2))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        done, waiting = await asyncio.wait(
            [asyncio.create_task(work(1)), asyncio.create_task(work(5))], timeout=2
        )
        for left in waiting:
            left.cancel()
        return task.result(), await asyncio.gather(work(3), work(1)), len(done)

    loop = make()
    assert loop.run_until_complete(all_of_it()) == (2, [3, 1], 1)
    assert loop.time() == START + 2 + 1 + 2 + 3


def test_timers_due_in_a_stall_run_late_and_together(make):
    def plan(loop, note):
        for number in range(3):
            loop.call_later(1 + number, lambda number=number: note((number, loop.time() - START)))
        loop.call_later(10, lambda: note(("later", loop.time() - START)))
        loop.call_later(0.5, loop.stall, 5.0)

    orders = {tuple(order_of(make(str(seed)), plan)) for seed in range(50)}
    assert len(orders) == 6
    for order in orders:
        assert sorted(order[:3]) == [(0, 5.5), (1, 5.5), (2, 5.5)]
        assert order[3] == ("later", 10)


def test_a_timeout_that_is_due_after_a_stall_beats_an_answer_that_came_meanwhile(make):
    async def asks(loop):
        loop.call_later(0.1, loop.stall, 3.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.sleep(1.0)
        assert loop.time() == START + 3.1

    for seed in range(20):
        loop = make(str(seed))
        loop.run_until_complete(asks(loop))
