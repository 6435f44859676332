"""OpenAI's SDK speaks Responses to the service, in front of vendors that do not."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from aigateway.simulator import Answer, Fault
from tests.server.services import served

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Look up the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwAD"
    "hgGAWjR9awAAAABJRU5ErkJggg=="
)
WIRES = ["openai", "azure", "gemini", "anthropic", "openai_compatible"]


@pytest.fixture(params=WIRES)
async def vendor(request, simulator):
    made = getattr(simulator, request.param, None)
    made = made or await simulator.add(request.param)
    made.strict = True
    return made


@pytest.fixture
async def client(vendor):
    models = {"gemini": "gemini-3-pro-preview", "anthropic": "claude-sonnet-4-5"}
    fields = {"model": models.get(vendor.wire, vendor.model)}
    async with (
        served(vendor, fields=fields) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as made,
    ):
        yield made


def chats(vendor):
    return [r.body for r in vendor.received if not r.path.endswith("/responses")]


def said_in(body):
    return json.dumps(body)


async def streamed(client, **request):
    """The events of a stream, put together by the SDK, and its response."""
    names = []
    async with client.responses.stream(**request) as stream:
        async for event in stream:
            names.append(event.type)
        return names, await stream.get_final_response()


async def test_text(client, vendor):
    response = await client.responses.create(
        model="auto",
        instructions="Be brief.",
        input="What is 2+2?",
        max_output_tokens=100,
        store=True,
        metadata={"team": "a"},
        include=["reasoning.encrypted_content"],
        extra_body={"client_metadata": {"x": "y"}},
    )
    assert response.output_text == "4"
    assert response.status == "completed"
    assert (response.instructions, response.metadata) == ("Be brief.", {"team": "a"})
    assert response.to_dict()["store"] is False
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert "Be brief." in said_in(chats(vendor)[-1])
    assert Response.model_validate(response.to_dict(), strict=True)


async def test_stream(client):
    names, response = await streamed(client, model="auto", input="one two three")
    assert response.output_text == "one two three"
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert response.usage.total_tokens > 0


@pytest.mark.parametrize("whole", [True, False])
async def test_a_loop_with_tools_and_reasoning(client, vendor, whole):
    vendor.answer(
        Answer(tool_calls=[("weather", {"city": "Rome"})], reasoning="Let me look it up.")
    )
    user: Any = {"role": "user", "content": "How is Rome?"}
    request: Any = {
        "model": "auto",
        "tools": [WEATHER],
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
    }
    if whole:
        response = await client.responses.create(input=[user], **request)
    else:
        _, response = await streamed(client, input=[user], **request)
    call = next(item for item in response.output if item.type == "function_call")
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
    shown = [part.text for item in response.output if item.type == "reasoning" for part in item.summary]
    assert shown == (["Let me look it up."] if vendor.wire != "azure" else shown)

    vendor.answer("Sunny.")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    replayed = [item.to_dict(mode="json") for item in response.output]
    response = await client.responses.create(input=[user, *replayed, result], **request)
    assert response.output_text == "Sunny."
    sent = said_in(chats(vendor)[-1]["contents" if vendor.wire == "gemini" else "messages"])
    # The simulated vendors check the signatures.
    assert ("signature" in sent) is (vendor.wire == "anthropic")
    assert ("thoughtSignature" in sent) is (vendor.wire == "gemini")
