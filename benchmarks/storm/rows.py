"""What is measured: each row is a situation, the figures of one run of it, and its bound."""

from __future__ import annotations

import asyncio
import bisect
import functools
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aigateway import AsyncGateway, LLMConfig
from aigateway.events import CircuitChanged, Event, RequestHedged
from benchmarks.server import Servers
from benchmarks.storm.world import Answer, Asked, Behave, Request, Vendor, World, in_world

T = TypeVar("T")
Figures = dict[str, float | None]
"""By key; None is "did not happen while it was watched"."""

# ── what a row is ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Figure:
    """A column.

    Attributes:
        key: In `Figures`.
        title: Above it.
        digits: Behind the point.
        unit: Behind the number.
    """

    key: str
    title: str
    digits: int = 0
    unit: str = ""

    def show(self, value: float | None) -> str:
        """As it stands in a cell."""
        if value is None:
            return "never"
        return f"{value:,.{self.digits}f}{self.unit}"


@dataclass(frozen=True)
class Family:
    """Rows with the same figures."""

    name: str
    title: str
    how: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Bound:
    """What a figure must be. `least` may be the key of another figure, less `slack`."""

    key: str
    least: float | str | None = None
    most: float | None = None
    slack: float = 0.0

    def met(self, figures: Figures) -> bool:
        """Whether it is; what never happened is not."""
        value = figures[self.key]
        if value is None:
            return False
        least = figures[self.least] if isinstance(self.least, str) else self.least
        above = least is None or value >= least - self.slack - 1e-9
        return above and (self.most is None or value <= self.most + 1e-9)


@dataclass(frozen=True)
class Setup:
    """How rows are run."""

    quick: bool = False
    real_time: bool = False

    def pick(self, full: float, quick: float) -> float:
        """The size for this run."""
        return quick if self.quick else full

    def world(self, play: Callable[[World], Awaitable[T]], seed: int = 1) -> T:
        """What `play` finds in a world of its own."""
        return in_world(play, seed=seed, real_time=self.real_time)


@dataclass(frozen=True)
class Row:
    """One situation.

    Attributes:
        name: For `--only`; begins with its family's.
        family: See `FAMILIES`.
        what: The situation.
        measure: Runs it.
        bounds: All are to be met.
        alone: Nothing may run beside it.
    """

    name: str
    family: str
    what: str
    measure: Callable[[Setup], Figures]
    bounds: Sequence[Bound] = ()
    alone: bool = False
    quick: bool = field(default=False)
    """Whether a quick run has it."""


# ── what vendors do ──────────────────────────────────────────────────────────────────────────

BROKEN = {"error": {"message": "broken", "type": "server_error", "code": None}}
USUAL = (0.05, 0.15)
"""Seconds of an answer."""
WATCHED = 1500
"""Seconds after an outage in which its end must have been noticed."""


def _error(delay: float) -> Answer:
    return Answer(delay, 500, BROKEN)


def by_chance(world: World, name: str, share: float) -> Behave:
    """Fail that share of the calls."""
    dice = world.chance(name)

    def behave(_: Asked) -> Answer:
        delay = dice.uniform(*USUAL)
        return _error(delay) if dice.random() < share else Answer(delay)

    return behave


def while_down(world: World, name: str, down: Callable[[float], bool]) -> Behave:
    """Fail the calls that come while it is down."""
    dice = world.chance(name)

    def behave(asked: Asked) -> Answer:
        delay = dice.uniform(*USUAL)
        return _error(delay) if down(asked.at) else Answer(delay)

    return behave


def percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else math.nan


def answered(requests: Sequence[Request]) -> float:
    """In percent."""
    return percent(sum(request.provider is not None for request in requests), len(requests))


def _p99(requests: Sequence[Request]) -> float:
    ordered = sorted(request.seconds for request in requests)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


# ── errors at random, and flapping ───────────────────────────────────────────────────────────

ERRORS = Family(
    "errors",
    "Errors at random, and vendors that flap",
    "Answers and errors (500) come after 50 to 150 ms, chance is seeded, and 20 requests a second"
    " come for 40 s unless the row says otherwise; such rows are 3 runs with dice of their own."
    " Trying each once is arithmetic. A call is one that reached a vendor.",
    (
        Figure("answered", "answered", 1, " %"),
        Figure("each_once", "trying each once", 1, " %"),
        Figure("calls", "calls per request", 2),
        Figure("p99_s", "p99 of callers, s", 1),
    ),
)


