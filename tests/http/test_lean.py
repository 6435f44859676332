"""How much one chat runs through: calls, and frames of the package above the wire."""

import asyncio
import contextlib
import sys
import traceback

import pytest

from aigateway import AsyncGateway
from aigateway.testing import scripted_configs
from benchmarks.calls import ROOT, called, total


async def test_an_uncached_chat_takes_few_calls_and_files():
    calls = await called()
    assert 50 < total(calls) <= 95, sorted(calls)
    assert len({file for file, _, _ in calls}) <= 35


@pytest.mark.parametrize("cache", [True, False])
async def test_few_frames_of_the_package_stand_above_the_wire(clock, vendor, monkeypatch, cache):
    stacks = []

    def connect(config, clock):
        client = vendor(config, clock)
        chat = client.chat

        async def look(request):
            frames = traceback.walk_stack(sys._getframe(1))
            codes = [frame.f_code for frame, _ in frames]
            stacks.append([c.co_qualname for c in codes if c.co_filename.startswith(str(ROOT))])
            return await chat(request)

        monkeypatch.setattr(client, "chat", look)
        return client

    async with AsyncGateway(scripted_configs("a"), vendor=connect, clock=clock) as gateway:
        await gateway.chat("hi", cache=cache)
    (stack,) = stacks
    assert "Failovers._attempt" in stack
    assert len(stack) <= (4 if cache else 5), stack


@contextlib.contextmanager
def counting(calls):
    """Count calls of Python functions, those of libraries and of the event loop included."""

    def note(frame, event, _):
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


async def test_a_chat_from_the_cache_takes_few_calls(vendor):
    chats = []
    async with AsyncGateway(scripted_configs("a"), vendor=vendor) as gateway:
        await gateway.chat("hi")
        for _ in range(3):  # a timer or the garbage collector may add to one of them
            calls: list[str] = []
            with counting(calls):
                assert (await gateway.chat("hi")).cached
            chats.append(calls)
    least = min(chats[1:], key=len)
    assert 15 < len(least) <= 24, least


async def test_a_chat_that_joins_another_takes_few_calls(vendor):
    async def together(number, prompt):
        """Return the number of calls of equal chats after the beginning of the first."""
        gate = asyncio.Event()
        calls: list[str] = []
        vendor.always("a", gate.wait)
        chats = [asyncio.create_task(gateway.chat(prompt)) for _ in range(number)]
        with counting(calls):
            for _ in range(9):  # until the vendor is asked
                await asyncio.sleep(0)
            gate.set()
            await asyncio.wait(chats)
        assert sum(chat.result().coalesced for chat in chats) == number - 1
        return len(calls)

    async with AsyncGateway(scripted_configs("a"), vendor=vendor) as gateway:
        await together(1, "first")
        alone = min([await together(2, f"two {turn}") for turn in range(3)])
        more = min([await together(22, f"many {turn}") for turn in range(3)])
    assert 15 < (more - alone) / 20 <= 58
    assert vendor.called() == 7
