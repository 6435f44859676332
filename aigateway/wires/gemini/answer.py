"""Plain answers of the Gemini wire: see `wires/plain.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.messages import Choice, Completion
from aigateway.wires.plain import UnusualError, counted_usage, is_name, is_said

__all__ = ["gemini_completion"]


def gemini_completion(body: Any) -> Completion | None:
    """The answer, or None if it is not of the plain kind."""
    try:
        if not body.keys() <= _BODY:
            return None
        choices = tuple(map(_candidate, body["candidates"]))
        usage = body["usageMetadata"]
        prompt = usage.get("promptTokensDetails") or ()
        if not (choices and usage.keys() <= _USAGE) or any(
            part["modality"] != "TEXT" for part in prompt
        ):
            return None
        thought = usage.get("thoughtsTokenCount", 0)
        counted = counted_usage(usage["promptTokenCount"], usage["candidatesTokenCount"], thought)
        name, model = body.get("responseId", "-"), body["modelVersion"]
        if usage["totalTokenCount"] != counted.total_tokens:
            return None
        if not (is_name(name) and is_name(model)):
            return None
        return Completion(name, model, choices, counted)
    except (UnusualError, KeyError, TypeError, AttributeError, ValueError):
        return None


_BODY = frozenset({"candidates", "usageMetadata", "modelVersion", "responseId"})
_FINISHES = {"STOP": "stop", "MAX_TOKENS": "length"}
_USAGE = frozenset(
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
    if not (candidate.keys() <= _CANDIDATE and part.keys() <= _PART and is_said(text)):
        raise UnusualError
    signed = part.get("thoughtSignature")
    if not isinstance(signed, str | None):
        raise UnusualError
    signatures = (signed,) if signed else ()
    return Choice(text, _FINISHES[candidate["finishReason"]], thought_signatures=signatures)
