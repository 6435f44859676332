"""The documented endpoints, and what every endpoint has in common, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest

from aigateway import AsyncGateway, CircuitState
from aigateway.errors import FailureKind
from aigateway.messages import Choice, Completion, ToolCall, Usage
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.testing import FakeClock, ScriptedStream, ScriptedVendor, scripted_configs
from tests.gateways import until
from tests.processes import PATIENCE
from tests.server.callers import api_key, converse
from tests.server.running import running
from tests.server.services import scripted, served

HELLO = {"message": "Hello."}
ERROR_FIELDS = {"message", "type", "param", "code"}


@pytest.fixture
async def client(vendor):
    async with (
        scripted(vendor) as (service, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as made,
    ):
        made.service = service  # type: ignore[attr-defined]
        yield made


def error_of(answer):
    """The error in an answer, which must have OpenAI's form."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == ERROR_FIELDS
    return body["error"]


# ── /chat ────────────────────────────────────────────────────────────────────────────────────


async def test_chat(client, vendor):
    answer = await client.post(
        "/chat", json={"message": "Hi.", "system": "Terse.", "temperature": 0, "max_tokens": 5}
    )
    body = answer.json()
    assert answer.status_code == 200
    assert body["response"] == "ok"
    assert body["provider"] == "a"
    assert body["model"] == "simulated"
    assert body["cached"] is False
    assert body["usage"]["total_tokens"] == 2
    assert body["cost_usd"] == 0.001
    assert body["finish_reason"] == "stop"
    assert body["tool_calls"] == []
    assert body["request_id"] == answer.headers["x-request-id"]
    assert [attempt["failure"] for attempt in body["attempts"]] == [None]
    _, request = vendor.calls[0]
    assert [message["content"] for message in request.messages] == ["Terse.", "Hi."]
    assert request.params == {"temperature": 0, "max_tokens": 5}


async def test_chat_with_messages_and_every_option(client, vendor):
    body = {
        "messages": [{"role": "user", "content": "Hi."}],
        "model": "a",
        "agent": "market",
        "timeout": 7.5,
        "cache": "refresh",
        "cache_ttl": 60,
        "seed": 3,
        "stream": False,
        "n": None,
    }
    answer = await client.post("/chat", json=body)
    assert answer.status_code == 200
    _, request = vendor.calls[0]
    assert (request.model, request.agent, request.timeout) == ("a", "market", 7.5)
    assert (request.cache, request.cache_ttl, request.params) == ("refresh", 60, {"seed": 3})


