import asyncio
import io
import math
from itertools import pairwise

import pytest
from rich.console import Console

from aigateway.batch.files.totals import JobTotals
from aigateway.cli.batch.screen import LiveJobScreen, Pace, PlainJobScreen, Rates
from aigateway.errors import FailureKind
from aigateway.resilience.breaker import CircuitState
from aigateway.testing import FakeClock
from tests.cli.batch.jobs import (
    LONG,
    Gateway,
    Job,
    add,
    answer,
    mixed_totals,
    status,
    widest,
    without_codes,
)

SHOW_CURSOR = "\x1b[?25h"


@pytest.fixture
def job(clock):
    return Job(clock)


def terminal(width=80):
    """A console on a terminal of that width."""
    return {"width": width, "height": 30, "force_terminal": True, "color_system": "256"}


PIPE = {"width": 80}


class Showing:
    """A screen that shows a job while a test moves it."""

    def __init__(self, kind, job, console=PIPE):
        self._out = io.StringIO()
        screen = kind(Console(file=self._out, **console), job.clock)
        self._job, self._over = job, asyncio.Event()
        self._task = asyncio.create_task(screen.show(job, self._over))

    @property
    def text(self):
        return self._out.getvalue()

    @property
    def lines(self):
        return self.text.splitlines()

    async def second(self, lines=0, seconds=1):
        await self._job.clock.settle()
        for _ in range(seconds):
            add(self._job.totals, answer(), lines)
            await self._job.clock.advance(1)

    async def end(self):
        await self._job.clock.settle()
        self._over.set()
        await self._task

    async def cancel(self):
        await self._job.clock.settle()
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


def last_frame(showing):
    """What is left on the terminal: the frames before it are wiped line by line."""
    return without_codes(showing.text.rsplit("\x1b[2K", 1)[-1])


class TestPlain:
    async def test_a_line_has_every_figure(self, job):
        job.totals, job.total = mixed_totals(), 1100
        showing = Showing(PlainJobScreen, job)
        await showing.second(lines=10, seconds=5)
        await showing.end()
        assert showing.lines[-1] == (
            "153/1100 (13.9 %), 3 failed, 4 cached, 300 tokens/s, 10.0 lines/s,"
            " $0.1400 (6 unpriced), ETA 1:35, circuits: openai/gpt-4o-mini closed"
        )

    async def test_a_line_every_five_seconds_and_at_each_tenth(self, job):
        job.total = 1000
        showing = Showing(PlainJobScreen, job)
        await showing.second(lines=1, seconds=17)
        done = [int(line.split("/")[0]) for line in showing.lines]
        assert len(done) == 3
        assert all(5 <= later - former <= 6 for former, later in pairwise([0, *done]))
        await showing.second(lines=100)
        await showing.second(lines=1)
        assert [line.split()[0] for line in showing.lines[3:]] == ["117/1000"]
        await showing.end()

    async def test_less_often_when_it_takes_long(self, job):
        showing = Showing(PlainJobScreen, job)
        job.began -= 3600
        await showing.second()
        assert len(showing.lines) == 1
        await showing.second(seconds=185)
        assert len(showing.lines) == 4
        await showing.end()

    async def test_events_are_printed_once(self, job):
        showing = Showing(PlainJobScreen, job)
        job.gateway = Gateway((status(state=CircuitState.OPEN, wait=11.2),))
        job.waiting = True
        await showing.second()
        job.gateway = Gateway((status(state=CircuitState.HALF_OPEN),))
        job.waiting = False
        await showing.second()
        job.gateway = Gateway()
        job.stopping = "interrupted"
        await showing.second(seconds=2)
        assert showing.lines == [
            "openai/gpt-4o-mini: now open (12 s)",
            "waiting: no provider is available now",
            "openai/gpt-4o-mini: now half-open",
            "a provider is available again",
            "openai/gpt-4o-mini: now closed",
            "stopping (interrupted): finishing 7 in flight; Ctrl-C stops at once",
        ]
        await showing.end()

    async def test_a_stop_names_the_way_to_stop_at_once(self, job):
        showing = Showing(PlainJobScreen, job)
        job.stopping = "--max-cost reached"
        await showing.second()
        assert showing.lines == [
            "stopping (--max-cost reached): finishing 7 in flight; Ctrl-C stops at once"
        ]
        await showing.end()

    @pytest.mark.parametrize("leave", [Showing.end, Showing.cancel])
    async def test_the_last_line_is_true(self, job, leave):
        showing = Showing(PlainJobScreen, job)
        await showing.second(lines=10)
        add(job.totals, answer(), 5)
        job.stopping = "interrupted"
        await leave(showing)
        assert showing.lines[-2].startswith("stopping (interrupted)")
        assert showing.lines[-1].startswith("15/200 (7.5 %), ")
        assert "ETA" not in showing.lines[-1]

    async def test_no_control_characters_even_on_a_terminal(self, job):
        job.gateway = Gateway((status(name="a\x1b[2J\rb"),))
        job.totals.earlier = 3
        showing = Showing(PlainJobScreen, job, terminal())
        await showing.end()
        assert showing.text.count("\n") == 1
        assert showing.text.rstrip("\n").isprintable()
        assert "3 from earlier runs" in showing.text


