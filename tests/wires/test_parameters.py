"""Hints never cost an answer, shape is never left out, and values are in the vendor's range."""

import json
import logging
import pickle
from typing import Any

import pytest
from aiohttp import web

from aigateway import AsyncGateway, GatewaySettings
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import RequestRejectedError
from aigateway.settings import LLMConfig, ProviderType
from aigateway.simulator import Fault
from aigateway.testing import FakeClock
from aigateway.wires.client import VendorCallError
from aigateway.wires.parameters import HINTS, ParameterRules
from tests.wires.calls import asking, in_turn

FORCED = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "required",
}


async def drink(client, request):
    stream = await client.stream(request)
    try:
        while await stream.read() is not None:
            pass
    finally:
        await stream.aclose()


async def sent(vendor, client, streamed, **params):
    """The body that arrives for these parameters, and what was left out."""
    request = asking(**params)
    await (drink(client, request) if streamed else client.chat(request))
    body = vendor.received[-1].body
    return body | body.get("generationConfig", {}), client.dropped(params)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def streamed(request):
    return request.param


NOT_TAKEN: dict[str, dict[str, Any]] = {
    "openai": {"top_k": 3, "verbosity": "low"},
    "azure": {"top_k": 3, "safety_settings": [], "thinking": {"type": "disabled"}},
    "gemini": {"logit_bias": {"5": 1}, "user": "u", "verbosity": "low"},
    "anthropic": {"seed": 7, "frequency_penalty": 0.5, "service_tier": "flex"},
}


class TestHints:
    async def test_what_a_model_does_not_take_is_left_out(self, vendor, client, streamed, caplog):
        params = NOT_TAKEN[vendor.name]
        for _ in range(2):
            body, dropped = await sent(vendor, client, streamed, **params, max_tokens=50)
            assert body.keys().isdisjoint(params)
            assert set(dropped) == set(params)
        told = [r.getMessage() for r in caplog.records if r.name == "aigateway.wires.parameters"]
        assert len(told) == len(params)  # once for each
        assert all(any(f"parameter {name} " in line for line in told) for name in params)

    async def test_what_it_takes_is_not(self, vendor, connect, streamed):
        # Newer ones of litellm know that the latest models of Gemini take no temperature.
        older = {"model": "gemini-2.5-flash"} if vendor.name == "gemini" else {}
        client = connect(vendor.config(**older))
        body, dropped = await sent(vendor, client, streamed, temperature=0.5)
        assert (body["temperature"], dropped) == (0.5, ())

    @pytest.mark.parametrize("params", [{"n": 2}, {"logprobs": True}], ids=str)
    async def test_shape_is_never_left_out(self, simulator, connect, streamed, params):
        client = connect(simulator.anthropic.config())
        with pytest.raises(VendorCallError) as caught:
            await sent(simulator.anthropic, client, streamed, **params)
        assert (caught.value.failure.kind, caught.value.failure.param) == (
            "unsupported",
            next(iter(params)),
        )
        assert simulator.anthropic.request_count == 0

    async def test_one_call_at_a_time(self, simulator, connect, streamed):
        vendor, params = simulator.gemini, {"tools": FORCED["tools"], "parallel_tool_calls": False}
        client = connect(vendor.config())
        with pytest.raises(VendorCallError) as caught:
            await sent(vendor, client, streamed, **params)
        failure = caught.value.failure
        assert (failure.kind, failure.param) == ("unsupported", "parallel_tool_calls")
        assert vendor.request_count == 0
        _, dropped = await sent(vendor, client, streamed, parallel_tool_calls=False)
        assert dropped == ()  # without tools it means nothing
        client = connect(vendor.config(), drop_unsupported_params=True)
        body, dropped = await sent(vendor, client, streamed, **params)
        assert ("tools" in body, dropped) == (True, ("parallel_tool_calls",))

    async def test_on_demand_a_value_is(self, simulator, connect, streamed):
        client = connect(simulator.anthropic.config(), drop_unsupported_params=True)
        for kind, left_out in (("json_object", ("response_format",)), ("text", ())):
            given = {"response_format": {"type": kind}}
            _, dropped = await sent(simulator.anthropic, client, streamed, **given)
            assert dropped == left_out

    async def test_on_demand_it_is(self, simulator, connect, streamed):
        client = connect(simulator.anthropic.config(), drop_unsupported_params=True)
        body, dropped = await sent(simulator.anthropic, client, streamed, n=2, seed=7)
        assert body.keys() - {"stream"} == {"model", "messages", "max_tokens"}
        assert set(dropped) == {"n", "seed"}


