"""The doors within an application of others: mounted whole, or router by router."""

import asyncio
import contextlib
import subprocess
import sys
from typing import Any

import httpx
import openai
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from aigateway import AsyncGateway, ConfigurationError, openai_client
from aigateway.integrations.in_process import blocking_client
from aigateway.server import RecentEvents, create_app, routers
from aigateway.settings import ServerSettings
from aigateway.telemetry.prometheus import Prometheus
from aigateway.testing import ScriptedStream, ScriptedVendor, scripted_configs
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer, converse
from tests.server.running import running

CLOSE = b"connection: close\r\n\r\n"
CHAT: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}


def signed_in(request: Request):
    """The application's own authentication."""
    user = request.headers.get("x-user")
    if user is None:
        raise HTTPException(401, "Sign in first.")
    request.state.user = user


def user_of(request):
    return request.state.user


@contextlib.asynccontextmanager
async def hosted(add, **settings):
    """An application of others, to which `add` adds a gateway; its client, and its vendor."""
    host, vendor = FastAPI(), ScriptedVendor()
    hooks = (RecentEvents(), Prometheus())
    async with AsyncGateway(scripted_configs("a"), vendor=vendor, hooks=hooks, **settings) as made:
        add(host, made)
        async with (
            running(None, host) as url,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        ):
            yield client, vendor


async def test_a_mounted_application_is_the_whole_service():
    def add(host, gateway):
        keys = ServerSettings(keys=(api_key("web"),), max_body_bytes=1000)
        host.mount("/llm", create_app(gateway, keys))

    async with hosted(add) as (client, _):
        no_key = await client.post("/llm/v1/chat/completions", json=CHAT)
        with_key = await client.post(
            "/llm/v1/chat/completions", json=CHAT, headers={**bearer("web"), "x-request-id": "r-1"}
        )
        long = {**CHAT, "messages": [{"role": "user", "content": "x" * 1000}]}
        too_long = await client.post("/llm/chat/completions", json=long, headers=bearer("web"))
        health = await client.get("/llm/health")
        scraped = await client.get(
            "/llm/metrics", headers={**bearer("web"), "accept": "text/plain"}
        )
        nothing = await client.get("/llm/nothing", headers=bearer("web"))
        page = await client.get("/llm/")

    assert (no_key.status_code, no_key.json()["error"]["code"]) == (401, "invalid_api_key")
    assert with_key.json()["choices"][0]["message"]["content"]
    assert with_key.headers["x-request-id"] == "r-1"
    assert with_key.headers["x-aigateway-provider"] == "a"
    assert too_long.status_code == 413
    assert health.json() == {"status": "ok"}
    assert b'aigateway_request_duration_seconds_count{outcome="served"} 1' in scraped.content
    assert nothing.status_code == 404
    assert page.status_code == 200


