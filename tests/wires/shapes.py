"""Requests of every shape and answers of every kind, and what it means that two lanes agree."""

import dataclasses
import json

import pytest

from aigateway.simulator import Answer, ToolCall
from tests.wires.calls import WIRES, asking

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
    "top-k": asking("2+2?", top_k=5),
    "seed": asking("2+2?", seed=7),
    "penalties": asking("2+2?", presence_penalty=0.5, frequency_penalty=-0.5),
    "n": asking("2+2?", n=3),
    "logprobs": asking("2+2?", logprobs=True, top_logprobs=2),
    "logit-bias": asking("2+2?", logit_bias={"50256": -100}),
    "user": asking("2+2?", user="someone"),
    "reasoning": asking("2+2?", reasoning_effort="low"),
    "rare": asking("2+2?", extra_headers={"X-Extra": "1"}),
    "developer": asking({"role": "developer", "content": "You are terse."}, "2+2?"),
    "marked-tool": asking("Weather?", tools=[{**TOOL, "cache_control": {"type": "ephemeral"}}]),
    "json-object": asking("Say JSON", response_format={"type": "json_object"}),
}
NOT_CARRIED = {
    "rare": WIRES,
    "developer": WIRES,
    "marked-tool": ("gemini", "anthropic"),
    "json-object": ("anthropic",),
}
"""Shapes that the direct lane leaves to the other one."""

ON_EACH_KIND = [
    (shape, wire)
    for place, shape in enumerate(SHAPES)
    for wire in (WIRES[place % 2], "gemini", "anthropic")
] + [("plain", "azure"), ("tools", "openai"), ("schema", "openai")]
"""Each shape on each kind of wire: on OpenAI's by OpenAI and Azure in turn."""

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


def sorted_json(text):
    return json.dumps(json.loads(text), sort_keys=True)


def without_ids(completion):
    """Tool call ids are random on the wires that send none; the order in logprobs means nothing."""
    choices = tuple(
        dataclasses.replace(
            choice,
            tool_calls=tuple(dataclasses.replace(c, id="") for c in choice.tool_calls),
            logprobs_json=choice.logprobs_json and sorted_json(choice.logprobs_json),
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
