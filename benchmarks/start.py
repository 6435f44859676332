"""What a start costs: CPU time and memory of importing, and of a first call."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence

from benchmarks.chart import Bars
from benchmarks.measure import Spread
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.server import Servers

HOW = (
    "Fresh processes. CPU time over Python's own start, and the most memory that was resident;"
    " medians of interleaved rounds (lowest to highest). A first call is import, one client and one"
    " answer from a loopback server."
)
BASE = "python itself"
IMPORTS = {
    BASE: "pass",
    "aigateway: import aigateway": "import aigateway",
    "aigateway: import AsyncGateway": "from aigateway import AsyncGateway",
    "import aiohttp": "import aiohttp",
    "import openai": "import openai",
    "import litellm": "import litellm",
    "import langchain_openai": "import langchain_openai",
}
FIRST_CALLS = {
    "aigateway: first call": """
import asyncio
from aigateway import AsyncGateway, LLMConfig
async def main():
    config = LLMConfig("openai", "gpt-4o-mini", api_key="k", api_base="{root}/v1")
    async with AsyncGateway([config]) as gateway:
        await gateway.chat("hello")
asyncio.run(main())
""",
    "openai SDK: first call": """
import asyncio
from openai import AsyncOpenAI
async def main():
    async with AsyncOpenAI(api_key="k", base_url="{root}/v1") as client:
        messages = [{{"role": "user", "content": "hello"}}]
        await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
asyncio.run(main())
""",
    "litellm.acompletion: first call": """
import asyncio, litellm
async def main():
    messages = [{{"role": "user", "content": "hello"}}]
    await litellm.acompletion(
        model="openai/gpt-4o-mini", messages=messages, api_key="k", api_base="{root}/v1"
    )
asyncio.run(main())
""",
}
AFTER_A_SECOND = """
import asyncio, time
from aigateway import AsyncGateway, LLMConfig
async def main():
    config = LLMConfig("openai", "gpt-4o-mini", api_key="k", api_base="{root}/v1")
    began, stall = time.perf_counter(), 0.0
    async def watch():
        nonlocal stall
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            stall = max(stall, time.perf_counter() - before - 0.001)
    async with AsyncGateway([config]) as gateway:
        watcher = asyncio.create_task(watch())
        await asyncio.sleep(1)
        asked = time.perf_counter()
        await gateway.chat("hello")
        watcher.cancel()
        print(time.perf_counter() - began, time.perf_counter() - asked, stall)
asyncio.run(main())
"""
"""The application starts for a second, here without work of its own, and asks then."""
AFTERWARDS = """
import re
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""  # not ru_maxrss: a child begins with its parent's


async def run(options: Options) -> Result:
    async with Servers.started() as servers:
        root = servers.roots["primary"]
        codes = IMPORTS | {name: code.format(root=root) for name, code in FIRST_CALLS.items()}
        if not options.quick:
            _round(codes)  # fills bytecode and page caches
        rounds, seconds = [], []
        for _ in range(options.pick(5, 1)):
            rounds.append(_round(codes))
            seconds.append(_seconds(AFTER_A_SECOND.format(root=root)))
    return _result(rounds, seconds)


def _seconds(code: str) -> list[float]:
    """From `async with` to the first answer, from the call to it, and the longest stall."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, env=os.environ, capture_output=True, text=True)
    return [float(each) for each in done.stdout.split()]


def _round(codes: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    return {name: _cost(code) for name, code in codes.items()}


def _cost(code: str) -> tuple[float, float]:
    """Milliseconds of CPU and megabytes of a fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code + AFTERWARDS]
    done = subprocess.run(command, check=True, env=os.environ, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu * 1000, int(done.stdout.split()[-1]) / 1024


def _result(
    rounds: list[dict[str, tuple[float, float]]], seconds: Sequence[Sequence[float]]
) -> Result:
    names = [name for name in rounds[0] if name != BASE]
    cpu = {n: Spread.of([each[n][0] - each[BASE][0] for each in rounds]) for n in names}
    memory = {n: Spread.of([each[n][1] for each in rounds]) for n in names}
    rows = [[n, cpu[n].show(0), f"{memory[n].median:.0f}"] for n in names]
    table = Table("**A fresh process**", ["", "CPU ms over python's own", "MB resident"], rows)
    columns = ["", "seconds from `async with`", "from the call", "longest stall of the loop ms"]
    entered, asked, stall = (Spread.of(each) for each in zip(*seconds, strict=True))
    first = [
        "aigateway: first answer",
        entered.show(),
        asked.show(),
        Spread.show(Spread(stall.median * 1000, stall.low * 1000, stall.high * 1000), 0),
    ]
    title = "**The first answer after `async with` and one second of the application's own start**"
    later = Table(title, columns, [first])
    bars = [(name, max(cpu[name].median, 1)) for name in names]
    return Result("start", HOW, [table, later], Bars("A start", "CPU milliseconds", bars), rounds)
