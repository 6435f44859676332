"""The official SDK takes the simulator for OpenAI and for Azure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from aigateway.simulator import Answer, Fault, SimulatedVendor, Simulator

USER: Any = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(params=["openai", "azure", "openai_compatible"])
async def target(request, sim: Simulator) -> SimulatedVendor:
    if request.param == "openai_compatible":
        return await sim.add(request.param)
    vendor = getattr(sim, request.param)
    assert isinstance(vendor, SimulatedVendor)
    return vendor


@pytest.fixture
async def client(target: SimulatedVendor) -> AsyncIterator[openai.AsyncOpenAI]:
    options: dict[str, Any] = {"api_key": target.key, "max_retries": 0, "timeout": 5}
    if target.wire == "azure":
        made: openai.AsyncOpenAI = openai.AsyncAzureOpenAI(
            azure_endpoint=target.url, api_version="2024-10-21", **options
        )
    else:
        made = openai.AsyncOpenAI(base_url=target.api_base, **options)
    async with made:
        yield made


async def test_chat(client, target):
    target.keys = frozenset({target.key})
    reply = await client.chat.completions.create(model="m", messages=USER)
    assert reply.choices[0].message.content == "4"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == 4
    assert reply.model == "m"


async def test_stream(client):
    stream = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "one two"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "one two"
    assert chunks[-1].usage.completion_tokens == 2


async def test_tools_plain_and_streamed(client, target):
    target.answer(Answer(tool_calls=[("add", {"a": 1}), ("add", {"a": 2})]))
    reply = await client.chat.completions.create(model="m", messages=USER)
    calls = reply.choices[0].message.tool_calls
    assert [call.function.arguments for call in calls] == ['{"a": 1}', '{"a": 2}']
    async with client.chat.completions.stream(model="m", messages=USER) as stream:
        whole = await stream.get_final_completion()
    streamed = whole.choices[0].message.tool_calls
    assert [call.function.arguments for call in streamed] == ['{"a": 1}', '{"a": 2}']


class Place(BaseModel):
    city: str
    people: int


async def test_structured_output(client):
    reply = await client.chat.completions.parse(model="m", messages=USER, response_format=Place)
    assert reply.choices[0].message.parsed == Place(city="text", people=1)


async def test_embeddings(client):
    # The SDK asks for base64 by itself and unpacks it.
    reply = await client.embeddings.create(model="emb", input=["a", "b"], dimensions=4)
    assert [len(item.embedding) for item in reply.data] == [4, 4]


async def test_models(client, target):
    if target.wire != "azure":
        assert [model.id async for model in client.models.list()] == [target.model]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.bad_request(), openai.BadRequestError),
        (Fault.context_window(), openai.BadRequestError),
        (Fault.content_policy(), openai.BadRequestError),
        (Fault.bad_key(), openai.AuthenticationError),
        (Fault.forbidden(), openai.PermissionDeniedError),
        (Fault.region(), openai.PermissionDeniedError),
        (Fault.model_not_found(), openai.NotFoundError),
        (Fault.status(409), openai.ConflictError),
        (Fault.status(422), openai.UnprocessableEntityError),
        (Fault.rate_limited(2), openai.RateLimitError),
        (Fault.insufficient_quota(), openai.RateLimitError),
        (Fault.server_error(), openai.InternalServerError),
        (Fault.overloaded(), openai.InternalServerError),
        (Fault.reset(), openai.APIConnectionError),
        (Fault.refuse(), openai.APIConnectionError),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_errors(client, target, fault, error):
    target.behave(fault)
    with pytest.raises(error) as caught:
        await client.chat.completions.create(model="m", messages=USER)
    if isinstance(caught.value, openai.APIStatusError):
        assert caught.value.request_id or target.wire == "azure"


async def test_codes_reach_the_caller(client, target):
    target.behave(Fault.context_window(), Fault.insufficient_quota())
    codes = []
    for _ in range(2):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="m", messages=USER)
        codes.append(caught.value.code)
    assert codes == ["context_length_exceeded", "insufficient_quota"]


async def test_timeout(client, target):
    target.behave(Fault.hang())
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.05).chat.completions.create(model="m", messages=USER)


async def test_an_error_in_a_stream(client, target):
    target.behave(Fault.error_event(after=1))
    stream = await client.chat.completions.create(model="m", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="had an error"):
        _ = [chunk async for chunk in stream]
