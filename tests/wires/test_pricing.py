"""What tokens cost and how many a model takes."""

import pytest

from aigateway.messages import Usage
from aigateway.settings import LLMConfig, TokenPrices
from aigateway.simulator import Answer
from aigateway.wires import pricing
from aigateway.wires.loading import load_litellm
from aigateway.wires.pricing import (
    Price,
    max_input_tokens,
    operations_of,
    own_price_of,
    price_of,
    with_default_prices,
)
from tests.wires.calls import asking

OWN = {"input_cost_per_token": 0.5, "output_cost_per_token": 2}


@pytest.fixture
async def litellm():
    return await load_litellm()


def config(provider="openai", model="gpt-4o-mini", **extra):
    base = {"azure": "http://127.0.0.1", "openai_compatible": "http://127.0.0.1/v1"}.get(provider)
    return LLMConfig(provider, model, api_key="sk-1", api_base=base, extra=extra)


class TestPrice:
    @pytest.mark.parametrize(
        ("usage", "dollars"),
        [
            (Usage(10, 5, 15), 10 * 1 + 5 * 3),
            (Usage(10, 5, 15, cached_tokens=4), 6 * 1 + 4 * 0.5 + 5 * 3),
            (Usage(10, 5, 15, cached_tokens=40), 10 * 0.5 + 5 * 3),
            (Usage(), None),
        ],
    )
    def test_cost(self, usage, dollars):
        assert Price(input=1, output=3, cached=0.5).cost(usage) == dollars

    def test_ones_own(self):
        assert own_price_of(config(**OWN)) == Price(0.5, 2.0, 0.5)
        cached = {"cache_read_input_token_cost": 0.1}
        assert own_price_of(config(**OWN, **cached)) == Price(0.5, 2.0, 0.1)
        assert own_price_of(config()) is None

    @pytest.mark.parametrize("broken", [None, "0.5", -1, True])
    def test_half_a_price_is_none(self, broken):
        assert own_price_of(config(**OWN | {"input_cost_per_token": broken})) is None

    @pytest.mark.parametrize(
        "known",
        [
            config(),
            config("azure"),
            config("azure", "mine", base_model="gpt-4o-mini"),
            config("gemini", "gemini-2.5-flash"),
            config("anthropic", "claude-haiku-4-5"),
            config("litellm", "openai/gpt-4o-mini"),
            config("litellm", "gemini/gemini-2.5-flash"),
            config("openai_compatible", "mine", base_model="gpt-4o-mini"),
        ],
        ids=lambda c: f"{c.provider} {c.name} {c.extra}",
    )
    def test_the_map(self, litellm, known):
        price = price_of(known)
        assert price is not None
        assert 0 < price.input < price.output
        assert price.cached <= price.input

    @pytest.mark.parametrize(
        "unknown", [config(model="?"), config("azure", "?"), config("openai_compatible", "gpt-4o")]
    )
    def test_unknown(self, litellm, unknown):
        assert price_of(unknown) is None
        assert max_input_tokens(unknown) is None


class TestWindow:
    def test_the_map(self, litellm):
        assert max_input_tokens(config()) == 128_000
        assert max_input_tokens(config("azure", "mine", base_model="gpt-4o-mini")) == 128_000

    @pytest.mark.parametrize("broken", [0, -5, True, "many", None])
    def test_ones_own(self, litellm, broken):
        assert max_input_tokens(config(max_input_tokens=9)) == 9
        assert max_input_tokens(config(max_input_tokens=broken)) == 128_000

    async def test_asked_of_the_client(self, simulator, connect):
        client = connect(simulator.openai.config())
        await client.prepare()
        assert client.max_input_tokens == 128_000


