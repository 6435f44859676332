"""A gateway over four simulated vendors, for commands that can be tried without a key."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig
from aigateway.simulator import Simulator

__all__ = ["simulated_gateway"]


@contextlib.asynccontextmanager
async def simulated_gateway() -> AsyncIterator[tuple[AsyncGateway, list[LLMConfig]]]:
    """Run the vendors for as long as the context lasts; the first is asked first."""
    async with Simulator() as simulator:
        configs = [vendor.config(priority=-place) for place, vendor in enumerate(simulator.vendors)]
        async with AsyncGateway(configs) as gateway:
            yield gateway, configs
