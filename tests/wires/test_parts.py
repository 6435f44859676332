"""What becomes of the parts of a prompt: they reach the vendor, or the provider is passed over."""

import json

import pytest

from aigateway.errors import FailureKind
from aigateway.messages import ChatRequest
from aigateway.wires.client import Failure
from tests.wires.calls import failure_of, in_turn
from tests.wires.shapes import PIXEL, TOOL

PIXELS = PIXEL.partition(",")[2]
PDF = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}
SOURCE = {"type": "text", "media_type": "text/plain", "data": "WORDS"}
PARTS = {
    "text": ({"type": "text", "text": "WORDS"}, "WORDS"),
    "image_url": ({"type": "image_url", "image_url": {"url": PIXEL}}, PIXELS),
    "input_audio": ({"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}, ""),
    "file": ({"type": "file", "file": PDF}, "JVBERi0="),
    "document": ({"type": "document", "source": SOURCE}, "WORDS"),
    "video_url": ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}}, ""),
    "refusal": ({"type": "refusal", "refusal": "WORDS"}, "WORDS"),
    "output_audio": ({"type": "output_audio", "transcript": "WORDS", "data": "UklG"}, "WORDS"),
    "output_text": ({"type": "output_text", "text": "WORDS"}, "WORDS"),
    "image": ({"type": "image", "source": {"type": "base64", "data": "iVBO"}}, ""),
    "tool_use": ({"type": "tool_use", "id": "1", "name": "f", "input": {}}, ""),
    "tool_result": ({"type": "tool_result", "tool_use_id": "1", "content": "WORDS"}, ""),
    "later": ({"type": "what_comes_later", "text": "WORDS"}, ""),
}
SPOKEN = {"text", "refusal", "output_audio", "output_text", "image_url", "input_audio"}
CARRIED = {
    ("anthropic", "system"): {"text"},
    ("anthropic", "user"): {"text", "image_url", "file", "document"},
    ("anthropic", "assistant"): SPOKEN,
    ("anthropic", "tool"): {"text", "image_url", "file"},
    ("gemini", "system"): {"text"},
    ("gemini", "user"): {"text", "image_url", "input_audio", "file"},
    ("gemini", "assistant"): SPOKEN,
    ("gemini", "tool"): {"text", "image_url", "file"},
}
INSTEAD = {("assistant", "image_url"): "[image]", ("assistant", "input_audio"): "[audio]"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def told(role, part):
    asked = {"role": "user", "content": "Hi"}
    message = {"role": role, "content": [{"type": "text", "text": "Hi"}, part]}
    if role == "tool":
        called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        return asked, called, {**message, "tool_call_id": "call_1"}
    return (asked, message, asked) if role == "assistant" else (message, asked)


@pytest.mark.parametrize(
    ("wire", "role", "dropping", "lane"),
    in_turn(CARRIED, ("hints", True)),
)
async def test_no_part_is_lost(simulator, connect, wire, role, dropping):
    vendor = getattr(simulator, wire)
    client = connect(vendor.config(), drop_unsupported_params=dropping)
    for kind, (part, words) in PARTS.items():
        request = ChatRequest(told(role, part), params={"tools": [TOOL]})
        vendor.clear()
        if kind in CARRIED[wire, role]:
            await client.chat(request)
            await (await client.stream(request)).aclose()
            for received in vendor.received:
                expected = INSTEAD.get((role, kind), words or "UklG")
                assert expected in json.dumps(received.body)
            assert len(vendor.received) == 2
        else:
            refused = Failure(FailureKind.UNSUPPORTED, param="messages")
            assert await failure_of(client, request) == refused
            assert not vendor.received


@pytest.mark.parametrize("wire", ["openai", "azure"])
async def test_the_openai_wire_has_them_as_they_came(simulator, connect, wire):
    vendor = getattr(simulator, wire)
    vendor.behave(None)
    client = connect(vendor.config())
    for kind in ("text", "image_url", "input_audio", "file", "video_url"):
        part, _ = PARTS[kind]
        await client.chat(ChatRequest(told("user", part)))
        assert part in vendor.received[-1].body["messages"][0]["content"]
