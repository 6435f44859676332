"""OpenAI's chat completions: the endpoint, whole answers, and streams of chunks.

https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, cast

from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.errors import stopping
from aigateway.messages import ChatResponse, ToolCall, asks_to_think, openai_call
from aigateway.request.sse import PING, error_event
from aigateway.server.http.bodies import ChatBody, json_body, read_completion
from aigateway.server.http.call import AdmittedRequest, cache_word
from aigateway.server.http.doors import DoorRouter
from aigateway.server.http.json_responses import JSONAnswer, encoded, headers_of_opening
from aigateway.server.http.openapi import documented_call
from aigateway.server.http.sse import EventStream

__all__ = [
    "CalledTool",
    "MediaFields",
    "TokenCounts",
    "called_tool",
    "completion",
    "router",
]

router = DoorRouter()

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


@router.door(
    "/v1/chat/completions",
    summary="Answer a chat, whole or as a stream",
    **documented_call(
        "ChatCompletionRequest",
        ChatCompletion,
        {"text/event-stream": "A chat.completion.chunk in JSON, an error, or [DONE]."},
    ),
)
async def chat_completions(request: AdmittedRequest) -> Response:
    """Answer a chat, whole or as a stream."""
    body = await json_body(request, read_completion, request.service.settings.pass_params)
    if body.stream:
        return await _streamed(request, body)
    response, headers = await request.chat(body)
    answer = encoded(completion(response, request.service.clock.wall()))
    return JSONAnswer(answer, 200, headers)


async def _streamed(request: AdmittedRequest, body: ChatBody) -> Response:
    options = request.options | body.options
    use = await request.enter_gateway(
        body.model,
        request.options.get("timeout"),
        thinks=asks_to_think(body.options),
        params=body.options,
    )
    options |= use.options
    resume = request.resume or request.service.settings.stream_resume
    if resume != "none":
        options["resume"] = resume
    return await EventStream.begin(
        request,
        use,
        lambda: use.gateway.stream(body.prompt, **options),
        sse=lambda stream: stream.sse(include_usage=body.with_usage, ping_seconds=None),
        headers=lambda opening: headers_of_opening(
            opening, cache_word(opening, use.gateway, options)
        ),
        ping=PING,
        last_event=lambda _: _LAST_EVENT,
    )
