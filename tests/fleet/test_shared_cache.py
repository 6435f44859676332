"""Answers that processes share through a real Valkey, and calls that they share while in flight."""

import asyncio
import itertools
import signal
from typing import Any

import pytest

from aigateway import AsyncGateway, Origin
from aigateway.cache.second_level import MAX_VALUE_BYTES
from aigateway.fleet import client, shared_cache
from aigateway.messages import Choice, Completion, ToolCall, Usage
from aigateway.simulator import Fault
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.fleet.servers import Cluster, Server
from tests.gateways import until

RICH = Completion(
    "id-1",
    "model-1",
    (Choice("text", "tool_calls", (ToolCall("c", "f", '{"a": 1}'),), reasoning="why"),),
    Usage(1, 2, 3, 4, 5, 6),
    cost_usd=0.25,
    created=7,
)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A loaded machine is no failure of Redis. Where that is the subject, a test says so."""
    monkeypatch.setattr(client, "BOUND", 60.0)
    monkeypatch.setitem(client.FleetClient.run.__kwdefaults__, "seconds", 60.0)
    monkeypatch.setattr(client, "LONGEST", 60.0)
    monkeypatch.setattr(client, "CONNECT_SECONDS", 60.0)
    monkeypatch.setattr(client, "READ_SECONDS", 60.0)
    monkeypatch.setattr(shared_cache, "_DONE_SECONDS", 60.0)


@pytest.fixture
def bounded(monkeypatch, patient):
    monkeypatch.setattr(client, "BOUND", 0.05)
    monkeypatch.setitem(client.FleetClient.run.__kwdefaults__, "seconds", 0.05)
    monkeypatch.setattr(client, "LONGEST", 1.0)
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(client, "READ_SECONDS", 0.25)


@pytest.fixture
def by_messages_alone(monkeypatch):
    """Requests that wait hear of the end, or wait for ever."""
    monkeypatch.setattr(shared_cache, "_POLL_SECONDS", 3600.0)
    monkeypatch.setattr(shared_cache, "_PATIENCE_SECONDS", 3600.0)


@pytest.fixture
def valkey(tmp_path):
    """A server at a socket: where TCP is slow under load is not the subject."""
    with Server(tmp_path, unix=True) as server:
        yield server


@pytest.fixture
def vendor():
    return ScriptedVendor()


@pytest.fixture
async def member(valkey, vendor):
    """Make a gateway with a connection of its own, as in a process of its own."""
    made = []

    async def begin(url=valkey.url, **settings: Any):
        options = {"redis_url": url, "retry_rounds": 0, "timeout": 3600.0} | settings
        gateway = AsyncGateway(scripted_configs("a"), vendor=vendor, **options)
        made.append(await gateway.__aenter__())
        if url == valkey.url:  # messages reach it from now on
            ours: Any = gateway.fleet.client
            question = ("PUBSUB", "NUMSUB", ours.channel_name("cache"))
            while (await ours._connect().redis.execute_command(*question))[1] < len(made):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return gateway

    yield begin
    for gateway in made:
        await gateway.aclose()


async def written(gateway):
    await gateway.cache.second.written()


def waiters(gateway):
    return gateway.cache.second._waiting


def keys(server):
    return sorted(key.decode().partition("}:")[2] for key in server("KEYS", "*"))


async def until_it(ask, is_so):
    """Repeat a request until its answer is so."""
    async with asyncio.timeout(300):
        while not is_so(reply := await ask()):  # noqa: ASYNC110 - the server is another party
            await asyncio.sleep(0.02)
    return reply


async def hits(one, two, prompt):
    """Let an answer of one gateway be a hit of another, however loaded the machine is."""

    async def ask():
        await one.chat(prompt, cache="refresh")
        await written(one)
        two.cache._entries.clear()
        return await two.chat(prompt)

    return await until_it(ask, lambda reply: reply.cached)


# ── two levels ───────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_reaches_the_other_processes(member, vendor, valkey):
    vendor.script("a", RICH)
    one, two = await member(), await member()
    first = await one.chat("q", cache_ttl=100)
    await written(one)
    second = await two.chat("q")
    assert (second.completion, second.provider, second.cached) == (RICH, "a", True)
    assert first.completion == second.completion
    before = valkey.commands()
    third = await two.chat("q")
    assert third.cached
    assert valkey.commands() - before <= 4, "from memory: nothing but heartbeats"
    assert vendor.called() == 1
    assert two.get_metrics()["cost_usd"] == 0
    (answer,) = [key for key in keys(valkey) if "answer" in key]
    assert 90_000 < valkey("PTTL", f"aigateway:{{default}}:{answer}") <= 100_000
    assert two.cache.stats().items() >= {"second_hits": 1, "hits": 1, "second_writes": 0}.items()


async def test_the_time_that_is_left_comes_with_it(member, vendor, monkeypatch):
    one, two = await member(), await member()
    await one.chat("q", cache_ttl=0.3)
    await written(one)
    await two.chat("q")
    await asyncio.sleep(0.4)
    assert not (await two.chat("q")).cached


async def test_streams_read_and_fill_it(member, vendor):
    one, two = await member(), await member()
    async with one.stream("q") as stream:
        assert [chunk.text async for chunk in stream if chunk.text] == ["ok"]
    await written(one)
    async with two.stream("q") as stream:
        assert "".join([chunk.text async for chunk in stream]) == "ok"
    assert stream.response.cached
    assert vendor.called() == 1


async def test_tenants_never_meet(member, vendor):
    vendor.script("a", *"xyz")
    one, two = await member(), await member()
    texts: dict[str, list[tuple[str, bool]]] = {}
    for gateway, tenant in itertools.product((one, two), ("", "s", "t")):
        reply = await gateway.chat("q", origin=Origin(partition=tenant))
        await written(gateway)
        texts.setdefault(tenant, []).append((reply.text, reply.cached))
    assert texts == {
        t: [(text, False), (text, True)] for t, text in zip(("", "s", "t"), "xyz", strict=True)
    }


async def test_a_refresh_and_no_cache(member, vendor):
    vendor.script("a", "old", "new", "none")
    one, two = await member(), await member()
    await one.chat("q")
    await one.chat("q", cache="refresh")
    assert (await one.chat("q", cache=False)).text == "none"
    await written(one)
    assert (await two.chat("q")).text == "new"


@pytest.mark.parametrize("messages_are_lost", [False, True])
async def test_clear_reaches_every_process(member, vendor, valkey, messages_are_lost):
    one, two = await member(), await member()
    for gateway in (one, two):
        await gateway.chat("q")
        await written(gateway)
    if messages_are_lost:
        two.cache.second._hear = None
        two.fleet.client._handlers.clear()
    await one.cache.clear()
    assert (await one.chat("q")).cached is False
    await until(lambda: not len(two.cache))
    assert vendor.called() == 2


async def test_a_clear_holds_for_what_others_have_yet_to_write(member, valkey):
    one, two = await member(), await member()
    second = two.cache.second
    await second.read("k")  # so it knows the generation
    queued = second._queue.copy
    for key in "abc":
        second.write(key, b"old", 60.0, 0.0)
    held, second._queue = queued(), type(second._queue)()
    second._queued_bytes = 0
    assert len(held) == 3
    await one.cache.clear()
    await until(lambda: second._generation == one.cache.second._generation)
    second._queue.extend(held)
    await second.written()
    assert [await one.cache.second.read(key) for key in "abc"] == [None] * 3


async def test_a_right_of_another_kind_stays(member, valkey):
    one = await member()
    second = one.cache.second
    await second.fetch("k", patience=1.0, background=True)
    await second.fetch("k", patience=1.0, background=False)
    second.give_up("k", background=True)
    await second.written()
    (left,) = [key for key in keys(valkey) if "lease" in key]
    assert left == "cache:lease:k"


async def test_a_right_ends_where_it_was_given(member, vendor, tmp_path, bounded):
    """A reload moves the cache to another server while a request is in flight."""
    go = held(vendor)
    one = await member()
    with Server(tmp_path / "other", unix=True) as other:
        call = asyncio.create_task(one.chat("q"))
        await until(vendor.called)
        second = one.cache.second
        assert second._leases
        two = AsyncGateway(scripted_configs("a"), vendor=vendor, redis_url=other.url)
        two.take_over(one)
        async with two:
            go.set()
            await call
            assert not second._leases, "its heartbeat keeps the others waiting"


@pytest.mark.parametrize("option", ["decode_responses=True", "decode_responses=yes&encoding=latin"])
async def test_options_that_change_what_is_read_have_no_effect(member, vendor, valkey, option):
    one = await member()
    two = await member(f"{valkey.url}{'&' if '?' in valkey.url else '?'}{option}")
    assert await hits(one, two, "q")


async def test_no_surprise_of_the_library_fails_a_chat(member, vendor, monkeypatch, caplog):
    one = await member()

    async def surprise(*_: object) -> object:
        raise AttributeError("a secret of the answer")

    monkeypatch.setattr(one.fleet.client, "run", surprise)
    for number in range(3):
        assert (await one.chat(f"{number}")).text == "ok"
        assert (await one.chat(f"{number}")).cached
        await written(one)
    monkeypatch.undo()
    assert not [task for task in one.fleet._tasks if task.done()], "a part has ended"
    lines = [line for line in caplog.messages if "second level" in line]
    assert 1 <= len(lines) <= 3
    assert not [line for line in caplog.messages if "secret" in line]


async def test_what_is_set_and_deleted_by_hand_reaches_them(member, vendor):
    one, two = await member(), await member()
    await one.cache.set(None, "q", None, "first")
    assert (await two.cache.get(None, "q")).text == "first"
    await one.cache.set(None, "r", None, "theirs", partition="t")
    assert await two.cache.get(None, "r") is None
    assert await one.cache.delete(None, "q") is True
    await until(lambda: not len(two.cache))
    assert (await two.chat("q")).text == "ok"


async def test_a_clear_while_redis_is_away_is_made_up_for(member, vendor, valkey, bounded):
    one, two = await member(), await member()
    await hits(one, two, "q")
    asked = vendor.called()
    valkey.freeze()
    try:
        await until_it(lambda: one.chat("x"), lambda _: not one.fleet.client.readable)
        await one.cache.clear()
        assert not one.cache.second.available
    finally:
        valkey.thaw()
    await until(lambda: one.cache.second.available)
    await until(lambda: not len(two.cache))
    assert vendor.called() == asked + 1


DAMAGES = {
    "cut": lambda value: value[:-3],
    "later format": lambda value: value.replace(b"[1,", b"[2,"),
    "later field": lambda value: value.replace(b'"created"', b'"later_field"'),
    "other generation": lambda value: value.replace(b"lost:", b"older:"),
    "pickle": lambda value: value.partition(b"[1,")[0] + b"\x80\x04K\x01.",
    "no header": lambda value: b"[1]",
    "empty": lambda value: b"",
}


@pytest.mark.parametrize("damage", [*DAMAGES, "another type"])
async def test_a_damaged_value_is_a_miss_and_is_replaced(member, vendor, valkey, damage):
    one, two, three = await member(), await member(), await member()
    await one.chat("q")
    await written(one)
    (name,) = [f"aigateway:{{default}}:{key}" for key in keys(valkey) if "answer" in key]
    value = valkey("GET", name)
    valkey("DEL", name)
    if damage == "another type":
        valkey("LPUSH", name, "a list")
    else:
        valkey("SET", name, DAMAGES[damage](value), "PX", 100_000)
    assert (await two.chat("q")).text == "ok"
    await written(two)
    assert (await three.chat("q")).cached
    assert vendor.called() == 2


async def test_a_long_answer_stays_in_memory(member, vendor, valkey):
    vendor.script("a", "short", "x" * MAX_VALUE_BYTES, "y" * (MAX_VALUE_BYTES - 1000))
    one, two = await member(), await member()
    await one.chat("q")
    await one.chat("q", cache="refresh")
    await written(one)
    assert len((await one.chat("q")).text) == MAX_VALUE_BYTES
    assert not [key for key in keys(valkey) if "answer" in key], "not the older one, either"
    assert one.cache.stats()["second_dropped"] == 1
    await one.chat("r")
    await written(one)
    assert (await two.chat("r")).cached


# ── one call for all processes ───────────────────────────────────────────────────────────────────


def held(vendor):
    """Let the vendor's next answer wait; return what lets it go."""
    go = asyncio.Event()

    async def wait():
        await go.wait()
        return "held"

    vendor.script("a", wait)
    return go


