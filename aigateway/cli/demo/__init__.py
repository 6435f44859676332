"""`aigateway demo`: simulated vendors break in three acts, and no caller notices.

All requests go over real HTTP to servers on loopback in this process. `story` has the acts, the
vendors' faults, the calls and their results; `screen` shows them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import typer
from rich.console import Console

from aigateway.cli.demo.screen import (
    DemoScreen,
    LiveDemoScreen,
    PlainDemoScreen,
    print_beginning,
    print_end,
)
from aigateway.cli.demo.story import Demo, DemoEvents, acts, answer_of
from aigateway.cli.output import FAILED, errors_as_exit_codes, is_live
from aigateway.clock import SYSTEM_CLOCK
from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig
from aigateway.simulator import Simulator

__all__ = ["run_demo"]

_PIPED_WIDTH = 120
_LATENCIES = {"openai": 0.02, "azure": 0.03, "gemini": 0.04, "anthropic": 0.05}
_FULL_LENGTH = 12.0
"""Seconds. A shorter demo has shorter timeouts, down to a limit; a longer one has not."""
_HANG_SECONDS = 0.5
_LEAST_HANG_SECONDS = 0.25
_ATTEMPT_SECONDS = 5.0
"""For vendors that never hang: a busy machine alone must not make the demo fail."""
_LOADING_SECONDS = 600.0
"""For the first call of each vendor, which may load more of litellm."""
_RESET_SECONDS = 1.2
_LEAST_RESET_SECONDS = 0.25


def run_demo(*, seconds: float, rate: float, plain: bool, seed: int) -> None:
    """Run the demo, print its figures, and exit with 1 if any caller got an error."""
    console = Console()
    live = is_live(console, plain=plain)
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    screen: DemoScreen = LiveDemoScreen(console) if live else PlainDemoScreen(console)
    with errors_as_exit_codes():
        demo = asyncio.run(_run(console, screen, seconds, rate, seed))
    print_end(console, demo)
    if demo.results.failures:
        raise typer.Exit(FAILED)


async def _run(
    console: Console, screen: DemoScreen, seconds: float, rate: float, seed: int
) -> Demo:
    async with Simulator() as simulator:
        scale = min(1.0, seconds / _FULL_LENGTH)
        configs = _configs(simulator, scale)
        print_beginning(console, rate)
        await _warm_up(configs)
        for vendor in simulator.vendors:
            vendor.answer(answer_of)
            vendor.latency = _LATENCIES[vendor.name]
        events = DemoEvents(SYSTEM_CLOCK)
        async with _gateway(configs, events, scale) as gateway:
            await gateway.warmup()
            demo = Demo(simulator, gateway, events, acts(seconds), SYSTEM_CLOCK)
            async with asyncio.TaskGroup() as together:
                together.create_task(screen.show(demo))  # before the first event
                together.create_task(demo.play(rate, seed, screen.tell))
            return demo


def _configs(simulator: Simulator, scale: float) -> list[LLMConfig]:
    """Return the four providers by priority. The one that will hang has a short timeout."""
    timeouts = {"openai": max(_LEAST_HANG_SECONDS, _HANG_SECONDS * scale)}
    return [
        vendor.config(name=vendor.name, priority=-place, timeout=timeouts.get(vendor.name))
        for place, vendor in enumerate(simulator.vendors)
    ]


async def _warm_up(configs: Sequence[LLMConfig]) -> None:
    """Let litellm load, and what it loads at the first call of each vendor."""
    patient = [LLMConfig.model_validate({**dict(config), "timeout": None}) for config in configs]
    async with AsyncGateway(
        patient,
        cache_enabled=False,
        timeout=_LOADING_SECONDS,
        attempt_timeout=_LOADING_SECONDS,
    ) as gateway:
        await gateway.warmup()  # no deadline: a slow disk takes more than a minute for litellm
        for config in configs:
            await gateway.chat("Hello.", model=config.name)


def _gateway(configs: Sequence[LLMConfig], events: DemoEvents, scale: float) -> AsyncGateway:
    reset = max(_LEAST_RESET_SECONDS, _RESET_SECONDS * scale)
    return AsyncGateway(
        configs,
        hooks=[events],
        timeout=15.0,
        attempt_timeout=_ATTEMPT_SECONDS,
        failure_threshold=3,
        reset_timeout_seconds=reset,
        max_open_seconds=reset,  # no doubling, so that the demo stays short
        cache_enabled=True,
    )
