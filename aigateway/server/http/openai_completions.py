"""OpenAI's older completions: https://platform.openai.com/docs/api-reference/completions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NotRequired

from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.gateway import AsyncGateway
from aigateway.messages import ChatResponse, Origin
from aigateway.protocols.openai_completions import COMPLETIONS, joined, read_prompts
from aigateway.protocols.protocol import ReadRequest
from aigateway.request.schema import COMPLETION_FIELDS
from aigateway.server.http.bodies import MAY_BE_PASSED, json_body, take_passed
from aigateway.server.http.call import AdmittedRequest, GatewayUse, cache_word
from aigateway.server.http.doors import DoorRouter
from aigateway.server.http.json_responses import HeadLines, answer_headers, json_response
from aigateway.server.http.openai_chat import TokenCounts
from aigateway.server.http.openapi import documented_call
from aigateway.server.http.protocols import ProtocolDoor

__all__ = ["router"]

router = DoorRouter()

_DOOR = ProtocolDoor(COMPLETIONS, AsyncGateway.completions, AsyncGateway.stream_completions)

_AT_ONCE = 16
"""Prompts of one request that are asked at the same time."""


class _TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class _TextChoice(TypedDict):
    index: int
    text: str
    logprobs: _TextLogprobs | None
    finish_reason: str | None


class TextCompletion(TypedDict):
    """OpenAI's answer to an older completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_TextChoice]
    usage: TokenCounts
    system_fingerprint: NotRequired[str]


@router.door(
    "/v1/completions",
    summary="Complete texts, whole or as a stream",
    **documented_call(
        "CompletionRequest",
        TextCompletion,
        {"text/event-stream": "A text_completion in JSON, an error, or [DONE]."},
    ),
)
async def completions(request: AdmittedRequest) -> Response:
    """Complete texts, whole or as a stream."""
    passed = request.service.settings.pass_params
    reads = await json_body(request, lambda body: _prompts(body, passed))
    if len(reads) == 1:
        return await _DOOR.respond(request, reads[0])
    return await _several(request, reads)


def _prompts(body: dict[str, Any], passed: Sequence[str]) -> list[ReadRequest]:
    extra = take_passed(body, COMPLETION_FIELDS.keys() | {"prompt"}, passed)
    return read_prompts(body, extra.get("extra_body"), MAY_BE_PASSED)


async def _several(request: AdmittedRequest, reads: Sequence[ReadRequest]) -> Response:
    """Answer several prompts, each as a request of its own, and all or none."""
    free = asyncio.Semaphore(_AT_ONCE)
    options = request.options
    with contextlib.ExitStack() as stack:

        async def ask(number: int, read: ReadRequest, use: GatewayUse) -> Any:
            # Each has an id of its own: several failures of one request are evidence of one.
            origin: Origin = use.options["origin"]
            origin = replace(origin, request_id=f"{origin.request_id}-{number}")
            async with free:
                given = {**options, **use.options, "origin": origin}
                answer = await use.gateway.completions(read, **given)
            return answer, cache_word(answer.response, use.gateway, options)

        # If one may not be asked, none is.
        entered = [
            stack.enter_context(
                await request.enter_gateway(
                    read.options.get("model"), options.get("timeout"), params=read.options
                )
            )
            for read in reads
        ]
        asked = [
            asyncio.create_task(ask(number, read, use))
            for number, (read, use) in enumerate(zip(reads, entered, strict=True))
        ]
        try:
            answers = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
    return json_response(
        joined([answer.body for answer, _ in answers]),
        headers=_headers([answer.response for answer, _ in answers], {w for _, w in answers}),
    )


def _headers(responses: Sequence[ChatResponse], words: set[str]) -> HeadLines:
    """Return the headers of several answers as if they were one."""
    costs = [response.cost_usd for response in responses]
    return answer_headers(
        ", ".join(dict.fromkeys(response.provider for response in responses)),
        words.pop() if len(words) == 1 else "miss",
        sum(len(response.attempts) for response in responses),
        None if None in costs else sum(filter(None, costs)),
    )
