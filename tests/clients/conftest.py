"""Real clients against the service. They run with `--clients`, in environments of their own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aigateway.simulator import Answer, Fault, Simulator
from tests.processes import PATIENCE
from tests.server.services import served

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # for libraries that load litellm themselves
NODE = Path(__file__).parent / "node"
TOOL = "weather"
CITY = {"city": "Oslo"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_RESULTS = ('"tool_result"', 'call_output"', '"role":"tool"', '"function_response"')


def agent(tool=TOOL, arguments=CITY, text="It is sunny."):
    """A model that calls a tool it is offered, and says a text when it has the result."""

    def answer(received):
        body = json.dumps(received.body, separators=(",", ":"))
        names = f'"name":"{tool}"'
        if names not in body or any(mark in body for mark in _RESULTS):
            return text
        return Answer(tool_calls=[(tool, arguments)])

    return answer


@pytest.fixture
async def sim():
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture(params=["openai", "gemini", "anthropic"])
async def vendor(request, sim):
    """The vendor that answers: each in turn."""
    return getattr(sim, request.param)


@pytest.fixture
async def broken(sim):
    """A vendor that fails every request."""
    vendor = await sim.add("openai_compatible", "broken")
    vendor.behave(Fault.server_error())
    return vendor


@pytest.fixture
async def url(vendor, broken):
    """The service before a vendor that fails and one that answers."""
    async with served(broken, vendor) as (_, address):
        yield address


@contextlib.contextmanager
def in_thread(context):
    """Enter an async context on an event loop in a thread, for code without one."""
    entered: concurrent.futures.Future[Any] = concurrent.futures.Future()

    async def live():
        over = asyncio.Event()
        async with context as value:
            entered.set_result((value, asyncio.get_running_loop(), over))
            await over.wait()

    def run():
        try:
            asyncio.run(live())
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    value, loop, over = entered.result(PATIENCE)
    try:
        yield value
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE)


@pytest.fixture
def program(tmp_path) -> Callable[..., Awaitable[str]]:
    """Run a program to its end in an empty folder, and return what it printed."""

    async def run(*command, **environment):
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=tmp_path,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        printing = asyncio.create_task(process.communicate())
        ended, _ = await asyncio.wait({printing}, timeout=PATIENCE)
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
        printed, _ = await printing
        assert ended, f"it did not end: {printed.decode()[-2000:]}"
        assert process.returncode == 0, printed.decode()[-4000:]
        return printed.decode()

    return run
