"""OpenAI's chat completions: the endpoint, whole answers, and streams of chunks.

https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal, NotRequired, cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.errors import GatewayError
from aigateway.messages import (
    TOOL_INPUTS,
    ChatResponse,
    Chunk,
    Opening,
    ToolCall,
    ToolCallDelta,
    Usage,
    asks_to_think,
    openai_beside,
    openai_call,
    openai_media,
    openai_signature,
    openai_usage,
)
from aigateway.request.stream import ChatStream
from aigateway.server.http.bodies import ChatBody, json_body, read_completion
from aigateway.server.http.call import AdmittedRequest, cache_word
from aigateway.server.http.cancel import cancel_on_disconnect
from aigateway.server.http.errors import error_event, stopping
from aigateway.server.http.json_responses import (
    encoded,
    headers_of_opening,
    json_response,
)
from aigateway.server.http.openapi import documented_call
from aigateway.server.http.sse import EventStream

__all__ = [
    "PING_SECONDS",
    "CalledTool",
    "MediaFields",
    "TokenCounts",
    "called_tool",
    "completion",
    "router",
]

router = APIRouter()

PING_SECONDS = 15.0
"""Silence of a stream after which a comment is sent: proxies cut at 30 to 60 seconds."""

_DONE = b"data: [DONE]\n\n"

_PING = b": waiting\n\n"
"""A comment: readers of event streams skip it, and proxies see that the connection lives."""

_LAST_EVENT = error_event(stopping())


# ── answers, as documented ───────────────────────────────────────────────────────────────────


class TokenCounts(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Function(TypedDict):
    name: str
    arguments: str


class _CustomTool(TypedDict):
    name: str
    input: str


class CalledTool(TypedDict):
    """A tool call of the model's."""

    id: str
    type: Literal["function", "custom"]
    function: NotRequired[_Function]
    custom: NotRequired[_CustomTool]


def called_tool(call: ToolCall) -> CalledTool:
    """Return a tool call in OpenAI's form."""
    return cast("CalledTool", openai_call(call))


class _ImageUrl(TypedDict):
    url: str


class _Image(TypedDict):
    index: int
    type: Literal["image_url"]
    image_url: _ImageUrl


class _Speech(TypedDict):
    id: NotRequired[str]
    data: str
    transcript: str
    expires_at: int


class MediaFields(TypedDict):
    """Parts of an answer beside its text, where there are any."""

    images: NotRequired[list[_Image]]
    audio: NotRequired[_Speech]
    annotations: NotRequired[list[dict[str, Any]]]


class _Message(MediaFields):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CalledTool]]


class _AnswerChoice(TypedDict):
    index: int
    finish_reason: str | None
    logprobs: dict[str, Any] | None
    message: _Message


class ChatCompletion(TypedDict):
    """OpenAI's answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_AnswerChoice]
    usage: TokenCounts
    system_fingerprint: NotRequired[str]
    service_tier: NotRequired[str]


def completion(response: ChatResponse, now: float) -> dict[str, Any]:
    """Return an answer in OpenAI's form.

    Args:
        response: The gateway's answer.
        now: Unix time in seconds, for an answer whose vendor gave none.
    """
    body = response.to_openai()
    body["id"] = body["id"] or f"chatcmpl-{response.request_id}"
    body["created"] = body["created"] or int(now)
    return body


# ── the endpoint ─────────────────────────────────────────────────────────────────────────────


@router.post(
    "/v1/chat/completions",
    summary="Answer a chat, whole or as a stream",
    **documented_call(
        "ChatCompletionRequest",
        ChatCompletion,
        {"text/event-stream": "A chat.completion.chunk in JSON, an error, or [DONE]."},
    ),
)
async def chat_completions(request: Request) -> Response:
    """Answer a chat, whole or as a stream."""
    admitted = AdmittedRequest.admit(request)
    passed = admitted.service.settings.pass_params
    body = await json_body(request, lambda body: read_completion(body, passed))
    if body.stream:
        return await _streamed(request, admitted, body)
    response, headers = await admitted.chat(request, body)
    return json_response(completion(response, admitted.service.clock.wall()), headers=headers)


async def _streamed(request: Request, admitted: AdmittedRequest, body: ChatBody) -> Response:
    """Wait for the first content, so that a failure before it gets an HTTP status."""
    clock = admitted.service.clock
    options = {**admitted.asked.options(), **body.options}
    async with contextlib.AsyncExitStack() as stack:
        gateway, own = admitted.enter_gateway(
            stack, body.model, admitted.asked.timeout, thinks=asks_to_think(body.options)
        )
        options |= own
        await admitted.service.turns.take()
        resume = admitted.asked.resume or admitted.service.settings.stream_resume
        if resume != "none":
            options["resume"] = resume
        stream = await stack.enter_async_context(gateway.stream(body.prompt, **options))
        async with cancel_on_disconnect(request.receive):
            first = await anext(stream)
        opening = stream.opening
        assert opening is not None  # noqa: S101 - its first chunk is here
        writer = ChunkWriter(
            opening,
            admitted.origin.request_id,
            clock.wall(),
            with_usage=body.with_usage,
            whole=lambda: stream.response,
        )
        word = cache_word(opening, gateway, options)
        return EventStream(
            _events(stream, first, writer),
            stack.pop_all(),
            headers_of_opening(opening, word),
            ping=_PING,
            ping_seconds=PING_SECONDS,
            last_event=_LAST_EVENT,
            stopping=admitted.service.stopping,
            turns=admitted.service.turns,
            clock=clock,
        )


async def _events(
    stream: ChatStream, first: Chunk, writer: ChunkWriter
) -> AsyncGenerator[bytes, None]:
    """Yield the stream's events. After an error comes its event, and no `[DONE]`."""
    yield writer.events(first)
    try:
        async for chunk in stream:
            yield writer.events(chunk)
    except GatewayError as error:
        yield error_event(error)
        return
    yield _DONE


