"""The OpenAPI document says what the endpoints take and give: schemathesis holds it against them.

Requests are drawn from the document, valid ones and broken ones, and sent over real HTTP to a
service over a scripted provider. Every answer must have a documented status, type and form, valid
bodies must be taken, broken ones refused, and nothing may be a 500.
"""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from aigateway.server.http.app import _DOORS, service_app
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from tests.processes import PATIENCE
from tests.server.services import scripted

pytestmark = [pytest.mark.slow, pytest.mark.hypothesis]

LOOKING = ("/health", "/ready", "/metrics", "/v1/models", "/v1/models/{model}")
ADMIN = "/admin/providers/{name}/circuit"
ASKING = sorted(
    route.path_format
    for door in _DOORS.values()
    for route in door.router.routes
    if "POST" in route.methods and route.include_in_schema and route.path_format != ADMIN
)
LOOSE = ("/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses")
"""Blocks and items refer to one another, and some tools and `suffix` need a vendor that has them.
No schema says that: a body may fit and be refused."""


@pytest.fixture
def url():
    """A service in a thread of its own: schemathesis asks synchronously."""
    started = threading.Event()
    running: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve():
        async with scripted(cache_enabled=False) as (_, address):
            stopped = asyncio.Event()
            running.append((address, asyncio.get_running_loop(), stopped))
            started.set()
            await stopped.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(PATIENCE)
    address, loop, stopped = running[0]
    yield address
    loop.call_soon_threadsafe(stopped.set)
    thread.join(PATIENCE)


@pytest.fixture
def held(url):
    """Holds endpoints against what is documented of them."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")

    def hold(method, path, mode):
        @given(case=document[path][method].as_strategy(mode))
        @settings(
            # Their schemas are large, and a service is asked for each.
            max_examples=max(2, settings().max_examples // (12 if path in LOOSE else 6)),
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
            database=None,
        )
        def check(case):
            if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
                case.body.pop("model", None)  # any name but a provider's is a 404
            response = case.call(session=session)
            # Longer lists than the document allows may be too long for the service before it has
            # looked at them; and a caller may have set a timeout that no answer can keep.
            own_timeout = "x-aigateway-timeout" in (case.headers or {})
            if response.status_code == 413 or (response.status_code == 504 and own_timeout):
                return
            if path in LOOSE and mode is GenerationMode.POSITIVE and response.status_code == 400:
                return
            case.validate_response(response)

        with requests.Session() as session:
            check()

    return hold


def test_those_that_look(held):
    for path in LOOKING:  # nothing of them can be broken
        held("GET", path, GenerationMode.POSITIVE)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", ASKING)
def test_those_that_ask(held, path, mode):
    held("POST", path, mode)


def test_every_endpoint_is_in_the_document(url):
    paths = requests.get(f"{url}/openapi.json", timeout=PATIENCE).json()["paths"]
    assert all("get" in paths[path] for path in LOOKING)
    assert all("post" in paths[path] for path in ASKING)


def test_every_reference_in_the_document_leads_somewhere(url):
    answer = requests.get(f"{url}/openapi.json", timeout=PATIENCE)
    document = answer.json()
    places = set(re.findall(r'"#/([^"]*)"', answer.text))
    assert len(places) > 30
    for place in places:
        here = document
        for step in place.split("/"):
            here = here[step]
        assert here


def test_what_the_document_says_of_an_endpoint(url):
    document = requests.get(f"{url}/openapi.json", timeout=PATIENCE).json()
    operations = {
        (path, method): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert {path for path, _ in operations} == {
        *LOOKING,
        *ASKING,
        ADMIN,
    }
    for (path, method), operation in operations.items():
        assert operation["summary"]
        assert "422" not in operation["responses"]  # FastAPI's own form of a refusal
        assert "500" in operation["responses"]
        assert ("security" in operation) == (path not in {"/health", "/ready"})
        assert ("requestBody" in operation) == (method == "post")
    asked = operations["/v1/chat/completions", "post"]
    assert {parameter["name"] for parameter in asked["parameters"]} == {
        f"x-aigateway-{name}"
        for name in ("agent", "cache", "cache-ttl", "resume", "session", "timeout")
    }
    assert asked["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert "x-aigateway-provider" in asked["responses"]["200"]["headers"]


def test_the_document_needs_no_network():
    async def address():
        async with scripted() as (service, _):
            app = service_app(Service(service.gateway, ServerSettings()))
            return app.docs_url, app.redoc_url

    assert asyncio.run(address()) == (None, None)
