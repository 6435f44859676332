"""One adapter per library for streams: a context that gives `read(prompt) -> Streamed`.

Each reads its own stream in its own loop, so that nothing but the library stands between the wire
and the text. All ask for usage, as aigateway does by itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import aiohttp
import litellm
import orjson
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI

from aigateway import AsyncGateway, LLMConfig
from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import ChatRequest
from aigateway.wires.direct_lane import DirectClient
from benchmarks.clients import FLOOR, KEY, MANY, MODEL, MODELS, OURS, messages
from benchmarks.listeners import litellm_put_back, nobody_listens


@dataclass(frozen=True)
class Streamed:
    """What came over one stream.

    Attributes:
        first_at: When the first content came, on the scale of `time.perf_counter`.
        text: All of it.
    """

    first_at: float
    text: str


Read = Callable[[str], Awaitable[Streamed]]
Client = AbstractAsyncContextManager[Read]
LANE = "aigateway's bare lane"
BLOCKS = "raw aiohttp by blocks + orjson"
_now = time.perf_counter


# ── raw aiohttp ──────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def raw_aiohttp(root: str, wire: str = "openai") -> AsyncIterator[Read]:
    """The floor: a pooled session, line by line, JSON to a dict, the text out of it."""
    path, headers, body, text_in = _RAW[wire]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def read(prompt: str) -> Streamed:
            first, texts = 0.0, []
            payload = json.dumps(body(prompt)).encode()
            async with session.post(root + path, data=payload) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                        text = text_in(json.loads(line[6:]))
                        if text:
                            first = first or _now()
                            texts.append(text)
            return Streamed(first, "".join(texts))

        yield read


@contextlib.asynccontextmanager
async def raw_blocks(root: str) -> AsyncIterator[Read]:
    """As little as can be done: whatever has come at once, split, and orjson."""
    path, headers, body, text_in = _RAW["openai"]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def read(prompt: str) -> Streamed:
            first, texts, rest = 0.0, [], b""
            async with session.post(root + path, data=orjson.dumps(body(prompt))) as answer:
                answer.raise_for_status()
                async for received in answer.content.iter_any():
                    *events, rest = (rest + received).split(b"\n\n")
                    for event in events:
                        text = (
                            None if event == b"data: [DONE]" else text_in(orjson.loads(event[6:]))
                        )
                        if text:
                            first = first or _now()
                            texts.append(text)
            return Streamed(first, "".join(texts))

        yield read


async def chunks_per_read(root: str, wire: str, prompt: str) -> float:
    """How many events a client that only reads gets at a time: whether they come together."""
    path, headers, body, _ = _RAW[wire]
    reads = events = 0
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(root + path, data=json.dumps(body(prompt)).encode()) as answer,
    ):
        async for received in answer.content.iter_any():
            reads += 1
            events += received.count(b"\n\n")
    return events / reads


def _openai_text(event: Any) -> str | None:
    return event["choices"][0]["delta"].get("content") if event["choices"] else None


def _anthropic_text(event: Any) -> str | None:
    return event["delta"]["text"] if event["type"] == "content_block_delta" else None


_JSON = {"Content-Type": "application/json"}
_RAW: Mapping[str, tuple[str, dict[str, str], Callable[[str], Any], Callable[[Any], str | None]]]
_RAW = {
    "openai": (
        "/v1/chat/completions",
        {**_JSON, "Authorization": f"Bearer {KEY}"},
        lambda prompt: {
            "model": MODEL,
            "messages": messages(prompt),
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        _openai_text,
    ),
    "anthropic": (
        "/v1/messages",
        {**_JSON, "x-api-key": KEY, "anthropic-version": "2023-06-01"},
        lambda prompt: {
            "model": MODELS["anthropic"],
            "max_tokens": 4096,
            "messages": messages(prompt),
            "stream": True,
        },
        _anthropic_text,
    ),
    "gemini": (
        f"/v1beta/models/{MODELS['gemini']}:streamGenerateContent?alt=sse",
        {**_JSON, "x-goog-api-key": KEY},
        lambda prompt: {"contents": [{"role": "user", "parts": [{"text": prompt}]}]},
        lambda event: event["candidates"][0]["content"]["parts"][0]["text"],
    ),
}


# ── ours ─────────────────────────────────────────────────────────────────────────────────────


def _config(root: str, wire: str) -> LLMConfig:
    base = root + ("/v1" if wire == "openai" else "")
    return LLMConfig(wire, MODELS[wire], api_key=KEY, api_base=base)


@contextlib.asynccontextmanager
async def aigateway(root: str, wire: str = "openai") -> AsyncIterator[Read]:
    """Everything on, as by default: the whole answer is also put together, priced and cached."""
    nobody_listens()
    async with AsyncGateway([_config(root, wire)], max_concurrency=MANY) as gateway:
        await gateway.warmup()

        async def read(prompt: str) -> Streamed:
            first, texts = 0.0, []
            async with gateway.stream(prompt) as stream:
                async for chunk in stream:
                    if chunk.text:
                        first = first or _now()
                        texts.append(chunk.text)
            return Streamed(first, "".join(texts))

        yield read


@contextlib.asynccontextmanager
async def bare_lane(root: str, wire: str = "openai") -> AsyncIterator[Read]:
    """Only aigateway's way to the vendor: no failover, circuit, limit or cache over it."""
    nobody_listens()
    client = DirectClient(_config(root, wire), SYSTEM_CLOCK)
    await client.prepare()

    async def read(prompt: str) -> Streamed:
        first, texts = 0.0, []
        stream = await client.stream(ChatRequest(tuple(messages(prompt))))
        while (chunks := await stream.read()) is not None:
            for chunk in chunks:
                first = first or _now()
                texts.append(chunk.text)
        stream.completion()
        await stream.aclose()
        return Streamed(first, "".join(texts))

    try:
        yield read
    finally:
        await client.aclose()


