"""The programs of README and docs run as they are printed, in front of simulated vendors."""

from __future__ import annotations

import asyncio
import doctest
import itertools
import os
import shlex
import subprocess
import sys
import types
from typing import Any

import pytest
from pydantic import BaseModel

import aigateway
from aigateway import AsyncGateway
from aigateway.simulator import Simulator
from tests.docs.pages import Block, blocks
from tests.processes import PATIENCE, ROOT

pytestmark = pytest.mark.slow

SERVICE = "127.0.0.1:8080"
TUTORIAL = blocks("sh", "docs/tutorial.md")
PROGRAMS = [block for block in blocks("python") if "def test_" not in block.text]
TESTS = [block for block in blocks("python") if "def test_" in block.text]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
KEYS: dict[str, dict[str, str]] = {
    "openai": {"OPENAI_BASE_URL": "{base}"},
    "azure": {"AZURE_OPENAI_ENDPOINT": "{base}", "AZURE_OPENAI_DEPLOYMENT": "gpt-4o-mini"},
    "gemini": {"GEMINI_ENDPOINT": "{base}"},
    "anthropic": {"ANTHROPIC_BASE_URL": "{base}"},
}


def assert_shown(block: Block, printed: str) -> None:
    """Compare with the output that the page shows, if it shows any; `...` stands for anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if block.output is not None:
        same = doctest.OutputChecker().check_output(block.output, printed, flags)
        assert same, f"{block} shows:\n{block.output}\nbut this is printed:\n{printed}"


def execute(text: str) -> None:
    """Run a program in this process: to load litellm for each takes seconds."""
    module = types.ModuleType("program")
    exec(compile(text, "program.py", "exec"), vars(module))


@pytest.fixture
def simulator():
    with Simulator.in_thread() as running:
        yield running


@pytest.fixture
def all_keys(simulator, monkeypatch):
    for name in KEYS:
        set_key(monkeypatch, simulator.vendor(name))


@pytest.fixture(autouse=True)
def no_gateway_of_another_program():
    """The synchronous functions keep one gateway for the whole process."""
    home = sys.modules[aigateway.call_llm.__module__]
    home._reset()
    yield
    home._reset()


@pytest.fixture
def service(launch, tmp_path):
    """Start `aigateway serve` when it is first asked for; returns where it listens."""
    started: list[Any] = []

    def begin(*arguments):
        if not started:
            directory = tmp_path / "service"
            directory.mkdir()
            started.append(launch(directory, "serve", *arguments, "--port", "0", env={}))
        return started[0].url.removeprefix("http://").rstrip("/")

    return begin


def set_key(monkeypatch, vendor):
    name = "AZURE_OPENAI" if vendor.name == "azure" else vendor.name.upper()
    monkeypatch.setenv(f"{name}_API_KEY", vendor.key)
    for variable, value in KEYS[vendor.name].items():
        monkeypatch.setenv(variable, value.format(base=vendor.api_base))


@pytest.mark.usefixtures("all_keys")
@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_program_runs(block, service, capsys):
    text = block.text
    if SERVICE in text:
        text = text.replace(SERVICE, service("--simulate"))
    execute(text)
    assert_shown(block, capsys.readouterr().out)


@pytest.mark.proof
@pytest.mark.parametrize("block", TESTS, ids=str)
def test_a_test_passes(block, tmp_path):
    # As installed; without the plugin, which has tests of its own.
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["aigateway.testing"]')
    (tmp_path / "test_my_app.py").write_text(block.text)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:aigateway"]
    command = [sys.executable, "-m", "pytest", *options, "test_my_app.py"]
    assert f"{block.text.count('def test_')} passed" in run(command, tmp_path)


@pytest.mark.usefixtures("all_keys")
def test_the_tutorials_commands_run(service, launch, tmp_path):
    for block in TUTORIAL:
        printed = ""
        for is_ours, lines in itertools.groupby(
            block.text.splitlines(keepends=True), lambda line: line.startswith("aigateway ")
        ):
            if not is_ours:
                script = "".join(lines)
                script = script.replace(SERVICE, service()) if SERVICE in script else script
                printed += run(["bash", "-euo", "pipefail", "-c", script], tmp_path)
                continue
            for line in lines:
                _, *words = shlex.split(line, comments=True)
                if words[0] == "serve":
                    service(*words[1:])
                else:
                    printed += run_ours(launch, words, tmp_path)
        assert_shown(block, printed)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2


def run(command, folder):
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_ours(launch, words, folder):
    """Run the command line in a process that need not load litellm first; that takes seconds."""
    for name in ("out", "err", "code", "pid"):
        (folder / name).unlink(missing_ok=True)
    process = launch(folder, *words, env=os.environ)
    assert process.code == 0, process.log
    return process.read("out")


@pytest.mark.parametrize("name", KEYS)
def test_the_first_program_needs_one_key_of_any_vendor(simulator, monkeypatch, capsys, name):
    vendor = simulator.vendor(name)
    set_key(monkeypatch, vendor)
    vendor.answer("It is 4.")
    (program,) = [block for block in blocks("python", "README.md") if "async def" in block.text]
    execute(program.text)
    printed = capsys.readouterr().out
    assert printed.startswith(f"It is 4. {name}/")
    assert printed.rstrip().endswith("False")
    assert len(vendor.received) == 1


class City(BaseModel):
    name: str
    population: int


@pytest.mark.parametrize("name", KEYS)
def test_a_default_model_takes_every_parameter_of_the_guides(simulator, monkeypatch, name):
    set_key(monkeypatch, simulator.vendor(name))

    async def ask():
        async with AsyncGateway() as gateway:
            for params in (
                {"system": "You are terse.", "temperature": 0},
                {"response_format": City},
                {"tools": [TOOL], "timeout": 20, "agent": "market", "cache": "refresh"},
            ):
                given: dict[str, Any] = {**params}
                reply = await gateway.chat("Describe Oslo.", **given)
                assert set(reply.attempts[0].dropped) <= {"temperature"}
                async with gateway.stream("Describe Rome.", **given) as stream:
                    assert [chunk async for chunk in stream]

    asyncio.run(ask())
