"""Requests to make in the tests of the wires."""

import traceback
from importlib.metadata import version

import pytest

from aigateway.messages import ChatRequest, EmbeddingRequest
from aigateway.wires.client import VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.litellm.lane import LiteLLMClient

LITELLM = tuple(map(int, version("litellm").split(".")[:2]))
"""The version that is installed: (1, 110)."""

WIRES = ("openai", "azure", "gemini", "anthropic")
KINDS = ("openai", "gemini", "anthropic")
"""One wire of each kind: Azure differs from OpenAI in address and key alone, which have tests."""
LANES = (LiteLLMClient, DirectClient)


def in_turn(values, turns=WIRES, lanes=LANES):
    """Cells of a table: each value in each lane, on another wire (or of another `turn`) each time.

    So all pairs of a value and a lane occur and, as soon as there are as many values as turns, all
    of a turn and a lane. Arguments of `parametrize`: the value's own, the turn, the lane.
    """
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            turns[(place + shift) % len(turns)],
            lane,
        )
        for place, value in enumerate(values)
        for shift, lane in enumerate(lanes)
    ]


def asking(*messages, **params):
    """A chat request; a text is what the user says."""
    messages = messages or ("What is 2+2?",)
    return ChatRequest(
        messages=tuple(
            {"role": "user", "content": m} if isinstance(m, str) else m for m in messages
        ),
        params=params,
    )


def ours(frame):
    return "wires/" in frame.f_code.co_filename and "tests" not in frame.f_code.co_filename


async def failure_of(client, request=None):
    """Make a call that fails, and see that nothing of litellm's hangs on to the error."""
    request = request or asking()
    embed = isinstance(request, EmbeddingRequest)
    with pytest.raises(VendorCallError) as caught:
        await (client.embed(request) if embed else client.chat(request))
    frames = (frame for frame, _ in traceback.walk_tb(caught.value.__traceback__))
    assert not any("sk-simulated" in repr(frame.f_locals) for frame in frames if ours(frame))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.failure
