"""An event loop without a world outside: its time jumps, and a seed rules what asyncio leaves open.

Nothing sleeps. When no callback is ready, time jumps to the next timer; when there is no timer
either, nobody can ever wake anybody again, and that is an error (`StuckError`).

What the seed decides:

- The order of callbacks that do not depend on each other. asyncio runs ready callbacks in the order
  in which they were registered. What one timer set off (the callback, what it registered, what that
  registered, ...) therefore keeps its order here too, turn by turn: `Task` wake-ups, `gather`,
  `wait` and all code above them may count on it. Only what was set off by different timers is
  shuffled, within one turn of the loop: there the order depends on which answer came a microsecond
  earlier, and no program may count on that. So every run is one that asyncio could have made.
- How long a turn takes: now and then a microsecond, so that a timer can go off between any two.
- The order of sets of tasks and futures. In CPython it depends on addresses; here on drawn hashes.

Not `looptime` (PyPI): it runs 42 empty turns of the loop and asks the selector before each jump,
which thousands of runs with thousands of jumps each would wait for; it rounds time, so that timers
a microsecond apart coincide; and it leaves the order alone, which is what this is about.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any

from aigateway.clock import SystemClock

__all__ = ["SimulatedClock", "SimulatedLoop", "StuckError"]

LEAK = 1e-6
"""Seconds that a turn takes, where the seed says that it takes any."""

START = 1000.0

MOST_TURNS = 200_000
"""A run that has not ended by then spins; an ordinary one takes some hundreds."""


class StuckError(AssertionError):
    """Everybody waits, and nobody is left to wake them."""


class _Handle(asyncio.Handle):
    """A callback that knows which timer it comes from."""

    __slots__ = ("source",)

    source: int

    def _run(self) -> None:
        self._loop.source = self.source  # type: ignore[attr-defined]  # the base's attribute
        super()._run()


class _Timer(asyncio.TimerHandle):
    """A timer begins a line of callbacks of its own."""

    __slots__ = ("serial", "source")

    serial: int
    source: int

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Timer)
        return (self._when, self.serial) < (other._when, other.serial)  # type: ignore[attr-defined]

    def _run(self) -> None:
        self._loop.source = self.source  # type: ignore[attr-defined]
        super()._run()


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is drawn."""

    __slots__ = ("_drawn",)

    def __init__(self, coro: Coroutine[Any, Any, Any], *, drawn: int, **options: Any) -> None:
        self._drawn = drawn
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._drawn


class _Future(asyncio.Future[Any]):
    """A future whose place in a set is drawn."""

    __slots__ = ("_drawn",)

    def __init__(self, *, drawn: int, loop: asyncio.AbstractEventLoop) -> None:
        self._drawn = drawn
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._drawn


class _NoOutside:
    """Stands where a real loop has its selector; nothing asks it."""

    def close(self) -> None:
        pass


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop on virtual time.

    Args:
        seed: For everything that is left open.
        leaks: How likely a turn takes `LEAK` seconds; from 0 to 1.
        most_turns: A run that has more of them spins.

    Attributes:
        source: The line of callbacks that is running.
        turns: How many turns were run.
        most_turns: As given.
        on_idle: Told of the moment to which time is about to jump.
    """

    def __init__(self, seed: str, *, leaks: float = 0.0, most_turns: int = MOST_TURNS) -> None:
        super().__init__()
        self.most_turns = most_turns
        self._random = random.Random(f"loop/{seed}")
        self._leaks = leaks
        self._now = START
        self._serial = 0
        self._selector = _NoOutside()
        self.source = 0
        self.turns = 0
        self.on_idle: Callable[[float], object] | None = None
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[_Timer]
        self._stopping: bool
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        return self._now

    def draw(self) -> int:
        """A hash for something whose place in a set is to be drawn."""
        return self._random.getrandbits(32)

    def timers(self) -> list[asyncio.TimerHandle]:
        """Those that are set and not cancelled."""
        return [timer for timer in self._scheduled if not timer.cancelled()]

    def stall(self, seconds: float) -> None:
        """Stand still, as a real loop does while a callback sleeps.

        The callback that calls this is the one that sleeps. What else was ready runs after it in
        the same turn, with a later clock. In the next turn all timers that became due meanwhile
        run together, in any order: deadlines of ours, and answers that vendors gave in that time.
        """
        self._now += seconds

    # ── what asyncio calls ───────────────────────────────────────────────────────────────────

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(drawn=self.draw(), loop=self)

    def call_soon(  # type: ignore[override]  # typeshed's is generic in the arguments
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        handle.source = self.source
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there is one thread

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self._serial += 1
        timer = _Timer(when, callback, args, self, context)
        timer.serial = timer.source = self._serial
        heapq.heappush(self._scheduled, timer)
        return timer

    def _new_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Task[Any]:
        assert asyncio.iscoroutine(coro)
        return _Task(coro, drawn=self.draw(), loop=loop, **options)

    def _process_events(self, event_list: Iterable[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody is asleep."""

    # ── one turn ─────────────────────────────────────────────────────────────────────────────

    def _run_once(self) -> None:
        self.turns += 1
        if self.turns > self.most_turns:
            raise StuckError("Everybody runs, and nothing comes to an end.")
        self._let_time_pass()
        scheduled = self._scheduled
        while scheduled and (scheduled[0].cancelled() or scheduled[0].when() <= self._now):
            timer = heapq.heappop(scheduled)
            if not timer.cancelled():
                self._ready.append(timer)
        turn = self._in_some_order(list(self._ready))
        self._ready.clear()
        for handle in turn:
            if not handle.cancelled():
                handle._run()

    def _let_time_pass(self) -> None:
        if self._ready or self._stopping:
            if self._leaks and self._random.random() < self._leaks:
                self._now += LEAK
            return
        scheduled = self._scheduled
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)
        if not scheduled:
            raise StuckError("Everybody waits, and no timer is set.")
        if self.on_idle is not None:
            self.on_idle(scheduled[0].when())
            if self._ready:
                return
        self._now = max(self._now, scheduled[0].when())

    def _in_some_order(self, ready: list[asyncio.Handle]) -> list[asyncio.Handle]:
        """Shuffle, but leave what comes from one timer in its order."""
        sources = [handle.source for handle in ready]  # type: ignore[attr-defined]
        if len(set(sources)) < 2:
            return ready
        lines: dict[int, deque[asyncio.Handle]] = {}
        for source, handle in zip(sources, ready, strict=True):
            lines.setdefault(source, deque()).append(handle)
        self._random.shuffle(sources)
        return [lines[source].popleft() for source in sources]


class SimulatedClock(SystemClock):
    """The real clock's ways of sleeping and timing out, on a simulated loop's time."""

    __slots__ = ("_loop", "_random")

    def __init__(self, loop: SimulatedLoop, seed: str) -> None:
        self._loop = loop
        self._random = random.Random(f"clock/{seed}")

    def now(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return 1_700_000_000.0 + self._loop.time()

    def random(self) -> float:
        return self._random.random()
