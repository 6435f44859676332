"""How much of the package one uncached chat runs through: calls, and frames above the wire."""

import traceback
from types import CodeType

from aigateway import AsyncGateway
from aigateway.testing import scripted_configs
from benchmarks.calls import ROOT, called, total


async def test_an_uncached_chat_takes_few_calls():
    calls = await called()
    assert 50 < total(calls) <= 110, sorted(calls)


async def test_few_frames_of_the_package_stand_above_the_wire(clock, vendor, monkeypatch):
    frames: list[CodeType] = []

    def connect(config, clock):
        client = vendor(config, clock)
        chat = client.chat

        async def look(request):
            frames.extend(frame.f_code for frame, _ in traceback.walk_stack(None))
            return await chat(request)

        monkeypatch.setattr(client, "chat", look)
        return client

    async with AsyncGateway(scripted_configs("a"), vendor=connect, clock=clock) as gateway:
        await gateway.chat("hi")
    own = [code.co_qualname for code in frames if code.co_filename.startswith(str(ROOT))]
    assert 1 <= len(own) <= 5, own
