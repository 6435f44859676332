"""Keys over real HTTP: what each may ask, what it pays, and that none gets another's answers."""

import asyncio
import logging

import httpx
import pytest

from aigateway import AsyncGateway
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.testing import FakeClock, ScriptedStream, ScriptedVendor, scripted_configs
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer
from tests.server.running import running
from tests.server.services import served

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


class Tenants:
    """A service with keys over scripted vendors."""

    def __init__(self, url, service, vendor):
        self.url = url
        self.service = service
        self.vendor = vendor
        self.client = httpx.AsyncClient(base_url=url, timeout=PATIENCE)

    async def ask(self, name, path=CHAT, **body):
        body = {"messages": HI} | body
        return await self.client.post(path, json=body, headers=bearer(name))

    def spent(self):
        return {key.name: key.spent_usd for key in self.service.access.usage()}


@pytest.fixture
async def tenants(request):
    keys, clock, vendor = request.param, FakeClock(wall=86_400.0 * 20_000), ScriptedVendor()
    settings = ServerSettings(keys=keys)
    configs = scripted_configs("a", aliases=("fast",)) + scripted_configs("b", model="other")
    async with AsyncGateway(configs, vendor=vendor, cache_max_entries=100) as gateway:
        service = Service(gateway, settings, clock)
        async with running(service) as url:
            some = Tenants(url, service, vendor)
            async with some.client:
                yield some


