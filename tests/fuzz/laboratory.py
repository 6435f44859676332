"""One question to a gateway whose vendor answers anything, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import pickle
from collections.abc import Mapping
from typing import Any, cast

from aigateway import (
    AsyncGateway,
    ChatResponse,
    GatewayError,
    LLMConfig,
    ProviderType,
    StreamInterruptedError,
    Usage,
)
from aigateway.events import Operation
from aigateway.messages import Choice, EmbeddingResponse, NativeRequest
from aigateway.protocols.protocol import ReadRequest
from aigateway.wires.client import VendorClientFactory
from tests.fuzz.raw_server import RawServer, Reply
from tests.processes import PATIENCE

__all__ = [
    "ENDS",
    "KEY",
    "PROMPT",
    "WAYS",
    "Laboratory",
    "check_books",
    "check_error",
    "check_reply",
]

WAYS = ("chat", "stream", "chat over stream")
"""How an answer is asked for."""

PROMPT = "prompt-that-nobody-may-quote"
KEY = "sk-that-nobody-may-quote"

ENDS = ("cache_hits", "stale_answers", "coalesced", "served", "failures", "cancelled")
"""What can become of a request."""

PATIENT: dict[str, Any] = {
    "timeout": 9.0,
    "attempt_timeout": 3.0,
    "first_token_timeout": 3.0,
    "idle_timeout": 3.0,
    "retry_rounds": 0,
}
"""Settings where nobody hangs: a slow machine is no failure."""

HASTY = PATIENT | {"attempt_timeout": 0.3, "first_token_timeout": 0.3, "idle_timeout": 0.2}
"""Settings where somebody does."""

_LONGEST_PAUSE = 86_400.0
"""Seconds; a vendor that asks for more is asked again after a day."""


class Complaints(logging.Handler):
    """What should not have been logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        unforeseen = " raised " in message or "cannot tell what came" in message
        if record.name.startswith("asyncio") or unforeseen:
            self.found.append(message)


