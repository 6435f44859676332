"""Conversations over equal providers: what sessions do for the vendors' prompt caches, and cost."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aigateway import AsyncGateway, FailureKind
from aigateway.clock import Clock
from aigateway.messages import ChatRequest, Choice, Completion, Usage
from aigateway.settings import LLMConfig
from aigateway.testing import ScriptedVendor, scripted_configs
from aigateway.wires.client import Failure, VendorCallError
from benchmarks.chart import Bars
from benchmarks.measure import Spread
from benchmarks.options import Options
from benchmarks.report import Result, Table

NAMES = ("a", "b", "c")
CONVERSATIONS, TURNS, AT_ONCE = 200, 10, 50
LATENCY = (0.01, 0.03)
OPEN_SECONDS = 0.2
SYSTEM = "You are a patient assistant. " * 140
"""About a thousand tokens, of each conversation's own: as an agent's instructions are."""
QUESTION, ANSWER = "What about the next step of it? " * 12, "Then this is what I would do. " * 12
PLAIN, SESSIONS = "load sharing alone", "sessions"
HOW = (
    f"{len(NAMES)} equal providers that answer after {LATENCY[0] * 1000:.0f} to"
    f" {LATENCY[1] * 1000:.0f} ms (chance is seeded); {CONVERSATIONS} conversations of {TURNS}"
    f" turns, {AT_ONCE} at a time; each turn sends the whole conversation. A vendor reads from its"
    " cache the longest beginning of a prompt that it has seen before, message by message, and"
    " reports that as `cached_tokens`; no two conversations share one. In the second table one"
    " provider answers 503 in the middle third of all turns; circuits stay open for"
    f" {OPEN_SECONDS} s. With two processes, two gateways that share nothing take turns. The"
    " vendors are in this process, so that nothing but the routing counts. The cost is CPU time of"
    " `gateway.chat` over vendors without latency; medians of interleaved rounds."
)


class _Caches:
    """Three vendors with a prompt cache each."""

    def __init__(self, turns: int, *, failing: bool) -> None:
        self._seen: dict[str, set[int]] = {name: set() for name in NAMES}
        self._answered = 0
        self._failing = range(turns // 3, turns * 2 // 3) if failing else range(0)
        self._dice = random.Random("sessions")
        self.prompt = self.cached = 0

    def __call__(self, config: LLMConfig, clock: Clock) -> Any:
        client = ScriptedVendor()(config, clock)

        async def chat(request: ChatRequest) -> Completion:
            await asyncio.sleep(self._dice.uniform(*LATENCY))
            if config.name == NAMES[0] and self._answered in self._failing:
                raise VendorCallError(Failure(FailureKind.SERVER_ERROR, 503))
            self._answered += 1
            usage = self._usage(config.name, request)
            return Completion("id", config.model, (Choice(ANSWER, "stop"),), usage)

        client.chat = chat
        return client

    def _usage(self, name: str, request: ChatRequest) -> Usage:
        seen, prefix, prompt, cached = self._seen[name], 0, 0, 0
        for message in request.messages:
            prefix = hash((prefix, message["content"]))
            prompt += len(message["content"]) // 4
            if prefix in seen:
                cached = prompt
            seen.add(prefix)
        self.prompt += prompt
        self.cached += cached
        return Usage(prompt, 90, prompt + 90, cached)


@dataclass
class _Found:
    """What came of all conversations."""

    homes: list[list[str]] = field(default_factory=list)
    errors: int = 0
    cached: float = 0.0

    @property
    def stayed(self) -> float:
        """Share of the turns after the first that the provider of the turn before answered."""
        pairs = [pair for turns in self.homes for pair in itertools.pairwise(turns)]
        return sum(before == after for before, after in pairs) / len(pairs)

    @property
    def whole(self) -> float:
        """Share of the conversations that one provider answered."""
        return sum(len(set(turns)) == 1 for turns in self.homes) / len(self.homes)

    def row(self) -> list[str]:
        shares = (self.stayed, self.whole, self.cached)
        return [*(f"{share * 100:.1f} %" for share in shares), str(self.errors)]


async def run(options: Options) -> Result:
    cases = [(name, count) for name in (PLAIN, SESSIONS) for count in (1, 2)]
    well = {c: await _converse(*c, failing=False, options=options) for c in cases}
    failing = {c: await _converse(*c, failing=True, options=options) for c in cases}
    costs = await _costs(options)
    columns = ["", "turns at the provider before", "conversations at one", "tokens from caches"]
    columns += ["errors"]
    tables = [
        Table(title, columns, [[_named(*case), *found.row()] for case, found in rows.items()])
        for title, rows in (
            ("**All providers are well**", well),
            ("**One provider fails for a while**", failing),
        )
    ]
    spreads = {name: Spread.of(times) for name, times in costs.items()}
    tables.append(
        Table(
            "**Microseconds of a chat**",
            ["", "us"],
            [[name, spread.show(1)] for name, spread in spreads.items()],
        )
    )
    bars = [(_named(*case), found.cached * 100) for case, found in well.items()]
    chart = Bars("Prompt tokens read from the vendors' caches", "percent", bars)
    data = {
        "well": {_named(*case): _figures(found) for case, found in well.items()},
        "failing": {_named(*case): _figures(found) for case, found in failing.items()},
        "us": costs,
    }
    return Result("sessions", HOW, tables, chart, data)


def _named(name: str, processes: int) -> str:
    return name if processes == 1 else f"{name}, two processes"


def _figures(found: _Found) -> Mapping[str, Any]:
    return {"stayed": found.stayed, "cached": found.cached, "errors": found.errors}


async def _converse(name: str, processes: int, *, failing: bool, options: Options) -> _Found:
    count = options.pick(CONVERSATIONS, 20)
    caches, found = _Caches(count * TURNS, failing=failing), _Found()
    gate = asyncio.Semaphore(AT_ONCE)
    configs = scripted_configs(*NAMES, priority=0, reset_timeout_seconds=OPEN_SECONDS)
    gateways = [AsyncGateway(configs, vendor=caches, cache_enabled=False) for _ in range(processes)]

    async def converse(number: int) -> None:
        async with gate:
            found.homes.append(await _turns(gateways, number, name == SESSIONS, found))

    for gateway in gateways:
        await gateway.warmup()
    try:
        await asyncio.gather(*(converse(number) for number in range(count)))
    finally:
        for gateway in gateways:
            await gateway.aclose()
    found.cached = caches.cached / caches.prompt
    return found


async def _turns(
    gateways: Sequence[AsyncGateway], number: int, with_session: bool, found: _Found
) -> list[str]:
    messages = [{"role": "system", "content": f"{number}: {SYSTEM}"}]
    homes = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"{turn}: {QUESTION}"})
        session = f"conversation {number}" if with_session else None
        gateway = gateways[turn % len(gateways)]
        try:
            reply = await gateway.chat(messages, session=session)
        except Exception:  # noqa: BLE001 - whatever it is, it is counted
            found.errors += 1
            continue
        homes.append(reply.provider)
        messages.append({"role": "assistant", "content": reply.text})
    return homes


async def _costs(options: Options) -> Mapping[str, list[float]]:
    cases: Mapping[str, Mapping[str, Any]] = {
        "without a session": {},
        "with one": {"session": "s"},
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    count = options.pick(2000, 50)
    configs = scripted_configs(*NAMES, priority=0)
    async with AsyncGateway(configs, vendor=ScriptedVendor(), cache_enabled=False) as gateway:
        for _ in range(options.pick(15, 2)):
            for name, given in cases.items():
                began = time.process_time()
                for _ in range(count):
                    await gateway.chat("hi", **given)
                times[name].append((time.process_time() - began) / count * 1e6)
    return times