async def test_identical_requests_in_flight_share_one_call(member, vendor, by_messages_alone):
    go = held(vendor)
    members = [await member() for _ in range(4)]
    costs: list[float | None] = []
    origin = Origin(on_cost=costs.append)
    asked = [
        asyncio.create_task(each.chat("q", origin=origin)) for each in members for _ in range(2)
    ]
    await until(lambda: sum(map(len, map(waiters, members))) == 3)
    go.set()
    replies = await asyncio.gather(*asked)
    assert vendor.called() == 1
    assert {reply.text for reply in replies} == {"held"}
    assert [reply.coalesced for reply in replies].count(False) == 1
    assert not any(reply.cached for reply in replies)
    assert costs == [0.001]
    assert sum(each.get_metrics()["cost_usd"] for each in members) == 0.001
    assert not any(map(waiters, members))


async def test_without_messages_they_look_by_themselves(member, vendor, monkeypatch):
    go = held(vendor)
    one, two = await member(), await member()
    two.fleet.client._handlers.clear()
    asked = [asyncio.create_task(one.chat("q"))]
    await until(vendor.called)
    asked.append(asyncio.create_task(two.chat("q")))
    await until(lambda: waiters(two))
    go.set()
    assert (await asked[1]).coalesced
    assert vendor.called() == 1
    await asked[0]


