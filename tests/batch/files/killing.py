"""A program that lets `aigateway batch` be killed again and again while it writes.

`python -m tests.batch.files.killing IN TABLE KILLS SEED`. Each run of the command is a process of
its own, forked from this one, which has loaded everything: loading litellm takes a minute.
Each other kill comes when the records have grown by a random number of bytes, and the ones between
after a random time, at whatever the command is then: reading, recovering, writing. After each it
prints a line and waits for one on standard input. The last run is left alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from aigateway import AsyncGateway
from aigateway.cli import app

_MOST_BYTES = 40_000
_SHORT = 0.003
_LONG = 0.3


def main(source: str, output: str, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    asyncio.run(_load())
    for kill in range(kills):
        size = _size(output)
        child = _start(source, output)
        if kill % 2:
            time.sleep(rng.uniform(0, _LONG))
        else:
            enough = size + rng.randrange(1, _MOST_BYTES)
            while _size(output) < enough and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.0002)
            time.sleep(rng.uniform(0, _SHORT))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("killed", os.WTERMSIG(status), flush=True)
        sys.stdin.readline()
    _, status = os.waitpid(_start(source, output), 0)
    print("ended", os.waitstatus_to_exitcode(status), flush=True)


async def _load() -> None:
    async with AsyncGateway() as gateway:
        await gateway.warmup()


def _start(source: str, output: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        arguments = ["batch", source, output, "--resume", "--skip-bad-lines", "--concurrency", "8"]
        code = app(arguments, standalone_mode=False) or 0
    finally:
        os._exit(code)


def _size(path: str) -> int:
    try:
        return Path(f"{path}.job/records.jsonl").stat().st_size
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
