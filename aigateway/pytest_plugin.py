"""The plugin that pytest finds once the package is installed; `-p no:aigateway` leaves it out.

It loads nothing of the package before a test asks for its fixture, since every run of pytest in the
environment imports it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aigateway.simulator import Simulator

try:
    import pytest_asyncio
except ImportError:
    import pytest

    @pytest.fixture
    def simulator() -> None:
        """Say what is missing for the fixture of this name."""
        pytest.fail("The fixture `simulator` needs pytest-asyncio: pip install pytest-asyncio")

else:

    @pytest_asyncio.fixture
    async def simulator() -> AsyncIterator[Simulator]:  # type: ignore[misc]  # else the other  # type: ignore[misc]
        """Four simulated vendors on loopback; see `aigateway.simulator`. Needs pytest-asyncio."""
        from aigateway.simulator import Simulator  # noqa: PLC0415 - it loads aiohttp

        async with Simulator() as running:
            yield running
