"""What the tests of the vendor room share."""

import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.vendor.direct_lane import DirectClient
from aigateway.vendor.litellm_lane import LiteLLMClient
from tests.vendor.calls import WIRES


@pytest.fixture(params=[LiteLLMClient, DirectClient], ids=["litellm", "direct"])
async def connect(request):
    """Make clients of either lane that are closed after the test."""
    clients = []

    def make(config, **options):
        clients.append(request.param(config, SYSTEM_CLOCK, **options))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture(params=WIRES)
def vendor(request, simulator):
    """Each of the four simulated vendors in turn."""
    return getattr(simulator, request.param)


@pytest.fixture
def client(vendor, connect):
    """The lane to that vendor."""
    return connect(vendor.config())
