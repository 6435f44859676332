"""`aigateway serve` as somebody types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import httpx
import pytest
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.simulator import Simulator
from tests.processes import PATIENCE, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else 1)
    done = CliRunner().invoke(app, ["serve"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert 'pip install "aigateway[server]"' in done.stderr
    assert "uvicorn" in done.stderr


def test_its_help():
    done = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"})
    for option in ("--host", "--port", "--workers", "--config", "--simulate", "--log-format"):
        assert option in done.stdout


def test_from_a_shell(tmp_path):
    """The whole way, nothing forked from anywhere: start, answer, be told to end."""
    with subprocess.Popen(
        [sys.executable, "-m", "aigateway", "serve", "--simulate", "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split("listens at ")[1].split(",")[0]
        assert "(simulated)" in line
        assert json.load(urlopen(f"{url}/health", timeout=PATIENCE)) == {"status": "ok"}
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


def test_it_takes_all_the_descriptors_that_it_may_have_and_says_if_these_are_few(start):
    service = start("--simulate", FILES="500 1000", AIGATEWAY_MAX_CONCURRENCY="300")
    assert service.url
    service.signal(signal.SIGINT)
    assert service.code == 0
    (line,) = service.log.splitlines()
    assert "descriptors.few" in line
    assert "may open 1000 files" in line
    assert "max_connections = 4096 and max_concurrency = 300 can need 4460" in line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_log_as_json(start, workers):
    toml = '[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "sk-secret"\n'
    service = start(
        *("--log-format", "json", "--workers", workers),
        toml=toml,
        AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0",
    )
    assert service.url
    (service.directory / "aigateway.toml").write_text("[gateway]\nno_such = 1\n" + toml)
    service.signal(signal.SIGHUP)
    until(lambda: "no_such" in service.log)
    service.signal(signal.SIGTERM)
    assert service.code == 0
    (said,) = service.read("out").splitlines()
    assert json.loads(said)["event"] == "service.listening"
    lines = [json.loads(line) for line in service.log.splitlines()]
    refused = [line for line in lines if line["event"].startswith("reload.refused")]
    assert {line["level"] for line in refused} == {"error"}
    assert "sk-secret" not in service.log


def test_only_the_service_loads_the_frameworks():
    heavy = ("fastapi", "uvicorn", "prometheus_client", "opentelemetry")
    code = (
        "import sys, aigateway.cli, aigateway.cli.commands, aigateway.gateway;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=PATIENCE,
    )
    assert done.stdout == "[]\n"


TRIED = """
import asyncio
import os

from aigateway import Middleware
from aigateway.wires.loading import load_litellm

litellm = asyncio.run(load_litellm())
whole = litellm.OpenAIGPTConfig.transform_response


def tried(self, *args, **options):
    with open("tried", "a") as file:
        print(os.getpid(), file=file)
    return whole(self, *args, **options)


litellm.OpenAIGPTConfig.transform_response = tried


class Look(Middleware):
    async def before(self, request):
        return request
"""


def test_workers_do_not_try_again_what_their_parent_has_tried(launch, tmp_path):
    (tmp_path / "look.py").write_text(TRIED)
    env = {"AIGATEWAY_MIDDLEWARE": '["look:Look"]', "TMPDIR": str(tmp_path), "OPENAI_API_KEY": "k"}
    command = launch(tmp_path, "serve", "--port", "0", "--workers", "2", env=env)
    assert command.url  # so one worker is ready
    command.signal(signal.SIGTERM)
    assert command.code == 0
    assert (tmp_path / "tried").read_text().split() == [str(command.pid)]


LOOK = """
import gc
import os
from pathlib import Path

from aigateway import Middleware

gc.unfreeze()


class Look(Middleware):
    async def before(self, request):
        Path("frozen").write_text(str(gc.get_freeze_count() > 1000))
        return request
"""


@pytest.mark.parametrize(("workers", "frozen"), [(0, True), (1, True), (2, True), (1, False)])
def test_the_service_and_the_batch_command_freeze_what_is_loaded(launch, tmp_path, workers, frozen):
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "in.jsonl").write_text('{"id": "1", "prompt": "hi"}\n')
    env = {"AIGATEWAY_MIDDLEWARE": '["look:Look"]', "TMPDIR": str(tmp_path)}
    env |= {} if frozen else {"AIGATEWAY_FREEZE_GC": "false"}
    with Simulator.in_thread() as vendors:
        env |= {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": vendors.openai.api_base}
        if workers:
            command = launch(tmp_path, "serve", "--port", "0", "--workers", str(workers), env=env)
            asked = httpx.post(f"{command.url}/chat", json={"message": "hi"}, timeout=PATIENCE)
            asked.raise_for_status()
        else:
            command = launch(tmp_path, "batch", "in.jsonl", "out.jsonl", env=env)
            assert command.code == 0, command.log
        assert command.read("frozen") == str(frozen)


def test_the_service_loads_the_simulator_only_to_simulate():
    code = (
        "import sys, aigateway.cli.commands, aigateway.server.process.serve;"
        "print([name for name in ('aigateway.simulator', 'aiohttp.web') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=PATIENCE,
    )
    assert done.stdout == "[]\n"
