"""Read answers: litellm's response objects, or anything of OpenAI's shape, into our records.

An answer without choices, or with nothing in them, raises: it came under a success status, so
nothing else would notice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aigateway.errors import FailureKind
from aigateway.messages import (
    Choice,
    Chunk,
    Completion,
    Embeddings,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from aigateway.wires.anthropic import server_calls_in
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.content import (
    IN_ID,
    Content,
    content_of,
    fields_beside_choices,
    separated,
    signature_of,
    text_of,
)
from aigateway.wires.openai import OPENAI_ENDS
from aigateway.wires.registry import endings_in
from aigateway.wires.tool_calls import CallPiece, cleaned, is_cut
from aigateway.wires.wire import AnswerEnd, BrokenOffError, end_of

__all__ = [
    "UnusualError",
    "chunk_of",
    "completion_from",
    "counted_usage",
    "embeddings_from",
    "empty_answer_kind",
    "is_absent",
    "piece_from",
    "read_calls",
    "stated_cost",
    "usage_from",
]


def completion_from(
    response: Any,
    *,
    model: str,
    status: int | None = None,
    body: Any = None,
    think_tags: bool = False,
    stops: bool = False,
) -> Completion:
    """Read a chat response of litellm's, without its price.

    `status` (for the failure) and `body` (which says how the answers ended) are given where known.

    Raises:
        BrokenOffError: The vendor says that an answer broke off.
        VendorCallError: It holds no answer (`BAD_ANSWER`), or the vendor withheld it
            (`CONTENT_POLICY`).
    """
    endings, own = endings_in(body), server_calls_in(body)
    choices = tuple(
        _choice(
            choice,
            place,
            content_of(getattr(choice, "message", None), None if place else response),
            endings,
            own,
            think_tags=think_tags,
        )
        for place, choice in enumerate(getattr(response, "choices", None) or ())
    )
    silence = empty_answer_kind(choices, stops=stops)
    if silence is not None:
        raise VendorCallError(Failure(silence, status))
    return Completion(
        id=str(getattr(response, "id", None) or ""),
        model=str(getattr(response, "model", None) or model),
        choices=choices,
        usage=usage_from(getattr(response, "usage", None)),
        cost_usd=stated_cost(getattr(response, "usage", None)),
        created=_count(getattr(response, "created", 0)),
        **fields_beside_choices(response),
    )


def empty_answer_kind(choices: Iterable[Choice], *, stops: bool) -> FailureKind | None:
    """Return the failure if none of the answers says anything or a tool call is cut; else None.

    With `stop` in the request an answer may be empty: it would have begun with such a text.
    """
    choices = tuple(choices)
    if any(map(_has_cut_call, choices)):
        return FailureKind.BAD_ANSWER
    if any(map(_has_content, choices)):
        return None
    if stops and any(choice.finish_reason == "stop" for choice in choices):
        return None
    withheld = any(choice.finish_reason == "content_filter" for choice in choices)
    return FailureKind.CONTENT_POLICY if withheld else FailureKind.BAD_ANSWER


def piece_from(
    choice: Any, index: int, calls: tuple[ToolCallDelta, ...] = (), beside: Any = None
) -> Chunk | None:
    """Read one choice of litellm's streamed chunk; None if it says nothing.

    `beside` is the chunk, if this choice is to have what stands beside the choices.
    """
    return chunk_of(content_of(getattr(choice, "delta", None), beside), index, calls)


def chunk_of(content: Content, index: int, calls: tuple[ToolCallDelta, ...] = ()) -> Chunk | None:
    """Make a chunk of what a delta says; None if it says nothing."""
    if not (calls or any(content)):
        return None
    return Chunk(tool_calls=calls, index=index, **content._asdict())


def read_calls(delta: Any) -> list[CallPiece]:
    """Return the pieces of tool calls in one of litellm's deltas."""
    pieces = [
        CallPiece(getattr(call, "index", None), _id(call), *_called(call))
        for call in getattr(delta, "tool_calls", None) or ()
    ]
    old = getattr(delta, "function_call", None)  # how OpenAI said it until 2023
    if old is not None:
        pieces.append(CallPiece(None, "", *_function(old), "function", signature_of(old)))
    return pieces


