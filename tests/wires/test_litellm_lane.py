"""What arrives at the vendors, and what comes back, over real HTTP."""

import json
import logging

import pytest

from aigateway import AsyncGateway
from aigateway.errors import FailureKind, RequestRejectedError
from aigateway.messages import EmbeddingRequest, ToolCall, Usage
from aigateway.simulator import Answer, Fault
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.wires.calls import asking, failure_of, in_turn

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look outside.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
PERSON = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
}
OPENAI_WIRES = {"openai", "azure"}


async def arrived(vendor, client, request):
    """The body that the vendor received for this request."""
    await client.chat(request)
    (received,) = vendor.received
    return received.body


class TestRequests:
    async def test_the_key_is_in_a_header_and_nowhere_else(self, vendor, client):
        await client.chat(asking())
        (received,) = vendor.received
        header = {
            "openai": "authorization",
            "azure": "api-key",
            "gemini": "x-goog-api-key",
            "anthropic": "x-api-key",
        }[vendor.name]
        assert vendor.key in received.headers[header]
        assert vendor.key not in received.path + json.dumps([received.query, received.body])

    async def test_system_and_turns(self, vendor, client):
        body = await arrived(
            vendor,
            client,
            asking(
                {"role": "system", "content": "Be terse."},
                "Hi",
                {"role": "assistant", "content": "Yes?"},
                "Well",
            ),
        )
        if vendor.name in OPENAI_WIRES:
            assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
        elif vendor.name == "gemini":
            assert [c["role"] for c in body["contents"]] == ["user", "model", "user"]
            assert "Be terse." in json.dumps(body["system_instruction"])
        else:
            assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
            assert "Be terse." in json.dumps(body["system"])

    async def test_a_tool_and_its_result(self, vendor, client):
        call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
        body = await arrived(
            vendor,
            client,
            asking(
                "Weather in Oslo?",
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "Snow."},
                tools=[WEATHER],
                tool_choice="auto",
            ),
        )
        text = json.dumps(body)
        for word in ("weather", "Look outside.", "city", "Oslo", "Snow."):
            assert word in text

    async def test_an_image(self, vendor, client):
        parts = [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ]
        body = await arrived(vendor, client, asking({"role": "user", "content": parts}))
        assert PIXEL in json.dumps(body)
        assert "What is it?" in json.dumps(body)

    async def test_a_mark_for_the_vendors_cache(self, vendor, client):
        part = {"type": "text", "text": "Hi " * 2000, "cache_control": {"type": "ephemeral"}}
        body = await arrived(vendor, client, asking({"role": "user", "content": [part]}))
        assert ("cache_control" in json.dumps(body)) == (vendor.name == "anthropic")

    async def test_common_parameters(self, vendor, connect):
        # Which of them the newest Gemini takes, litellm's versions do not agree on; newer Claude
        # models take `temperature` or `top_p`.
        older = {"gemini": "gemini-2.5-flash", "anthropic": "claude-3-5-haiku-latest"}
        body = await arrived(
            vendor,
            connect(vendor.config(model=older.get(vendor.name, vendor.model))),
            asking(temperature=0.5, max_tokens=7, top_p=0.9, stop=["END"]),
        )
        where = body["generationConfig"] if vendor.name == "gemini" else body
        names = {
            "gemini": ("temperature", "max_output_tokens", "top_p", "stop_sequences"),
            "anthropic": ("temperature", "max_tokens", "top_p", "stop_sequences"),
        }.get(vendor.name, ("temperature", "max_tokens", "top_p", "stop"))
        assert [where[name] for name in names] == [0.5, 7, 0.9, ["END"]]

    async def test_a_json_schema(self, vendor, client):
        completion = await client.chat(asking("Who?", response_format=PERSON))
        assert json.loads(completion.choices[0].text) == {"name": "text"}
        assert '"name"' in json.dumps(vendor.received[0].body)

    async def test_what_only_openai_knows(self, simulator, connect):
        body = await arrived(
            simulator.openai,
            connect(simulator.openai.config()),
            asking(
                seed=7,
                n=2,
                logprobs=True,
                top_logprobs=2,
                user="somebody",
                presence_penalty=0.1,
                frequency_penalty=0.2,
                logit_bias={"50256": -100},
                service_tier="default",
                parallel_tool_calls=False,
                tools=[WEATHER],
            ),
        )
        assert body | {"messages": 0, "tools": 0} == {
            "model": "gpt-4o-mini",
            "messages": 0,
            "tools": 0,
            "seed": 7,
            "n": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "user": "somebody",
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
            "logit_bias": {"50256": -100},
            "service_tier": "default",
            "parallel_tool_calls": False,
        }

    @pytest.mark.parametrize("params", [{"n": 2}, {"seed": 7}, {"logprobs": True}], ids=str)
    async def test_what_anthropic_cannot_carry(self, simulator, connect, params):
        client = connect(simulator.anthropic.config(), drop_unsupported_params=False)
        failure = Failure(FailureKind.UNSUPPORTED, param=next(iter(params)))
        assert await failure_of(client, asking(**params)) == failure
        assert simulator.anthropic.request_count == 0

    async def test_it_is_left_out_on_demand(self, simulator, connect):
        client = connect(simulator.anthropic.config(), drop_unsupported_params=True)
        body = await arrived(simulator.anthropic, client, asking(n=2, seed=7))
        assert body.keys() == {"model", "messages", "max_tokens"}

    async def test_what_litellm_cannot_translate_harms_nobody(self, simulator, connect):
        client = connect(simulator.anthropic.config())
        odd = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "?"}}]}
        assert (await failure_of(client, asking(odd))).kind is FailureKind.UNSUPPORTED
        assert simulator.anthropic.request_count == 0

    async def test_nothing_of_the_callers_is_written_into(self, vendor, client):
        request = asking(
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            tools=[WEATHER],
            response_format=PERSON,
        )
        before = repr(request)
        await client.chat(request)
        assert repr(request) == before

    async def test_headers_and_extra(self, vendor, connect):
        model = {"gemini": "gemini-2.5-flash"}.get(vendor.name, vendor.model)
        extra = {"temperature": 0.25, "max_tokens": 9}
        config = vendor.config(model=model, headers={"X-Team": "blue"}, extra=extra)
        body = await arrived(vendor, connect(config), asking(max_tokens=7))
        assert vendor.received[0].headers["x-team"] == "blue"
        assert "7" in json.dumps(body)  # the caller's word stands over the configuration's
        assert "9" not in json.dumps(body).replace(model, "")
        assert (body.get("generationConfig") or body)["temperature"] == 0.25

    async def test_one_call_is_one_connection_kept(self, vendor, client):
        for _ in range(3):
            await client.chat(asking())
        assert (vendor.request_count, vendor.open_connections) == (3, 1)


