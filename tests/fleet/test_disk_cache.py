"""Answers in a file: in later runs, in several processes, bounded, and whatever happens to it."""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import sqlite3
import stat
from dataclasses import replace
from typing import Any

import pytest

from aigateway import AsyncGateway, ConfigurationError, LLMConfig
from aigateway.cache.memory import AnswerCache
from aigateway.cache.second_level import encoded
from aigateway.fleet import disk_cache
from aigateway.fleet.disk_cache import DiskCache
from aigateway.messages import Choice, Completion, NativeAnswer
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs
from tests.gateways import until
from tests.processes import PATIENCE

MB = 1_000_000


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A loaded machine is no failure of the disk. Where that is the subject, a test says so."""
    monkeypatch.setattr(disk_cache, "_READ_SECONDS", 60.0)
    monkeypatch.setattr(disk_cache, "_DONE_SECONDS", 60.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "for it" / "cache.db"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def disk(path, clock):
    disk = DiskCache(path, 10 * MB, clock)
    yield disk
    await disk.aclose()


async def put(disk, key, value=b"{}", seconds=100.0, stale=0.0):
    disk.write(key, value, seconds, stale)
    await disk.written()


async def value_of(disk, key):
    found = await disk.read(key)
    return None if found is None else found.value


def size(path):
    return sum(file.stat().st_size for file in path.parent.iterdir())


async def test_a_value_with_the_events_of_a_stream_is_read_without_them(disk, clock):
    """Earlier releases kept the events, which no hit needs."""
    native = NativeAnswer("messages", b"{}", (b"data: {}\n\n",))
    old = Completion("id", "m", (Choice("4", "stop"),), native=native)
    await put(disk, "k", encoded(old, "p", ""))
    cache = AnswerCache(clock=clock)
    cache.put_over(disk)
    found = await cache.fetch("k", lambda *_: True)
    assert found is not None
    assert found.completion == replace(old, native=replace(native, events=()))
    assert cache.lookup("k") == found


SCRIPT = """
import asyncio
from aigateway import AsyncGateway, LLMConfig, call_llm
from aigateway.fleet import disk_cache

disk_cache._READ_SECONDS = 60.0
config = LLMConfig.model_validate({config})
gateway = AsyncGateway([config])

async def ask(prompt):
    reply = await gateway.chat(prompt)
    print(reply.text, reply.cached)

for prompt in ("a", "b", "a"):  # a loop for each, and no aclose
    asyncio.run(ask(prompt))
print(call_llm(user_prompt="c"))
"""


async def test_a_second_run_of_a_script_asks_no_vendor(simulator, run_script, tmp_path):
    config = simulator.openai.config()
    fields = {"provider": "openai", "model": config.model, "api_base": config.api_base}
    text = SCRIPT.format(config=fields | {"api_key": config.api_key.get_secret_value()})
    env = {
        "AIGATEWAY_CACHE_URL": "sqlite:///kept/cache.db",
        "OPENAI_API_KEY": config.api_key.get_secret_value(),
        "OPENAI_BASE_URL": config.api_base,
        "OPENAI_MODEL": config.model,
    }
    printed = []
    for _ in range(2):
        (tmp_path / "code").unlink(missing_ok=True)
        (tmp_path / "out").unlink(missing_ok=True)
        running = run_script(tmp_path, text, env=env)
        await until((tmp_path / "code").exists)
        assert running.code == 0, running.log
        printed.append(running.read("out").split("\n"))
        assert simulator.openai.request_count == 3
    first, second = printed
    assert [line.split()[-1] for line in first[:3]] == ["False", "False", "True"]
    assert [line.split()[-1] for line in second[:3]] == ["True", "True", "True"]
    assert second[3] == first[3]
    assert stat.S_IMODE((tmp_path / "kept" / "cache.db").stat().st_mode) == 0o600


async def test_a_forked_process_uses_the_file_by_itself(run_script, tmp_path):
    text = """
import asyncio, os, warnings
from pathlib import Path
from aigateway.clock import SYSTEM_CLOCK
from aigateway.fleet import disk_cache
from aigateway.fleet.disk_cache import DiskCache

# From 3.12 on Python warns of a fork beside threads, which is what is tried here.
warnings.simplefilter("ignore", DeprecationWarning)
disk_cache._READ_SECONDS = disk_cache._DONE_SECONDS = 60.0

