"""LlamaIndex and instructor at their defaults; they need the OpenAI SDK below 3."""

from __future__ import annotations

import httpx
import instructor
import openai
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel

from aigateway import AsyncGateway, openai_client
from tests.server.services import served

SAID = [{"role": "user", "content": "Where?"}]


class Weather(BaseModel):
    city: str


async def test_llama_index(sim, broken):
    """Its default model is an alias here."""
    alias = OpenAI(api_key="any").model
    async with (
        served(broken, sim.gemini, fields={"aliases": (alias,)}) as (_, url),
        httpx.AsyncClient() as http,
    ):
        at_address = {"api_base": f"{url}/v1", "api_key": "any", "max_retries": 0}
        llm = OpenAI(**at_address, async_http_client=http)
        assert (await llm.acomplete("one two")).text == "one two"
        said = [ChatMessage(role="user", content="one two")]
        assert (await llm.achat(said)).message.content == "one two"
        stream = await llm.astream_chat(said)
        assert "".join([part.delta or "" async for part in stream]) == "one two"


async def test_instructor(url, vendor):
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as at_address,
        AsyncGateway([vendor.config()]) as gateway,
    ):
        for client in (at_address, openai_client(gateway)):
            asked = instructor.from_openai(client).chat.completions
            found = await asked.create(model="auto", messages=SAID, response_model=Weather)
            assert found.city == "text"