class TestLive:
    @pytest.mark.parametrize("width", [40, 80, 200])
    async def test_shows_everything_at_any_width(self, job, width):
        job.totals, job.total = mixed_totals(), 1103
        job.totals.earlier = 50
        job.gateway = Gateway(
            (
                status(),
                status("azure/a", CircuitState.OPEN, 11.2),
                status("azure/b", CircuitState.HALF_OPEN),
                status("azure/c", wait=2.5),
                status("azure/e", CircuitState.OPEN),
                status("azure/d", disabled=FailureKind.NO_CREDIT),
                status(LONG, CircuitState.OPEN, math.inf),
            )
        )
        showing = Showing(LiveJobScreen, job, terminal(width))
        await showing.second(lines=10, seconds=5)
        await showing.end()
        shown = " ".join(last_frame(showing).split())
        for words in (
            "153 of 1,103 lines (13.8 %)",
            "ETA 1:35",
            "0:05 so far",
            "3 failed",
            "4 cached",
            "50 from earlier runs",
            "7 in flight",
            "10.0 lines/s",
            "300 tokens/s",
            "$0.1400 (6 unpriced)",
            "openai/gpt-4o-mini closed",
            "azure/a open (12 s)",
            "azure/b half-open",
            "azure/c cooling (3 s)",
            "azure/d disabled (no_credit)",
            "azure/e probe is due",
        ):
            assert words in shown
        assert LONG in shown.replace(" ", "")
        assert widest(showing.text) <= width

    async def test_the_bar_grows(self, job):
        job.total = 10
        # Without colours Rich leaves out what is not done yet; the code of its colour would depend
        # on the terminal that this process wrote to first.
        showing = Showing(LiveJobScreen, job, {**terminal(), "no_color": True})
        filled = []
        for lines in (0, 5, 5):
            await showing.second(lines)
            bar = showing.text.rsplit("\x1b[2K", 1)[-1].split("\n")[0]
            filled.append(bar.count("━"))
        await showing.end()
        assert filled == [0, 30, 60]
        assert "10 of 10 lines (100.0 %)" in last_frame(showing)
        assert "ETA" not in last_frame(showing)

    async def test_a_stop_and_a_wait_are_shown(self, job):
        showing = Showing(LiveJobScreen, job, terminal())
        job.waiting = True
        await showing.second()
        assert "waiting: no provider is available" in last_frame(showing)
        job.waiting, job.stopping = False, "interrupted"
        await showing.second()
        assert "waiting" not in last_frame(showing)
        await showing.end()
        assert "finishing 7 in flight; Ctrl-C stops at once" in last_frame(showing)

    async def test_of_many_providers_names_those_that_are_not_well(self, job):
        well = [status(f"p{number}") for number in range(20)]
        job.gateway = Gateway((*well, status("ill", CircuitState.OPEN, 3.0)))
        showing = Showing(LiveJobScreen, job, terminal())
        await showing.end()
        assert "ill open (3 s)   20 closed" in last_frame(showing)
        assert "p1" not in last_frame(showing)

    @pytest.mark.parametrize("leave", [Showing.end, Showing.cancel])
    async def test_leaves_the_terminal_in_order(self, job, leave):
        showing = Showing(LiveJobScreen, job, terminal())
        await showing.second()
        add(job.totals, answer(), 9)
        await leave(showing)
        assert "9 of 200 lines" in last_frame(showing)
        assert showing.text.endswith(SHOW_CURSOR)

    async def test_leaves_it_in_order_when_it_fails_itself(self, job):
        showing = Showing(LiveJobScreen, job, terminal())
        await showing.second()
        job.gateway = None
        await job.clock.advance(1)
        with pytest.raises(AttributeError):
            await showing.end()
        assert showing.text.endswith(SHOW_CURSOR)

    async def test_stdout_is_not_redirected(self, job, capsys):
        showing = Showing(LiveJobScreen, job, terminal())
        await showing.second()
        print("an answer")
        await showing.end()
        assert capsys.readouterr().out == "an answer\n"
        assert "an answer" not in showing.text

    async def test_an_empty_job_is_a_whole_one(self, job):
        job.total, job.gateway = 0, Gateway(())
        showing = Showing(LiveJobScreen, job, terminal())
        await showing.end()
        assert "0 of 0 lines (100.0 %)" in last_frame(showing)