class TestRanges:
    @pytest.mark.parametrize(
        ("params", "expected", "dropped", "streamed", "lane"),
        in_turn(
            [
                ({"temperature": 1.3}, {"temperature": 1.0}, ()),
                (
                    {"temperature": 0.5, "top_p": 0.9},
                    {"temperature": 0.5, "top_p": None},
                    ("top_p",),
                ),
                (
                    {"reasoning_effort": "high", "max_tokens": 3000},
                    {"thinking": {"type": "enabled", "budget_tokens": 1500}, "max_tokens": 3000},
                    (),
                ),
                (
                    {"reasoning_effort": "high", "max_tokens": 500},
                    {"thinking": None, "max_tokens": 500},
                    ("reasoning_effort",),
                ),
                (
                    {"reasoning_effort": "low", "temperature": 0.2},
                    {"temperature": None},
                    ("temperature",),
                ),
                ({"reasoning_effort": "low", **FORCED}, {"thinking": None}, ("reasoning_effort",)),
            ],
            (False, True),
        ),
        indirect=["streamed"],
    )
    async def test_anthropic(self, simulator, connect, streamed, params, expected, dropped):
        client = connect(simulator.anthropic.config(model="claude-sonnet-4-5"))
        body, left_out = await sent(simulator.anthropic, client, streamed, **params)
        assert {name: body.get(name) for name in expected} == expected
        assert left_out == dropped

    @pytest.mark.parametrize(
        ("model", "params", "budget", "dropped", "streamed", "lane"),
        in_turn(
            [
                ("gemini-2.5-flash", {"reasoning_effort": "high", "max_tokens": 500}, 250, ()),
                (
                    "gemini-2.5-flash",
                    {"thinking": {"type": "enabled", "budget_tokens": 900}, "max_tokens": 500},
                    250,
                    (),
                ),
                ("gemini-2.5-flash", {"reasoning_effort": "low", "max_tokens": 4000}, 1024, ()),
                ("gemini-2.5-flash", {"reasoning_effort": "none", "max_tokens": 500}, 0, ()),
                ("gemini-2.5-flash-lite", {"reasoning_effort": "low", "max_tokens": 400}, 0, ()),
                ("gemini-2.5-pro", {"reasoning_effort": "none"}, 128, ()),
                (
                    "gemini-2.5-pro",
                    {"reasoning_effort": "high", "max_completion_tokens": 150},
                    128,
                    (),
                ),
                (
                    "gemini-2.5-pro",
                    {"reasoning_effort": "high", "max_tokens": 100},
                    None,
                    ("reasoning_effort",),
                ),
            ],
            (False, True),
        ),
        indirect=["streamed"],
    )
    async def test_gemini(self, simulator, connect, streamed, model, params, budget, dropped):
        client = connect(simulator.gemini.config(model=model))
        body, left_out = await sent(simulator.gemini, client, streamed, **params)
        assert body.get("thinkingConfig", {}).get("thinkingBudget") == budget
        assert left_out == dropped

    async def test_a_model_that_takes_no_sampling(self, simulator, connect, streamed):
        params = {"temperature": 0.3, "top_p": 0.9, "top_k": 5}
        for given in ({"top_k": 5}, params):
            client = connect(simulator.anthropic.config(model="claude-opus-4-7"))
            body, dropped = await sent(simulator.anthropic, client, streamed, **given)
            assert body.keys().isdisjoint(params)
            assert set(dropped) == given.keys()

    async def test_the_limit_has_the_name_that_the_model_wants(self, simulator, connect, streamed):
        config = simulator.azure.config(extra={"base_model": "azure/gpt-5-mini"})
        body, dropped = await sent(
            simulator.azure, connect(config), streamed, max_tokens=50, temperature=0
        )
        assert (body.get("max_tokens"), body["max_completion_tokens"]) == (None, 50)
        assert dropped == ("temperature",)