# ── peers ────────────────────────────────────────────────────────────────────────────────────


async def _read_openai(stream: Any) -> Streamed:
    """The openai SDK's chunks, which litellm imitates."""
    first, texts = 0.0, []
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or _now()
            texts.append(chunk.choices[0].delta.content)
    return Streamed(first, "".join(texts))


_STREAMED: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@contextlib.asynccontextmanager
async def openai_sdk(root: str) -> AsyncIterator[Read]:
    async with AsyncOpenAI(api_key=KEY, base_url=f"{root}/v1", max_retries=0) as client:

        async def read(prompt: str) -> Streamed:
            return await _read_openai(
                await client.chat.completions.create(
                    model=MODEL, messages=messages(prompt), **_STREAMED
                )
            )

        yield read


@contextlib.asynccontextmanager
async def litellm_call(root: str) -> AsyncIterator[Read]:
    async def read(prompt: str) -> Streamed:
        return await _read_openai(
            await litellm.acompletion(
                model=f"openai/{MODEL}",
                messages=messages(prompt),
                api_key=KEY,
                api_base=f"{root}/v1",
                num_retries=0,
                max_retries=0,
                **_STREAMED,
            )
        )

    yield read


@contextlib.asynccontextmanager
async def litellm_router(root: str) -> AsyncIterator[Read]:
    with litellm_put_back():
        reach = {"model": f"openai/{MODEL}", "api_key": KEY, "api_base": f"{root}/v1"}
        deployment = {"model_name": "llm", "litellm_params": {**reach, "max_retries": 0}}
        router = litellm.Router(model_list=[deployment], num_retries=0)

        async def read(prompt: str) -> Streamed:
            return await _read_openai(
                await router.acompletion(model="llm", messages=messages(prompt), **_STREAMED)
            )

        yield read


@contextlib.asynccontextmanager
async def langchain(root: str) -> AsyncIterator[Read]:
    model = ChatOpenAI(
        model=MODEL, api_key=KEY, base_url=f"{root}/v1", max_retries=0, stream_usage=True
    )

    async def read(prompt: str) -> Streamed:
        first, texts = 0.0, []
        async for chunk in model.astream(prompt):
            if chunk.content:
                first = first or _now()
                texts.append(chunk.content)
        return Streamed(first, "".join(texts))

    yield read


PEERS: Mapping[str, Callable[[str], Client]] = {
    "openai SDK": openai_sdk,
    "litellm.acompletion": litellm_call,
    "litellm.Router": litellm_router,
    "LangChain ChatOpenAI": langchain,
}
WIRES = ("anthropic", "gemini")
STREAMS: Mapping[str, Callable[[str], Client]] = {
    FLOOR: raw_aiohttp,
    BLOCKS: raw_blocks,
    OURS: aigateway,
    LANE: bare_lane,
    **PEERS,
    **{f"{FLOOR}, {w} wire": functools.partial(raw_aiohttp, wire=w) for w in WIRES},
    **{f"{OURS}, {w} wire": functools.partial(aigateway, wire=w) for w in WIRES},
    **{f"{LANE}, {w} wire": functools.partial(bare_lane, wire=w) for w in WIRES},
}
