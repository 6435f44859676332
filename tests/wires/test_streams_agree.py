"""Both lanes, shape by shape and fault by fault, when the answer is a stream.

What the server received, what the caller was given, and the answer it adds up to. Chunks may be
cut differently; what they add up to may not.
"""

import asyncio
import dataclasses

import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import FailureKind
from aigateway.simulator import Answer, Fault
from aigateway.wires.client import VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.wires.bodies import GEMINI, Vendor
from tests.wires.calls import KINDS, WIRES, asking
from tests.wires.shapes import ANSWERS, NOT_CARRIED, SHAPES, agree

FAULTS = {
    "error-event-first": Fault.error_event(),
    "error-event-later": Fault.error_event(2),
    "cut-first": Fault.cut_stream(),
    "cut-later": Fault.cut_stream(2),
    "cut-hard": Fault.cut_stream(2, clean=False),
    "reset": Fault.reset(),
    "reset-in-body": Fault.reset_in_body(),
    "malformed": Fault.malformed(),
    "empty": Fault.empty(),
    "html": Fault.html(),
    "error-in-200": Fault.error_in_200(),
    "no-choices": Fault.no_choices(),
    "no-usage": Fault.no_usage(),
    "content-policy": Fault.content_policy(),
    "context-window": Fault.context_window(),
    "bad-key": Fault.bad_key(),
    "model-not-found": Fault.model_not_found(),
    "rate-limited": Fault.rate_limited(7),
    "overloaded": Fault.overloaded(3),
    "no-credit": Fault.no_credit(),
    "server-error": Fault.server_error(502),
    "refuse": Fault.refuse(),
    "redirect": Fault.redirect(),
}


OF_A_WIRE = {
    "content-policy",
    "cut-first",
    "cut-hard",
    "cut-later",
    "error-event-first",
    "error-event-later",
    "error-in-200",
    "malformed",
    "no-choices",
    "no-usage",
}
"""Faults that look different on each kind of wire. The others are the same on all."""

STREAMED = [
    (shape, wire)
    for place, shape in enumerate(SHAPES)
    for turn, wire in enumerate(WIRES)
    if turn == place % len(WIRES) or shape in {"plain", "tools", "n", "logprobs", "reasoning"}
]
"""The translation of a request is the same as without a stream: each shape on one wire, and on all
those that the stream itself may depend on."""


async def outcome_of(kind, vendor, request, **options):
    """What the server received, what came before a failure, and how it ended."""
    vendor.clear()
    client = kind(vendor.config(), SYSTEM_CLOCK, **options)
    said = []
    try:
        try:
            stream = await client.stream(request)
            try:
                while (chunks := await stream.read()) is not None:
                    said += chunks
                result = dataclasses.replace(stream.completion(), created=0, id="")
            finally:
                await stream.aclose()
        except VendorCallError as error:
            result = error.failure
        got = vendor.received
        return result, got[0] if got else None, said
    finally:
        await client.aclose()


def added_up(said):
    """What a caller can put together from chunks."""
    calls = [(c.index, d.index, d.name, d.arguments) for c in said for d in c.tool_calls]
    return {
        (index, field): "".join(getattr(c, field) or "" for c in said if c.index == index)
        for index in {chunk.index for chunk in said}
        for field in ("text", "reasoning", "refusal")
    } | {
        (index, call): "".join(name + text for i, c, name, text in calls if (i, c) == (index, call))
        for index, call, *_ in calls
    }


def streams_agree(ours, theirs):
    agree(ours[:2], theirs[:2])
    if getattr(ours[0], "kind", None) is FailureKind.CONNECTION:
        return  # how much of what was under way still arrives is chance
    assert added_up(ours[2]) == added_up(theirs[2])


async def both(vendor, request, **options):
    ours = await outcome_of(DirectClient, vendor, request, **options)
    theirs = await outcome_of(LiteLLMClient, vendor, request, **options)
    streams_agree(ours, theirs)
    return ours[1]


@pytest.mark.parametrize(("shape", "vendor"), STREAMED, indirect=["vendor"])
async def test_every_shape(vendor, shape):
    sent = await both(vendor, SHAPES[shape])
    if sent is not None:
        carried = sent.headers["user-agent"].startswith("aigateway/")
        assert carried == (vendor.name not in NOT_CARRIED.get(shape, ()))


