"""The small commands: `aigateway chat`, `providers`, `serve` and `simulate`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import stat
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from aigateway.cli.output import (
    FAILED,
    WRONG_INPUT,
    advise,
    errors_as_exit_codes,
    missing_server_packages,
    note,
    seconds_text,
    stdout_console,
    use_config,
)
from aigateway.cli.probe import ProbeResult, probe_all
from aigateway.errors import ConfigurationError, GatewayError
from aigateway.gateway import AsyncGateway
from aigateway.messages import ChatResponse
from aigateway.routing.capabilities import described
from aigateway.routing.provider import ProviderStatus
from aigateway.settings import GatewaySettings, LLMConfig, load_providers

__all__ = [
    "open_gateway",
    "run_chat",
    "run_providers",
    "run_serve",
    "run_simulate",
]

_PATIENCE = 2.0
"""Seconds without input from a pipe after which a note says what the command waits for."""


@contextlib.asynccontextmanager
async def open_gateway(
    *, simulate: bool, freeze_gc: bool = False
) -> AsyncIterator[tuple[AsyncGateway, list[LLMConfig]]]:
    """Open a gateway over the configured providers, or over four simulated vendors.

    Args:
        simulate: Use simulated vendors.
        freeze_gc: The default of this setting.

    Yields:
        The gateway, and its providers with the highest priority first.
    """
    if not simulate:
        configs = sorted(load_providers(), key=lambda config: -config.priority)
        settings = GatewaySettings.load().with_defaults(freeze_gc=freeze_gc)
        async with AsyncGateway(configs or None, settings=settings) as gateway:
            yield gateway, configs
        return
    from aigateway.simulator import Simulator  # noqa: PLC0415 - it loads aiohttp

    async with Simulator() as simulator:
        configs = [vendor.config(priority=-place) for place, vendor in enumerate(simulator.vendors)]
        settings = GatewaySettings.load().with_defaults(freeze_gc=freeze_gc)
        async with AsyncGateway(configs, settings=settings) as gateway:
            yield gateway, configs


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────


def run_chat(
    prompt: str | None,
    options: Mapping[str, Any],
    *,
    stream: bool,
    as_json: bool,
    simulate: bool,
    config: Path | None,
) -> None:
    """Send one prompt with these options of `chat`; print the answer.

    Text from a pipe or a file at standard input is appended to the prompt, or is the prompt.
    """
    if stream and as_json:
        raise typer.BadParameter("give --stream or --json, not both")
    text = _with_standard_input(prompt)
    with errors_as_exit_codes():
        use_config(config)
        answering = _streamed if stream else _chat
        reply = asyncio.run(answering(text, options, simulate=simulate))
        if as_json:
            typer.echo(json.dumps(_plain(reply), indent=2))
            return
        if not stream:
            typer.echo(reply.text)  # unchanged: rich would wrap it and read its brackets as markup
        note(_summary(reply))


async def _chat(prompt: str, options: Mapping[str, Any], *, simulate: bool) -> ChatResponse:
    async with open_gateway(simulate=simulate) as (gateway, _):
        return await gateway.chat(prompt, **options)


async def _streamed(prompt: str, options: Mapping[str, Any], *, simulate: bool) -> ChatResponse:
    last = "\n"
    async with open_gateway(simulate=simulate) as (gateway, _):
        try:
            async with gateway.stream(prompt, **options) as stream:
                async for chunk in stream:
                    if chunk.text:
                        typer.echo(chunk.text, nl=False)
                        last = chunk.text[-1]
        finally:
            if last != "\n":
                typer.echo()  # a message about a break begins a line of its own, too
        return stream.response


def _with_standard_input(prompt: str | None) -> str:
    """Return the prompt with what standard input holds, if that is a pipe or a file."""
    open_to = sys.stdin is not None and not sys.stdin.isatty()  # None if it is closed
    if prompt == "-" or (prompt is None and open_to):
        return _standard_input()
    if prompt is None:
        raise typer.BadParameter("give a prompt, or pipe one in: aigateway chat < file")
    beside = _standard_input() if open_to and _is_pipe_or_file() else ""
    return f"{prompt}\n\n{beside}" if beside.strip() else prompt


def _is_pipe_or_file() -> bool:
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or in a test no file at all
        return False
    if stat.S_ISFIFO(mode) and not select.select([sys.stdin], [], [], _PATIENCE)[0]:
        note("Waiting for standard input; `< /dev/null` leaves it out.")
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _standard_input() -> str:
    try:
        return "" if sys.stdin is None else sys.stdin.read()
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not text in this locale's encoding") from None


def _summary(reply: ChatResponse) -> str:
    usage, loading = reply.usage, reply.loading_seconds
    cost = "price unknown" if reply.cost_usd is None else f"${reply.cost_usd:.6f}"
    parts = [
        reply.provider,
        seconds_text(reply.latency_seconds - loading)
        + (f" + {loading:.1f} s loading litellm" if loading >= 0.05 else ""),
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
        "loading_seconds": round(reply.loading_seconds, 6),
        "cached": reply.cached,
        "attempts": [asdict(attempt) for attempt in reply.attempts],
        "request_id": reply.request_id,
    }


# ── providers ────────────────────────────────────────────────────────────────────────────────────


def run_providers(*, config: Path | None, as_json: bool, check_seconds: float | None) -> None:
    """Print the configured providers; with `check_seconds`, check each of them first."""
    with errors_as_exit_codes():
        use_config(config)
        configs = sorted(load_providers(), key=lambda config: -config.priority)
        if not configs:
            advise()
            raise typer.Exit(WRONG_INPUT)
        checks = None
        if check_seconds is not None:
            checks = asyncio.run(probe_all(configs, check_seconds))
        known = asyncio.run(_capabilities(configs))
    if as_json:
        typer.echo(json.dumps(_plain_providers(configs, checks, known), indent=2))
    else:
        stdout_console().print(_provider_table(configs, checks, known))
        note("`aigateway vendors` lists the vendors that can be added.")
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


def _provider_table(
    configs: Sequence[LLMConfig],
    checks: Sequence[ProbeResult] | None,
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
            cells.append(Text(seconds_text(check.latency_seconds)))
        table.add_row(*cells)
    return table


def _can_do(provider: ProviderStatus | None) -> str:
    words = provider and described(provider.capabilities, provider.max_input_tokens)
    return words or "not known"


def _plain_providers(
    configs: Sequence[LLMConfig],
    checks: Sequence[ProbeResult] | None,
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
            check = checks[index]
            row["check"] = {
                "ok": check.problem is None,
                "problem": check.problem,
                "latency_seconds": check.latency_seconds,
            }
        rows.append(row)
    return rows


# ── serve ────────────────────────────────────────────────────────────────────────────────────────


def run_serve(
    overrides: Mapping[str, Any], *, config: Path | None, simulate: bool, as_json: bool
) -> None:
    """Run the service until it stops, and exit with its code."""
    with errors_as_exit_codes():
        if missing := missing_server_packages():
            raise ConfigurationError(
                f"`aigateway serve` needs packages that are not installed ({', '.join(missing)}):"
                ' pip install "aigateway[server]"'
            )
        use_config(config)
        from aigateway.server.process.serve import (  # noqa: PLC0415 - needs the extra
            ServeOptions,
            serve,
        )
        from aigateway.telemetry.json_logs import configure_service_logs  # noqa: PLC0415 - slow

        configure_service_logs(as_json=as_json)

        def announce(line: str) -> None:
            typer.echo(json.dumps({"event": "service.listening", "message": line}))

        code = serve(ServeOptions(overrides, simulate, announce if as_json else typer.echo))
    raise typer.Exit(code)


# ── simulate ─────────────────────────────────────────────────────────────────────────────────────


def run_simulate(port: int, *, latency: float, timeline: str | None) -> None:
    """Serve the simulated vendors until Ctrl-C, which is the normal end."""
    from aigateway.simulator.serve import serve_forever  # noqa: PLC0415 - it loads aiohttp

    serving = serve_forever(port, print_line=typer.echo, timeline=timeline, latency=latency)
    with errors_as_exit_codes(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serving)
    note("stopped")
