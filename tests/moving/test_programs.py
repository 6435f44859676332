"""The programs of the pages on moving, with the tools that they move from; OpenAI answers 500."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from aigateway.simulator import Fault, Simulator
from tests.docs.pages import MOVING, under
from tests.processes import PATIENCE, ROOT

NODE = Path(__file__).parent / "node" / "node_modules" / ".bin"
KEY = "sk-simulated-master"


@pytest.fixture
def vendors():
    with Simulator.in_thread() as running:
        running.openai.behave(Fault.status(500))
        yield running


@pytest.fixture
def environment(vendors, tmp_path):
    return {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": KEY,
        "OPENAI_API_KEY": vendors.openai.key,
        "OPENAI_BASE_URL": vendors.openai.api_base,
        "ANTHROPIC_API_KEY": vendors.anthropic.key,
        "ANTHROPIC_BASE_URL": vendors.anthropic.url,
    }


@pytest.fixture
def run(environment, tmp_path):
    """Run the text of a program to its end, and return what it printed."""

    def run(text):
        (tmp_path / "program.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@contextlib.contextmanager
def listening(command, path, environment, folder):
    """Run a gateway on a free port until the context is left; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "gateway.log").open("w+") as log:
        process = subprocess.Popen(
            [word.format(port=port) for word in command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait(f"http://127.0.0.1:{port}{path}", process, folder / "gateway.log")
            yield f"127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)


def _wait(url, process, log):
    end = time.monotonic() + PATIENCE  # noqa: TID251
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()  # noqa: TID251
        time.sleep(0.1)


def program(page, heading, language="python"):
    return under(f"{MOVING}{page}.md", heading, language)


def test_langchain(run, vendors):
    for heading, requests in (("Before", 3), ("After", 1)):
        before = vendors.openai.request_count
        assert run(program("langchain", heading)) == "4\n"
        assert vendors.openai.request_count - before == requests
    assert vendors.anthropic.request_count == 2


def test_portkey(run, vendors, environment, tmp_path):
    command = [str(NODE / "gateway"), "--headless", "--port={port}"]
    text = program("portkey", "Before")
    for vendor, base in (
        (vendors.openai, vendors.openai.api_base),
        (vendors.anthropic, f"{vendors.anthropic.url}/v1"),
    ):
        own = f'"provider": "{vendor.name}",'
        assert own in text
        text = text.replace(own, f'{own} "custom_host": "{base}",')
    production = environment | {"NODE_ENV": "production"}
    with listening(command, "/", production, tmp_path) as address:
        assert run(text.replace("127.0.0.1:8787", address)) == "4 claude-haiku-4-5\n"
    assert vendors.openai.request_count == 1


def test_tensorzero(run, vendors, tmp_path):
    text = program("tensorzero", "Before", "toml")
    for vendor, base in (
        (vendors.openai, vendors.openai.api_base),
        (vendors.anthropic, f"{vendors.anthropic.url}/v1/messages"),
    ):
        own = f'type = "{vendor.name}"\n'
        assert own in text
        text = text.replace(own, f'{own}api_base = "{base}"\n')
    (tmp_path / "tensorzero.toml").write_text(text)
    printed = run(program("tensorzero", "Before"))
    assert printed.splitlines()[-1] == "4"
    assert (vendors.openai.request_count, vendors.anthropic.request_count) == (1, 1)


def test_litellms_proxy(run, vendors, environment, tmp_path):
    (tmp_path / "config.yaml").write_text(program("litellm-proxy", "Before", "yaml"))
    litellm = shutil.which("litellm", path=str(Path(sys.executable).parent))
    assert litellm, "litellm[proxy] is not installed"
    command = [litellm, "--config", "config.yaml", "--host", "127.0.0.1", "--port", "{port}"]
    quiet = environment | {"LITELLM_MODE": "PRODUCTION", "LITELLM_TELEMETRY": "False"}
    with listening(command, "/health/liveliness", quiet, tmp_path) as address:
        printed = run(program("litellm-proxy", "Before").replace("127.0.0.1:4000", address))
    assert re.fullmatch(r"4 (claude-haiku-4-5|backup|assistant)\n", printed)
    assert vendors.anthropic.request_count == 1
