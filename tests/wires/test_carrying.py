"""A caller's headers go to the vendor, and none of them stands over the provider's own."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway import AsyncGateway, Origin, RequestRejectedError
from aigateway.cache.key import cache_key
from aigateway.messages import ChatRequest, EmbeddingRequest
from aigateway.simulator import Simulator
from aigateway.wires.wire import with_caller_headers

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = {"X-Request-ID": "r-1", "traceparent": TRACE, "tracestate": "a=b"}
HOSTILE = {
    "Authorization": "Bearer stolen",
    "API-Key": "stolen",
    "X-Api-Key": "stolen",
    "X-Goog-Api-Key": "stolen",
    "Host": "evil.example",
    "Content-Type": "text/plain",
    "Content-Length": "3",
    "Transfer-Encoding": "chunked",
    "anthropic-version": "1",
    "X-Team": "theirs",
}
CHAT = ChatRequest(({"role": "user", "content": "hi"},))


async def read_out(stream):
    while await stream.read() is not None:
        pass
    await stream.aclose()


async def asked(vendor, connect, how, headers):
    """The headers that arrived: of a request without any of the caller's, and with them."""
    model = vendor.embedding_model if how == "embed" else vendor.model
    client = connect(vendor.config(model=model, headers={"X-Team": "ours"}))
    arrived = []
    nothing: dict[str, str] = {}
    for given_headers in (nothing, headers):
        if how == "embed":
            await client.embed(EmbeddingRequest(("hi",), headers=given_headers))
        else:
            request = replace(CHAT, headers=given_headers)
            if how == "chat":
                await client.chat(request)
            else:
                await read_out(await client.stream(request))
        arrived.append(vendor.received[-1].headers)
    return arrived


def ways(vendor):
    return ("chat", "stream") if vendor.name == "anthropic" else ("chat", "stream", "embed")


async def test_they_arrive(vendor, connect):
    for how in ways(vendor):
        without, arrived = await asked(vendor, connect, how, HEADERS)
        assert {name: arrived.get(name) for name in HEADERS} == HEADERS
        assert not HEADERS.keys() & set(without)


async def test_what_is_not_theirs_to_set_is_left_out(vendor, connect):
    for how in ways(vendor):
        without, arrived = await asked(vendor, connect, how, HEADERS | HOSTILE)
        assert arrived["x-request-id"] == "r-1"
        names = {*map(str.lower, HOSTILE), "x-team"}
        assert {n: arrived.get(n) for n in names} == {n: without.get(n) for n in names}
        assert arrived["x-team"] == "ours"
        assert len(arrived.getall("x-team")) == 1


@given(st.dictionaries(st.text("abcAPIKey-", min_size=1), st.text(max_size=3)))
def test_the_providers_own_always_stand(carried):
    own = {"a": "own", "Api-Key": "own", "B": "own"}
    together = with_caller_headers(own, carried)
    assert {name: together[name] for name in own} == own
    lowered = [name.lower() for name in together]
    assert not {"a", "api-key", "b"} & {n.lower() for n in together.keys() - own.keys()}
    assert lowered.count("api-key") == 1


def test_the_cache_key_does_not_know_them():
    assert cache_key(replace(CHAT, headers=HEADERS)) == cache_key(CHAT)


async def test_through_the_gateway(simulator: Simulator):
    origin = Origin(request_id="r-1", headers=HEADERS)
    vendor = simulator.openai
    configs = [vendor.config(), vendor.config(model=vendor.embedding_model)]
    async with AsyncGateway(configs) as gateway:
        await gateway.chat("hi", model=vendor.model, origin=origin)
        assert (await gateway.chat("hi", model=vendor.model)).cached, "the headers do not count"
        async for _ in gateway.stream("ho", model=vendor.model, origin=origin):
            pass
        await gateway.embed("hi", model=vendor.embedding_model, origin=origin)
    assert [r.headers["traceparent"] for r in vendor.received] == [TRACE] * 3


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Request-ID": "a\r\nAuthorization: Bearer x"},
        {"X Request": "a"},
        {"": "a"},
        {"X-Request-ID": "\u00e4"},
        {"X-Request-ID": 7},
        ["X-Request-ID"],
    ],
)
async def test_what_cannot_go_over_the_wire_is_refused(simulator, headers):
    origin = Origin(headers=headers)
    async with AsyncGateway([simulator.openai.config()]) as gateway:
        with pytest.raises(RequestRejectedError, match=r"origin\.headers"):
            await gateway.chat("hi", origin=origin)
        with pytest.raises(RequestRejectedError, match=r"origin\.headers"):
            await gateway.embed("hi", origin=origin)
    assert simulator.openai.received == ()
