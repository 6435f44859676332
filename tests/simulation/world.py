"""One run: a gateway as users get it, between simulated vendors and simulated callers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

from aigateway import AsyncGateway, GatewayError, GatewaySettings, LLMConfig, ProviderType
from aigateway.events import Event, RequestEnded
from aigateway.messages import BatchItem, ChatResponse
from aigateway.request.stream import ChatStream
from tests.simulation import laws
from tests.simulation.inside import Inside
from tests.simulation.interrupting import Interrupt, interrupted
from tests.simulation.invariants import CHECKS, SLACK, Asked, Broken, Watch
from tests.simulation.loop import (
    MOST_TURNS,
    START,
    SimulatedClock,
    SimulatedLoop,
    StuckError,
)
from tests.simulation.scenario import Ask, BatchPlan, Chore, Kind, ProviderPlan, Scenario, Stall
from tests.simulation.vendors import SimulatedVendors, VendorCall, answer_to, vector_of
from tests.telemetry.books import Books

__all__ = ["Played", "World", "play"]

DEFAULTS: dict[str, Any] = {
    name: field.get_default(call_default_factory=True)
    for name, field in GatewaySettings.model_fields.items()
}
"""Given outright, so that nothing is read from the environment."""

BACK = 2.0
"""Seconds in which a provider that is well answers again, where there is nobody else to ask."""

MOST_QUIET = 2000
"""Jumps of time in which nothing happens but ticks of the gateway's own, and that is the end."""

BATCHED = "batch"
"""The agent of what batches ask."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of one run."""

    trace: tuple[str, ...]
    broken: tuple[Broken, ...]
    requests: int
    calls: int
    turns: int
    seconds: float
    """On the virtual clock."""
    faults: Mapping[str, int]
    """Calls that met each kind of trouble."""
    ends: Mapping[str, int]
    """How the requests ended."""
    asked: tuple[Asked, ...]
    """Every request of a caller, but for those of batches, in the order in which they came."""
    items: Mapping[int, tuple[BatchItem, ...]]
    """What came of batches, by their numbers."""
    log: tuple[VendorCall, ...]
    """Every call that reached a vendor, in the order in which they began."""
    happened: tuple[tuple[float, Event], ...]
    """Every event, and when it came."""


def play(scenario: Scenario, interrupt: Interrupt | None = None) -> Played:
    """Play a scenario through. The same one comes to the same, line by line.

    Args:
        scenario: What happens.
        interrupt: Who is cancelled at which await.
    """
    most_turns = MOST_TURNS + 200 * len(scenario.asks)
    loop = SimulatedLoop(scenario.seed, leaks=scenario.leaks, most_turns=most_turns)
    world = World(scenario, loop, interrupt)
    with world.observed():
        try:
            loop.run_until_complete(world.run())
        except StuckError as stuck:
            world.watch.broken("stuck", str(stuck))
        finally:
            world.end()
    watch = world.watch
    laws.check(watch, scenario, world.vendors.log)
    return Played(
        trace=tuple(watch.trace),
        broken=tuple(watch.violations),
        requests=len(watch.asked),
        calls=watch.calls,
        turns=loop.turns,
        seconds=loop.time() - START,
        faults=world.vendors.met,
        ends=Counter(asked.end for asked in watch.asked) + Counter(watch.batch_ends),
        asked=tuple(watch.asked),
        items={number: tuple(items) for number, items in world.items.items()},
        log=tuple(world.vendors.log),
        happened=tuple(watch.happened),
    )