async def test_extra_body(vendor, client, streamed):
    extra: dict[str, Any] = {"safetySettings": [], "generationConfig": {"topK": 3}}
    if vendor.wire == "anthropic":  # which refuses what it does not know
        extra = {"inference_geo": "eu", "metadata": {"topK": 3}}
    body, _ = await sent(vendor, client, streamed, extra_body=extra, max_tokens=50)
    for name, value in extra.items():
        assert body[name] == value or value.items() <= body.items()
    assert "50" in str(body)


REFUSALS = {
    "unsupported_value": {
        "message": "Unsupported value: 'temperature' does not support 0.2 with this model.",
        "param": "temperature",
        "code": "unsupported_value",
    },
    "anthropic": {
        "type": "invalid_request_error",
        "message": "`temperature` is deprecated for this model.",
    },
    "google": {
        "status": "INVALID_ARGUMENT",
        "message": "Invalid value.",
        "details": [{"fieldViolations": [{"field": "generation_config.temperature"}]}],
    },
    "older": {"message": "Unrecognized request argument supplied: temperature"},
}
EXTRA = "Extra inputs are not permitted"
WORDS: dict[str, Any] = {
    # How vendors refuse a parameter without a field that says which, each with its whole body.
    "xai": {"code": "x", "error": "Model grok-3 does not support parameter {}."},
    "xai, older": {"code": "x", "error": "Argument not supported on this model: {}"},
    "vllm": {
        "object": "error",
        "message": "[{{'type': 'extra_forbidden', 'loc': ('body', '{}'), 'msg': '" + EXTRA + "'}}]",
        "code": 400,
    },
    "mistral": {"message": {"detail": [{"loc": ["body", "{}"], "msg": EXTRA}]}},
    "tgi": {"error": "Input validation error: `{}` must be below 0.1", "error_type": "validation"},
    "together": {"error": {"message": "Input validation error: `{}` must be below 0.1"}},
    "ollama": {"error": "invalid option: {}"},
    "fastapi": {"detail": "Parameter {} is not allowed"},
    "deepinfra": {"detail": {"error": "Unsupported parameter {}"}},
    "bedrock": {"message": "Malformed input request: extraneous key [{}] is not permitted"},
    "short": {"error": {"message": "This model does not support {}."}},
}


def said_of(name, body):
    """The body of an error that names this parameter."""
    if isinstance(body, str):
        return body.format(name)
    if isinstance(body, dict):
        return {key: said_of(name, value) for key, value in body.items()}
    return [said_of(name, each) for each in body] if isinstance(body, list) else body


STREAM_OPTIONS: dict[str, dict[str, Any]] = {
    "place": {
        "detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]
    },
    "param": {"message": "Unknown parameter.", "param": "stream_options"},
    "words": {"message": "Unrecognized request argument supplied: stream_options"},
    "value": {"message": "stream_options.include_usage is not supported"},
}


