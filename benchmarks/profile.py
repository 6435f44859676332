"""Where the CPU of one request of the service goes, by py-spy, while callers keep it busy."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.chart import Bars
from benchmarks.gateways import Running, aigateway, running
from benchmarks.measure import Spread
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.serve import ordered
from benchmarks.serve_load import LoadProcess
from benchmarks.server import TEXT, Servers

HOW = (
    "`aigateway serve` with one worker and everything on, under the load of the service's benchmark"
    " with {callers} callers. py-spy looks at the stack of its event loop {rate} times a second for"
    " {seconds:g} s ({samples:,} samples in {rounds}); each sample counts for the innermost frame"
    " that belongs to one of the parts. What C code and the kernel do counts for the function that"
    " called them: sending for HTTP in and out, receiving for the event loop."
    " Microseconds are a part's share of the CPU of one request without py-spy ({cpu} us), medians"
    " of the rounds (lowest to highest)."
)
CALLERS = 16
RATE = 250
LOOP = "MainThread"
TURNS = r"/asyncio/(runners|base_events|events)\.py|/uvloop/"
"""Frames of the event loop itself."""
REST = "event loop and receiving"
PARTS: Mapping[str, str] = {
    "connections and HTTP in": r"/(uvicorn|httptools|h11)/|/server/(process/|http/connections)",
    "endpoints, keys and accounts": r"/starlette/|/fastapi/|/aigateway/server/",
    "validation, cache and coalescing": r"/aigateway/(request/|cache/|gateway\.py|messages\.py)",
    "choice of a provider and guards": r"/aigateway/(routing|resilience)/",
    "metrics, events and log": r"/aigateway/(telemetry/|events\.py)|/logging/|/prometheus_client/",
    "HTTP out": r"/aiohttp/|/yarl/|/multidict/|/pyreqwest/|/aigateway/wires/(http|direct_)",
    "translation, answers and prices": r"/aigateway/wires/|/litellm/",
    "the rest of the package": r"/aigateway/",
}
"""Parts of the service by the files of their frames; the first that matches counts."""

Shares = Mapping[str, float]


async def run(options: Options) -> Result:
    seconds = options.pick(8, 1)
    shares: list[Shares] = []
    costs: list[float] = []
    seen = 0
    async with (
        LoadProcess.started() as load,
        Servers.started() as servers,
        running(aigateway(1), servers.roots["primary"]) as service,
    ):
        await _cost(load, service, seconds)  # what is loaded or compiled late is there then
        for _ in range(options.pick(5, 1)):
            costs.append(await _cost(load, service, seconds))
            samples = await _sampled(load, service, seconds)
            seen += samples.total()
            shares.append({part: samples[part] / samples.total() for part in (*PARTS, REST)})
    return _result(shares, costs, seen, seconds)


async def _cost(load: LoadProcess, service: Running, seconds: float) -> float:
    """Microseconds of CPU for one request."""
    order = {"callers": CALLERS, "seconds": seconds, "text": TEXT}
    came = await ordered(load, service, order)
    if came.errors:
        raise RuntimeError(f"the service did not answer: {came.errors}")
    return came.cpu_us


async def _sampled(load: LoadProcess, service: Running, seconds: float) -> Counter[str]:
    """Samples of the busiest process of the service, by part."""
    assert service.processes is not None
    command = shutil.which("py-spy", path=Path(sys.executable).parent)
    if command is None:
        raise RuntimeError("py-spy is not installed; requirements/bench.txt has it")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "stacks"
        busy = asyncio.create_task(_cost(load, service, seconds + 1))
        watching = await asyncio.create_subprocess_exec(
            command,
            *("record", "--threads", "--full-filenames", "--format=raw", f"--rate={RATE}"),
            *(
                f"--pid={service.processes.busiest()}",
                f"--duration={seconds}",
                f"--output={output}",
            ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await watching.communicate()
        await busy
        if watching.returncode:
            raise RuntimeError(f"py-spy cannot look at the service:\n{said.decode()[-1000:]}")
        return counted(output.read_text(encoding="utf-8").splitlines())


def counted(lines: Iterable[str]) -> Counter[str]:
    """Sum up py-spy's raw lines (`frame;frame;... count`, outermost first) by part."""
    samples: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if LOOP in stack:
            samples[_part(stack.split(";"))] += int(count)
    return samples


def _part(stack: Sequence[str]) -> str:
    for frame in reversed(stack):
        if re.search(TURNS, frame):
            break  # what began the loop stands beyond
        for part, files in PARTS.items():
            if re.search(files, frame):
                return part
    return REST


def _result(shares: list[Shares], costs: list[float], seen: int, seconds: float) -> Result:
    cost = Spread.of(costs)
    rounds = f"{len(costs)} rounds" if len(costs) > 1 else "one round"
    how = HOW.format(
        callers=CALLERS,
        rate=RATE,
        seconds=seconds,
        samples=seen,
        rounds=rounds,
        cpu=cost.show(0),
    )
    spent = {
        part: Spread.of([each[part] * us for each, us in zip(shares, costs, strict=True)])
        for part in (*PARTS, REST)
    }
    parts = sorted(spent, key=lambda part: -spent[part].median)
    rows = [
        [part, f"{Spread.of([each[part] for each in shares]).median:.0%}", spent[part].show(0)]
        for part in parts
    ]
    table = Table("**One request of the service**", ["part", "share", "CPU us"], rows)
    bars = [(part, max(spent[part].median, 1)) for part in parts]
    chart = Bars("CPU of one request, by part", "microseconds", bars)
    return Result("profile", how, [table], chart, {"shares": shares, "cpu_us": costs})
