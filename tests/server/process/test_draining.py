"""A service that is told to stop finishes what it has accepted, and nobody notices the end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.processes import PATIENCE, Running
from tests.server.visitors import Connection, NotAnswered, eventually, once

pytestmark = pytest.mark.slow

PROVIDER = '[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "k"\n'

SIZE = 100
WAITING = 600
"""More connections than the process takes in a few looks, fewer than the kernel lets wait."""


class Crowd:
    """Visitors that ask again and again until the port is closed.

    Args:
        port: Where.
        size: How many.
        keep: Whether they keep their connections, as far as they may.
    """

    def __init__(self, port: int, size: int, *, keep: bool) -> None:
        self.answered: set[str] = set()
        self.regulars: set[int] = set()
        self.ends: Counter[str] = Counter()
        self._keep = keep
        self._tasks = [asyncio.create_task(self._visit(port, who)) for who in range(size)]

    async def over(self) -> None:
        await asyncio.gather(*self._tasks)

    async def busy(self) -> None:
        """Wait until each has been answered a few times."""
        while len(self.regulars) < len(self._tasks):
            assert not all(task.done() for task in self._tasks)
            await asyncio.sleep(0.01)

    async def _visit(self, port: int, who: int) -> None:
        connection = Connection(port)
        for number in range(100_000):
            name = f"{who}-{number}"
            seconds = 0.1 if number % 50 == 7 else 0.0
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
            if number >= 3:
                self.regulars.add(who)
            self.ends[headers.get("connection", "kept")] += 1
            if not self._keep:
                await connection.close()
        await connection.close()


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "fresh"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_at_full_load_no_request_is_lost(start, workers, keep):
    service = start(
        "--workers", str(workers), toml=PROVIDER, AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0.3"
    )
    crowd = Crowd(await asyncio.to_thread(lambda: service.port), SIZE, keep=keep)
    await crowd.busy()
    service.signal(signal.SIGTERM)
    await crowd.over()
    assert await asyncio.to_thread(lambda: service.code) == 0
    assert crowd.ends["not answered"] == 0, crowd.ends
    accepted = service.read("accepted").split()
    assert set(accepted) == crowd.answered, "what was accepted is what was answered"
    assert len(accepted) == len(crowd.answered), "and nothing twice"
    if keep:  # each once, and by then the port was closed
        assert crowd.ends["close"] == SIZE
    assert "Traceback" not in service.log


@pytest.mark.parametrize("workers", [1, 2])
async def test_connections_that_wait_to_be_accepted_are_served_before_the_port_closes(
    start, workers
):
    service = start(
        "--workers", str(workers), toml=PROVIDER, AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0"
    )
    port = await asyncio.to_thread(lambda: service.port)
    os.killpg(service.pid, signal.SIGSTOP)
    # The kernel makes these connections, and a stopped process accepts none.
    waiting = [asyncio.create_task(once(port, f"/t/work?id={who}")) for who in range(WAITING)]
    await eventually(lambda: queued(port) == WAITING)
    os.killpg(service.pid, signal.SIGTERM)
    os.killpg(service.pid, signal.SIGCONT)
    answers = await asyncio.gather(*waiting)
    assert {status for status, _, _ in answers} == {200}
    assert await asyncio.to_thread(lambda: service.code) == 0


def queued(port: int) -> int:
    """How many connections wait to be accepted at a port of 127.0.0.1."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if local == f"0100007F:{port:04X}" and state == "0A":
            return int(queues.partition(":")[2], 16)
    return 0


async def is_last(connection: Connection) -> bool:
    """Whether the next answer, which has to come, is the last of its connection."""
    status, headers, _ = await connection.get("/t/work?id=late")
    assert status == 200
    return headers.get("connection") == "close"


async def test_kept_connections_are_answered_until_all_is_over(start):
    service = start(toml=PROVIDER, AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0")
    kept = Connection(await asyncio.to_thread(lambda: service.port))
    assert (await kept.get("/t/ready"))[0] == 200
    hold = held(service)
    long = asyncio.create_task(once(service.port, "/t/work?id=long"))
    await eventually(lambda: "long" in service.read("accepted"))
    service.signal(signal.SIGTERM)
    await eventually(lambda: is_refused(service.port))
    await eventually(lambda: is_last(kept))
    assert not long.done()
    hold.unlink()
    assert (await long)[0] == 200
    assert await asyncio.to_thread(lambda: service.code) == 0


def held(service: Running) -> Path:
    """While this file is there, the request `long` is under way."""
    hold = service.directory / "hold-long"
    hold.touch()
    return hold


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
    hold = held(service)
    long = asyncio.create_task(once(service.port, "/t/work?id=long"))
    await eventually(lambda: "long" in service.read("accepted"))
    service.signal(signal.SIGTERM)
    answer = await eventually(lambda: not_ready(connection))
    assert "connection" not in answer, "who is sent away now comes back"
    assert (await once(service.port, "/t/work?id=late"))[0] == 200, "still accepted"
    await eventually(lambda: is_refused(service.port))
    assert not long.done(), "it is still under way"
    hold.unlink()
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
    await visitor.close()
    assert await asyncio.to_thread(lambda: service.code) == 0
