"""The connection to Redis, over real servers that freeze, die, fill up and fail over.

Numbers are those of litellm's issues about the same failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

import pytest

from aigateway import AsyncGateway, ConfigurationError, Middleware
from aigateway.clock import SYSTEM_CLOCK
from aigateway.events import FleetLost, FleetRefused, FleetReturned
from aigateway.fleet.client import (
    CONNECTIONS,
    LONGEST,
    FleetClient,
    FleetUnavailableError,
    LuaScript,
)
from aigateway.fleet.fleet import Fleet
from aigateway.settings import GatewaySettings
from aigateway.telemetry import Prometheus
from tests.fleet.servers import Cluster, Sentinels, Server, free_port, tls_in_front
from tests.gateways import until
from tests.processes import ROOT

ECHO = LuaScript("echo", "redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]")
COUNT = LuaScript("count", "redis.call('INCR', KEYS[2]) return redis.call('INCR', KEYS[1])")
GET = LuaScript("get", "return redis.call('GET', KEYS[1])", writes=False)
PUBLISH = LuaScript("publish", "return redis.call('PUBLISH', ARGV[1], ARGV[2])")
PASSWORD = "correct-horse-7"
RULES = ("~aigateway:*", "&aigateway:*", "+@all", "-@admin", "-@dangerous")
"""No more than any script may need."""


def connected(server):
    """How many connections a server has, beside the one that asks."""
    return int(server("INFO", "clients")["connected_clients"]) - 1


@contextlib.asynccontextmanager
async def client_of(url, events=None, prepare=lambda client: None):
    """A client that listens; what it reports goes to `events`."""
    settings = GatewaySettings(redis_url=url)
    client = FleetClient(settings, SYSTEM_CLOCK, ([] if events is None else events).append)
    prepare(client)
    task = asyncio.create_task(client.listen())
    try:
        yield client
    finally:
        assert not task.done(), task
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.aclose()


async def succeeds(client, script=COUNT, keys=("a", "b"), args=()):
    """Run a script until it is answered: a loaded machine may be late."""
    answers = []

    async def once():
        with contextlib.suppress(FleetUnavailableError):
            answers.append(await client.run(script, keys, args, seconds=LONGEST))
        return answers

    while not await once():  # noqa: ASYNC110 - the server is another party
        await asyncio.sleep(0.01)
    return answers[0]


def raises_without_waiting(client):
    """Whether a command fails before it gives the event loop a chance."""
    command = client.run(COUNT, ["a", "b"])
    with pytest.raises(FleetUnavailableError):
        command.send(None)
    return True


async def lose(client):
    """Run commands, one after the other, until Redis counts as lost, and not for being late."""
    while client.available:
        with contextlib.suppress(FleetUnavailableError):
            await client.run(COUNT, ["a", "b"], seconds=LONGEST)
        await asyncio.sleep(0.01)


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_server_that_was_restarted_empty_gets_the_scripts_again(server):
    async with client_of(server.url) as client:
        server("SET", "aigateway:{default}:a", 100)
        before = await succeeds(client)
        assert before > 100
        server("SCRIPT", "FLUSH")
        assert await succeeds(client) > before
        server.restart()
        assert await succeeds(client) < 100
        assert await succeeds(client, GET, ["b"]) is not None
        assert await succeeds(client, GET, ["nothing"]) is None
    keys = set(server("KEYS", "*")) - {b"aigateway:{default}:probe"}
    assert keys == {b"aigateway:{default}:a", b"aigateway:{default}:b"}


async def test_no_command_reads_the_answer_of_a_cancelled_one(valkey):
    """Hundreds of commands are cancelled at random moments; none of the others is harmed."""
    wrong, dice = [], random.Random(7)

    async def ask(client, number):
        with contextlib.suppress(FleetUnavailableError):
            answer = await client.run(ECHO, ["a"], [number])
            if answer != str(number).encode():
                wrong.append((number, answer))

    async with client_of(valkey.url) as client:
        await succeeds(client)
        cancelled = number = 0
        while cancelled < 300:
            asked = [asyncio.create_task(ask(client, number + n)) for n in range(40)]
            number += len(asked)
            await asyncio.sleep(dice.random() * 0.008)
            for task in asked:
                if dice.random() < 0.7:
                    cancelled += task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        assert client.available, "a cancelled caller says nothing about Redis"
        # No connection was lost: as many commands as ever run at once.
        await until(lambda: client._connect().slots._value == CONNECTIONS)
        assert await succeeds(client, ECHO, ["a"], ["last"]) == b"last"
        assert connected(valkey) <= CONNECTIONS + 2
    assert not wrong
    await until(lambda: not connected(valkey))


async def test_a_full_pool_says_nothing_about_redis(valkey):
    """#40672: a guard that opens on a full pool of its own."""
    events: list[Any] = []
    async with client_of(valkey.url, events) as client:
        await succeeds(client)
        slots = client._connect().slots
        for _ in range(CONNECTIONS):
            await slots.acquire()
        answers = await asyncio.gather(
            *(client.run(COUNT, ["a", "b"]) for _ in range(50)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {FleetUnavailableError}
        assert "connections to Redis are in use" in str(answers[0])
        assert client.available
        for _ in range(CONNECTIONS):
            slots.release()
        assert await succeeds(client) < 10, "what waits in vain is not sent"
    assert not events


async def test_a_stall_of_our_own_loop_says_nothing_about_redis(valkey):
    events: list[Any] = []
    async with client_of(valkey.url, events) as client:
        await succeeds(client)
        for _ in range(2):
            asked = [asyncio.create_task(client.run(COUNT, ["a", "b"])) for _ in range(CONNECTIONS)]
            await asyncio.sleep(0)
            time.sleep(0.2)  # noqa: ASYNC251 - that is the point
            await asyncio.gather(*asked, return_exceptions=True)
            await succeeds(client)
    assert not events


# ── lost, and back ───────────────────────────────────────────────────────────────────────────────

HARMS = {
    "frozen": (Server.freeze, Server.thaw),
    "killed": (Server.kill, Server.start),
    "slow": (lambda server: server.pause(60_000), Server.restart),
}


class ReadsFirst(Middleware):
    """Reads from Redis in the way of each request, as a shared cache does."""

    def __init__(self):
        self.gateway: Any = None
        self.waited = self.refused = 0

    async def before(self, request):
        client = self.gateway.fleet.client
        was = client.readable
        try:
            await client.run(GET, ["answer"])
        except FleetUnavailableError as error:
            self.waited += "slow" in str(error)
            self.refused += not was
        return request


@pytest.mark.parametrize("harm", HARMS)
async def test_chats_go_on_while_redis_does_not(harm, valkey, simulator, caplog):
    """#35273: every request hangs. #34299: the guard never opens. #40620: a traceback a request."""
    break_, mend = HARMS[harm]
    reader = ReadsFirst()
    caplog.set_level("INFO", "aigateway")
    async with AsyncGateway(
        [simulator.openai.config()],
        redis_url=valkey.url,
        cache_enabled=False,
        middleware=[reader],
    ) as gateway:
        await gateway.warmup()  # litellm may take a minute to load, and holds up the event loop
        client = gateway.fleet.client
        assert client is not None
        reader.gateway = gateway
        await succeeds(client)
        assert gateway.get_metrics()["fleet"] == {"available": True, "members": 1}
        caplog.clear()
        reader.waited = 0
        break_(valkey)
        answers: list[Any] = []
        while reader.refused < 20:
            answers.append(await gateway.chat(f"Question {len(answers)}"))
        assert all(answer.text for answer in answers)
        assert len(simulator.openai.received) == len(answers)
        # One after the other they wait three times, unless the listener notices first.
        assert reader.waited <= 5
        assert gateway.get_metrics()["fleet"]["available"] is False
        assert raises_without_waiting(client)
        mend(valkey)
        await until(lambda: client.available)
    lines = [record.getMessage() for record in caplog.records if "fleet." in record.getMessage()]
    assert [line.split("'")[1] for line in lines] == ["fleet.lost", "fleet.returned"]
    assert f"127.0.0.1:{valkey.port}" in lines[0]
    assert "Traceback" not in caplog.text


async def test_chats_go_on_where_no_redis_ever_was(simulator, caplog):
    url = f"redis://fleet:{PASSWORD}@127.0.0.1:{free_port()}"
    caplog.set_level("INFO")
    async with AsyncGateway([simulator.openai.config()], redis_url=url) as gateway:
        await gateway.warmup()
        client = gateway.fleet.client
        assert client is not None
        await until(lambda: not client.available)
        assert (await gateway.chat("Hello")).text
        assert raises_without_waiting(client)
        assert PASSWORD not in repr(client)
    assert caplog.text.count("fleet.lost") == 1
    assert PASSWORD not in caplog.text


async def test_the_listener_notices_without_a_request_and_hears_again(valkey):
    events: list[Any] = []
    heard: list[bytes] = []
    returned: list[int] = []

    def prepare(client):
        client.subscribe("news", heard.append)
        client.subscribe("news", lambda _: 1 / 0)
        client.on_return(lambda: returned.append(1))

    async def hears(client, word):
        while word not in heard:
            await succeeds(client, PUBLISH, ["a"], [client.channel_name("news"), word])
            await asyncio.sleep(0.01)

    async with client_of(valkey.url, events, prepare) as client:
        await hears(client, b"first")
        valkey.kill()
        await until(lambda: not client.available)
        assert not returned
        valkey.start()
        await until(lambda: client.available)
        assert returned == [1]
        await hears(client, b"second")
    assert [type(event) for event in events] == [FleetLost, FleetReturned]


async def test_a_lookup_that_hangs_takes_one_thread(valkey, monkeypatch):
    """The event loop looks up vendors' names with its few threads."""
    answered, asked, real = threading.Event(), [], socket.getaddrinfo

    def hang(host, *arguments, **options):
        if host == "redis.internal":
            asked.append(threading.current_thread())
            answered.wait()
            host = "127.0.0.1"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    async with client_of(valkey.url.replace("127.0.0.1", "redis.internal")) as client:
        await lose(client)
        await asyncio.sleep(0.3)  # it probes meanwhile
        assert len(asked) == 1
        assert asked[0].daemon
        answered.set()
        await until(lambda: client.available)
        await succeeds(client)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("why", ["full", "replica"])
async def test_a_server_that_refuses_to_write_is_still_read(why, server):
    events: list[Any] = []
    async with client_of(server.url, events) as client:
        await succeeds(client, ECHO, ["a"], ["kept"])
        if why == "full":
            server("SET", "big", b"x" * 4_000_000)
            server("CONFIG", "SET", "maxmemory", "1mb")
        else:
            server("REPLICAOF", "127.0.0.1", "1")
        await lose(client)
        with pytest.raises(FleetUnavailableError, match="refuses to write"):
            await client.run(ECHO, ["a"], ["lost"])
        assert await succeeds(client, GET, ["a"]) == b"kept"
        server("CONFIG", "SET", "maxmemory", "0")
        server("REPLICAOF", "NO", "ONE")
        await until(lambda: client.available)
        assert await succeeds(client, ECHO, ["a"], ["new"]) == b"new"
    assert [type(event) for event in events] == [FleetLost, FleetReturned]
    assert events[0].writes_only


async def test_a_wrong_password_is_said_once_and_tried_again(valkey, simulator, caplog):
    server = valkey
    url = server.add_user("fleet", PASSWORD)
    server.add_user("fleet", "another-7", *RULES)
    caplog.set_level("INFO", "aigateway")
    async with AsyncGateway([simulator.openai.config()], redis_url=url) as gateway:
        await gateway.warmup()
        client = gateway.fleet.client
        assert client is not None
        await until(lambda: not client.available)
        assert (await gateway.chat("Hello")).text
        await asyncio.sleep(0.5)  # it tries again, silently
        server.add_user("fleet", PASSWORD, *RULES)
        await until(lambda: client.available)
        await succeeds(client)
    said = [r for r in caplog.records if "fleet." in r.getMessage()]
    assert [record.levelname for record in said] == ["ERROR", "INFO"]
    assert "event='fleet.refused'" in said[0].getMessage()
    assert "correct the user and the password in redis_url" in said[0].getMessage()
    assert PASSWORD not in caplog.text


async def test_a_script_that_is_refused_is_reported_once_and_harms_no_other(server):
    url = server.add_user("fleet", PASSWORD, *RULES, "-incr")
    events: list[Any] = []
    async with client_of(url, events) as client:
        assert await succeeds(client, ECHO, ["a"], ["1"]) == b"1"
        wrong = LuaScript("wrong", "return redis.call('SET', KEYS[1])")
        for script in (COUNT, wrong):
            with pytest.raises(FleetUnavailableError):
                await client.run(script, ["a", "b"], seconds=LONGEST)
            for _ in range(5):
                command = client.run(script, ["a", "b"])
                with pytest.raises(FleetUnavailableError, match=script.name):
                    command.send(None)  # at once
        assert await succeeds(client, ECHO, ["a"], ["2"]) == b"2"
        assert client.available
    assert [(type(event), event.what) for event in events] == [
        (FleetRefused, "count"),
        (FleetRefused, "wrong"),
    ]


async def test_what_is_sent_is_in_no_message(valkey):
    """A server quotes the arguments of a command that it does not know."""
    valkey("ACL", "SETUSER", "default", "-evalsha")
    events: list[Any] = []
    async with client_of(valkey.url, events) as client:
        with pytest.raises(FleetUnavailableError) as caught:
            await client.run(ECHO, ["a"], ["a secret answer"], seconds=LONGEST)
    assert events
    assert "secret" not in f"{events}{caught.value}"


# ── kinds of addresses ───────────────────────────────────────────────────────────────────────────


async def test_tls_and_a_certificate_that_is_not_trusted(valkey, tmp_path):
    valkey.add_user("fleet", PASSWORD, *RULES)
    with tls_in_front(tmp_path, valkey) as tls:
        url = tls.url.replace("://", f"://fleet:{PASSWORD}@")
        async with client_of(url) as client:
            assert await succeeds(client) >= 1
        events: list[Any] = []
        async with client_of(tls.untrusted_url, events) as client:
            await until(lambda: not client.available)
        assert "certificate verify failed" in events[0].reason


async def test_a_unix_socket(tmp_path):
    with Server(tmp_path, unix=True) as server:
        async with client_of(server.url) as client:
            assert await succeeds(client) >= 1
            assert str(server.directory) in repr(client)


@pytest.mark.slow
async def test_a_cluster_fails_over_and_dies(tmp_path):
    """#11961, #8878: CROSSSLOT and MOVED. #36804: a dead cluster hangs."""
    events: list[Any] = []
    heard: list[bytes] = []
    with Cluster(tmp_path, replicas=1) as cluster:
        prepare = lambda client: client.subscribe("news", heard.append)  # noqa: E731
        async with client_of(cluster.url, events, prepare) as client:
            assert await succeeds(client) >= 1  # two keys in one script
            while not heard:
                await succeeds(client, PUBLISH, ["a"], [client.channel_name("news"), "x"])
                await asyncio.sleep(0.01)
            cluster.fail_over(cluster.owner("aigateway:{default}:a"))
            await succeeds(client)  # at the new owner, which does not know the script
            for node in cluster.nodes:
                node.kill()
            await lose(client)
            assert raises_without_waiting(client)
    assert isinstance(events[-1], FleetLost)


@pytest.mark.slow
async def test_sentinels_fail_over_and_die(tmp_path):
    events: list[Any] = []
    with Sentinels(tmp_path) as sentinels:
        async with client_of(sentinels.url, events) as client:
            await succeeds(client)
            sentinels.fail_over()
            sentinels.replica("DEL", "aigateway:{default}:a")
            while not sentinels.replica("EXISTS", "aigateway:{default}:a"):
                await succeeds(client)
            for server in (sentinels.master, sentinels.replica, *sentinels.sentinels):
                server.kill()
            await lose(client)
            assert raises_without_waiting(client)
    assert isinstance(events[-1], FleetLost)


# ── configuration ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    [
        "http://fleet:{}@host",
        "redis://fleet:{}@host:notaport",
        "redis://fleet:{}@host:0",
        "redis://fleet:{}@",
        "redis://fleet:{}#@host",
        "redis://fleet:{}@a:1,b:2",
        "redis://fleet:{}@host/name",
        "redis+cluster://fleet:{}@host:1,:2",
        "redis+cluster://fleet:{}@host:1/5",
        "redis+sentinel://fleet:{}@host:1",
        "redis+other://fleet:{}@host:1/main",
        "unix://fleet:{}@",
        "fleet:{}@host",
    ],
)
def test_a_wrong_url_fails_at_the_start_and_is_not_quoted(url):
    with pytest.raises(ConfigurationError, match=r"redis_url.*must be a URL like") as caught:
        GatewaySettings(redis_url=url.format(PASSWORD))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    ["colour=red", "db=x", "ssl_ca_certs=/nowhere.pem", "ssl_cert_reqs=perhaps"],
)
def test_a_wrong_option_fails_at_the_start_and_quotes_no_password(query):
    url = f"rediss://fleet:{PASSWORD}@host?{query}"
    with pytest.raises(ConfigurationError, match="redis_url") as caught:
        AsyncGateway([], redis_url=url)
    assert PASSWORD not in str(caught.value)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r'pip install "aigateway\[redis\]"'):
        GatewaySettings(redis_url="redis://host")


