"""Several real processes over a real Valkey, and a vendor on loopback that breaks."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from aigateway.clock import SYSTEM_CLOCK
from tests.fleet.servers import Server
from tests.processes import PATIENCE

ROOT = Path(__file__).parents[2]
FRESH = 60.0
"""An open time that does not end within a test."""


class Vendor:
    """A port that answers each line with what it is set to: `ok`, `500`, `429 30`, or `hang`.

    Attributes:
        late: Calls wait for this before they are answered.
    """

    def __init__(self) -> None:
        self.answer = "ok"
        self.calls = 0
        self.called = asyncio.Event()
        self.late: asyncio.Event | None = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Listen on a random port for as long as the context lasts."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        self.calls += 1
        self.called.set()
        answer = self.answer
        if self.late is not None:
            await self.late.wait()
        if self.answer == "hang":
            await reader.read()  # until the process is gone
        else:
            writer.write(f"{answer}\n".encode())
        writer.close()


class Process:
    """A member of the fleet."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, times: int = 0) -> dict[str, Any]:
        """Let it ask so often, one after the other; return the state of the main provider."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{times}\n".encode())
        return json.loads(await self._process.stdout.readline())  # type: ignore[no-any-return]

    async def ready(self) -> None:
        """Wait until it is in the fleet, and has read what the others say."""
        await until(self.ask, lambda state: state["available"])

    def begin_to_ask(self) -> None:
        """Let it ask once, without waiting for the end."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"1\n")

    async def kill(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def until(
    look: Callable[[], Awaitable[dict[str, Any]]], so: Callable[[dict[str, Any]], Any]
) -> None:
    """Wait until what is seen is so."""
    async with asyncio.timeout(PATIENCE):
        while not so(await look()):  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(0.02)


@asynccontextmanager
async def fleet(
    count: int, main: Vendor, url: str | None, open_seconds: float = FRESH
) -> AsyncIterator[list[Process]]:
    """Run processes with the main vendor and a backup that is always well."""
    async with AsyncExitStack() as stack:
        ports = {
            name: await stack.enter_async_context(vendor.listening())
            for name, vendor in {"main": main, "backup": Vendor()}.items()
        }
        settings = {"reset_timeout_seconds": open_seconds, "redis_url": url, "attempt_timeout": 60}
        processes = []
        for number in range(count):
            given = {"name": f"process {number}", "ports": ports, "settings": settings}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.fleet.member", json.dumps(given)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
            )
            processes.append(Process(process))
            stack.push_async_callback(processes[-1].kill)
        for each in processes:
            await each.ask(1)
            if url is not None:
                await each.ready()
        yield processes


async def test_the_second_and_third_process_waste_less(valkey: Server) -> None:
    vendor = Vendor()
    async with fleet(3, vendor, valkey.url) as (one, two, three):
        vendor.answer, vendor.calls = "500", 0
        assert (await one.ask(10))["circuit"] == "open"
        assert vendor.calls == 5
        await until(two.ask, lambda state: state["against"])
        assert (await two.ask(5))["circuit"] == "open"
        assert vendor.calls == 6
        await until(three.ask, lambda state: state["circuit"] == "open")
        assert (await three.ask(5))["failed"] == 0
        assert vendor.calls == 6


async def test_a_cooldown_reaches_all_soon_and_is_never_shortened(valkey: Server) -> None:
    vendor = Vendor()
    async with fleet(3, vendor, valkey.url) as (one, two, three):
        vendor.late, vendor.answer = asyncio.Event(), "429 1"
        vendor.called.clear()
        three.begin_to_ask()
        await vendor.called.wait()
        late, vendor.late, vendor.answer = vendor.late, None, "429 100"
        await one.ask(1)
        for each in (two, three):
            if each is three:
                late.set()  # the call that was in flight has to wait for a second only
            await until(each.ask, lambda state: state["retry_after"] > 30)
        vendor.calls = 0
        await asyncio.sleep(1.5)
        for each in (one, two, three):
            state = await each.ask(1)
            assert state["failed"] == 0
            assert state["retry_after"] > 30
        assert vendor.calls == 0


async def test_without_redis_each_goes_on_by_itself(valkey: Server) -> None:
    vendor = Vendor()
    async with fleet(2, vendor, valkey.url, open_seconds=1.0) as (one, two):
        valkey.kill()
        vendor.answer, vendor.calls = "500", 0
        states = [await each.ask(8) for each in (one, two)]
        assert [state["failed"] for state in states] == [0, 0]
        assert [state["circuit"] for state in states] == ["open", "open"]
        assert 10 <= vendor.calls < 16, "some may be probes, on a loaded machine"
        vendor.answer = "ok"
        for each in (one, two):
            await until(lambda: each.ask(1), lambda state: state["circuit"] == "closed")  # noqa: B023
        valkey.start()
        await one.ready()
        await two.ready()
        vendor.answer = "429 100"
        await until(lambda: one.ask(1), lambda state: state["retry_after"] > 30)
        await until(two.ask, lambda state: state["retry_after"] > 30)


async def test_the_right_to_probe_ends_with_its_process(valkey: Server) -> None:
    vendor = Vendor()
    async with fleet(2, vendor, valkey.url, open_seconds=1.0) as (one, two):
        vendor.answer = "500"
        await one.ask(5)
        await two.ask(5)
        vendor.answer = "hang"

        async def looked_at() -> dict[str, Any]:
            one.begin_to_ask()  # also after its request that is the probe has run out of time
            return await two.ask()

        await until(looked_at, lambda state: state["retry_after"] == 0.25)  # it is kept away
        await one.kill()
        vendor.answer = "ok"
        await until(lambda: two.ask(1), lambda state: state["circuit"] == "closed")


async def test_a_request_does_not_wait_for_a_frozen_redis(valkey: Server) -> None:
    async with fleet(1, Vendor(), valkey.url) as (one,):
        valkey.freeze()
        took = []
        for _ in range(100):
            began = SYSTEM_CLOCK.now()
            assert (await one.ask(1))["failed"] == 0
            took.append(SYSTEM_CLOCK.now() - began)
        assert min(took) < 0.05, "none of them is quicker than Redis' time to answer"
