"""Everything a vendor can do to us, on each wire: what it is called, and one request each."""

import asyncio

import pytest
from aiohttp import web

from aigateway.errors import FailureKind
from aigateway.messages import EmbeddingRequest
from aigateway.settings import LLMConfig
from aigateway.simulator import Fault
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.failures import VERDICTS
from tests import descriptors
from tests.gateways import until
from tests.wires.calls import LANES, WIRES, asking, failure_of, in_turn

OVER_THE_LIMIT = "Request too large for x on tokens per min (TPM): Limit 30000, Requested 342389."
FAULTS = {
    # name: fault, kind, status (one for all wires, or one for each)
    "bad request": (Fault.bad_request(), "rejected", 400),
    "too large": (Fault.too_large(), "context_window", (413, 413, 400, 413)),
    "context window": (Fault.context_window(), "context_window", 400),
    "content policy": (Fault.content_policy(), "content_policy", (400, 400, 200, 400)),
    "bad key": (Fault.bad_key(), "authentication", (401, 401, 400, 401)),
    "forbidden": (Fault.forbidden(), "permission", 403),
    "region": (Fault.region(), "permission", (403, 403, 400, 403)),
    "retired model": (Fault.retired_model(), "model_not_found", (404, 410, 404, 404)),
    "no model": (Fault.model_not_found(), "model_not_found", 404),
    "no chat": (
        Fault.not_a_chat_model(),
        ("unsupported", "unsupported", "model_not_found", "model_not_found"),
        (404, 400, 404, 404),
    ),
    "no embeddings": (
        Fault.not_an_embedding_model(),
        ("unsupported", "unsupported", "unsupported", "model_not_found"),
        (403, 400, 404, 404),
    ),
    "no file": (Fault.file_not_found(), "unsupported", (404, 404, 403, 404)),
    "not offered": (Fault.not_offered(405), "not_offered", 405),
    "not implemented": (Fault.not_offered(501), "not_offered", 501),
    "over the limit": (Fault.status(429, message=OVER_THE_LIMIT), "unsupported", 429),
    "tokens": (Fault.status(413, message="Tokens per minute exceeded"), "rate_limited", 413),
    "own slip": (Fault.status(400, message="Failed to call a function."), "invalid_output", 400),
    "bare 401": (Fault.empty(401), "authentication", 401),
    "bare 402": (Fault.empty(402), "no_credit", 402),
    "bare 403": (Fault.html(403), "permission", 403),
    "bare 404": (Fault.empty(404), "model_not_found", 404),
    "bare 413": (Fault.html(413), "context_window", 413),
    "no credit": (Fault.no_credit(), "no_credit", (402, 402, 429, 400)),
    "quota": (Fault.insufficient_quota(), "no_credit", (429, 429, 429, 400)),
    "rate limit": (Fault.rate_limited(), "rate_limited", 429),
    "overloaded": (Fault.overloaded(), "server_error", (503, 503, 503, 529)),
    "reset": (Fault.reset(), "connection", None),
    "reset in body": (Fault.reset_in_body(), "connection", None),
    "cut body": (Fault.cut_body(), "connection", None),
    "HTML": (Fault.html(), "bad_answer", 200),
    "HTML 502": (Fault.html(502), "server_error", 502),
    "empty": (Fault.empty(), "bad_answer", 200),
    "empty 503": (Fault.empty(503), "server_error", 503),
    "malformed": (Fault.malformed(), "bad_answer", 200),
    "no choices": (Fault.no_choices(), "bad_answer", 200),
    "error in 200": (Fault.error_in_200(), "server_error", 200),
    "redirect": (Fault.redirect(), "bad_answer", 307),
    **{
        str(status): (Fault.status(status), kind, status)
        for status, kind in {
            408: "timeout",
            409: "server_error",
            418: "unknown",
            422: "rejected",
            424: "server_error",
            499: "server_error",
            500: "server_error",
            502: "server_error",
            503: "server_error",
            504: "server_error",
            529: "server_error",
        }.items()
    },
}


CERTAIN = {
    "bad key",
    "forbidden",
    "region",
    "retired model",
    "no model",
    "no credit",
    "quota",
}
"""Where the vendor's own words or code speak of key, region, model, deployment or billing."""