async def put_and_read(mine, other):
    disk.write(mine, mine.encode(), 100, 0)
    await disk.written()
    print(await disk.read(mine), await disk.read(other), flush=True)

disk = DiskCache(Path("cache.db"), 10**7, SYSTEM_CLOCK)
asyncio.run(put_and_read("parent", "none"))
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    asyncio.run(put_and_read("child", "parent"))
"""
    running = run_script(tmp_path, text)
    await until(lambda: running.read("out").count("\n") == 2 or running.log)
    assert re.findall(r"value=b'(\w+)'", running.read("out")) == ["parent", "child", "parent"]


async def test_processes_share_it_and_survive_a_kill(run_script, tmp_path, clock):
    text = """
import asyncio
from pathlib import Path
from aigateway.clock import SYSTEM_CLOCK
from aigateway.fleet import disk_cache
from aigateway.fleet.disk_cache import DiskCache

disk_cache._DONE_SECONDS = 60.0

async def main():
    disk = DiskCache(Path("../cache.db"), 10**7, SYSTEM_CLOCK)
    object.__setattr__(disk._file, "busy_seconds", 60.0)  # SQLite takes no turns
    for number in range(200):
        disk.write(f"{Path.cwd().name}-{number}", b"x" * 1000, 1e9, 0)
        await disk.written()
    print(disk.stats()["second_writes"], flush=True)
    while Path.cwd().name == "killed":
        disk.write("more", b"x" * 100_000, 1e9, 0)
        await disk.written()

