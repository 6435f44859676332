"""Steady traffic at default settings, and what it comes to: for statements about many requests.

No request here is like another: each has a prompt of its own, so that luck is drawn anew for each,
and the cache answers none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from aigateway.events import CircuitChanged, ProviderDisabled
from tests.simulation.invariants import Asked
from tests.simulation.scenario import Ask, Kind, ProviderPlan, Scenario, Trouble
from tests.simulation.vendors import VendorCall, would_fail
from tests.simulation.world import Played, play

__all__ = ["LATENCY", "Traffic", "each_once", "providers", "steady"]

LATENCY = 0.1
"""Seconds that a vendor that is well takes; a quarter of the answers take twice as long."""


def providers(
    *priorities: int, vendors: Iterable[str] = ("openai", "anthropic", "gemini", "openai")
) -> tuple[ProviderPlan, ...]:
    """Providers named a, b, c, ..., each of another vendor, of these priorities."""
    return tuple(
        ProviderPlan(name, priority, latency=LATENCY, gap=0.0, vendor=vendor)
        for name, priority, vendor in zip("abcd", priorities, vendors, strict=False)
    )


def steady(
    rate: float, seconds: float, *, begins: float = 0.0, first: int = 0, kind: Kind = "chat"
) -> tuple[Ask, ...]:
    """Requests at equal distances, for so many seconds; `first` is the number of the first."""
    return tuple(
        Ask(first + number, round(begins + number / rate, 6), kind, first + number)
        for number in range(round(rate * seconds))
    )


def each_once(scenario: Scenario) -> float:
    """The share of requests that trying each provider once answers: by the same luck, exactly."""
    answered = sum(
        not all(would_fail(scenario, plan, ask) for plan in scenario.providers)
        for ask in scenario.asks
    )
    return answered / len(scenario.asks)


class Traffic:
    """What came of some traffic.

    Args:
        plans: Who there is.
        troubles: What breaks when.
        asks: The traffic.
        seed: For the vendors' luck.
        more: Other parts of the scenario, `settings` among them.
    """

    def __init__(
        self,
        plans: tuple[ProviderPlan, ...],
        troubles: Iterable[Trouble],
        asks: Iterable[Ask],
        seed: str = "traffic",
        **more: Any,
    ) -> None:
        ordered = tuple(sorted(asks, key=lambda ask: (ask.at, ask.number)))
        self.scenario = Scenario(
            seed, providers=plans, troubles=tuple(troubles), asks=ordered, **more
        )
        self.played: Played = play(self.scenario)
        numbers = {ask.number for ask in ordered}
        self.asked = [asked for asked in self.played.asked if asked.ask.number in numbers]
        """Without those by which the world sees whether providers come back at the end."""

    @property
    def log(self) -> tuple[VendorCall, ...]:
        """Every call that reached a vendor."""
        return self.played.log

    def chosen(self, wanted: Callable[[Ask], bool] = lambda ask: True) -> list[Asked]:
        """The requests that are looked at."""
        return [asked for asked in self.asked if wanted(asked.ask)]

    def answered(self, wanted: Callable[[Ask], bool] = lambda ask: True) -> float:
        """The share of requests that got an answer."""
        chosen = self.chosen(wanted)
        return sum(asked.answered for asked in chosen) / len(chosen)

    def each_once(self) -> float:
        """The share that would have got one by trying each provider once."""
        return each_once(self.scenario)

    def opened(self) -> list[str]:
        """Providers whose circuits opened, or that were disabled, one after the other."""
        return [
            event.provider
            for _, event in self.played.happened
            if isinstance(event, ProviderDisabled)
            or (isinstance(event, CircuitChanged) and event.new == "open")
        ]

    def calls(self, provider: str, begins: float = 0.0, ends: float = 1e9) -> list[VendorCall]:
        """Those that reached a provider in that time."""
        return [c for c in self.log if c.provider == provider and begins <= c.began < ends]

    def first_answer(self, provider: str, since: float) -> float:
        """When a caller first got an answer from a call that began since then."""
        return min(
            (c.ended for c in self.calls(provider, since) if c.answered and c.ended is not None),
            default=float("inf"),
        )

    def usual_latency(self, wanted: Callable[[Ask], bool]) -> float:
        """The middle one, in seconds, of answered and unanswered requests."""
        took = [(a.ended or float("inf")) - a.began for a in self.chosen(wanted)]
        return median(took)
