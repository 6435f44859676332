"""LangChain's own standard tests, for its clients at our address and for our classes."""

from __future__ import annotations

import json
import re

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from aigateway import AsyncGateway
from aigateway.integrations.langchain import AIGatewayEmbeddings, ChatAIGateway
from aigateway.simulator import Answer, Simulator
from tests.clients.conftest import in_thread
from tests.server.services import served

MODEL, EMBEDDING = "gpt-4o-mini", "text-embedding-3-small"


def model(received):
    """A model that calls the tool it is offered once, with what the tests of LangChain expect."""
    body = received.body
    if "/embeddings" in received.path or not body.get("tools"):
        return None if not body.get("response_format") else _structured(body)
    text = json.dumps(body["messages"])
    if body["messages"][-1]["role"] == "tool":
        return "It is done."
    function = body["tools"][0]["function"]
    numbers = [int(number) for number in re.findall(r"\b\d+\b", body["messages"][-1]["content"])]
    given = _arguments(function["parameters"], numbers or [3], text)
    return Answer(tool_calls=[(function["name"], given)])


def _structured(body):
    schema = body["response_format"].get("json_schema", {}).get("schema") or {}
    return json.dumps(_arguments(schema, [3], "")) if schema else '{"setup": "a", "punchline": "b"}'


def _arguments(schema, numbers, text):
    wanted = schema.get("properties") or {}
    words = {"customer_name": "你好啊集团", "location": "San Francisco"}
    return {
        name: numbers[min(place, len(numbers) - 1)]
        if about.get("type") in {"integer", "number"}
        else words.get(name, "text")
        for place, (name, about) in enumerate(wanted.items())
    }


@pytest.fixture(scope="module")
def simulator():
    with Simulator.in_thread() as simulator:
        simulator.openai.answer(model)
        yield simulator


@pytest.fixture(scope="module")
def address(simulator):
    vendor = simulator.openai

    class Both:
        """The vendor as two providers, one for each model."""

        def config(self, **fields):
            return vendor.config(**fields)

    class Embedder:
        def config(self, **fields):
            return vendor.config(model=EMBEDDING, name="embedder", **fields)

    with in_thread(served(Both(), Embedder())) as (_, url):
        yield f"{url}/v1"


@pytest.fixture(autouse=True)
def own(request, simulator):
    """The address or the gateway, for the class under test."""
    if request.cls is None:
        return
    if request.cls.at_address:
        request.cls.options = {"base_url": request.getfixturevalue("address"), "api_key": "any"}
        return
    vendor = simulator.openai
    configs = [vendor.config(), vendor.config(model=EMBEDDING, name="embedder")]
    request.cls.options = {"gateway": AsyncGateway(configs)}


class _Chat:
    at_address = True
    options: dict = {}  # noqa: RUF012 - set by `own`

    @property
    def chat_model_class(self):
        return ChatOpenAI if self.at_address else ChatAIGateway

    @property
    def chat_model_params(self):
        return {"model": MODEL, **self.options}

    @property
    def supports_image_inputs(self):
        return True

    @property
    def has_tool_choice(self):
        return True

    @property
    def supports_json_mode(self):
        return True


class _Embeddings:
    at_address = True
    options: dict = {}  # noqa: RUF012 - set by `own`

    @property
    def embeddings_class(self):
        return OpenAIEmbeddings if self.at_address else AIGatewayEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": EMBEDDING, **self.options}


class TestChatAtAddress(_Chat, ChatModelIntegrationTests):
    pass


class TestChatUnitsAtAddress(_Chat, ChatModelUnitTests):
    pass


class TestEmbeddingsAtAddress(_Embeddings, EmbeddingsIntegrationTests):
    pass


class TestEmbeddingsUnitsAtAddress(_Embeddings, EmbeddingsUnitTests):
    pass


class TestOwnChat(_Chat, ChatModelIntegrationTests):
    at_address = False


class TestOwnChatUnits(_Chat, ChatModelUnitTests):
    at_address = False


class TestOwnEmbeddings(_Embeddings, EmbeddingsIntegrationTests):
    at_address = False


class TestOwnEmbeddingsUnits(_Embeddings, EmbeddingsUnitTests):
    at_address = False


def test_threads_without_a_loop_and_a_loop_share_a_gateway(simulator):
    import asyncio

    chat = ChatAIGateway(gateway=AsyncGateway([simulator.openai.config()]))
    assert chat.invoke("one two").content == "one two"
    said = [HumanMessage("three four")]
    assert asyncio.run(chat.ainvoke(said)).content == "three four"
    assert [part.content for part in chat.stream("five six")][:2]
