"""Gateways as services: how each is run in front of one vendor, and where it is found.

All know one model, which leads to a vendor on loopback; none has a database or reports
that it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from benchmarks.clients import KEY, MODEL, MODELS, OURS
from benchmarks.processes import Processes
from benchmarks.server import CHAT_ONLY

CALLER_KEY = f"sk-{secrets.token_hex(32)}"
"""Opens those that ask for a key, and is the vendor's where the caller brings it along."""
LITELLM = "BENCH_LITELLM_PROXY"
"""A variable: the command `litellm` of an environment that has `litellm[proxy]`."""
PORTKEY = "BENCH_PORTKEY"
"""A variable: the command `gateway` of npm's `@portkey-ai/gateway`."""
FERROGW = f"ferrogw {importlib.metadata.version('ferrogw')}"
"""What the service is compared with: a gateway in Go."""
SMG = f"smg {importlib.metadata.version('smg')}"
"""A gateway in Rust."""
_START_SECONDS, _STOP_SECONDS = 180.0, 10.0
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")
"""The rest of the environment stays here: no key and no setting of the machine's user."""
_THIS_TREE = {"PYTHONPATH": str(Path(__file__).parent.parent)}
"""So that the service is of the same tree as its measure, whatever is installed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one gateway is run.

    Attributes:
        command: It stays in the foreground.
        environment: Beside what every process needs.
        headers: What a request needs to be led to the vendor.
        ready: The path that answers 200 as soon as requests may come.
    """

    command: tuple[str, ...]
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """What a gateway is made for: the vendor's root, a directory of its own, a free port."""

    vendor: str
    directory: Path
    port: int


Make = Callable[[Place], Plan]


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that answers; without `processes` it is the vendor itself."""

    url: str
    headers: Mapping[str, str]
    processes: Processes | None = None


def direct(vendor: str) -> Running:
    """No gateway at all."""
    return Running(f"{vendor}/v1/chat/completions", {})


@contextlib.asynccontextmanager
async def running(make: Make, vendor: str) -> AsyncIterator[Running]:
    """Run a gateway in front of a vendor, until the context is left."""
    with tempfile.TemporaryDirectory() as name:
        place = Place(vendor, Path(name), _free_port())
        plan = make(place)
        with (place.directory / "log").open("w+b") as log:
            process = await asyncio.create_subprocess_exec(
                *plan.command,
                cwd=place.directory,  # no `.env` is there
                env={**_environment(), **plan.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                root = f"http://127.0.0.1:{place.port}"
                if not await _ready(root + plan.ready, process):
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-2000:]
                    raise RuntimeError(f"{plan.command[0]} does not answer; it says:\n{said}")
                url = f"{root}/v1/chat/completions"
                yield Running(url, plan.headers, Processes(process.pid))
            finally:
                await _end(process)


async def _ready(url: str, process: asyncio.subprocess.Process) -> bool:
    """Whether requests may come; False when the process has ended or its time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS), aiohttp.ClientSession() as session:
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(url) as answer:
                        if answer.status == 200:
                            return True
                await asyncio.sleep(0.1)
    return False


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ── who there is ─────────────────────────────────────────────────────────────────────────────


def aigateway(workers: int) -> Make:
    """The service of this package, with everything on."""

    def make(place: Place) -> Plan:
        config = place.directory / "aigateway.toml"
        config.write_text(
            f"[server]\nport = {place.port}\nworkers = {workers}\n"
            f'[[server.keys]]\nname = "bench"\nsha256 = "{_sha256(CALLER_KEY)}"\n'
            # Room for a thousand streams.
            "[gateway]\nmax_concurrency = 2000\n"
            f'[[providers]]\nprovider = "openai"\nmodel = "{MODEL}"\napi_key = "{KEY}"\n'
            f'api_base = "{place.vendor}/v1"\n',
            encoding="utf-8",
        )
        command = (sys.executable, "-m", "aigateway", "serve", "--config", str(config))
        return Plan(command, "/ready", _THIS_TREE)

    return make


LANES = {
    "an OpenAI-compatible server without `/responses`": "compatible",
    "Anthropic": "anthropic",
    "OpenAI": "openai",
}
"""The providers of `every_lane`, as a caller names them."""


def every_lane(place: Place) -> Plan:
    """The service of this package in front of a vendor of each protocol."""
    providers = [
        ("compatible", "openai_compatible", MODELS["openai"], f"/{CHAT_ONLY}/v1"),
        ("anthropic", "anthropic", MODELS["anthropic"], ""),
        ("openai", "openai", MODELS["openai"], "/v1"),
    ]
    config = place.directory / "aigateway.toml"
    config.write_text(
        f"[server]\nport = {place.port}\n"
        f'[[server.keys]]\nname = "bench"\nsha256 = "{_sha256(CALLER_KEY)}"\n'
        "[gateway]\nmax_concurrency = 2000\n"
        + "".join(
            f'[[providers]]\nname = "{name}"\nprovider = "{kind}"\nmodel = "{model}"\n'
            f'api_key = "{KEY}"\napi_base = "{place.vendor}{path}"\n'
            for name, kind, model, path in providers
        ),
        encoding="utf-8",
    )
    command = (sys.executable, "-m", "aigateway", "serve", "--config", str(config))
    return Plan(command, "/ready", _THIS_TREE)