@pytest.mark.parametrize("shape", ["n", "user"])
async def test_what_is_dropped(vendor, shape):
    await both(vendor, SHAPES[shape], drop_unsupported_params=True)


async def test_stream_options_of_the_callers_own(vendor):
    options = {"include_usage": False, "include_obfuscation": False}
    sent = await both(vendor, asking(stream_options=options))
    if vendor.name in {"openai", "azure"}:
        assert sent.body["stream_options"] == {**options, "include_usage": True}
    assert sent.headers["user-agent"].startswith("aigateway/")


@pytest.mark.parametrize("answer", ANSWERS)
async def test_every_kind_of_answer(vendor, answer):
    vendor.answer(ANSWERS[answer])
    request = SHAPES["tools" if "tool" in answer else "plain"]
    await both(vendor, request)


@pytest.mark.parametrize(
    ("fault", "vendor"),
    [
        (fault, wire)
        for place, fault in enumerate(FAULTS)
        for wire in ((WIRES[place % 2], *KINDS[1:]) if fault in OF_A_WIRE else (WIRES[place % 4],))
    ],
    indirect=["vendor"],
)
async def test_every_fault(vendor, fault):
    request = asking("one two three four")
    outcomes = []
    for kind in (DirectClient, LiteLLMClient):
        vendor.behave(FAULTS[fault])
        outcomes.append(await outcome_of(kind, vendor, request))
        vendor.recover()
    streams_agree(*outcomes)


async def test_a_stall_is_the_callers_to_end(vendor):
    for kind in (DirectClient, LiteLLMClient):
        vendor.behave(Fault.stall_stream(2))
        client = kind(vendor.config(), SYSTEM_CLOCK)
        stream = await client.stream(asking("one two three four"))
        text = ""
        while text != "one two":
            text += "".join(chunk.text for chunk in await stream.read() or ())
        with pytest.raises(TimeoutError):  # noqa: PT012 - of all that it reads
            async with asyncio.timeout(0.1):
                while True:
                    chunks = await stream.read()
                    assert chunks is not None
                    assert not any(chunk.text for chunk in chunks)
        assert not stream.finished
        await stream.aclose()
        await client.aclose()


async def test_a_stream_without_a_count_has_no_price(vendor):
    vendor.behave(Fault.no_usage())
    for kind in (DirectClient, LiteLLMClient):
        completion = (await outcome_of(kind, vendor, asking()))[0]
        assert (completion.usage.total_tokens, completion.cost_usd) == (0, None)


async def costs_of_a_stream(config):
    """Return what a stream costs on our own lane, and on litellm's."""
    costs = []
    for kind in (DirectClient, LiteLLMClient):
        client = kind(config, SYSTEM_CLOCK)
        stream = await client.stream(asking())
        while await stream.read() is not None:
            pass
        costs.append(stream.completion().cost_usd)
        await client.aclose()
    return costs


@pytest.mark.parametrize("tokens", [90_000, 250_000])
async def test_long_prompts_have_the_price_that_litellm_knows(simulator, tokens):
    vendor = simulator.gemini
    usage = {"prompt_tokens": tokens, "completion_tokens": 100, "total_tokens": tokens + 100}
    vendor.answer(Answer("4", usage=usage))
    costs = await costs_of_a_stream(vendor.config(model="gemini-2.5-pro"))
    assert costs[0] == pytest.approx(costs[1])
    assert (costs[0] or 0) > 0.1


GROUNDED = {"groundingMetadata": {"webSearchQueries": ["x"]}}


@pytest.mark.parametrize("grounded", [(GROUNDED, {}), ({}, GROUNDED), (GROUNDED, GROUNDED)])
async def test_searches_have_the_price_that_litellm_knows(grounded):
    async with Vendor() as vendor:
        vendor.events = [
            {
                "candidates": [
                    {"index": 0, "content": {"role": "model", "parts": [{"text": "Hi"}]}} | more
                ],
                "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 2},
                "modelVersion": "gemini-2.5-flash",
                "responseId": "1",
            }
            for more in (grounded[0], grounded[1] | {"finishReason": "STOP"})
        ]
        costs = await costs_of_a_stream(vendor.config(GEMINI, model="gemini-2.5-flash"))
    assert costs[0] == pytest.approx(costs[1])
    assert (costs[0] or 0) > 0.01
