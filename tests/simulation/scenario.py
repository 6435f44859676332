"""What happens in one simulated run, as plain data drawn from a seed.

A scenario says everything that is not the gateway's own doing: who there is, what breaks when, who
asks what when, who goes away. It can be made smaller without changing what is left, which is how
the shortest trace of a failure is found: each vendor call draws its fate from a seed of its own
(`vendors.py`), so that leaving one request out does not change the luck of the others.

Times lie on a coarse grid, so that timers often coincide, or are a microsecond apart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from aigateway.messages import CacheMode
from aigateway.routing.stream import Resume

__all__ = ["Ask", "Chore", "ProviderPlan", "Scenario", "Trouble", "draw"]

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

HOW_TO_LEAVE = ("aclose", "break", "cancel")

Kind = Literal["chat", "embed", "stream"]


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


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something is wrong with a provider for a while.

    Attributes:
        provider: Whose.
        kind: One of `TROUBLES`.
        begins: Seconds from the start.
        ends: Likewise.
        share: Of the calls that meet it.
        retry_after: What it asks for, in seconds; None if it does not say.
    """

    provider: str
    kind: str
    begins: float
    ends: float
    share: float = 1.0
    retry_after: float | None = None


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
        resume: As for `stream`.
        rejected: Every vendor calls it invalid.
        long: Models with a window of a hundred cannot take it.
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
    resume: Resume | None = None
    rejected: bool = False
    long: bool = False
    cancelled_after: float | None = None
    leaves_after: int | None = None
    leaves_by: str = "break"
    dawdles: float = 0.0


@dataclass(frozen=True, slots=True)
class Chore:
    """A provider is taken out, or put back as a new one of that name."""

    at: float
    what: Literal["add", "remove"]
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
        chores: Changes of the providers.
        closes_at: When the gateway closes over flying requests; None is after all is well again.
        leaks: As for `SimulatedLoop`.
    """

    seed: str
    settings: Mapping[str, float | bool] = field(default_factory=dict)
    providers: tuple[ProviderPlan, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    asks: tuple[Ask, ...] = ()
    chores: tuple[Chore, ...] = ()
    closes_at: float | None = None
    leaks: float = 0.0


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
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

    def __init__(self, seed: int) -> None:
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
