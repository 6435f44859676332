"""The simulated vendors in a process of their own, and the trouble they get into.

Started as `python -m tests.soak.vendors`, the process prints its addresses as one line of JSON and
ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp

from aigateway import LLMConfig
from aigateway.simulator import Simulator

__all__ = ["TROUBLES", "Vendors"]

LATENCY = 0.01
CHUNK_DELAY = 0.002

TROUBLES = (
    "status:500",
    "rate_limited:1",
    "hang",
    "reset",
    "malformed",
    "refuse",
    "stall_stream:2",
    "cut_stream:2:clean=false",
    "cut_stream:2",
    "slow:0.6",
    "error_event:2",
    "html",
    "overloaded",
    "random:0.3:status:503",
    "random:0.3:hang",
    "random:0.3:slow:0.4",
)
"""What can be wrong with a vendor, in the words of `aigateway.simulator.faults`.

Wrong keys and missing models are not among them: those are for a person to mend, and the gateway
leaves such a provider alone for minutes.
"""

HEALTHY_SECONDS = (0.5, 3.0)
ILL_SECONDS = (0.5, 3.0)


class Vendors:
    """The measuring side's handle on that process.

    Attributes:
        configs: One provider for each vendor; two priorities with two providers each.
        injected: How many times each trouble began.
    """

    def __init__(self, control: str, session: aiohttp.ClientSession, seed: int) -> None:
        self._control = control
        self._session = session
        self._seed = seed
        self.configs: tuple[LLMConfig, ...] = ()
        self.injected: Counter[str] = Counter()

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, seed: int) -> AsyncIterator[Self]:
        """Run the process for as long as the context lasts."""
        with _process() as said:
            # No connection is kept, so that none of ours is among those that are counted.
            connector = aiohttp.TCPConnector(force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                vendors = cls(said["control"], session, seed)
                vendors.configs = tuple(LLMConfig(**config) for config in said["configs"])
                yield vendors

    async def misbehave(self, round_number: int, seconds: float) -> None:
        """Let each vendor fall ill and recover by a schedule of its own; at the end all are well.

        The schedule depends on the seed and the round only.
        """
        names = [vendor["name"] for vendor in await self.state()]
        await asyncio.gather(
            *(self._patient(name, f"{self._seed}/{round_number}/{name}", seconds) for name in names)
        )

    async def state(self) -> list[dict[str, Any]]:
        """Each vendor's name, its requests so far, and its open connections."""
        async with self._session.get(self._control) as answer:
            answer.raise_for_status()
            vendors: list[dict[str, Any]] = (await answer.json())["vendors"]
            return vendors

    async def open_connections(self) -> int:
        """Sockets that are open at the vendors now."""
        return sum(vendor["open_connections"] for vendor in await self.state())

    async def _patient(self, name: str, seed: str, seconds: float) -> None:
        chance = random.Random(seed)
        ends = asyncio.get_running_loop().time() + seconds
        bag = chance.sample(TROUBLES, len(TROUBLES))
        try:
            for trouble in bag:
                if not await _sleep_before(ends, chance.uniform(*HEALTHY_SECONDS)):
                    return
                self.injected[trouble] += 1
                await self._order("fault", {"vendor": name, "fault": trouble})
                if not await _sleep_before(ends, chance.uniform(*ILL_SECONDS)):
                    return
                await self._order("recover", {"vendor": name})
        finally:
            await self._order("recover", {"vendor": name})

    async def _order(self, what: str, order: dict[str, Any]) -> None:
        async with self._session.post(f"{self._control}/{what}", json=order) as answer:
            answer.raise_for_status()


async def _sleep_before(ends: float, seconds: float) -> bool:
    """Sleep, but not beyond the end; whether there is time left."""
    left = ends - asyncio.get_running_loop().time()
    await asyncio.sleep(max(0.0, min(seconds, left)))
    return seconds < left


@contextlib.contextmanager
def _process() -> Iterator[dict[str, Any]]:
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()


async def _serve() -> None:
    # A client that leaves in the middle of a stream is what this is about, and no news.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    # Requests are not remembered: this process may serve millions.
    async with Simulator(control_port=0, received_limit=0) as simulator:
        for vendor in simulator.vendors:
            vendor.latency, vendor.chunk_delay = LATENCY, CHUNK_DELAY
        configs: list[dict[str, object]] = [
            {
                "provider": vendor.wire,
                "model": vendor.model,
                "api_key": vendor.key,
                "api_base": vendor.api_base,
                "api_version": vendor.config().api_version,
                "priority": place % 2,
            }
            for place, vendor in enumerate(simulator.vendors)
        ]
        configs += [
            config | {"model": vendor.embedding_model, "aliases": ["vectors"], "priority": -1}
            for config, vendor in zip(configs, simulator.vendors, strict=True)
            if vendor.wire != "anthropic"
        ]
        print(json.dumps({"control": simulator.control_url, "configs": configs}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
