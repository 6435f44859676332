"""A program that runs the command line, each time in a process of its own, forked from this one.

It has loaded everything: to load litellm for each test takes seconds. `python -m
tests.nursery` reads one JSON object a line, {"directory", "arguments", "env"}: where the
process runs and leaves `out`, `err`, `pid` and, at its end, `code`. With "script", the text of a
program, that runs in place of the command line. It ends with its input.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import typer

from aigateway import AsyncGateway, LLMConfig
from aigateway.cli import app
from aigateway.server.http.app import service_app
from aigateway.server.process import serve as serving
from aigateway.server.process.configuration import Configuration, read_configuration
from tests.server.endpoints import with_endpoints


def main() -> None:
    asyncio.run(_load())
    gc.collect()
    gc.freeze()  # else each supervisor looks through all that is loaded
    # What the command line starts is the service itself, with a few endpoints more.
    made = functools.partial(serving.ServeOptions, make_app=with_endpoints(service_app))
    vars(serving)["ServeOptions"] = made
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for them
    print("loaded", flush=True)
    for line in sys.stdin:
        _start(json.loads(line))
    os._exit(0)  # to take down what was loaded takes seconds, too


async def _load() -> None:
    provider = LLMConfig(provider="openai", model="m", api_key="k")
    async with AsyncGateway([provider]) as gateway:
        await gateway.warmup()


def _start(order: dict[str, Any]) -> None:
    if os.fork():
        return
    code = 70
    directory = Path(order["directory"])
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(directory)
        os.environ.update(order["env"])
        tempfile.tempdir = None  # newer packages have asked for it while they were loaded
        if "FILES" in os.environ:
            soft, hard = map(int, os.environ["FILES"].split())
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if "CHANGED" in os.environ:
            _change_after_the_first_read(os.environ["CHANGED"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        _leave(directory, "pid", os.getpid())
        if "script" in order:
            exec(compile(order["script"], "script", "exec"), {"__name__": "__main__"})
            threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
            code = 0
        else:
            app(order["arguments"], standalone_mode=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except typer.Exit as end:
        code = end.exit_code
    except BaseException:  # noqa: BLE001 - the test reads it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _leave(directory, "code", code)
        os._exit(code)


def _change_after_the_first_read(toml: str) -> None:
    """Have somebody change the file while the service starts."""
    left = [toml]

    def read_and_change(*given: Any) -> Configuration:
        found = read_configuration(*given)
        if left:
            Path("aigateway.toml").write_text(left.pop())
        return found

    vars(serving)["read_configuration"] = read_and_change


def _leave(directory: Path, name: str, number: int) -> None:
    beside = directory / f"{name}.new"
    beside.write_text(str(number))
    beside.replace(directory / name)


if __name__ == "__main__":
    main()
