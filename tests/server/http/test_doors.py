"""What every door keeps, one table for all of them.

A door that is not in the table fails the first test. Each test asks at every door, with and without
`/v1`, whole and streamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from aigateway import AsyncGateway
from aigateway.errors import FailureKind
from aigateway.server.http.app import _DOORS
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.simulator import Fault
from aigateway.testing import ScriptedStream, ScriptedVendor, scripted_configs
from tests.gateways import until
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer
from tests.server.running import running
from tests.server.services import served


@dataclass(frozen=True)
class Door:
    """One endpoint.

    Attributes:
        prompt: Its field for the prompt, and what stands around a text there.
        more: Further fields that it needs.
        streams: Whether it can stream.
        remembers: Whether its answers are cached.
        asks: Whether it calls a provider.
        anthropic: Whether errors have Anthropic's form.
    """

    prompt: str = "messages"
    more: tuple[tuple[str, Any], ...] = ()
    streams: bool = True
    remembers: bool = True
    asks: bool = True
    anthropic: bool = False


TABLE = {
    "/chat": Door(streams=False),
    "/v1/chat/completions": Door(),
    "/v1/completions": Door("prompt"),
    "/v1/embeddings": Door("input", streams=False, remembers=False),
    "/v1/messages": Door(more=(("max_tokens", 9),), anthropic=True),
    "/v1/messages/count_tokens": Door(streams=False, remembers=False, asks=False, anthropic=True),
    "/v1/responses": Door("input"),
}
NO_DOORS = {
    "/admin/providers/{name:path}/circuit",
    "/v1/responses/{path:path}",  # refuses, whatever is asked
}
SECRET = "the-secret-of-the-prompt"


@dataclass(frozen=True)
class Case:
    """One way to ask at a door."""

    path: str
    door: Door
    stream: bool

    def body(self, text: str, **fields: Any) -> dict[str, Any]:
        content = [{"role": "user", "content": text}] if self.door.prompt == "messages" else text
        streamed = {"stream": True} if self.stream else {}
        return {self.door.prompt: content, **dict(self.door.more), **streamed, **fields}

    def __str__(self) -> str:
        return f"{self.path}{' streamed' if self.stream else ''}"


CASES = [
    Case(given, door, stream)
    for path, door in TABLE.items()
    for given in dict.fromkeys((path, path.removeprefix("/v1")))
    for stream in ((False, True) if door.streams else (False,))
]


def refused(case, answer, status, code=None):
    """Check an error: its status, its form, and that it tells nothing."""
    given = answer.json()
    assert answer.status_code == status, (str(case), answer.text)
    assert answer.headers["content-type"] == "application/json"
    if case.door.anthropic:
        assert given.keys() == {"type", "error", "request_id"}, str(case)
        assert given["error"].keys() == {"type", "message"}
        assert given["request_id"] == answer.headers["x-request-id"]
    else:
        assert given.keys() == {"error"}, str(case)
        assert given["error"].keys() - {"detail"} == {"message", "type", "param", "code"}
        assert code in {None, given["error"]["code"]}, (str(case), answer.text)
    assert given["error"]["message"]
    assert SECRET not in answer.text, str(case)
    assert "sk-" not in answer.text, str(case)
    return given["error"]


class Front:
    """A service over one scripted provider, and its caller."""

    def __init__(self, service, client, vendor):
        self.service = service
        self.client = client
        self.vendor = vendor

    async def ask(self, case, text="hi", *, key=None, headers=None, **fields):
        given = {**(bearer(key) if key else {}), **(headers or {})}
        return await self.client.post(case.path, json=case.body(text, **fields), headers=given)

    @property
    def calls(self):
        return len(self.vendor.calls)

    def spent(self, key):
        return next(used.spent_usd for used in self.service.access.usage() if used.name == key)


@contextlib.asynccontextmanager
async def front(**settings):
    vendor = ScriptedVendor()
    vendor.always("a", ScriptedStream("ok", "ok", cost_usd=0.001))
    configs = scripted_configs("a", aliases=("fast",), priority=2) + scripted_configs(
        "b", model="other"
    )
    async with AsyncGateway(configs, vendor=vendor, retry_rounds=0) as gateway:
        service = Service(gateway, ServerSettings(**settings))
        async with (
            running(service) as url,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        ):
            yield Front(service, client, vendor)


def test_every_door_is_in_the_table():
    posts = {
        route.path
        for door in _DOORS.values()
        for route in door.router.routes
        if "POST" in route.methods
    }
    assert posts == TABLE.keys() | NO_DOORS


async def test_keys_and_request_ids():
    async with front(keys=[api_key("red")]) as service:
        for case in CASES:
            refused(case, await service.ask(case), 401, "invalid_api_key")
            refused(case, await service.ask(case, key="other"), 401, "invalid_api_key")
            before = service.calls
            named = {"x-request-id": f"id:{case.path}:{case.stream}"}
            answer = await service.ask(case, str(case), key="red", headers=named)
            assert answer.status_code == 200, (str(case), answer.text)
            assert answer.headers["x-request-id"] == named["x-request-id"]
            if case.door.asks:
                assert answer.headers["x-aigateway-provider"] == "a"
                assert service.vendor.calls[-1][1].request_id == named["x-request-id"]
            assert service.calls - before == case.door.asks
            as_anthropic = {"x-api-key": "sk-red"}
            assert (await service.ask(case, headers=as_anthropic)).status_code == 200


async def test_tenants_share_no_answers():
    async with front(keys=[api_key("red"), api_key("blue")]) as service:
        for case in CASES:
            before, words = service.calls, []
            for key in ("red", "blue", "red", "blue"):
                answer = await service.ask(case, str(case), key=key)
                words.append(answer.headers.get("x-aigateway-cache"))
                tenant = service.vendor.calls[-1][1].partition if case.door.asks else "key:"
                assert tenant.startswith("key:")
            if case.door.remembers:
                assert words == ["miss", "miss", "hit", "hit"], str(case)
            asked = 2 if case.door.remembers else 4 if case.door.asks else 0
            assert service.calls - before == asked, str(case)


async def test_models_that_a_key_may_use():
    async with front(keys=[api_key("red", models=("fast",))]) as service:
        for case in CASES:
            before = service.calls
            for model in ("b", "other", "a", "unknown"):
                answer = await service.ask(case, key="red", model=model)
                refused(case, answer, 404, "model_not_found")
            refused(case, await service.ask(case, key="red"), 400)
            assert service.calls == before
            answer = await service.ask(case, str(case), key="red", model="fast")
            assert answer.status_code == 200, (str(case), answer.text)


async def test_rates_of_keys():
    keys = [api_key(f"k{number}", rpm=1) for number in range(len(CASES))]
    async with front(keys=keys) as service:
        for number, case in enumerate(CASES):
            assert (await service.ask(case, key=f"k{number}")).status_code == 200
            second = await service.ask(case, key=f"k{number}")
            error = refused(case, second, 429, "rate_limit_exceeded")
            assert error["type"] == "rate_limit_error"
            assert 0 < int(second.headers["retry-after"]) <= 60


async def test_budgets_of_keys_and_what_is_counted():
    keys = [api_key(f"k{number}", budget_usd=0.0005) for number in range(len(CASES))]
    spender = Case("/v1/chat/completions", TABLE["/v1/chat/completions"], stream=False)
    async with front(keys=keys) as service:
        for number, case in enumerate(CASES):
            key = f"k{number}"
            requests = service.service.figures()["total_requests"]
            first = await service.ask(case, key=key)
            assert first.status_code == 200, (str(case), first.text)
            counted = service.service.figures()["total_requests"] - requests
            assert counted == case.door.asks, str(case)
            priced = case.door.asks and case.door.remembers  # the scripted vectors cost nothing
            assert service.spent(key) == pytest.approx(0.001 if priced else 0), str(case)
            if not priced:
                assert (await service.ask(spender, key=key)).status_code == 200
            calls = service.calls
            status = 402 if case.door.anthropic else 429
            over = await service.ask(case, "another", key=key)
            refused(case, over, status, "insufficient_quota")
            assert "retry-after" in over.headers
            assert service.calls == calls


async def test_usage_is_in_whole_answers():
    async with front() as service:
        for case in CASES:
            answer = await service.ask(case, str(case))
            if case.stream:
                assert answer.headers["content-type"].startswith("text/event-stream")
                assert answer.headers["x-aigateway-attempts"] == "1"
                continue
            body = answer.json()
            if not case.door.asks:
                assert body["input_tokens"] > 0
                continue
            assert any(count > 0 for count in body["usage"].values() if type(count) is int)
            assert "x-aigateway-cost" in answer.headers


async def test_without_keys_only_this_machine_asks():
    async with front() as service:
        for case in CASES:
            for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
                refused(case, await service.ask(case, SECRET, headers=headers), 403)
        assert service.calls == 0


async def test_pages_of_allowed_origins():
    origin = {"origin": "https://app.example"}
    async with front(cors_origins=["https://app.example"], keys=[api_key("red")]) as service:
        for case in CASES:
            asked = {**origin, "access-control-request-method": "POST"}
            before = await service.client.options(case.path, headers=asked)
            assert before.status_code == 200, str(case)
            for answer in (
                await service.ask(case, key="red", headers=origin),
                await service.ask(case, headers=origin),  # an error, too
            ):
                allowed = answer.headers["access-control-allow-origin"]
                assert allowed == origin["origin"], str(case)


WRONG = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b'{"messages": "\xff"}',
    b"[" * 50_000,
    b'{"messages": {"a": "%s"}}' % SECRET.encode(),
    b'{"input": {"a": "%s"}}' % SECRET.encode(),
    b'{"prompt": {"a": "%s"}, "input": 5}' % SECRET.encode(),
    b'{"messages": [{"role": "%s", "content": 5}]}' % SECRET.encode(),
    b'{"messages": [5, 5], "input": [5.5, "x"], "prompt": [null], "max_tokens": "x"}',
)


async def test_bodies_that_make_no_sense(caplog):
    caplog.set_level(logging.DEBUG)
    as_json = {"content-type": "application/json"}
    async with front(max_body_bytes=60_000) as service:
        for case in CASES:
            post = service.client.post
            for content in () if case.stream else WRONG:  # they say nothing of a stream
                refused(case, await post(case.path, content=content, headers=as_json), 400)
            for field, value in (("model", [SECRET]), ("temperature", SECRET), ("stream", SECRET)):
                body = case.body(SECRET) | {field: value}
                answer = await post(case.path, json=body)
                if field in {"temperature", "stream"} and not case.door.streams:
                    assert answer.status_code in {200, 400}, str(case)  # unknown there
                else:
                    refused(case, answer, 400)
            long = await service.ask(case, "x" * 60_000)
            refused(case, long, 413)
            text = await post(case.path, content=b"{}", headers={"content-type": "text/plain"})
            refused(case, text, 415)
            zipped = {**as_json, "content-encoding": "gzip"}
            refused(case, await post(case.path, content=b"{}", headers=zipped), 415)
        assert service.calls == 0
    assert SECRET not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_errors_of_providers_tell_nothing(caplog):
    caplog.set_level(logging.DEBUG)
    async with front(keys=[api_key("red")]) as service:
        for name in ("a", "b"):
            service.vendor.always(name, FailureKind.SERVER_ERROR)
        for case in CASES:
            if not case.door.asks:
                continue
            answer = await service.ask(case, SECRET, key="red")
            refused(case, answer, 529 if case.door.anthropic else 503, "all_providers_failed")
            assert "x-request-id" in answer.headers
    assert SECRET not in caplog.text
    assert "sk-red" not in caplog.text


async def test_streams_end_with_an_error_when_the_service_stops():
    cases = [case for case in CASES if case.stream]
    async with front(keys=[api_key("red")]) as service, contextlib.AsyncExitStack() as stack:
        service.vendor.always("a", ScriptedStream("begun", asyncio.Event().wait))
        lines = []
        for case in cases:
            opened = service.client.stream(
                "POST", case.path, json=case.body(str(case)), headers=bearer("red")
            )
            answer = await stack.enter_async_context(opened)
            assert answer.status_code == 200
            line = answer.aiter_lines()
            while "begun" not in await anext(line):
                pass
            lines.append(line)
        service.service.stopping.set()
        for case, line in zip(cases, lines, strict=True):
            rest = [each.removeprefix("data: ") async for each in line if each.startswith("data")]
            last = json.loads(rest[-1])
            assert "stopping" in json.dumps(last), str(case)
            assert (last.get("type") == "error") or "error" in last, str(case)
        await until(lambda: service.vendor.open_streams == 0)


async def test_a_caller_who_leaves_cancels_the_call(simulator):
    vendor = simulator.openai
    vendor.behave(Fault.hang())
    for embeds in (False, True):
        fields = {"model": vendor.embedding_model} if embeds else None
        async with (
            served(vendor, fields=fields, failure_threshold=1) as (service, url),
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        ):
            for case in CASES:
                if not case.door.asks or ("embeddings" in case.path) is not embeds:
                    continue
                arrived = vendor.request_count
                asking = asyncio.create_task(client.post(case.path, json=case.body(str(case))))
                await until(lambda arrived=arrived: vendor.request_count > arrived)
                asking.cancel()
                await until(lambda: vendor.open_connections == 0)
            (provider,) = service.gateway.providers
            counted = service.gateway.get_metrics()["providers"][provider.name]
            assert not counted["failures"].keys() - {"cancelled"}
