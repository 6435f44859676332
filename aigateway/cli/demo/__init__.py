"""`aigateway demo`: four simulated vendors break in turn, and nobody who asks notices.

`story` says what happens, `stage` plays it, `ledger` keeps the books, `screen` and `report` show
them. Everything goes over real HTTP, through litellm, to servers on loopback in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import typer
from rich.console import Console

from aigateway.cli.demo.ledger import Chronicle
from aigateway.cli.demo.report import print_report
from aigateway.cli.demo.screen import LiveScreen, PlainScreen, Screen
from aigateway.cli.demo.stage import Stage
from aigateway.cli.demo.story import phases
from aigateway.cli.outcome import FAILED, explained
from aigateway.clock import SYSTEM_CLOCK
from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig
from aigateway.simulator import Simulator

__all__ = ["run_demo"]

_PIPED_WIDTH = 120
_LATENCIES = {"openai": 0.02, "azure": 0.03, "gemini": 0.04, "anthropic": 0.05}
_FULL_LENGTH = 12.0
"""Seconds. A shorter demo gets shorter timeouts too, within reason; a longer one does not."""
_HANG_SECONDS = 0.5
_LEAST_HANG_SECONDS = 0.25
_PATIENCE_SECONDS = 5.0
"""For those who never hang: a busy machine alone must not make the demo fail."""
_RESET_SECONDS = 1.2
_LEAST_RESET_SECONDS = 0.25


def run_demo(*, seconds: float, rate: float, plain: bool, seed: int) -> None:
    """Play, report, and exit with 1 if any caller saw a failure."""
    console = Console()
    lively = console.is_terminal and not console.is_dumb_terminal and not plain
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    screen: Screen = LiveScreen(console) if lively else PlainScreen(console)
    with explained():
        stage = asyncio.run(_perform(console, screen, seconds, rate, seed))
    print_report(console, stage)
    if stage.ledger.failures:
        raise typer.Exit(FAILED)


async def _perform(
    console: Console, screen: Screen, seconds: float, rate: float, seed: int
) -> Stage:
    async with Simulator() as simulator:
        scale = min(1.0, seconds / _FULL_LENGTH)
        configs = _configs(simulator, scale)
        console.print("loading litellm ...", style="dim", highlight=False)
        await _warm_up(configs)
        for vendor in simulator.vendors:
            vendor.latency = _LATENCIES[vendor.name]
        chronicle = Chronicle(SYSTEM_CLOCK)
        async with _gateway(configs, chronicle, scale) as gateway:
            await gateway.warmup()
            stage = Stage(simulator, gateway, chronicle, phases(seconds), SYSTEM_CLOCK)
            async with asyncio.TaskGroup() as together:
                together.create_task(screen.show(stage))  # the audience first
                together.create_task(stage.play(rate, seed))
            return stage


def _configs(simulator: Simulator, scale: float) -> list[LLMConfig]:
    """The four, in order of priority. The one that will hang is given up on soon."""
    patience = {"openai": max(_LEAST_HANG_SECONDS, _HANG_SECONDS * scale)}
    return [
        vendor.config(name=vendor.name, priority=-place, timeout=patience.get(vendor.name))
        for place, vendor in enumerate(simulator.vendors)
    ]


async def _warm_up(configs: Sequence[LLMConfig]) -> None:
    """Let litellm load what it loads at the first call of each vendor."""
    patient = [LLMConfig.model_validate({**dict(config), "timeout": None}) for config in configs]
    async with AsyncGateway(patient, cache_enabled=False) as gateway:
        for config in configs:
            await gateway.chat("Hello.", model=config.name)


def _gateway(configs: Sequence[LLMConfig], chronicle: Chronicle, scale: float) -> AsyncGateway:
    reset = max(_LEAST_RESET_SECONDS, _RESET_SECONDS * scale)
    return AsyncGateway(
        configs,
        hooks=[chronicle],
        timeout=15.0,
        attempt_timeout=_PATIENCE_SECONDS,
        failure_threshold=3,
        reset_timeout_seconds=reset,
        max_open_seconds=reset,  # no doubling: an audience has no patience for it
        cache_enabled=True,
    )