TWO = [api_key("red"), api_key("blue")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tenants", [TWO], indirect=True)
async def test_no_key_gets_anothers_remembered_answer(tenants, stream):
    for name in ("red", "blue", "red", "blue"):
        assert (await tenants.ask(name, stream=stream)).status_code == 200
    assert tenants.vendor.called() == 2


@pytest.mark.parametrize("tenants", [TWO], indirect=True)
async def test_nor_one_that_is_under_way(tenants):
    """Two of each key ask the same at once: each key's pair shares one call, and no more."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def wait():
        if tenants.vendor.called() == 2:
            asked.set()
        await go_on.wait()

    tenants.vendor.always("a", wait)
    asking = [
        asyncio.create_task(tenants.ask(name, model="a")) for name in ("red", "blue", "red", "blue")
    ]
    async with asyncio.timeout(PATIENCE):
        await asked.wait()
        while sum(key.in_flight for key in tenants.service.access.usage()) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    go_on.set()
    assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 4
    assert tenants.vendor.called() == 2
    origins = {request.partition for _, request in tenants.vendor.calls}
    assert origins == {"key:red", "key:blue"}


async def test_identical_prompts_of_two_keys_reach_the_vendor_twice(simulator):
    async with (
        served(simulator.openai, server={"keys": TWO}) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        for name in ("red", "blue", "red", "blue"):
            body = {"message": "hi"}
            answer = await client.post("/chat", json=body, headers=bearer(name))
            assert answer.status_code == 200
    assert simulator.openai.request_count == 2
    for received in simulator.openai.received:
        assert "sk-red" not in str(received.headers)
        assert "sk-blue" not in str(received.headers)


@pytest.mark.parametrize("tenants", [[api_key("red", models=("fast",))]], indirect=True)
async def test_a_key_sees_and_asks_its_models_only(tenants):
    models = (await tenants.client.get("/v1/models", headers=bearer("red"))).json()["data"]
    assert [model["id"] for model in models] == ["fast"]
    assert (await tenants.client.get("/v1/models/b", headers=bearer("red"))).status_code == 404
    assert (await tenants.ask("red", model="fast")).status_code == 200
    for path, body in (
        (CHAT, {"model": "b"}),
        (CHAT, {"model": "b", "stream": True}),
        (CHAT, {"model": "a"}),
        ("/chat", {"model": "other"}),
    ):
        answer = await tenants.ask("red", path, **body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
    for model in ("auto", "", None):
        assert (await tenants.ask("red", model=model)).status_code == 400
    embed = {"json": {"input": "x", "model": "b"}, "headers": bearer("red")}
    assert (await tenants.client.post("/v1/embeddings", **embed)).status_code == 404
    assert tenants.vendor.called() == 1


BUDGETS = [api_key("red", budget_usd=0.0025), api_key("blue", budget_usd=1)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tenants", [BUDGETS], indirect=True)
async def test_answers_are_paid_for_until_the_budget_is_used_up(tenants, stream):
    tenants.vendor.always("a", ScriptedStream("ok", cost_usd=0.001))
    for number in range(3):
        answer = await tenants.ask("red", model="a", seed=number, stream=stream)
        assert answer.status_code == 200
    assert tenants.spent() == {"red": pytest.approx(0.003), "blue": 0}
    answer = await tenants.ask("red", model="a", seed=9, stream=stream)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "insufficient_quota"
    assert answer.headers["retry-after"] == "86400"
    assert "sk-" not in answer.text
    assert (await tenants.ask("blue", model="a", stream=stream)).status_code == 200
    tenants.service.clock.tick(86_400)
    assert (await tenants.ask("red", model="a", seed=9, stream=stream)).status_code == 200


@pytest.mark.parametrize("tenants", [BUDGETS], indirect=True)
async def test_cached_answers_and_refusals_cost_nothing(tenants):
    for _ in range(5):
        assert (await tenants.ask("red", model="a")).status_code == 200
    assert tenants.spent()["red"] == pytest.approx(0.001)
    assert (await tenants.ask("red", model="none")).status_code == 404
    assert (await tenants.ask("red", temperature=9)).status_code == 400
    assert tenants.spent()["red"] == pytest.approx(0.001)


@pytest.mark.parametrize("tenants", [[api_key("red", rpm=2), api_key("blue")]], indirect=True)
async def test_the_rate_is_kept_for_each_key(tenants):
    for path in (CHAT, "/chat"):
        assert (await tenants.ask("red", path)).status_code == 200
    for path in (CHAT, "/chat"):
        answer = await tenants.ask("red", path)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert (await tenants.client.get("/v1/models", headers=bearer("red"))).status_code == 200
    assert (await tenants.ask("blue")).status_code == 200
    tenants.service.clock.tick(60)
    assert (await tenants.ask("red")).status_code == 200


@pytest.mark.parametrize("tenants", [TWO], indirect=True)
async def test_a_key_sees_what_it_has_spent_and_no_other(tenants):
    await tenants.ask("red")
    for name, told in (("red", True), ("blue", False)):
        keys = (await tenants.client.get("/metrics", headers=bearer(name))).json()["keys"]
        assert keys.keys() == {name}
        assert (keys[name]["spent_usd"] > 0) is told


@pytest.mark.parametrize("tenants", [[api_key("red", models=["auto", "fast"])]], indirect=True)
async def test_a_key_may_be_given_auto(tenants):
    assert (await tenants.ask("red")).status_code == 200
    assert (await tenants.ask("red", model="auto")).status_code == 200
    assert (await tenants.ask("red", model="other")).status_code == 404
    models = (await tenants.client.get("/v1/models", headers=bearer("red"))).json()["data"]
    assert [model["id"] for model in models] == ["auto", "fast"]


@pytest.mark.parametrize("tenants", [[api_key("red", rpm=1)]], indirect=True)
async def test_the_log_and_the_figures_say_who_was_answered_and_who_refused(tenants, caplog):
    caplog.set_level(logging.INFO)
    assert (await tenants.ask("red")).status_code == 200
    assert (await tenants.ask("red")).status_code == 429
    assert (await tenants.ask("nobody")).status_code == 401
    figures = (await tenants.client.get("/metrics", headers=bearer("red"))).json()
    assert figures["refused"] == {"rate_limit_exceeded": 1, "invalid_api_key": 1}
    assert "agent='red'" in caplog.text
    assert "service.refused: the key 'red' got HTTP 429" in caplog.text
    assert "service.refused: 127.0.0.1 got HTTP 401 (invalid_api_key)" in caplog.text
    assert "sk-" not in caplog.text


@pytest.mark.parametrize("tenants", [[api_key("red")]], indirect=True)
async def test_the_log_names_the_key_of_whatever_is_refused(tenants, caplog):
    red, packed = bearer("red"), {"content-encoding": "gzip"}
    refused = [
        await tenants.ask("red", temprature=1),
        await tenants.ask("red", messages="hi"),
        await tenants.client.post(CHAT, content=b"{}", headers=red),
        await tenants.client.post(CHAT, content=b"{}", headers=red | packed),
        await tenants.client.get("/nothing", headers=red),
        await tenants.client.delete("/health", headers=red),
        await tenants.client.post(CHAT, content=b"{}", headers=bearer("nobody") | packed),
    ]
    lines = [line for line in caplog.messages if line.startswith("service.refused")]
    callers = [line.removeprefix("service.refused: ").partition(" got HTTP ")[0] for line in lines]
    assert [answer.status_code for answer in refused] == [400, 400, 415, 415, 404, 405, 415]
    assert callers == ["the key 'red'"] * 6 + ["127.0.0.1"]
    assert "sk-" not in caplog.text


@pytest.mark.parametrize("tenants", [[api_key("red")]], indirect=True)
async def test_an_agent_does_not_stand_in_the_place_of_a_tenant(tenants, caplog):
    caplog.set_level(logging.INFO)
    headers = {**bearer("red"), "x-aigateway-agent": "blue"}
    for path, body in (
        (CHAT, {"messages": HI}),
        ("/chat", {"message": "hi", "agent": "blue"}),
    ):
        answer = await tenants.client.post(path, json=body, headers=headers)
        assert answer.status_code == 200
    assert "agent='blue'" not in caplog.text
    assert caplog.text.count("agent='red/blue'") >= 1
