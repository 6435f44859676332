"""Calls as applications write them. A line with `# error` must fail in both checkers, and no other.

`# error: mypy` or `# error: pyright` is one that only that checker sees.
"""

from __future__ import annotations

import asyncio
from typing import Any, assert_type

import openai
from pydantic import BaseModel

from aigateway import (
    AsyncGateway,
    ChatOptions,
    ChatRequest,
    ChatResponse,
    ChatStream,
    Chunk,
    EmbeddingResponse,
    GatewaySettings,
    LLMConfig,
    StreamOptions,
    call_llm,
    get_gateway,
    openai_client,
)


class City(BaseModel):
    name: str


def settings(read: dict[str, Any]) -> None:
    AsyncGateway(timeout=3, hedge=True, agent_ttls={"market": 60}, middleware=["package.m:name"])
    AsyncGateway([LLMConfig("openai", "m", priority=3)], failover_on_rejection="once")
    AsyncGateway(**read)
    AsyncGateway(timout=3)  # error
    AsyncGateway(timeout="3")  # error
    AsyncGateway(failover_on_rejection="twice")  # error
    AsyncGateway(cache_max_entries=1.5)  # error
    GatewaySettings(timeout=3)
    GatewaySettings(timout=3)  # error
    LLMConfig("openai", "m", priorty=3)  # error


async def chat(gateway: AsyncGateway, read: dict[str, Any], shared: ChatOptions) -> None:
    assert_type(await gateway.chat("Hi."), ChatResponse[None])
    assert_type((await gateway.chat("Hi.")).parsed, None)
    assert_type((await gateway.chat("Hi.")).text, str)
    await gateway.chat([{"role": "user", "content": "Hi."}], system=None, temperature=0, seed=None)
    await gateway.chat(prompt="Hi.", stop=["."], extra_body={"min_p": 0.1}, cache="refresh")
    await gateway.chat(messages=({"role": "user", "content": "Hi."},), tools=[{"type": "function"}])
    await gateway.chat("Hi.", **shared)
    assert_type((await gateway.chat("Hi.", **read)).text, str)
    any_answer: ChatResponse = await gateway.chat("Hi.", response_format=City)
    assert_type(any_answer.parsed, Any)
    await gateway.chat("Hi.", temprature=0)  # error
    await gateway.chat("Hi.", temperature="0")  # error
    await gateway.chat("Hi.", cache="always")  # error
    await gateway.chat("Hi.", min_p=0.1)  # error
    await gateway.chat("Hi.", stream=True)  # error
    await gateway.chat("Hi.", resume="restart")  # error
    await gateway.chat("Hi.", metadata="me")  # error
    await gateway.chat(3)  # error
    await gateway.chat(messages="Hi.")  # error
    (await gateway.chat("Hi.")).parsed.name  # error


async def structured(gateway: AsyncGateway, shared: ChatOptions) -> City:
    answer = await gateway.chat("Where?", response_format=City)
    assert_type(answer, ChatResponse[City])
    assert_type(answer.parsed, City)
    assert_type(
        await gateway.chat("?", response_format={"type": "json_object"}), ChatResponse[None]
    )
    assert_type((await gateway.chat("?", response_format=City, **shared)).parsed, City)
    both = await asyncio.gather(gateway.chat("?", response_format=City), gateway.chat("?"))
    assert_type(both[0].parsed, City)
    assert_type(both[1].parsed, None)
    await gateway.chat("?", response_format=int)  # error
    await gateway.chat("?", response_format="json")  # error
    answer.parsed.nme  # error
    answer.parsed = City(name="x")  # error
    return answer.parsed


async def wrong_class(gateway: AsyncGateway) -> City:
    return (await gateway.chat("Where?")).parsed  # error


async def stream(gateway: AsyncGateway, shared: StreamOptions) -> None:
    gateway.stream("Hi.", **shared)
    async with gateway.stream("Hi.", resume="continue") as plain:
        async for chunk in plain:
            assert_type(chunk, Chunk)
    assert_type(plain, ChatStream[None])
    cities = gateway.stream(prompt="Where?", response_format=City)
    assert_type(cities.response, ChatResponse[City])
    assert_type(cities.response.parsed, City)
    gateway.stream("Hi.", resume="again")  # error
    gateway.stream("Hi.", temprature=0)  # error


async def bound(gateway: AsyncGateway) -> None:
    ask = gateway.bind(model="fast", response_format=City)
    assert_type((await ask("Where?")).parsed, City)
    assert_type((await ask(prompt="Where?", temperature=0)).parsed, City)
    plain = gateway.bind(agent="market")
    assert_type(await plain(messages=[]), ChatResponse[None])
    assert_type(await plain("Where?", response_format=City), ChatResponse[City])
    assert_type([r.parsed for r in await asyncio.gather(ask("a"), ask("b"))], list[City])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ask("Where?"))
    assert_type(task.result().parsed, City)
    gateway.bind(modle="fast")  # error
    await ask("Where?", temprature=0)  # error


async def others(gateway: AsyncGateway) -> None:
    assert_type(gateway.check("Hi.", response_format=City, timeout=3), ChatRequest)
    assert_type(call_llm("Be terse.", "Hi.", 0.2, timeout=3), str)
    assert_type(call_llm(system="Be terse.", user="Hi.", model="fast"), str)
    assert_type(await gateway.call_llm("Be terse.", "Hi.", cache=False), str)
    assert_type(await get_gateway().call_llm(system="Be terse.", user="Hi."), str)
    assert_type(await gateway.embed(["a"], dimensions=3), EmbeddingResponse)
    assert_type(openai_client(gateway), openai.AsyncOpenAI)
    gateway.check("Hi.", modle="fast")  # error
    call_llm("Be terse.", "Hi.", temprature=0)  # error
    await gateway.call_llm(user="Hi.", modle="fast")  # error
    await gateway.embed("a", dimension=3)  # error
    gateway.force_circuit("a", "shut")  # error
