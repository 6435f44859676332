"""Plain answers of the OpenAI wire: see `wires/plain.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.messages import TOOL_INPUTS, Choice, Completion, ToolCall, Usage
from aigateway.wires.answers import stated_cost
from aigateway.wires.content import IN_ID, content_of, parted, said_beside, text_of
from aigateway.wires.plain import UnusualError, is_name
from aigateway.wires.tool_calls import as_functions, is_cut

__all__ = ["openai_completion"]

_MESSAGE = frozenset(
    {
        "annotations",
        "audio",
        "citations",
        "content",
        "context",
        "images",
        "reasoning",
        "reasoning_content",
        "refusal",
        "role",
        "search_results",
        "tool_calls",
    }
)
_TEXT = frozenset({"annotations", "content", "refusal", "role"})
_BESIDE = frozenset({"citations", "search_results"})
_INTEGERS = {int}
_NOTHING: Mapping[str, Any] = {}
_CHOICE = frozenset({"index", "message", "finish_reason", "logprobs", "content_filter_results"})
_FINISHES = frozenset({"stop", "length", "tool_calls", "content_filter"})
_CALL = frozenset({"custom", "id", "type", "function", "index"})


def openai_completion(body: Any) -> Completion | None:
    """The answer, or None if it is not of the plain kind."""
    try:
        if body.get("error") or body.get("service_tier") not in {None, "default", "auto"}:
            return None
        choices = tuple(map(_choice, body["choices"]))
        usage = _usage(body["usage"])
        created = body["created"]
        name, model = body["id"], body["model"]
    except (UnusualError, KeyError, TypeError, AttributeError, ValueError):
        return None
    if not (choices and is_name(name) and is_name(model)):
        return None
    return Completion(
        name,
        model,
        choices,
        usage,
        stated_cost(body["usage"]) if "cost" in body["usage"] else None,
        created if type(created) is int else 0,
        text_of(body.get("system_fingerprint")),
        text_of(body.get("service_tier")),
        said_beside(body).get("sources_json") if body.keys() & _BESIDE else None,
    )


def _choice(choice: Mapping[str, Any]) -> Choice:
    message, finish = choice["message"], choice["finish_reason"]
    text = message["content"] if message.keys() <= _TEXT else None
    if (
        type(text) is str
        and text[:1].isalnum()  # no tag
        and finish in _FINISHES
        and choice.keys() <= _CHOICE
        and not (choice.get("logprobs") or message.get("refusal") or message.get("annotations"))
    ):
        return Choice(text, finish)  # almost every answer
    if (
        not (choice.keys() <= _CHOICE and message.keys() <= _MESSAGE and finish in _FINISHES)
        or isinstance(message.get("content"), int | float)
        or not isinstance(message.get("refusal"), str | None)
        or choice.get("logprobs")
    ):
        raise UnusualError
    as_functions(message)
    calls = tuple(map(_tool_call, message.get("tool_calls") or ()))
    if calls and (finish == "stop" or len({call.id for call in calls}) < len(calls)):
        raise UnusualError  # corrected elsewhere
    text, reasoning, refusal, images, audio, sources, *_ = parted(content_of(message))
    if not (text or calls or refusal or images or audio or finish == "length"):
        raise UnusualError  # says nothing: whose fault that is, is judged elsewhere
    return Choice(
        text,
        finish,
        calls,
        reasoning,
        refusal,
        images=images,
        audio=audio,
        sources_json=sources,
    )


def _tool_call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    name, arguments = function["name"], function["arguments"]
    kind = call.get("type")
    if (
        not call.keys() <= _CALL
        or kind not in TOOL_INPUTS
        or not (is_name(name) and isinstance(arguments, str) and is_name(call["id"]))
        or (kind == "function" and (not arguments.strip() or is_cut(arguments)))
        or IN_ID in call["id"]
    ):
        raise UnusualError
    return ToolCall(call["id"], name, arguments, kind)


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    total = usage.get("total_tokens") or prompt + completion
    before = usage.get("prompt_tokens_details") or _NOTHING
    after = usage.get("completion_tokens_details") or _NOTHING
    cached = before.get("cached_tokens") or usage.get("prompt_cache_hit_tokens")
    cached = cached or usage.get("cached_tokens") or 0
    written = before.get("cache_write_tokens") or 0
    reasoning = after.get("reasoning_tokens") or 0
    if before.get("audio_tokens") or after.get("audio_tokens"):
        raise UnusualError  # priced by litellm
    counts = (prompt, completion, total, cached, reasoning, written)
    if set(map(type, counts)) != _INTEGERS or min(counts) < 0 or max(counts) >= 2**53:
        raise UnusualError
    return Usage(*counts)
