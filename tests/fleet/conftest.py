"""Real servers; see `tests/fleet/servers.py` for how to use them."""

import pytest

from tests.fleet.servers import REDIS, VALKEY, Server


@pytest.fixture
def valkey(tmp_path):
    """A Valkey of this test's own."""
    with Server(tmp_path) as server:
        yield server


@pytest.fixture(params=[VALKEY, REDIS], ids=["valkey", "redis-6.2"])
def server(request, tmp_path):
    """A Valkey, and then a Redis 6.2."""
    with Server(tmp_path, binary=request.param) as server:
        yield server
