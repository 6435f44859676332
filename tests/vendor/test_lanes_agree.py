"""Both lanes, shape by shape: the same request at the server, the same answer to the caller.

Where the direct lane does not carry a request, it says so by sending it the other way; the table
names which. Headers differ by what SDKs add about themselves; the ones that matter are compared.
"""

import dataclasses

import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.simulator import Answer, ToolCall
from aigateway.vendor.client import VendorCallError
from aigateway.vendor.direct_lane import DirectClient
from aigateway.vendor.litellm_lane import LiteLLMClient
from tests.vendor.calls import WIRES, asking

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA"
    "60e6kgAAAABJRU5ErkJggg=="
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look outside.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "Sum",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"total": {"type": "integer"}},
            "required": ["total"],
            "additionalProperties": False,
        },
    },
}
TOOL_USE = (
    "What is the weather?",
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Snow."},
)
PICTURE = {
    "role": "user",
    "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ],
}
SYSTEM = {"role": "system", "content": "You are terse."}

SHAPES = {
    "plain": asking("What is 2+2?"),
    "system": asking(SYSTEM, "What is 2+2?"),
    "multi-turn": asking("Hi", {"role": "assistant", "content": "Hello."}, "And 2+2?"),
    "two-user-turns": asking("Hi", "And 2+2?"),
    "unicode": asking("Ærlig talt: 2+2 = 4? 🎉"),
    "tools": asking("Weather?", tools=[TOOL]),
    "tool-choice": asking("Weather?", tools=[TOOL], tool_choice="required"),
    "one-tool": asking(
        "Weather?",
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    ),
    "serial-tools": asking("Weather?", tools=[TOOL], parallel_tool_calls=False),
    "tool-results": asking(*TOOL_USE, tools=[TOOL]),
    "image": asking(PICTURE),
    "schema": asking("2+2?", response_format=SCHEMA),
    "stop": asking("2+2?", stop=["x", "y"]),
    "one-stop": asking("2+2?", stop="x"),
    "sampling": asking("2+2?", temperature=0.2, top_p=0.9),
    "cold": asking("2+2?", temperature=0),
    "max-tokens": asking("2+2?", max_tokens=50),
    "max-completion-tokens": asking("2+2?", max_completion_tokens=50),
    "seed": asking("2+2?", seed=7),
    "penalties": asking("2+2?", presence_penalty=0.5, frequency_penalty=-0.5),
    "n": asking("2+2?", n=3),
    "logprobs": asking("2+2?", logprobs=True, top_logprobs=2),
    "logit-bias": asking("2+2?", logit_bias={"50256": -100}),
    "user": asking("2+2?", user="someone"),
    "reasoning": asking("2+2?", reasoning_effort="low"),
    "rare": asking("2+2?", service_tier="auto"),
    "developer": asking({"role": "developer", "content": "You are terse."}, "2+2?"),
    "marked-tool": asking("Weather?", tools=[{**TOOL, "cache_control": {"type": "ephemeral"}}]),
    "json-object": asking("Say JSON", response_format={"type": "json_object"}),
}
NOT_CARRIED = {
    "rare": WIRES,
    "developer": WIRES,
    "marked-tool": WIRES,
    "json-object": ("anthropic",),
}
"""Shapes that the direct lane leaves to the other one."""

ANSWERS = {
    "text": None,
    "tool-call": Answer(tool_calls=(ToolCall("weather", {"city": "Oslo"}),)),
    "two-tool-calls": Answer(
        "Let me look.",
        tool_calls=(ToolCall("weather", {"city": "Oslo"}), ToolCall("weather", {"city": "Bergen"})),
    ),
    "cut-off": Answer("Once upon", finish_reason="length"),
    "reasoning": Answer("4", reasoning="Two and two."),
}
MATTERING = ("authorization", "api-key", "x-goog-api-key", "x-api-key", "anthropic-version")


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


def without_ids(completion):
    """Tool call ids are random on the wires that send none."""
    choices = tuple(
        dataclasses.replace(
            choice, tool_calls=tuple(dataclasses.replace(c, id="") for c in choice.tool_calls)
        )
        for choice in getattr(completion, "choices", ())
    )
    return dataclasses.replace(completion, choices=choices) if choices else completion


def agree(ours, theirs):
    mine, others = without_ids(ours[0]), without_ids(theirs[0])
    cost, other_cost = getattr(mine, "cost_usd", None), getattr(others, "cost_usd", None)
    if cost is not None:
        assert cost == pytest.approx(other_cost)
        mine = dataclasses.replace(mine, cost_usd=other_cost)
    assert mine == others
    if theirs[1] is None:
        assert ours[1] is None
        return
    assert (ours[1].method, ours[1].path, ours[1].query) == (
        theirs[1].method,
        theirs[1].path,
        theirs[1].query,
    )
    assert ours[1].body == theirs[1].body
    for header in MATTERING:
        assert ours[1].headers.get(header) == theirs[1].headers.get(header)


@pytest.mark.parametrize("drop", [False, True], ids=["strict", "drop"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_every_shape(vendor, shape, drop):
    request = SHAPES[shape]
    theirs = await outcome_of(LiteLLMClient, vendor, request, drop_unsupported_params=drop)
    ours = await outcome_of(DirectClient, vendor, request, drop_unsupported_params=drop)
    agree(ours, theirs)
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
    before = repr(request)
    await outcome_of(DirectClient, vendor, request)
    assert repr(request) == before
