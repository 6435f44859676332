"""Somebody is cancelled at the first, second, ..., last await of a request: the promises hold."""

from dataclasses import replace

import pytest

from tests.simulation.interrupting import Interrupt
from tests.simulation.scenario import (
    Ask,
    BatchPlan,
    Chore,
    ProviderPlan,
    Scenario,
    Stall,
    Trouble,
)
from tests.simulation.world import play

TARGET = 1
BYSTANDERS = (Ask(2, 0.0, prompt=2), Ask(3, 0.12, kind="stream", prompt=3, resume="restart"))
BROKEN = [Trouble("a", "outage", 0.0, 5.0)]
TROUBLED = {"failure_threshold": 50}


def scenario(*asks, troubles=(), chores=(), batches=(), stalls=(), closes_at=None, **settings):
    """Two providers, of which `a` is asked first."""
    return Scenario(
        seed="cancelling",
        settings={"attempt_timeout": 2.0, "first_token_timeout": 0.5, "idle_timeout": 0.5}
        | settings,
        providers=(
            ProviderPlan("a", 1, latency=0.1, gap=0.05, cleanup=2, continues=True),
            ProviderPlan("b", 0, latency=0.1, gap=0.05, cleanup=1, continues=True),
        ),
        troubles=tuple(troubles),
        asks=asks + BYSTANDERS,
        batches=tuple(batches),
        stalls=tuple(stalls),
        chores=tuple(chores),
        closes_at=closes_at,
    )


def stream(**fields):
    return Ask(TARGET, 0.0, kind="stream", prompt=1, **fields)


CHAT = Ask(TARGET, 0.0, prompt=1, cache=False)  # its own task does the asking
SHARED = replace(CHAT, cache=True)  # a task of the flight's does
TWIN = Ask(4, 0.0, prompt=1)
WAITERS = tuple(Ask(number, 0.0, prompt=number) for number in range(10, 13))

BATCH = BatchPlan(TARGET, 0.0, (1, 7, 8, 9), concurrency=2)

SCENARIOS = {
    "plain": scenario(CHAT),
    "failover": scenario(CHAT, troubles=BROKEN),
    "leader": scenario(SHARED, replace(TWIN, at=0.05)),
    "follower": scenario(TWIN, replace(SHARED, at=0.05)),
    "leader of failover": scenario(SHARED, replace(TWIN, at=0.05), troubles=BROKEN),
    "queue": scenario(*WAITERS, replace(CHAT, at=0.01), max_concurrency=1),
    "retry round": scenario(
        CHAT,
        troubles=[Trouble("a", "reset", 0.0, 0.15), Trouble("b", "reset", 0.0, 0.25)],
        **TROUBLED,
    ),
    "same provider again": scenario(
        CHAT, troubles=[Trouble("a", "reset", 0.0, 0.15)], retries_per_provider=2
    ),
    "hedged": scenario(replace(CHAT, hedge=True), hedge_delay_seconds=0.05),
    "hedged, first fails": scenario(
        replace(CHAT, hedge=True), troubles=BROKEN, hedge_delay_seconds=0.05
    ),
    "hedged stream": scenario(stream(hedge=True), hedge_delay_seconds=0.05),
    "stream": scenario(stream()),
    "slow reader": scenario(stream(dawdles=0.2)),
    "stream after silence": scenario(stream(), troubles=[Trouble("a", "silent_start", 0.0, 0.4)]),
    "lingering stream": scenario(stream(), troubles=[Trouble("a", "lingering", 0.0, 5.0)]),
    "restarted": scenario(
        stream(resume="restart"), troubles=[Trouble("a", "reset_midway", 0.0, 5.0)]
    ),
    "continued": scenario(
        stream(resume="continue"), troubles=[Trouble("a", "silent_midway", 0.0, 5.0)]
    ),
    "chat over stream": scenario(
        CHAT, troubles=[Trouble("a", "reset_midway", 0.0, 5.0)], chat_over_stream=True
    ),
    "embed": scenario(replace(CHAT, kind="embed"), troubles=BROKEN),
    "probe": scenario(
        Ask(5, 0.0, prompt=5),
        replace(CHAT, at=1.2),
        replace(TWIN, prompt=6, at=1.2),
        troubles=[Trouble("a", "outage", 0.0, 0.5), Trouble("b", "outage", 0.0, 0.5)],
        failure_threshold=1,
        reset_timeout_seconds=1.0,
        retry_rounds=0,
    ),
    "probe of a stream": scenario(
        Ask(5, 0.0, prompt=5),
        replace(stream(), at=1.2),
        replace(TWIN, prompt=6, at=1.2),
        troubles=[Trouble("a", "outage", 0.0, 0.5), Trouble("b", "outage", 0.0, 0.5)],
        failure_threshold=1,
        reset_timeout_seconds=1.0,
        retry_rounds=0,
    ),
    "batch": scenario(batches=[BATCH]),
    "batch in an outage": scenario(
        batches=[replace(BATCH, patience=60.0)],
        troubles=[Trouble("a", "outage", 0.0, 3.0), Trouble("b", "outage", 0.0, 3.0)],
        failure_threshold=1,
        reset_timeout_seconds=1.0,
        retry_rounds=0,
    ),
    "items as they are done": scenario(batches=[replace(BATCH, how="as_completed")]),
    "loop stands still": scenario(CHAT, stalls=[Stall(0.05, 2.5)]),
    "provider removed": scenario(CHAT, chores=[Chore(0.05, "remove", "a")]),
    "gateway closes": scenario(SHARED, TWIN, closes_at=0.05),
    "gateway closes over a stream": scenario(stream(), closes_at=0.22),
}


AWAITS = {"failover": 3, "retry round": 5, "chat over stream": 8, "same provider again": 3}
"""Awaits that a request has at least, where it goes a longer way."""


@pytest.mark.parametrize("moment", ["waiting", "waking"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_cancellation_at_any_await_breaks_no_promise(name, moment):
    at, cancelled = 0, 0
    while True:
        at += 1
        interrupt = Interrupt(TARGET, at, moment)
        played = play(SCENARIOS[name], interrupt)
        assert not played.broken, "\n".join([f"at await {at}", *played.trace])
        if interrupt.seen < at:
            break
        cancelled += played.ends.get("cancelled", 0)
    # With the gateway closing, what ends the request first may be that.
    assert cancelled or "closes" in name
    assert at > AWAITS.get(name, 1)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if "closes" not in name])
def test_uncancelled_all_are_served(name):
    played = play(SCENARIOS[name])
    assert not played.broken, "\n".join(played.trace)
    unserved = played.ends.keys() - {"served", "coalesced", "resumed", "hit", "item answered"}
    outage = "probe" in name or "outage" in name
    assert unserved <= ({"AllProvidersFailedError"} if outage else set()), played.trace
