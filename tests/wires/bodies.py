"""A loopback vendor that gives one answer, whole and streamed, in the words of any wire."""

import json
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import Chunk
from aigateway.settings import LLMConfig, ProviderType
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.wires.calls import asking

OPENAI, AZURE, ANTHROPIC, GEMINI, COMPATIBLE = (
    ProviderType.OPENAI,
    ProviderType.AZURE,
    ProviderType.ANTHROPIC,
    ProviderType.GEMINI,
    ProviderType.OPENAI_COMPATIBLE,
)
OPENAI_WIRE = (OPENAI, AZURE, COMPATIBLE)
MODELS = {ANTHROPIC: "claude-haiku-4-5", GEMINI: "gemini-2.5-flash"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
GOOGLES_USAGE = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}


class Vendor:
    """A loopback server that gives one answer, whole or as events, as it is asked."""

    def __init__(self):
        app = web.Application()
        app.router.add_post("/{path:.*}", self._answer)
        self._server = TestServer(app)
        self.whole: dict[str, Any] = {}
        self.status = 200
        self.events: list[dict[str, Any]] = []
        self.received: Any = None  # the last body

    async def _answer(self, request):
        self.received = body = await request.json()
        if not (self.events and (body.get("stream") or "stream" in request.path)):
            return web.json_response(self.whole, status=self.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self.events:
            named = f"event: {event['type']}\n" if isinstance(event.get("type"), str) else ""
            await response.write(f"{named}data: {json.dumps(event)}\n\n".encode())
        return response

    async def __aenter__(self):
        await self._server.start_server()
        return self

    async def __aexit__(self, *_):
        await self._server.close()

    def config(self, kind, **more):
        base = str(self._server.make_url("/v1beta" if kind is GEMINI else "/v1")).rstrip("/")
        if kind in {ANTHROPIC, AZURE}:
            base = base.removesuffix("/v1")
        fields = {"model": MODELS.get(kind, "gpt-4o-mini")} | more
        return LLMConfig(kind, api_key="sk-simulated", api_base=base, **fields)


async def read_out(stream):
    """All chunks of a stream."""
    said: list[Chunk] = []
    while (chunks := await stream.read()) is not None:
        said += chunks
    return said


async def answers(vendor, kind, **more):
    """The answer of both lanes, whole and streamed, and what the chunks add up to."""
    for lane in (DirectClient, LiteLLMClient):
        client = lane(vendor.config(kind, **more), SYSTEM_CLOCK)
        try:
            yield await client.chat(asking())
            stream = await client.stream(asking())
            said = await read_out(stream)
            whole = stream.completion()
            await stream.aclose()
        finally:
            await client.aclose()
        choice = whole.choices[0]
        assert "".join(chunk.text for chunk in said) == choice.text
        assert "".join(chunk.reasoning or "" for chunk in said) == (choice.reasoning or "")
        assert tuple(url for chunk in said for url in chunk.images) == choice.images
        yield whole


def openai(vendor, message, *deltas, finish="stop", usage=None, **beside):
    """Let it answer on the OpenAI wire; `usage` and `beside` go into the answer and each event."""
    head = {"id": "1", "created": 7, "model": "m"}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    vendor.whole = {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage or USAGE,
    }
    vendor.whole |= beside
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices += [[{"index": 0, "delta": {}, "finish_reason": finish}], []]
    vendor.events = [{**head, "choices": each, **beside} for each in choices]
    vendor.events[-1]["usage"] = usage or USAGE


def gemini(vendor, parts, **more):
    """Let it answer in Gemini's form; `more` goes into the candidate."""
    content = {"role": "model", "parts": parts}
    candidate = {"index": 0, "content": content, "finishReason": "STOP", **more}
    vendor.whole = {
        "candidates": [candidate],
        "usageMetadata": GOOGLES_USAGE,
        "modelVersion": "m",
        "responseId": "1",
    }
    vendor.events = [vendor.whole]


def anthropic(vendor, *blocks):
    """Let it answer in Anthropic's form, with these blocks of text."""
    head = {"id": "1", "type": "message", "role": "assistant", "model": "m"}
    usage = {"input_tokens": 3, "output_tokens": 2}
    vendor.whole = {
        **head,
        "content": list(blocks),
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    start: dict[str, Any] = {**head, "content": [], "stop_reason": None, "usage": usage}
    vendor.events = [{"type": "message_start", "message": start}]
    for index, block in enumerate(blocks):
        empty = {**block, "text": "", "citations": []}
        deltas = [{"type": "citations_delta", "citation": c} for c in block.get("citations", ())]
        deltas.append({"type": "text_delta", "text": block["text"]})
        vendor.events += [
            {"type": "content_block_start", "index": index, "content_block": empty},
            *({"type": "content_block_delta", "index": index, "delta": d} for d in deltas),
            {"type": "content_block_stop", "index": index},
        ]
    vendor.events += [
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
