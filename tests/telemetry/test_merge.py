"""The figures of several processes as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aigateway import AsyncGateway
from aigateway.telemetry.merge import CONDITIONS, merge, merge_metrics
from aigateway.testing import ScriptedVendor, scripted_configs

COUNT = st.integers(0, 1000)


async def figures_of(
    vendor: ScriptedVendor, prompts: Sequence[str], **settings: Any
) -> dict[str, Any]:
    async with AsyncGateway(scripted_configs("a", "b"), vendor=vendor, **settings) as gateway:
        for prompt in prompts:
            await gateway.chat(prompt)
        return dict(gateway.get_metrics())


async def test_one_alone_stays_as_it_is(vendor: ScriptedVendor) -> None:
    figures = await figures_of(vendor, ["x", "y", "x"])
    assert merge_metrics([figures]) == figures


async def test_counts_and_limits_add_up_and_rates_are_worked_out_again(
    vendor: ScriptedVendor,
) -> None:
    first = await figures_of(vendor, ["x", "x", "x"])
    second = await figures_of(vendor, ["y"])
    whole = merge_metrics([first, second])
    assert (whole["total_requests"], whole["cache_hits"]) == (4, 2)
    assert whole["cache_hit_rate_percent"] == 50.0
    assert whole["providers_active"] == 2
    assert whole["cost_usd"] == round(first["cost_usd"] + second["cost_usd"], 10)
    for name in ("max_entries", "max_bytes"):
        assert whole["cache"][name] == 2 * first["cache"][name]
    assert whole["cache"]["bytes"] == first["cache"]["bytes"] + second["cache"]["bytes"] > 0
    provider, alone = whole["providers"]["a"], first["providers"]["a"]
    assert (provider["attempts"], provider["circuit_state"]) == (2, "closed")
    assert provider["max_in_flight"] == 2 * alone["max_in_flight"]
    latencies = [each["providers"]["a"]["latency_seconds"]["p99"] for each in (first, second)]
    assert provider["latency_seconds"]["p99"] == max(latencies)


async def test_of_one_that_has_exited_only_counts_remain(vendor: ScriptedVendor) -> None:
    running = await figures_of(vendor, ["x"])
    exited = await figures_of(vendor, ["y", "z", "z"])
    exited["in_flight"] = exited["providers"]["a"]["in_flight"] = 7
    exited["providers"]["a"]["circuit_state"] = "open"
    exited["providers"]["a"]["degraded"] = "errors"
    exited["providers"]["removed"] = exited["providers"]["b"]
    whole = merge_metrics([running], [exited])
    assert (whole["total_requests"], whole["served"], whole["cache_hits"]) == (4, 3, 1)
    assert whole["providers"]["a"]["attempts"] == 3
    state = ("in_flight", "waiting", "providers_active")
    assert {name: whole[name] for name in state} == {name: running[name] for name in state}
    for name in ("entries", "max_entries", "bytes", "max_bytes"):
        assert whole["cache"][name] == running["cache"][name]
    per_provider = ("in_flight", "max_in_flight", "circuit_state", "degraded", "latency_seconds")
    one, other = whole["providers"]["a"], running["providers"]["a"]
    assert {each: one[each] for each in per_provider} == {
        each: other[each] for each in per_provider
    }
    assert whole["providers"].keys() == {"a", "b"}
    assert whole.keys() == running.keys()


@given(
    st.lists(st.tuples(COUNT, COUNT, st.sampled_from(["closed", "half_open", "open"])), min_size=1)
)
def test_whatever_the_parts_say(parts: list[tuple[int, int, str]]) -> None:
    figures = [
        {
            "total_requests": total,
            "cache_hits": hits,
            "cache_hit_rate_percent": 0.0,
            "providers_active": 1,
            "providers": {"a": {"active": state != "open", "circuit_state": state, "failures": {}}},
        }
        for total, hits, state in parts
    ]
    whole = merge_metrics(figures)
    states = [state for _, _, state in parts]
    worst = next(word for word in ("open", "half_open", "closed") if word in states)
    assert whole["total_requests"] == sum(total for total, _, _ in parts)
    assert whole["providers"]["a"]["circuit_state"] == worst
    assert whole["providers_active"] == any(state != "open" for state in states)


LEAVES = {
    "count": COUNT,
    "active": st.booleans(),
    "state": st.sampled_from(CONDITIONS),
    "p95": st.integers(0, 9),
    "wait_seconds": st.none() | st.integers(0, 9),
}
FIGURES = st.dictionaries(
    st.sampled_from("ab"), st.fixed_dictionaries({}, optional=LEAVES), max_size=2
)


@given(st.lists(FIGURES, max_size=4), st.lists(FIGURES, max_size=4), st.randoms())
def test_order_and_grouping_change_nothing(first: list[Any], second: list[Any], luck: Any) -> None:
    whole = merge([*first, *second])
    assert merge([merge(first), merge(second)]) == whole
    shuffled = [*first, *second]
    luck.shuffle(shuffled)
    assert merge(shuffled) == whole
