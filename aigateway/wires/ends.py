"""How an answer ends: each wire's words for it, in OpenAI's words.

Only what stands in these tables ends a whole answer. Any other reason (`error`, `network_error`,
`insufficient_system_resource`), and none at all, means that the answer broke off. litellm turns
every reason that it does not know into "stop", so its word is not taken where the vendor's own
can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ANTHROPIC_ENDS",
    "GEMINI_ENDS",
    "OPENAI_ENDS",
    "BrokenOffError",
    "Ending",
    "blocks_prompt",
    "end_of",
    "endings_in",
]

ANTHROPIC_ENDS: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "compaction": "length",
    "pause_turn": "length",  # the vendor's own tools took too long: there is more to come
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

GEMINI_ENDS: Mapping[str, str] = {
    "stop": "stop",
    "max_tokens": "length",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "model_armor": "content_filter",
    "image_safety": "content_filter",
    "image_prohibited_content": "content_filter",
    "image_recitation": "content_filter",
}

OPENAI_ENDS: Mapping[str, str] = {
    # Servers that imitate OpenAI often hand on the words of what is behind them.
    **GEMINI_ENDS,
    **ANTHROPIC_ENDS,
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "function_call",
    "content_filter": "content_filter",
    "complete": "stop",  # Cohere
    "eos": "stop",  # Together
    "eos_token": "stop",  # Hugging Face
    "stop_token": "stop",
    "model_length": "length",  # Mistral
    "max_output_tokens": "length",
    "tool_call": "tool_calls",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",  # Bedrock
    "sensitive": "content_filter",  # Zhipu
    "error_toxic": "content_filter",  # Cohere
}

_NO_REASONS = frozenset({"null", "none"})
"""Texts that stand for no reason on every chunk but the last (DashScope)."""


class BrokenOffError(Exception):
    """The vendor says that an answer broke off. `body` is what it says, in the form of an error."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body


@dataclass(frozen=True, slots=True)
class Ending:
    """Why one of the answers ended.

    Attributes:
        reason: In the vendor's words.
        end: In OpenAI's; None if the answer broke off.
    """

    reason: str
    end: str | None

    @property
    def body(self) -> Mapping[str, Any]:
        """The reason in the form of a vendor's error."""
        return {"error": {"code": self.reason}}


def end_of(ends: Mapping[str, str], reason: Any, error: Any = None) -> Ending | None:
    """Judge the reason that a vendor gives for the end of an answer.

    Args:
        ends: Of the wire.
        reason: As it came; anything but a text is none.
        error: What the vendor says beside it went wrong.

    Returns:
        None if it gives none.

    Raises:
        BrokenOffError: It says that it failed.
    """
    given = reason if isinstance(reason, str) else ""
    word = given.lower()
    if error or word == "error":
        raise BrokenOffError({"error": error} if error else {"error": {"code": given}})
    if not word or word in _NO_REASONS:
        return None
    return Ending(given, ends.get(word))


def endings_in(body: Any) -> dict[int, Ending] | None:
    """Find why answers ended in a vendor's body or event, whichever wire it is of.

    Returns:
        By the index of the answer; None if the body is of no shape that is known here.

    Raises:
        BrokenOffError: The vendor says that it failed.
    """
    if not isinstance(body, Mapping):
        return None
    given = _given(body)
    if given is None:
        return None
    found = ((index, end_of(ends, reason, error)) for index, ends, reason, error in given)
    return {index: ending for index, ending in found if ending is not None}


def blocks_prompt(body: Mapping[str, Any]) -> bool:
    """Whether this body of Gemini's says that the prompt may not be answered."""
    feedback = body.get("promptFeedback")
    return isinstance(feedback, Mapping) and bool(feedback.get("blockReason"))


_Given = Iterator[tuple[int, Mapping[str, str], Any, Any]]


def _given(body: Mapping[str, Any]) -> _Given | None:
    choices, candidates = body.get("choices"), body.get("candidates")
    if blocks_prompt(body):
        return iter([(0, GEMINI_ENDS, "PROHIBITED_CONTENT", None)])
    if isinstance(choices, list):
        return _listed(choices, OPENAI_ENDS, "finish_reason")
    if isinstance(candidates, list):
        return _listed(candidates, GEMINI_ENDS, "finishReason")
    if isinstance(body.get("usageMetadata"), Mapping):  # Gemini: nothing but a count
        return iter(())
    kind = body.get("type")
    if kind in _ANTHROPIC_EVENTS:
        holder = body if kind == "message" else body.get("delta")
        reason = holder.get("stop_reason") if isinstance(holder, Mapping) else None
        return iter([(0, ANTHROPIC_ENDS, reason, None)])
    return None


_ANTHROPIC_EVENTS = frozenset(
    {
        "message",
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "ping",
    }
)


def _listed(answers: list[Any], ends: Mapping[str, str], name: str) -> _Given:
    for place, answer in enumerate(answers):
        if isinstance(answer, Mapping):
            index = answer.get("index")
            where = index if type(index) is int else place
            yield where, ends, answer.get(name), answer.get("error")