def _id(call: Any) -> str:
    return str(getattr(call, "id", None) or "").partition(IN_ID)[0]


def _called(call: Any) -> tuple[str, str, str, str | None]:
    """Return name, arguments, type and signature of one of litellm's calls, or a piece of one."""
    custom = getattr(call, "custom", None)
    if custom is None:
        kind = "custom" if getattr(call, "type", None) == "custom" else "function"
        return (*_function(getattr(call, "function", None)), kind, signature_of(call))
    name, given = text_of(_part(custom, "name")), text_of(_part(custom, "input"))
    return name or "", given or "", "custom", None


def _function(function: Any) -> tuple[str, str]:
    name, arguments = getattr(function, "name", None), getattr(function, "arguments", None)
    if isinstance(arguments, Mapping):  # some servers send the object itself
        arguments = json.dumps(arguments)
    return text_of(name) or "", text_of(arguments) or ""


def embeddings_from(
    response: Any, *, model: str, count: int, status: int | None = None
) -> Embeddings:
    """Read an embedding response of litellm's, in the order of the inputs.

    Raises:
        VendorCallError: A vector is missing or is not made of numbers (`BAD_ANSWER`).
    """
    data = getattr(response, "data", None)
    entries = sorted(
        data if isinstance(data, list) else (), key=lambda e: _count(_part(e, "index"))
    )
    vectors = tuple(_vector(_part(entry, "embedding")) for entry in entries)
    if len(vectors) != count or not all(vectors):
        raise VendorCallError(Failure(FailureKind.BAD_ANSWER, status))
    return Embeddings(
        model=str(getattr(response, "model", None) or model),
        vectors=vectors,
        usage=usage_from(getattr(response, "usage", None)),
    )


def _has_cut_call(choice: Choice) -> bool:
    # One that reached its limit says so: the caller can tell.
    return choice.finish_reason not in {"length", "content_filter"} and any(
        call.type == "function" and is_cut(call.arguments) for call in choice.tool_calls
    )


def _has_content(choice: Choice) -> bool:
    # Hidden reasoning may use up all the tokens that the caller allowed: an answer, if a short one.
    return bool(
        choice.text or choice.tool_calls or choice.refusal or choice.images or choice.audio
    ) or (choice.finish_reason == "length")


def _choice(
    choice: Any,
    place: int,
    content: Content,
    endings: Mapping[int, AnswerEnd] | None,
    own: frozenset[str],
    *,
    think_tags: bool,
) -> Choice:
    calls = tuple(cleaned(_tool_calls(getattr(choice, "message", None)), own))
    if think_tags:
        content = separated(content)
    return Choice(
        finish_reason=_end(choice, place, endings, has_calls=bool(calls)),
        tool_calls=calls,
        logprobs_json=_logprobs(getattr(choice, "logprobs", None)),
        **content._asdict(),
    )


def _end(
    choice: Any, place: int, endings: Mapping[int, AnswerEnd] | None, *, has_calls: bool
) -> str | None:
    """Return why an answer ended. Raises `BrokenOffError` if it broke off."""
    said = getattr(choice, "finish_reason", None)
    if endings is None:
        beside = getattr(choice, "provider_specific_fields", None)
        native = beside.get("native_finish_reason") if isinstance(beside, Mapping) else None
        ending = end_of(OPENAI_ENDS, native or said)
    else:
        ending = endings.get(getattr(choice, "index", None) or 0) or endings.get(place)
    if ending is None or ending.end is None:
        raise BrokenOffError(None if ending is None else ending.body)
    if ending.end in {"stop", "function_call"} and has_calls:
        return "tool_calls"  # some vendors say that a tool call is an ordinary end
    if ending.end == "tool_calls" and said == "stop" and not has_calls:
        return "stop"  # a call that stands for a text, which litellm hands on
    return ending.end


