"""OpenAI's older completions of a text: https://platform.openai.com/docs/api-reference/completions.

A prompt becomes one message of a user, and the answer to it the text. A provider whose `operations`
have "completions" gets the request as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import (
    ChatResponse,
    Chunk,
    NativeRequest,
    Opening,
    openai_beside,
    openai_usage,
)
from aigateway.protocols.protocol import CallerProtocol, ReadRequest, ServerSentEvent, encoded
from aigateway.request.checks import check_inputs, fit_fields, refuse_field, refuse_unknown
from aigateway.request.schema import COMPLETION_FIELDS

__all__ = ["COMPLETIONS", "MOST_PROMPTS", "joined", "read_prompts"]

MOST_PROMPTS = 128
"""Prompts of one request. Each is a request to a provider."""

_NAMES = COMPLETION_FIELDS.keys() | {"prompt"}

_OTHERWISE = {"best_of", "echo", "logprobs", "stream", "stream_options", "suffix"}
"""Fields that a chat does not have, or has in another form."""


def read_prompts(
    body: dict[str, Any], passed: Mapping[str, Any] | None = None, hint: str = ""
) -> list[ReadRequest]:
    """Read a body: one request for each of its prompts.

    Args:
        body: The body.
        passed: Parameters that are not checked: they go to the provider as they are.
        hint: About a parameter that is unknown, as a sentence after a space.

    Raises:
        RequestRejectedError: Names the fault.
    """
    if not body.keys() <= _NAMES:
        unknown = next(name for name in body if name not in _NAMES)
        instead = {"messages": "use /v1/chat/completions for a chat, or give prompt"}
        refuse_unknown(unknown, _NAMES, instead, "leave it out", hint)
    given = body.get("prompt")
    if isinstance(given, list) and len(given) > MOST_PROMPTS and not isinstance(given[0], int):
        refuse_field("prompt", f"must have at most {MOST_PROMPTS} prompts")
    prompts = check_inputs(given, "prompt")
    fields = {n: v for n, v in body.items() if v is not None and n != "prompt"}
    fit_fields("completion", fields)
    if fields.get("stream") and len(prompts) > 1:
        refuse_field("prompt", "must be one prompt for a stream; send a request for each")
    number = fields.get("n", 1)
    if fields.get("best_of", number) < number:
        refuse_field("best_of", "must be at least n")
    return [_request_for(prompt, fields, passed or {}) for prompt in prompts]


def _request_for(prompt: Any, fields: Mapping[str, Any], passed: Mapping[str, Any]) -> ReadRequest:
    options = {name: value for name, value in fields.items() if name not in _OTHERWISE}
    if "logprobs" in fields:
        options |= {"logprobs": True, "top_logprobs": fields["logprobs"]}
    if passed:
        options["extra_body"] = passed
    only = _only_native(prompt, fields)
    if only is not None:
        options.pop("max_tokens", None)  # it may be 0 there
    # Tokens as text serve to measure the request; a chat never gets them.
    text = prompt if isinstance(prompt, str) else str(prompt)
    native = NativeRequest("completions", {**fields, **passed, "prompt": prompt}, only=only)
    stream = bool(fields.get("stream"))
    return ReadRequest([{"role": "user", "content": text}], options, native, stream)


def _only_native(prompt: Any, fields: Mapping[str, Any]) -> str | None:
    """Return the name of the first feature that a chat does not have."""
    if not isinstance(prompt, str):
        return "a prompt of tokens"
    if fields.get("suffix"):
        return "suffix"
    if fields.get("best_of", 1) > fields.get("n", 1):
        return "best_of"
    if fields.get("echo") and "logprobs" in fields:
        return "echo with logprobs"
    return "max_tokens=0" if fields.get("max_tokens") == 0 else None


def _read(body: dict[str, Any], _headers: Mapping[str, str]) -> ReadRequest:
    read = read_prompts(body)
    if len(read) > 1:
        refuse_field("prompt", "must be one prompt; ask for each")
    return read[0]


# ── answers ──────────────────────────────────────────────────────────────────────────────────


def _echoed(request: ReadRequest) -> str:
    """Return the prompt if it is repeated in front of the answer."""
    prompt = request.native.body["prompt"]
    return prompt if request.native.body.get("echo") and isinstance(prompt, str) else ""


def _write(response: ChatResponse, request: ReadRequest) -> dict[str, Any]:
    echoed, completion = _echoed(request), response.completion
    return {
        "id": completion.id or f"cmpl-{response.request_id}",
        "object": "text_completion",
        "created": completion.created or int(SYSTEM_CLOCK.wall()),
        "model": completion.model,
        "choices": [
            {
                "index": index,
                "text": echoed + (choice.text or choice.refusal or ""),
                "logprobs": _logprobs(choice.logprobs_json),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(response.choices)
        ],
        "usage": openai_usage(response.usage),
        **openai_beside(completion),
    }


def joined(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answers to several prompts as one: choices in the order of the prompts."""
    choices = [choice for body in bodies for choice in body["choices"]]
    counts = [body.get("usage") or {} for body in bodies]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        **bodies[0],
        "choices": [{**choice, "index": index} for index, choice in enumerate(choices)],
        "usage": {name: sum(count.get(name) or 0 for count in counts) for name in names},
    }


