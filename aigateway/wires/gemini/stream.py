"""Streams of the Gemini wire: see `wires/stream_reading.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.messages import Audio, Chunk, Usage
from aigateway.wires.answers import usage_from
from aigateway.wires.content import spoken
from aigateway.wires.ends import BrokenOffError, end_of
from aigateway.wires.gemini.bodies import unify_candidates
from aigateway.wires.gemini.ends import GEMINI_ENDS, blocks_prompt
from aigateway.wires.stream_reading import StreamReading, counted

__all__ = ["GeminiReading"]

_NOTHING: Mapping[str, Any] = {}


class GeminiReading(StreamReading):
    """Partial responses.

    litellm's reader counts tool calls, and a response with one always goes through it; so texts
    need not.
    """

    __slots__ = ("_priced",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._priced: Any = None  # litellm's count, where it saw more than the figures

    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        if event.get("error") or name == b"error":
            raise BrokenOffError(event)
        assembly = self.assembly
        if not assembly.id:
            assembly.id = str(event.get("responseId") or "-")
            assembly.model = str(event.get("modelVersion") or assembly.model)
        if event.get("usageMetadata"):
            self._add_count(event["usageMetadata"])
            self._priced = None
        if blocks_prompt(event):
            self._finish(0, end_of(GEMINI_ENDS, "PROHIBITED_CONTENT"), sure=True)
        for position, candidate in enumerate(event.get("candidates") or ()):
            self._candidate(event, candidate, candidate.get("index", position))

    def _candidate(
        self, event: Mapping[str, Any], candidate: Mapping[str, Any], index: int
    ) -> None:
        ending = end_of(GEMINI_ENDS, candidate.get("finishReason"))
        text = _text(candidate)
        if text is None:
            unify_candidates(event)
            read = self._parse({**event, "candidates": [{**candidate, "index": index}]})
            if candidate.keys() & _GROUNDING:
                self._priced = read.usage
            self._hear(candidate, index)  # before its end
            for choice in read.choices:
                self._take_choice(choice, ending, beside=read)
            return
        if text:
            self._say(Chunk(text, index=index))
        self._finish(index, ending, sure=not text)

    def _hear(self, candidate: Mapping[str, Any], index: int) -> None:
        """Take in speech, which litellm's reader of streams leaves out."""
        for data in spoken(candidate):
            self._say(Chunk(index=index, audio=Audio(data=data)))

    def _usage(self, given: Any) -> tuple[Usage, Any]:
        details = given.get("promptTokensDetails") or ()
        if given.keys() <= _USAGE and all(d.get("modality") == "TEXT" for d in details):
            return counted(given, "promptTokenCount", "candidatesTokenCount"), None
        read = self._priced or self._parse({"usageMetadata": given}).usage
        return usage_from(read), read


_USAGE = frozenset(
    {"promptTokenCount", "candidatesTokenCount", "totalTokenCount", "promptTokensDetails"}
)
_GROUNDING = frozenset({"groundingMetadata", "urlContextMetadata"})
_CANDIDATE = frozenset({"content", "finishReason", "index", "safetyRatings", "avgLogprobs"})


def _text(candidate: Mapping[str, Any]) -> str | None:
    """A candidate's text, or None if it is of another kind."""
    content: Mapping[str, Any] = candidate.get("content") or _NOTHING
    parts: list[Any] = content.get("parts") or []
    if not candidate.keys() <= _CANDIDATE:
        return None
    for part in parts:
        if len(part) != 1 or type(part.get("text")) is not str:
            return None
    return "".join([part["text"] for part in parts])
