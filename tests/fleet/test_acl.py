"""The ACL user of the guide may do what the fleet does, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from aigateway.clock import SYSTEM_CLOCK
from aigateway.fleet.client import FleetClient
from aigateway.fleet.ledger import Claim, FleetUnavailableError, Limit, Spent
from aigateway.fleet.redis_ledger import RedisLedger
from aigateway.fleet.shared_cache import SharedCache
from aigateway.fleet.votes import RedisCircuitBus
from aigateway.settings import GatewaySettings
from tests.fleet.servers import Cluster, Server
from tests.processes import PATIENCE, ROOT

GUIDE = (ROOT / "docs/guides/fleet.md").read_text()
(LINE,) = re.findall(r"^ACL SETUSER .+$", GUIDE, re.MULTILINE)
(FOR_CLUSTERS,) = re.findall(r"In a cluster it also needs `(.+?)`", GUIDE)
PASSWORD = "secret-of-the-fleet"


def add_user(server: Server, more: str = "") -> None:
    """Run the line of the guide."""
    words = f"{LINE} {more}".replace("PASSWORD", PASSWORD).split()
    server(*words)


def denied(server: Server) -> list[Any]:
    return list(server("ACL", "LOG"))


async def again(call: Callable[[], Awaitable[Any]]) -> Any:
    """Do something until Redis answers within its 50 ms: a loaded machine may be late."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(FleetUnavailableError):
                return await call()
            await asyncio.sleep(0.05)


async def use(url: str) -> None:
    """Use all that the fleet shares."""
    settings = GatewaySettings(redis_url=url)
    client = FleetClient(settings, SYSTEM_CLOCK)
    ledger, bus = RedisLedger(client), RedisCircuitBus(client)
    cache = SharedCache(client, SYSTEM_CLOCK)
    tasks = [asyncio.create_task(work()) for work in (client.listen, cache.write_all, cache.keep)]
    claims = [Claim(Limit("rate", 10), [Spent(1)], 2), Claim(Limit("day", 10, None), (), 2)]
    answer = await again(lambda: ledger.exchange("one", claims, 1))
    assert [grant.held for grant in answer.grants] == [2, 2]
    await again(lambda: bus.say("circuit", "{}", 10))
    assert len((await again(bus.read))[1]) == 1
    assert await again(lambda: bus.take_probe("circuit", 1))
    await again(lambda: bus.drop_probe("circuit"))
    for _ in range(2):
        await cache.fetch("key", patience=1, background=False)
        cache.write("key", b"{}", 60, 0)
        await cache.written()
        await cache.delete("key")
        await cache.clear()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()


async def test_nothing_that_it_needs_is_denied(server):
    add_user(server)
    await use(server.url.replace("://", f"://gateway:{PASSWORD}@"))
    assert not denied(server)


def test_every_command_of_a_script_is_allowed():
    allowed = {word[1:] for word in LINE.split() if word.startswith("+")}
    source = "".join(path.read_text() for path in (ROOT / "aigateway").rglob("*.py"))
    used = {name.lower() for name in re.findall(r"redis\.p?call\(\s*'(\w+)'", source)}
    assert used
    assert used <= allowed, used - allowed


def test_other_keys_and_commands_are_denied(server):
    add_user(server)
    user = {"user": "gateway", "password": PASSWORD}
    server("SET", "aigateway:{default}:x", "1", **user)
    for command in (
        ("GET", "aigateway:{other}:x"),
        ("SET", "other", "1"),
        ("EVAL", "return redis.call('GET', KEYS[1])", 1, "other"),
        ("PUBLISH", "other", "1"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            server(*command, **user)


@pytest.mark.slow
async def test_in_a_cluster(tmp_path):
    with Cluster(tmp_path) as cluster:
        for node in cluster.nodes:
            add_user(node, FOR_CLUSTERS)
        await use(cluster.url.replace("://", f"://gateway:{PASSWORD}@"))
        assert not [entry for node in cluster.nodes for entry in denied(node)]