@pytest.mark.parametrize("end", ["failure", "cancelled", "not kept", "too long"])
async def test_the_others_go_on_when_there_is_no_answer(
    member, vendor, by_messages_alone, end, monkeypatch
):
    go = asyncio.Event()

    async def fail():
        await go.wait()
        if end == "failure":
            raise ConnectionError
        finish, text = ("stop", "x" * MAX_VALUE_BYTES) if end == "too long" else ("length", "")
        return Completion("i", "m", (Choice(text, finish),))

    vendor.script("a", fail)
    one, two = await member(), await member()
    first = asyncio.create_task(one.chat("q"))
    await until(vendor.called)
    second = asyncio.create_task(two.chat("q"))
    await until(lambda: waiters(two))
    if end == "cancelled":
        first.cancel()
    go.set()
    assert (await second).text == "ok"
    assert vendor.called() == 2
    await asyncio.wait([first])
    assert first.cancelled() or (first.exception() is None) == (end != "failure")


async def test_a_slow_call_is_not_waited_for_longer_than_half_the_time(member, vendor):
    held(vendor)
    one, two = await member(), await member()
    first = asyncio.create_task(one.chat("q"))
    await until(vendor.called)
    reply = await two.chat("q", timeout=1.0)
    assert (reply.text, reply.coalesced) == ("ok", False)
    first.cancel()
    await asyncio.wait([first])


