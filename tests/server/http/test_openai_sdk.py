"""The official SDK takes the service for OpenAI: base URL and key are all that changes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from aigateway.simulator import Answer, Fault
from tests.server.services import served

USER: Any = [{"role": "user", "content": "What is 2+2?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture
async def service(simulator):
    async with served(simulator.openai, simulator.anthropic) as (service, url):
        yield service, url


@pytest.fixture
async def client(service):
    _, url = service
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as made:
        yield made


async def test_chat(client):
    reply = await client.chat.completions.create(model="gpt-4o-mini", messages=USER)
    assert reply.choices[0].message.content == "4"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == "gpt-4o-mini"
    assert reply.usage.total_tokens == 4


async def test_a_request_that_can_be_mended(simulator, client, caplog):
    words = "Unsupported parameter: 'stop' is not for the secret prompt."
    for vendor in (simulator.openai, simulator.anthropic):
        vendor.behave(Fault.status(400, message=words))
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="auto", messages=USER, stop=["x"], stream=streamed
            )
        body: Any = caught.value.body
        assert (caught.value.param, body["detail"]) == ("stop", words)
        assert "secret prompt" not in body["message"] + caplog.text


async def test_what_sdks_send_along_is_no_trouble(client):
    reply = await client.chat.completions.create(
        model="auto",
        messages=USER,
        store=False,
        metadata={"team": "a"},
        user="u",
        service_tier="auto",
        safety_identifier="s",
        parallel_tool_calls=openai.omit,
        temperature=None,
        seed=7,
    )
    assert reply.choices[0].message.content == "4"


async def test_several_answers_and_logprobs(client):
    reply = await client.chat.completions.create(
        model="gpt-4o-mini", messages=USER, n=2, logprobs=True, top_logprobs=1
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.choices[1].logprobs.content[0].token == "4"


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"])
async def test_stream(client, model):
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "one two"}],
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "one two"
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_no_usage_chunk_unless_asked_for(client):
    stream = await client.chat.completions.create(model="gpt-4o-mini", messages=USER, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_streamed_answers_and_logprobs_side_by_side(client):
    async with client.chat.completions.stream(
        model="gpt-4o-mini", messages=USER, n=2, logprobs=True
    ) as stream:
        whole = await stream.get_final_completion()
    assert [choice.message.content for choice in whole.choices] == ["4", "4"]
    assert whole.choices[1].logprobs.content[0].token == "4"


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"])
async def test_tools_plain_and_streamed(client, simulator, model):
    for vendor in simulator.vendors:
        vendor.answer(Answer(tool_calls=[("add", {"a": 1}), ("add", {"a": 2})]))
    reply = await client.chat.completions.create(model=model, messages=USER, tools=TOOLS)
    assert reply.choices[0].finish_reason == "tool_calls"
    calls = reply.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"a": 1}, {"a": 2}]
    # Another question, so that it is streamed and not remembered.
    again: Any = [{"role": "user", "content": "And streamed?"}]
    async with client.chat.completions.stream(model=model, messages=again, tools=TOOLS) as stream:
        whole = await stream.get_final_completion()
    streamed = whole.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in streamed] == [{"a": 1}, {"a": 2}]
    # What was called, and what it gave, go back as the SDK has them.
    messages = [*USER, reply.choices[0].message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "2"} for call in calls]
    for vendor in simulator.vendors:
        vendor.answer("done")
    last = await client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
    assert last.choices[0].message.content == "done"


class Place(BaseModel):
    city: str
    people: int


async def test_structured_output(client):
    reply = await client.chat.completions.parse(
        model="gpt-4o-mini", messages=USER, response_format=Place
    )
    assert reply.choices[0].message.parsed == Place(city="text", people=1)


async def test_embeddings(client, simulator, service):
    model = "text-embedding-3-small"
    service[0].gateway.add_provider(simulator.openai.config(model=model, name="vectors"))
    # The SDK asks for base64 by itself and unpacks it; the vendor is asked for numbers.
    packed = await client.embeddings.create(model=model, input=["a", "b"], dimensions=4)
    plain = await client.embeddings.create(
        model=model, input=["a", "b"], dimensions=4, encoding_format="float"
    )
    assert [item.index for item in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
    assert packed.usage.total_tokens == 2
    for tokens, vectors in ([1, 2], 1), ([[1, 2], [3]], 2):
        answer = await client.embeddings.create(model=model, input=tokens)
        assert len(answer.data) == vectors
        assert simulator.openai.received[-1].body["input"] == [tokens, [tokens]][vectors == 1]


async def test_models(client, simulator, service):
    service[0].gateway.add_provider(simulator.gemini.config(aliases=("fast",)))
    names = [model.id async for model in client.models.list()]
    assert names[:3] == ["auto", "gpt-4o-mini", "openai/gpt-4o-mini"]
    assert "fast" in names
    assert (await client.models.retrieve("openai/gpt-4o-mini")).owned_by == "openai"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody/knows")


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        (Fault.bad_request(), openai.BadRequestError, None),
        (Fault.context_window(), openai.BadRequestError, "context_length_exceeded"),
        (Fault.content_policy(), openai.BadRequestError, "content_policy_violation"),
        (Fault.rate_limited(2), openai.RateLimitError, "rate_limit_exceeded"),
        (Fault.bad_key(), openai.InternalServerError, "all_providers_failed"),
        (Fault.server_error(), openai.InternalServerError, "all_providers_failed"),
        (Fault.reset(), openai.InternalServerError, "all_providers_failed"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors(client, simulator, fault, error, code, stream):
    for vendor in simulator.vendors:
        vendor.behave(fault)
    with pytest.raises(error) as caught:
        await client.chat.completions.create(model="gpt-4o-mini", messages=USER, stream=stream)
    assert caught.value.code == code
    assert caught.value.request_id
    if error is openai.RateLimitError:
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 2


async def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-4o-mimi", messages=USER)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "gpt-4o-mini" in str(caught.value)


async def test_a_break_in_a_stream_is_an_api_error(client, simulator):
    simulator.openai.behave(Fault.cut_stream(after=1))
    stream = await client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "one two three"}],
        stream=True,
    )
    first = await anext(stream)
    assert first.choices[0].delta.content == "one"
    with pytest.raises(openai.APIError, match="broke after its first content"):
        await anext(stream)


async def test_the_headers_say_who_served(client):
    answers = [
        await client.chat.completions.with_raw_response.create(model="auto", messages=USER)
        for _ in range(2)
    ]
    first, again = (answer.headers for answer in answers)
    assert first["x-aigateway-provider"] == again["x-aigateway-provider"] == "openai/gpt-4o-mini"
    assert (first["x-aigateway-cache"], again["x-aigateway-cache"]) == ("miss", "hit")
    assert (first["x-aigateway-attempts"], again["x-aigateway-attempts"]) == ("1", "0")
    assert float(first["x-aigateway-cost"]) > 0
    assert again["x-aigateway-cost"] == "0"


async def test_the_synchronous_client(service, simulator):
    model = simulator.openai.embedding_model
    service[0].gateway.add_provider(simulator.openai.config(model=model, priority=-1))

    def ask():
        # The key is the application's own, and none is needed here.
        with openai.OpenAI(base_url=f"{service[1]}/v1", api_key="any", max_retries=0) as client:
            plain = client.chat.completions.create(model="auto", messages=USER)
            stream = client.chat.completions.create(model="auto", messages=USER, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="nobody", messages=USER)
            vectors = client.embeddings.create(model=model, input="a")
            return plain.choices[0].message.content, text, len(vectors.data)

    assert await asyncio.to_thread(ask) == ("4", "4", 1)


async def test_failover_is_not_the_clients_affair(client, simulator):
    simulator.openai.behave(Fault.server_error())
    answer = await client.chat.completions.with_raw_response.create(model="auto", messages=USER)
    assert answer.parse().choices[0].message.content == "4"
    assert answer.headers["x-aigateway-provider"] == "anthropic/claude-haiku-4-5"
    assert answer.headers["x-aigateway-attempts"] == "2"


async def test_a_client_that_gives_up_is_no_failure(client, simulator, service):
    simulator.openai.behave(Fault.hang())
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=httpx.Timeout(0.1)).chat.completions.create(
            model="auto", messages=USER
        )
    simulator.openai.recover()
    reply = await client.chat.completions.create(model="auto", messages=USER)
    assert reply.choices[0].message.content == "4"
    assert service[0].gateway.get_metrics()["providers"]["openai/gpt-4o-mini"]["failures"] in (
        {},
        {"cancelled": 1},
    )
