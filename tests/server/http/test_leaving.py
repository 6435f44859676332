"""A caller who goes away takes the call to the vendor along, and no circuit is the wiser."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.server.http.cancel import CallerGoneError
from aigateway.server.http.limits import LimitedRequest
from aigateway.settings import ServerSettings
from aigateway.simulator import Fault
from aigateway.testing import ScriptedVendor
from tests.gateways import until
from tests.processes import PATIENCE
from tests.server.services import scripted, served

BODIES: dict[str, dict[str, object]] = {
    "/chat": {"message": "one two three"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "one two three"}]},
    "/v1/embeddings": {"input": "one"},
}
STREAM = {**BODIES["/v1/chat/completions"], "stream": True}


def is_unharmed(service):
    (provider,) = service.gateway.providers
    counted = service.gateway.get_metrics()["providers"][provider.name]
    return (
        provider.in_flight == 0
        and counted["consecutive_failures"] == 0
        and not counted["failures"].keys() - {"cancelled"}
    )


@pytest.mark.parametrize(
    ("path", "body"), [*BODIES.items(), ("/v1/chat/completions", STREAM)], ids=str
)
@pytest.mark.parametrize("cache", ["true", "false"])
async def test_who_leaves_while_the_vendor_thinks(simulator, path, body, cache):
    vendor = simulator.openai
    vendor.behave(Fault.hang())
    fields = {"model": vendor.embedding_model} if path == "/v1/embeddings" else None
    running = served(vendor, fields=fields, failure_threshold=1)
    async with running as (service, url), httpx.AsyncClient(timeout=PATIENCE) as client:
        asking = asyncio.create_task(
            client.post(url + path, json=body, headers={"x-aigateway-cache": cache})
        )
        await until(lambda: vendor.received)
        assert vendor.open_connections == 1
        asking.cancel()  # the client closes its connection
        await until(lambda: vendor.open_connections == 0)
        await until(lambda: is_unharmed(service))
        vendor.recover()
        answer = await client.post(url + path, json=body)
        assert answer.status_code == 200


@pytest.mark.parametrize("behind", [b"\r\n", b"POST /chat HT", b"GET /health HTTP/1.1\r\n\r\n"])
async def test_who_leaves_after_more_than_a_request(simulator, behind):
    vendor = simulator.openai
    vendor.behave(Fault.hang())
    async with served(vendor, failure_threshold=1) as (service, url):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        body = b'{"message": "one two three"}'
        head = "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body + behind)
        await until(lambda: vendor.received)
        writer.close()
        await until(lambda: vendor.open_connections == 0)
        await until(lambda: is_unharmed(service))


async def test_who_leaves_in_the_middle_of_a_stream(simulator):
    vendor = simulator.openai
    vendor.behave(Fault.stall_stream(after=1))
    async with (
        served(vendor, failure_threshold=1) as (service, url),
        httpx.AsyncClient(timeout=PATIENCE) as client,
    ):
        async with client.stream("POST", url + "/v1/chat/completions", json=STREAM) as answer:
            lines = answer.aiter_lines()
            assert "one" in await anext(lines)
            assert vendor.open_connections == 1
        await until(lambda: vendor.open_connections == 0)
        await until(lambda: is_unharmed(service))


async def test_one_who_leaves_takes_nothing_from_the_other_who_asked_the_same():
    vendor = ScriptedVendor()
    going = asyncio.Event()
    vendor.script("a", going.wait)
    async with (
        scripted(vendor) as (service, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        asking = [asyncio.create_task(client.post("/chat", json=BODIES["/chat"])) for _ in range(2)]
        await until(lambda: service.gateway.get_metrics()["total_requests"] == 2)
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        going.set()
        assert (await asking[1]).json()["response"] == "ok"
    assert vendor.called() == 1


async def test_many_who_leave_at_once_leave_nothing_behind(simulator):
    vendor = simulator.openai
    vendor.behave(Fault.hang())
    async with served(vendor) as (service, url), httpx.AsyncClient(timeout=PATIENCE) as client:
        before = len(asyncio.all_tasks())
        asking = [
            asyncio.create_task(client.post(url + "/chat", json={"message": f"question {number}"}))
            for number in range(30)
        ]
        await until(lambda: len(vendor.received) == 30)
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
        await until(lambda: vendor.open_connections == 0)
        await until(lambda: is_unharmed(service))
        await until(lambda: len(asyncio.all_tasks()) <= before)
        assert not service._uses


# ── a request by itself ──────────────────────────────────────────────────────────────────────


class Line:
    """A connection of ASGI that a test closes; its server reports that, or only when asked."""

    def __init__(self, *, reports):
        self._closed = asyncio.Event()
        self.on_disconnect = None
        self.disconnected = False
        self._extensions = {"aigateway.connection": self} if reports else {}

    def close(self):
        self._closed.set()
        self.disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()

    async def receive(self):
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        raise AssertionError(message)

    async def run(self, work):
        """Serve a request whose body has been read; nothing is answered."""
        scope = {"type": "http", "headers": [], "extensions": self._extensions}

        async def app(_scope, _receive, _send):
            request.watch_caller()
            await work()

        request = LimitedRequest(scope, self.receive, self.send, ServerSettings(), SYSTEM_CLOCK)
        await request.run(app)


@pytest.fixture(params=[False, True])
def line(request):
    return Line(reports=request.param)


async def test_the_work_ends_when_the_caller_has_gone(line):
    asyncio.get_running_loop().call_soon(line.close)
    with pytest.raises(CallerGoneError):
        await line.run(asyncio.Event().wait)
    line = Line(reports=True)
    line.close()
    with pytest.raises(CallerGoneError):
        await line.run(asyncio.Event().wait)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # and nothing is left to be cancelled later


async def test_a_cancellation_from_elsewhere_stays_one(line):
    task = asyncio.create_task(line.run(asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    line.close()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_request_that_is_over_is_not_watched(line):
    async def broken():
        raise KeyError

    await line.run(lambda: asyncio.sleep(0))
    with pytest.raises(KeyError):
        await line.run(broken)
    await asyncio.sleep(0.02)
    assert len(asyncio.all_tasks()) == 1
    line.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