class Gone(io.StringIO):
    """A terminal that has been closed."""

    def write(self, _text):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("kind", [LiveJobScreen, PlainJobScreen])
async def test_a_lost_terminal_does_not_end_the_job(kind):
    clock = FakeClock()
    console = Console(file=Gone(), width=80, force_terminal=True)
    showing = asyncio.create_task(kind(console, clock).show(Job(clock), asyncio.Event()))
    await clock.advance(10)
    assert showing.done()
    assert showing.exception() is None


class QuietlyLeaving(Console):
    """What rich does at a broken pipe, without what it does to this process's stdout."""

    def on_broken_pipe(self):
        self.quiet = True
        raise SystemExit(1)


class Broken(io.StringIO):
    def write(self, _text):
        raise BrokenPipeError


@pytest.mark.parametrize("kind", [LiveJobScreen, PlainJobScreen])
async def test_a_broken_pipe_does_not_end_the_job(kind):
    clock = FakeClock()
    console = QuietlyLeaving(file=Broken(), width=80, force_terminal=True)
    showing = asyncio.create_task(kind(console, clock).show(Job(clock), asyncio.Event()))
    await clock.advance(10)
    assert showing.done()
    assert showing.exception() is None


def test_one_look_gives_no_rate():
    assert Pace().look(0.0, JobTotals()) == Rates(None, None)
    assert Pace().look(3.0, JobTotals()) == Rates(None, None)


def test_a_rate_is_that_of_the_last_ten_seconds():
    pace, totals = Pace(), JobTotals()
    for second in range(31):
        rates = pace.look(float(second), totals)
        add(totals, answer(), 10 if second < 20 else 4)
    assert rates.lines == pytest.approx(4)
    assert rates.tokens == pytest.approx(4 * 30)


def test_the_window_of_a_slow_job_is_longer():
    pace, totals = Pace(), JobTotals()
    for second in range(51):
        if second % 10 == 5:
            add(totals, answer())
        rates = pace.look(float(second), totals)
    assert rates.lines == pytest.approx(0.1)


def test_the_window_is_bounded():
    pace, totals = Pace(), JobTotals()
    pace.look(0.0, totals)
    add(totals, answer(), 1000)
    for second in range(1, 70):
        rates = pace.look(float(second), totals)
    assert rates.lines == 0


def test_earlier_runs_do_not_count_as_speed():
    pace, totals = Pace(), JobTotals()
    pace.look(0.0, totals)
    add(totals, answer(), 500)
    totals.earlier = 500
    assert pace.look(1.0, totals) == Rates(None, None)
    add(totals, answer(), 3)
    assert pace.look(2.0, totals) == Rates(3.0, 90.0)
