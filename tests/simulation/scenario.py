"""What happens in one simulated run, as plain data drawn from a seed.

A scenario says everything that is not the gateway's own doing: who there is, what breaks when, who
asks what when, who goes away. It can be made smaller without changing what is left, which is how
the shortest trace of a failure is found: each vendor call draws its fate from a seed of its own
(`vendors.py`), so that leaving one request out does not change the luck of the others.

Times lie on a coarse grid, so that timers often coincide, or are a microsecond apart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from aigateway.events import Operation
from aigateway.messages import CacheMode

__all__ = [
    "Ask",
    "BatchPlan",
    "Chore",
    "ProviderPlan",
    "Scenario",
    "Stall",
    "Trouble",
    "draw",
    "draw_basic",
    "flapping",
]

GRID = 0.05
"""Seconds."""

TROUBLES = (
    "bad_key",
    "brownout",
    "crash",
    "hang",
    "lingering",
    "malformed",
    "malformed_midway",
    "outage",
    "overloaded",
    "refused",
    "reset",
    "reset_midway",
    "silent_midway",
    "silent_start",
    "slow",
    "spent",
    "throttled",
    "unprepared",
)
"""What can be wrong with a provider; `vendors.py` says what each means."""

REFUSALS = ("bare_401", "bare_403", "bare_404", "no_endpoint", "no_model", "not_implemented")
"""Refusals that may be of one operation only."""

CHOKES = (
    "bare_401",
    "bare_403",
    "bare_404",
    "brownout",
    "hang",
    "malformed",
    "missing_file",
    "reset",
)
"""What a prompt can bring upon the one call that carries it."""

VENDORS = ("anthropic", "gemini", "openai", "openai_compatible")

HOW_TO_LEAVE = ("aclose", "break", "cancel")

DAY = 86_400.0

Kind = Literal["chat", "embed", "stream"]
Resume = Literal["continue", "restart"]


@dataclass(frozen=True, slots=True)
class ProviderPlan:
    """One provider.

    Attributes:
        name: Its name in the gateway.
        priority: Higher is asked first.
        weight: Its share among equals.
        max_concurrency: Its own bound, if any.
        rpm: Likewise.
        latency: Seconds until an answer, or a stream's first content.
        gap: Seconds between the pieces of a stream.
        continues: Its model goes on from a partial answer.
        cleanup: Turns of the loop that a cancelled call takes to end.
        window: How much input its model takes: long prompts want more than a hundred.
        vendor: Whose wire it speaks.
        refuses: An operation that its model does not do at all.
        refuses_by: How it says so; one of `REFUSALS`.
    """

    name: str
    priority: int
    weight: float = 1
    max_concurrency: int | None = None
    rpm: int | None = None
    latency: float = 0.2
    gap: float = 0.05
    continues: bool = False
    cleanup: int = 0
    window: int | None = None
    vendor: str = "openai_compatible"
    refuses: Operation | None = None
    refuses_by: str = "no_model"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something is wrong with a provider for a while.

    Attributes:
        provider: Whose.
        kind: One of `TROUBLES` or `REFUSALS`.
        begins: Seconds from the start.
        ends: Likewise.
        share: Of the calls that meet it.
        retry_after: What it asks for, in seconds; None if it does not say.
        operation: Which calls meet it; None is all.
        factor: For `slow`: how many times longer an answer takes.
    """

    provider: str
    kind: str
    begins: float
    ends: float
    share: float = 1.0
    retry_after: float | None = None
    operation: Operation | None = None
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """The event loop stands still, as under a `time.sleep` in a callback."""

    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        number: Names it in the trace.
        at: When, in seconds from the start.
        kind: What is called.
        prompt: Equal numbers are equal prompts.
        timeout: As for `chat`.
        model: Likewise.
        cache: Likewise.
        hedge: Likewise.
        session: Likewise.
        resume: As for `stream`.
        rejected: Every vendor calls it invalid.
        long: Models with a window of a hundred cannot take it.
        chokes: What vendors do when they get this prompt, whoever else they answer; of `CHOKES`.
        choking: The one vendor that does; None is every vendor.
        cancelled_after: Seconds after which its caller's task is cancelled.
        leaves_after: Chunks after which the caller leaves a stream.
        leaves_by: How.
        dawdles: Seconds that the caller takes over each chunk.
    """

    number: int
    at: float
    kind: Kind = "chat"
    prompt: int = 0
    timeout: float | None = None
    model: str | None = None
    cache: CacheMode = True
    hedge: bool | None = None
    session: str | None = None
    resume: Resume | None = None
    rejected: bool = False
    long: bool = False
    chokes: str | None = None
    choking: str | None = None
    cancelled_after: float | None = None
    leaves_after: int | None = None
    leaves_by: str = "break"
    dawdles: float = 0.0

    @property
    def text(self) -> str:
        """The prompt as vendors get it."""
        chokes = "" if self.chokes is None else f" chokes={self.chokes}@{self.choking or 'all'}"
        return f"p{self.prompt}" + " long" * self.long + " rejected" * self.rejected + chokes


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Many requests of one caller.

    Attributes:
        number: Names it in the trace; no ask has the same.
        at: When, in seconds from the start.
        prompts: Of its items, as in `Ask.prompt`.
        how: What is called.
        concurrency: As for `batch`.
        patience: As `outage_patience` of `batch`.
        timeout: As for `batch`.
        fail_fast: Likewise.
        cancelled_after: Seconds after which its caller's task is cancelled.
        leaves_after: Items after which the caller leaves `as_completed`.
    """

    number: int
    at: float
    prompts: tuple[int, ...]
    how: Literal["as_completed", "batch", "map"] = "batch"
    concurrency: int | Literal["auto"] = 4
    patience: float | None = 5.0
    timeout: float | None = None
    fail_fast: bool = False
    cancelled_after: float | None = None
    leaves_after: int | None = None