async def test_the_metrics_say_nothing_of_a_fleet_that_is_not_there(valkey, simulator):
    for options, there in (({}, False), ({"redis_url": valkey.url}, True)):
        metrics = Prometheus()
        gateway = AsyncGateway([simulator.openai.config()], **options)
        metrics.watch(partial(lambda gateway: gateway, gateway))
        async with gateway:
            assert ("fleet" in gateway.get_metrics()) is there
            assert (b"aigateway_fleet_available 1.0" in metrics.render()[1]) is there


# ── life ─────────────────────────────────────────────────────────────────────────────────────────

LIVES = """
import asyncio, contextlib, gc, os, sys
from aigateway import AsyncGateway
from aigateway.fleet.client import FleetUnavailableError, LuaScript
from aigateway.testing import ScriptedVendor, scripted_configs

COUNT = LuaScript("count", "return redis.call('INCR', KEYS[1])")
gateway = AsyncGateway(scripted_configs("one"), vendor=ScriptedVendor(), redis_url=sys.argv[1])
client = gateway.fleet.client

async def use(close=False):
    await gateway.warmup()
    while True:
        with contextlib.suppress(FleetUnavailableError):
            await client.run(COUNT, ["a"])
            print("used", flush=True)
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # the listener is connected
    if close:
        await gateway.aclose()

def by_hand(work):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(work)
    loop.close()

asyncio.run(use())
asyncio.run(use())
by_hand(use())
by_hand(use())
members = {client.member}
gc.collect()
if os.fork() == 0:
    asyncio.run(use())
    print(client.member not in members, flush=True)
    os._exit(0)
os.wait()
asyncio.run(use(close=True))
assert client.member in members
del gateway, client
gc.collect()
"""


def test_one_gateway_on_several_loops_and_after_a_fork(valkey):
    """Connections end with their loop, however it ends, and a fork has its own."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIVES, valkey.url],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert ended.stdout.split() == ["used"] * 5 + ["True", "used"]


async def test_a_part_that_crashes_is_logged_and_harms_no_other(valkey, caplog):
    async def crash():
        raise ZeroDivisionError

    fleet = Fleet(GatewaySettings(redis_url=valkey.url), SYSTEM_CLOCK)
    fleet._work.append(crash)
    fleet.join(lambda _: None)
    await until(lambda: "A part of the fleet crashed" in caplog.text)
    assert fleet.client is not None
    await succeeds(fleet.client)
    await fleet.leave()


async def test_a_gateway_that_replaces_another_shares_its_connection(valkey, simulator):
    configs = [simulator.openai.config()]
    old = AsyncGateway(configs, redis_url=valkey.url)
    async with old:
        await succeeds(old.fleet.client)
        new = AsyncGateway(configs, redis_url=valkey.url, timeout=30)
        new.take_over(old)
        async with new:
            assert new.fleet is old.fleet
            await old.aclose()
            await succeeds(new.fleet.client)
    await until(lambda: not connected(valkey))
