"""What names a session in the service, and what `/v1/models` shows, over real HTTP."""

import contextlib

import httpx
import pytest

from aigateway import AsyncGateway, FailureKind
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.testing import scripted_configs
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer
from tests.server.running import running

HEADERS = ("x-aigateway-session", "x-claude-code-session-id", "session-id", "thread-id")
PATHS = ("/v1/chat/completions", "/chat")


@contextlib.asynccontextmanager
async def service_over(vendor, *names, fields=None, **server):
    """A client of a service over scripted providers, the first one first."""
    configs = scripted_configs(*names, **(fields or {}))
    async with (
        AsyncGateway(configs, vendor=vendor, retry_rounds=0, cache_enabled=False) as gateway,
        running(Service(gateway, ServerSettings(**server))) as url,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        await gateway.warmup()
        yield client


@pytest.fixture
async def client(vendor):
    async with service_over(vendor, "a", "b") as made:
        yield made


def user(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(texts)]


async def answered_by(client, messages, *, headers=None, path="/v1/chat/completions", **body):
    answer = await client.post(path, json={"messages": messages, **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-aigateway-provider"]


async def test_a_header_names_the_session(client, vendor):
    for stream in (False, True):
        for name in HEADERS:
            headers = {name: f"{name} {stream}"}
            vendor.script("a", FailureKind.SERVER_ERROR)
            replies = [
                await answered_by(client, user(text), headers=headers, stream=stream)
                for text in ("one", "two")
            ]
            assert replies == ["b", "b"], headers
            assert await answered_by(client, user("two"), stream=stream) == "a"
    counts = (await client.get("/metrics")).json()["sessions"]
    assert (counts["kept"], counts["moved"]) == (8 + 7, 0)  # 7: "two" without a header, again


async def test_our_header_comes_first(client, vendor):
    vendor.script("a", FailureKind.SERVER_ERROR)
    assert await answered_by(client, user("1"), headers={"x-aigateway-session": "s"}) == "b"
    both = {"session-id": "another", "x-aigateway-session": "s"}
    assert await answered_by(client, user("2"), headers=both, prompt_cache_key="third") == "b"


async def test_what_the_body_names_is_shared_by_conversations(vendor):
    async with service_over(vendor, *"abc", fields={"priority": 0}) as client:
        for path in PATHS:
            for n, name in enumerate(("prompt_cache_key", "user_id")):
                body = {name: path} if n == 0 else {"metadata": {name: path}}
                asked = [answered_by(client, user(t), path=path, **body) for t in "uvwxyz"]
                assert len({await each for each in asked}) == 1
                assert "metadata" not in vendor.calls[-1][1].params
    async with service_over(vendor, "a", "b") as client:
        vendor.script("a", FailureKind.SERVER_ERROR)
        body = {"prompt_cache_key": "k"}
        assert [await answered_by(client, user(t), **body) for t in "xyx"] == ["b", "a", "a"]


async def test_else_the_beginning_of_the_conversation_does(client, vendor):
    for path in PATHS:
        vendor.script("a", FailureKind.SERVER_ERROR)
        assert await answered_by(client, user(path), path=path) == "b"
        assert await answered_by(client, user(path, "1", "two"), path=path) == "b"
        assert await answered_by(client, user("other", "1", "two"), path=path) == "a"
        assert await answered_by(client, user(path), path=path) == "a"  # begins anew


async def test_a_bad_name_in_our_header_is_refused_and_in_those_of_others_ignored(client):
    for bad in (b"", b"x" * 257, b"s\xe9"):
        body = {"messages": user("hi")}
        refused = await client.post("/chat", json=body, headers={"x-aigateway-session": bad})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "x-aigateway-session"
        assert await answered_by(client, user("hi"), headers={"session-id": bad}) == "a"


async def test_in_a_body_it_is_pointed_to_the_header(client):
    answer = await client.post("/chat", json={"message": "hi", "session": "s"})
    assert answer.status_code == 400
    assert "x-aigateway-session" in answer.json()["error"]["message"]


async def test_tenants_do_not_meet_each_others_sessions(vendor):
    keys = [api_key("red"), api_key("blue")]
    async with service_over(vendor, "a", "b", keys=keys) as client:
        red, blue = ({**bearer(name), "x-aigateway-session": "s"} for name in ("red", "blue"))
        vendor.script("a", FailureKind.SERVER_ERROR)
        assert await answered_by(client, user("one"), headers=red) == "b"
        assert await answered_by(client, user("one"), headers=blue) == "a"
        assert await answered_by(client, user("two"), headers=red) == "b"


# ── capabilities ─────────────────────────────────────────────────────────────────────────────

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}


async def test_no_provider_that_can_is_a_400_that_names_what_is_missing(vendor):
    fields = {"capabilities": {"vision": False}}
    async with service_over(vendor, "a", "b", fields=fields) as client:
        body = {"messages": [{"role": "user", "content": [IMAGE]}]}
        for stream in (False, True):
            answer = await client.post("/v1/chat/completions", json={**body, "stream": stream})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["code"] == "capability_missing"
            assert "a: no images; b: no images" in error["message"]
        assert vendor.calls == []


async def test_models_show_what_they_can_do(vendor):
    vendor.capabilities = {"a": {"vision": True, "tools": False}, "b": {"vision": False}}
    vendor.max_input_tokens = {"a": 1000, "b": 3000}
    async with service_over(vendor, "a", "b") as client:
        entries = {each["id"]: each for each in (await client.get("/v1/models")).json()["data"]}
        assert entries["a"]["capabilities"] == {"vision": True, "tools": False}
        assert entries["b"]["capabilities"] == {"vision": False}
        assert entries["simulated"]["capabilities"] == {"vision": True}
        assert entries["simulated"]["max_input_tokens"] == 3000
        assert (await client.get("/v1/models/a")).json() == entries["a"]
