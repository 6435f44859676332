"""What a large batch costs beside other libraries, and whether its memory grows with the input."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.batch_run import CONCURRENCY, WARM, Cost
from benchmarks.chart import Bars
from benchmarks.clients import OURS
from benchmarks.measure import Spread
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.server import Servers

MANY, TENFOLD, ROUNDS = 20_000, 200_000, 3
HOW = (
    "Short prompts, every one new, {concurrency} at a time, against a server that answers at once,"
    " in another process. Each batch has a process of its own, which imports only what it needs and"
    " has had {warm} answers before anything is measured. aigateway has everything on (cache,"
    " circuit, metrics, limiter, logs at INFO). litellm's Router begins everything at once, and its"
    " `max_parallel_requests` refuses what is beyond it instead of letting it wait, so it is given"
    " chunks of {concurrency}, one after another. Retries are off. In the first table all keep"
    " every answer until the end. CPU is that of the whole process, during the batch. Peak MB is"
    " the most that was resident until its end, libraries included; MB more is how far that is"
    " above the most before it began, when the list of prompts is there already. Sent are the"
    " requests that reached the server. First table: {rounds}; ratios (of seconds) are taken within"
    " a round."
)
CANDIDATES: Mapping[str, str] = {
    f"{OURS} batch": "aigateway_batch",
    "litellm.acompletion, gather and semaphore": "litellm_semaphore",
    f"litellm.Router abatch_completion, chunks of {CONCURRENCY}": "litellm_router",
    "LangChain abatch, max_concurrency": "langchain_abatch",
}
FIRST = f"{OURS} batch"
STREAMED: Mapping[str, tuple[str, ...]] = {
    f"{OURS} as_completed, from a generator": ("benchmarks.batch_run", "aigateway_as_completed"),
    f"{OURS} batch IN OUT, the command": ("benchmarks.batch_command",),
}

Measured = tuple[Cost, int]
"""What a batch cost, and how many requests reached the server."""
Round = Mapping[str, Measured]


async def run(options: Options) -> Result:
    many, tenfold = options.pick(MANY, 200), options.pick(TENFOLD, 2000)
    async with Servers.started() as servers:
        rounds = [await _round(servers, many) for _ in range(options.pick(ROUNDS, 1))]
        streamed = {
            name: [await _measured(servers, *module, count=count) for count in (many, tenfold)]
            for name, module in STREAMED.items()
        }
    return _result(rounds, streamed)


async def _round(servers: Servers, count: int) -> Round:
    return {
        name: await _measured(servers, "benchmarks.batch_run", candidate, count=count)
        for name, candidate in CANDIDATES.items()
    }


async def _measured(servers: Servers, *module: str, count: int) -> Measured:
    await servers.set("primary")  # counts anew
    command = [sys.executable, "-m", *module, str(count), servers.roots["primary"]]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(module)} ended with {process.returncode}; see above")
    return Cost(**json.loads(printed)), (await servers.state())["received"]


# ── what is shown ────────────────────────────────────────────────────────────────────────────


def _result(rounds: Sequence[Round], streamed: Mapping[str, Sequence[Measured]]) -> Result:
    several = f"medians of {len(rounds)} interleaved rounds (lowest to highest)"
    how = HOW.format(
        concurrency=CONCURRENCY, warm=WARM, rounds=several if len(rounds) > 1 else "one round"
    )
    tables = [_beside_others(rounds), _tenfold(streamed)]
    bars = [(name, median(each[name][0].seconds for each in rounds)) for name in CANDIDATES]
    asked = rounds[0][FIRST][0].asked
    chart = Bars(f"A batch of {asked:,} prompts, {CONCURRENCY} at a time", "seconds", bars)
    return Result("batch", how, tables, chart, {"rounds": rounds, "streamed": streamed})


def _beside_others(rounds: Sequence[Round]) -> Table:
    rows = [_row(name, rounds) for name in CANDIDATES]
    columns = ["", "seconds", f"against {OURS}", "CPU seconds", "MB more", "peak MB"]
    columns += ["answered", "sent"]
    return Table(f"**{rounds[0][FIRST][0].asked:,} prompts, all answers kept**", columns, rows)


def _row(name: str, rounds: Sequence[Round]) -> list[str]:
    costs = [each[name][0] for each in rounds]
    ratios = [each[name][0].seconds / each[FIRST][0].seconds for each in rounds]
    return [
        name,
        Spread.of([each.seconds for each in costs]).show(1),
        Spread.of(ratios).show(1, "x"),
        Spread.of([each.cpu for each in costs]).show(1),
        Spread.of([each.grown_mb for each in costs]).show(0),
        f"{median(each.peak_mb for each in costs):.0f}",
        f"{min(each.answered for each in costs):,} of {costs[0].asked:,}",
        f"{max(each[name][1] for each in rounds) - WARM:,}",
    ]


def _tenfold(streamed: Mapping[str, Sequence[Measured]]) -> Table:
    rows = []
    for name, measured in streamed.items():
        least = measured[0][0].peak_mb
        for cost, _ in measured:
            times = f"{cost.peak_mb / least:.2f}x"
            spent = [f"{cost.seconds:.1f}", f"{cost.cpu:.1f}"]
            answered = f"{cost.answered:,} of {cost.asked:,}"
            rows.append([name, f"{cost.asked:,}", *spent, f"{cost.peak_mb:.0f}", times, answered])
    title = "**Ten times the prompts, none kept** (one run each; the command's includes its start)"
    columns = ["", "prompts", "seconds", "CPU seconds", "peak MB", "against fewer", "answered"]
    return Table(title, columns, rows)