class TestConfiguration:
    async def test_a_server_that_wants_no_key(self, simulator, connect):
        local = await simulator.add("openai_compatible", name="local")
        completion = await connect(local.config(api_key=None)).chat(asking())
        assert completion.choices[0].text == "4"
        assert completion.cost_usd is None

    async def test_litellms_own_string(self, simulator, connect):
        simulated = simulator.openai
        config = simulated.config(provider="litellm", model="openai/gpt-4o-mini")
        assert (await connect(config).chat(asking())).choices[0].text == "4"

    async def test_azures_v1_api(self, simulator, connect):
        config = simulator.azure.config(api_version="v1")
        await connect(config).chat(asking())
        assert simulator.azure.received[0].path == "/openai/v1/chat/completions"

    async def test_azures_deployments(self, simulator, connect):
        await connect(simulator.azure.config(model="mine")).chat(asking())
        (received,) = simulator.azure.received
        assert received.path == "/openai/deployments/mine/chat/completions"
        assert received.query == {"api-version": "2024-10-21"}

    async def test_nothing_comes_from_the_environment(self, vendor, client, monkeypatch):
        keys = """
            OPENAI_API_KEY OPENAI_ORGANIZATION OPENAI_ORG_ID OPENAI_PROJECT_ID OPENAI_ADMIN_KEY
            AZURE_API_KEY AZURE_OPENAI_API_KEY AZURE_AD_TOKEN AZURE_OPENAI_AD_TOKEN
            GOOGLE_API_KEY GEMINI_API_KEY ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN
        """
        bases = """
            OPENAI_BASE_URL OPENAI_API_BASE AZURE_API_BASE AZURE_OPENAI_ENDPOINT GEMINI_API_BASE
            ANTHROPIC_API_BASE ANTHROPIC_BASE_URL
        """
        for name in keys.split():
            monkeypatch.setenv(name, "leaked")
        for name in bases.split():
            monkeypatch.setenv(name, "http://leaked.invalid")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Leaked: leaked")
        monkeypatch.setenv("AZURE_API_VERSION", "leaked")
        await client.chat(asking())
        (received,) = vendor.received
        assert "leaked" not in repr((dict(received.headers), received.query, received.body)).lower()

    async def test_an_organization_is_sent_if_asked_for(self, simulator, connect):
        config = simulator.openai.config(extra={"organization": "org-1"})
        await connect(config).chat(asking())
        assert simulator.openai.received[0].headers["openai-organization"] == "org-1"

    async def test_a_proxy_from_the_environment(self, simulator, connect, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", simulator.gemini.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        client = connect(simulator.openai.config(api_base="http://vendor.invalid/v1"))
        await failure_of(client)
        assert simulator.gemini.request_count == 1

    async def test_closing(self, vendor, client):
        await client.chat(asking())
        await client.aclose()
        await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await client.chat(asking())
        assert vendor.request_count == 1


class TestAnswers:
    async def test_text_usage_and_price(self, vendor, client):
        vendor.answer(Answer("Four.", usage={"prompt_tokens": 1000, "completion_tokens": 500}))
        completion = await client.chat(asking())
        assert completion.choices[0].text == "Four."
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage == Usage(1000, 500, 1500)
        assert completion.model == vendor.model
        assert completion.id
        assert completion.cost_usd > 0

    async def test_the_vendors_cache(self, vendor, client):
        usage = {"prompt_tokens": 2000, "completion_tokens": 10, "cached_tokens": 1500}
        vendor.answer(Answer("x", usage=usage))
        completion = await client.chat(asking())
        assert completion.usage.cached_tokens == 1500
        vendor.answer(Answer("x", usage=usage | {"cached_tokens": 0}))
        assert completion.cost_usd < (await client.chat(asking())).cost_usd

    async def test_reasoning(self, vendor, client):
        usage = {"prompt_tokens": 5, "completion_tokens": 30, "reasoning_tokens": 20}
        vendor.answer(Answer("x", reasoning="Let me think.", usage=usage))
        completion = await client.chat(asking())
        if vendor.name in {"gemini", "anthropic"}:
            assert completion.choices[0].reasoning == "Let me think."
        if vendor.name != "anthropic":
            assert completion.usage.reasoning_tokens == 20

    async def test_tool_calls(self, vendor, client):
        vendor.answer(
            Answer(tool_calls=[("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})])
        )
        choice = (await client.chat(asking(tools=[WEATHER]))).choices[0]
        assert choice.text == ""
        assert choice.finish_reason == "tool_calls"
        assert [call.name for call in choice.tool_calls] == ["weather", "weather"]
        assert [json.loads(call.arguments)["city"] for call in choice.tool_calls] == [
            "Oslo",
            "Rome",
        ]
        assert len({call.id for call in choice.tool_calls}) == 2
        assert all(isinstance(call, ToolCall) and call.id for call in choice.tool_calls)

    @pytest.mark.parametrize("wire", ["openai", "azure", "gemini"])
    async def test_several_choices(self, simulator, connect, wire):
        client = connect(getattr(simulator, wire).config())
        assert [c.text for c in (await client.chat(asking(n=3))).choices] == ["4", "4", "4"]

    async def test_logprobs(self, simulator, connect):
        client = connect(simulator.openai.config())
        choice = (await client.chat(asking(logprobs=True))).choices[0]
        assert json.loads(choice.logprobs_json)["content"]

    async def test_a_cut_answer_is_an_answer(self, vendor, client):
        vendor.answer(Answer("", finish_reason="length"))
        choice = (await client.chat(asking())).choices[0]
        assert (choice.text, choice.finish_reason) == ("", "length")

    async def test_a_withheld_answer(self, vendor, client):
        vendor.answer(Answer("", finish_reason="content_filter"))
        assert await failure_of(client) == Failure(FailureKind.CONTENT_POLICY, 200)

    async def test_no_words_at_all(self, vendor, client):
        vendor.answer("")
        assert await failure_of(client) == Failure(FailureKind.BAD_ANSWER, 200)


class TestEmbeddings:
    @pytest.mark.parametrize("wire", ["openai", "azure", "gemini"])
    async def test_vectors_in_order(self, simulator, connect, wire):
        vendor = getattr(simulator, wire)
        client = connect(vendor.config(model=vendor.embedding_model))
        both = await client.embed(EmbeddingRequest(inputs=("one", "two")))
        two = await client.embed(EmbeddingRequest(inputs=("two",)))
        assert both.vectors[1] == pytest.approx(two.vectors[0])
        assert both.vectors[0] != pytest.approx(both.vectors[1])
        assert len(both.vectors[0]) == 8

    @pytest.mark.parametrize("wire", ["openai", "azure", "gemini"])
    async def test_dimensions(self, simulator, connect, wire):
        config = getattr(simulator, wire).config(model="text-embedding-3-small")
        request = EmbeddingRequest(inputs=("one",), params={"dimensions": 4})
        assert len((await connect(config).embed(request)).vectors[0]) == 4

    @pytest.mark.parametrize("wire", ["openai", "azure"])
    async def test_tokens(self, simulator, connect, wire):
        vendor = getattr(simulator, wire)
        client = connect(vendor.config(model=vendor.embedding_model))
        answer = await client.embed(EmbeddingRequest(inputs=((1, 2), (3,))))
        assert len(answer.vectors) == 2
        assert vendor.received[-1].body["input"] == [[1, 2], [3]]

    async def test_tokens_go_to_those_that_take_them(self, simulator):
        vendors = (simulator.gemini, simulator.openai)
        configs = [v.config(model=v.embedding_model, aliases=("embed",)) for v in vendors]
        configs[0] = configs[0].model_copy(update={"priority": 200})
        async with AsyncGateway(configs) as gateway:
            answer = await gateway.embed([1, 2, 3], model="embed")
            kinds = [attempt.failure for attempt in answer.attempts]
            assert (kinds, len(answer.vectors)) == ([FailureKind.UNSUPPORTED, None], 1)
            assert simulator.openai.received[-1].body["input"] == [[1, 2, 3]]
            gateway.remove_provider(configs[1].name)
            with pytest.raises(RequestRejectedError, match="token_arrays: input"):
                await gateway.embed([1, 2, 3], model="embed")
        assert simulator.gemini.request_count == 0

    async def test_gemini_says_what_it_cannot(self, simulator, connect):
        request = EmbeddingRequest(inputs=("one",), params={"user": "somebody"})
        client = connect(simulator.gemini.config())
        assert await failure_of(client, request) == Failure(FailureKind.UNSUPPORTED)
        assert simulator.gemini.request_count == 0

    async def test_anthropic_has_none(self, simulator, connect):
        client = connect(simulator.anthropic.config())
        failure = await failure_of(client, EmbeddingRequest(inputs=("one",)))
        assert failure == Failure(FailureKind.UNSUPPORTED)
        assert simulator.anthropic.request_count == 0

    async def test_price(self, simulator, connect):
        config = simulator.openai.config(model="text-embedding-3-small")
        assert (await connect(config).embed(EmbeddingRequest(inputs=("a b c",)))).cost_usd > 0


async def test_no_key_and_no_prompt_in_any_log(vendor, connect, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    client = connect(vendor.config())
    await client.chat(asking("a secret prompt"))
    vendor.behave(Fault.bad_key())
    await failure_of(client, asking("a secret prompt"))
    text = "\n".join(f"{record.getMessage()} {record.args}" for record in caplog.records)
    text += "".join(capfd.readouterr())
    assert vendor.key not in text
    assert "a secret prompt" not in text


@pytest.mark.parametrize("lane", [LiteLLMClient])
async def test_a_debug_log_that_was_asked_for(simulator, connect, caplog):
    caplog.set_level(logging.DEBUG, "LiteLLM")
    await connect(simulator.openai.config()).chat(asking("a secret prompt"))
    assert "a secret prompt" in caplog.text


async def test_what_litellm_would_drop_for_anthropic_is_not_sent(simulator, connect):
    client = connect(simulator.anthropic.config())
    with pytest.raises(VendorCallError) as raised:
        await client.chat(asking(response_format={"type": "json_object"}))
    assert raised.value.failure == Failure(FailureKind.UNSUPPORTED, param="response_format")
    assert simulator.anthropic.request_count == 0


class TestUnreachable:
    """In either lane: was there a connection at all?"""

    async def test_nobody_listens(self, vendor, client):
        vendor.behave(Fault.refuse())
        assert await failure_of(client) == Failure(FailureKind.CONNECTION, unreachable=True)

    async def test_nobody_has_that_name(self, vendor, connect):
        client = connect(vendor.config(api_base="http://nobody.invalid"))
        assert await failure_of(client) == Failure(FailureKind.CONNECTION, unreachable=True)

    async def test_it_speaks_no_tls(self, vendor, connect):
        client = connect(vendor.config(api_base=vendor.api_base.replace("http:", "https:")))
        assert await failure_of(client) == Failure(FailureKind.CONNECTION, unreachable=True)

    async def test_the_proxy_is_down(self, vendor, connect, monkeypatch, simulator):
        others = [other for other in simulator.vendors if other is not vendor]
        others[0].behave(Fault.refuse())
        monkeypatch.setenv("HTTP_PROXY", others[0].url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        client = connect(vendor.config(api_base="http://vendor.invalid"))
        assert await failure_of(client) == Failure(FailureKind.CONNECTION, unreachable=True)

    @pytest.mark.parametrize(
        ("fault", "vendor", "lane"),
        in_turn([Fault.reset(), Fault.reset_in_body(), Fault.cut_body()]),
        indirect=["vendor"],
    )
    async def test_a_connection_that_broke_was_one(self, vendor, client, fault):
        vendor.behave(fault)
        assert await failure_of(client) == Failure(FailureKind.CONNECTION)
