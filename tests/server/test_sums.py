"""The metrics of several gateways as those of one."""

from hypothesis import given
from hypothesis import strategies as st

from aigateway import AsyncGateway
from aigateway.server.process.totals import summed_metrics
from aigateway.testing import scripted_configs

COUNT = st.integers(0, 1000)


async def figures_of(vendor, prompts, **settings):
    async with AsyncGateway(scripted_configs("a", "b"), vendor=vendor, **settings) as gateway:
        for prompt in prompts:
            await gateway.chat(prompt)
        return gateway.get_metrics()


async def test_one_alone_is_as_it_is(vendor):
    figures = await figures_of(vendor, ["x", "y", "x"])
    assert summed_metrics([figures]) == figures


async def test_counts_are_added_and_rates_made_anew(vendor):
    first = await figures_of(vendor, ["x", "x", "x"])
    second = await figures_of(vendor, ["y"])
    whole = summed_metrics([first, second])
    assert (whole["total_requests"], whole["cache_hits"]) == (4, 2)
    assert whole["cache_hit_rate_percent"] == 50.0
    assert whole["providers_active"] == 2
    assert whole["cost_usd"] == round(first["cost_usd"] + second["cost_usd"], 10)
    assert whole["cache"]["max_entries"] == first["cache"]["max_entries"]
    provider = whole["providers"]["a"]
    assert (provider["attempts"], provider["circuit_state"]) == (2, "closed")
    latencies = [each["providers"]["a"]["latency_seconds"]["p99"] for each in (first, second)]
    assert provider["latency_seconds"]["p99"] == max(latencies)


@given(
    st.lists(st.tuples(COUNT, COUNT, st.sampled_from(["closed", "half_open", "open"])), min_size=1)
)
def test_whatever_the_parts_say(parts):
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
    whole = summed_metrics(figures)
    states = [state for _, _, state in parts]
    worst = next(word for word in ("open", "half_open", "closed") if word in states)
    assert whole["total_requests"] == sum(total for total, _, _ in parts)
    assert whole["providers"]["a"]["circuit_state"] == worst
    assert whole["providers_active"] == any(state != "open" for state in states)
