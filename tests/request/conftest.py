import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aigateway.request.coalesce import Coalescer
from tests.request.sharing import settle


@pytest.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """Whatever asyncio complains of, such as an exception that nobody retrieved."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context))
    yield heard
    await settle()
    gc.collect()
    assert heard == []


@pytest.fixture
def coalescer() -> Coalescer[object]:
    return Coalescer()
