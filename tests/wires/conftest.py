"""What the tests of the wires share."""

import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.wires.litellm import lane as litellm_lane
from tests.processes import PATIENCE
from tests.wires.calls import KINDS, LANES


@pytest.fixture(autouse=True)
def threads_have_time(monkeypatch):
    """A cancelled call waits for a thread a tenth of a second; a loaded machine takes longer."""
    monkeypatch.setattr(litellm_lane, "_HOP", PATIENCE)


@pytest.fixture(params=LANES, ids=["litellm", "direct"])
def lane(request):
    """The clients of either lane in turn."""
    return request.param


@pytest.fixture
async def connect(lane):
    """Make clients of that lane that are closed after the test."""
    clients = []

    def make(config, clock=SYSTEM_CLOCK, **options):
        clients.append(lane(config, clock, **options))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture(params=KINDS)
def vendor(request, simulator):
    """A simulated vendor of each kind in turn."""
    return getattr(simulator, request.param)


@pytest.fixture
def client(vendor, connect):
    """The lane to that vendor."""
    return connect(vendor.config())
