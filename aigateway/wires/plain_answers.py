"""Plain answers of each wire, read as they are.

An ordinary answer is a text, an end and a count of tokens (on the OpenAI wire also tool calls), in
a form that needs no translation. Anything out of the ordinary (a field this file does not know,
reasoning, tools, caches, a broken shape) is left to litellm's translation, which costs ten times as
much and knows many servers' habits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.messages import TOOL_INPUTS, Choice, Completion, ToolCall, Usage
from aigateway.wires.answers import stated_cost
from aigateway.wires.content import IN_ID, content_of, parted, said_beside, text_of
from aigateway.wires.tool_calls import as_functions, is_cut

__all__ = ["anthropic_completion", "gemini_completion", "openai_completion"]

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
    except (_Unusual, KeyError, TypeError, AttributeError, ValueError):
        return None
    if not (choices and _is_name(name) and _is_name(model)):
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


def anthropic_completion(body: Any) -> Completion | None:
    """The answer, or None if it is not of the plain kind."""
    try:
        (block,) = body["content"]
        usage, text, model = body["usage"], block["text"], body["model"]
        if body.get("error") or not (_is_name(body["id"]) and _is_name(model)):
            return None
        finish = _ANTHROPIC_FINISHES[body["stop_reason"]]
        if not (body["type"] == "message" and block["type"] == "text" and _is_said(text)):
            return None
        if block.get("citations") or not all(
            _is_nothing(usage[name]) for name in usage.keys() - _ANTHROPIC_USAGE
        ):
            return None
        counted = _counted(usage["input_tokens"], usage["output_tokens"])
        return Completion(body["id"], model, (Choice(text, finish),), counted)
    except (_Unusual, KeyError, TypeError, AttributeError, ValueError):
        return None


def gemini_completion(body: Any) -> Completion | None:
    """The answer, or None if it is not of the plain kind."""
    try:
        if not body.keys() <= _GEMINI:
            return None
        choices = tuple(map(_candidate, body["candidates"]))
        usage = body["usageMetadata"]
        prompt = usage.get("promptTokensDetails") or ()
        if not (choices and usage.keys() <= _GEMINI_USAGE) or any(
            part["modality"] != "TEXT" for part in prompt
        ):
            return None
        thought = usage.get("thoughtsTokenCount", 0)
        counted = _counted(usage["promptTokenCount"], usage["candidatesTokenCount"], thought)
        name, model = body.get("responseId", "-"), body["modelVersion"]
        if usage["totalTokenCount"] != counted.total_tokens:
            return None
        if not (_is_name(name) and _is_name(model)):
            return None
        return Completion(name, model, choices, counted)
    except (_Unusual, KeyError, TypeError, AttributeError, ValueError):
        return None


_ANTHROPIC_FINISHES = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
_ANTHROPIC_USAGE = frozenset({"input_tokens", "output_tokens", "service_tier"})
_GEMINI = frozenset({"candidates", "usageMetadata", "modelVersion", "responseId"})
_GEMINI_FINISHES = {"STOP": "stop", "MAX_TOKENS": "length"}
_GEMINI_USAGE = frozenset(
    {
        "candidatesTokenCount",
        "promptTokenCount",
        "promptTokensDetails",
        "serviceTier",
        "thoughtsTokenCount",
        "totalTokenCount",
    }
)
_CANDIDATE = frozenset({"content", "finishReason", "index", "safetyRatings"})
_PART = frozenset({"text", "thoughtSignature"})


def _candidate(candidate: Mapping[str, Any]) -> Choice:
    content = candidate["content"]
    (part,) = content["parts"]
    text = part["text"]
    if not (candidate.keys() <= _CANDIDATE and part.keys() <= _PART and _is_said(text)):
        raise _Unusual
    signed = part.get("thoughtSignature")
    if not isinstance(signed, str | None):
        raise _Unusual
    signatures = (signed,) if signed else ()
    return Choice(text, _GEMINI_FINISHES[candidate["finishReason"]], thought_signatures=signatures)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name)


def _is_said(text: Any) -> bool:
    return isinstance(text, str) and bool(text) and "<think" not in text


def _is_nothing(count: Any) -> bool:
    """Whether a count of something special says that there was none."""
    return not any(count.values()) if isinstance(count, Mapping) else not count


def _counted(prompt: Any, answer: Any, thought: Any = 0) -> Usage:
    for count in (prompt, answer, thought):
        if type(count) is not int or not 0 <= count < 2**53:
            raise _Unusual
    completion = answer + thought
    return Usage(prompt, completion, prompt + completion, reasoning_tokens=thought)


class _Unusual(Exception):  # noqa: N818 - it never leaves this file
    pass


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
        or isinstance(message.get("content"), int | float | Mapping)
        or not isinstance(message.get("refusal"), str | None)
        or choice.get("logprobs")
    ):
        raise _Unusual
    as_functions(message)
    calls = tuple(map(_tool_call, message.get("tool_calls") or ()))
    if calls and (finish == "stop" or len({call.id for call in calls}) < len(calls)):
        raise _Unusual  # corrected elsewhere
    text, reasoning, refusal, images, audio, sources, *_ = parted(content_of(message))
    if not (text or calls or refusal or images or audio or finish == "length"):
        raise _Unusual  # says nothing: whose fault that is, is judged elsewhere
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
        or not (_is_name(name) and isinstance(arguments, str) and _is_name(call["id"]))
        or (kind == "function" and (not arguments.strip() or is_cut(arguments)))
        or IN_ID in call["id"]
    ):
        raise _Unusual
    return ToolCall(call["id"], name, arguments, kind)


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    total = usage.get("total_tokens") or prompt + completion
    before = usage.get("prompt_tokens_details") or _NOTHING
    after = usage.get("completion_tokens_details") or _NOTHING
    cached = before.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
    written = before.get("cache_write_tokens") or 0
    reasoning = after.get("reasoning_tokens") or 0
    if before.get("audio_tokens") or after.get("audio_tokens"):
        raise _Unusual  # priced by litellm
    counts = (prompt, completion, total, cached, reasoning, written)
    if set(map(type, counts)) != _INTEGERS or min(counts) < 0 or max(counts) >= 2**53:
        raise _Unusual
    return Usage(*counts)
