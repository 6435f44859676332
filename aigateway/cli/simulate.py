"""`aigateway simulate`: the simulated vendors for applications outside this process."""

from __future__ import annotations

import asyncio
import contextlib

import typer

from aigateway.cli.outcome import explained, note
from aigateway.simulator.serve import serve_forever

__all__ = ["run_simulate"]


def run_simulate(port: int, *, latency: float, timeline: str | None) -> None:
    """Serve until Ctrl-C, which is the ordinary end."""
    serving = serve_forever(port, print_line=typer.echo, timeline=timeline, latency=latency)
    with explained(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serving)
    note("stopped")
