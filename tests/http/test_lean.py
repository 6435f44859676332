"""How much of the package one uncached chat runs through: calls, and frames above the wire."""

import sys
import traceback

import pytest

from aigateway import AsyncGateway
from aigateway.testing import scripted_configs
from benchmarks.calls import ROOT, called, total


async def test_an_uncached_chat_takes_few_calls_and_files():
    calls = await called()
    assert 50 < total(calls) <= 110, sorted(calls)
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
    assert len(stack) <= 5, stack
