"""Every fault on every wire: status, form, and what happens to the connection."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import pytest

from aigateway.simulator import Fault, Simulator
from aigateway.simulator.faults import fault_from

# name: openai, azure, gemini, anthropic
STATUSES = {
    "bad_request": (400, 400, 400, 400),
    "too_large": (413, 413, 400, 413),
    "unsupported_media": (415, 415, 400, 415),
    "context_window": (400, 400, 400, 400),
    "content_policy": (400, 400, 200, 400),
    "bad_key": (401, 401, 400, 401),
    "forbidden": (403, 403, 403, 403),
    "region": (403, 403, 400, 403),
    "retired_model": (404, 410, 404, 404),
    "model_not_found": (404, 404, 404, 404),
    "not_a_chat_model": (404, 400, 404, 404),
    "not_an_embedding_model": (403, 400, 404, 404),
    "not_offered": (405, 405, 405, 405),
    "file_not_found": (404, 404, 403, 404),
    "no_credit": (402, 402, 429, 400),
    "insufficient_quota": (429, 429, 429, 400),
    "rate_limited": (429, 429, 429, 429),
    "server_error": (500, 500, 500, 500),
    "overloaded": (503, 503, 503, 529),
}
TELLING = {
    "openai": {
        "context_window": "context_length_exceeded",
        "content_policy": "invalid_prompt",
        "bad_key": "invalid_api_key",
        "region": "unsupported_country_region_territory",
        "retired_model": "has been deprecated",
        "model_not_found": "model_not_found",
        "not_a_chat_model": "This is not a chat model",
        "not_an_embedding_model": "not allowed to generate embeddings",
        "file_not_found": "No such File object",
        "no_credit": "Insufficient Balance",
        "insufficient_quota": "insufficient_quota",
        "rate_limited": "rate_limit_exceeded",
    },
    "azure": {
        "context_window": "context_length_exceeded",
        "content_policy": "ResponsibleAIPolicyViolation",
        "bad_key": "invalid subscription key",
        "retired_model": "ModelDeprecated",
        "model_not_found": "DeploymentNotFound",
        "not_a_chat_model": "OperationNotSupported",
        "not_an_embedding_model": "The embeddings operation does not work",
        "insufficient_quota": "insufficient_quota",
    },
    "gemini": {
        "context_window": "exceeds the maximum number of tokens",
        "content_policy": "blockReason",
        "bad_key": "API_KEY_INVALID",
        "not_an_embedding_model": "is not supported for embedContent",
        "file_not_found": "permission to access the File",
        "region": "User location is not supported",
        "no_credit": "credits are depleted",
        "insufficient_quota": "spending cap",
        "rate_limited": "QuotaFailure",
        "overloaded": "UNAVAILABLE",
    },
    "anthropic": {
        "context_window": "prompt is too long",
        "content_policy": "content filtering policy",
        "bad_key": "authentication_error",
        "region": "unsupported countries",
        "model_not_found": "not_found_error",
        "file_not_found": "File not found",
        "no_credit": "credit balance is too low",
        "insufficient_quota": "usage limits",
        "rate_limited": "rate_limit_error",
        "overloaded": "overloaded_error",
    },
}
ORDER = ("openai", "azure", "gemini", "anthropic")
BROKEN = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError)


@pytest.mark.parametrize("name", STATUSES)
async def test_errors_have_the_vendors_status_and_words(vendor, ask, name):
    vendor.behave(getattr(Fault, name)())
    reply = await ask.chat(vendor)
    assert reply.status == STATUSES[name][ORDER.index(vendor.wire)]
    assert reply.headers["content-type"].startswith("application/json")
    assert TELLING[vendor.wire].get(name, "") in reply.raw.decode()
    assert "{" not in json.dumps(reply.json.get("error", {}).get("message", ""))


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 408, 409, 418, 422, 429, 499])
async def test_any_4xx(vendor, ask, code):
    vendor.behave(Fault.status(code))
    reply = await ask.chat(vendor)
    assert reply.status == code
    assert reply.json["error"]["message"]


@pytest.mark.parametrize("code", [500, 502, 503, 504, 529, 599])
async def test_any_5xx(vendor, ask, code):
    vendor.behave(Fault.server_error(code))
    reply = await ask.chat(vendor, stream=True)
    assert reply.status == code
    assert reply.json["error"]["message"]


@pytest.mark.parametrize("code", [405, 501])
async def test_an_operation_that_is_not_offered(vendor, ask, code):
    vendor.behave(Fault.not_offered(code))
    reply = await ask.chat(vendor)
    assert reply.status == code
    assert reply.json["error"]["message"]


TOOLS = {
    "gemini": [{"functionDeclarations": [{"name": "f"}]}],
    "anthropic": [{"name": "f", "input_schema": {"type": "object"}}],
}
FUNCTION = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
NO_TOOLS = {
    "openai": (400, "unsupported_parameter"),
    "azure": (400, "unsupported_parameter"),
    "gemini": (400, "Function calling is not enabled"),
    "anthropic": (400, "does not support tool use"),
}


async def test_a_model_without_tools_refuses_only_requests_with_tools(vendor, ask):
    vendor.behave(Fault.no_tools())
    status, words = NO_TOOLS[vendor.wire]
    refused = await ask.chat(vendor, tools=TOOLS.get(vendor.wire, FUNCTION))
    assert refused.status == status
    assert words in refused.raw.decode()
    assert (await ask.chat(vendor)).status == 200
    assert (await ask.chat(vendor, tools=[])).status == 200


async def test_the_imitators_have_words_of_their_own(sim: Simulator, ask):
    vendor = await sim.add("openai_compatible")
    said = {
        Fault.no_tools(): (404, "No endpoints found that support tool use"),
        Fault.not_a_chat_model(): (400, "does not support chat"),
        Fault.not_an_embedding_model(): (400, "does not support Embeddings API"),
        Fault.not_offered(501): (501, "does not support this API"),
    }
    for fault, (status, words) in said.items():
        vendor.behave(fault)
        reply = await ask.chat(vendor, tools=FUNCTION)
        assert reply.status == status
        assert words in reply.raw.decode()


class TestBadPrompt:
    async def test_only_a_prompt_with_the_marker_meets_it(self, vendor, ask):
        vendor.behave(Fault.bad_prompt("BAD"))
        for prompt, status in {"a": 200, "it is BAD": 500, "bad": 200, "BAD": 500}.items():
            assert (await ask.chat(vendor, prompt)).status == status
            assert (await ask.chat(vendor, prompt, stream=True)).status == status

    async def test_an_empty_answer(self, vendor, ask):
        vendor.behave(Fault.bad_prompt("BAD", Fault.empty()))
        reply = await ask.chat(vendor, "BAD")
        assert (reply.status, reply.raw) == (200, b"")

    async def test_a_reset(self, vendor, ask):
        vendor.behave(Fault.bad_prompt("BAD", Fault.reset()))
        with pytest.raises(BROKEN):
            await ask.chat(vendor, "BAD")
        assert (await ask.chat(vendor, "good")).status == 200

    async def test_a_hang_does_not_affect_healthy_answers(self, vendor, ask, until):
        vendor.behave(Fault.bad_prompt("BAD", Fault.hang()))
        asking = asyncio.create_task(ask.chat(vendor, "BAD"))
        await until(lambda: vendor.received)
        assert (await ask.chat(vendor, "good")).status == 200
        assert not asking.done()
        asking.cancel()

    async def test_embeddings_too(self, sim: Simulator, ask):
        sim.openai.behave(Fault.bad_prompt("BAD"))
        for text, status in {"BAD": 500, "good": 200}.items():
            body = {"model": "emb", "input": ["a", text]}
            assert (await ask.post(sim.openai, "/v1/embeddings", body)).status == status

    async def test_a_body_that_is_no_json_is_no_bad_prompt(self, sim: Simulator, ask):
        sim.openai.behave(Fault.bad_prompt("BAD"))
        assert (await ask.post(sim.openai, "/v1/chat/completions", b"BAD")).status == 400

    def test_impossible_faults_are_refused(self):
        with pytest.raises(ValueError, match="marker"):
            Fault.bad_prompt("")
        with pytest.raises(ValueError, match="refuse"):
            Fault.bad_prompt("BAD", Fault.refuse())

    def test_from_words(self):
        assert fault_from("bad_prompt:BAD") == Fault.bad_prompt("BAD")
        assert fault_from("bad_prompt:7:status:429:retry_after=2") == Fault.bad_prompt(
            "7", Fault.status(429, retry_after=2)
        )
        named = {"marker": "BAD", "fault": "hang"}
        assert fault_from("bad_prompt", named) == Fault.bad_prompt("BAD", Fault.hang())
        with pytest.raises(ValueError, match="as in bad_prompt:BAD:status:500"):
            fault_from("bad_prompt:BAD:ok")


async def test_code_name_and_message_can_be_given(vendor, ask):
    vendor.behave(Fault.status(409, code_name="odd_thing", message="Très étrange"))
    raw = (await ask.chat(vendor)).raw.decode()
    assert "odd_thing" in raw
    assert "Très étrange" in raw


@pytest.mark.parametrize(
    ("given", "header", "value"),
    [
        (2, "retry-after", "2"),
        (0.25, "retry-after", "0.25"),
        ("1500ms", "retry-after-ms", "1500"),
        ("Wed, 21 Oct 2099 07:28:00 GMT", "retry-after", "Wed, 21 Oct 2099 07:28:00 GMT"),
    ],
)
async def test_retry_after(vendor, ask, given, header, value):
    vendor.behave(Fault.rate_limited(retry_after=given))
    reply = await ask.chat(vendor)
    assert reply.headers[header] == value
    if vendor.wire == "gemini":
        delays = [d["retryDelay"] for d in reply.json["error"]["details"] if "retryDelay" in d]
        assert delays == ([f"{value}s"] if not isinstance(given, str) else [])


async def test_no_retry_after_unasked(vendor, ask):
    vendor.behave(Fault.rate_limited())
    headers = (await ask.chat(vendor)).headers
    assert not [name for name in headers if name.lower().startswith("retry-after")]


async def test_gemini_blocks_a_prompt_in_a_stream_too(sim: Simulator, ask):
    sim.gemini.behave(Fault.content_policy())
    reply = await ask.chat(sim.gemini, stream=True)
    assert reply.status == 200
    assert [d["promptFeedback"]["blockReason"] for d in reply.data] == ["PROHIBITED_CONTENT"]


@pytest.mark.parametrize("stream", [False, True])
async def test_hang(vendor, ask, until, stream):
    vendor.behave(Fault.hang())
    asking = asyncio.create_task(ask.chat(vendor, stream=stream))
    await until(lambda: vendor.received)
    assert not (await asyncio.wait({asking}, timeout=0.02))[0]
    asking.cancel()


async def test_slow(vendor, ask):
    vendor.behave(Fault.slow(0.05))
    begin = time.perf_counter()
    assert (await ask.chat(vendor)).status == 200
    assert time.perf_counter() - begin >= 0.045


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [Fault.reset(), Fault.reset_in_body()], ids=lambda f: f.name)
async def test_reset(vendor, ask, fault, stream):
    vendor.behave(fault)
    with pytest.raises(BROKEN):
        await ask.chat(vendor, stream=stream)


@pytest.mark.parametrize("fault", [Fault.reset(), Fault.reset_in_body()], ids=lambda f: f.name)
async def test_a_reset_is_a_real_one(sim: Simulator, fault):
    sim.openai.behave(fault)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(sim.openai.url.rpartition(":")[2])
    )
    head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n"
    writer.write(head)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_cut_body(vendor, ask, stream):
    vendor.behave(Fault.cut_body())
    with pytest.raises(aiohttp.ClientPayloadError):
        await ask.chat(vendor, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_html_empty_malformed(vendor, ask, stream):
    vendor.behave(Fault.html(), Fault.html(502), Fault.empty(), Fault.malformed())
    page = await ask.chat(vendor, stream=stream)
    assert (page.status, page.headers["content-type"][:9]) == (200, "text/html")
    assert (await ask.chat(vendor, stream=stream)).status == 502
    empty = await ask.chat(vendor, stream=stream)
    assert (empty.status, empty.raw) == (200, b"")
    broken = await ask.chat(vendor, stream=stream)
    assert broken.status == 200
    with pytest.raises(json.JSONDecodeError):
        _ = broken.data if stream else broken.json


async def test_no_choices(vendor, ask):
    vendor.behave(Fault.no_choices())
    body = (await ask.chat(vendor)).json
    streamed = await ask.chat(vendor, stream=True)
    match vendor.wire:
        case "gemini":
            assert "candidates" not in body
        case "anthropic":
            assert body["content"] == []
        case _:
            assert body["choices"] == []
    assert "Hello" not in streamed.raw.decode()


async def test_no_usage(vendor, ask):
    vendor.behave(Fault.no_usage())
    more = (
        {}
        if vendor.wire in {"gemini", "anthropic"}
        else {"stream_options": {"include_usage": True}}
    )
    assert "usage" not in (await ask.chat(vendor)).raw.decode().lower()
    assert "usage" not in (await ask.chat(vendor, stream=True, **more)).raw.decode().lower()


async def test_error_in_200(vendor, ask):
    vendor.behave(Fault.error_in_200("Oh no"))
    reply = await ask.chat(vendor)
    assert reply.status == 200
    assert reply.json["error"]["message"] == "Oh no"


async def test_redirect(vendor, ask):
    vendor.behave(Fault.redirect(), Fault.redirect("http://127.0.0.1:1/", code=302))
    first, second = await ask.chat(vendor), await ask.chat(vendor)
    assert first.status == 307
    assert first.headers["location"].startswith("/redirected/")
    assert (second.status, second.headers["location"]) == (302, "http://127.0.0.1:1/")


def _pieces(raw: str) -> int:
    return sum(word in raw for word in ("alpha", "beta", "gamma"))


@pytest.mark.parametrize("after", [0, 1, 2, 3, 9])
async def test_error_event(vendor, ask, after):
    vendor.behave(Fault.error_event(after=after))
    reply = await ask.chat(vendor, "alpha beta gamma", stream=True)
    assert reply.status == 200
    assert _pieces(reply.raw.decode()) == min(after, 3)
    last = reply.data[-1]
    assert last["error"]["message"]
    assert len(reply.data) > 1 or after == 0
    if vendor.wire == "anthropic":
        assert reply.events[-1] == last["type"] == "error"


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_cut_stream_cleanly(vendor, ask, after):
    vendor.behave(Fault.cut_stream(after=after))
    raw = (await ask.chat(vendor, "alpha beta gamma", stream=True)).raw.decode()
    assert _pieces(raw) == after
    for word in ("[DONE]", '"STOP"', "message_delta", '"stop"'):
        assert word not in raw


@pytest.mark.parametrize("after", [0, 2])
async def test_cut_stream_in_the_middle_of_the_body(vendor, ask, after):
    vendor.behave(Fault.cut_stream(after=after, clean=False))
    with pytest.raises(aiohttp.ClientPayloadError):
        await ask.chat(vendor, "alpha beta gamma", stream=True)


async def test_stall_stream(vendor, ask, until):
    vendor.behave(Fault.stall_stream(after=1))
    got = bytearray()
    async with ask.open_stream(vendor, "alpha beta") as response:
        reading = asyncio.create_task(_read_into(got, response))
        await until(lambda: _pieces(got.decode()) == 1)
        assert not (await asyncio.wait({reading}, timeout=0.05))[0]
        reading.cancel()
    assert _pieces(got.decode()) == 1


@pytest.mark.parametrize(
    "fault", [Fault.error_event(), Fault.cut_stream(), Fault.stall_stream()], ids=lambda f: f.name
)
async def test_stream_faults_leave_plain_requests_alone(vendor, ask, fault):
    vendor.behave(fault)
    assert (await ask.chat(vendor)).status == 200


async def test_random_hits_its_share_and_repeats_with_a_seed(sim: Simulator, ask):
    async def statuses() -> list[int]:
        sim.openai.behave(Fault.random(0.3, Fault.status(500), seed=4))
        return [(await ask.chat(sim.openai)).status for _ in range(60)]

    first = await statuses()
    assert 8 < first.count(500) < 30
    assert first.count(200) + first.count(500) == 60
    assert await statuses() == first


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_random_refuses_an_invalid_probability(probability):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Fault.random(probability, Fault.hang())


def test_random_cannot_refuse_connects():
    with pytest.raises(ValueError, match="reset"):
        Fault.random(0.5, Fault.refuse())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ok", None),
        ("healthy", None),
        ("hang", Fault.hang()),
        ("status:503", Fault.status(503)),
        ("status:429:retry_after=2", Fault.status(429, retry_after=2)),
        ("rate_limited:1500ms", Fault.rate_limited("1500ms")),
        ("slow:0.5", Fault.slow(0.5)),
        ("cut_stream:2:clean=false", Fault.cut_stream(2, clean=False)),
        (" overloaded ", Fault.overloaded()),
    ],
)
def test_faults_from_text(text, fault):
    assert fault_from(text) == fault


def test_random_from_text():
    fault = fault_from("random:0.3:status:500")
    assert fault is not None
    assert fault.probability == 0.3
    assert fault.inner == Fault.status(500)
    also = fault_from("random", {"probability": 0.3, "fault": "status", "args": {"code": 500}})
    assert also == fault


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("statis:500", "unknown fault 'statis'; known: ok, status"),
        ("status", "missing a required argument: 'code'"),
        ("hang:1", "too many arguments"),
        ("status:500:color=red", "color"),
        ("__init__", "unknown fault"),
        ("random:0.3", "unknown fault ''"),
        ("random:0.3:ok", "needs a fault"),
        ("random:often:hang", "probability"),
    ],
)
def test_invalid_texts_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")):
        fault_from(text)


async def _read_into(buffer: bytearray, response: aiohttp.ClientResponse) -> None:
    async for data in response.content.iter_any():
        buffer += data