async def test_a_router_takes_the_authentication_of_the_application_around_it():
    def add(host, gateway):
        doors = routers(gateway, ServerSettings(max_body_bytes=1000), tenant=user_of)
        for door in doors.values():
            host.include_router(door, prefix="/llm", dependencies=[Depends(signed_in)])

    async with hosted(add) as (client, vendor):

        async def ask(user, path="/llm/v1/chat/completions", body=CHAT, **headers):
            return await client.post(path, json=body, headers={"x-user": user, **headers})

        nobody = await client.post("/llm/v1/chat/completions", json=CHAT)
        first = await ask("ada", host="llm.example.com", origin="https://elsewhere.example")
        again = await ask("ada", "/llm/chat/completions")
        other = await ask("bob")
        streamed = await ask("ada", body={**CHAT, "stream": True})
        long = {**CHAT, "messages": [{"role": "user", "content": "x" * 1000}]}
        too_long, wrong = await ask("ada", body=long), await ask("ada", body={"messages": 1})
        no_admin = await ask("ada", "/llm/admin/providers/a/circuit", {"state": "open"})
        models = await client.get("/llm/v1/models", headers={"x-user": "ada"})
        document = (await client.get("/openapi.json")).json()

    # The application answers in its own form, and no vendor has been asked.
    assert (nobody.status_code, nobody.json()) == (401, {"detail": "Sign in first."})
    words = [answer.headers["x-aigateway-cache"] for answer in (first, again, other)]
    assert words == ["miss", "hit", "miss"]
    assert len(vendor.calls) == 2
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert (too_long.status_code, wrong.status_code) == (413, 400)
    assert wrong.json()["error"]["param"] == "messages"
    assert no_admin.status_code == 403
    assert "simulated" in [entry["id"] for entry in models.json()["data"]]
    assert set(document["paths"]["/llm/v1/models"]) == {"get"}
    assert "/llm/v1/chat/completions" in document["paths"]
    assert all("x-request-id" in r.headers for r in (first, streamed, too_long, wrong))


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
@pytest.mark.parametrize("how", ["mounted", "router by router"])
async def test_head_is_get_without_a_body_on_a_connection_of_the_server_around(how, protocol):
    host = FastAPI()
    async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as gateway:
        settings = ServerSettings(keys=(api_key("web"),))
        if how == "mounted":
            host.mount("/llm", create_app(gateway, settings))
        else:
            for door in routers(gateway, settings).values():
                host.include_router(door, prefix="/llm")
        key = f"authorization: {bearer('web')['authorization']}\r\n".encode()
        asked = [(b"HEAD", b"v1/models"), (b"HEAD", b"chat"), (b"GET", b"v1/models")]
        heads = [b"%b /llm/%b HTTP/1.1\r\nhost: a\r\n%b" % (*each, key) for each in asked]
        async with running(None, host, http=protocol) as url:
            raw = await converse(url, *(head + b"\r\n" for head in heads[:2]), heads[2] + CLOSE)
    first, second, third, body = raw.split(b"\r\n\r\n")
    statuses = [head.split(b" ", 2)[1] for head in (first, second, third)]
    assert statuses == [b"200", b"405", b"200"]
    assert b"content-length: %d\r\n" % len(body) in first + b"\r\n"
    assert b"simulated" in body


@pytest.mark.parametrize(("keys", "status"), [((), 403), ((api_key("web"),), 401)])
async def test_a_router_alone_is_as_closed_as_the_service(keys, status):
    def add(host, gateway):
        for door in routers(gateway, ServerSettings(keys=keys)).values():
            host.include_router(door)

    async with hosted(add) as (client, vendor):
        foreign = await client.post(
            "/v1/chat/completions", json=CHAT, headers={"host": "evil.example"}
        )
        health = await client.get("/health")
        good = await client.post("/v1/chat/completions", json=CHAT, headers=bearer("web"))
        path = "/v1/models/gemini-pro:generateContent"
        other = await client.post(path, json={}, headers=bearer("web"))
    assert other.status_code == 404
    assert "POST /v1/chat/completions" in other.text
    assert foreign.status_code == status
    assert health.status_code == good.status_code == 200
    assert len(vendor.calls) == 1