def _tool_calls(message: Any) -> Iterator[ToolCall]:
    for call in getattr(message, "tool_calls", None) or ():
        yield ToolCall(_id(call), *_called(call))
    old = getattr(message, "function_call", None)  # how OpenAI said it until 2023
    if old is not None and text_of(getattr(old, "name", None)):
        yield ToolCall("", *_function(old), "function", signature_of(old))


def _logprobs(logprobs: Any) -> str | None:
    if not logprobs:
        return None
    dump = getattr(logprobs, "model_dump", None)
    return json.dumps(dump() if callable(dump) else logprobs)


def usage_from(usage: Any) -> Usage:
    """Read an object or a mapping of OpenAI's shape; zeros where it says nothing."""
    prompt, completion = _token(usage, "prompt_tokens"), _token(usage, "completion_tokens")
    details, thought = (_part(usage, f"{what}_tokens_details") for what in ("prompt", "completion"))
    cached = written = reasoning = 0
    if details:
        cached = _token(details, "cached_tokens")
        written = _token(details, "cache_write_tokens")
    if thought:
        reasoning = _token(thought, "reasoning_tokens")
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=_token(usage, "total_tokens") or prompt + completion,
        cached_tokens=cached
        or _token(usage, "prompt_cache_hit_tokens")  # DeepSeek's
        or _token(usage, "cached_tokens")  # Moonshot's
        or _token(usage, "cache_read_input_tokens"),
        reasoning_tokens=reasoning,
        cache_write_tokens=written or _token(usage, "cache_creation_input_tokens"),
    )


def stated_cost(usage: Any) -> float | None:
    """Return what the vendor itself charges for the call, in US dollars: OpenRouter, Perplexity."""
    cost = _part(usage, "cost")
    if isinstance(cost, Mapping):
        cost = cost.get("total_cost")
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        return None
    if _part(usage, "is_byok"):  # then it is a fee, and the vendor behind has its own price
        behind = _part(_part(usage, "cost_details"), "upstream_inference_cost")
        cost += behind if isinstance(behind, int | float) else 0
    return float(cost) if 0 <= cost < math.inf else None


def _token(holder: Any, name: str) -> int:
    return _count(_part(holder, name))


def _part(holder: Any, name: str) -> Any:
    if type(holder) is dict or isinstance(holder, Mapping):
        return holder.get(name)
    return getattr(holder, name, None)


def _count(value: Any) -> int:
    if type(value) is int and 0 <= value < 2**53:
        return value
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**53 else 0


def _vector(numbers: Any) -> tuple[float, ...]:
    if not isinstance(numbers, list | tuple):
        return ()
    try:
        vector = tuple(map(float, numbers))
    except (TypeError, ValueError, OverflowError):
        return ()
    return vector if all(map(math.isfinite, vector)) else ()


class UnusualError(Exception):
    """An answer is not plain: litellm's translation has to read it.

    A plain answer is a text, an end and a count of tokens (on the OpenAI wire also tool calls).
    Reading one without litellm costs a tenth.
    """


def is_absent(count: Any) -> bool:
    """Return whether a count of something special says that there was none."""
    return not any(count.values()) if isinstance(count, Mapping) else not count


def counted_usage(prompt: Any, answer: Any, thought: Any = 0) -> Usage:
    """Make a usage of the vendor's counts. Raises `UnusualError` if one of them is no count."""
    for count in (prompt, answer, thought):
        if type(count) is not int or not 0 <= count < 2**53:
            raise UnusualError
    completion = answer + thought
    return Usage(prompt, completion, prompt + completion, reasoning_tokens=thought)