asyncio.run(main())
"""
    names = ("one", "two", "killed")
    for name in names:
        (tmp_path / name).mkdir()
    running = [run_script(tmp_path / name, text) for name in names]
    for each in running:
        await until(lambda each=each: each.read("out") or each.log)
        assert each.read("out") == "200\n", each.log
    running[-1].signal(signal.SIGKILL)
    disk = DiskCache(tmp_path / "cache.db", 10 * MB, clock)
    for name in names:
        for number in range(200):
            found = await disk.read(f"{name}-{number}")
            assert found is not None
            assert found.value == b"x" * 1000
    await disk.aclose()
    assert not list(tmp_path.glob("*damaged*"))
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_an_answer_has_its_time(disk, clock):
    await put(disk, "k", b"v", seconds=10, stale=5)
    await put(disk, "forever", b"v", seconds=float("inf"))
    clock.tick(9)
    assert await disk.read("k") == (b"v", pytest.approx(1), False)
    clock.tick(4)
    assert await disk.read("k") is None
    assert await disk.read("k", stale=True) == (b"v", pytest.approx(-3), False)
    clock.tick(3)
    assert await disk.read("k", stale=True) is None
    clock.tick(1e9)
    assert await value_of(disk, "forever") == b"v"


async def test_it_is_bounded_and_keeps_what_is_used(disk, clock, path):
    for number in range(60):
        clock.tick(61)
        assert await disk.read("used") is not None or number == 0
        if number == 0:
            await put(disk, "used", b"u" * 500_000, seconds=1e9)
        await put(disk, f"k{number}", b"x" * 500_000, seconds=1e9)
        assert size(path) <= 16 * MB, "the bound, and a log of 4 MB that is emptied"
    kept = [n for n in range(60) if await disk.read(f"k{n}")]
    assert kept == list(range(60 - len(kept), 60))
    assert len(kept) >= 10
    assert disk.stats() == {"second_writes": 61, "second_dropped": 0}
    await disk.aclose()
    assert path.stat().st_size <= 10 * MB
    smaller = DiskCache(path, 5 * MB, clock)
    await put(smaller, "new", b"x" * 500_000)
    assert await smaller.read("new")
    await smaller.aclose()
    assert path.stat().st_size <= 5 * MB


async def test_expired_answers_go_first(disk, clock):
    await put(disk, "old and lasting", b"x" * 500_000, seconds=1e9)
    for number in range(30):
        clock.tick(10)
        await put(disk, f"k{number}", b"x" * 500_000, seconds=15)
    assert await disk.read("old and lasting")


async def test_clear_and_delete(disk):
    await put(disk, "a")
    await put(disk, "b")
    assert await disk.delete("a")
    assert not await disk.delete("a")
    assert await disk.read("b")
    await disk.clear()
    assert await disk.read("b") is None


@pytest.mark.parametrize("ends", [False, True])
async def test_a_busy_file_delays_a_clear_and_does_not_lose_it(disk, path, clock, caplog, ends):
    for key in "abc":
        await put(disk, key)
    object.__setattr__(disk._file, "busy_seconds", 0.05)  # as of the next connection
    disk._connections.pop("write")[0].close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not await disk.delete("a")
        assert [await value_of(disk, key) for key in "ab"] == [None, b"{}"]
        await disk.clear()
        await put(disk, "b", b"new")
        assert await value_of(disk, "b") is None
        other.execute("ROLLBACK")
    (line,) = [line for line in caplog.messages if "clear" in line]
    assert line.startswith("cache.clear_delayed")
    if not ends:
        await put(disk, "b", b"newer")
        assert [await value_of(disk, key) for key in "abc"] == [None, b"newer", None]
    await disk.aclose()
    later = DiskCache(path, 10 * MB, clock)
    assert await value_of(later, "b") == (None if ends else b"newer")
    assert [await value_of(later, key) for key in "ac"] == [None, None]
    await later.aclose()


async def test_a_clear_of_a_file_that_cannot_be_used_is_made_up_for(disk, path, clock):
    await put(disk, "a")
    await disk.aclose()
    path.rename(path.with_name("kept"))
    path.mkdir()
    await value_of(disk, "x")
    await disk.clear()
    path.rmdir()
    path.with_name("kept").rename(path)
    await clock.advance(60.0)
    await until_gone(disk, "a")
    await disk.aclose()
    assert await value_of(DiskCache(path, 10 * MB, clock), "a") is None


async def until_gone(disk, key):
    async with asyncio.timeout(PATIENCE):
        while await disk.read(key) is not None or disk._purges:  # noqa: ASYNC110 - a thread
            await asyncio.sleep(0.01)


async def test_no_surprise_of_the_file_fails_a_chat(path, monkeypatch, caplog):
    def surprise(*_):
        raise AttributeError("a secret")

    monkeypatch.setattr(DiskCache, "_find", surprise)
    monkeypatch.setattr(DiskCache, "_store", surprise)
    vendor = ScriptedVendor()
    url = f"sqlite:///{path}"
    async with AsyncGateway(scripted_configs("a"), vendor=vendor, cache_url=url) as gateway:
        for number in range(3):
            assert (await gateway.chat(f"{number}")).text == "ok"
    assert 1 <= len([line for line in caplog.messages if "cache.disk_lost" in line]) <= 2


def damage_header(path):
    path.write_bytes(b"no database" * 1000)


def damage_pages(path):
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def damage_length(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [damage_header, damage_pages, damage_length])
async def test_a_damaged_file_is_set_aside(path, clock, caplog, damage):
    disk, other = (DiskCache(path, 10 * MB, clock) for _ in range(2))
    for number in range(20):
        await put(disk, f"k{number}", b"x" * 10_000)
    await disk.aclose()
    damage(path)
    await asyncio.gather(*(each.read("k0") for each in (disk, other)))
    await put(other, "new", b"v")
    await put(disk, "newer", b"w")
    for each in (disk, other):
        assert await value_of(each, "new") == b"v"
        assert await value_of(each, "newer") == b"w"
        await each.aclose()
    (line,) = [r for r in caplog.records if r.getMessage().startswith("cache.file_damaged")]
    assert line.levelname == "ERROR"
    (aside,) = path.parent.glob("cache.damaged-*.db")
    assert str(aside) in line.getMessage()


async def test_a_file_that_is_removed_begins_anew(path, disk, clock):
    await put(disk, "old")
    await disk.read("old")
    for file in path.parent.iterdir():
        file.unlink()
    assert await disk.read("old") is None
    await put(disk, "new", b"v")
    other = DiskCache(path, 10 * MB, clock)
    assert await value_of(other, "new") == b"v"
    await other.aclose()


@pytest.mark.parametrize("kind", ["database", "text"])
async def test_a_file_of_something_else_stays_as_it_is(tmp_path, clock, kind):
    path = tmp_path / "users.db"
    if kind == "text":
        path.write_text("Größe, Name\n1, jade\n", encoding="utf-8")
    else:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE precious (stone TEXT)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"cache_url.*something else"):
        DiskCache(path, 10 * MB, clock)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "url", ["sqlite:////etc/hostname/cache.db", "sqlite:////", "sqlite:////tmp"]
)
def test_where_there_can_be_no_file_is_a_configuration_error(url):
    with pytest.raises(ConfigurationError, match="cache_url"):
        AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor(), cache_url=url)


async def test_a_file_of_a_later_release_is_left_alone(path, clock, caplog):
    disk = DiskCache(path, 10 * MB, clock)
    await put(disk, "k")
    await disk.aclose()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    for _ in range(3):
        assert await disk.read("k") is None
        await put(disk, "l")
        clock.tick(31)
    await disk.aclose()
    assert path.read_bytes() == before
    (line,) = [r.getMessage() for r in caplog.records if "cache." in r.getMessage()]
    assert line.startswith("cache.disk_lost")
    assert "newer release" in line
    assert disk.stats()["second_dropped"] == 3


async def test_a_disk_that_hangs_makes_no_request_wait_twice(path, monkeypatch):
    """Another process holds the lock under which the file is opened."""
    monkeypatch.setattr(disk_cache, "_READ_SECONDS", 0.5)
    vendor = ScriptedVendor()
    path.parent.mkdir(parents=True)
    lock = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        configs, url = scripted_configs("a"), f"sqlite:///{path}"
        async with AsyncGateway(configs, vendor=vendor, cache_url=url) as gateway:
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert (await gateway.chat("one")).text == "ok"
            assert loop.time() - began >= 0.5
            second: Any = gateway.cache.second
            assert not second.available
            for number in range(20):
                assert (await gateway.chat(f"more {number}")).text == "ok"
            assert gateway.cache.stats()["second_misses"] == 1, "only one was asked for"
            fcntl.flock(lock, fcntl.LOCK_UN)
            await until(lambda: second.available)
            await gateway.chat("two")
            await second.written()
            assert gateway.cache.stats()["second_writes"] >= 1
    finally:
        os.close(lock)


async def test_another_model_behind_a_name_is_asked_itself(path):
    vendor = ScriptedVendor()
    vendor.always("p", "answer")

    async def ask(model, prompt="q", **options):
        config = LLMConfig("openai", model, name="p", **{"api_key": "k"} | options)
        url = f"sqlite:///{path}"
        async with AsyncGateway([config], vendor=vendor, cache_url=url) as gateway:
            return (await gateway.chat(prompt)).cached

    assert not await ask("gpt-1")
    assert await ask("gpt-1", priority=5, api_key="other")
    assert not await ask("gpt-2")
    assert not await ask("gpt-2", extra={"temperature": 1.5})
    assert vendor.called() == 3


async def test_a_stale_answer_of_an_earlier_run_stands_in(path, clock):
    vendor = ScriptedVendor()
    settings: dict[str, Any] = {"stale_if_error_seconds": 60, "retry_rounds": 0}
    settings["cache_url"] = f"sqlite:///{path}"

    def gateway():
        return AsyncGateway(scripted_configs("a"), vendor=vendor, clock=clock, **settings)

    async with gateway() as first:
        await first.chat("q", cache_ttl=10)
    clock.tick(20)
    vendor.always("a", ConnectionError())
    async with gateway() as second:
        reply = await second.chat("q")
        assert (reply.text, reply.cached, reply.stale) == ("ok", True, True)
        async with second.stream("q") as stream:
            assert "".join([chunk.text async for chunk in stream]) == "ok"
        assert stream.response.stale


async def test_the_public_cache_reaches_the_file(path):
    configs, url = scripted_configs("a"), f"sqlite:///{path}"

    def gateway():
        return AsyncGateway(configs, vendor=ScriptedVendor(), cache_url=url)

    async with gateway() as one:
        await one.cache.set(None, "q", None, "by hand")
        await one.cache.set(None, "r", None, "for a tenant", partition="t")
    async with gateway() as two:
        assert (await two.cache.get(None, "q")).text == "by hand"
        assert (await two.chat("q")).text == "by hand"
        assert await two.cache.get(None, "r") is None
        assert (await two.cache.get(None, "r", partition="t")).text == "for a tenant"
        assert await two.cache.delete(None, "q")
        assert (await two.chat("q")).text == "ok"
        await two.cache.clear()
    async with gateway() as three:
        assert await three.cache.get(None, "r", partition="t") is None
