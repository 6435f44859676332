"""Both lanes, shape by shape: the same request at the server, the same answer to the caller.

Where the direct lane does not carry a request, it says so by sending it the other way; the table
names which. Headers differ by what SDKs add about themselves; the ones that matter are compared.
"""

import dataclasses

import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.simulator import Answer
from aigateway.wires.client import VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.wires.shapes import ANSWERS, NOT_CARRIED, ON_EACH_KIND, SHAPES, agree


async def outcome_of(kind, vendor, request, **options):
    """What the server received and what the caller got, from one lane."""
    vendor.clear()
    client = kind(vendor.config(), SYSTEM_CLOCK, **options)
    try:
        try:
            result = dataclasses.replace(await client.chat(request), created=0, id="")
        except VendorCallError as error:
            result = error.failure
        got = vendor.received
        return result, got[0] if got else None
    finally:
        await client.aclose()


async def both(vendor, request, **options):
    theirs = await outcome_of(LiteLLMClient, vendor, request, **options)
    ours = await outcome_of(DirectClient, vendor, request, **options)
    agree(ours, theirs)
    return ours


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("shape", ["n", "logprobs", "seed", "user"])
async def test_what_is_dropped(vendor, shape, drop):
    await both(vendor, SHAPES[shape], drop_unsupported_params=drop)


@pytest.mark.parametrize(("shape", "vendor"), ON_EACH_KIND, indirect=["vendor"])
async def test_every_shape(vendor, shape):
    ours = await both(vendor, SHAPES[shape])
    if ours[1] is not None:
        carried = ours[1].headers["user-agent"].startswith("aigateway/")
        assert carried == (vendor.name not in NOT_CARRIED.get(shape, ()))


@pytest.mark.parametrize("answer", ANSWERS)
async def test_every_kind_of_answer(vendor, answer):
    vendor.answer(ANSWERS[answer])
    request = SHAPES["tools" if "tool" in answer else "plain"]
    agree(
        await outcome_of(DirectClient, vendor, request),
        await outcome_of(LiteLLMClient, vendor, request),
    )


@pytest.mark.parametrize("tokens", [90_000, 250_000])
async def test_long_prompts_have_the_price_that_litellm_knows(simulator, tokens):
    vendor = simulator.gemini
    usage = {"prompt_tokens": tokens, "completion_tokens": 100, "total_tokens": tokens + 100}
    vendor.answer(Answer("4", usage=usage))
    costs = []
    for kind in (DirectClient, LiteLLMClient):
        client = kind(vendor.config(model="gemini-2.5-pro"), SYSTEM_CLOCK)
        costs.append((await client.chat(SHAPES["plain"])).cost_usd)
        await client.aclose()
    assert costs[0] == pytest.approx(costs[1])
    assert (costs[0] or 0) > 0.1


async def test_the_request_is_not_changed(vendor):
    request = SHAPES["tool-results"]
    before = repr(dataclasses.asdict(request))
    await outcome_of(DirectClient, vendor, request)
    assert repr(dataclasses.asdict(request)) == before