class World:
    """One gateway and all around it.

    Args:
        scenario: What happens.
        loop: Where.
        interrupt: Who is cancelled at which await.
    """

    def __init__(
        self, scenario: Scenario, loop: SimulatedLoop, interrupt: Interrupt | None = None
    ) -> None:
        self.scenario = scenario
        self.loop = loop
        self._interrupt = interrupt
        self.settings: dict[str, Any] = {**DEFAULTS, **scenario.settings}
        self.books = Books()
        self.watch = Watch(
            self.time,
            self.settings,
            {plan.name: plan.max_concurrency for plan in scenario.providers},
            lambda: self.books.begun,
            self._places,
        )
        self.inside = Inside(self.watch)
        self.items: dict[int, list[BatchItem]] = {}
        self.vendors = SimulatedVendors(scenario.seed, scenario.troubles, self.watch, self.time)
        self.gateway: AsyncGateway
        self._callers: set[asyncio.Task[None]] = set()
        self._planned: list[asyncio.TimerHandle] = []
        self._removed: set[str] = set()
        self._gone: set[int] = set()
        self._forced: set[str] = set()
        self._quiet = (0, 0)  # lines of the trace, and jumps of time since the last
        loop.set_exception_handler(self._unheard)

    def time(self) -> float:
        """Seconds since the run began."""
        return self.loop.time() - START

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Look inside, and draw the order of streams in a set."""
        loop = self.loop

        class Stream(ChatStream):
            __slots__ = ("_drawn",)

            def __init__(self, *given: Any) -> None:
                self._drawn = loop.draw()
                super().__init__(*given)

            def __hash__(self) -> int:
                return self._drawn

        with self.inside.observed(), mock.patch("aigateway.gateway.ChatStream", Stream):
            yield

    # ── the run ──────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Everything from the first request to the last thing closed."""
        self.open()
        scenario = self.scenario
        for ask in scenario.asks:
            self._plan(ask.at, self.ask, ask)
        for batch in scenario.batches:
            self._plan(batch.at, self.ask_many, batch)
        for chore in scenario.chores:
            self._plan(chore.at, self._do, chore)
        for stall in scenario.stalls:
            self._plan(stall.at, self._stand_still, stall)
        if scenario.closes_at is not None:
            await asyncio.sleep(scenario.closes_at)
        else:
            await self._until_quiet()
            if self._interrupt is None:
                await self.recover()
        await self.close()

    def _plan(self, at: float, do: Callable[..., object], *given: object) -> None:
        self._planned.append(self.loop.call_at(START + at, do, *given))

    def open(self) -> None:
        """Make the gateway."""
        for plan in self.scenario.providers:
            self.vendors.plans[plan.name] = plan
        self.gateway = AsyncGateway(
            [_config(plan) for plan in self.scenario.providers],
            settings=GatewaySettings(**self.settings),
            hooks=[self.watch, self.books],
            clock=SimulatedClock(self.loop, self.scenario.seed),
            vendor=self.vendors,
        )

        self.loop.on_idle = self._idle

    def _places(self, name: str) -> int:
        status = next((s for s in self.gateway.providers if s.name == name), None)
        return int(self.settings["max_concurrency"]) if status is None else status.max_in_flight

    def _idle(self, until: float) -> None:
        self.inside.idle(self.gateway, until - START)
        lines, jumps = self._quiet
        jumps = jumps + 1 if lines == len(self.watch.trace) else 0
        if jumps > MOST_QUIET:
            raise StuckError("Everybody waits, and nothing happens.")
        self._quiet = len(self.watch.trace), jumps

    def _stand_still(self, stall: Stall) -> None:
        self.vendors.met["stall"] += 1
        self.watch.stalls(stall.seconds)
        self.loop.stall(stall.seconds)

    async def _until_quiet(self) -> None:
        """Wait until nothing is wrong any more, and what was asked has ended."""
        scenario = self.scenario
        ends = [trouble.ends for trouble in scenario.troubles]
        ends += [ask.at for ask in scenario.asks] + [batch.at for batch in scenario.batches]
        ends += [chore.at for chore in scenario.chores]
        ends += [stall.at + stall.seconds for stall in scenario.stalls]
        await asyncio.sleep(max(ends, default=0.0))
        await asyncio.sleep(self.settings["attempt_timeout"] + self.settings["idle_timeout"])
        while self._callers:
            await asyncio.wait(self._callers)

    async def recover(self) -> None:
        """Traffic goes on in a healthy world: every provider must come back within its time."""
        for name in sorted(self._forced):
            self._force(name, "auto")
        for plan in self.scenario.providers:
            if any(status.name == plan.name for status in self.gateway.providers):
                await self._recovers(plan)
                # By law one operation says nothing of the other, so each comes back by itself.
                if plan.refuses is None:
                    await self._recovers(plan, "embed")
                self._check_status(plan)

    async def _recovers(self, plan: ProviderPlan, kind: Kind = "chat") -> None:
        now = self.time()
        most = self._longest_pause(plan)
        latest = now + most + max(BACK, most / 250)
        self.watch.note(f"world   waits for {plan.name} to come back, {most:.3f} s at most")
        number = 1_000_000  # no other has it
        while True:
            number += 1
            ask = Ask(number, 0.0, kind, number, cache=False, model=plan.name, hedge=False)
            task = self.ask(ask)
            await asyncio.wait([task])
            if self.watch.asked[-1].end == "served":
                break
            if self.time() > latest:
                self.watch.broken("recovery", f"{plan.name} has not come back")
                return
            await asyncio.sleep(max(0.5 + 0.1 * (number % 7), most / 500))

    def _check_status(self, plan: ProviderPlan) -> None:
        """A provider that has answered says of itself that it is well."""
        if plan.refuses is not None:
            return  # for good: what it says of itself then is a matter of taste
        status = next(s for s in self.gateway.providers if s.name == plan.name)
        if not status.active or status.circuit_state != "closed":
            self.watch.broken("recovery", f"{plan.name} has answered and is {status}")

    def _longest_pause(self, plan: ProviderPlan) -> float:
        """Seconds until a provider that is well has to be back, as far as the events have said."""
        seen = self.watch.health[plan.name].operations.values()
        pauses = [operation.cooling_until - self.time() for operation in seen]
        if any(operation.disabled_from is not None for operation in seen):
            pauses.append(2 * CHECKS)  # a check may fall to a request that has hardly any time
        if plan.rpm is not None:
            pauses.append(61.0)
        return max([0.0, *pauses])

    async def close(self) -> None:
        """Close the gateway; nothing of it may be left."""
        self.watch.note("world   closes the gateway")
        self.loop.on_idle = None
        self.loop.call_later(SLACK / 2, self._call_off)
        await self.gateway.aclose()
        self.watch.note("world   has closed the gateway")
        await asyncio.sleep(SLACK)
        if self._callers:
            # Whoever dawdles over a chunk hears of it at the next one, or has all of them already.
            await asyncio.wait(self._callers, timeout=60.0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            self.watch.broken("tasks", f"{task.get_name()} is left")
            task.cancel()
        if left:
            await asyncio.wait(left)
        if self.vendors.open_streams:
            self.watch.broken("streams", f"{self.vendors.open_streams} streams are open")
        for health in (*self.watch.health.values(), *self.watch.retired.values()):
            for call in health.out:
                self.watch.broken("calls", f"a call to {call.provider} is out since {call.began}")
        clients = sum(not client.closed for client in self.vendors.clients)
        if clients:
            self.watch.broken("clients", f"{clients} clients are open")
        metrics = self.gateway.get_metrics()
        batched = Counter(
            event.outcome for event in self.books.of(RequestEnded) if event.agent == BATCHED
        )
        self.watch.check_books(metrics, self._removed, batched)
        self.inside.check_permits()
        for problem in self.books.problems(metrics, self._removed):
            self.watch.broken("told", problem)

    def _call_off(self) -> None:
        """What was planned for later than the end."""
        for timer in self._planned:
            timer.cancel()

    def end(self) -> None:
        """Close the loop. What is only reported when it is collected is collected now."""
        if not self.loop.is_closed():
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            self.loop.on_idle = None
            self.loop.most_turns += MOST_TURNS // 10
            ending = self.loop.shutdown_asyncgens()
            with contextlib.suppress(StuckError, RuntimeError), contextlib.closing(ending):
                self.loop.run_until_complete(ending)
        # One timer is shared by all timeouts, and stays until it is due.
        timers = [t for t in self.loop.timers() if "_SharedTimer" not in repr(t)]
        if timers and not self.watch.violations:
            self.watch.broken("timers", f"{len(timers)} timers are set: {timers[0]!r}")
        gc.collect(0)
        self.loop.close()

    def _unheard(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.watch.broken("unheard", f"{context.get('message')} {error!r}")

    # ── chores ───────────────────────────────────────────────────────────────────────────────

    def _do(self, chore: Chore) -> None:
        there = {status.name for status in self.gateway.providers}
        name = chore.provider
        if chore.what == "remove" and name in there and len(there) > 1:
            self.watch.note(f"world   removes {name}")
            self.gateway.remove_provider(name)
            self._removed.add(name)
            self._forced.discard(name)
            self.watch.health[name].removed_at = self.time()
        elif chore.what == "add" and name not in there and not self.watch.health[name].out:
            # While calls to the one before are out, events could not be told apart.
            self.watch.note(f"world   adds {name}")
            plan = self.vendors.plans[name]
            self.watch.replaced(name, self.vendors.lives[name])
            self.vendors.lives[name] += 1
            self.gateway.add_provider(_config(plan))
        elif chore.what in {"auto", "closed", "open"} and name in there:
            self._force(name, chore.what)

    def _force(self, name: str, order: str) -> None:
        self.watch.note(f"world   forces {name}: {order}")
        (self._forced.discard if order == "auto" else self._forced.add)(name)
        with self.watch.by_order():
            self.gateway.force_circuit(name, order)  # type: ignore[arg-type]  # one of the three

    # ── callers ──────────────────────────────────────────────────────────────────────────────

    def ask(self, ask: Ask) -> asyncio.Task[None]:
        """Send a caller off."""
        call = {"chat": self._chat, "stream": self._stream, "embed": self._embed}[ask.kind]
        return self._send_off(call(ask), ask)

    def ask_many(self, batch: BatchPlan) -> asyncio.Task[None]:
        """Send a caller with many requests off."""
        return self._send_off(self._batch(batch), batch)

    def _send_off(
        self, work: Coroutine[Any, Any, None], asks: Ask | BatchPlan
    ) -> asyncio.Task[None]:
        if self._interrupt is not None and self._interrupt.number == asks.number:
            work = interrupted(work, self._interrupt, lambda: self.cancel(asks, task))
        task = self.loop.create_task(work, name=f"caller-{asks.number}")
        self._callers.add(task)
        task.add_done_callback(self._callers.discard)
        if asks.cancelled_after is not None:
            self._plan(self.time() + asks.cancelled_after, self.cancel, asks, task)
        return task

    def cancel(self, asks: Ask | BatchPlan, task: asyncio.Task[None]) -> None:
        """The caller goes away."""
        if not task.done():
            for asked in self.watch.asked:
                if asked.ask is asks:
                    asked.cancelled = True
            self._gone.add(asks.number)
            self.watch.note(f"caller  #{asks.number} is cancelled")
            task.cancel()

    async def _chat(self, ask: Ask) -> None:
        prompt = ask.text
        with _Asking(self, ask) as asked:
            response = await self.gateway.chat(
                prompt,
                timeout=ask.timeout,
                model=ask.model,
                cache=ask.cache,
                hedge=ask.hedge,
                session=ask.session,
            )
            self._check_answer(asked, response)
            self.watch.ended(asked, _how(response))

    async def _embed(self, ask: Ask) -> None:
        texts = [ask.text, "another"]
        with _Asking(self, ask) as asked:
            response = await self.gateway.embed(texts, timeout=ask.timeout, model=ask.model)
            if response.vectors != tuple(map(vector_of, texts)):
                self.watch.broken("mixed_up", f"#{ask.number} got {response.vectors}")
            self.watch.ended(asked, "served")

    async def _batch(self, plan: BatchPlan) -> None:
        """Ask many, as a job of the caller's does, and look at each item that comes back."""
        watch, began = self.watch, self.time()
        items = self.items[plan.number] = []
        watch.note(f"caller  #{plan.number} asks {len(plan.prompts)} by {plan.how}")
        try:
            async for item in self._many(plan):
                items.append(item)
                self._check_item(plan, item)
                if plan.leaves_after is not None and len(items) >= plan.leaves_after:
                    break
            else:
                self._check_items(plan, items)
        except asyncio.CancelledError:
            if plan.number not in self._gone:
                watch.broken("cancelled", f"#{plan.number} was cancelled by nobody")
            watch.batch_ends["cancelled"] += 1
        except GatewayError as error:
            # The first error of an item, or the gateway has been closed.
            watch.note(f"caller  #{plan.number} got {error!r}")
        except Exception as error:  # noqa: BLE001 - a finding, and not to be lost
            watch.broken("typed_error", f"#{plan.number} got {error!r}")
        took = self.time() - began - watch.stood(began, self.time())
        if plan.timeout is not None and took > plan.timeout + SLACK:
            watch.broken("deadline", f"#{plan.number} had {plan.timeout} s and took {took}")
        watch.note(f"caller  #{plan.number} has {len(items)} items")

    async def _many(self, plan: BatchPlan) -> AsyncIterator[BatchItem]:
        """The items of a batch, however it is asked."""
        gateway, prompts = self.gateway, [f"p{number}" for number in plan.prompts]
        terms: dict[str, Any] = {
            "concurrency": plan.concurrency,
            "timeout": plan.timeout,
            "outage_patience": plan.patience,
            "agent": BATCHED,
        }
        if plan.how == "as_completed":
            async with contextlib.aclosing(gateway.as_completed(prompts, **terms)) as items:
                async for item in items:
                    yield item
            return
        if plan.how == "map":
            rows = [{"n": number} for number in plan.prompts]
            result = await gateway.map("p{n}", rows, fail_fast=plan.fail_fast, **terms)
        else:
            result = await gateway.batch(prompts, fail_fast=plan.fail_fast, **terms)
        for item in result.items:
            yield item

    def _check_item(self, plan: BatchPlan, item: BatchItem) -> None:
        prompt = f"p{plan.prompts[item.index]}"
        if item.response is not None and item.response.text != answer_to(prompt):
            self.watch.broken("mixed_up", f"#{plan.number}: {prompt} got {item.response.text!r}")
        if item.response is None and not isinstance(item.error, GatewayError):
            self.watch.broken("typed_error", f"#{plan.number}: {prompt} got {item.error!r}")
        self.watch.batch_ends["item answered" if item.ok else "item failed"] += 1

    def _check_items(self, plan: BatchPlan, items: list[BatchItem]) -> None:
        """Each request of a batch that came to its end is one item."""
        order = [item.index for item in items]
        expected = list(range(len(plan.prompts)))
        if sorted(order) != expected or (plan.how != "as_completed" and order != expected):
            self.watch.broken("one_end", f"#{plan.number} has the items {order}")

    async def _stream(self, ask: Ask) -> None:
        with _Asking(self, ask) as asked:
            stream = self.gateway.stream(
                ask.text,
                timeout=ask.timeout,
                model=ask.model,
                cache=ask.cache,
                hedge=ask.hedge,
                session=ask.session,
                resume=ask.resume,
            )
            if ask.leaves_after is not None and ask.leaves_by == "break":
                whole = await self._read(stream, asked)
                del stream
                if not whole:
                    self.watch.ended(asked, "left")
                return
            async with stream:
                if not await self._read(stream, asked):
                    if ask.leaves_by == "cancel":
                        asked.cancelled = True
                        current = asyncio.current_task()
                        assert current is not None
                        current.cancel()
                        await asyncio.sleep(0)
                    await stream.aclose()
                    self.watch.ended(asked, "left")

    async def _read(self, stream: ChatStream, asked: Asked) -> bool:
        """Read a stream; says whether to its end."""
        ask = asked.ask
        text, chunks = "", 0
        if ask.leaves_after == 0:
            return False
        async for chunk in stream:
            self.watch.first_content(asked)
            chunks += 1
            if chunk.restarted:
                text = ""
            text += chunk.text
            if not answer_to(ask.text).startswith(text):
                self.watch.broken("mixed_up", f"#{ask.number} is told {text!r}")
            if ask.leaves_after is not None and chunks >= ask.leaves_after:
                return False
            if ask.dawdles:
                await asyncio.sleep(ask.dawdles)
        self.watch.first_content(asked)
        if stream.response.text != text:
            self.watch.broken("mixed_up", f"#{ask.number}: {text!r} is {stream.response.text!r}")
        self._check_answer(asked, stream.response)
        self.watch.ended(asked, _how(stream.response))
        return True

    def ended_by(self, asked: Asked, error: BaseException) -> None:
        """Note the error that ended a request."""
        if isinstance(error, asyncio.CancelledError):
            if not asked.cancelled:
                self.watch.broken("cancelled", f"#{asked.ask.number} was cancelled by nobody")
            self.watch.ended(asked, "cancelled")
            return
        if isinstance(error, GatewayError):
            if self._text_is_wrong(asked.ask, error):
                self.watch.broken("mixed_up", f"#{asked.ask.number}: {error!r}")
            self._note_full(asked)
        self.watch.failed(asked, error)

    def _note_full(self, asked: Asked) -> None:
        """See which providers have no place left, when a request fails."""
        metrics, there = self.gateway.get_metrics(), self.gateway.providers
        all_full = metrics["in_flight"] >= self.settings["max_concurrency"]
        asked.full = frozenset(
            status.name for status in there if all_full or status.in_flight >= status.max_in_flight
        )

    def _text_is_wrong(self, ask: Ask, error: GatewayError) -> bool:
        return not answer_to(ask.text).startswith(getattr(error, "text", ""))

    def _check_answer(self, asked: Asked, response: ChatResponse) -> None:
        number, prompt = asked.ask.number, asked.ask.text
        if response.text != answer_to(prompt):
            self.watch.broken("mixed_up", f"#{number} got {response.text!r}")
        if (response.provider, prompt) not in self.watch.answered_by:
            self.watch.broken("who", f"#{number}: {response.provider} gave no such answer")
        if response.finish_reason != "stop":
            self.watch.broken("finish", f"#{number}: {response.finish_reason}")
        own = not (response.cached or response.coalesced)
        if own != any(attempt.ok for attempt in response.attempts):
            self.watch.broken("attempts", f"#{number}: {response.attempts}")


class _Asking:
    """A request that is under way; takes the error that ends it.

    No generator with `contextmanager`: from Python 3.12 on its frame and the error hold each other,
    and a collection at any time would close the streams that the frames of the error hold.
    """

    def __init__(self, world: World, ask: Ask) -> None:
        self._world = world
        self._asked = world.watch.began(ask)

    def __enter__(self) -> Asked:
        return self._asked

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, (Exception, asyncio.CancelledError)):
            self._world.ended_by(self._asked, error)
            return True
        return False


def _how(response: ChatResponse) -> str:
    if response.stale:
        return "stale"
    if response.cached:
        return "hit"
    return "coalesced" if response.coalesced else "resumed" if response.resumed else "served"


def _config(plan: ProviderPlan) -> LLMConfig:
    return LLMConfig(
        ProviderType(plan.vendor),
        "m",
        name=plan.name,
        api_key="sk-simulated",
        api_base="http://127.0.0.1:9/v1",
        priority=plan.priority,
        weight=plan.weight,
        max_concurrency=plan.max_concurrency,
        rpm=plan.rpm,
    )