def on(vendor, value):
    """What a cell of the table says for one wire."""
    return value[WIRES.index(vendor.name)] if isinstance(value, tuple) else value


CELLS = [
    pytest.param(name, wire, lane, id=f"{name}-{wire}-{lane.__name__}")
    for place, (name, (_, *verdict)) in enumerate(FAULTS.items())
    for turn, wire in enumerate(WIRES)
    for lane in LANES
    if turn == (place + (lane is DirectClient)) % len(WIRES)
    or (lane is DirectClient and any(isinstance(value, tuple) for value in verdict))
]
"""Each fault in each lane, on two wires in all; in the direct lane on each that differs."""


@pytest.mark.parametrize(("name", "vendor", "lane"), CELLS, indirect=["vendor"])
async def test_kind_status_and_one_request(name, vendor, client):
    fault, kind, status = FAULTS[name]
    vendor.behave(fault)
    failure = await failure_of(client)
    assert (failure.kind, failure.status) == (on(vendor, kind), on(vendor, status))
    if failure.kind is FailureKind.MODEL_NOT_FOUND and name == "no chat":
        assert failure.certain  # the words are those for a model that does not exist
    else:
        assert failure.certain is (name in CERTAIN)
    assert vendor.request_count == 1


@pytest.mark.parametrize("vendor", ["gemini"], indirect=True)
@pytest.mark.parametrize("call", ["401", "403", "429", "quota exceeded"])
async def test_what_litellm_cannot_translate_is_not_the_vendors_word(vendor, client, call):
    """litellm's exception quotes the request, and its class is taken from words in that."""
    answer = {"role": "tool", "tool_call_id": call, "content": "r"}
    for name in ("chat", "stream"):
        with pytest.raises(VendorCallError) as caught:
            await getattr(client, name)(asking("2+2?", answer))
        assert (caught.value.failure.kind, vendor.request_count) == (FailureKind.UNSUPPORTED, 0)


async def test_tools_at_a_model_without_them(vendor, client):
    vendor.behave(Fault.no_tools())
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    failure = await failure_of(client, asking(tools=[{"type": "function", "function": function}]))
    assert (failure.kind, failure.certain) == (FailureKind.UNSUPPORTED, False)
    assert (await client.chat(asking())).choices[0].text == "4"


async def test_what_a_compatible_server_cannot_do(simulator, connect):
    vendor = await simulator.add("openai_compatible")
    client = connect(vendor.config())
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for fault in (Fault.no_tools(), Fault.not_a_chat_model(), Fault.not_an_embedding_model()):
        vendor.behave(fault)
        assert (await failure_of(client, asking(tools=tools))).kind is FailureKind.UNSUPPORTED
    vendor.behave(Fault.not_offered(501))
    assert (await failure_of(client)).kind is FailureKind.NOT_OFFERED


@pytest.mark.parametrize("vendor", ["openai", "azure", "gemini"], indirect=True)
async def test_vectors_from_a_model_that_only_chats(vendor, connect):
    client = connect(vendor.config(model="gpt-4o" if vendor.name != "gemini" else vendor.model))
    failure = await failure_of(client, EmbeddingRequest(inputs=("a",)))
    assert failure.kind is FailureKind.UNSUPPORTED
    assert vendor.request_count == 1


@pytest.mark.parametrize("vendor", ["openai", "azure"], indirect=True)
async def test_a_file_that_the_vendor_does_not_have(vendor, client):
    parts = [{"type": "text", "text": "a"}, {"type": "file", "file": {"file_id": "file-1"}}]
    failure = await failure_of(client, asking({"role": "user", "content": parts}))
    assert failure.kind is FailureKind.UNSUPPORTED
    assert vendor.request_count == 1


async def test_a_refused_connection(vendor, client):
    vendor.behave(Fault.refuse())
    assert await failure_of(client) == Failure(FailureKind.CONNECTION, unreachable=True)
    assert vendor.request_count == 0
    vendor.recover()
    assert (await client.chat(asking())).choices[0].text == "4"


