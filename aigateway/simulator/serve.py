"""The simulator on fixed ports, for `aigateway simulate`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from aigateway.errors import ConfigurationError
from aigateway.simulator.server import Simulator
from aigateway.simulator.timeline import follow, read_timeline

__all__ = ["environment", "serve_forever"]

_HIGHEST_PORT = 65535


async def serve_forever(
    port: int,
    *,
    print_line: Callable[[str], object] = print,
    timeline: str | Path | None = None,
    latency: float = 0.0,
) -> None:
    """Serve OpenAI, Azure, Gemini and Anthropic on `port` and the next three, control after them.

    Args:
        port: The first of five in a row; 0 takes any free ones.
        print_line: Prints a line for the user.
        timeline: Entries like "openai:2s=status:500,openai:5s=ok", or a file of them. It begins
            when all servers listen.
        latency: Seconds before each healthy answer.

    Raises:
        ConfigurationError: The timeline cannot be read, or a port is taken.
    """
    script = read_timeline(timeline) if timeline else {}
    async with _in_a_row(port) as simulator:
        for vendor in simulator.vendors:
            vendor.latency = latency
            print_line(f"# {vendor.name}: {vendor.url}")
        follow(script, simulator.vendors)
        for name, value in environment(simulator):
            print_line(f"export {name}={value}")
        print_line(f"# control: {simulator.control_url} (GET; POST .../fault, .../recover)")
        await asyncio.Event().wait()


def environment(simulator: Simulator) -> Iterator[tuple[str, str]]:
    """Return the environment variables that point an application at the simulator."""
    for vendor, prefix in (
        (simulator.openai, "OPENAI"),
        (simulator.azure, "AZURE_OPENAI"),
        (simulator.gemini, "GEMINI"),
        (simulator.anthropic, "ANTHROPIC"),
    ):
        yield f"{prefix}_API_KEY", vendor.key
        if vendor is simulator.azure:
            yield f"{prefix}_ENDPOINT", vendor.url
            yield f"{prefix}_DEPLOYMENT", vendor.model
        elif vendor is simulator.gemini:
            yield f"{prefix}_ENDPOINT", vendor.url
        else:
            yield f"{prefix}_BASE_URL", vendor.api_base


@contextlib.asynccontextmanager
async def _in_a_row(port: int) -> AsyncIterator[Simulator]:
    """Start a simulator on consecutive ports; report a port that is taken."""
    if not 0 <= port <= _HIGHEST_PORT - 4:
        raise ConfigurationError(f"port must be 0 to {_HIGHEST_PORT - 4}, not {port}")
    ports = [port + offset if port else 0 for offset in range(5)]
    simulator = Simulator(ports=ports[:4], control_port=ports[4])
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(simulator)
        except OSError as error:
            raise ConfigurationError(
                f"ports {port} to {port + 4} are needed and cannot all be had "
                f"({error.strerror}); choose another"
            ) from None
        yield simulator
