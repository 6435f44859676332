"""`aigateway providers`: show the configured providers, and check whether they answer."""

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

from aigateway.cli.output import FAILED, WRONG_INPUT, advise, errors_as_exit_codes
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError, GatewayError, ProviderFailure
from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig, load_providers

__all__ = ["run_providers"]

_CHECK_PROMPT = "Reply with the word ok."
_CHECK_MAX_TOKENS = 32
_PIPED_WIDTH = 240
"""Columns without a terminal, so that no name is cut."""


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
    if as_json:
        typer.echo(json.dumps(_plain(configs, checks), indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        console.print(_table(configs, checks))
    if checks is not None and any(check.problem for check in checks):
        raise typer.Exit(FAILED)


async def _check_all(configs: Sequence[LLMConfig], seconds: float) -> list[CheckResult]:
    return list(await asyncio.gather(*(_check(config, seconds) for config in configs)))


async def _check(config: LLMConfig, seconds: float) -> CheckResult:
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


def _table(configs: Sequence[LLMConfig], checks: Sequence[CheckResult] | None) -> Table:
    table = Table()
    for heading in ("name", "vendor", "model"):
        table.add_column(heading, overflow="fold")
    table.add_column("priority", justify="right")
    table.add_column("api_base", overflow="fold")
    table.add_column("key")
    table.add_column("aliases", overflow="fold")
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
        ]
        if checks is not None:
            check = checks[index]
            cells.append(Text(check.problem or "ok", "red" if check.problem else "green"))
            cells.append(Text(f"{check.latency_seconds:.2f} s"))
        table.add_row(*cells)
    return table


def _plain(
    configs: Sequence[LLMConfig], checks: Sequence[CheckResult] | None
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
        if checks is not None:
            row["check"] = {"ok": checks[index].problem is None, **asdict(checks[index])}
        rows.append(row)
    return rows
