"""A batch on Ray beside one process, and beside Ray Data: how fast, and what a kill leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.batch_run import KEY, prompts
from benchmarks.chart import Bars
from benchmarks.measure import Spread
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.server import Servers

OURS = "aigateway"
MANY, ROUNDS, CONCURRENCY = 20_000, 2, 64
LOOK_SECONDS = 0.02
ROOT = Path(__file__).parent.parent
HOW = (
    "Short prompts, every one new, {concurrency} in flight for all actors together, from a file to"
    " a file, against a server on loopback that answers at once, in another process. Each run is a"
    " command of its own, and starts its own Ray. Seconds are those of the whole command; asking is"
    " the time from the first request to the last. Ray Data's HTTP processor"
    " (`ray.data.llm.HttpRequestProcessorConfig`) sends {concurrency} at a time in each actor, and"
    " has no failover, cache, circuit, limits or prices. All share the machine's {cpus} processors"
    " with the server. The second table: the command and its Ray are killed (SIGKILL) when half of"
    " the prompts have been asked; kept is what is on the disk then. {rounds}."
)


def _ours(*more: str) -> list[str]:
    command = [sys.executable, "-m", "aigateway", "batch", "in.jsonl", "out.jsonl", "--plain"]
    return [*command, "--concurrency", str(CONCURRENCY), *more]


def _peer(actors: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.ray_run", "{count}", ".", "{root}", str(actors)]


FIRST = f"{OURS} batch"
CANDIDATES: Mapping[str, list[str]] = {
    FIRST: _ours(),
    f"{OURS} batch --engine ray, 1 actor": _ours("--engine", "ray", "--actors", "1"),
    f"{OURS} batch --engine ray, 2 actors": _ours("--engine", "ray", "--actors", "2"),
    "Ray Data HTTP processor, 1 actor": _peer(1),
    "Ray Data HTTP processor, 2 actors": _peer(2),
}


@dataclass(frozen=True)
class Ran:
    """One run: its seconds, those between its first and last request, and what came of it."""

    seconds: float
    asking: float
    asked: int
    kept: int


Round = Mapping[str, Ran]


async def run(options: Options) -> Result:
    many = options.pick(MANY, 200)
    async with Servers.started() as servers:
        rounds = [
            {name: await _run(servers, command, many) for name, command in CANDIDATES.items()}
            for _ in range(options.pick(ROUNDS, 1))
        ]
        killed = {
            name: await _run(servers, CANDIDATES[name], many, kill_at=many // 2)
            for name in list(CANDIDATES)[::2]
        }
    return _result(rounds, killed, many)


async def _run(
    servers: Servers, command: Sequence[str], count: int, kill_at: int | None = None
) -> Ran:
    await servers.set("primary")  # counts anew
    root = servers.roots["primary"]
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        lines = [json.dumps({"id": str(n), "prompt": p}) for n, p in enumerate(prompts(count))]
        (folder / "in.jsonl").write_text("\n".join(lines))
        environment = {
            **os.environ,
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"{root}/v1",
            "NO_PROXY": "*",
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": name,
        }
        began = time.perf_counter()
        with (folder / "said").open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                *(part.format(count=count, root=root) for part in command),
                cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        asking = await _watch(servers, process, count, kill_at)
        seconds = time.perf_counter() - began
        if kill_at is None and process.returncode:
            raise RuntimeError((folder / "said").read_text(errors="replace")[-3000:])
        return Ran(seconds, asking, (await servers.state())["received"], _kept(folder))


async def _watch(
    servers: Servers, process: asyncio.subprocess.Process, count: int, kill_at: int | None
) -> float:
    """Wait for its end, or kill it; return the seconds between its first and last request."""
    first = last = None
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        received = (await servers.state())["received"]
        now = time.perf_counter()
        first = now if first is None and received else first
        last = now if last is None and received >= count else last
        if kill_at is not None and received >= kill_at:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            kill_at = None
        await asyncio.wait([ended], timeout=LOOK_SECONDS)
    return (last or first or 0.0) - (first or 0.0)


def _kept(folder: Path) -> int:
    """Count the whole answers on the disk."""
    parts = [*folder.glob("out.jsonl"), *folder.glob("out.jsonl.parts/*.jsonl")]
    parts += folder.glob("answers/*.json")
    return sum(path.read_bytes().count(b"\n") for path in parts)


# ── what is shown ────────────────────────────────────────────────────────────────────────────


def _result(rounds: Sequence[Round], killed: Round, many: int) -> Result:
    several = f"Medians of {len(rounds)} interleaved rounds (lowest to highest)"
    how = HOW.format(
        concurrency=CONCURRENCY,
        cpus=os.cpu_count(),
        rounds=several if len(rounds) > 1 else "One round",
    )
    columns = ["", "seconds", f"against {OURS}", "asking", "prompts/s", "answered", "sent"]
    whole = Table(f"**{many:,} prompts**", columns, [_row(n, rounds, many) for n in CANDIDATES])
    rows = [[name, f"{ran.asked:,}", f"{ran.kept:,}"] for name, ran in killed.items()]
    kept = Table("**Killed at half**", ["", "asked", "kept"], rows)
    bars = [(name, median(each[name].seconds for each in rounds)) for name in CANDIDATES]
    chart = Bars(f"A file of {many:,} prompts", "seconds", bars)
    return Result("ray", how, [whole, kept], chart, {"rounds": rounds, "killed": killed})


def _row(name: str, rounds: Sequence[Round], many: int) -> list[str]:
    runs = [each[name] for each in rounds]
    ratios = [each[name].seconds / each[FIRST].seconds for each in rounds]
    return [
        name,
        Spread.of([each.seconds for each in runs]).show(1),
        Spread.of(ratios).show(1, "x"),
        Spread.of([each.asking for each in runs]).show(1),
        f"{many / median(max(each.asking, LOOK_SECONDS) for each in runs):,.0f}",
        f"{min(each.kept for each in runs):,} of {many:,}",
        f"{max(each.asked for each in runs):,}",
    ]
