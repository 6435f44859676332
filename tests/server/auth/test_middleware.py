"""Admission over real HTTP: keys at every endpoint, and web pages that try without."""

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from aigateway.server.auth.middleware import caller_of
from aigateway.server.http.app import service_app
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer, digest, scripted_service
from tests.server.running import running


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json", "/v1/models", "/no"])
async def test_with_keys_nothing_but_its_health_is_told_without_one(path):
    async with (
        scripted_service(keys=[api_key("red")]) as service,
        running(service) as url,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        answer = await client.get(path)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert (await client.get(path, headers=bearer("red"))).status_code != 401
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).status_code != 401
        assert (await client.get("/")).status_code != 401


async def test_a_reload_lets_a_new_key_in_and_an_old_one_no_more():
    async with (
        scripted_service(keys=[api_key("red")]) as service,
        running(service) as url,
        httpx.AsyncClient(base_url=url, headers=bearer("blue"), timeout=PATIENCE) as client,
    ):
        assert (await client.get("/openapi.json")).status_code == 401
        assert (await client.get("/openapi.json", headers=bearer("red"))).status_code == 200
        settings = service.settings.model_copy(update={"keys": (api_key("blue"),)})
        service.settings, service.access = settings, service.access.successor(settings)
        assert (await client.get("/openapi.json", headers=bearer("red"))).status_code == 401
        assert (await client.get("/openapi.json")).status_code == 200


async def test_an_endpoint_gets_the_caller_that_was_admitted():
    seen = []

    async def endpoint(request: Request) -> JSONResponse:
        seen.append(caller_of(request))
        return JSONResponse({})

    async with scripted_service(
        keys=[api_key("red"), api_key("blue")], admin_sha256=digest("sk-root")
    ) as service:
        app = service_app(service)
        app.add_route("/t/caller", endpoint)
        async with (
            running(service, app) as url,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        ):
            for name in ("red", "root", "blue", "unknown"):
                await client.get("/t/caller", headers=bearer(name))
    assert [(caller.name, caller.is_admin) for caller in seen] == [
        ("red", False),
        ("admin", True),
        ("blue", False),
    ]


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:80", "127.8.8.8", "[::1]", "[::1]:80"],
)
async def test_without_keys_this_machine_is_served(host):
    async with (
        scripted_service() as service,
        running(service) as url,
        httpx.AsyncClient(base_url=url, headers={"host": host}, timeout=PATIENCE) as client,
    ):
        assert (await client.get("/openapi.json")).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "[::2]",
        "",
        "localhost@evil.example",
    ],
)
@pytest.mark.parametrize("path", ["/health", "/openapi.json"])
async def test_a_name_resolved_to_this_machine_is_not(host, path):
    async with (
        scripted_service() as service,
        running(service) as url,
        httpx.AsyncClient(base_url=url, headers={"host": host}, timeout=PATIENCE) as client,
    ):
        answer = await client.get(path)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "foreign_host"


async def test_with_keys_it_goes_by_any_name():
    async with scripted_service(keys=[api_key("red")]) as service, running(service) as url:
        headers = bearer("red") | {"host": "llm.example", "origin": "https://llm.example"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE) as client:
            assert (await client.get("/openapi.json")).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:1", "http://localhost", "null", ""]
)
async def test_a_page_of_another_origin_may_not_ask(origin):
    async with (
        scripted_service() as service,
        running(service) as url,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        answer = await client.post("/health", headers={"origin": origin})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "foreign_origin"
        assert "access-control-allow-origin" not in answer.headers
        assert (await client.get("/health", headers={"origin": url})).status_code == 200


PREFLIGHT = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-aigateway-cache",
}


@pytest.mark.parametrize("keys", [(), [api_key("red")]])
@pytest.mark.parametrize("allowed", ["https://app.example", "*"])
async def test_allowed_origins_may_ask_and_their_browsers_beforehand(keys, allowed):
    fields = {"keys": keys, "cors_origins": [allowed]}
    async with (
        scripted_service(**fields) as service,
        running(service) as url,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        before = await client.options("/v1/chat/completions", headers=PREFLIGHT)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == allowed
        assert before.headers["x-request-id"]
        for name in ("authorization", "x-aigateway-cache"):
            assert name in before.headers["access-control-allow-headers"]
        headers = bearer("red") | {"origin": "https://app.example"}
        answer = await client.get("/openapi.json", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == allowed
        refused = await client.get("/no", headers={"origin": "https://app.example"})
        assert refused.status_code == (401 if keys else 404)
        assert refused.headers["access-control-allow-origin"] == allowed


@pytest.mark.parametrize("keys", [(), [api_key("red")]])
async def test_other_origins_may_not_though_some_may(keys):
    fields = {"keys": keys, "cors_origins": ["https://app.example"]}
    async with (
        scripted_service(**fields) as service,
        running(service) as url,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        foreign = {"origin": "https://evil.example"}
        before = await client.options("/chat", headers=PREFLIGHT | foreign)
        assert before.status_code == 400
        answer = await client.get("/openapi.json", headers=bearer("red") | foreign)
        assert "access-control-allow-origin" not in answer.headers
        if not keys:
            assert answer.status_code == 403


async def test_without_cors_a_preflight_is_refused():
    async with (
        scripted_service() as service,
        running(service) as url,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        before = await client.options("/v1/chat/completions", headers=PREFLIGHT)
    assert before.status_code == 403
    assert "access-control-allow-origin" not in before.headers


async def test_a_websocket_gets_in_no_further():
    said = []

    async def send(message):
        said.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    async with scripted_service(keys=[api_key("red")]) as service:
        app = service_app(service)
        assert isinstance(app, FastAPI)

        @app.websocket("/secret")
        async def secret(socket):
            await socket.accept()

        scope = {"type": "websocket", "path": "/secret", "headers": [], "query_string": b""}
        await app(scope, receive, send)
    assert said == [{"type": "websocket.close", "code": 1008}]