class Laboratory:
    """An event loop with a raw server on it."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.server = RawServer()
        self.complaints = Complaints()
        for name in ("aigateway", "asyncio"):
            logging.getLogger(name).addHandler(self.complaints)
        self.runner.run(self.server.start())

    def close(self) -> None:
        """Leave nothing behind."""
        self.runner.run(self.server.stop())
        self.runner.close()
        for name in ("aigateway", "asyncio"):
            logging.getLogger(name).removeHandler(self.complaints)

    def config(self, wire: str, **more: Any) -> LLMConfig:
        """A provider of that wire, played by the raw server."""
        base = f"http://127.0.0.1:{self.server.port}"
        model = "claude-haiku-4-5" if wire == "anthropic" else "gpt-4o-mini"
        both: tuple[Operation, ...] = ("chat", "embeddings")
        return LLMConfig(
            ProviderType(wire), model, api_key=KEY, api_base=base, operations=both, **more
        )

    def ask(
        self,
        wire: str,
        way: str,
        reply: Reply,
        vendor: VendorClientFactory | None = None,
        **params: Any,
    ) -> object:
        """Ask one question, see that all is in order, and give the answer or the error."""
        self.server.reply = reply
        self.complaints.found.clear()
        result = self.runner.run(self._ask(wire, way, vendor, params))
        assert not self.complaints.found
        came = b"".join(reply.pieces)
        for cause in getattr(result, "causes", ()):
            assert cause.status is None or b"%d" % cause.status in came, "a status is made up"
        return result

    async def _ask(
        self, wire: str, way: str, vendor: VendorClientFactory | None, params: dict[str, Any]
    ) -> object:
        over_stream = way == "chat over stream"
        times = HASTY if self.server.reply.end == "hold" else PATIENT
        gateway = AsyncGateway(
            [self.config(wire)], vendor=vendor, chat_over_stream=over_stream, **times
        )
        try:
            await gateway.warmup()  # loading takes its time, and is not the vendor's
            result: object = await _asked(gateway, way, params)
            check_books(gateway)
        finally:
            await gateway.aclose()
        async with asyncio.timeout(PATIENCE):
            await self.server.is_left()
        return result


async def _asked(gateway: AsyncGateway, way: str, params: dict[str, Any]) -> object:
    try:
        if way == "embed":
            vectors = await gateway.embed([PROMPT, PROMPT], **params)
            check_vectors(vectors)
            return vectors
        if way == "stream":
            return await _streamed(gateway, params)
        if way.startswith(("messages", "responses")):
            return await _in_protocol(gateway, *way.split())
        reply = await gateway.chat(PROMPT, **params)
    except GatewayError as error:
        refused = error
    else:
        check_reply(reply)
        return reply
    check_error(refused)
    return refused


async def _in_protocol(gateway: AsyncGateway, name: str, streamed: str = "") -> ChatResponse:
    body = {"model": "any", "anything": PROMPT}
    native = NativeRequest("messages" if name == "messages" else "responses", body)
    request = ReadRequest([{"role": "user", "content": PROMPT}], {}, native)
    if not streamed:
        answer = await getattr(gateway, name)(request)
        json.dumps(answer.body)
        check_reply(answer.response)
        return cast("ChatResponse", answer.response)
    stream = getattr(gateway, f"stream_{name}")(request)
    async for event in stream:
        assert event.raw.endswith(b"\n\n")
    check_reply(stream.response)
    return cast("ChatResponse", stream.response)


async def _streamed(gateway: AsyncGateway, params: dict[str, Any]) -> ChatResponse:
    came: list[str] = []
    broken: StreamInterruptedError | None
    stream = gateway.stream(PROMPT, **params)
    try:
        async for chunk in stream:
            assert type(chunk.text) is str
            if chunk.index == 0:
                came.append(chunk.text)
    except StreamInterruptedError as error:
        broken = error
    else:
        broken = None
    if broken is not None:
        assert _joined(broken.text) == _joined(*came)
        raise broken
    check_reply(stream.response)
    assert _joined(stream.response.text) == _joined(*came)
    return stream.response


def _joined(*pieces: str) -> str:
    """The text; of half a character alone, nobody promises what becomes."""
    return "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ── what must hold ───────────────────────────────────────────────────────────────────────────────


def check_reply(reply: ChatResponse) -> None:
    """Every value is of the kind that its type says."""
    assert reply.choices
    for choice in reply.choices:
        _check_choice(choice)
    assert type(reply.model) is str
    assert type(reply.completion.id) is str
    assert type(reply.completion.created) is int
    _check_usage(reply.usage)
    _check_cost(reply.cost_usd)
    json.dumps(reply.to_openai())


def check_vectors(reply: EmbeddingResponse) -> None:
    """Likewise, and as many vectors as texts, of finite numbers."""
    assert len(reply.vectors) == 2
    for vector in reply.vectors:
        assert vector
        assert all(type(number) is float and math.isfinite(number) for number in vector)
    assert type(reply.model) is str
    _check_usage(reply.usage)
    _check_cost(reply.cost_usd)


def _check_choice(choice: Choice) -> None:
    assert type(choice.text) is str
    for text in (choice.finish_reason, choice.reasoning, choice.refusal, choice.logprobs_json):
        assert text is None or type(text) is str
    for call in choice.tool_calls:
        assert [type(part) for part in (call.id, call.name, call.arguments)] == [str, str, str]


def _check_usage(usage: Usage) -> None:
    for name in Usage.__slots__:
        count = getattr(usage, name)
        assert type(count) is int, name
        assert count >= 0, name


def _check_cost(cost: float | None) -> None:
    assert cost is None or (type(cost) is float and math.isfinite(cost) and cost >= 0)


def check_error(error: GatewayError) -> None:
    """It crosses processes, and quotes nothing."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    for said in (str(error), repr(error)):
        assert PROMPT not in said
        assert KEY not in said
    assert error.__cause__ is None
    assert error.__context__ is None or isinstance(error.__context__, GatewayError)


def check_books(gateway: AsyncGateway) -> None:
    """Nothing is in flight, every request has one end, and nobody is left alone for ever."""
    metrics: Mapping[str, Any] = gateway.get_metrics()
    assert metrics["total_requests"] == sum(metrics[end] for end in ENDS)
    assert (metrics["in_flight"], metrics["waiting"]) == (0, 0)
    json.dumps(metrics, allow_nan=False)
    for provider in gateway.providers:
        assert provider.in_flight == 0
        wait = provider.retry_after_seconds
        assert wait is None or 0 <= wait <= _LONGEST_PAUSE
