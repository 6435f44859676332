import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest


@pytest.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """Whatever asyncio complains of, such as an exception that nobody retrieved."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context))
    yield heard
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    assert heard == []