async def test_chat_gives_tool_calls_in_openais_form(client, vendor):
    choice = Choice("", "tool_calls", (ToolCall("call_1", "add", "{}"),))
    vendor.script("a", Completion("id", "simulated", (choice,), Usage()))
    body = (await client.post("/chat", json=HELLO)).json()
    function = {"name": "add", "arguments": "{}"}
    assert body["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]


async def test_a_remembered_answer_says_so(client):
    first, again = [await client.post("/chat", json=HELLO) for _ in range(2)]
    assert (first.json()["cached"], again.json()["cached"]) == (False, True)
    assert again.json()["cost_usd"] == 0
    assert (first.headers["x-aigateway-cache"], again.headers["x-aigateway-cache"]) == (
        "miss",
        "hit",
    )


async def test_identical_requests_share_an_answer(client, vendor):
    going = asyncio.Event()
    vendor.script("a", going.wait)
    asked = [asyncio.create_task(client.post("/chat", json=HELLO)) for _ in range(2)]
    await until(lambda: client.service.gateway.get_metrics()["total_requests"] == 2)
    going.set()
    answers = await asyncio.gather(*asked)
    assert sorted(a.headers["x-aigateway-cache"] for a in answers) == ["coalesced", "miss"]


async def test_half_a_character_goes_out_as_it_came(client, vendor):
    vendor.script("a", Completion("id", "simulated", (Choice("\ud83d", "stop"),), Usage()))
    answer = await client.post("/chat", json={**HELLO, "cache": False})
    assert answer.status_code == 200
    assert b"\\ud83d" in answer.content


# ── what the headers of a request say ────────────────────────────────────────────────────────


async def test_headers_set_cache_timeout_and_agent(client, vendor):
    headers = {
        "x-aigateway-cache": "refresh",
        "x-aigateway-cache-ttl": "2.5",
        "x-aigateway-timeout": "7",
        "x-aigateway-agent": "market",
    }
    body = {"messages": [{"role": "user", "content": "Hi."}]}
    for stream in (False, True):
        answer = await client.post(
            "/v1/chat/completions", json={**body, "stream": stream}, headers=headers
        )
        assert answer.status_code == 200
        _, request = vendor.calls[-1]
        assert (request.cache, request.cache_ttl) == ("refresh", 2.5)
        assert (request.timeout, request.agent) == (7, "market")


@pytest.mark.parametrize("how", ["setting", "header"])
@pytest.mark.parametrize("resume", ["none", "continue", "restart"])
async def test_a_stream_that_breaks_is_resumed_where_that_is_asked_for(vendor, how, resume):
    settings = {"stream_resume": resume} if how == "setting" else {}
    headers = {"x-aigateway-resume": resume} if how == "header" else {}
    vendor.accepts_prefill = {"b"}
    vendor.script("a", ScriptedStream("Once", " upon", FailureKind.CONNECTION))
    vendor.script("b", ScriptedStream(" a time."))
    body = {"messages": [{"role": "user", "content": "Hi."}], "stream": True}
    async with (
        AsyncGateway(scripted_configs("a", "b"), vendor=vendor, retry_rounds=0) as gateway,
        running(Service(gateway, ServerSettings(**settings))) as url,
    ):
        answer = await asyncio.to_thread(
            httpx.post,
            f"{url}/v1/chat/completions",
            json=body,
            headers=headers,
            timeout=PATIENCE,
        )
    *events, last = answer.text.strip().split("\n\n")
    if resume == "none":
        assert "error" in json.loads(last.removeprefix("data: "))
        return
    assert last == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(deltas) == "Once upon a time."
    marked = [chunk.get("aigateway") for chunk in chunks if "aigateway" in chunk]
    assert marked == ([{"restarted": True}] if resume == "restart" else [])


async def test_the_cache_can_be_left_out(client, vendor):
    for _ in range(2):
        answer = await client.post("/chat", json=HELLO, headers={"x-aigateway-cache": "FALSE"})
        assert answer.headers["x-aigateway-cache"] == "off"
    assert vendor.called() == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-aigateway-cache", "maybe"),
        ("x-aigateway-cache", ""),
        ("x-aigateway-cache-ttl", "0"),
        ("x-aigateway-cache-ttl", "nan"),
        ("x-aigateway-timeout", "-1"),
        ("x-aigateway-timeout", "1e400"),
        ("x-aigateway-timeout", "soon"),
        ("x-aigateway-resume", "sometimes"),
        ("x-aigateway-agent", "a" * 129),
        ("x-aigateway-agent", "ä"),
    ],
)
async def test_a_header_that_makes_no_sense_is_refused(client, vendor, name, value):
    answer = await client.post("/chat", json=HELLO, headers=[(name.encode(), value.encode())])
    assert answer.status_code == 400
    assert error_of(answer)["param"] == name
    assert not vendor.calls


