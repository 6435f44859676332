"""Plain OpenAI answers, read as they are.

OpenAI's form is the house's own, so the ordinary answer needs no translation. Anything out of the
ordinary (a field this file does not know, `<think>` in the text, a broken shape) is left to
litellm's translation, which knows many servers' habits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.messages import Choice, Completion, ToolCall, Usage

__all__ = ["plain_completion"]

_MESSAGE = frozenset({"role", "content", "refusal", "annotations", "tool_calls"})
_CHOICE = frozenset({"index", "message", "finish_reason", "logprobs", "content_filter_results"})
_FINISHES = frozenset({"stop", "length", "tool_calls", "content_filter"})
_CALL = frozenset({"id", "type", "function", "index"})


def plain_completion(body: Any) -> Completion | None:
    """The answer, or None if it is not of the plain kind."""
    try:
        choices = tuple(map(_choice, body["choices"]))
        usage = _usage(body["usage"])
        created = body["created"]
        name, model = body["id"], body["model"]
    except (_Unusual, KeyError, TypeError, AttributeError):
        return None
    if not (choices and isinstance(name, str) and isinstance(model, str)):
        return None
    return Completion(name, model, choices, usage, None, created if type(created) is int else 0)


class _Unusual(Exception):  # noqa: N818 - it never leaves this file
    pass


def _choice(choice: Mapping[str, Any]) -> Choice:
    message, finish = choice["message"], choice["finish_reason"]
    content, refusal = message.get("content"), message.get("refusal")
    if (
        not (choice.keys() <= _CHOICE and message.keys() <= _MESSAGE and finish in _FINISHES)
        or not (content is None or (isinstance(content, str) and "<think" not in content))
        or not (refusal is None or isinstance(refusal, str))
        or message.get("annotations")
        or choice.get("logprobs")
    ):
        raise _Unusual
    calls = tuple(map(_tool_call, message.get("tool_calls") or ()))
    if not (content or calls or refusal or finish == "length"):
        raise _Unusual  # says nothing: whose fault that is, is judged elsewhere
    return Choice(content or "", finish, calls, None, refusal or None)


def _tool_call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    name, arguments = function["name"], function["arguments"]
    if (
        not call.keys() <= _CALL
        or call.get("type") != "function"
        or not (isinstance(name, str) and isinstance(arguments, str) and call["id"])
    ):
        raise _Unusual
    return ToolCall(call["id"], name, arguments)


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    total = usage.get("total_tokens") or prompt + completion
    before, after = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    cached = before.get("cached_tokens") or 0 if before else 0
    reasoning = after.get("reasoning_tokens") or 0 if after else 0
    if (before and before.get("audio_tokens")) or (after and after.get("audio_tokens")):
        raise _Unusual  # priced by litellm
    for count in (prompt, completion, total, cached, reasoning):
        if type(count) is not int or count < 0:
            raise _Unusual
    return Usage(prompt, completion, total, cached, reasoning)