def errors(
    setup: Setup,
    shares: Sequence[float],
    *,
    rate: float = 20,
    runs: int = 3,
    kind: str = "chat",
    **settings: Any,
) -> Figures:
    seconds = setup.pick(40, 10)
    requests: list[Request] = []
    calls = 0

    async def play(world: World) -> None:
        nonlocal calls
        model = "text-embedding-3-small" if kind == "embed" else None
        for index, share in enumerate(shares):
            await world.add(by_chance(world, f"vendor {index}", share), model=model)
        await world.open(**settings)
        requests.extend(await world.traffic(rate, seconds, kind=kind))
        await world.ended()
        calls += sum(len(vendor.calls) for vendor in world.vendors)

    for seed in range(1, 2 if setup.quick else 1 + runs):
        setup.world(play, seed)
    return _errors(requests, calls, 100 * (1 - math.prod(shares)))


def _errors(requests: Sequence[Request], calls: int, each_once: float) -> Figures:
    return {
        "answered": answered(requests),
        "each_once": each_once,
        "calls": calls / len(requests),
        "p99_s": _p99(requests),
    }


def errors_in_batch(setup: Setup, shares: Sequence[float]) -> Figures:
    count = int(setup.pick(4000, 400))

    async def play(world: World) -> Figures:
        for index, share in enumerate(shares):
            await world.add(by_chance(world, f"vendor {index}", share))
        await world.open()
        result = await world.gateway.batch([world.prompt()[1] for _ in range(count)])
        calls = sum(len(vendor.calls) for vendor in world.vendors)
        good = sum(item.error is None for item in result)
        return {
            "answered": percent(good, count),
            "each_once": 100 * (1 - math.prod(shares)),
            "calls": calls / count,
        }

    return setup.world(play)


def flapping(setup: Setup, period: float, seconds: float) -> Figures:
    async def play(world: World) -> Figures:
        for index in range(2):

            def down(at: float, index: int = index) -> bool:
                return int(at / period) % 2 == index

            await world.add(while_down(world, f"vendor {index}", down))
        await world.open()
        requests = await world.traffic(20, setup.pick(seconds, 2 * period))
        await world.ended()
        calls = sum(len(vendor.calls) for vendor in world.vendors)
        return _errors(requests, calls, 100)

    return setup.world(play)


# ── bad prompts ──────────────────────────────────────────────────────────────────────────────

PROMPTS = Family(
    "prompts",
    "Bad prompts among healthy callers",
    "Three healthy vendors; for a bad prompt each of them answers 500 or an empty 200, resets the"
    " connection, or takes 20 s where `attempt_timeout` is 5. Innocents come at 20 a second."
    " One prompt is sent 5 times by one caller: one after another while it is quiet, or at once"
    " amid 2 innocents a second and with vendors of different priority; the innocents of that time"
    " and of the 60 s after it count. Or bad ones come 55 times in 40 s, one by one or in bursts of"
    " 5; the innocents of those 40 s count.",
    (
        Figure("answered", "innocents answered", 1, " %"),
        Figure("opened", "circuits opened"),
        Figure("calls", "calls per innocent", 2),
        Figure("p99_s", "p99 of innocents, s", 1),
    ),
)
BAD = "Poison"
KINDS: Mapping[str, Callable[[float], Answer]] = {
    "500": _error,
    "empty": lambda delay: Answer(delay, body=b""),
    "reset": lambda delay: Answer(delay, reset=True),
    "slow": lambda delay: Answer(20 + delay),
}
SLOW = {"attempt_timeout": 5.0}


class _Circuits:
    """A hook that counts circuits that open."""

    def __init__(self) -> None:
        self.opened = 0

    def on_event(self, event: Event) -> None:
        self.opened += isinstance(event, CircuitChanged) and event.name == "circuit.opened"


def _poisoned(world: World, name: str, kind: str) -> Behave:
    dice = world.chance(name)

    def behave(asked: Asked) -> Answer:
        delay = dice.uniform(*USUAL)
        return KINDS[kind](delay) if BAD.encode() in asked.body else Answer(delay)

    return behave


async def _open_poisoned(world: World, kind: str, *, ordered: bool = False) -> _Circuits:
    """Three vendors, of equal priority or one after the other."""
    for index in range(3):
        behave = _poisoned(world, f"vendor {index}", kind)
        await world.add(behave, priority=3 - index if ordered else 0)
    circuits = _Circuits()
    await world.open(hooks=[circuits], **(SLOW if kind == "slow" else {}))
    return circuits


