"""What processes tell each other, by files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.server.process.shared_directory import MOST_EXITED, Collected, SharedDirectory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def test_alone_it_needs_no_directory():
    alone = SharedDirectory()
    alone.report("metrics", lambda: b"one")
    heard: list[tuple[str, bytes]] = []
    alone.subscribe(lambda subject, order: heard.append((subject, order)))
    alone.order("a", b"open")
    assert alone.collect("metrics") == Collected((b"one",))
    assert alone.collect("other") == Collected(())
    assert heard == [("a", b"open")]
    alone.replay()
    assert heard == [("a", b"open")] * 2


def test_collecting_asks_this_one_now(directory):
    numbers = iter(range(9))
    one = SharedDirectory(directory, 0)
    one.report("n", lambda: str(next(numbers)).encode())
    assert one.collect("n").running == (b"0",)
    assert one.collect("n").running == (b"1",)


def test_the_last_word_of_one_that_is_gone_is_kept(directory):
    here, gone = SharedDirectory(directory, 0), SharedDirectory(directory, 1)
    here.publish("n", b"here")
    gone.publish("n", b"gone")
    assert here.collect("n") == Collected((b"here", b"gone"))
    SharedDirectory.archive_metrics(directory, 1, os.getpid())
    assert here.collect("n") == Collected((b"here",), (b"gone",))


def test_not_every_dead_process_is_remembered(directory):
    for place in range(MOST_EXITED + 5):
        SharedDirectory(directory, place).publish("n", b"x")
        SharedDirectory.archive_metrics(directory, place, os.getpid())
    assert len(SharedDirectory(directory, 999).collect("n").exited) == MOST_EXITED


def test_the_last_order_counts_also_for_who_comes_later(directory):
    giver = SharedDirectory(directory, 0)
    giver.order("a/b", b"open")
    giver.order("a/b", b"closed")
    giver.order("c", b"")
    heard: dict[str, bytes] = {}
    SharedDirectory(directory, 1).subscribe(heard.__setitem__)
    assert heard == {"a/b": b"closed", "c": b""}


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"])), st.binary())
def test_any_subject_and_any_order(tmp_path_factory, subject, content):
    directory = tmp_path_factory.mktemp("meeting")
    giver = SharedDirectory(directory, 0)
    if "\n" in subject:
        with pytest.raises(ValueError, match="one line"):
            giver.order(subject, content)
        return
    giver.order(subject, content)
    heard: dict[str, bytes] = {}
    SharedDirectory(directory, 1).subscribe(heard.__setitem__)
    assert heard == {subject: content}


def test_a_share_has_a_plain_name(directory):
    with pytest.raises(ValueError, match="one word"):
        SharedDirectory(directory, 0).publish("../x", b"")


async def test_attending_publishes_and_obeys(directory, clock):
    one, two = SharedDirectory(directory, 0, clock), SharedDirectory(directory, 1, clock)
    one.report("n", lambda: b"one")
    heard: dict[str, bytes] = {}
    two.subscribe(heard.__setitem__)
    tasks = [asyncio.create_task(each.run()) for each in (one, two)]
    await clock.advance(0)
    assert two.collect("n").running == (b"one",)
    one.order("a", b"1")
    assert heard == {}
    await clock.advance(1)
    assert heard == {"a": b"1"}
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_one_broken_handler_harms_no_other(directory, caplog):
    one = SharedDirectory(directory, 0)
    heard: dict[str, bytes] = {}

    def broken(subject: str, order: bytes) -> None:
        raise RuntimeError(subject)

    one.subscribe(broken)
    one.subscribe(heard.__setitem__)
    with caplog.at_level(logging.ERROR):
        one.order("a", b"1")
    assert heard == {"a": b"1"}
    assert "workers.order_failed" in caplog.text


async def test_a_disk_that_fails_is_told_once_and_ends_nothing(directory, clock, caplog):
    one = SharedDirectory(directory / "gone", 0, clock)
    one.report("n", lambda: b"one")
    attending = asyncio.create_task(one.run())
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            await clock.advance(1)
    assert caplog.text.count("workers.silent") == 1
    (directory / "gone").mkdir()
    await clock.advance(1)
    assert SharedDirectory(directory / "gone", 1).collect("n").running == (b"one",)
    await ended(attending)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_where_nothing_can_be_written_each_speaks_for_itself(directory):
    words = iter((b"1", b"2", b"3"))
    one, other = SharedDirectory(directory, 0), SharedDirectory(directory, 1)
    one.report("n", lambda: next(words))
    other.publish("n", b"other")
    assert one.collect("n").running == (b"1", b"other")
    break_down(directory)
    assert one.collect("n") == Collected((b"2",))
    directory.unlink()
    directory.mkdir()
    assert one.collect("n") == Collected((b"3",))


def break_down(directory: Path) -> None:
    """Leave something in its place where nothing can be written or read, not even by root."""
    shutil.rmtree(directory)
    directory.write_bytes(b"")


def test_an_order_that_cannot_be_passed_on_is_obeyed_here_and_the_log_says_so(directory, caplog):
    one = SharedDirectory(directory, 0)
    heard: list[tuple[str, bytes]] = []
    one.subscribe(lambda subject, order: heard.append((subject, order)))
    one.order("a", b"closed")
    break_down(directory)
    with caplog.at_level(logging.ERROR):
        one.order("a", b"open")
    assert heard == [("a", b"closed"), ("a", b"open")]
    (record,) = caplog.records
    assert record.getMessage().startswith("workers.order_not_passed_on")
    assert "(Not a directory)" in record.getMessage()


async def test_an_order_is_obeyed_once_until_somebody_gives_another(directory, clock):
    one, two = SharedDirectory(directory, 0, clock), SharedDirectory(directory, 1, clock)
    heard: list[bytes] = []
    one.subscribe(lambda _, order: heard.append(order))
    attending = asyncio.create_task(one.run())
    one.order("a", b"1")
    await clock.advance(1)
    assert heard == [b"1"]
    two.order("a", b"2")
    one.order("a", b"3")
    await clock.advance(1)
    assert heard == [b"1", b"3"]
    two.order("a", b"4")
    await clock.advance(1)
    assert heard == [b"1", b"3", b"4"]
    await ended(attending)


async def test_what_one_cannot_say_keeps_it_from_nothing_else(directory, clock, caplog):
    one = SharedDirectory(directory, 0, clock)

    def broken() -> bytes:
        raise RuntimeError("sk-secret")

    one.report("broken", broken)
    one.report("n", lambda: b"one")
    heard: dict[str, bytes] = {}
    one.subscribe(heard.__setitem__)
    (directory / "order.a").write_bytes(b"\xff\n")  # not written by one of them
    attending = asyncio.create_task(one.run())
    with caplog.at_level(logging.ERROR):
        await clock.advance(0)
        SharedDirectory(directory, 1).order("b", b"1")
        for _ in range(5):
            await clock.advance(1)
    assert SharedDirectory(directory, 1).collect("n").running == (b"one",)
    assert heard == {"b": b"1"}
    assert "workers.failed" in caplog.text
    assert "RuntimeError" in caplog.text
    assert caplog.text.count("workers.failed") <= 2, "each kind once, not twice a second"
    assert "sk-secret" not in caplog.text
    await ended(attending)


def test_a_last_word_that_cannot_be_kept_is_told(directory, caplog):
    SharedDirectory(directory, 1).publish("n", b"gone")
    (directory / f"exited.n.1-{os.getpid()}").mkdir()  # something is in the way
    with caplog.at_level(logging.ERROR):
        SharedDirectory.archive_metrics(directory, 1, os.getpid())
    assert "workers.not_archived" in caplog.text
    assert f"pid {os.getpid()}" in caplog.text
