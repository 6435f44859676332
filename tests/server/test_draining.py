"""A service that is told to stop finishes what it has accepted, and nobody notices the end."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import httpx
import pytest

from tests.processes import PATIENCE
from tests.server.visitors import Connection, NotAnswered, eventually, once

PROVIDER = '[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "k"\n'

SIZE = 25


class Crowd:
    """Visitors that ask again and again on kept connections, until nobody is there any more."""

    def __init__(self, port: int, size: int) -> None:
        self.answered: set[str] = set()
        self.ends: Counter[str] = Counter()
        self._tasks = [asyncio.create_task(self._visit(port, who)) for who in range(size)]

    async def over(self) -> None:
        await asyncio.gather(*self._tasks)

    async def asked(self, count: int) -> None:
        while len(self.answered) < count:
            assert not all(task.done() for task in self._tasks)
            await asyncio.sleep(0.01)

    async def _visit(self, port: int, who: int) -> None:
        connection = Connection(port)
        for number in range(100_000):
            name = f"{who}-{number}"
            seconds = 0.3 if number % 50 == 7 else 0.002 * (who % 5)
            try:
                status, headers, told = await connection.get(
                    f"/t/work?id={name}&seconds={seconds}&length={10 ** (who % 5)}"
                )
            except NotAnswered:
                self.ends["not answered"] += 1
                continue
            except ConnectionError:
                break
            assert (status, told["id"]) == (200, name)
            self.answered.add(name)
            self.ends[headers.get("connection", "kept")] += 1
        await connection.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_under_load_no_request_that_was_accepted_is_lost(start, workers):
    service = start(
        "--workers", str(workers), toml=PROVIDER, AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0.3"
    )
    crowd = Crowd(await asyncio.to_thread(lambda: service.port), size=SIZE)
    await crowd.asked(400)
    service.signal(signal.SIGTERM)
    await crowd.over()
    assert await asyncio.to_thread(lambda: service.code) == 0
    accepted = service.read("accepted").split()
    assert set(accepted) == crowd.answered, "what was accepted is what was answered"
    assert len(accepted) == len(crowd.answered), "and nothing twice"
    assert crowd.ends["close"] > 0, "while it drained, clients were told to leave"
    # Who connects in the very moment in which the port is closed sees that, and once.
    assert crowd.ends["not answered"] <= SIZE, crowd.ends
    assert "Traceback" not in service.log


async def not_ready(connection: Connection) -> dict[str, str] | None:
    """What goes with the answer, if it is no."""
    status, headers, _ = await connection.get("/t/ready")
    return headers if status == 503 else None


async def is_refused(port: int) -> bool:
    try:
        await once(port, "/t/ready")
    except ConnectionRefusedError:
        return True
    return False


async def test_first_it_is_not_ready_then_it_is_gone(start):
    # Long enough for a machine that is busy elsewhere: a notice that is missed cannot be seen.
    service = start(toml=PROVIDER, AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="2")
    connection = Connection(await asyncio.to_thread(lambda: service.port))
    assert (await connection.get("/t/ready"))[0] == 200
    long = asyncio.create_task(once(service.port, "/t/work?id=long&seconds=4"))
    await eventually(lambda: "long" in service.read("accepted"))
    service.signal(signal.SIGTERM)
    answer = await eventually(lambda: not_ready(connection))
    assert answer["connection"] == "close"
    assert (await once(service.port, "/t/work?id=late"))[0] == 200, "still accepted"
    await eventually(lambda: is_refused(service.port))
    assert not long.done(), "it is still under way"
    assert (await long)[2]["id"] == "long"
    await connection.close()
    assert await asyncio.to_thread(lambda: service.code) == 0


async def test_streams_are_told_and_requests_that_take_too_long_are_refused(start):
    service = start(
        toml=PROVIDER,
        AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0",
        AIGATEWAY_SERVER_DRAIN_SECONDS="0.2",
    )
    url = await asyncio.to_thread(lambda: service.url)
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        client.stream("GET", "/t/stream?polite=true") as polite,
        client.stream("GET", "/t/stream?polite=false") as stubborn,
    ):
        waiting = asyncio.create_task(client.get("/t/work?id=x&seconds=60"))
        await eventually(lambda: "x" in service.read("accepted"))
        service.signal(signal.SIGTERM)
        told = (await polite.aread()).decode()
        assert told.endswith('data: {"error": "stopping"}\n\n')
        refused = await waiting
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "stopping"
        with pytest.raises(httpx.RemoteProtocolError):
            await stubborn.aread()
    assert await asyncio.to_thread(lambda: service.code) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_signal_stops_at_once(start, workers):
    service = start("--workers", str(workers), toml=PROVIDER)
    port = await asyncio.to_thread(lambda: service.port)
    long = asyncio.create_task(once(port, "/t/work?id=x&seconds=60"))
    await eventually(lambda: "x" in service.read("accepted"))
    service.signal(signal.SIGINT)
    visitor = Connection(port)
    await eventually(lambda: not_ready(visitor))
    service.signal(signal.SIGINT)
    status, _, body = await long
    assert (status, body["error"]["code"]) == (503, "stopping")
    assert await asyncio.to_thread(lambda: service.code) == 0
