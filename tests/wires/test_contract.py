"""What of litellm is used beyond its documented calls: held to by name, signature and behaviour.

`nox -s litellm_range` runs this, and both lanes, against the ends of the supported range. At run
time the same is tried once for each provider, and a failure switches to the other lane.
"""

import asyncio
import inspect
import logging
import threading

import orjson
import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.settings import LLMConfig, ProviderType
from aigateway.wires.anthropic.translation import AnthropicTranslation
from aigateway.wires.direct_lane import DirectClient, keep_tried_lanes
from aigateway.wires.litellm.lane import call_options
from aigateway.wires.loading import load_litellm
from aigateway.wires.openai.translation import OpenAITranslation
from aigateway.wires.translation import LoggingStandIn, translation_for
from tests.wires.calls import asking

PARAMETERS = {
    "map_openai_params": ["non_default_params", "optional_params", "model", "drop_params"],
    "transform_request": ["model", "messages", "optional_params", "litellm_params", "headers"],
    "transform_response": [
        "model",
        "raw_response",
        "model_response",
        "logging_obj",
        "request_data",
        "messages",
        "optional_params",
        "litellm_params",
        "encoding",
        "api_key",
        "json_mode",
    ],
    "get_supported_openai_params": ["model"],
}
MODELS = {
    "openai": "gpt-4o-mini",
    "azure": "gpt-4o-mini",
    "gemini": "gemini-2.5-flash",
    "anthropic": "claude-haiku-4-5",
}


@pytest.fixture
async def litellm():
    return await load_litellm()


@pytest.mark.parametrize("vendor", MODELS)
@pytest.mark.parametrize("function", PARAMETERS)
async def test_translations_take_what_they_are_given(litellm, vendor, function):
    from litellm.utils import ProviderConfigManager

    config = ProviderConfigManager.get_provider_chat_config(
        MODELS[vendor], litellm.LlmProviders(vendor)
    )
    found = list(inspect.signature(getattr(config, function)).parameters)
    assert [name for name in found if name in PARAMETERS[function]] == PARAMETERS[function]


async def test_anthropics_headers_take_what_they_are_given(litellm):
    found = list(inspect.signature(litellm.AnthropicConfig().validate_environment).parameters)
    wanted = ["headers", "model", "messages", "optional_params", "litellm_params", "api_key"]
    assert found[:7] == [*wanted, "api_base"]


async def test_geminis_body_takes_what_it_is_given(litellm):
    from litellm.llms.vertex_ai.gemini.transformation import sync_transform_request_body

    found = inspect.signature(sync_transform_request_body).parameters
    required = {n for n, p in found.items() if p.default is inspect.Parameter.empty}
    assert required <= {
        "gemini_api_key",
        "messages",
        "api_base",
        "model",
        "client",
        "timeout",
        "extra_headers",
        "optional_params",
        "logging_obj",
        "custom_llm_provider",
        "litellm_params",
        "vertex_project",
        "vertex_location",
        "vertex_auth_header",
    }


async def test_readers_of_streams_take_what_they_are_given(litellm):
    from litellm.llms.anthropic.chat.handler import ModelResponseIterator as Anthropic
    from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import (
        ModelResponseIterator as Gemini,
    )

    reader = litellm.OpenAIGPTConfig().get_model_response_iterator(iter(()), True)
    for kind in (Anthropic, Gemini, type(reader)):
        assert list(inspect.signature(kind.chunk_parser).parameters) == ["self", "chunk"]
    found = list(inspect.signature(Anthropic).parameters)
    assert found[:2] == ["streaming_response", "sync_stream"]
    assert {"json_mode", "tool_name_reverse_map"} <= set(found)
    found = list(inspect.signature(Gemini).parameters)
    assert found[:3] == ["streaming_response", "sync_stream", "logging_obj"]


async def test_anthropics_reader_takes_no_notice_of_texts(litellm):
    from litellm.llms.anthropic.chat.handler import ModelResponseIterator

    reader = ModelResponseIterator(iter(()), True)
    before = repr(vars(reader))
    text = {"type": "text_delta", "text": "Hi"}
    reader.chunk_parser({"type": "content_block_delta", "index": 0, "delta": text})
    assert repr(vars(reader)) == before


