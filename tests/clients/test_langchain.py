"""LangChain's own standard tests, for its classes at our address and for our classes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from importlib import resources
from typing import Any, ClassVar

import httpx
import openai
import pytest
import pytest_asyncio
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from aigateway import AsyncGateway
from aigateway.integrations.langchain import AIGatewayEmbeddings, ChatAIGateway
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.simulator import Answer, Simulator
from tests.clients.conftest import in_thread
from tests.server.running import running

MODEL, OTHER, EMBEDDING = "gpt-4o-mini", "gpt-4o", "text-embedding-3-small"
TOKENIZERS = str(resources.files("litellm") / "litellm_core_utils/tokenizers")
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FILES = {".png": PNG, ".pdf": b"%PDF-1.4\n%%EOF\n", ".wav": b"RIFF$\x00\x00\x00WAVEfmt "}
"""What the tests would download."""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # of the clients' connections
    *map(
        pytest.mark.filterwarnings,
        (
            "ignore:.*is not an async function:pytest.PytestWarning",
            # What the tests do themselves.
            "ignore:Received a Pydantic BaseModel V1 schema:UserWarning",
            "ignore:OpenAI may require a filename:UserWarning",
            "ignore:Benchmark fixture was not used",
        ),
    ),
]


def model(received):
    """A model that calls the tool it is offered once, with what the tests of LangChain expect."""
    body = received.body
    if "/embeddings" in received.path:
        return None
    if not body.get("tools"):
        return _structured(body) if body.get("response_format") else None
    last = body["messages"][-1]
    if last["role"] == "tool":
        return "It is done."
    function = body["tools"][0]["function"]
    arguments = _arguments(function["parameters"], json.dumps(last, ensure_ascii=False))
    return Answer(tool_calls=[(function["name"], arguments)])


def _structured(body):
    schema = body["response_format"].get("json_schema", {}).get("schema")
    return json.dumps(_arguments(schema, "") if schema else {"setup": "a", "punchline": "b"})


def _arguments(schema, text):
    numbers = [int(number) for number in re.findall(r"\b\d+\b", text)] or [3]
    quoted = re.search(r"'([^']+)'", text)
    return {
        name: numbers[min(place, len(numbers) - 1)]
        if about.get("type") in {"integer", "number"}
        else (quoted[1] if quoted else "text")
        for place, (name, about) in enumerate(schema.get("properties", {}).items())
    }


@contextlib.asynccontextmanager
async def _served(vendor):
    configs = [
        vendor.config(model=name, name=name, capabilities={"audio_input": True})
        for name in (MODEL, OTHER, EMBEDDING)
    ]
    async with (
        AsyncGateway(configs) as gateway,
        running(Service(gateway, ServerSettings())) as url,
    ):
        yield gateway, f"{url}/v1"


@pytest.fixture(scope="module")
def gateway_and_address():
    with Simulator.in_thread() as simulator:
        simulator.openai.answer(model)
        with in_thread(_served(simulator.openai)) as both:
            yield both


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http():
    """The client that LangChain would make for a loop, and not close."""
    async with openai.DefaultAsyncHttpxClient() as client:
        yield client


@pytest.fixture(scope="module")
def vcr_config():
    """Nothing is recorded: the vendor is on this machine."""
    return {"ignore_localhost": True}


@pytest.fixture(autouse=True)
def surroundings(request, monkeypatch, gateway_and_address, http):
    """No downloads; the address or the gateway, for the class under test."""

    def get(url, **options):
        return httpx.Response(200, content=FILES[url[-4:]])

    monkeypatch.setattr(httpx, "get", get)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", TOKENIZERS)
    monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "none")
    if request.cls is not None:
        gateway, address = gateway_and_address
        at_address = {"base_url": address, "api_key": "any", "http_async_client": http}
        request.cls.options = at_address if request.cls.at_address else {"gateway": gateway}


class _AtAddress:
    at_address = True
    options: ClassVar[dict[str, Any]] = {}
    chat_model_class = ChatOpenAI
    embeddings_class = OpenAIEmbeddings

    @property
    def chat_model_params(self):
        return {"model": MODEL, "stream_usage": True, **self.options}

    @property
    def embedding_model_params(self):
        return {"model": EMBEDDING, **self.options}

    @property
    def init_from_env_params(self):
        surroundings = {"OPENAI_API_KEY": "any", "OPENAI_API_BASE": "http://gateway/v1"}
        attributes = {"openai_api_key": "any", "openai_api_base": "http://gateway/v1"}
        return surroundings, {"model": MODEL}, attributes


class _Own(_AtAddress):
    at_address = False
    chat_model_class = ChatAIGateway
    embeddings_class = AIGatewayEmbeddings

    @property
    def chat_model_params(self):
        return {"model": MODEL, **self.options}

    @property
    def init_from_env_params(self):
        """A gateway has no address that could come from elsewhere."""
        surroundings, given, _ = super().init_from_env_params
        attributes = {"openai_api_key": "in-process", "openai_api_base": "http://aigateway/v1"}
        return surroundings, {**given, **self.options}, attributes


class _ChatTests(ChatModelIntegrationTests):
    """A gateway can do all of it."""

    has_tool_choice = True
    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_pdf_inputs = True
    supports_audio_inputs = True
    supports_image_tool_message = True
    supports_pdf_tool_message = True
    supports_anthropic_inputs = True
    model_override_value = OTHER
    enable_vcr_tests = True


class TestChatAtAddress(_AtAddress, _ChatTests):
    pass


class TestChatUnitsAtAddress(_AtAddress, ChatModelUnitTests):
    @property
    def chat_model_params(self):
        """What is serialized is compared: no port of this run."""
        return {"model": MODEL, "base_url": "http://gateway/v1", "api_key": "any"}


class TestEmbeddingsAtAddress(_AtAddress, EmbeddingsIntegrationTests):
    pass


class TestEmbeddingsUnitsAtAddress(_AtAddress, EmbeddingsUnitTests):
    pass


class TestOwnChat(_Own, _ChatTests):
    pass


class TestOwnChatUnits(_Own, ChatModelUnitTests):
    pass


class TestOwnEmbeddings(_Own, EmbeddingsIntegrationTests):
    pass


class TestOwnEmbeddingsUnits(_Own, EmbeddingsUnitTests):
    pass


def test_threads_without_a_loop_and_a_loop_share_a_gateway():
    with Simulator.in_thread() as simulator:
        chat = ChatAIGateway(gateway=AsyncGateway([simulator.openai.config()]))
        assert chat.invoke("one two").content == "one two"
        said = [HumanMessage("three four")]
        assert asyncio.run(chat.ainvoke(said)).content == "three four"
        assert [part.content for part in chat.stream("five six")][:2]