async def test_a_batch_is_not_waited_for(member, vendor, by_messages_alone):
    go = held(vendor)
    one, two, three = await member(), await member(), await member()
    batch = asyncio.create_task(one.batch(["q"]))
    await until(vendor.called)
    other = asyncio.create_task(two.batch(["q"]))
    await until(lambda: waiters(two))
    assert (await three.chat("q")).text == "ok"
    assert vendor.called() == 2
    go.set()
    assert [item.response.text for result in (await batch, await other) for item in result.items]
    assert vendor.called() == 2


# ── a server in trouble ──────────────────────────────────────────────────────────────────────────


async def test_a_frozen_server_holds_up_nothing(member, vendor, valkey, bounded):
    one, two = await member(), await member()
    await hits(one, two, "before")
    go, asked = held(vendor), vendor.called()
    leading = asyncio.create_task(one.chat("in flight"))
    await until(lambda: vendor.called() > asked)
    waiting = asyncio.create_task(two.chat("in flight"))
    valkey.freeze()
    try:
        assert (await until_it(lambda: two.chat("x"), lambda _: not two.fleet.client.readable)).text
        await waiting  # it asks by itself
        for number in range(50):
            assert (await two.chat(f"y{number}")).text == "ok"
        assert (await two.chat("before")).cached, "from memory"
    finally:
        valkey.thaw()
    go.set()
    await leading
    await hits(one, two, "after")


async def test_a_server_restarted_empty_is_filled_again(member, vendor, valkey, bounded):
    one, two = await member(), await member()
    await hits(one, two, "q")
    valkey.restart()
    await until(lambda: one.fleet.client.available and two.fleet.client.available)
    asked = vendor.called()
    await asyncio.sleep(1.2)  # for both to learn that it has forgotten
    assert (await one.chat("q")).cached, "in memory it stays"
    assert (await two.chat("q")).cached
    assert vendor.called() == asked
    await hits(one, two, "r")


async def test_a_full_server_goes_on_answering(member, vendor, valkey, bounded):
    one, two = await member(), await member()
    await hits(one, two, "q")
    valkey("CONFIG", "SET", "maxmemory", "1mb")
    await until_it(lambda: one.chat("x", cache="refresh"), lambda _: not one.fleet.client.available)
    for number in range(20):
        assert (await one.chat(f"y{number}")).text == "ok"

    async def ask():
        two.cache._entries.clear()
        return await two.chat("q")

    assert (await until_it(ask, lambda reply: reply.cached)).text == "ok"
    valkey("CONFIG", "SET", "maxmemory", "0")
    await until(lambda: one.fleet.client.available)
    await hits(one, two, "z")


