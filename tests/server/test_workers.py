"""What processes tell each other, by files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.server.workers import MOST_DEPARTED, Shares, Workers


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def test_alone_it_needs_no_directory():
    alone = Workers()
    alone.share("metrics", lambda: b"one")
    heard: list[tuple[str, bytes]] = []
    alone.obey(lambda subject, order: heard.append((subject, order)))
    alone.order("a", b"open")
    assert alone.collect("metrics") == Shares((b"one",))
    assert alone.collect("other") == Shares(())
    assert heard == [("a", b"open")]
    alone.replay()
    assert heard == [("a", b"open")] * 2


def test_collecting_asks_this_one_now(directory):
    numbers = iter(range(9))
    one = Workers(directory, 0)
    one.share("n", lambda: str(next(numbers)).encode())
    assert one.collect("n").all == (b"0",)
    assert one.collect("n").all == (b"1",)


def test_the_last_word_of_one_that_is_gone_is_kept(directory):
    here, gone = Workers(directory, 0), Workers(directory, 1)
    here.publish("n", b"here")
    gone.publish("n", b"gone")
    assert here.collect("n") == Shares((b"here", b"gone"))
    Workers.bury(directory, 1, os.getpid())
    assert here.collect("n") == Shares((b"here",), (b"gone",))


def test_not_every_dead_process_is_remembered(directory):
    for place in range(MOST_DEPARTED + 5):
        Workers(directory, place).publish("n", b"x")
        Workers.bury(directory, place, os.getpid())
    assert len(Workers(directory, 999).collect("n").departed) == MOST_DEPARTED


def test_the_last_order_counts_also_for_who_comes_later(directory):
    giver = Workers(directory, 0)
    giver.order("a/b", b"open")
    giver.order("a/b", b"closed")
    giver.order("c", b"")
    heard: dict[str, bytes] = {}
    Workers(directory, 1).obey(heard.__setitem__)
    assert heard == {"a/b": b"closed", "c": b""}


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"])), st.binary())
def test_any_subject_and_any_order(tmp_path_factory, subject, content):
    directory = tmp_path_factory.mktemp("meeting")
    giver = Workers(directory, 0)
    if "\n" in subject:
        with pytest.raises(ValueError, match="one line"):
            giver.order(subject, content)
        return
    giver.order(subject, content)
    heard: dict[str, bytes] = {}
    Workers(directory, 1).obey(heard.__setitem__)
    assert heard == {subject: content}


def test_a_share_has_a_plain_name(directory):
    with pytest.raises(ValueError, match="one word"):
        Workers(directory, 0).publish("../x", b"")


async def test_attending_publishes_and_obeys(directory, clock):
    one, two = Workers(directory, 0, clock), Workers(directory, 1, clock)
    one.share("n", lambda: b"one")
    heard: dict[str, bytes] = {}
    two.obey(heard.__setitem__)
    tasks = [asyncio.create_task(each.attend()) for each in (one, two)]
    await clock.advance(0)
    assert two.collect("n").all == (b"one",)
    one.order("a", b"1")
    assert heard == {}
    await clock.advance(1)
    assert heard == {"a": b"1"}
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_one_broken_handler_harms_no_other(directory, caplog):
    one = Workers(directory, 0)
    heard: dict[str, bytes] = {}

    def broken(subject: str, order: bytes) -> None:
        raise RuntimeError(subject)

    one.obey(broken)
    one.obey(heard.__setitem__)
    with caplog.at_level(logging.ERROR):
        one.order("a", b"1")
    assert heard == {"a": b"1"}
    assert "workers.order_failed" in caplog.text


async def test_a_disk_that_fails_is_told_once_and_ends_nothing(directory, clock, caplog):
    one = Workers(directory / "gone", 0, clock)
    one.share("n", lambda: b"one")
    attending = asyncio.create_task(one.attend())
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            await clock.advance(1)
    assert caplog.text.count("workers.silent") == 1
    (directory / "gone").mkdir()
    await clock.advance(1)
    assert Workers(directory / "gone", 1).collect("n").all == (b"one",)
    attending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attending
