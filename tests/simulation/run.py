"""`nox -s simulate`: play one seed and show what happens, or many and count.

    nox -s simulate -- --seed 123456    one run, with everything that happens in it
    nox -s simulate -- --seeds 5000     the first five thousand, and the figures

A promise that is broken ends it: the seed is named, and the smallest scenario that still breaks the
same promise is shown with its trace.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tests.simulation.scenario import Scenario, draw
from tests.simulation.shrinking import shrunk
from tests.simulation.world import Played, play

__all__ = ["failure", "main"]


def failure(seed: int, scenario: Scenario, played: Played) -> str:
    """What to read when a promise was broken: the seed, and the shortest way to see it."""
    promise = played.broken[0].promise
    smallest, shown = shrunk(scenario, promise)
    return "\n".join(
        [
            f"Seed {seed} breaks {len(played.broken)} promises; the first: {played.broken[0]}",
            f"Again: nox -s simulate -- --seed {seed}",
            "",
            f"The smallest scenario found that breaks {promise!r}:",
            *described(smallest),
            "",
            *shown.trace,
        ]
    )


def described(scenario: Scenario) -> list[str]:
    """A scenario, a line for each thing; what is as by default is left out."""
    lines = [f"  settings {dict(scenario.settings)}, closes_at={scenario.closes_at}"]
    things: list[Any] = [*scenario.providers, *scenario.troubles, *scenario.stalls]
    for thing in [*things, *scenario.asks, *scenario.batches, *scenario.chores]:
        told = [
            f"{field.name}={getattr(thing, field.name)!r}"
            for field in fields(thing)
            if getattr(thing, field.name) != field.default
        ]
        lines.append(f"  {type(thing).__name__}({', '.join(told)})")
    return lines


def main() -> int:
    """Run from the command line; says whether every promise was kept."""
    parser = argparse.ArgumentParser(prog="nox -s simulate --", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one and show its trace")
    parser.add_argument("--seeds", type=int, default=1000, help="how many to play (1000)")
    parser.add_argument("--first", type=int, default=0, help="which to begin with (0)")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed)
    return _many(range(options.first, options.first + options.seeds))


def _one(seed: int) -> int:
    scenario = draw(seed)
    played = play(scenario)
    print(*described(scenario), "", *played.trace, "", _ends(played.ends), sep="\n")
    if played.broken:
        print("", failure(seed, scenario, played), sep="\n")
    return bool(played.broken)


def _many(seeds: range) -> int:
    began = time.perf_counter()
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    requests = calls = turns = 0
    virtual = 0.0
    for seed in seeds:
        scenario = draw(seed)
        played = play(scenario)
        if played.broken:
            print(failure(seed, scenario, played))
            return 1
        faults.update(played.faults)
        ends.update(played.ends)
        requests += played.requests
        calls += played.calls
        turns += played.turns
        virtual += played.seconds
    took = time.perf_counter() - began
    print(f"{len(seeds)} schedules in {took:.1f} s, {len(seeds) / took:.0f} per second")
    print(f"{virtual / 3600:.1f} hours of virtual time, {turns} turns of the loop")
    print(f"{requests} requests, {calls} calls to vendors")
    print(f"faults met: {_ends(faults)}")
    print(f"requests ended as: {_ends(ends)}")
    print("every promise was kept")
    return 0


def _ends(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    raise SystemExit(main())
