"""`aigateway providers`: who is configured, and do they answer."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigateway.cli.outcome import FAILED, WRONG_INPUT, advise, explained
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError, GatewayError, ProviderFailure
from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig, load_providers

__all__ = ["run_providers"]

_CHECK_PROMPT = "Reply with the word ok."
_CHECK_MAX_TOKENS = 32
_PIPED_WIDTH = 240
"""Columns, where no terminal says how many: a cut name is of no use to `grep`."""


@dataclass(frozen=True, slots=True)
class Health:
    """How one provider took the check; `problem` is None if it answered."""

    problem: str | None
    latency_seconds: float


def run_providers(*, as_json: bool, check_seconds: float | None) -> None:
    """Print the configured providers; with `check_seconds`, ask each of them first."""
    with explained():
        configs = sorted(load_providers(), key=lambda config: -config.priority)
        if not configs:
            advise()
            raise typer.Exit(WRONG_INPUT)
        healths = None
        if check_seconds is not None:
            healths = asyncio.run(_check_all(configs, check_seconds))
    if as_json:
        typer.echo(json.dumps(_plain(configs, healths), indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        console.print(_table(configs, healths))
    if healths is not None and any(health.problem for health in healths):
        raise typer.Exit(FAILED)


async def _check_all(configs: Sequence[LLMConfig], seconds: float) -> list[Health]:
    return list(await asyncio.gather(*(_check(config, seconds) for config in configs)))


async def _check(config: LLMConfig, seconds: float) -> Health:
    """Ask this one alone: another provider may answer to the same model or alias."""
    try:
        async with AsyncGateway(
            [config], cache_enabled=False, retry_rounds=0, attempt_timeout=seconds
        ) as gateway:
            await gateway.warmup()  # else the first check would count what loading litellm takes
            began = SYSTEM_CLOCK.now()
            problem = await _problem(gateway, seconds)
            return Health(problem, SYSTEM_CLOCK.now() - began)
    except ConfigurationError as error:
        return Health(str(error), 0.0)


async def _problem(gateway: AsyncGateway, seconds: float) -> str | None:
    try:
        # A second more than the attempt may take, so that its timeout is told as one.
        await gateway.chat(_CHECK_PROMPT, max_tokens=_CHECK_MAX_TOKENS, timeout=seconds + 1)
    except GatewayError as error:
        causes: Sequence[ProviderFailure] = getattr(error, "causes", ())
        if not causes:
            return str(error)
        status = f" (HTTP {causes[0].status})" if causes[0].status is not None else ""
        return f"{causes[0].kind}{status}"
    return None


def _table(configs: Sequence[LLMConfig], healths: Sequence[Health] | None) -> Table:
    table = Table()
    for heading in ("name", "vendor", "model"):
        table.add_column(heading, overflow="fold")
    table.add_column("priority", justify="right")
    table.add_column("api_base", overflow="fold")
    table.add_column("key")
    table.add_column("aliases", overflow="fold")
    if healths is not None:
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
        ]
        if healths is not None:
            health = healths[index]
            cells.append(Text(health.problem or "ok", "red" if health.problem else "green"))
            cells.append(Text(f"{health.latency_seconds:.2f} s"))
        table.add_row(*cells)
    return table


def _plain(
    configs: Sequence[LLMConfig], healths: Sequence[Health] | None
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index, config in enumerate(configs):
        row: dict[str, object] = {
            "name": config.name,
            "vendor": str(config.provider),
            "model": config.model,
            "priority": config.priority,
            "api_base": config.api_base,
            "key_present": config.api_key is not None,
            "aliases": list(config.aliases),
        }
        if healths is not None:
            row["check"] = {"ok": healths[index].problem is None, **asdict(healths[index])}
        rows.append(row)
    return rows