@pytest.mark.parametrize(
    ("host", "vendor", "lane"),
    [*in_turn(["127.0.0.1", "localhost"]), *in_turn(["localhost", "127.0.0.1"], WIRES[2:])],
    indirect=["vendor"],
)
async def test_no_descriptor_of_ours_left(vendor, connect, host):
    vendor.headers["connection"] = "close"
    base = vendor.api_base.replace("127.0.0.1", host)
    client = connect(vendor.config(api_base=base))
    await client.chat(asking())  # what is loaded at the first call is there
    with descriptors.none_left():
        assert await failure_of(client) == Failure(FailureKind.SATURATED)
        with pytest.raises(VendorCallError) as caught:
            await client.stream(asking())
        assert caught.value.failure == Failure(FailureKind.SATURATED)
    assert vendor.request_count == 1


@pytest.mark.parametrize(
    ("fault", "vendor", "lane"),
    in_turn([Fault.reset(), Fault.cut_body(), Fault.status(500), Fault.rate_limited()]),
    indirect=["vendor"],
)
async def test_one_request_on_a_connection_that_was_used_before(vendor, client, fault):
    await client.chat(asking())
    vendor.behave(fault)
    await failure_of(client)
    # But for a reset: the direct lane cannot tell it from a connection that had been closed before.
    again = fault == Fault.reset() and isinstance(client, DirectClient)
    assert vendor.request_count == 2 + again


@pytest.mark.parametrize(
    ("fault", "vendor", "lane"),
    in_turn([Fault.reset(), Fault.status(500), Fault.html()], ("openai", "azure", "gemini")),
    indirect=["vendor"],
)
async def test_embeddings_too(vendor, connect, fault):
    vendor.behave(fault)
    client = connect(vendor.config(model=vendor.embedding_model))
    failure = await failure_of(client, EmbeddingRequest(inputs=("a", "b")))
    assert failure.kind in {"connection", "server_error", "bad_answer"}
    assert vendor.request_count == 1


@pytest.mark.parametrize(
    ("fault", "given", "seconds", "vendor", "lane"),
    in_turn(
        [
            (fault, *said)
            for fault in (Fault.rate_limited, Fault.overloaded)
            for said in ((7, 7.0), ("1500ms", 1.5))
        ]
    ),
    indirect=["vendor"],
)
async def test_retry_after(vendor, client, fault, given, seconds):
    vendor.behave(fault(retry_after=given))
    assert (await failure_of(client)).retry_after == seconds


async def test_the_callers_timeout(vendor, client):
    await client.chat(asking())
    vendor.behave(Fault.hang())

    async def ask():
        async with asyncio.timeout(None) as scope:
            scopes.append(scope)
            await client.chat(asking())

    scopes: list[asyncio.Timeout] = []
    chat = asyncio.create_task(ask())
    await until(lambda: vendor.request_count == 2)
    scopes[0].reschedule(0)  # it is over
    with pytest.raises(TimeoutError):
        await chat


async def test_cancellation_goes_through(vendor, client):
    await client.chat(asking())
    vendor.behave(Fault.hang())
    task = asyncio.create_task(client.chat(asking()))
    while vendor.request_count < 2:  # noqa: ASYNC110 - the request is on its way
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_an_answer_without_usage(vendor, client):
    vendor.behave(Fault.no_usage())
    answer = await client.chat(asking())
    assert (answer.usage.total_tokens, answer.cost_usd) == (0, None)
    assert vendor.request_count == 1


async def test_what_the_caller_was_handling_is_not_mixed_in(vendor, client):
    vendor.behave(Fault.refuse())
    try:
        raise PermissionError  # noqa: TRY301
    except PermissionError:
        with pytest.raises(VendorCallError) as caught:
            await client.chat(asking())
    assert caught.value.failure.kind is FailureKind.CONNECTION


async def test_a_server_nobody_can_find(connect, simulator):
    config = simulator.openai.config(api_base="http://nobody.invalid/v1")
    assert await failure_of(connect(config)) == Failure(FailureKind.CONNECTION, unreachable=True)


async def test_a_corrupt_compressed_answer_is_the_vendors_fault(connect):
    async def corrupt(request):
        return web.Response(body=b"not gzip", headers={"Content-Encoding": "gzip"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", corrupt)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    try:
        for kind in ("openai_compatible", "anthropic", "gemini"):
            base = f"http://{host}:{port}/v1"
            config = LLMConfig(kind, "m", api_key="k", api_base=base)
            assert VERDICTS[(await failure_of(connect(config))).kind].counts
    finally:
        await runner.cleanup()