async def test_a_stale_answer_comes_in_time(vendor, clock):
    vendor.script("a", "old", lambda: clock.sleep(1000))
    kept = {"cache_ttl_seconds": 10, "stale_if_error_seconds": 60}
    async with (
        scripted(vendor, clock=clock, server={"request_timeout": 3}, **kept) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        assert (await client.post("/chat", json=HELLO)).status_code == 200
        await clock.advance(11)
        asking = asyncio.create_task(client.post("/chat", json=HELLO))
        await until(lambda: vendor.called() == 2)
        await clock.advance(3)
        answer = await asking
    assert (answer.status_code, answer.json()["stale"]) == (200, True)


async def test_no_request_takes_longer_than_the_service_allows(vendor):
    async with (
        scripted(vendor, server={"request_timeout": 3}) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        await client.post("/chat", json={**HELLO, "timeout": 100})
        await client.post("/chat", json={**HELLO, "cache": False})
        await client.post("/chat", json={**HELLO, "cache": False, "timeout": 2})
    first, second, third = (request.timeout for _, request in vendor.calls)
    # A little less than the service's own, so that the gateway says how it ended.
    assert 2 < first < 3
    assert 2 < second < 3
    assert third == 2


@pytest.mark.parametrize(("given", "kept"), [("mine-1", True), ("a b", False), ("x" * 129, False)])
async def test_a_callers_request_id_is_kept_if_it_is_fit_for_a_log(client, vendor, given, kept):
    answer = await client.post("/chat", json=HELLO, headers={"X-Request-ID": given})
    name = answer.headers["x-request-id"]
    assert (name == given) is kept
    assert vendor.calls[0][1].request_id == name
    assert vendor.calls[0][1].headers == {"X-Request-ID": name}


async def test_the_trace_goes_on_to_the_vendor(client, vendor):
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    await client.post("/chat", json=HELLO, headers={"traceparent": parent, "tracestate": "k=v"})
    carried = vendor.calls[0][1].headers
    assert (carried["traceparent"], carried["tracestate"]) == (parent, "k=v")


async def test_a_broken_trace_does_not(client, vendor):
    await client.post("/chat", json=HELLO, headers={"traceparent": "00-x", "tracestate": "k=v"})
    assert vendor.calls[0][1].headers.keys() == {"X-Request-ID"}


async def test_no_other_header_of_a_request_reaches_the_vendor(client, vendor):
    await client.post("/chat", json=HELLO, headers={"cookie": "c", "authorization": "Bearer mine"})
    assert vendor.calls[0][1].headers.keys() == {"X-Request-ID"}


# ── health, readiness, metrics ───────────────────────────────────────────────────────────────


async def test_health(client):
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_ready_while_a_provider_could_answer(client, vendor):
    assert (await client.get("/ready")).json() == {"status": "ready"}
    vendor.always("a", FailureKind.SERVER_ERROR)
    for number in range(5):
        await client.post("/chat", json={"message": f"Hello {number}."})
    assert client.service.gateway.providers[0].circuit_state is CircuitState.OPEN
    answer = await client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert "1 with a circuit that is open" in answer.json()["reason"]
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/ready?process=true")).json() == {"status": "ready"}


async def test_ready_says_who_is_set_up_wrong_and_who_is_busy(client, vendor):
    vendor.script("a", FailureKind.AUTHENTICATION)
    await client.post("/chat", json=HELLO)
    assert "1 disabled (authentication)" in (await client.get("/ready")).json()["reason"]


async def test_ready_without_any_provider(client):
    client.service.gateway.remove_provider("a")
    for path in ("/ready", "/ready?process=true"):
        assert "configured" in (await client.get(path)).json()["reason"]


async def test_a_service_that_drains_is_not_ready(client):
    client.service.draining = True
    for path in ("/ready", "/ready?process=true"):
        answer = await client.get(path)
        assert answer.status_code == 503
        assert "stopping" in answer.json()["reason"]


async def test_metrics(client):
    await client.post("/chat", json=HELLO)
    body = (await client.get("/metrics")).json()
    assert body == client.service.gateway.get_metrics() | {"refused": {}, "keys": {}}
    assert body["total_requests"] == 1


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "is_text"),
    [
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/json, text/plain, */*", False),
        ("text/plain;q=0, */*", False),
        ("text/plain;q=x", False),
        ("text/plain", True),
        ("text/plain;version=0.0.4", True),
        (PROMETHEUS, True),
    ],
)
async def test_a_scraper_gets_its_own_form(client, accept, is_text):
    def scrape(accept, _caller):
        return "text/plain; version=0.0.4", f"# {accept}".encode()

    client.service.scrape = scrape
    answer = await client.get("/metrics", headers={"accept": accept})
    kind = answer.headers["content-type"]
    if is_text:
        assert kind == "text/plain; version=0.0.4"
        assert answer.text == f"# {accept}"
    else:
        assert kind == "application/json"


async def test_a_scraper_gets_json_where_there_is_nothing_else(client):
    answer = await client.get("/metrics", headers={"accept": "text/plain"})
    assert answer.json()["total_requests"] == 0


# ── other methods and forms of a target ──────────────────────────────────────────────────────


async def exchange(url, *requests):
    """The heads and the bodies of answers to requests on one connection, over a raw socket."""
    lines = [b"%b HTTP/1.1\r\nHost: localhost\r\n" % line.encode() for line in requests]
    raw = await converse(url, b"\r\n".join(lines) + b"Connection: close\r\n\r\n")
    return [each.split("\r\n\r\n", 1) for each in raw.decode().split("HTTP/1.1 ")[1:]]


