"""The page and its feed over HTTP: who may watch, what comes, and when it ends."""

import asyncio
import base64
import hashlib
import json
import re
from contextlib import asynccontextmanager

import pytest

from aigateway.errors import FailureKind as K
from aigateway.server.auth.keys import Access
from aigateway.settings import ApiKey
from aigateway.testing import FakeClock, ScriptedVendor
from tests.processes import PATIENCE
from tests.server.watched import ADMIN, KEYS, USER, digest, serving


@asynccontextmanager
async def watching(client, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with client.stream("GET", "/status/feed", headers=headers) as answer:
        assert answer.status_code == 200

        async def told():
            async for line in answer.aiter_lines():
                if line:
                    assert line.startswith("data: ")
                    yield json.loads(line.removeprefix("data: "))

        yield answer, told()


class TestThePage:
    async def test_needs_no_key_and_holds_no_figure(self):
        async with serving(KEYS) as (_, client):
            answer = await client.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert "a/1" not in answer.text

    async def test_lets_a_browser_run_only_what_is_in_it(self):
        async with serving() as (_, client):
            answer = await client.get("/")
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        for tag in ("script", "style"):
            [text] = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
            sha = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert policy[f"{tag}-src"] == f"'sha256-{sha}'"
        assert answer.headers["x-content-type-options"] == "nosniff"

    async def test_has_nothing_from_elsewhere_and_makes_no_markup_of_data(self):
        async with serving() as (_, client):
            text = (await client.get("/")).text
        assert not re.findall(r"(?:src|href)=[\"'](?!data:)", text)
        assert set(re.findall(r"https?://[^'\"\s]+", text)) <= {"http://www.w3.org/2000/svg"}
        assert "HTML" not in re.sub("<!DOCTYPE html>", "", text)  # innerHTML and its like
        assert " style=" not in text

    async def test_neither_is_in_the_documented_api(self):
        async with serving() as (_, client):
            paths = (await client.get("/openapi.json")).json()["paths"]
        assert "/" not in paths
        assert "/status/feed" not in paths
        assert "/admin/providers/{name}/circuit" in paths


class TestTheFeed:
    async def test_begins_at_once_and_goes_on(self):
        async with serving() as (service, client), watching(client) as (answer, told):
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            first = await anext(told)
            assert [each["name"] for each in first["snapshot"]["providers"]] == ["a/1", "b/2"]
            await service.gateway.chat("hi")
            second = await anext(told)
            assert second["snapshot"]["totals"]["requests"] == 1
            assert second["snapshot"]["at"] > first["snapshot"]["at"]

    async def test_what_happens_is_told_without_waiting_for_the_second(self):
        """With the clock of the second stopped, only what happens can bring the next one."""
        async with serving() as (service, client):
            service.clock = _NeverLater()
            async with watching(client) as (_, told):
                await anext(told)
                await service.force_circuit("a/1", "open", "ops")
                news = await anext(told)
                assert news["snapshot"]["providers"][0]["forced"]
                assert "forced open by ops" in news["snapshot"]["events"][0]["text"]

    async def test_failovers_are_told(self):
        vendor = ScriptedVendor()
        vendor.script("a/1", K.SERVER_ERROR)
        async with serving(vendor=vendor) as (service, client):
            await service.gateway.chat("hi")
            async with watching(client) as (_, told):
                [happening] = (await anext(told))["snapshot"]["events"]
        assert happening["text"] == "a/1 failed (server_error), b/2 answered."

    async def test_another_source_can_be_put_in_its_place(self):
        async with serving() as (service, client):
            service.snapshot = lambda: {"processes": 4}
            async with watching(client) as (_, told):
                assert (await anext(told))["snapshot"]["processes"] == 4

    async def test_ends_when_the_service_is_told_to_stop(self):
        async with serving() as (service, client):
            async with watching(client) as (_, told):
                await anext(told)
                service.draining = True
                assert [each async for each in told] == []
            refused = await client.get("/status/feed")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"

    async def test_ends_when_others_may_watch(self):
        async with serving() as (service, client), watching(client) as (_, told):
            await anext(told)
            service.access = Access(KEYS)
            assert [each async for each in told] == []
            assert (await client.get("/status/feed")).status_code == 401

    async def test_leaves_nothing_behind_when_the_page_goes(self):
        async with serving() as (service, client):
            async with watching(client) as (_, told):
                await anext(told)
                assert len(service.recent_events._watchers) == 1
            async with asyncio.timeout(PATIENCE):
                while service.recent_events._watchers:  # noqa: ASYNC110 - the server finds out itself
                    await asyncio.sleep(0.01)


class TestWhoMayWatch:
    @pytest.mark.parametrize("key", [None, "nonsense"])
    async def test_nobody_without_a_key_where_keys_are_set(self, key):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with serving(KEYS) as (_, client):
            answer = await client.get("/status/feed", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"

    @pytest.mark.parametrize(("key", "admin"), [(USER, False), (ADMIN, True)])
    async def test_with_a_key_and_it_says_who_may_do_more(self, key, admin):
        async with serving(KEYS) as (_, client), watching(client, key) as (_, told):
            assert (await anext(told))["admin"] is admin


LIMITED, SCRAPER = "a-limited-key", "a-scrapers-key"
SEVERAL = KEYS.model_copy(
    update={
        "keys": (
            *KEYS.keys,
            ApiKey(name="limited", sha256=digest(LIMITED), models=("b/2",), budget_usd=5, rpm=9),
            ApiKey(name="scraper", sha256=digest(SCRAPER), models=(), monitor=True),
        )
    }
)


class TestWhatAKeySees:
    """One with `models` sees its own only; one without sees all but the accounts of others."""

    @pytest.mark.parametrize(
        ("key", "names"),
        [
            (USER, ["team"]),
            (LIMITED, ["limited"]),
            (SCRAPER, ["team", "limited", "scraper"]),
            (ADMIN, ["team", "limited", "scraper"]),
        ],
    )
    async def test_accounts(self, key, names):
        header = {"Authorization": f"Bearer {key}"}
        async with serving(SEVERAL) as (_, client):
            asked = {"model": "b/2", "message": "hi"}
            await client.post("/chat", json=asked, headers={"x-api-key": LIMITED})
            metrics = (await client.get("/metrics", headers=header)).json()
            text = (await client.get("/metrics", headers={**header, "Accept": "text/plain"})).text
            async with watching(client, key) as (_, told):
                seen = await anext(told)
        assert list(metrics["keys"]) == names
        assert [each["name"] for each in seen["snapshot"]["keys"]] == names
        assert re.findall(r'aigateway_key_requests_last_minute\{key="(\w+)"', text) == names
        if "limited" in names:
            account = {"budget_usd": 5.0, "requests_last_minute": 1, "rpm": 9, "in_flight": 0}
            assert metrics["keys"]["limited"].items() >= account.items()

    async def test_a_key_with_models_sees_no_more_than_the_state_of_those(self):
        vendor = ScriptedVendor()
        vendor.script("a/1", K.SERVER_ERROR)
        header = {"Authorization": f"Bearer {LIMITED}"}
        async with serving(SEVERAL, vendor=vendor) as (service, client):
            await service.gateway.chat("hi")
            metrics = (await client.get("/metrics", headers=header)).json()
            text = (await client.get("/metrics", headers={**header, "Accept": "text/plain"})).text
            async with watching(client, LIMITED) as (_, told):
                seen = await anext(told)
        assert metrics.keys() == {"providers_active", "providers", "keys"}
        assert metrics["providers"].keys() == {"b/2"}
        assert not metrics["providers"]["b/2"].keys() & {"attempts", "cost_usd", "total_tokens"}
        picture = seen["snapshot"]
        assert [each["name"] for each in picture["providers"]] == ["b/2"]
        assert not picture["providers"][0].keys() & {"answered", "failed", "tokens", "cost_usd"}
        assert (picture["totals"], picture["events"], seen["history"]) == (None, [], None)
        for said in (json.dumps(seen), json.dumps(metrics), text):
            assert "a/1" not in said
            assert "team" not in said
        assert set(re.findall(r"^(aigateway_\w+)", text, re.MULTILINE)) == {
            "aigateway_circuit_state",
            "aigateway_provider_active",
            *(f"aigateway_key_{each}" for each in ("spent_usd", "budget_usd", "rpm")),
            "aigateway_key_requests_last_minute",
        }


class TestTheHistory:
    async def test_comes_whole_at_first_and_then_what_is_new(self):
        clock = FakeClock()
        async with serving(clock=clock) as (service, client):
            await service.gateway.chat("hi")
            clock.tick(10)
            service.clock = _NeverLater(clock)
            for order in ("open", "closed"):  # whenever a page is opened
                async with watching(client) as (_, told):
                    first = (await anext(told))["history"]
                    [(began, point)] = first["points"]
                    assert point[""][:2] == point["a/1"][:2] == [1, 0]
                    assert first["since"] <= began < first["until"]
                    clock.tick(1)
                    await service.force_circuit("b/2", order, None)
                    assert (await anext(told))["history"]["points"] == []


class _NeverLater:
    """A clock on which a pause of the feed passes and its second does not."""

    def __init__(self, clock=None):
        self._wall = clock or FakeClock()

    def now(self):
        return 0.0

    def wall(self):
        return self._wall.wall()

    async def sleep(self, seconds):
        await asyncio.sleep(0)

    def timeout(self, seconds):
        return asyncio.timeout(None)
