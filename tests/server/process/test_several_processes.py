"""Several processes, simulated vendors behind them: what one is asked is answered for all."""

import asyncio
import contextlib
import hashlib
import json
import re
import signal

import httpx
import pytest

from aigateway import AsyncGateway
from aigateway.events import CircuitForced
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.simulator import Fault, Simulator
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.processes import PATIENCE
from tests.server.visitors import eventually

pytestmark = pytest.mark.slow

ADMIN = "admin-key-of-the-test"
FIRST, SECOND = "openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"

PROVIDERS = """
[gateway]
retry_rounds = 0

[[providers]]
provider = "openai"
model = "gpt-4o-mini"
priority = 2
api_key = "k"
api_base = "{}"

[[providers]]
provider = "anthropic"
model = "claude-haiku-4-5"
priority = 1
api_key = "k"
api_base = "{}"
"""


@pytest.fixture
def vendors():
    with Simulator.in_thread() as running:
        yield running


@pytest.fixture
def serve(start, vendors):
    """A service in processes of its own; gives a maker of clients, each with a new connection."""

    def begin(*, workers=1, keys="", **settings):
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        server = "\n".join(["[server]", f"workers = {workers}", *lines])
        toml = PROVIDERS.format(vendors.openai.api_base, vendors.anthropic.api_base)
        return start(toml=f"{server}\n{keys}\n{toml}")

    return begin


async def asked(url, method="GET", path="/metrics", *, body=None, **headers):
    """Ask over a connection of its own, so that any of the processes may answer."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        return await client.request(method, path, json=body, headers=headers)


async def chat(url, text):
    answer = await asked(url, "POST", "/chat", body={"message": text})
    assert answer.status_code == 200, answer.text
    return answer.json()


def counted(text, name):
    values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))


async def test_figures_are_those_of_all_processes(serve):
    url = await asyncio.to_thread(lambda: serve(workers=3).url)
    await asyncio.gather(*(chat(url, f"p{n}") for n in range(30)))

    async def all_are_told():
        figures = (await asked(url)).json()
        return figures["total_requests"] == figures["served"] == 30

    async def the_scraper_is_told():
        text = (await asked(url, accept="text/plain")).text
        return counted(text, "aigateway_requests_total") == 30

    async with asyncio.timeout(PATIENCE):
        await eventually(all_are_told)
        await eventually(the_scraper_is_told)


async def test_a_stop_writes_the_lines_of_all_served_requests(serve):
    service = serve(workers=2)
    url = await asyncio.to_thread(lambda: service.url)
    await asyncio.gather(*(chat(url, f"p{n}") for n in range(10)))
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(lambda: service.code) == 0
    assert service.log.count("event='request.served'") == 10


async def test_a_burst_of_cheap_chats_of_a_new_key_fits_into_a_small_budget(serve, vendors):
    vendors.openai.behave(Fault.slow(0.5))
    keys = "".join(
        f'[[server.keys]]\nname = "{name}"\nbudget_usd = {budget}\n'
        f'sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
        for name, budget in (("rich", 5.0), ("poor", 0.05))
    )
    url = await asyncio.to_thread(lambda: serve(workers=3, keys=keys).url)

    def ask(number, key):
        body = {
            "model": "gpt-4o-mini",
            "max_tokens": 10,
            "messages": [{"role": "user", "content": f"{number}"}],
        }
        return asked(url, "POST", "/v1/chat/completions", body=body, authorization=f"Bearer {key}")

    for key in ("rich", "poor"):
        answers = await asyncio.gather(*(ask(number, key) for number in range(60)))
        assert [answer.text for answer in answers if answer.status_code != 200] == []


async def test_the_page_is_fed_with_the_sum(serve):
    url = await asyncio.to_thread(lambda: serve(workers=2).url)
    await chat(url, "hello")
    async with (
        asyncio.timeout(PATIENCE),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        client.stream("GET", "/status/feed") as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                picture = json.loads(line.removeprefix("data: "))["snapshot"]
                if picture["processes"] == 2 and picture["totals"]["requests"] == 1:
                    return


async def test_an_operator_s_order_reaches_all_and_those_that_come_later(serve):
    service = serve(workers=3, admin_sha256=hashlib.sha256(ADMIN.encode()).hexdigest())
    url = await asyncio.to_thread(lambda: service.url)
    path = f"/admin/providers/{FIRST}/circuit"
    key = {"authorization": f"Bearer {ADMIN}"}
    answer = await asked(url, "POST", path, body={"state": "open"}, **key)
    assert answer.status_code == 200, answer.text
    missing = "/admin/providers/nobody/circuit"
    assert (await asked(url, "POST", missing, body={"state": "open"}, **key)).status_code == 404

    prompts = iter(range(10_000))

    async def all_answered_by(provider):
        replies = await asyncio.gather(*(chat(url, f"p{next(prompts)}") for _ in range(20)))
        return {reply["provider"] for reply in replies} == {provider}

    async with asyncio.timeout(PATIENCE):
        await eventually(lambda: all_answered_by(SECOND))
        service.signal(signal.SIGHUP)  # a reload forgets no order
        await asyncio.sleep(0.1)
        await eventually(lambda: all_answered_by(SECOND))
        await asked(url, "POST", path, body={"state": "auto"}, **key)
        await eventually(lambda: all_answered_by(FIRST))


async def test_a_stream_is_told_when_the_time_is_over(serve, vendors):
    vendors.openai.behave(Fault.stall_stream(after=2))
    service = serve(drain_seconds=0.3, drain_notice_seconds=0)
    url = await asyncio.to_thread(lambda: service.url)
    body = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "one two"}]}
    events = []
    async with (
        asyncio.timeout(PATIENCE),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        with contextlib.suppress(httpx.RemoteProtocolError):
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    events.append(line.removeprefix("data: "))
                    if len(events) == 1:
                        service.signal(signal.SIGTERM)
    assert json.loads(events[0])["object"] == "chat.completion.chunk"
    assert json.loads(events[-1])["error"]["code"] == "stopping"
    assert await asyncio.to_thread(lambda: service.code) == 0


class Orders:
    """A hook that notes what was ordered."""

    def __init__(self):
        self.heard = []

    def on_event(self, event):
        if isinstance(event, CircuitForced):
            self.heard.append((event.provider, event.state, event.by))


async def test_orders_that_are_given_again_are_told_only_where_they_change_something():
    orders, configs = Orders(), scripted_configs("a", "b", "c")
    async with AsyncGateway(configs, vendor=ScriptedVendor(), hooks=[orders]) as gateway:
        service = Service(gateway, ServerSettings())
        await service.force_circuit("a", "open", "ops")
        await service.force_circuit("b", "closed", "ops")
        await service.force_circuit("c", "auto", "ops")  # as it is
        given = [("a", "open", "ops"), ("b", "closed", "ops")]
        assert orders.heard == given
        service.shared.replay()
        assert orders.heard == given

        gateway.remove_provider("a")
        gateway.add_provider(configs[0])
        service.shared.replay()
        given.append(("a", "open", "ops"))
        assert orders.heard == given

        await service.force_circuit("a", "closed", "me")
        await service.force_circuit("a", "auto", "me")
        service.shared.replay()
        assert orders.heard == [*given, ("a", "closed", "me"), ("a", "auto", "me")]
