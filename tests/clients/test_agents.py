"""Frameworks and SDKs that speak Responses by default, unchanged but for the address."""

from __future__ import annotations

import asyncio

import agents
import anthropic
import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from aigateway import AsyncGateway, openai_client
from aigateway.simulator import Answer
from tests.clients.conftest import CITY, NODE, SCHEMA, TOOL, agent
from tests.processes import PATIENCE
from tests.server.services import served

TOOLS = [{"type": "function", "name": TOOL, "parameters": SCHEMA, "strict": False}]


class Weather(BaseModel):
    city: str


@pytest.fixture(params=["at its address", "in this process"])
async def client(request, vendor, broken):
    if request.param == "in this process":
        configs = [broken.config(priority=1), vendor.config()]
        async with (
            AsyncGateway(configs, retry_rounds=0) as gateway,
            openai_client(gateway) as client,
        ):
            yield client
        return
    async with (
        served(broken, vendor) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


class TestOpenAI:
    async def test_whole(self, client):
        response = await client.responses.create(
            model="auto", instructions="Be brief.", input="one two three"
        )
        assert (response.output_text, response.status) == ("one two three", "completed")
        assert (response.usage.input_tokens, response.usage.output_tokens) == (5, 3)

    async def test_stream(self, client):
        async with client.responses.stream(model="auto", input="one two three") as stream:
            events = [event async for event in stream]
            whole = await stream.get_final_response()
        assert whole.output_text == "one two three"
        assert [event.sequence_number for event in events] == list(range(len(events)))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert deltas == ["one", " two", " three"]

    async def test_parse(self, client):
        parsed = await client.responses.parse(model="auto", input="Where?", text_format=Weather)
        assert parsed.output_parsed == Weather(city="text")

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_tools_after_reasoning(self, client, vendor, streamed):
        asked = {"model": "auto", "tools": TOOLS, "store": False}
        asked["include"] = ["reasoning.encrypted_content"]

        async def ask(items):
            if not streamed:
                return await client.responses.create(input=items, **asked)
            async with client.responses.stream(input=items, **asked) as stream:
                return await stream.get_final_response()

        vendor.answer(Answer(tool_calls=[(TOOL, CITY)], reasoning="Look outside."))
        said = [{"role": "user", "content": "Weather?"}]
        turn = (await ask(said)).output
        call = turn[-1]
        assert (call.type, call.name) == ("function_call", TOOL)
        vendor.answer("It is sunny.")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
        answer = await ask([*said, *turn, result])
        assert answer.output_text == "It is sunny."

    async def test_errors(self, client):
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="no-such-model", input="x")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="auto", input="x", temperature=9)
        assert refused.value.param == "temperature"


async def test_openai_agents(client, vendor):
    @agents.function_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"sun in {city}"

    vendor.answer(agent())
    agents.set_default_openai_client(client, use_for_tracing=False)
    agents.set_tracing_disabled(disabled=True)
    asked = agents.Agent(name="a", instructions="Be brief.", tools=[weather], model="auto")
    answer = await agents.Runner.run(asked, "Weather?")
    assert answer.final_output == "It is sunny."
    streamed = agents.Runner.run_streamed(asked, "Weather?")
    async for _ in streamed.stream_events():
        pass
    assert streamed.final_output == "It is sunny."


async def test_pydantic_ai(client, vendor):
    vendor.answer(agent())
    asked = Agent(OpenAIResponsesModel("auto", provider=OpenAIProvider(openai_client=client)))

    @asked.tool_plain
    def weather(city: str) -> str:
        return f"sun in {city}"

    assert (await asked.run("Weather?")).output == "It is sunny."
    async with asked.run_stream("Weather?") as stream:
        assert await stream.get_output() == "It is sunny."
    vendor.answer(None)
    typed = Agent(asked.model, output_type=Weather)
    assert (await typed.run("Where?")).output == Weather(city="text")


async def test_pydantic_ai_with_anthropics_protocol(url, vendor):
    vendor.answer(agent())
    async with anthropic.AsyncAnthropic(api_key="any", base_url=url, max_retries=0) as client:
        provider = AnthropicProvider(anthropic_client=client)
        asked = Agent(AnthropicModel("auto", provider=provider))

        @asked.tool_plain
        def weather(city: str) -> str:
            return f"sun in {city}"

        assert (await asked.run("Weather?")).output == "It is sunny."


@pytest.mark.parametrize("script", ["ai-sdk.mjs", "anthropic.mjs"])
async def test_sdks_for_node(url, vendor, program, script):
    vendor.answer(agent())
    assert "passed" in await program("node", NODE / script, url)


async def test_a_client_that_leaves_ends_the_call(sim):
    sim.openai.chunk_delay = 0.05
    async with AsyncGateway([sim.openai.config()]) as gateway:
        client = openai_client(gateway)
        stream = await client.responses.create(model="auto", input="a b " * 500, stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await client.close()
        async with asyncio.timeout(PATIENCE):
            while sim.openai.open_connections:  # noqa: ASYNC110 - nobody sets an event for it
                await asyncio.sleep(0.01)
