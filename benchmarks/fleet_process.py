"""One process of a fleet: a gateway over loopback vendors that does what its standard input says.

Each order is a line of JSON, and so is each result. `open` makes a gateway of given vendors' roots
and options, in place of the one before: to load the libraries anew for each takes seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Coroutine
from typing import Any

from aigateway import AsyncGateway, GatewayError, LLMConfig
from aigateway.clock import SYSTEM_CLOCK
from aigateway.server.auth.keys import Access
from aigateway.server.http.errors import Refusal
from aigateway.settings import ApiKey, ServerSettings

KEY, MODEL = "sk-loopback", "gpt-4o-mini"


async def load(gateway: AsyncGateway, order: dict[str, Any]) -> dict[str, Any]:
    """Send requests from a moment on (by the wall clock), at a rate, for some seconds.

    `prompts`, if given, is how many different ones there are; some are sent more often than others.
    `budget`, if given, is that of the key with which they are sent, in units of one request's cost.
    """
    dice = random.Random(order["seed"])
    tasks: set[asyncio.Task[None]] = set()
    seconds: list[float] = []
    failed = number = in_flight = most = 0
    account = _Account(gateway, order["budget"]) if "budget" in order else None
    cpu = time.process_time()
    some = order.get("prompts")
    weights = [1 / (place + 1) for place in range(some or 1)]

    async def ask(prompt: str) -> None:
        nonlocal failed, in_flight, most
        began = time.perf_counter()
        asked = gateway.chat(prompt, timeout=order.get("timeout", 10.0))
        in_flight += 1
        most = max(most, in_flight)
        try:
            await (asked if account is None else account.pay(asked))
        except (GatewayError, Refusal):
            failed += 1
        else:
            seconds.append(time.perf_counter() - began)
        in_flight -= 1

    due = order["begin"]
    while due < order["begin"] + order["seconds"]:
        await asyncio.sleep(max(0.0, due - SYSTEM_CLOCK.wall()))
        number += 1
        prompt = f"{order['seed']}, question {number}"
        if some:
            prompt = f"question {dice.choices(range(some), weights)[0]}"
        tasks.add(asyncio.create_task(ask(prompt)))
        due += dice.expovariate(order["rate"])
    await asyncio.gather(*tasks)
    cpu = time.process_time() - cpu
    figures = {"requests": number, "failed": failed, "most_in_flight": most, "cpu": cpu}
    return {**figures, "seconds": seconds}


class _Account:
    """A key with a budget, as a service has it; each request costs a cent."""

    def __init__(self, gateway: AsyncGateway, requests: int) -> None:
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        key = ApiKey(name="key", sha256=digest, budget_usd=requests / 100)
        leases = gateway.fleet.leases
        self._access = Access(ServerSettings(keys=(key,)), SYSTEM_CLOCK, leases)

    async def pay(self, asked: Coroutine[Any, Any, Any]) -> None:
        caller = self._access.identify(f"Bearer {KEY}", None)
        await self._access.renew(caller, MODEL)
        try:
            with self._access.begin(caller, MODEL) as use:
                await asked
                use.on_cost(0.01)
        finally:
            asked.close()


async def _open(given: dict[str, Any]) -> AsyncGateway:
    providers = [
        LLMConfig(
            provider="openai",
            model=MODEL,
            name=name,
            api_key=KEY,
            api_base=f"{root}/v1",
            priority=len(given["roots"]) - place,
            **given["provider"],
        )
        for place, (name, root) in enumerate(given["roots"].items())
    ]
    gateway = AsyncGateway(providers, **given["gateway"])
    await gateway.__aenter__()
    await gateway.warmup()
    for number in range(2 * len(given["roots"])):
        await gateway.chat(
            f"warm up {number} of {os.getpid()}", model=list(given["roots"])[number // 2]
        )
    return gateway


async def main() -> None:
    gateway = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        result = {}
        if order["order"] != "load" and gateway is not None:
            await gateway.aclose()
            gateway = None
        if order["order"] == "open":
            gateway = await _open(order)
        elif gateway is not None:
            result = await load(gateway, order)
        metrics = None if gateway is None else gateway.get_metrics()
        print(json.dumps({**result, "metrics": metrics}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
