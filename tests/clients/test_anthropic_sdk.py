"""Anthropic's SDK for Python takes the service for Anthropic, whichever vendor answers."""

from __future__ import annotations

import anthropic
import pytest

from aigateway import AsyncGateway, ConfigurationError, anthropic_client
from aigateway.simulator import Answer, Fault
from tests.clients.conftest import CITY, SCHEMA, TOOL, agent
from tests.server.services import served

SAID = [{"role": "user", "content": "one two three"}]
TOOLS = [{"name": TOOL, "description": "The weather of a city.", "input_schema": SCHEMA}]
THINKING = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(params=["at its address", "in this process"])
async def client(request, vendor, broken):
    if request.param == "in this process":
        configs = [broken.config(priority=1), vendor.config()]
        async with AsyncGateway(configs, retry_rounds=0) as gateway:
            async with anthropic_client(gateway) as client:
                yield client
            vendor.recover()
            assert (await gateway.chat("open still")).text
        return
    async with (
        served(broken, vendor) as (_, url),
        anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client,
    ):
        yield client


async def test_chat(client):
    message = await client.messages.create(
        model="auto", max_tokens=99, system="Be brief.", messages=SAID
    )
    assert message.content[0].text == "one two three"
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (5, 3)


async def test_stream(client):
    async with client.messages.stream(model="auto", max_tokens=99, messages=SAID) as stream:
        assert [text async for text in stream.text_stream] == ["one", " two", " three"]
        message = await stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 3


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_and_thinking(client, vendor, streamed):
    asked = {"model": "auto", "max_tokens": 4000, "tools": TOOLS, "thinking": THINKING}

    async def ask(messages):
        if not streamed:
            return await client.messages.create(messages=messages, **asked)
        async with client.messages.stream(messages=messages, **asked) as stream:
            return await stream.get_final_message()

    vendor.answer(Answer(tool_calls=[(TOOL, CITY)], reasoning="Look outside."))
    turn = await ask(SAID)
    assert turn.stop_reason == "tool_use"
    call = turn.content[-1]
    assert (call.name, call.input) == (TOOL, CITY)
    if vendor.wire in {"anthropic", "gemini"}:
        assert turn.content[0].thinking == "Look outside."
    vendor.answer("It is sunny.")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun"}
    history = [*SAID, {"role": "assistant", "content": turn.content}]
    answer = await ask([*history, {"role": "user", "content": [result]}])
    assert answer.content[-1].text == "It is sunny."


async def test_the_tool_runner(client, vendor):
    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """The weather of a city."""
        return f"sun in {city}"

    vendor.answer(agent())
    runner = client.beta.messages.tool_runner(
        model="auto", max_tokens=99, messages=SAID, tools=[weather]
    )
    answer = await runner.until_done()
    assert answer.content[-1].text == "It is sunny."


async def test_tokens_are_counted(client):
    counted = await client.messages.count_tokens(model="auto", messages=SAID)
    assert counted.input_tokens > 0


async def test_errors(client, vendor):
    with pytest.raises(anthropic.BadRequestError) as refused:
        await client.messages.create(model="auto", max_tokens=0, messages=SAID)
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await client.messages.create(model="no-such-model", max_tokens=9, messages=SAID)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    vendor.behave(Fault.cut_stream(after=1, clean=False))
    with pytest.raises(anthropic.APIError):
        async with client.messages.stream(model="auto", max_tokens=9, messages=SAID) as stream:
            await stream.until_done()
    vendor.behave(Fault.server_error())
    with pytest.raises(anthropic.APIStatusError) as failed:
        await client.messages.create(model="auto", max_tokens=9, messages=SAID)
    assert failed.value.status_code >= 500


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "anthropic", None)
    with pytest.raises(ConfigurationError, match=r'pip install "aigateway\[anthropic\]"'):
        anthropic_client(AsyncGateway([]))