async def test_an_answer_whose_write_is_interrupted_is_written_at_the_end(member):
    """A script ends with its answer, at whatever step of the write that is."""
    other, *members = [await member() for _ in range(13)]
    for turns, each in enumerate(members):
        await each.chat(f"q{turns}")
        for _ in range(3 * turns):
            await asyncio.sleep(0)
        await each.aclose()
        assert (await other.chat(f"q{turns}")).cached


async def test_a_full_server_that_evicts_stores_on(member, vendor, valkey):
    one, two = await member(), await member()
    used = int(valkey("INFO", "memory")["used_memory"])
    valkey("CONFIG", "SET", "maxmemory", used + 3_000_000)
    valkey("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    vendor.always("a", "x" * 100_000)
    for number in range(60):
        await one.chat(f"q{number}")
    await written(one)
    assert one.cache.stats()["second_writes"] == 60
    assert (await two.chat("q59")).cached
    # The least recently used of a sample goes first, so not each of the first need be gone.
    assert not all([(await two.chat(f"q{number}")).cached for number in range(20)])
    assert "cache:generation" in keys(valkey)


@pytest.mark.slow
async def test_a_cluster(member, vendor, tmp_path):
    with Cluster(tmp_path) as cluster:
        go = held(vendor)
        one, two = await member(cluster.url), await member(cluster.url)
        for each in (one, two):  # connected from now on, however long that takes
            await each.cache.get(None, "nothing")
        asked = [asyncio.create_task(each.chat("q")) for each in (one, two)]
        await until(lambda: waiters(one) or waiters(two))
        go.set()
        assert [(await each).text for each in asked] == ["held"] * 2
        assert vendor.called() == 1
        await one.cache.clear()
        await until(lambda: not len(two.cache))
        assert not (await two.chat("q")).cached
        assert await two.cache.delete(None, "q")


# ── processes ────────────────────────────────────────────────────────────────────────────────────


SCRIPT = """
import asyncio, os
from aigateway import AsyncGateway, LLMConfig
from aigateway.fleet import client, shared_cache

# A loaded machine is no failure of Redis.
shared_cache._DONE_SECONDS = 60.0
shared_cache.LEASE_SECONDS = {lease}
client.BOUND = client.LONGEST = client.CONNECT_SECONDS = client.READ_SECONDS = 60.0
client.FleetClient.run.__kwdefaults__["seconds"] = 60.0

async def main():
    config = LLMConfig("openai", {model!r}, api_key={key!r}, api_base={base!r})
    async with AsyncGateway([config], redis_url={url!r}, timeout=3600) as gateway:
        await gateway.warmup()
        while not gateway.cache.second.available:  # no request waits for that
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        while not os.path.exists("../go"):
            await asyncio.sleep(0.01)
        reply = await gateway.chat("the same")
        print(reply.text, reply.coalesced or reply.cached, flush=True)  # cached: it began late
        await gateway.cache.second.written()

asyncio.run(main())
"""


@pytest.fixture
async def processes(run_script, simulator, valkey, tmp_path):
    """Start processes that ask the same once they may."""
    config = simulator.openai.config()
    given = {
        "model": config.model,
        "key": config.api_key.get_secret_value(),
        "base": config.api_base,
        "url": valkey.url,
    }

    async def begin(count, first=0, lease=600.0):
        running = []
        text = SCRIPT.format(**given, lease=lease)
        for number in range(first, first + count):
            (tmp_path / str(number)).mkdir()
            running.append(run_script(tmp_path / str(number), text))
        for each in running:
            await until(lambda each=each: each.read("out") or each.log)
            assert not each.log
        return running

    return begin


async def test_processes_that_ask_the_same_make_one_call(processes, simulator, tmp_path):
    simulator.openai.behave(Fault.slow(1.0))
    running = await processes(4)
    (tmp_path / "go").touch()
    for each in running:
        await until(lambda each=each: each.read("code"))
        assert not each.log
    said = [each.read("out").split()[-1] for each in running]
    assert sorted(said) == ["False", "True", "True", "True"]
    assert simulator.openai.request_count == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_dead_leader_is_replaced(processes, simulator, tmp_path, number):
    simulator.openai.behave(Fault.hang(), times=1)
    # Its lease ends soon. That of the next one must last, however seldom it gets to run.
    (leader,) = await processes(1, lease=shared_cache.LEASE_SECONDS)
    (tmp_path / "go").touch()
    await until(lambda: simulator.openai.request_count == 1)
    others = await processes(2, first=1)
    leader.signal(number)
    for each in others:
        await until(lambda each=each: each.read("code"))
        assert not each.log
    assert sorted(each.read("out").split()[-1] for each in others) == ["False", "True"]
    assert simulator.openai.request_count == 2
