"""The operator's hand on the circuits, over HTTP."""

import logging
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest

from aigateway.settings import ServerSettings
from tests.server.watched import ADMIN, KEYS, USER, digest, serving

NAME = "a/1"


def path(name=NAME):
    return f"/admin/providers/{name}/circuit"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def office(settings=KEYS):
    async with serving(settings) as (service, client):
        yield service.gateway, client


class TestAnOrder:
    @pytest.mark.parametrize("name", [NAME, quote(NAME, safe="")])
    async def test_is_carried_out(self, name):
        async with office() as (gateway, client):
            answer = await client.post(path(name), json={"state": "open"}, headers=bearer(ADMIN))
            assert answer.status_code == 200
            assert answer.json() == {"provider": NAME, "state": "open"}
            assert (gateway.providers[0].forced, gateway.providers[0].active) == (True, False)
            assert (await gateway.chat("hi")).provider == "b/2"
            await client.post(path(name), json={"state": "auto"}, headers=bearer(ADMIN))
            assert (gateway.providers[0].forced, gateway.providers[0].active) == (False, True)

    async def test_is_logged_with_who_gave_it(self, caplog):
        async with office() as (_, client):
            with caplog.at_level(logging.WARNING, "aigateway"):
                await client.post(path(), json={"state": "closed"}, headers=bearer(ADMIN))
        assert "event='operator.circuit_forced' provider='a/1' state='closed' by='admin'" in (
            caplog.text
        )
        assert ADMIN not in caplog.text

    async def test_can_be_given_to_all_processes(self):
        orders = []

        async def to_all(name, order, by):
            orders.append((name, order, by))

        async with serving(KEYS) as (service, client):
            service.force_circuit = to_all
            await client.post(path(), json={"state": "open"}, headers=bearer(ADMIN))
        assert orders == [(NAME, "open", "admin")]

    async def test_needs_no_key_where_none_is_set(self):
        async with office(ServerSettings()) as (gateway, client):
            assert (await client.post(path(), json={"state": "open"})).status_code == 200
            assert gateway.providers[0].forced


class TestARefusal:
    @pytest.mark.parametrize(
        ("key", "status", "code"),
        [
            (None, 401, "invalid_api_key"),
            ("nonsense", 401, "invalid_api_key"),
            (USER, 403, "admin_key_required"),
        ],
    )
    async def test_of_everybody_but_the_admin(self, key, status, code):
        async with office() as (gateway, client):
            headers = bearer(key) if key else {}
            answer = await client.post(path(), json={"state": "open"}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert not gateway.providers[0].forced

    async def test_of_everybody_where_only_an_admin_is_set(self):
        settings = ServerSettings(admin_sha256=digest(ADMIN))
        async with office(settings) as (_, client):
            assert (await client.post(path(), json={"state": "open"})).status_code == 403

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"open"',
            b"{}",
            b'{"state": "ajar"}',
            b'{"state": null}',
            b'{"state": ["open"]}',
            b'{"state": "open", "more": 1}',
            b"\xff\xfe",
        ],
    )
    async def test_of_a_body_that_says_nothing(self, body):
        headers = {**bearer(ADMIN), "Content-Type": "application/json"}
        async with office() as (gateway, client):
            answer = await client.post(path(), content=body, headers=headers)
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert not any(each.forced for each in gateway.providers)

    async def test_of_a_name_that_is_not_known(self):
        async with office() as (_, client):
            answer = await client.post(path("c/3"), json={"state": "open"}, headers=bearer(ADMIN))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "provider_not_found")

    async def test_of_what_a_page_from_elsewhere_can_send_without_asking(self):
        async with office(ServerSettings()) as (gateway, client):
            for headers in ({"Content-Type": "text/plain"}, {}):
                answer = await client.post(path(), content=b'{"state": "open"}', headers=headers)
                assert answer.status_code == 415
            elsewhere = {"Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}
            answer = await client.post(path(), content=b'{"state": "open"}', headers=elsewhere)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_site")
            assert not gateway.providers[0].forced