def _litellm(command: str) -> Make:
    """The proxy as its page on production has it: one worker, errors only in the log."""

    def make(place: Place) -> Plan:
        config = place.directory / "config.yaml"
        config.write_text(
            f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n"
            f"      model: openai/{MODEL}\n      api_base: {place.vendor}/v1\n"
            f"      api_key: {KEY}\n"
            "litellm_settings:\n  set_verbose: false\n  request_timeout: 600\n"
            "  telemetry: false\n  num_retries: 0\n",
            encoding="utf-8",
        )
        options = ("--config", str(config), "--host", "127.0.0.1", "--port", str(place.port))
        environment = {
            "LITELLM_MASTER_KEY": CALLER_KEY,
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
            "LITELLM_LOCAL_BLOG_POSTS": "True",
            "AIOHTTP_CONNECTOR_LIMIT": "2000",
            "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "2000",
        }
        one = ("--num_workers", "1", "--telemetry", "False")
        return Plan((command, *options, *one), "/health/liveliness", environment)

    return make


def _portkey(command: str) -> Make:
    """Portkey's gateway on Node.js, without its console, which would watch every request."""

    def make(place: Place) -> Plan:
        headers = {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{place.vendor}/v1",
        }
        production = {"NODE_ENV": "production"}
        run = (command, "--headless", f"--port={place.port}")
        return Plan(run, "/", production, headers)

    return make


def ferrogw(place: Place) -> Plan:
    """A gateway in Go with its circuit breaker, for two vendors, and without its rate limit."""
    config = place.directory / "config.yaml"
    config.write_text(
        "strategy:\n  mode: fallback\ntargets:\n"
        + "".join(
            f"  - virtual_key: {kind}\n    circuit_breaker:\n      failure_threshold: 5\n"
            for kind in ("openai", "anthropic")
        ),
        encoding="utf-8",
    )
    environment = {
        "GATEWAY_CONFIG": str(config),
        "MASTER_KEY": CALLER_KEY,
        "PORT": str(place.port),
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": place.vendor,
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": place.vendor,
        "LOG_LEVEL": "warn",
        # It answers 429 above 100 requests a second as it comes.
        "RATE_LIMIT_RPS": "1000000",
        "RATE_LIMIT_BURST": "1000000",
    }
    return Plan((_beside("ferrogw"), "serve"), "/readyz", environment)


def smg(backend: str) -> Make:
    """A router in Rust in front of one vendor's API: `openai` or `anthropic`."""

    def make(place: Place) -> Plan:
        given = {
            "backend": backend,
            "host": "127.0.0.1",
            "port": str(place.port),
            "prometheus-host": "127.0.0.1",
            "prometheus-port": str(_free_port()),
            "worker-urls": place.vendor,
            "history-backend": "none",
            "log-level": "error",
            "api-key": CALLER_KEY,
        }
        options = [part for name, value in given.items() for part in (f"--{name}", value)]
        return Plan((_beside("smg"), "launch", *options), "/readiness")

    return make


def every_door() -> list[tuple[str, Make, Mapping[tuple[str, str], str]]]:
    """Who has which endpoint in front of which kind of vendor, and the model to ask there for.

    ferrogw hands a request of `/v1/messages` on as it is, to the provider of its model, which
    cannot be Anthropic's; so it is asked for a model of OpenAI.
    """
    openai, anthropic = MODELS["openai"], MODELS["anthropic"]
    every = {
        (lane, dialect): model
        for lane, model in LANES.items()
        for dialect in ("chat", "messages", "responses")
    }
    go = {
        ("OpenAI", "chat"): openai,
        ("OpenAI", "responses"): openai,
        ("Anthropic", "chat"): anthropic,
        ("Anthropic", "messages"): openai,
    }
    rust = {("OpenAI", "chat"): openai, ("OpenAI", "responses"): openai}
    return [
        (OURS, every_lane, every),
        (FERROGW, ferrogw, go),
        (SMG, smg("openai"), rust),
        (SMG, smg("anthropic"), {("Anthropic", "messages"): anthropic}),
    ]


def _beside(command: str) -> str:
    """A command of this environment; pinned there, so that each run measures the same version."""
    found = shutil.which(command, path=Path(sys.executable).parent)
    if found is None:
        raise RuntimeError(f"{command} is not installed; requirements/bench.txt has it")
    return found


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def peers() -> tuple[dict[str, Make], list[str]]:
    """Those that are installed, by name and version; the names of those that are not."""
    found: dict[str, Make] = {FERROGW: ferrogw, SMG: smg("openai")}
    missing = []
    for name, variable, make, version in (
        ("litellm proxy", LITELLM, _litellm, _version_of_litellm),
        ("Portkey gateway", PORTKEY, _portkey, _version_of_portkey),
    ):
        command = shutil.which(os.environ.get(variable, ""))
        if command is None:
            missing.append(name)
        else:
            found[f"{name} {version(command)}"] = make(command)
    return found, missing


def _version_of_litellm(command: str) -> str:
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    python = Path(command).with_name("python")
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def _version_of_portkey(command: str) -> str:
    package = Path(command).resolve().parent.parent / "package.json"
    version: str = json.loads(package.read_text(encoding="utf-8"))["version"]
    return version


def ours() -> dict[str, Make]:
    """The service with one worker and with two."""
    return {f"{OURS} serve": aigateway(1), f"{OURS} serve, 2 workers": aigateway(2)}