def _innocents(world: World, circuits: _Circuits, requests: Sequence[Request]) -> Figures:
    numbers = {request.number for request in requests}
    calls = sum(call.number in numbers for vendor in world.vendors for call in vendor.calls)
    return {
        "answered": answered(requests),
        "opened": circuits.opened,
        "calls": calls / len(requests),
        "p99_s": _p99(requests),
    }


def one_bad_prompt(setup: Setup, kind: str, *, quiet: bool) -> Figures:
    """Sent 5 times: one after another on a quiet gateway, or at once amid a few innocents."""

    async def play(world: World) -> Figures:
        circuits = await _open_poisoned(world, kind, ordered=not quiet)
        await world.traffic(20, 10)
        prompt = f"{BAD} {world.prompt()[1]}"
        requests: list[Request] = []
        if quiet:
            await world.ended()
            for _ in range(5):
                await world.ask(prompt=prompt)
        else:
            bad = [world.begin(prompt=prompt, cache=False) for _ in range(5)]
            requests = await world.traffic(2, until=lambda _: all(each.ended for each in bad))
        requests += await world.traffic(20 if quiet else 2, setup.pick(60, 10))
        await world.ended()
        return _innocents(world, circuits, requests)

    return setup.world(play)


def many_bad_prompts(setup: Setup, kind: str, *, distinct: bool, burst: int) -> Figures:
    """55 of them in 40 s: the same or distinct ones, in bursts of that many."""

    async def play(world: World) -> Figures:
        circuits = await _open_poisoned(world, kind)
        await world.traffic(20, 10)
        _, same = world.prompt()

        async def bad() -> None:
            for _ in range(55 // burst):
                for _ in range(burst):
                    prompt = world.prompt()[1] if distinct else same
                    world.begin(prompt=f"{BAD} {prompt}", cache=False)
                await asyncio.sleep(40 / (55 / burst))

        sending = asyncio.create_task(bad())
        requests = await world.traffic(20, setup.pick(40, 10))
        sending.cancel()
        await world.ended()
        return _innocents(world, circuits, requests)

    return setup.world(play)


# ── outages ──────────────────────────────────────────────────────────────────────────────────

OUTAGES = Family(
    "outage",
    "One provider, and its outage",
    "10 s of health, then errors (500) after 50 to 150 ms, then health again. From the end of the"
    " outage to the first answer that a caller gets; and how many calls met the vendor in the"
    " second that began with that one.",
    (
        Figure("first_answer_s", "first answer after, s", 1),
        Figure("herd", "calls in its first second"),
        Figure("calls", "calls per request in the outage", 2),
    ),
)


def _first_answer(world: World, vendor: Vendor, end: float) -> Figures:
    """From `end` to the first answer that the vendor gave, and how many calls met it then."""
    asked = {call.number: call.at for call in vendor.calls if call.at >= end}
    name = vendor.config.name
    for request in world.answers:
        if request.provider == name and request.number in asked:
            began = asked[request.number]
            return {
                "first_answer_s": (request.ended or math.inf) - end,
                "herd": vendor.calls_in(began, began + 1),
            }
    return {"first_answer_s": None, "herd": None}


def outage(setup: Setup, seconds: float, rate: float) -> Figures:
    start, end = 10.0, 10.0 + seconds

    async def play(world: World) -> Figures:
        down = functools.partial(_between, start, end)
        vendor = await world.add(while_down(world, "vendor", down))
        await world.open()

        def over(_: Sequence[Request]) -> bool:
            if world.now > end + WATCHED:
                return True
            answered_at = world.answers[-1].ended if world.answers else None
            if answered_at is None or answered_at <= end:
                return False
            first = bisect.bisect(world.answers, end, key=lambda each: each.ended)
            return (world.answers[first].ended or end) < world.now - 3

        requests = await world.traffic(rate, until=over)
        during = [request for request in requests if start <= request.at < end]
        return {
            **_first_answer(world, vendor, end),
            "calls": vendor.calls_in(start, end) / len(during),
        }

    return setup.world(play)


def _between(start: float, end: float, at: float) -> bool:
    return start <= at < end


# ── a healthy backup ─────────────────────────────────────────────────────────────────────────

BACKUPS = Family(
    "backup",
    "A primary's outage beside a healthy backup",
    "20 requests a second, 30 s of health, then the primary's outage. Its traffic is back from the"
    " second on in which it answers nine in ten requests, and in the two after it.",
    (
        Figure("back_s", "traffic back after, s"),
        Figure("herd", "calls in its first second"),
        Figure("answered", "answered", 1, " %"),
        Figure("calls", "calls to the dead primary per request", 3),
    ),
)


def backup(setup: Setup, seconds: float) -> Figures:
    start, end, rate = 30.0, 30.0 + seconds, 20

    async def play(world: World) -> Figures:
        down = functools.partial(_between, start, end)
        primary = await world.add(while_down(world, "primary", down), priority=2)
        await world.add(by_chance(world, "backup", 0), priority=1)
        await world.open()

        def over(requests: Sequence[Request]) -> bool:
            last = [each for each in requests[-5 * rate :] if each.at < world.now - 1]
            back = world.now > end + 5 and _share(last, "0") >= 0.9
            return back or world.now > end + WATCHED

        requests = await world.traffic(rate, until=over)
        await world.ended()
        during = [request for request in requests if start <= request.at < end]
        return {
            "back_s": _back(requests, end),
            "herd": _first_answer(world, primary, end)["herd"],
            "answered": answered(requests),
            "calls": primary.calls_in(start, end) / len(during),
        }

    return setup.world(play)


def _share(requests: Sequence[Request], name: str) -> float:
    if not requests:
        return 0.0
    return sum(request.provider == name for request in requests) / len(requests)


def _back(requests: Sequence[Request], end: float) -> float | None:
    """The first whole second after `end` from which on the primary answers nine in ten."""
    buckets: dict[int, list[Request]] = {}
    for request in requests:
        if request.at >= end:
            buckets.setdefault(int(request.at - end), []).append(request)
    good = [_share(buckets.get(second, ()), "0") >= 0.9 for second in range(max(buckets) + 1)]
    for second in range(len(good) - 2):
        if all(good[second : second + 3]):
            return second
    return None


# ── refusals of one request ──────────────────────────────────────────────────────────────────

GATES = Family(
    "refusals",
    "What one request that cannot be served does to the others",
    "A provider and a backup. One request of the kind that the row names is sent, the provider"
    " refuses it in its vendor's words, and then one chat a second comes for 60 s.",
    (
        Figure("by_provider", "answered by that provider afterwards", 0, " %"),
        Figure("answered", "answered", 0, " %"),
        Figure("refusals", "calls it refused"),
    ),
)
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
    }
]


