"""The embedded store: it follows the rule, outlives its processes, and survives its disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError
from aigateway.events import AttemptEnded
from aigateway.fleet import store as store_module
from aigateway.fleet.ledger import DAY, Claim, FleetUnavailableError, Limit, MemoryLedger, Spent
from aigateway.fleet.store import (
    STATE_FILE,
    SqliteLedger,
    Store,
    UsageRecorder,
    begin_store,
    read_learned,
    read_usage,
    write_learned,
)
from aigateway.messages import Usage
from aigateway.testing import FakeClock

MINUTE, TODAY = Limit("rpm:team", 100), Limit("budget:team", 1_000, None)


@contextlib.asynccontextmanager
async def opened(path, clock=None):
    store = Store(path, clock or FakeClock())
    try:
        yield store
    finally:
        await store.aclose()


async def spend(store, limit, units, member="a", serial=1):
    """Book units; return what all have used."""
    claim = Claim(limit, [Spent(units)])
    return (await SqliteLedger(store).exchange(member, [claim], serial)).grants[0].used


def shift(clock, seconds):
    clock.set_wall(clock.wall() + seconds)


def attempt(model="m", cost=0.5, tenant="team"):
    return AttemptEnded(
        "r", 1, "chat", False, f"p/{model}", "openai", model, None, None, False, 0.1, None,
        Usage(3, 4, 7), cost, tenant=tenant,
    )  # fmt: skip


def integrity(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA integrity_check").fetchone()[0]


# ── the ledger ───────────────────────────────────────────────────────────────────────────────────

EXCHANGE = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from([MINUTE, TODAY]),
    st.lists(st.tuples(st.integers(-5, 60), st.sampled_from([0.0, 0.3, 20.0])), max_size=2),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.1, 1.0, 3.0, 61.0, DAY, -0.4, -30.0, -DAY]),  # the wall clock moves
    st.booleans(),  # the exchange is repeated
)


@settings(max_examples=20)
@given(steps=st.lists(EXCHANGE, max_size=20))
def test_it_answers_as_the_rule_does(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("store") / STATE_FILE

    async def compare():
        clock = FakeClock()
        rule, serials = MemoryLedger(clock), dict.fromkeys("abc", 0)
        async with opened(path, clock) as one, opened(path, clock) as other:
            epochs = set()
            for number, (member, limit, spent, hold, seconds, again) in enumerate(steps):
                shift(clock, seconds)
                claim = Claim(limit, [Spent(*each) for each in spent], hold)
                serials[member] += 1
                for _ in range(1 + again):
                    expected = await rule.exchange(member, [claim], serials[member])
                    ledger = SqliteLedger((one, other)[number % 2])
                    found = await ledger.exchange(member, [claim], serials[member])
                    assert (found.grants, found.members, found.rank) == (
                        expected.grants,
                        expected.members,
                        expected.rank,
                    )
                    epochs.add(found.epoch)
            assert len(epochs) < 2

    begin_store(path)
    asyncio.run(compare())
    path.unlink()


async def test_a_clock_that_is_set_back_gives_nothing_twice(tmp_path, clock):
    begin_store(tmp_path / STATE_FILE)
    midnight = (int(clock.wall() // DAY) + 1) * DAY
    async with opened(tmp_path / STATE_FILE, clock) as store:
        clock.set_wall(midnight - 1)
        assert await spend(store, TODAY, 700) == 700
        shift(clock, 2)
        assert await spend(store, TODAY, 50, serial=2) == 50  # a new day
        shift(clock, -2)
        assert await spend(store, TODAY, 1, serial=3) == 751  # the day before, and the next
        shift(clock, 2)
        assert await spend(store, TODAY, 1, serial=4) == 51
        shift(clock, -3600)
        assert await spend(store, MINUTE, 60, serial=5) == 60
        shift(clock, 3600)
        assert await spend(store, MINUTE, 1, serial=6) == 1
        shift(clock, -1800)  # what lies ahead leaves the window a minute later, not half an hour
        assert await spend(store, MINUTE, 0, serial=7) == 1
        shift(clock, 61)
        assert await spend(store, MINUTE, 0, serial=8) == 0


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


async def test_it_outlives_the_process_and_only_its_owner_reads_it(tmp_path, clock):
    path = tmp_path / "new" / STATE_FILE
    assert begin_store(path, clock) == {}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with opened(path, clock) as store:
        await spend(store, TODAY, 600)
        await store.run(lambda db: write_learned({"p": b"{}", "q": b"x"}, {"l": "1"}, 5.0, db))
        await store.run(lambda db: write_learned({"q": None}, {}, 5.0, db))
        assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    assert begin_store(path, clock) == {"p": b"{}"}
    async with opened(path, clock) as store:
        assert await spend(store, TODAY, 1, serial=2) == 601
        await clock.advance(DAY)
        assert await spend(store, TODAY, 1, serial=3) == 1


def damaged_in(where, size=4096):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[where : where + size] = random.Random(1).randbytes(size)
        path.write_bytes(content)

    return damage


def sql(script):
    def damage(path):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(script)

    return damage


def of_another_program(path):
    path.unlink()
    sql("CREATE TABLE t (x)")(path)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(b"SQLite"),
    "text": lambda path: path.write_text("hello" * 5000),
    "noise": lambda path: path.write_bytes(random.Random(2).randbytes(20_000)),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "end cut off": lambda path: os.truncate(path, path.stat().st_size - 100),
    "head": damaged_in(0, 100),
    "first page": damaged_in(100, 2000),
    "some page": damaged_in(4096),
    "a table lost": sql("DROP TABLE members"),
    "newer": sql("PRAGMA user_version = 99"),
    "another program's": of_another_program,
}


@pytest.mark.parametrize("kind", DAMAGES)
async def test_a_damaged_file_is_set_aside(tmp_path, clock, caplog, kind):
    path = tmp_path / STATE_FILE
    begin_store(path, clock)
    async with opened(path, clock) as store:
        await spend(store, TODAY, 600)
    DAMAGES[kind](path)
    before = path.read_bytes()
    assert begin_store(path, clock) == {}
    (line,) = (r for r in caplog.records if r.levelno >= logging.ERROR)
    (aside,) = tmp_path.glob("aigateway-state.damaged-*.sqlite")
    assert str(path) in line.getMessage()
    assert str(aside) in line.getMessage()
    assert aside.read_bytes() == before
    async with opened(path, clock) as store:
        assert await spend(store, TODAY, 5) == 5
    assert integrity(path) == "ok"


async def test_a_log_of_writes_full_of_noise_harms_nothing(tmp_path, clock):
    path = tmp_path / STATE_FILE
    begin_store(path, clock)
    async with opened(path, clock) as store:
        await spend(store, TODAY, 600)
        copy = tmp_path / "killed" / STATE_FILE  # as a killed process leaves it
        copy.parent.mkdir()
        shutil.copy(path, copy)
        wal = path.with_name(f"{STATE_FILE}-wal").read_bytes()
    for start in (0, 32, len(wal) // 2):
        noise = random.Random(start).randbytes(len(wal) - start)
        copy.with_name(f"{STATE_FILE}-wal").write_bytes(wal[:start] + noise)
        assert begin_store(copy, clock) == {}
        async with opened(copy, clock) as store:
            await spend(store, TODAY, 5)
        assert integrity(copy) == "ok"


async def test_damage_while_it_runs_is_set_aside_once(tmp_path, clock, caplog):
    path = tmp_path / STATE_FILE
    begin_store(path, clock)
    async with opened(path, clock) as one, opened(path, clock) as other:
        first = await SqliteLedger(one).exchange("a", [Claim(TODAY, [Spent(600)])], 1)
        await SqliteLedger(other).exchange("b", [], 1)
        await one.run(lambda db: db.execute("UPDATE accounts SET account = 'x'"))
        with pytest.raises(FleetUnavailableError):
            await spend(other, TODAY, 5, "b", 2)
        again = await SqliteLedger(one).exchange("a", [Claim(TODAY, [Spent(7)])], 2)
        assert again.epoch != first.epoch  # which says: report again what you have spent
        assert await spend(other, TODAY, 5, "b", 2) == 12
        path.unlink()  # by hand
        assert await spend(one, TODAY, 5, "a", 3) == 5
        assert await spend(other, TODAY, 5, "b", 3) == 10
    assert sum("is damaged" in r.getMessage() for r in caplog.records) == 1
    assert len(list(tmp_path.glob("*.damaged-*.sqlite"))) == 1


async def test_at_most_five_damaged_files_are_kept(tmp_path):
    for _ in range(8):
        begin_store(tmp_path / STATE_FILE)
        (tmp_path / STATE_FILE).write_bytes(b"noise")
    assert len(list(tmp_path.glob("*.damaged-*"))) == 5


@pytest.mark.parametrize("where", ["/dev/null", "/dev/null/state", "/proc/nowhere", "taken"])
def test_where_nothing_can_be_written_one_line_says_so(tmp_path, caplog, where):
    (tmp_path / "taken" / STATE_FILE).mkdir(parents=True)  # a directory of that name
    assert begin_store(tmp_path / where / STATE_FILE) is None
    (line,) = caplog.records
    assert (line.levelno, "state.not_kept" in line.getMessage()) == (logging.WARNING, True)


async def test_what_cannot_be_written_is_written_later(tmp_path, clock, caplog):
    path = tmp_path / STATE_FILE
    begin_store(path, clock)
    async with opened(path, clock) as store:
        recorder = UsageRecorder(store)
        recorder.on_event(attempt())
        path.rename(tmp_path / "elsewhere")
        path.mkdir()  # the disk is gone, so to say
        for _ in range(3):
            await recorder.flush()
            recorder.on_event(attempt(tenant="other"))
            with pytest.raises(FleetUnavailableError):
                await spend(store, TODAY, 5)
        path.rmdir()
        (tmp_path / "elsewhere").rename(path)
        await recorder.flush()
        assert await spend(store, TODAY, 5) == 5
    counts = {row.key: row.usage.cost_usd for row in read_usage(path, 0)}
    assert counts == {"team": 0.5, "other": 1.5}
    lines = [r.getMessage().partition(":")[0] for r in caplog.records]
    assert lines == ["state.not_written", "state.kept_again"]


async def test_a_writer_that_hangs_holds_up_no_exchange_for_long(
    tmp_path, clock, monkeypatch, caplog
):
    monkeypatch.setattr(store_module, "_EXCHANGE_SECONDS", 0.05)
    monkeypatch.setattr(store_module, "_BUSY_SECONDS", 0.06)
    path = tmp_path / STATE_FILE
    begin_store(path, clock)
    async with opened(path, SYSTEM_CLOCK) as store:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            exchanges = (spend(store, TODAY, 5, f"m{n}") for n in range(200))
            found = await asyncio.gather(*exchanges, return_exceptions=True)
            assert {type(each) for each in found} == {FleetUnavailableError}
            assert sum("does not answer" in str(each) for each in found) > 100  # at once
            while "state.not_written" not in caplog.text:  # it is locked for long
                with contextlib.suppress(FleetUnavailableError):
                    await store.run(lambda _: None)
        monkeypatch.undo()
        used = None
        while used is None:  # until those that were given up are out of the way
            with contextlib.suppress(FleetUnavailableError):
                used = await spend(store, TODAY, 5)
        assert used in {5, 10}  # the first of them may have been under way
    assert caplog.text.count("state.not_written") == caplog.text.count("state.kept_again") == 1


async def test_an_older_file_is_brought_up_to_date(tmp_path, clock, caplog, monkeypatch):
    path = tmp_path / STATE_FILE
    begin_store(path, clock)
    async with opened(path, clock) as store:
        await spend(store, TODAY, 600)
    with monkeypatch.context() as newer:
        steps = (*store_module._MIGRATIONS, "ALTER TABLE members ADD COLUMN host TEXT")
        newer.setattr(store_module, "_MIGRATIONS", steps)
        assert begin_store(path, clock) == {}
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT host FROM members").fetchall() == [(None,)]
            assert "600" in db.execute("SELECT account FROM accounts").fetchone()[0]
    assert not caplog.records
    begin_store(path, clock)  # the older release again
    assert "a newer release has written it" in caplog.text


# ── usage ────────────────────────────────────────────────────────────────────────────────────────


async def test_usage_is_kept_for_a_bounded_time(tmp_path):
    path = tmp_path / STATE_FILE
    clock = FakeClock()
    begin_store(path, clock)
    async with opened(path, clock) as store:
        recorder = UsageRecorder(store)
        for _ in range(5):
            for model in ("m", "n"):
                recorder.on_event(attempt(model))
            await recorder.flush()
            await clock.advance(150 * DAY)
        recorder.on_event(attempt())
        await recorder.flush()
        await store.run(lambda db: write_learned({}, {"old": "1"}, clock.wall() - 31 * DAY, db))
        await clock.advance(DAY)
        assert await store.run(read_learned) == {}
    rows = read_usage(path, 0)
    assert [(row.model, row.usage.input_tokens) for row in rows] == [
        ("m", 3), ("n", 3), ("m", 3), ("n", 3), ("m", 3),
    ]  # fmt: skip
    assert read_usage(path, rows[-1].day) == rows[-1:]


async def test_an_event_that_cannot_be_counted_loses_itself_only(tmp_path, clock):
    path = tmp_path / STATE_FILE
    begin_store(path, clock)
    async with opened(path, clock) as store:
        recorder = UsageRecorder(store)
        for event in (attempt(), object.__new__(AttemptEnded), attempt(), attempt()):
            recorder.on_event(event)
        with pytest.raises(AttributeError):
            await recorder.flush()
        await recorder.flush()
    assert [row.usage.input_tokens for row in read_usage(path, 0)] == [9]


def test_usage_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(ConfigurationError, match="aigateway serve"):
        read_usage(tmp_path / STATE_FILE, 0)
    (tmp_path / STATE_FILE).write_text("noise" * 1000)
    with pytest.raises(ConfigurationError, match="not a database"):
        read_usage(tmp_path / STATE_FILE, 0)
    assert Path(tmp_path / STATE_FILE).read_text() == "noise" * 1000