def _logprobs(chat: str | None) -> dict[str, Any] | None:
    """Return a chat's log probabilities in the older form."""
    tokens = (json.loads(chat) or {}).get("content") if chat else None
    if not tokens:
        return None
    offsets, end = [], 0
    for token in tokens:
        offsets.append(end)
        end += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in token.get("top_logprobs") or ()}
            for token in tokens
        ],
        "text_offset": offsets,
    }


# ── streams ──────────────────────────────────────────────────────────────────────────────────


class _CompletionEvents:
    """Writes one stream: pieces of text, the end of each choice, usage if asked for, `[DONE]`."""

    def __init__(self, opening: Opening, request: ReadRequest, request_id: str) -> None:
        self._head = {
            "id": opening.id or f"cmpl-{request_id}",
            "object": "text_completion",
            "created": opening.created or int(SYSTEM_CLOCK.wall()),
            "model": opening.model,
        }
        self._echoed = _echoed(request)
        self._begun: set[int] = set()
        self._ends: dict[int, str] = {}
        options = request.native.body.get("stream_options") or {}
        self._with_usage = bool(options.get("include_usage"))

    def events(self, chunk: Chunk) -> Iterable[ServerSentEvent]:
        """See `EventWriter`."""
        if chunk.finish_reason is not None:
            self._ends[chunk.index] = chunk.finish_reason
        text = chunk.text or chunk.refusal or ""
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            text = self._echoed + text
        elif not text:
            return
        yield self._event([self._choice(chunk.index, text)])

    def end(self, response: ChatResponse) -> Iterable[ServerSentEvent]:
        """See `EventWriter`. Log probabilities come last, since chunks have none."""
        for index, choice in enumerate(response.choices):
            end = self._ends.get(index, choice.finish_reason)
            yield self._event([
                self._choice(index, "", end, _logprobs(choice.logprobs_json))
            ])  # fmt: skip
        if self._with_usage:
            yield self._event([], openai_usage(response.usage))
        yield ServerSentEvent(b"data: [DONE]\n\n")

    @staticmethod
    def _choice(index: int, text: str, end: str | None = None, logprobs: Any = None) -> Any:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}

    def _event(self, choices: list[Any], usage: Any = None) -> ServerSentEvent:
        body = {**self._head, "choices": choices}
        if self._with_usage:
            body["usage"] = usage
        return ServerSentEvent(b"data: " + encoded(body) + b"\n\n")


COMPLETIONS = CallerProtocol(_read, _write, _CompletionEvents)
