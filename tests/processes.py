"""The command line as processes of its own; see `nursery`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0
"""Seconds after which something is taken to hang. A loaded machine must not reach it."""


def until(what: Callable[[], Any]) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + PATIENCE  # noqa: TID251
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"{what} is not so after {PATIENCE} s"  # noqa: TID251
        time.sleep(0.01)


class Running:
    """One of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def pid(self) -> int:
        return int(until(lambda: self.read("pid")))

    @property
    def url(self) -> str:
        """Where it listens; waits until it does."""
        until(lambda: "listens at" in self.read("out") or self.read("code"))
        assert "listens at" in self.read("out"), self.read("err")
        return self.read("out").split("listens at ")[1].split()[0].rstrip(",")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def code(self) -> int:
        """Its exit code; waits for its end."""
        return int(until(lambda: self.read("code")))

    @property
    def log(self) -> str:
        return self.read("err")

    def read(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.nursery"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "loaded\n"
        yield process.stdin
        process.stdin.close()
        process.wait(PATIENCE)


@pytest.fixture
def launch(nursery: Any) -> Iterator[Callable[..., Running]]:
    """Run the command line with arguments, in a directory."""
    yield from _starting(nursery, "arguments")


@pytest.fixture
def run_script(nursery: Any) -> Iterator[Callable[..., Running]]:
    """Run the text of a program, in a directory."""
    yield from _starting(nursery, "script")


@pytest.fixture
def start(launch: Callable[..., Running], tmp_path: Path) -> Callable[..., Running]:
    """Start `aigateway serve` with arguments, in a directory of its own."""
    started: list[Running] = []

    def begin(*arguments: str, toml: str = "", **env: str) -> Running:
        directory = tmp_path / f"service{len(started)}"
        directory.mkdir()
        if toml:
            (directory / "aigateway.toml").write_text(toml)
        env = {"TMPDIR": str(directory), **env}
        started.append(launch(directory, "serve", "--port", "0", *arguments, env=env))
        return started[-1]

    return begin


def _starting(nursery: Any, kind: str) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(
        directory: Path, *arguments: str, env: Mapping[str, str] = MappingProxyType({})
    ) -> Running:
        what = arguments[0] if kind == "script" else arguments
        order = {"directory": str(directory), kind: what, "env": dict(env)}
        nursery.write(json.dumps(order) + "\n")
        nursery.flush()
        started.append(Running(directory))
        return started[-1]

    yield begin
    for process in started:
        if not process.read("code"):
            with contextlib.suppress(ProcessLookupError):  # the test has killed all of it
                os.killpg(process.pid, signal.SIGKILL)