@dataclass(frozen=True)
class Refusal:
    """What a vendor refuses, and how.

    Attributes:
        wire: The vendor's.
        status: HTTP status.
        body: As that vendor writes it.
        mark: In the path or body of the calls that it refuses.
        send: Sends the one request.
    """

    wire: str
    status: int
    body: Mapping[str, Any]
    mark: bytes
    send: Callable[[World], Awaitable[Request]]


async def _send_embedding(world: World) -> Request:
    return await world.ask("embed", model="gpt-4o-mini")


async def _send_tools(world: World) -> Request:
    return await world.ask(tools=_TOOLS)


async def _send_file(world: World) -> Request:
    return await world.ask(prompt=f"Sum up the attached file. {world.prompt()[1]}")


REFUSALS = {
    "embed-403": Refusal(
        "openai",
        403,
        {
            "error": {
                "message": "You are not allowed to generate embeddings from this model",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        },
        b"/embeddings",
        _send_embedding,
    ),
    "embed-404": Refusal("openai", 404, {"detail": "Not Found"}, b"/embeddings", _send_embedding),
    "embed-405": Refusal(
        "openai", 405, {"detail": "Method Not Allowed"}, b"/embeddings", _send_embedding
    ),
    "file-gemini": Refusal(
        "gemini",
        403,
        {
            "error": {
                "code": 403,
                "message": "You do not have permission to access the File u2gmc8kqtkz9 or it may"
                " not exist.",
                "status": "PERMISSION_DENIED",
            }
        },
        b"attached file",
        _send_file,
    ),
    "file-anthropic": Refusal(
        "anthropic",
        404,
        {
            "type": "error",
            "error": {
                "type": "not_found_error",
                "message": "File not found: file_011CNha8iCJcU1wXNR6q4V8w",
            },
            "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy",
        },
        b"attached file",
        _send_file,
    ),
    "tools-openrouter": Refusal(
        "openai_compatible",
        404,
        {
            "error": {
                "message": "No endpoints found that support tool use. To learn more about provider"
                " routing, visit: https://openrouter.ai/docs/provider-routing",
                "code": 404,
            }
        },
        b'"tools"',
        _send_tools,
    ),
}


def refusal(setup: Setup, name: str) -> Figures:
    given = REFUSALS[name]

    async def play(world: World) -> Figures:
        dice = world.chance("vendor")
        refused = 0

        def behave(asked: Asked) -> Answer:
            nonlocal refused
            delay = dice.uniform(*USUAL)
            if given.mark not in asked.path.encode() + asked.body:
                return Answer(delay)
            refused += 1
            return Answer(delay, given.status, given.body)

        await world.add(behave, given.wire, priority=2)
        await world.add(by_chance(world, "backup", 0), model="gpt-4.1", priority=1)
        await world.open()
        await world.traffic(1, 5)
        await world.ended()
        await given.send(world)
        requests = await world.traffic(1, setup.pick(60, 10))
        await world.ended()
        return {
            "by_provider": 100 * _share(requests, "0"),
            "answered": answered(requests),
            "refusals": refused,
        }

    return setup.world(play)


COOLDOWNS = Family(
    "retry-after",
    "A rate limit",
    "One provider, one request every 10 s; its first call gets a 429 with `Retry-After: 86400`,"
    " all others an answer.",
    (
        Figure("again_s", "asked again after, s"),
        Figure("answered", "answered", 1, " %"),
    ),
)


def retry_after(setup: Setup) -> Figures:
    seconds = setup.pick(90_000, 2_000)
    body = {"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}
    limited = Answer(0.1, 429, body, {"Retry-After": "86400"})

    async def play(world: World) -> Figures:
        vendor = await world.add(lambda _: Answer(0.1) if world.vendors[0].calls[1:] else limited)
        await world.open()

        def over(requests: Sequence[Request]) -> bool:
            return bool(requests) and (requests[-1].at > seconds or len(vendor.calls) > 1)

        requests = await world.traffic(0.1, until=over)
        return {
            "again_s": vendor.calls[1].at - vendor.calls[0].at if vendor.calls[1:] else None,
            "answered": answered(requests),
        }

    return setup.world(play)


# ── brownout ─────────────────────────────────────────────────────────────────────────────────

BROWNOUTS = Family(
    "brownout",
    "A primary that becomes 20 times slower, beside a healthy secondary",
    "20 requests a second; 60 s of a primary that takes 80 to 120 ms, then 60 s in which it takes"
    " 1.6 to 2.4 s. Callers count by when they came.",
    (
        Figure("p50_first_ms", "p50 of the first 5 s, ms"),
        Figure("p50_ms", "p50 after, ms"),
        Figure("secondary_ms", "the secondary's, ms"),
        Figure("canaries", "the primary's share after", 0, " %"),
        Figure("answered", "answered", 1, " %"),
    ),
)


def brownout(setup: Setup, secondary: float) -> Figures:
    usual = setup.pick(60, 20)

    async def play(world: World) -> Figures:
        dice = world.chance("vendors")

        def primary(asked: Asked) -> Answer:
            return Answer(dice.uniform(0.8, 1.2) * (0.1 if asked.at < usual else 2.0))

        await world.add(primary, priority=2)
        await world.add(lambda _: Answer(dice.uniform(0.8, 1.2) * secondary), priority=1)
        await world.open()
        await world.traffic(20, usual)
        first = await world.traffic(20, 5)
        after = await world.traffic(20, setup.pick(55, 10))
        await world.ended()
        return {
            "p50_first_ms": 1000 * statistics.median(each.seconds for each in first),
            "p50_ms": 1000 * statistics.median(each.seconds for each in after),
            "secondary_ms": 1000 * secondary,
            "canaries": 100 * _share(after, "0"),
            "answered": answered(first + after),
        }

    return setup.world(play)


# ── our own stall ────────────────────────────────────────────────────────────────────────────

STALLS = Family(
    "stall",
    "Our own event loop stands still",
    "In real time, vendors in another process. 20 calls are in flight to a vendor that answers"
    " after 1 s, `attempt_timeout` is 2, and the program blocks for 2.5 s. Then 20 more chats.",
    (
        Figure("opened", "circuits opened"),
        Figure("answered", "answered", 0, " %"),
        Figure("by_provider", "the next 20 by the same provider", 0, " %"),
    ),
)


def stall(setup: Setup) -> Figures:
    del setup

    async def run() -> Figures:
        async with Servers.started() as servers:
            await servers.set("primary", "ok", 1.0)
            configs = [
                LLMConfig(
                    "openai",
                    "gpt-4o-mini",
                    api_key="sk-loopback",
                    api_base=f"{root}/v1",
                    name=name,
                    priority=priority,
                )
                for priority, (name, root) in enumerate(reversed(servers.roots.items()))
            ]
            circuits = _Circuits()
            async with AsyncGateway(configs, attempt_timeout=2.0, hooks=[circuits]) as gateway:
                await gateway.warmup()
                await _asked_by(gateway, "before")
                waiting = asyncio.create_task(_asked_by(gateway, "during"))
                await asyncio.sleep(0.3)  # all are with the vendor now
                time.sleep(2.5)  # noqa: ASYNC251 - the stall is what is measured
                during = await waiting
                after = await _asked_by(gateway, "after")
        return {
            "opened": circuits.opened,
            "answered": percent(sum(name is not None for name in during), len(during)),
            "by_provider": percent(after.count("primary"), len(after)),
        }

    return asyncio.run(run())


async def _asked_by(gateway: AsyncGateway, when: str) -> list[str | None]:
    """Who answered each of 20 chats that are sent at once."""
    chats = (gateway.chat(f"Chat {index} {when} the stall.") for index in range(20))
    replies = await asyncio.gather(*chats, return_exceptions=True)
    return [None if isinstance(each, BaseException) else each.provider for each in replies]


# ── everything is dead ───────────────────────────────────────────────────────────────────────

DEAD = Family(
    "dead",
    "Every vendor is dead",
    "Three vendors, 100 requests a second; 10 s of health, then 30 s in which every call fails"
    " (500 after 50 to 150 ms), then health. Calls to the dead vendors for each request that came"
    " in those 30 s; and how many calls met each vendor, at most, in the first second in which it"
    " answers again.",
    (
        Figure("calls", "calls per request", 2),
        Figure("answered", "of them answered in the end", 0, " %"),
        Figure("first_answer_s", "first answer after, s", 1),
        Figure("herd", "calls in a vendor's first second"),
    ),
)


def dead(setup: Setup) -> Figures:
    start, end, rate = 10.0, 10 + setup.pick(30, 5), 100

    async def play(world: World) -> Figures:
        for index in range(3):
            down = functools.partial(_between, start, end)
            await world.add(while_down(world, f"vendor {index}", down))
        await world.open()
        await world.traffic(rate, start)
        during = await world.traffic(rate, end - start)
        await world.traffic(rate, 10)
        await world.ended()
        found = [_first_answer(world, vendor, end) for vendor in world.vendors]
        firsts = [each["first_answer_s"] for each in found if each["first_answer_s"] is not None]
        herds = [each["herd"] for each in found if each["herd"] is not None]
        calls = sum(vendor.calls_in(start, end) for vendor in world.vendors)
        return {
            "calls": calls / len(during),
            "answered": answered(during),
            "first_answer_s": min(firsts, default=None),
            "herd": max(herds, default=None),
        }

    return setup.world(play)


# ── extra calls ──────────────────────────────────────────────────────────────────────────────

EXTRA = Family(
    "extra",
    "Extra calls",
    "Three vendors, 100 requests a second; after 10 s all three fail that share of their calls for"
    " 30 s (500 after 50 to 150 ms), then none. A call is a request's first, a failover (to a"
    " provider that it has not asked), or extra: to one that it has, or a hedge. Hedging and 2"
    " retries per provider are on where the row says so. Without a budget and circuits is"
    " arithmetic: each call fails by itself. Back is the first second from which on 99 % of the"
    " requests are answered.",
    (
        Figure("first", "first calls"),
        Figure("failover", "failovers"),
        Figure("extra", "extra calls"),
        Figure("ratio", "per request beside failovers", 2),
        Figure("unbounded", "without a budget and circuits", 2),
        Figure("answered", "answered in the outage", 0, " %"),
        Figure("back_s", "seconds until back"),
    ),
)
EAGER = {"hedge": True, "retries_per_provider": 2}
BARE = {**EAGER, "failure_threshold": 1_000_000}
MOST_EXTRA = 1.25


class _Hedges:
    """A hook that notes when hedges began."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.at: list[float] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, RequestHedged) and self.world is not None:
            self.at.append(self.world.now)


def extra_calls(setup: Setup, share: float, settings: Mapping[str, Any]) -> Figures:
    start, end, rate = 10.0, 10 + setup.pick(30, 10), 100

    async def play(world: World) -> Figures:
        hedges = _Hedges()
        hedges.world = world
        for index in range(3):
            await world.add(_in_outage(world, f"vendor {index}", share, start, end))
        await world.open(hooks=[hedges], **settings)
        await world.traffic(rate, start)
        during = await world.traffic(rate, end - start)
        after = await world.traffic(rate, setup.pick(35, 2))
        await world.ended()
        hedged = sum(start <= at < end for at in hedges.at)
        return {
            **_calls_by_kind(world, during, hedged),
            "unbounded": _unbounded(share, settings.get("retries_per_provider", 0) + 1),
            "answered": answered(during),
            "back_s": _well_again(after, end),
        }

    return setup.world(play)


def _in_outage(world: World, name: str, share: float, start: float, end: float) -> Behave:
    ill, well = by_chance(world, name, share), by_chance(world, f"{name}, well", 0)
    return lambda asked: ill(asked) if start <= asked.at < end else well(asked)


def _calls_by_kind(world: World, requests: Sequence[Request], hedged: int) -> Figures:
    """The calls that were made for these requests, by kind."""
    numbers = {request.number for request in requests}
    calls = [
        (call.number, place)
        for place, vendor in enumerate(world.vendors)
        for call in vendor.calls
        if call.number in numbers
    ]
    first = len({number for number, _ in calls})
    distinct = len(set(calls))
    extra = len(calls) - distinct + hedged
    return {
        "first": first,
        "failover": distinct - first - hedged,
        "extra": extra,
        "ratio": (first + extra) / len(requests),
    }


def _unbounded(share: float, tries: int) -> float:
    """Calls per request, beside failovers, if nothing kept them down."""
    passed = share**tries  # a provider is left behind
    one = sum(share**index for index in range(tries))
    each_round = one * (1 + passed + passed**2)
    return each_round * sum(passed ** (3 * index) for index in range(3)) - passed - passed**2


def _well_again(requests: Sequence[Request], end: float) -> float | None:
    """The first second from which on nearly all are answered, and remain so."""
    buckets: dict[int, list[Request]] = {}
    for request in requests:
        buckets.setdefault(int(request.at - end + 1e-6), []).append(request)
    late = [second for second, each in buckets.items() if answered(each) < 99]
    back = max(late, default=-1) + 1
    return back if back in buckets else None


# ── all of them ──────────────────────────────────────────────────────────────────────────────

FAMILIES = {
    each.name: each
    for each in (
        ERRORS,
        PROMPTS,
        OUTAGES,
        BACKUPS,
        GATES,
        COOLDOWNS,
        BROWNOUTS,
        STALLS,
        DEAD,
        EXTRA,
    )
}
_NEAR_EACH_ONCE = (Bound("answered", least="each_once", slack=2),)
_ALL = (Bound("answered", least=100),)
_HERD = Bound("herd", most=40)


def _error_rows() -> list[Row]:
    def row(name: str, what: str, measure: Callable[[Setup], Figures], **more: Any) -> Row:
        return Row(f"errors-{name}", "errors", what, measure, _NEAR_EACH_ONCE, **more)

    part = functools.partial
    three = (0.5,) * 3
    return [
        row("3x50", "3 x 50 %", part(errors, shares=three), quick=True),
        row("3x50-200", "3 x 50 %, 200/s", part(errors, shares=three, rate=200, runs=1)),
        row("2x50", "2 x 50 %", part(errors, shares=three[:2])),
        row("4x50", "4 x 50 %", part(errors, shares=(0.5,) * 4)),
        row("1x50", "1 x 50 %", part(errors, shares=three[:1])),
        row("2x30", "2 x 30 %", part(errors, shares=(0.3,) * 2)),
        row("3x80", "3 x 80 %", part(errors, shares=(0.8,) * 3)),
        row("stream", "3 x 50 %, streams", part(errors, shares=three, kind="stream")),
        row("embed", "3 x 50 %, embeddings", part(errors, shares=three, kind="embed", runs=1)),
        row("batch", "3 x 50 %, a batch of 4,000", part(errors_in_batch, shares=three)),
        row(
            "no-circuit",
            "3 x 50 %, `failure_threshold=10**6`",
            part(errors, shares=three, failure_threshold=10**6),
        ),
        row("flap-3s", "two flap in antiphase, every 3 s", part(flapping, period=3, seconds=60)),
        row("flap-30s", "the same, every 30 s", part(flapping, period=30, seconds=180)),
    ]


def _prompt_rows() -> list[Row]:
    rows = []
    part = functools.partial
    for kind in KINDS:
        for quiet, when in ((True, "in a row, else quiet"), (False, "at once, amid innocents")):
            rows.append(
                Row(
                    f"prompts-{kind}-{'quiet' if quiet else 'amid'}",
                    "prompts",
                    f"one, {kind}, 5 times {when}",
                    part(one_bad_prompt, kind=kind, quiet=quiet),
                    _ALL,
                    quick=kind == "500",
                )
            )
    for kind in ("500", "slow"):
        for distinct in (False, True):
            for burst in (1, 5):
                same = "distinct ones" if distinct else "the same one"
                how = "in bursts of 5" if burst > 1 else "one by one"
                rows.append(
                    Row(
                        f"prompts-55-{kind}-{'distinct' if distinct else 'same'}-{burst}",
                        "prompts",
                        f"55 in 40 s, {kind}, {same}, {how}",
                        part(many_bad_prompts, kind=kind, distinct=distinct, burst=burst),
                        _ALL,
                    )
                )
    return rows


def _outage_rows() -> list[Row]:
    part = functools.partial
    rows = [
        Row(
            f"outage-{seconds}s-{rate}",
            "outage",
            f"{seconds} s, {rate}/s",
            part(outage, seconds=seconds, rate=rate),
            (Bound("first_answer_s", most=2), *((_HERD,) if rate == 20 else ())),
            quick=seconds == 10,
        )
        for rate, seconds in ((1, 10), (1, 600), (1, 1200), (20, 10), (20, 600))
    ]
    rows += [
        Row(
            f"backup-{seconds}s",
            "backup",
            f"{seconds} s",
            part(backup, seconds=seconds),
            (Bound("back_s", most=120), _HERD, *_ALL),
            quick=seconds == 10,
        )
        for seconds in (10, 600)
    ]
    return rows


def _refusal_rows() -> list[Row]:
    what = {
        "embed": "an embedding to a chat model",
        "file": "a file that is not there",
        "tools": "tools at a model without them",
    }
    return [
        Row(
            f"refusals-{name}",
            "refusals",
            f"{what[name.partition('-')[0]]}, {given.wire} {given.status}",
            functools.partial(refusal, name=name),
            (Bound("by_provider", least=100), *_ALL),
            quick=name == "embed-404",
        )
        for name, given in REFUSALS.items()
    ]


def _extra_rows() -> list[Row]:
    cases = {
        "defaults": ("defaults, 50 % errors", 0.5, {}),
        "eager": ("hedging, 2 retries per provider, 50 % errors", 0.5, EAGER),
        "bare": ("the same, circuits never open", 0.5, BARE),
        "bare-dead": ("the same, 100 % errors", 1.0, BARE),
    }
    return [
        Row(
            f"extra-{name}",
            "extra",
            what,
            functools.partial(extra_calls, share=share, settings=settings),
            (Bound("ratio", most=MOST_EXTRA),),
            quick=name == "defaults",
        )
        for name, (what, share, settings) in cases.items()
    ]


def _other_rows() -> list[Row]:
    part = functools.partial
    rows = [
        Row(
            "retry-after",
            "retry-after",
            "`Retry-After: 86400`",
            retry_after,
            (Bound("again_s", most=310),),
        )
    ]
    rows += [
        Row(
            f"brownout-{name}",
            "brownout",
            f"a secondary of {name}",
            part(brownout, secondary=seconds),
            (Bound("p50_ms", most=1500 * seconds), *_ALL),
            quick=name == "20ms",
        )
        for name, seconds in (("20ms", 0.02), ("100ms", 0.1))
    ]
    rows.append(
        Row(
            "stall",
            "stall",
            "`time.sleep(2.5)`",
            stall,
            (Bound("opened", most=0), Bound("by_provider", least=100), *_ALL),
            alone=True,
            quick=True,
        )
    )
    rows.append(Row("dead", "dead", "30 s", dead, (Bound("calls", most=0.3),), quick=True))
    return rows


ROWS = {
    row.name: row
    for row in (
        *_error_rows(),
        *_prompt_rows(),
        *_outage_rows(),
        *_refusal_rows(),
        *_other_rows(),
        *_extra_rows(),
    )
}