class Server:
    """An OpenAI-compatible server that answers whatever its `refuses` does not refuse."""

    config: LLMConfig

    def __init__(self):
        self.bodies = []
        self.refuses = lambda _: None

    async def answer(self, request):
        body = await request.json()
        self.bodies.append(body)
        error = self.refuses(body)
        if error is not None:
            whole = error.keys() & {"detail", "error", "object"} or isinstance(
                error["message"], dict
            )
            return web.json_response(error if whole else {"error": error}, status=400)
        choice = {"index": 0, "finish_reason": "stop"}
        text = {"role": "assistant", "content": "ok"}
        if not body.get("stream"):
            return web.json_response({"id": "1", "choices": [{**choice, "message": text}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        event = json.dumps({"id": "1", "choices": [{**choice, "delta": text}]})
        await response.write(f"data: {event}\n\ndata: [DONE]\n\n".encode())
        return response


@pytest.fixture
async def server():
    served = Server()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", served.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    served.config = LLMConfig(
        ProviderType.OPENAI_COMPATIBLE, "own", api_base=f"http://127.0.0.1:{port}/v1"
    )
    yield served
    await runner.cleanup()


async def ask(client, streamed, **params):
    await (drink(client, asking(**params)) if streamed else client.chat(asking(**params)))


class TestRefusals:
    """What the vendor itself refuses is learned."""

    @pytest.mark.parametrize(
        ("words", "streamed", "lane"),
        in_turn(REFUSALS, (False, True)),
        indirect=["streamed"],
    )
    async def test_a_hint(self, server, connect, streamed, words):
        server.refuses = lambda body: REFUSALS[words] if "temperature" in body else None
        client = connect(server.config)
        with pytest.raises(VendorCallError) as caught:
            await ask(client, streamed, temperature=0.2)
        failure = caught.value.failure
        assert (failure.kind, failure.mendable) == ("unsupported", True)
        assert client.dropped({"temperature": 0.2}) == ("temperature",)
        await ask(client, streamed, temperature=0.2)
        assert "temperature" not in server.bodies[-1]

    @pytest.mark.parametrize(
        ("words", "streamed", "lane"),
        in_turn(WORDS, (False, True)),
        indirect=["streamed"],
    )
    async def test_a_hint_in_words_alone(self, server, connect, streamed, words):
        given = {"seed": 7, "user": "u", "prompt_cache_key": "k"}
        for name in given:
            error = said_of(name, WORDS[words])
            server.refuses = lambda body, n=name, e=error: e if n in body else None
            client = connect(server.config)
            with pytest.raises(VendorCallError) as caught:
                await ask(client, streamed, **given)
            assert caught.value.failure.mendable
            await ask(client, streamed, **given)
            assert server.bodies[-1].keys() & given.keys() == given.keys() - {name}

    @pytest.mark.parametrize(
        "words",
        [
            "messages[0].content: 'what does temperature, an unknown word, mean' is bad",
            "Images are not supported after a user message",
            "Neither temperature nor seed may be that",
        ],
    )
    async def test_words_about_something_else(self, server, connect, streamed, words):
        server.refuses = lambda _: {"message": words}
        client = connect(server.config)
        given = {"temperature": 0.2, "seed": 7, "user": "u"}
        with pytest.raises(VendorCallError) as caught:
            await ask(client, streamed, **given)
        assert not caught.value.failure.mendable
        assert client.dropped(given) == ()

    async def test_shape_is_not_read_from_words(self, server, connect, streamed):
        server.refuses = lambda _: {"message": "This model does not support stop."}
        client = connect(server.config)
        with pytest.raises(VendorCallError) as caught:
            await ask(client, streamed, stop=["x"], seed=7)
        assert not caught.value.failure.mendable

    async def test_one_value_says_nothing_about_others(self, server, connect, streamed):
        error = REFUSALS["unsupported_value"]
        server.refuses = lambda body: error if body.get("temperature") == 0.2 else None
        client = connect(server.config)
        with pytest.raises(VendorCallError):
            await ask(client, streamed, temperature=0.2)
        assert client.dropped({"temperature": 1.0}) == ()

    async def test_two_that_do_not_go_together(self, server, connect, streamed):
        words = "`temperature` and `top_p` cannot both be specified for this model."
        server.refuses = lambda body: (
            {"message": words} if {"temperature", "top_p"} <= body.keys() else None
        )
        client = connect(server.config)
        both = {"temperature": 0.2, "top_p": 0.5}
        with pytest.raises(VendorCallError):
            await ask(client, streamed, **both)
        assert client.dropped(both) == ("top_p",)
        assert client.dropped({"top_p": 0.5}) == ()

    async def test_the_other_name_of_the_limit(self, server, connect, streamed):
        words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
        error = {"message": f"{words} 'max_completion_tokens' instead.", "param": "max_tokens"}
        server.refuses = lambda body: error if "max_tokens" in body else None
        clock = FakeClock()
        client = connect(server.config, clock=clock)
        for _ in range(2):
            await ask(client, streamed, max_tokens=50)
            assert server.bodies[-1]["max_completion_tokens"] == 50
        assert len(server.bodies) == 3  # asked twice the first time
        await clock.advance(3601)
        server.refuses = lambda _: None
        await ask(client, streamed, max_tokens=50)
        assert server.bodies[-1]["max_tokens"] == 50

    async def test_a_limit_that_is_too_high_renames_none(self, server, connect, streamed):
        def refuses(body):
            if "max_completion_tokens" in body:
                return {"message": "Unknown parameter.", "param": "max_completion_tokens"}
            high = body["max_tokens"] > 8192
            return {"message": "That is not supported.", "param": "max_tokens"} if high else None

        server.refuses = refuses
        client = connect(server.config)
        with pytest.raises(VendorCallError):
            await ask(client, streamed, max_tokens=9000)
        await ask(client, streamed, max_tokens=50)
        assert server.bodies[-1]["max_tokens"] == 50

    async def test_a_request_of_the_other_lane_is_judged_once(self, server, connect, streamed):
        def refuses(body):
            name, other = sorted(("max_tokens", "max_completion_tokens"), key=body.__contains__)[
                ::-1
            ]
            return {"message": f"Unsupported parameter: use '{other}' instead.", "param": name}

        server.refuses = refuses
        client = connect(server.config)
        with pytest.raises(VendorCallError):
            await ask(client, streamed, max_tokens=50, extra_headers={"X-Extra": "1"})
        assert len(server.bodies) == 2

    @pytest.mark.parametrize("words", STREAM_OPTIONS)
    async def test_stream_options(self, server, connect, words):
        server.refuses = lambda body: STREAM_OPTIONS[words] if "stream_options" in body else None
        clock = FakeClock()
        client = connect(server.config, clock=clock)
        for _ in range(2):
            await ask(client, streamed=True)
        assert ["stream_options" in body for body in server.bodies] == [True, False, False]
        server.refuses = lambda _: None
        await clock.advance(3601)
        await ask(client, streamed=True)
        assert "stream_options" in server.bodies[-1]

    @pytest.mark.parametrize(
        ("error", "params"),
        [
            ({"message": "Invalid 'messages[0]': 'unknown stream_options'"}, {}),
            (
                {"message": "Unknown parameter: 'stream_options.foo'."},
                {"stream_options": {"foo": 1}},
            ),
        ],
        ids=["quoted", "own option"],
    )
    async def test_stream_options_stay(self, server, connect, error, params):
        path = next(iter(params), "messages[0].content")
        error = error | {"param": f"{path}.foo" if params else path, "code": "unknown_parameter"}
        server.refuses = lambda body: error if len(server.bodies) == 1 else None
        client = connect(server.config)
        with pytest.raises(VendorCallError):
            await ask(client, streamed=True, **params)
        await ask(client, streamed=True)
        assert server.bodies[-1]["stream_options"] == {"include_usage": True}

    async def test_shape_stays(self, server, connect, streamed):
        error = {"message": "no", "param": "stop", "code": "unsupported_parameter"}
        server.refuses = lambda body: error if "stop" in body else None
        client = connect(server.config)
        for _ in range(2):
            with pytest.raises(VendorCallError) as caught:
                await ask(client, streamed, stop=["x"])
            assert (caught.value.failure.param, caught.value.failure.mendable) == ("stop", False)

    async def test_nothing_is_left_out_where_that_is_forbidden(self, server, connect, streamed):
        server.refuses = lambda _: REFUSALS["unsupported_value"]
        client = connect(server.config, drop_unsupported_params=False)
        for _ in range(2):
            with pytest.raises(VendorCallError) as caught:
                await ask(client, streamed, temperature=0.2)
            assert not caught.value.failure.mendable
        assert all("temperature" in body for body in server.bodies)


class TestGateway:
    """Who is asked, and what the reply says."""

    def gateway(self, *configs, **settings):
        return AsyncGateway(configs, settings=GatewaySettings(cache_enabled=False, **settings))

    async def reply(self, gateway, streamed, **params):
        if not streamed:
            return await gateway.chat("hi", **params)
        stream = gateway.stream("hi", **params)
        async for _ in stream:
            pass
        return stream.response

    async def test_the_only_one_is_asked_without(self, server, streamed):
        server.refuses = lambda body: REFUSALS["older"] if "temperature" in body else None
        async with self.gateway(server.config) as gateway:
            first = await self.reply(gateway, streamed, temperature=0.2)
            second = await self.reply(gateway, streamed, temperature=0.3)
        refused, answered = first.attempts
        assert (refused.failure, refused.dropped) == ("unsupported", ())
        assert answered.dropped == ("temperature",)
        assert [attempt.dropped for attempt in second.attempts] == [("temperature",)]
        assert len(server.bodies) == 3

    async def test_one_that_takes_all_goes_first(self, server, simulator, streamed):
        error = {"message": "Unrecognized request argument supplied: seed"}
        server.refuses = lambda body: error if "seed" in body else None
        other = simulator.openai.config(priority=-1)
        async with self.gateway(server.config, other) as gateway:
            for _ in range(2):
                reply = await self.reply(gateway, streamed, seed=7)
                assert (reply.provider, reply.attempts[-1].dropped) == (other.name, ())
            assert len(server.bodies) == 1
            simulator.openai.behave(Fault.status(503))
            reply = await self.reply(gateway, streamed, seed=7)
        assert (reply.provider, reply.attempts[-1].dropped) == (server.config.name, ("seed",))

    async def test_what_changes_no_answer_changes_no_order(self, simulator, streamed):
        first, second = simulator.gemini.config(priority=2), simulator.openai.config(priority=1)
        async with self.gateway(first, second) as gateway:
            await gateway.warmup()
            reply = await self.reply(gateway, streamed, user="u", prompt_cache_key="k")
        assert reply.provider == first.name
        assert set(reply.attempts[-1].dropped) <= {"user", "prompt_cache_key"}

    async def test_parameters_come_before_the_provider_of_a_session(self, simulator, streamed):
        first, second = simulator.openai.config(priority=2), simulator.anthropic.config(priority=1)
        async with self.gateway(first, second) as gateway:
            await gateway.warmup()
            simulator.openai.behave(Fault.status(503))
            asked = [await self.reply(gateway, streamed, session="s")]
            simulator.openai.recover()
            asked.append(await self.reply(gateway, streamed, session="s"))
            asked.append(await self.reply(gateway, streamed, session="s", seed=7))
        assert [reply.provider for reply in asked] == [second.name, second.name, first.name]

    async def test_a_provider_that_makes_several_calls_is_passed_over(self, simulator, streamed):
        first, second = simulator.gemini.config(priority=2), simulator.openai.config(priority=1)
        params = {"tools": FORCED["tools"], "parallel_tool_calls": False}
        async with self.gateway(first, second) as gateway:
            reply = await self.reply(gateway, streamed, **params)
        assert reply.provider == second.name
        assert simulator.openai.received[-1].body["parallel_tool_calls"] is False
        assert simulator.gemini.request_count == 0

    async def test_an_error_names_the_parameter_and_who_does_not_take_it(self, simulator):
        simulator.openai.behave(
            Fault.status(
                400, message="Unsupported parameter: 'n' is not supported with this model."
            )
        )
        configs = (simulator.openai.config(priority=1), simulator.anthropic.config())
        async with self.gateway(*configs) as gateway:
            with pytest.raises(RequestRejectedError) as caught:
                await gateway.chat("hi", n=2)
        causes = caught.value.causes
        assert [(c.param, c.status) for c in causes] == [("n", 400), ("n", None)]
        assert causes[0].detail == "Unsupported parameter: 'n' is not supported with this model."
        assert all(f"{c.name}: unsupported" in str(caught.value) for c in configs)
        assert ": n)" in str(caught.value)
        assert "is not supported" not in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).causes[0].detail == causes[0].detail


async def test_an_endless_variety_of_values_is_not_kept(simulator):
    rules = ParameterRules(simulator.anthropic.config(), SYSTEM_CLOCK, "hints")
    for number in range(2000):
        rules.dropped({"temperature": number / 2000})
    assert len(rules._plans) <= 512


def test_hints_and_shape():
    assert {"temperature", "top_p", "seed", "logit_bias", "reasoning_effort", "user"} <= HINTS
    assert HINTS.isdisjoint({"tools", "response_format", "n", "stop", "max_tokens", "modalities"})


async def test_the_vendors_words_are_for_the_object_only(vendor, client, caplog):
    caplog.set_level(logging.DEBUG)
    vendor.behave(Fault.status(400, message=f"Bad key {vendor.key} for 'the prompt'"))
    with pytest.raises(VendorCallError) as caught:
        await client.chat(asking())
    failure = caught.value.failure
    cause = failure.of("a")
    assert cause.detail == "Bad key *** for 'the prompt'"
    assert "the prompt" not in str(cause) + repr(cause) + repr(failure) + caplog.text


class TestOfTheProvider:
    """Parameters in `LLMConfig.extra` are fitted like a caller's."""

    async def test_hints_are_left_out(self, vendor, connect, streamed, caplog):
        own = NOT_TAKEN[vendor.name]
        client = connect(vendor.config(extra={**own, "max_tokens": 50}))
        for _ in range(2):
            body, dropped = await sent(vendor, client, streamed)
            assert body.keys().isdisjoint(own)
            assert dropped == ()  # none of the caller's
            assert "50" in str(body)
        told = [r.getMessage() for r in caplog.records if r.name == "aigateway.wires.parameters"]
        assert len(told) == len(own)

    async def test_values_are_in_range_and_the_callers_stand_over_them(
        self, simulator, connect, streamed
    ):
        vendor = simulator.anthropic
        client = connect(vendor.config(extra={"temperature": 1.3, "max_tokens": 50}))
        body, _ = await sent(vendor, client, streamed)
        assert (body["temperature"], body["max_tokens"]) == (1.0, 50)
        body, _ = await sent(vendor, client, streamed, temperature=0.5, max_completion_tokens=70)
        assert (body["temperature"], body["max_tokens"]) == (0.5, 70)

    async def test_what_is_refused_is_learned(self, server, connect, streamed):
        server.refuses = lambda b: REFUSALS["unsupported_value"] if "temperature" in b else None
        client = connect(server.config.model_copy(update={"extra": {"temperature": 0.2}}))
        with pytest.raises(VendorCallError) as caught:
            await ask(client, streamed, seed=1)
        assert caught.value.failure.mendable
        await ask(client, streamed, seed=1)
        assert (server.bodies[-1]["seed"], "temperature" in server.bodies[-1]) == (1, False)