async def test_geminis_reader_makes_ends_up(litellm):
    """The day it does not, whoever reads its finish reasons need not look at the event."""
    from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import (
        ModelResponseIterator,
    )

    parts = {"role": "model", "parts": [{"text": "Hi"}]}
    read = ModelResponseIterator(iter(()), True, LoggingStandIn()).chunk_parser(
        {"candidates": [{"index": 0, "content": parts}]}
    )
    assert read.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("vendor", MODELS)
async def test_who_gives_streams_is_asked_in_one_way(litellm, vendor):
    from litellm.utils import ProviderConfigManager

    config = ProviderConfigManager.get_provider_chat_config(
        MODELS[vendor], litellm.LlmProviders(vendor)
    )
    assert config.should_fake_stream(MODELS[vendor], True, vendor) is False


PLAIN = {
    "one": asking("What is 2+2?"),
    "several": asking(
        {"role": "system", "content": "Be terse."},
        "Hi",
        {"role": "assistant", "content": "Hello."},
        "2+2?",
        temperature=0,
        max_tokens=5,
        stop=["x"],
        top_p=0.5,
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.1,
    ),
}


@pytest.mark.parametrize("request_", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("vendor", ["openai", "azure"])
async def test_plain_requests_need_no_translation(litellm, simulator, vendor, request_):
    config = getattr(simulator, vendor).config()
    options = call_options(config, drop_unsupported_params=False)
    translation = translation_for(litellm, config, options)
    assert isinstance(translation, OpenAITranslation)
    assert translation._is_verbatim
    as_it_is = translation.request(request_)
    translation._is_verbatim = False
    translated = translation.request(request_)
    assert as_it_is is not None
    assert translated is not None
    assert translated.body == as_it_is.body


async def test_models_that_need_another_form_get_it(litellm):
    config = LLMConfig(ProviderType.OPENAI, "o3-mini", api_key="k")
    options = call_options(config, drop_unsupported_params=False)
    translation = translation_for(litellm, config, options)
    assert translation is not None
    sent = translation.request(asking({"role": "system", "content": "Be terse."}, "2+2?"))
    assert sent is not None
    whole = translation._config.transform_request(
        "o3-mini",
        [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "2+2?"}],
        {},
        {},
        {},
    )
    assert orjson.loads(sent.body) == whole


async def test_anthropics_plain_headers_are_always_the_same(litellm, simulator):
    config = simulator.anthropic.config()
    options = call_options(config, drop_unsupported_params=False)
    translation = translation_for(litellm, config, options)
    assert isinstance(translation, AnthropicTranslation)
    for request in (asking("Hi"), asking({"role": "system", "content": "x"}, "y", temperature=0)):
        sent = translation.request(request)
        assert sent is not None
        assert sent.headers == translation._headers_for(list(request.messages), {})


async def test_get_optional_params_refuses_what_is_not_supported(litellm):
    from litellm.utils import get_optional_params

    with pytest.raises(litellm.UnsupportedParamsError):
        get_optional_params(
            model="claude-haiku-4-5", custom_llm_provider="anthropic", logprobs=True
        )


async def test_prices_are_where_they_are_looked_for(litellm):
    for name in ("input_cost_per_token", "output_cost_per_token", "max_input_tokens", "mode"):
        assert name in litellm.model_cost["gpt-4o-mini"]


async def test_the_direct_lane_is_in_use(vendor):
    client = DirectClient(vendor.config(), SYSTEM_CLOCK)
    await client.chat(asking())
    await client.aclose()
    assert vendor.received[0].headers["user-agent"].startswith("aigateway/")


def changed(self, *, everything_else):
    """A function of litellm's that takes other arguments than those known."""
    raise AssertionError


async def keep_lane_of_before(config, litellm, monkeypatch, caplog):
    """Keep a lane that was tried before litellm changed: to try it now would fail."""
    caplog.set_level(logging.WARNING, "aigateway")
    with keep_tried_lanes():
        await DirectClient(config, SYSTEM_CLOCK).prepare()
    monkeypatch.setattr(litellm.AnthropicConfig, "transform_response", changed)


