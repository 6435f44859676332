"""A stream that ends after any of its bytes: never a whole answer before the vendor said so."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from aigateway import AsyncGateway, GatewayError, StreamInterruptedError
from tests.fuzz.laboratory import PATIENT, PROMPT, Laboratory, check_books
from tests.fuzz.raw_server import Reply
from tests.fuzz.wires import WIRES, sse
from tests.processes import PATIENCE

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
"""The body ends where the connection does, so that a cut looks like a proper end."""

ONE, TWO = "Æ", " 4"
_CHOICE = {"index": 0, "finish_reason": None}
_OPENAI = [
    {"id": "1", "model": "m", "choices": [_CHOICE | {"delta": {"content": ONE}}]},
    {"choices": [_CHOICE | {"delta": {"content": TWO}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
SHORT = {
    "openai": _OPENAI,
    "azure": _OPENAI,
    "gemini": [
        {"candidates": [{"content": {"parts": [{"text": ONE}]}}]},
        {"candidates": [{"content": {"parts": [{"text": TWO}]}, "finishReason": "STOP"}]},
    ],
    "anthropic": [
        {"type": "message_start", "message": {"id": "1", "model": "m"}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": ONE}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": TWO}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ],
}
"""By wire: as little as makes an answer."""

SAYS_THE_END = {"openai": b'"stop"}]}', "gemini": b'"STOP"}]}', "anthropic": b'"end_turn"}}'}
"""By wire: up to where an answer is whole."""


async def told(gateway: AsyncGateway) -> tuple[str, bool]:
    """What a caller hears, and whether that is said to be all."""
    came, held = "", ""
    try:
        async for chunk in gateway.stream(PROMPT, cache=False):
            came += chunk.text
    except StreamInterruptedError as broken:
        held = broken.text
    except GatewayError:
        pass
    else:
        return came, True
    assert held == came
    return came, False


@pytest.mark.parametrize("wire", WIRES)
def test_a_stream_cut_at_every_byte(laboratory: Laboratory, wire: str) -> None:
    events = [orjson.dumps(event) for event in SHORT[wire]]
    body = sse(wire, events)
    mark = SAYS_THE_END["openai" if wire == "azure" else wire]
    whole_at = body.index(mark) + len(mark)

    async def cut_at_every_byte() -> None:
        config = laboratory.config(wire, failure_threshold=10_000)
        async with AsyncGateway([config], **PATIENT) as gateway:
            await gateway.warmup()
            for cut in range(len(body) + 1):
                laboratory.server.reply = Reply((HEAD, body[:cut]))
                text, is_all = await told(gateway)
                assert (ONE + TWO).startswith(text)
                assert is_all is (cut >= whole_at), cut
                assert not is_all or text == ONE + TWO
            check_books(gateway)
        async with asyncio.timeout(PATIENCE):
            await laboratory.server.is_left()

    laboratory.runner.run(cut_at_every_byte())
