"""The small commands: `aigateway chat`, `providers`, `key`, `serve` and `simulate`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigateway.cli.output import FAILED, WRONG_INPUT, advise, errors_as_exit_codes, note
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError, GatewayError, ProviderFailure
from aigateway.gateway import AsyncGateway
from aigateway.messages import ChatResponse
from aigateway.routing.capabilities import described
from aigateway.routing.provider import ProviderStatus
from aigateway.settings import ApiKey, LLMConfig, load_providers

__all__ = ["open_gateway", "run_chat", "run_key", "run_providers", "run_serve", "run_simulate"]

_KEY_PREFIX = "sk-aigw-"
"""Lets secret scanners recognise a leaked key."""

_KEY_BYTES = 32
_CHECK_PROMPT = "Reply with the word ok."
_CHECK_MAX_TOKENS = 32
_PIPED_WIDTH = 240
"""Columns without a terminal, so that no name is cut."""
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


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────


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


# ── providers ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one provider's check; `problem` is None if it answered."""

    problem: str | None
    latency_seconds: float


def run_providers(*, as_json: bool, check_seconds: float | None) -> None:
    """Print the configured providers; with `check_seconds`, check each of them first."""
    with errors_as_exit_codes():
        configs = sorted(load_providers(), key=lambda config: -config.priority)
        if not configs:
            advise()
            raise typer.Exit(WRONG_INPUT)
        checks = None
        if check_seconds is not None:
            checks = asyncio.run(_check_all(configs, check_seconds))
        known = asyncio.run(_capabilities(configs))
    if as_json:
        typer.echo(json.dumps(_plain_providers(configs, checks, known), indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        console.print(_provider_table(configs, checks, known))
    if checks is not None and any(check.problem for check in checks):
        raise typer.Exit(FAILED)


async def _capabilities(configs: Sequence[LLMConfig]) -> dict[str, ProviderStatus]:
    """Return what is known of the providers, by name, once litellm's model map is loaded."""
    with contextlib.suppress(ConfigurationError):  # of a provider that cannot be opened
        async with AsyncGateway(configs) as gateway:
            with contextlib.suppress(GatewayError):
                await gateway.warmup()
            return {provider.name: provider for provider in gateway.providers}
    return {}


async def _check_all(configs: Sequence[LLMConfig], seconds: float) -> list[CheckResult]:
    return list(await asyncio.gather(*(_check_one(config, seconds) for config in configs)))


async def _check_one(config: LLMConfig, seconds: float) -> CheckResult:
    """Ask this provider alone: another one may serve the same model or alias."""
    try:
        async with AsyncGateway(
            [config], cache_enabled=False, retry_rounds=0, attempt_timeout=seconds
        ) as gateway:
            await gateway.warmup()  # so that the check does not include loading litellm
            began = SYSTEM_CLOCK.now()
            problem = await _problem(gateway, seconds)
            return CheckResult(problem, SYSTEM_CLOCK.now() - began)
    except ConfigurationError as error:
        return CheckResult(str(error), 0.0)


async def _problem(gateway: AsyncGateway, seconds: float) -> str | None:
    try:
        # A second more than the attempt may take, so that its timeout is reported as one.
        await gateway.chat(_CHECK_PROMPT, max_tokens=_CHECK_MAX_TOKENS, timeout=seconds + 1)
    except GatewayError as error:
        causes: Sequence[ProviderFailure] = getattr(error, "causes", ())
        if not causes:
            return str(error)
        status = f" (HTTP {causes[0].status})" if causes[0].status is not None else ""
        return f"{causes[0].kind}{status}"
    return None


def _provider_table(
    configs: Sequence[LLMConfig],
    checks: Sequence[CheckResult] | None,
    known: Mapping[str, ProviderStatus],
) -> Table:
    table = Table()
    for heading in ("name", "vendor", "model"):
        table.add_column(heading, overflow="fold")
    table.add_column("priority", justify="right")
    table.add_column("api_base", overflow="fold")
    table.add_column("key")
    table.add_column("aliases", overflow="fold")
    table.add_column("can do", overflow="fold")
    if checks is not None:
        table.add_column("check", overflow="fold")
        table.add_column("latency", justify="right")
    for index, config in enumerate(configs):
        cells = [
            Text(config.name),
            Text(str(config.provider)),
            Text(config.model),
            Text(str(config.priority)),
            Text(config.api_base or "the vendor's own"),
            Text("yes", "green") if config.api_key else Text("no", "yellow"),
            Text(", ".join(config.aliases)),
            Text(_can_do(known.get(config.name))),
        ]
        if checks is not None:
            check = checks[index]
            cells.append(Text(check.problem or "ok", "red" if check.problem else "green"))
            cells.append(Text(f"{check.latency_seconds:.2f} s"))
        table.add_row(*cells)
    return table


def _can_do(provider: ProviderStatus | None) -> str:
    words = provider and described(provider.capabilities, provider.max_input_tokens)
    return words or "not known"


def _plain_providers(
    configs: Sequence[LLMConfig],
    checks: Sequence[CheckResult] | None,
    known: Mapping[str, ProviderStatus],
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index, config in enumerate(configs):
        found = known.get(config.name)
        row: dict[str, object] = {
            "name": config.name,
            "vendor": str(config.provider),
            "model": config.model,
            "priority": config.priority,
            "api_base": config.api_base,
            "key_present": config.api_key is not None,
            "aliases": list(config.aliases),
            "capabilities": dict(found.capabilities) if found else {},
            "max_input_tokens": found.max_input_tokens if found else None,
        }
        if checks is not None:
            row["check"] = {"ok": checks[index].problem is None, **asdict(checks[index])}
        rows.append(row)
    return rows


# ── key ──────────────────────────────────────────────────────────────────────────────────────────


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


# ── serve ────────────────────────────────────────────────────────────────────────────────────────


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


# ── simulate ─────────────────────────────────────────────────────────────────────────────────────


def run_simulate(port: int, *, latency: float, timeline: str | None) -> None:
    """Serve the simulated vendors until Ctrl-C, which is the normal end."""
    from aigateway.simulator.serve import serve_forever  # noqa: PLC0415 - it loads aiohttp

    serving = serve_forever(port, print_line=typer.echo, timeline=timeline, latency=latency)
    with errors_as_exit_codes(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serving)
    note("stopped")
