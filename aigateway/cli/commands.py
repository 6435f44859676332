"""The small commands: `aigateway chat`, `key`, `serve` and `simulate`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from aigateway.cli.output import errors_as_exit_codes, note
from aigateway.errors import ConfigurationError
from aigateway.gateway import AsyncGateway
from aigateway.messages import ChatResponse
from aigateway.settings import ApiKey, LLMConfig, load_providers

__all__ = ["open_gateway", "run_chat", "run_key", "run_serve", "run_simulate"]

_KEY_PREFIX = "sk-aigw-"
"""Lets secret scanners recognise a leaked key."""

_KEY_BYTES = 32
_SERVER_PACKAGES = ("fastapi", "prometheus_client", "uvicorn")


@contextlib.asynccontextmanager
async def open_gateway(*, simulate: bool) -> AsyncIterator[tuple[AsyncGateway, list[LLMConfig]]]:
    """Open a gateway over the configured providers, or over four simulated vendors.

    Yields:
        The gateway, and its providers with the highest priority first.
    """
    if not simulate:
        configs = sorted(load_providers(), key=lambda config: -config.priority)
        async with AsyncGateway(configs or None) as gateway:
            yield gateway, configs
        return
    from aigateway.simulator import Simulator  # noqa: PLC0415 - it loads aiohttp

    async with Simulator() as simulator:
        configs = [vendor.config(priority=-place) for place, vendor in enumerate(simulator.vendors)]
        async with AsyncGateway(configs) as gateway:
            yield gateway, configs


# ── chat ─────────────────────────────────────────────────────────────────────────────────────


def run_chat(prompt: str, options: Mapping[str, Any], *, as_json: bool, simulate: bool) -> None:
    """Send one prompt ("-" reads standard input) with these options of `chat`; print the answer."""
    if prompt == "-":
        prompt = _standard_input()
    with errors_as_exit_codes():
        reply = asyncio.run(_chat(prompt, options, simulate=simulate))
        if as_json:
            typer.echo(json.dumps(_plain(reply), indent=2))
            return
        typer.echo(reply.text)  # unchanged: rich would wrap it and read its brackets as markup
        note(_summary(reply))


async def _chat(prompt: str, options: Mapping[str, Any], *, simulate: bool) -> ChatResponse:
    async with open_gateway(simulate=simulate) as (gateway, _):
        return await gateway.chat(prompt, **options)


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not text in this locale's encoding") from None


def _summary(reply: ChatResponse) -> str:
    usage = reply.usage
    cost = "price unknown" if reply.cost_usd is None else f"${reply.cost_usd:.6f}"
    parts = [
        reply.provider,
        # The vendors' time alone; `latency_seconds` includes loading litellm.
        f"{sum(attempt.latency_seconds for attempt in reply.attempts):.2f} s",
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        cost,
    ]
    if reply.finish_reason not in {None, "stop"}:
        parts.append(f"ended by {reply.finish_reason}")
    failed = [f"{a.provider}: {a.failure}" for a in reply.attempts if not a.ok]
    if failed:
        parts.append(f"after {', '.join(failed)}")
    return " · ".join(parts)


def _plain(reply: ChatResponse) -> dict[str, Any]:
    return {
        "text": reply.text,
        "provider": reply.provider,
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
        "cost_usd": reply.cost_usd,
        "latency_seconds": round(reply.latency_seconds, 6),
        "cached": reply.cached,
        "attempts": [asdict(attempt) for attempt in reply.attempts],
        "request_id": reply.request_id,
    }


# ── key ──────────────────────────────────────────────────────────────────────────────────────


def run_key(name: str, *, admin: bool) -> None:
    """Print a new key, and the lines for `aigateway.toml`."""
    key = _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    try:
        ApiKey(name=name, sha256=digest)
    except ValidationError:
        raise typer.BadParameter(
            'must be visible text with no whitespace at its ends, and not "admin"',
            param_hint="--name",
        ) from None
    note("The key, shown only now. Clients send it as Authorization: Bearer KEY.")
    typer.echo(key)
    note("For aigateway.toml, which holds only a digest of the key:")
    quoted = json.dumps(name, ensure_ascii=False)  # a JSON string is also a TOML string
    lines = f'[[server.keys]]\nname = {quoted}\nsha256 = "{digest}"'
    typer.echo(f'\n[server]\nadmin_sha256 = "{digest}"' if admin else f"\n{lines}")


# ── serve ────────────────────────────────────────────────────────────────────────────────────


def run_serve(
    overrides: Mapping[str, Any], *, config: Path | None, simulate: bool, as_json: bool
) -> None:
    """Run the service until it stops, and exit with its code."""
    with errors_as_exit_codes():
        missing = [name for name in _SERVER_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigurationError(
                f"`aigateway serve` needs packages that are not installed ({', '.join(missing)}):"
                ' pip install "aigateway[server]"'
            )
        if config is not None:
            # In the environment, every process finds it there at each reload.
            os.environ["AIGATEWAY_CONFIG"] = str(config.absolute())
        from aigateway.server.process.serve import (  # noqa: PLC0415 - needs the extra
            ServeOptions,
            serve,
        )
        from aigateway.telemetry.json_logs import configure_service_logs  # noqa: PLC0415 - slow

        configure_service_logs(as_json=as_json)
        code = serve(ServeOptions(overrides, simulate, typer.echo))
    raise typer.Exit(code)


# ── simulate ─────────────────────────────────────────────────────────────────────────────────


def run_simulate(port: int, *, latency: float, timeline: str | None) -> None:
    """Serve the simulated vendors until Ctrl-C, which is the normal end."""
    from aigateway.simulator.serve import serve_forever  # noqa: PLC0415 - it loads aiohttp

    serving = serve_forever(port, print_line=typer.echo, timeline=timeline, latency=latency)
    with errors_as_exit_codes(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serving)
    note("stopped")