def headers_of(head):
    lines = head.split("\r\n")
    varying = ("x-request-id", "date", "connection")
    return lines[0], sorted(line for line in lines[1:] if not line.startswith(varying))


READ = ("/health", "/ready", "/", "/openapi.json", "/v1/models", "/models", "/v1/models/a", "/no")


@pytest.mark.parametrize("path", [*READ, "/ready?process=true", "/chat", "/v1/chat/completions"])
async def test_head_is_get_without_a_body(client, path):
    """RFC 9110, 9.3.2."""
    ((get, body),) = await exchange(str(client.base_url), f"GET {path}")
    head, again = await exchange(str(client.base_url), f"HEAD {path}", f"HEAD {path}")
    assert headers_of(head[0]) == headers_of(again[0]) == headers_of(get)
    assert f"content-length: {len(body.encode())}" in get
    assert body
    assert head[1] == again[1] == ""


async def test_head_of_figures_and_of_their_feed_ends_at_once(client):
    answers = await exchange(str(client.base_url), "HEAD /metrics", "HEAD /status/feed")
    (metrics, nothing), (feed, nothing_more) = answers
    assert metrics.startswith("200 ")
    assert int(metrics.partition("content-length: ")[2].split()[0]) > 100
    assert feed.startswith("200 ")
    assert "content-type: text/event-stream" in feed
    assert nothing == nothing_more == ""


async def test_head_needs_the_key_that_get_needs():
    async with scripted(server={"keys": [api_key("web")]}) as (_, url):
        heads = await exchange(url, "HEAD /health", "HEAD /metrics", "HEAD /nothing", "OPTIONS *")
    assert [head[:3] for head, _ in heads] == ["200", "401", "401", "401"]


async def test_what_takes_get_says_that_it_takes_head(client):
    for path in ("/health", "/v1/models", "/models"):
        assert (await client.delete(path)).headers["allow"] == "GET, HEAD"
    assert (await client.head("/chat")).headers["allow"] == "POST"


async def test_a_whole_address_is_its_path(client):
    """RFC 9112, 3.2.2."""
    requests = ("GET http://localhost/health", "GET http://127.0.0.1:80/v1/models/a?b", "OPTIONS *")
    (health, _), (_, model), (options, nothing) = await exchange(str(client.base_url), *requests)
    assert health.startswith("200 ")
    assert json.loads(model)["id"] == "a"
    assert options.startswith("204 ")
    assert "allow: GET, HEAD, OPTIONS, POST" in options
    assert nothing == ""


async def test_an_address_elsewhere_is_not_here(client, caplog):
    """Its host counts, not the header, and what it holds is not logged."""
    target = "http://llm.example/metrics?key=sk-secret"
    ((head, body),) = await exchange(str(client.base_url), f"GET {target}")
    ((user, _),) = await exchange(str(client.base_url), "GET http://me:sk-secret@localhost/health")
    assert head.startswith("403 ")
    assert json.loads(body)["error"]["code"] == "foreign_host"
    assert user.startswith("400 ")
    assert "sk-secret" not in caplog.text
    assert client.service.refusal_log.counts == {"foreign_host": 1, "400": 1}


# ── errors ───────────────────────────────────────────────────────────────────────────────────


async def test_unknown_paths_and_methods_are_refused_in_openais_form(client):
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/chat", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/chat/", 404),
    ]:
        answer = await client.request(method, path)
        assert answer.status_code == status
        assert error_of(answer)["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"]
        assert status != 405 or answer.headers["allow"]


async def test_what_is_broken_here_is_a_500_that_tells_nothing(client, caplog):
    def broken(accept, _caller):
        raise ValueError(accept)

    client.service.scrape = broken
    with caplog.at_level(logging.ERROR):
        headers = {"accept": "text/plain, x/secret", "x-request-id": "r"}
        answer = await client.get("/metrics", headers=headers)
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal"
    assert "secret" not in answer.text + caplog.text
    assert "Request r: ValueError" in caplog.text
    assert "in broken" in caplog.text
    assert (await client.get("/health")).status_code == 200