class TestOperations:
    @pytest.mark.parametrize(
        ("provider", "model", "known"),
        [
            ("openai", "gpt-4o-mini", {"chat"}),
            ("openai", "gpt-5-pro", {"chat"}),  # "responses" in the map
            ("openai", "gpt-3.5-turbo-instruct", {"chat"}),  # "completion"
            ("openai", "text-embedding-3-small", {"embeddings"}),
            ("gemini", "gemini-embedding-001", {"embeddings"}),
            ("azure", "text-embedding-3-small", {"embeddings"}),
            ("anthropic", "claude-haiku-4-5", {"chat"}),
            ("litellm", "openai/text-embedding-3-small", {"embeddings"}),
            ("litellm", "ollama/llama3", None),
            ("gemini", "gemini-2.5-flash-image", None),
            ("openai", "?", None),
            ("openai_compatible", "gpt-4o", None),
        ],
    )
    def test_the_map(self, litellm, provider, model, known):
        assert operations_of(config(provider, model)) == known

    def test_the_model_behind_a_deployment(self, litellm):
        deployed = config("azure", "mine", base_model="text-embedding-3-small")
        assert operations_of(deployed) == frozenset({"embeddings"})

    async def test_the_configuration_stands_over_the_map(self, simulator, connect):
        client = connect(simulator.openai.config(operations=["embeddings"]))
        await client.prepare()
        assert client.operations == frozenset({"embeddings"})

    async def test_asked_of_the_client(self, simulator, connect):
        client = connect(simulator.openai.config())
        await client.prepare()
        assert client.operations == {"chat"}


def test_before_litellm_is_there(monkeypatch):
    monkeypatch.setattr(pricing, "loaded_litellm", lambda: None)
    assert price_of(config()) is None
    assert price_of(config(**OWN)) == Price(0.5, 2.0, 0.5)
    defaults = TokenPrices(input=1, output=4)
    assert price_of(with_default_prices(config(), defaults)) == Price(1e-6, 4e-6, 1e-6)
    assert price_of(with_default_prices(config(**OWN), defaults)) == Price(0.5, 2.0, 0.5)
    assert operations_of(config()) is None
    assert max_input_tokens(config()) is None
    assert max_input_tokens(config(max_input_tokens=9)) == 9


class TestAtTheVendor:
    async def test_ones_own_price_stands_and_stays_private(self, simulator, connect, litellm):
        before = repr(litellm.model_cost.get("gpt-4o-mini"))
        simulator.openai.answer(
            Answer("x", usage={"prompt_tokens": 100, "completion_tokens": 10, "cached_tokens": 50})
        )
        extra = {**OWN, "cache_read_input_token_cost": 0.1, "max_input_tokens": 9}
        completion = await connect(simulator.openai.config(extra=extra)).chat(asking())
        assert completion.cost_usd == pytest.approx(50 * 0.5 + 50 * 0.1 + 10 * 2)
        assert simulator.openai.received[0].body.keys() == {"model", "messages"}
        assert repr(litellm.model_cost.get("gpt-4o-mini")) == before

    async def test_the_model_behind_a_deployment(self, simulator, connect):
        plain = connect(simulator.azure.config(model="mine", name="plain"))
        named = connect(simulator.azure.config(model="mine", extra={"base_model": "gpt-4o-mini"}))
        simulator.azure.answer(Answer("x", usage={"prompt_tokens": 1000, "completion_tokens": 9}))
        completion = await named.chat(asking())
        assert completion.cost_usd == pytest.approx(1000 * 0.15e-6 + 9 * 0.6e-6)
        assert "base_model" not in simulator.azure.received[0].body
        unnamed = await plain.chat(asking())
        assert unnamed.cost_usd is None or unnamed.cost_usd > 0

    async def test_a_server_of_ones_own_costs_nothing_known(self, simulator, connect):
        local = await simulator.add("openai_compatible", name="local")
        unknown = await connect(local.config(model="gpt-4o-mini")).chat(asking())
        assert unknown.cost_usd is None
        extra = {"base_model": "gpt-4o-mini"}
        known = await connect(local.config(model="mine", extra=extra)).chat(asking())
        assert known.cost_usd > 0
