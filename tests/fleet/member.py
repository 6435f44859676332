"""A process of a fleet: one gateway, orders by its standard input, a line of JSON for each.

Its vendors are ports on loopback that answer one line, `ok` or a status, so that a process starts
in half a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from aigateway import AsyncGateway
from aigateway.errors import AllProvidersFailedError, FailureKind
from aigateway.testing import ScriptedVendor, scripted_configs
from aigateway.wires.client import Failure, VendorCallError


async def call(port: int) -> str:
    """Ask the vendor at a port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"ask\n")
        status, _, retry_after = (await reader.readline()).decode().strip().partition(" ")
    finally:
        writer.close()
    if status == "ok":
        return "an answer"
    if status == "429":
        failure = Failure(FailureKind.RATE_LIMITED, status=429, retry_after=float(retry_after))
    else:
        failure = Failure(FailureKind.SERVER_ERROR, status=int(status))
    raise VendorCallError(failure)


async def state(gateway: AsyncGateway) -> dict[str, Any]:
    main = gateway.providers[0]
    metrics: Mapping[str, Any] = gateway.get_metrics()
    fleet = metrics.get("fleet") or {}
    advisor: Any = next(iter(gateway._roster)).chat.breaker.advisor
    return {
        "circuit": main.circuit_state,
        "against": 0 if advisor is None else len(advisor._against()),
        "retry_after": main.retry_after_seconds or 0.0,
        "available": fleet.get("available"),
    }


async def main() -> None:
    given = json.loads(sys.argv[1])
    vendor = ScriptedVendor()
    for name, port in given["ports"].items():
        vendor.always(name, partial(call, port))
    configs = scripted_configs(*given["ports"])
    async with AsyncGateway(configs, vendor=vendor, **given["settings"]) as gateway:
        number = 0
        while line := await asyncio.to_thread(sys.stdin.readline):
            failed = 0
            for _ in range(int(line)):
                number += 1
                try:
                    await gateway.chat(f"{given['name']} {number}", cache=False, timeout=60.0)
                except AllProvidersFailedError:
                    failed += 1
            print(json.dumps({"failed": failed, **await state(gateway)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