async def test_a_full_queue_is_told_with_a_time():
    vendor = ScriptedVendor()
    going = asyncio.Event()
    vendor.always("a", going.wait)
    async with (
        scripted(vendor, max_concurrency=1, max_queue=0) as (service, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        first = asyncio.create_task(client.post("/chat", json=HELLO))
        await until(lambda: service.gateway.get_metrics()["in_flight"] == 1)
        answer = await client.post("/chat", json={"message": "Another."})
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "overloaded"
        assert answer.headers["retry-after"] == "1"
        going.set()
        assert (await first).status_code == 200


async def test_providers_that_are_left_alone_are_told_with_the_time_of_their_last_resort(
    client, vendor
):
    vendor.always("a", FailureKind.AUTHENTICATION)
    for turn in range(2):
        hello, hurried = {"message": f"Hello {turn}"}, {"x-aigateway-timeout": "1"}
        answer = await client.post("/chat", json=hello, headers=hurried)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "all_providers_failed")
    assert 1 <= int(answer.headers["retry-after"]) <= 5, "and not the five minutes of its recheck"


async def test_that_we_lack_something_is_no_rate_of_the_callers(client, vendor):
    vendor.always("a", FailureKind.SATURATED)
    answer = await client.post("/chat", json=HELLO)
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "overloaded"
    assert answer.headers["retry-after"] == "1"


async def test_a_deadline_is_a_504(simulator):
    simulator.openai.latency = 5
    async with (
        served(simulator.openai) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        answer = await client.post("/chat", json={**HELLO, "timeout": 0.1})
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "deadline_exceeded"


# ── streams ──────────────────────────────────────────────────────────────────────────────────

STREAM = {"messages": [{"role": "user", "content": "Hi."}], "stream": True}


async def test_a_silent_stream_is_kept_alive_with_comments():
    clock, vendor = FakeClock(), ScriptedVendor()
    going = asyncio.Event()
    vendor.script("a", ScriptedStream("one", going.wait, "two"))
    async with (
        scripted(vendor, clock=clock, idle_timeout=1000) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        client.stream("POST", "/v1/chat/completions", json=STREAM) as answer,
    ):
        lines = answer.aiter_lines()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert '"one"' in await anext(lines)
        assert not await anext(lines)
        for _ in range(2):
            await clock.advance(31)
            comment = await anext(lines)
            assert comment.startswith(":")
            assert not await anext(lines)
        going.set()
        rest = [line async for line in lines if line and not line.startswith(":")]
    assert '"two"' in rest[0]
    assert rest[-1] == "data: [DONE]"


async def test_an_answer_from_the_cache_is_streamed_too(client):
    answers = [await client.post("/v1/chat/completions", json=STREAM) for _ in range(2)]
    assert [a.headers["x-aigateway-cache"] for a in answers] == ["miss", "hit"]
    assert [a.headers["x-aigateway-attempts"] for a in answers] == ["1", "0"]
    assert all(a.text.endswith("data: [DONE]\n\n") for a in answers)
    assert all("x-aigateway-cost" not in a.headers for a in answers)


async def test_what_breaks_before_the_first_content_is_an_error_of_http(client, vendor):
    vendor.script("a", FailureKind.SERVER_ERROR)
    answer = await client.post("/v1/chat/completions", json=STREAM)
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "all_providers_failed"


async def test_what_breaks_after_it_is_an_event_and_no_end(client, vendor):
    vendor.script("a", ScriptedStream("one", FailureKind.CONNECTION))
    answer = await client.post("/v1/chat/completions", json=STREAM)
    events = [line for line in answer.text.splitlines() if line]
    assert answer.status_code == 200
    assert '"one"' in events[0]
    assert '"code":"stream_interrupted"' in events[-1]
    assert "[DONE]" not in answer.text


async def test_a_gateway_that_closes_tells_its_streams(client, vendor):
    going = asyncio.Event()
    vendor.script("a", ScriptedStream("one", going.wait, "two"))
    async with client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        await client.service.gateway.aclose()
        rest = [line async for line in lines if line]
    assert '"error"' in rest[-1]


async def test_an_empty_answer_is_streamed_too(client, vendor):
    vendor.script("a", ScriptedStream())
    answer = await client.post("/v1/chat/completions", json=STREAM)
    assert '"finish_reason":"stop"' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
