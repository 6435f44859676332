"""What the tests of coalescing share."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aigateway.request.coalesce import Coalescer


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def callers(
    coalescer: Coalescer[object], work: Callable[[], Coroutine[Any, Any, object]], number: int
) -> list[asyncio.Task[tuple[object, bool]]]:
    return [asyncio.create_task(coalescer.share("k", work)) for _ in range(number)]
