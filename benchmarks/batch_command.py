"""`python -m benchmarks.batch_command COUNT ROOT`: `aigateway batch` over a file, as one would.

Prints what it cost as one line of JSON. The command is started from here, and not from where the
results are put together, because a process begins with its parent's peak memory as its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.batch_run import CONCURRENCY, KEY, Cost, prompts


def cost(count: int, root: str) -> Cost:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "in.jsonl", count)
        seconds, usage = _run(folder, root)
        answered = _lines(folder / "out.jsonl")
    return Cost(
        seconds=seconds,
        cpu=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / 1024,
        grown_mb=None,
        answered=answered,
        asked=count,
    )


def _write(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, prompt in enumerate(prompts(count)):
            file.write(json.dumps({"id": str(number), "prompt": prompt}) + "\n")


def _run(folder: Path, root: str) -> tuple[float, os.struct_rusage]:
    """Seconds of the command, and what it alone used."""
    command = [sys.executable, "-m", "aigateway", "batch", "in.jsonl", "out.jsonl"]
    command += ["--concurrency", str(CONCURRENCY), "--plain"]
    # No variable and no `.env` of the caller's: no other provider is there to be asked.
    environment = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{root}/v1", "NO_PROXY": "*"}
    said = folder / "said"
    with said.open("wb") as file:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = said.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"aigateway batch ended with {process.returncode}:\n{end}")
    return seconds, usage


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def main() -> None:
    count, root = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(cost(int(count), root))))


if __name__ == "__main__":
    main()
