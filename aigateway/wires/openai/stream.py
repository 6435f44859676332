"""Streams of the OpenAI wire: see `wires/stream_reading.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.messages import Chunk, ToolCallDelta, Usage
from aigateway.wires.answers import chunk_of, usage_from
from aigateway.wires.content import IN_ID, content_of, said_beside, signature_of
from aigateway.wires.ends import BrokenOffError, end_of
from aigateway.wires.openai.ends import OPENAI_ENDS
from aigateway.wires.stream_reading import StreamReading
from aigateway.wires.tool_calls import CallPiece, as_functions

__all__ = ["OpenAIReading"]

_NOTHING: Mapping[str, Any] = {}
_BESIDE = frozenset({"citations", "search_results", "service_tier", "system_fingerprint"})
"""Fields beside the choices that any event may have. The last one counts."""


class OpenAIReading(StreamReading):
    """`chat.completion.chunk`s, also of Azure and of the many servers that imitate OpenAI.

    litellm's reader keeps no state here.
    """

    __slots__ = ()

    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        choices = event.get("choices")
        if event.get("error") or name == b"error" or (not choices and _is_error(event)):
            raise BrokenOffError(event)
        if not self.assembly.id:
            self._begin(event)
        usage = event.get("usage") or (event.get("x_groq") or _NOTHING).get("usage")
        if usage or not choices:
            self._add_count(usage)
        if usage or not choices or not _BESIDE.isdisjoint(event):
            self.assembly.note(said_beside(event))
        if usage and not choices:  # the count that was asked for comes behind everything else
            self.assembly.close()
        for choice in choices or ():
            self._choice(event, choice)

    def _begin(self, event: Mapping[str, Any]) -> None:
        """Take in what every chunk repeats. Azure sends one before them, with empty names."""
        assembly, created = self.assembly, event.get("created")
        assembly.id = str(event.get("id") or "")
        assembly.model = str(event.get("model") or assembly.model)
        assembly.created = created if type(created) is int else 0

    def _choice(self, event: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        delta, finish = choice.get("delta") or _NOTHING, choice.get("finish_reason")
        error = choice.get("error")
        ending = end_of(OPENAI_ENDS, finish, error) if finish or error else None
        if "tool_calls" in delta:
            as_functions(delta)
        if not _is_plain_delta(delta):
            for read in self._parse({**event, "choices": [choice]}).choices:
                self._take_choice(read, ending)
            return
        index = choice.get("index") or 0
        text, calls = delta.get("content"), delta.get("tool_calls")
        says = True
        if text and len(delta) == 1 and type(text) is str:  # almost every chunk
            self._say(Chunk(text, index=index))
        else:
            deltas = self._tool_calls(index, calls) if calls else ()
            chunk = chunk_of(content_of(delta), index, deltas)
            says = chunk is not None
            if chunk is not None:
                self._say(chunk)
        if choice.get("logprobs"):
            self._add_logprobs(index, choice["logprobs"])
        if "usage" in choice:  # Moonshot's
            self._add_count(choice["usage"])
        if ending is not None:
            self._finish(index, ending, sure=not says)

    def _tool_calls(self, index: int, calls: list[Mapping[str, Any]]) -> tuple[ToolCallDelta, ...]:
        pieces = []
        for call in calls:
            function = call.get("function") or _NOTHING
            name, called = call.get("id") or "", function.get("name") or ""
            pieces.append(
                CallPiece(
                    call.get("index"),
                    name.partition(IN_ID)[0],
                    called,
                    function.get("arguments") or "",
                    call.get("type") or "",
                    signature_of(call) if len(call) > 4 or IN_ID in name else None,
                )
            )
        return self._read_calls(index, pieces)

    def _usage(self, counted: Any) -> tuple[Usage, Any]:
        details = (counted.get("prompt_tokens_details"), counted.get("completion_tokens_details"))
        if any((detail or _NOTHING).get("audio_tokens") for detail in details):
            # It has a price of its own.
            return usage_from(counted), self._parse({"choices": [], "usage": counted}).usage
        return usage_from(counted), None


_NO_TEXTS = (int, float)
"""What no field of a delta holds; litellm's reader refuses it."""


def _is_error(event: Mapping[str, Any]) -> bool:
    """An error in the form of older servers, which say so beside its message."""
    return event.get("object") == "error"


def _is_plain_delta(delta: Mapping[str, Any]) -> bool:
    if len(delta) == 1 and type(delta.get("content")) is str:
        return True
    if "function_call" in delta or any(isinstance(value, _NO_TEXTS) for value in delta.values()):
        return False
    calls = delta.get("tool_calls")
    return calls is None or all(map(_is_plain_call, calls))


def _is_plain_call(call: Mapping[str, Any]) -> bool:
    function = call.get("function") or _NOTHING
    return call.get("type") in {None, "", "function", "custom"} and all(
        value is None or type(value) is str
        for value in (call.get("id"), function.get("name"), function.get("arguments"))
    )