@dataclass(frozen=True, slots=True)
class Chore:
    """A provider is taken out, put back as a new one of that name, or its circuit is forced."""

    at: float
    what: Literal["add", "auto", "closed", "open", "remove"]
    provider: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that happens to one gateway.

    Attributes:
        seed: What is not said here is drawn from it.
        settings: The gateway's.
        providers: Who there is at the start.
        troubles: What breaks when.
        asks: The traffic.
        batches: More of it, many requests at a time.
        stalls: When the event loop stands still.
        chores: Changes of the providers.
        closes_at: When the gateway closes over flying requests; None is after all is well again.
        leaks: As for `SimulatedLoop`.
    """

    seed: str
    settings: Mapping[str, float | bool] = field(default_factory=dict)
    providers: tuple[ProviderPlan, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    asks: tuple[Ask, ...] = ()
    batches: tuple[BatchPlan, ...] = ()
    stalls: tuple[Stall, ...] = ()
    chores: tuple[Chore, ...] = ()
    closes_at: float | None = None
    leaks: float = 0.0


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    dice = _Dice(f"more/{seed}")
    scenario = draw_basic(seed)
    for more in (
        _brownouts,
        _flapping,
        _bad_prompts,
        _refusals,
        _stalls,
        _long_outage,
        _long_cooldown,
        _batches,
        _orders,
    ):
        if dice.random() < 0.15:
            scenario = more(dice, scenario)
    own = _Dice(f"sessions/{seed}")  # so that the others are drawn as they were before
    return _sessions(own, scenario) if own.random() < 0.3 else scenario


def draw_basic(seed: int) -> Scenario:
    """The part of it that the first seeds were drawn with: what they found is found by it alone."""
    dice = _Dice(seed)
    length = dice.choice((5.0, 15.0, 30.0))
    settings = _settings(dice)
    providers = tuple(_provider(dice, number) for number in range(dice.randint(2, 4)))
    names = [provider.name for provider in providers]
    troubles = [_trouble(dice, names, length) for _ in range(dice.randint(0, 8))]
    if dice.random() < 0.15:  # nobody is well
        common = _trouble(dice, names, length)
        troubles += [replace(common, provider=name) for name in names]
    bursts = [dice.time(length) for _ in range(dice.randint(1, 6))]
    asks = tuple(
        _ask(dice, number, bursts, length, names)
        for number in range(dice.choice((5, 20, 40, 40, 150)))
    )
    return Scenario(
        seed=str(seed),
        settings=settings,
        providers=providers,
        troubles=tuple(troubles),
        asks=tuple(sorted(asks, key=lambda ask: (ask.at, ask.number))),
        chores=_chores(dice, names, length),
        closes_at=dice.time(length) if dice.random() < 0.25 else None,
        leaks=dice.choice((0.0, 0.1, 0.5)),
    )


class _Dice(random.Random):
    """Draws times on the grid."""

    def __init__(self, seed: int | str) -> None:
        super().__init__(f"scenario/{seed}")

    def time(self, most: float, least: float = 0.0) -> float:
        steps = self.randint(round(least / GRID), round(most / GRID))
        off = self.choice((-2, -1, 1, 2)) * 1e-6 if steps and self.random() < 0.2 else 0.0
        return round(steps * GRID + off, 6)


def _settings(dice: _Dice) -> dict[str, float | bool]:
    timeout = dice.choice((2.0, 4.0, 8.0))
    return {
        "timeout": timeout,
        "attempt_timeout": dice.choice((1.5, 3.0)),
        "first_token_timeout": dice.choice((0.5, 1.0)),
        "idle_timeout": dice.choice((0.5, 1.0)),
        "chat_over_stream": dice.random() < 0.3,
        "retries_per_provider": dice.choice((0, 0, 1, 2)),
        "hedge": dice.random() < 0.5,
        "hedge_delay_seconds": dice.choice((0.1, 0.2, 0.5)),
        "hedge_max_percent": dice.choice((0.0, 5.0, 50.0)),
        "failure_threshold": dice.randint(1, 4),
        "reset_timeout_seconds": dice.choice((1.0, 3.0)),
        "max_open_seconds": dice.choice((3.0, 12.0)),
        "probe_lease_seconds": 1.0,
        "retry_rounds": dice.randint(0, 3),
        "max_retry_wait_seconds": dice.choice((0.5, 2.0)),
        "disabled_recheck_seconds": 4.0,
        "disabled_recheck_max_seconds": 16.0,
        "cache_enabled": dice.random() < 0.8,
        "cache_ttl_seconds": dice.choice((0.5, 5.0)),
        "cache_max_entries": dice.choice((2, 1000)),
        "stale_if_error_seconds": dice.choice((0.0, 10.0)),
        "max_concurrency": dice.choice((1, 2, 4, 8, 50)),
        "max_queue": dice.choice((0, 3, 20, 1000)),
        "failover_on_rejection": dice.random() < 0.2,
    }


def _provider(dice: _Dice, number: int) -> ProviderPlan:
    return ProviderPlan(
        name="abcdefgh"[number],
        priority=dice.choice((0, 0, 1, 2)),
        weight=dice.choice((1, 1, 3)),
        max_concurrency=dice.choice((None, None, 1, 2, 5)),
        rpm=dice.choice((None, None, None, 30)),
        latency=dice.choice((0.0, 0.05, 0.1)),
        gap=dice.choice((0.0, 0.01, 0.05)),
        continues=dice.random() < 0.6,
        cleanup=dice.choice((0, 0, 1, 3)),
        window=dice.choice((None, 100, 1000)),
    )


def _trouble(dice: _Dice, names: list[str], length: float) -> Trouble:
    begins = dice.time(length)
    return Trouble(
        provider=dice.choice(names),
        kind=dice.choice(TROUBLES),
        begins=begins,
        ends=begins + dice.time(length / 2, GRID),
        share=dice.choice((0.3, 0.7, 1.0)),
        retry_after=dice.choice((None, None, 0.0, 0.5, 2.0)),
    )


def _ask(dice: _Dice, number: int, bursts: list[float], length: float, names: list[str]) -> Ask:
    kind: Kind = dice.choice(("chat", "chat", "chat", "stream", "stream", "embed"))
    leaves = kind == "stream" and dice.random() < 0.25
    return Ask(
        number=number,
        at=dice.choice(bursts) if dice.random() < 0.6 else dice.time(length),
        kind=kind,
        prompt=dice.randint(0, 6) if dice.random() < 0.6 else 100 + number,
        timeout=dice.choice((None, None, None, 0.1, 0.5, 1.0)),
        model=dice.choice(names) if dice.random() < 0.1 else None,
        cache=dice.choice((True, True, True, False, "refresh")),
        hedge=dice.choice((None, None, True)),
        resume=dice.choice((None, "restart", "continue")) if kind == "stream" else None,
        rejected=dice.random() < 0.03,
        long=dice.random() < 0.05,
        cancelled_after=dice.time(1.5) if dice.random() < 0.2 else None,
        leaves_after=dice.randint(0, 5) if leaves else None,
        leaves_by=dice.choice(HOW_TO_LEAVE),
        dawdles=dice.choice((0.0, 0.0, 0.0, 0.1, 0.7)) if kind == "stream" else 0.0,
    )


def _chores(dice: _Dice, names: list[str], length: float) -> tuple[Chore, ...]:
    chores: list[Chore] = []
    while len(chores) < 4 and dice.random() < 0.3:
        name, at = dice.choice(names), dice.time(length)
        chores.append(Chore(at, "remove", name))
        if dice.random() < 0.7:
            chores.append(Chore(at + dice.time(2.0), "add", name))
    return tuple(sorted(chores, key=lambda chore: chore.at))


# ── what may come on top ─────────────────────────────────────────────────────────────────────


def flapping(
    names: Sequence[str], begins: float, ends: float, period: float, kind: str = "outage"
) -> tuple[Trouble, ...]:
    """Providers that go down and up again; several take turns, so that one of them is always up.

    Args:
        names: Theirs.
        begins: Seconds from the start.
        ends: Likewise.
        period: Seconds from going down to going down again; each is down for its share of it.
        kind: What is wrong while one is down.
    """
    share = period / max(2, len(names))
    troubles = []
    for turn in range(math.ceil((ends - begins) / share)):
        down = begins + turn * share
        if turn % max(2, len(names)) < len(names):
            name = names[turn % max(2, len(names))]
            troubles.append(Trouble(name, kind, down, min(ends, down + share)))
    return tuple(troubles)


def _length(scenario: Scenario) -> float:
    return max((ask.at for ask in scenario.asks), default=5.0) or 5.0


def _names(scenario: Scenario) -> list[str]:
    return [provider.name for provider in scenario.providers]


def _sorted(asks: Iterable[Ask]) -> tuple[Ask, ...]:
    return tuple(sorted(asks, key=lambda ask: (ask.at, ask.number)))


def _brownouts(dice: _Dice, scenario: Scenario) -> Scenario:
    """Each provider fails now and then, or all are slow, for a while."""
    length = _length(scenario)
    begins = dice.time(length)
    ends = begins + dice.time(max(length, 1.0), 1.0)
    slow = dice.random() < 0.3
    troubles = [
        Trouble(name, "slow", begins, ends, factor=dice.choice((5.0, 20.0, 50.0)))
        if slow
        else Trouble(name, "brownout", begins, ends, share=round(dice.uniform(0.1, 0.9), 2))
        for name in _names(scenario)
    ]
    return replace(scenario, troubles=(*scenario.troubles, *troubles))


def _flapping(dice: _Dice, scenario: Scenario) -> Scenario:
    length, names = _length(scenario), _names(scenario)
    those = dice.sample(names, dice.choice((1, 2)))
    kind = dice.choice(("outage", "refused", "hang", "reset"))
    troubles = flapping(those, 0.0, length, dice.choice((0.5, 2.0, 6.0)), kind)
    return replace(scenario, troubles=(*scenario.troubles, *troubles))


def _bad_prompts(dice: _Dice, scenario: Scenario) -> Scenario:
    """One caller sends what vendors choke on: the same again and again, or always another."""
    length = _length(scenario)
    providers = [replace(p, vendor=dice.choice(VENDORS)) for p in scenario.providers]
    chokes = dice.choice(CHOKES)
    choking = dice.choice((None, None, dice.choice(VENDORS)))
    same = dice.random() < 0.5
    kind: Kind = dice.choice(("chat", "chat", "stream", "embed"))
    asks = [
        Ask(
            number=1000 + number,
            at=dice.time(length),
            kind=kind,
            prompt=1000 if same else 1000 + number,
            chokes=chokes,
            choking=choking,
        )
        for number in range(dice.choice((1, 5, 20)))
    ]
    return replace(scenario, providers=tuple(providers), asks=_sorted((*scenario.asks, *asks)))


def _refusals(dice: _Dice, scenario: Scenario) -> Scenario:
    """Some refuse one operation: for good, or for a while."""
    providers = list(scenario.providers)
    at = dice.randrange(len(providers))
    operation: Operation = dice.choice(("chat", "embeddings", "embeddings"))
    by = dice.choice(REFUSALS)
    if dice.random() < 0.5:
        providers[at] = replace(providers[at], refuses="embeddings", refuses_by=by)
        return replace(scenario, providers=tuple(providers))
    begins = dice.time(_length(scenario))
    trouble = Trouble(
        providers[at].name,
        by,
        begins,
        begins + dice.time(5.0, GRID),
        share=dice.choice((0.1, 1.0)),
        operation=operation,
    )
    return replace(scenario, troubles=(*scenario.troubles, trouble))


def _stalls(dice: _Dice, scenario: Scenario) -> Scenario:
    """Something in this process sleeps, and the event loop with it."""
    length = _length(scenario)
    stalls = [
        Stall(dice.time(length), dice.choice((0.2, 1.0, 2.5, 5.0)))
        for _ in range(dice.randint(1, 3))
    ]
    return replace(scenario, stalls=tuple(sorted(stalls, key=lambda stall: stall.at)))


def _long_outage(dice: _Dice, scenario: Scenario) -> Scenario:
    """One, or all of them, are down for long, while there is little traffic."""
    names = _names(scenario)
    if dice.random() < 0.5:
        names = [dice.choice(names)]
    length, lasts = _length(scenario), dice.choice((10.0, 600.0, 3600.0))
    begins = dice.time(length)
    kind = dice.choice(("outage", "reset", "hang"))
    troubles = [Trouble(name, kind, begins, begins + lasts) for name in names]
    asks = [
        Ask(2000 + number, begins + dice.time(lasts), prompt=2000 + number) for number in range(20)
    ]
    return replace(
        scenario,
        troubles=(*scenario.troubles, *troubles),
        asks=_sorted((*scenario.asks, *asks)),
        closes_at=None,
    )


def _long_cooldown(dice: _Dice, scenario: Scenario) -> Scenario:
    """A vendor that is busy asks to be left alone for a day."""
    begins = dice.time(_length(scenario))
    trouble = Trouble(
        dice.choice(_names(scenario)),
        dice.choice(("throttled", "overloaded")),
        begins,
        begins + dice.choice((GRID, 1.0)),
        retry_after=dice.choice((600.0, DAY)),
    )
    return replace(scenario, troubles=(*scenario.troubles, trouble))


def _batches(dice: _Dice, scenario: Scenario) -> Scenario:
    """Callers with many requests at a time."""
    length = _length(scenario)
    batches = [_batch(dice, 5000 + number, length) for number in range(dice.randint(1, 3))]
    return replace(scenario, batches=tuple(batches))


def _batch(dice: _Dice, number: int, length: float) -> BatchPlan:
    how: Literal["as_completed", "batch", "map"] = dice.choice(("as_completed", "batch", "map"))
    size = dice.choice((0, 1, 5, 20, 50))
    own = dice.random() < 0.7
    return BatchPlan(
        number=number,
        at=dice.time(length),
        prompts=tuple(
            10 * number + at if own else dice.randint(0, 6)  # others ask these, too
            for at in range(size)
        ),
        how=how,
        concurrency=dice.choice((1, 4, 16, "auto")),
        patience=dice.choice((0.0, 5.0, 60.0)),
        timeout=dice.choice((None, None, 2.0, 10.0)),
        fail_fast=how != "as_completed" and dice.random() < 0.2,
        cancelled_after=dice.time(5.0) if dice.random() < 0.25 else None,
        leaves_after=dice.randint(0, 5) if how == "as_completed" and dice.random() < 0.3 else None,
    )


def _sessions(dice: _Dice, scenario: Scenario) -> Scenario:
    """Most chats and streams are turns of a few conversations."""
    names = [f"s{number}" for number in range(dice.choice((1, 3, 8)))]
    asks = [
        replace(ask, session=dice.choice(names))
        if ask.kind != "embed" and dice.random() < 0.8
        else ask
        for ask in scenario.asks
    ]
    return replace(scenario, asks=tuple(asks))


def _orders(dice: _Dice, scenario: Scenario) -> Scenario:
    """An operator forces a circuit, and lets it go again."""
    length, name = _length(scenario), dice.choice(_names(scenario))
    at = dice.time(length)
    chores = (
        Chore(at, dice.choice(("closed", "open")), name),
        Chore(at + dice.time(length, GRID), "auto", name),
    )
    together = sorted((*scenario.chores, *chores), key=lambda chore: chore.at)
    return replace(scenario, chores=tuple(together))