class _SignsIn:
    """Middleware of an application, around all that it has."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        user = dict(scope["headers"]).get(b"x-user")
        if user is None:
            await JSONResponse({"detail": "Sign in first."}, 401)(scope, receive, send)
            return
        scope.setdefault("state", {})["user"] = user.decode()
        await self.app(scope, receive, send)


async def test_middleware_that_is_added_later_stands_around_every_endpoint():
    def add(host, gateway):
        app = create_app(gateway, ServerSettings(), tenant=user_of)
        app.add_middleware(_SignsIn)
        host.mount("/llm", app)

    async with hosted(add) as (client, vendor):
        for path in ("/llm/v1/chat/completions", "/llm/v1/models"):
            method = "GET" if path.endswith("models") else "POST"
            nobody = await client.request(method, path, json=CHAT)
            ada = await client.request(method, path, json=CHAT, headers={"x-user": "ada"})
            assert (nobody.status_code, nobody.json()) == (401, {"detail": "Sign in first."})
            assert ada.status_code == 200
    assert [request.partition for _, request in vendor.calls] == ["key:ada"]


def mounted(host, gateway, tenant):
    host.mount("/llm", create_app(gateway, ServerSettings(), tenant=tenant))


def included(host, gateway, tenant):
    for door in routers(gateway, ServerSettings(), tenant=tenant).values():
        host.include_router(door, prefix="/llm")


@pytest.mark.parametrize("add", [mounted, included])
async def test_what_a_tenant_function_does_wrong_is_no_fault_of_the_caller(add):
    def tenant(request):
        if request.headers["x-user"] == "stranger":
            raise HTTPException(401, "Who are you?", {"www-authenticate": "Own"})
        user = request.headers["x-user"]
        return tenant_later() if user == "late" else {"number": 7, "empty": ""}.get(user, user)

    async def tenant_later():
        return "late"

    async with hosted(lambda host, gateway: add(host, gateway, tenant)) as (client, vendor):
        answers = {
            (user, path): await client.post(f"/llm{path}", json=body, headers={"x-user": user})
            for user in ("stranger", "number", "empty", "late", "ada")
            for path, body in (
                ("/v1/chat/completions", CHAT),
                ("/v1/messages", {**CHAT, "max_tokens": 9}),
            )
        }
        calls = len(vendor.calls)
        async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as other:
            with pytest.raises(ConfigurationError, match="tenant: must not be `async def`"):
                add(FastAPI(), other, tenant_later)
    chat, message = (answers.pop(("stranger", path)) for _, path in list(answers)[:2])
    assert (chat.status_code, message.status_code) == (401, 401)
    assert chat.headers["www-authenticate"] == "Own"
    assert chat.json()["error"]["message"] == "Who are you?"
    assert message.json()["error"] == {"type": "authentication_error", "message": "Who are you?"}
    assert [a.status_code for a in answers.values()] == [500] * 6 + [200] * 2
    assert calls == 2


async def test_an_application_is_called_without_a_port():
    async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as gateway:
        app = create_app(gateway, ServerSettings(), tenant=lambda request: None)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://any.host") as client:
            answer = await client.post("/v1/chat/completions", json=CHAT)
            refused = await client.post("/v1/chat/completions", json={**CHAT, "n": "x"})
    assert answer.json()["choices"][0]["message"]["content"]
    assert refused.status_code == 400


async def test_an_in_process_client_takes_no_settings_of_a_service(monkeypatch, clock):
    monkeypatch.setenv("AIGATEWAY_SERVER_MAX_BODY_BYTES", "10")
    monkeypatch.setenv("AIGATEWAY_SERVER_REQUEST_TIMEOUT", "soon")
    vendor, begun = ScriptedVendor(), asyncio.Event()

    async def slow():
        begun.set()
        await clock.sleep(500)

    vendor.script("a", slow)
    configs = scripted_configs("a", timeout=600)
    passing = ServerSettings.model_construct(pass_params=("min_p",))
    async with (
        AsyncGateway(configs, vendor=vendor, clock=clock, timeout=600) as gateway,
        openai_client(gateway) as client,
        openai_client(gateway, settings=passing) as other,
    ):
        asked = asyncio.create_task(client.chat.completions.create(**CHAT))
        await begun.wait()
        await clock.advance(501)
        assert (await asked).choices[0].message.content == "ok"
        with pytest.raises(openai.BadRequestError, match="min_p"):
            await client.chat.completions.create(**CHAT, extra_body={"min_p": 0.1})
        assert await other.chat.completions.create(**CHAT, extra_body={"min_p": 0.1})


async def test_a_blocking_client_that_is_closed_leaves_no_stream_under_way():
    vendor = ScriptedVendor()
    vendor.script("a", ScriptedStream("one ", asyncio.Event().wait, "two"))
    async with AsyncGateway(scripted_configs("a"), vendor=vendor) as gateway:

        def leave():
            client = blocking_client(gateway, httpx.Client)
            asked = client.build_request(
                "POST", "http://any/v1/chat/completions", json={**CHAT, "stream": True}
            )
            assert client.send(asked, stream=True).status_code == 200
            client.close()

        await asyncio.to_thread(leave)
        assert gateway.get_metrics()["in_flight"] == vendor.open_streams == 0


FORKS = """
import os, signal, httpx
from aigateway import AsyncGateway
from aigateway.integrations.in_process import blocking_client
from aigateway.testing import ScriptedVendor, scripted_configs

def client(gateway):
    return blocking_client(gateway, httpx.Client)

def made():
    return AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor())

def status(client):
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    return client.post("http://any/v1/chat/completions", json=body).status_code

gateway = made()
assert status(client(gateway)) == 200
child = os.fork()
if not child:
    signal.alarm(30)
    print(status(client(made())), status(client(gateway)), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert status(client(gateway)) == 200
"""


def test_a_forked_child_has_clients_of_its_own():
    ran = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    # The gateway of the parent is in use on the parent's loop.
    assert (ran.returncode, ran.stdout) == (0, "200 500\n"), ran.stderr