class ChunkWriter:
    """Writes one stream's chunks as events.

    Args:
        opening: The beginning of the stream.
        request_id: The answer's id where its vendor gives none.
        now: Unix time in seconds, likewise.
        with_usage: Whether usage was asked for: OpenAI then adds a chunk without choices.
        whole: Returns the whole answer, once its content has been sent.
    """

    __slots__ = ("_begun", "_blocks", "_head", "_whole", "_with_usage")

    def __init__(
        self,
        opening: Opening,
        request_id: str,
        now: float,
        *,
        with_usage: bool,
        whole: Callable[[], ChatResponse],
    ) -> None:
        self._head = {
            "id": opening.id or f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": opening.created or int(now),
            "model": opening.model,
        }
        self._begun: set[int] = set()
        self._blocks: Counter[int] = Counter()
        self._with_usage = with_usage
        self._whole = whole

    def events(self, chunk: Chunk) -> bytes:
        """Return one chunk, and after the last one usage if it was asked for."""
        if chunk.usage is not None:
            self._head |= openai_beside(self._whole().completion)
        written = self._event([self._choice(chunk)], None, restarted=chunk.restarted)
        if chunk.usage is not None and self._with_usage:
            written += self._event([], chunk.usage)
        return written

    def _event(
        self, choices: list[dict[str, Any]], usage: Usage | None, *, restarted: bool = False
    ) -> bytes:
        body: dict[str, Any] = {**self._head, "choices": choices}
        if restarted:  # only clients that have asked for it know this
            body["aigateway"] = {"restarted": True}
        if self._with_usage:
            body["usage"] = None if usage is None else openai_usage(usage)
        return b"data: " + encoded(body) + b"\n\n"

    def _choice(self, chunk: Chunk) -> dict[str, Any]:
        delta = _delta(chunk)
        for block in delta.get("thinking_blocks") or ():
            # OpenAI's SDK puts lists together by it.
            block["index"] = self._blocks[chunk.index]
            self._blocks[chunk.index] += 1
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            delta = {"role": "assistant", "content": None if chunk.tool_calls else "", **delta}
        return {
            "index": chunk.index,
            "delta": delta,
            "logprobs": None if chunk.finish_reason is None else self._logprobs(chunk.index),
            "finish_reason": chunk.finish_reason,
        }

    def _logprobs(self, index: int) -> Any:
        """Return those of the whole answer, with its end: chunks have none."""
        text = self._whole().choices[index].logprobs_json
        return None if text is None else json.loads(text)


def _delta(chunk: Chunk) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if chunk.text:
        delta["content"] = chunk.text
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if (
        chunk.images
        or chunk.audio
        or chunk.sources_json
        or chunk.thinking_json
        or chunk.thought_signatures
    ):
        delta.update(openai_media(chunk))
    if chunk.refusal:
        delta["refusal"] = chunk.refusal
    if chunk.tool_calls:
        delta["tool_calls"] = [_tool_call(call) for call in chunk.tool_calls]
    return delta


def _tool_call(call: ToolCallDelta) -> dict[str, Any]:
    """Return a piece of a tool call, without empty fields: clients join what they get."""
    named = {"name": call.name} if call.name else {}
    begun = {"id": call.id, "type": call.type} if call.id else {}
    piece = {**named, TOOL_INPUTS[call.type]: call.arguments}
    return {"index": call.index, **begun, call.type: piece, **openai_signature(call)}