@pytest.mark.parametrize("broken", ["transform_request", "transform_response"])
async def test_a_litellm_that_changed_is_met_with_one_warning_and_the_other_lane(
    litellm, simulator, monkeypatch, caplog, broken
):
    monkeypatch.setattr(litellm.AnthropicConfig, broken, changed)
    caplog.set_level(logging.WARNING, "aigateway")
    client = DirectClient(simulator.anthropic.config(), SYSTEM_CLOCK)
    await client.prepare()
    monkeypatch.undo()  # what the other lane uses works
    for _ in range(3):
        assert (await client.chat(asking())).choices[0].text == "4"
    await client.aclose()
    assert caplog.text.count("translates differently") == 1
    agents = [sent.headers["user-agent"] for sent in simulator.anthropic.received]
    assert len(agents) == 3
    assert not any(agent.startswith("aigateway/") for agent in agents)


async def test_a_lane_kept_for_workers_is_not_tried_again_by_one_client(
    litellm, simulator, monkeypatch, caplog
):
    config = simulator.anthropic.config()
    await keep_lane_of_before(config, litellm, monkeypatch, caplog)
    taking, next_one = (DirectClient(config, SYSTEM_CLOCK) for _ in range(2))
    await taking.prepare()
    assert "translates differently" not in caplog.text
    await next_one.prepare()  # it would share the state of the first one
    assert caplog.text.count("translates differently") == 1
    monkeypatch.undo()
    for client in (taking, next_one):
        assert (await client.chat(asking())).choices[0].text == "4"
        await client.aclose()
    agents = [sent.headers["user-agent"] for sent in simulator.anthropic.received]
    assert [agent.startswith("aigateway/") for agent in agents] == [True, False]


async def test_a_lane_kept_for_another_way_of_calling_is_not_taken(
    litellm, simulator, monkeypatch, caplog
):
    config = simulator.anthropic.config()
    await keep_lane_of_before(config, litellm, monkeypatch, caplog)
    client = DirectClient(config, SYSTEM_CLOCK, drop_unsupported_params=True)
    await client.prepare()
    await client.aclose()
    assert caplog.text.count("translates differently") == 1


async def test_first_calls_share_one_trial(litellm, simulator, monkeypatch):
    trials, going, go = [], threading.Event(), threading.Event()
    whole = litellm.AnthropicConfig.get_supported_openai_params

    def slow(self, *args, **options):
        if threading.current_thread() is not threading.main_thread():
            trials.append(threading.current_thread())
            going.set()
            go.wait(60)
        return whole(self, *args, **options)

    monkeypatch.setattr(litellm.AnthropicConfig, "get_supported_openai_params", slow)
    client = DirectClient(simulator.anthropic.config(), SYSTEM_CLOCK)
    try:
        first, *others = [asyncio.create_task(client.chat(asking())) for _ in range(51)]
        await asyncio.to_thread(going.wait, 60)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        answers = await asyncio.gather(*others)
    finally:
        go.set()
        await client.aclose()
    assert {answer.choices[0].text for answer in answers} == {"4"}
    assert len(set(trials)) == 1


async def test_a_failed_trial_is_made_again(litellm, simulator, monkeypatch):
    def leave(self):
        raise SystemExit

    monkeypatch.setattr(litellm.AnthropicConfig, "__init__", leave)
    client = DirectClient(simulator.anthropic.config(), SYSTEM_CLOCK)
    with pytest.raises(SystemExit):
        await client.prepare()
    monkeypatch.undo()
    assert (await client.chat(asking())).choices[0].text == "4"
    await client.aclose()


async def test_a_router_elsewhere_in_the_process_does_not_slow_us_down(litellm):
    from aigateway.wires.litellm.connections import has_callbacks

    lists = ("input_callback", "success_callback", "failure_callback", "callbacks")
    names = [*lists, "_async_success_callback", "_async_failure_callback"]
    before = {name: list(getattr(litellm, name)) for name in names}
    try:
        litellm.Router(
            model_list=[
                # A name of its own: a router adds it to litellm's price map, for good.
                {"model_name": "x", "litellm_params": {"model": "openai/only-here", "api_key": "k"}}
            ]
        )
        assert not has_callbacks(litellm)
        litellm.success_callback.append(lambda *_: None)
        assert has_callbacks(litellm)
    finally:
        for name, callbacks in before.items():
            getattr(litellm, name)[:] = callbacks
