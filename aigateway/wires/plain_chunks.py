"""Ordinary events of each wire's stream, read as they are.

A piece of text, an end and a count of tokens (on the OpenAI wire also reasoning and tool calls)
need no translation. Anything out of the ordinary is left to litellm's reader, which costs ten times
as much and knows many servers' habits. Where both may meet in one stream, the comments say what
litellm's reader has to have seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aigateway.messages import Audio, Chunk, ToolCallDelta, Usage
from aigateway.wires.answers import chunk_of, usage_from
from aigateway.wires.content import (
    IN_ID,
    ThinkingKeeper,
    content_of,
    said_beside,
    signature_of,
    spoken,
)
from aigateway.wires.ends import (
    ANTHROPIC_ENDS,
    GEMINI_ENDS,
    OPENAI_ENDS,
    BrokenOffError,
    Ending,
    blocks_prompt,
    end_of,
)
from aigateway.wires.stream_reading import StreamReading
from aigateway.wires.tool_calls import (
    CallPiece,
    InputKeeper,
    add_missing_arguments,
    as_functions,
    server_calls_in,
)

__all__ = ["AnthropicReading", "GeminiReading", "OpenAIReading"]


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
        assembly.note(said_beside(event))

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


class AnthropicReading(StreamReading):
    """Messages in blocks.

    litellm's reader remembers the block that is open, so from the first block that is not a text
    it is given everything but pieces of text, of which it takes no notice. It is there from the
    beginning where an answer was asked for as a tool call, because it turns that into text.

    Args:
        args: As for every `StreamReading`.
        translated: Whether a tool call may stand for the answer's text.
    """

    __slots__ = ("_inputs", "_thinking", "_translated")

    def __init__(self, *args: Any, translated: bool = False) -> None:
        super().__init__(*args)
        self._inputs = InputKeeper()
        self._thinking = ThinkingKeeper()
        self._translated = translated

    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "content_block_delta" and event["delta"].get("type") == "text_delta":
            text = event["delta"]["text"]
            if text:
                self._say(Chunk(text))
        elif kind == "message_stop":
            self.over = True
        elif kind == "error" or name == b"error" or event.get("error"):
            raise BrokenOffError(event)
        elif kind == "message_start":
            self._begin(event["message"])
        elif kind == "message_delta":
            self._add_count(event.get("usage"))
            self._end(event)
        elif not self._is_plain(kind, event):
            self._read_block(event)

    def _read_block(self, event: Mapping[str, Any]) -> None:
        self._translated = True
        self.assembly.not_for_the_caller |= server_calls_in(event)
        missing = self._inputs.before(event)
        for each in (event,) if missing is None else (missing, event):
            for choice in self._parse(each).choices:
                choice.delta.thinking_blocks = None  # which hold pieces, too
                self._take_choice(choice, None)
        for block in self._thinking.take(event):
            self._say(Chunk(thinking_json=json.dumps([block])))

    def _is_plain(self, kind: Any, event: Mapping[str, Any]) -> bool:
        if kind == "ping":
            return True
        if self._translated:
            return False
        if kind == "content_block_stop":
            return True
        block = event.get("content_block") or _NOTHING
        return block.get("type") == "text" and not block.get("text") and not block.get("citations")

    def _begin(self, message: Mapping[str, Any]) -> None:
        self.assembly.id = str(message.get("id") or "")
        self.assembly.model = str(message.get("model") or self.assembly.model)
        self._add_count(message.get("usage"))

    def _end(self, event: Mapping[str, Any]) -> None:
        ending = end_of(ANTHROPIC_ENDS, event["delta"].get("stop_reason"))
        if ending is not None and ending.end == "tool_calls" and self._translated:
            read = self._parse({"type": "message_delta", "delta": event["delta"]}).choices[0]
            ending = Ending(ending.reason, str(read.finish_reason))
        self._finish(0, ending, sure=True)

    def _usage(self, counted: Any) -> tuple[Usage, Any]:
        # Where reasoning was shown, litellm counts it.
        if not self._translated and not any(map(counted.get, counted.keys() - _ANTHROPIC_USAGE)):
            return _usage(counted, "input_tokens", "output_tokens"), None
        read = self._parse({"type": "message_delta", "delta": {}, "usage": counted}).usage
        return usage_from(read), read


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
        text = _gemini_text(candidate)
        if text is None:
            add_missing_arguments(event)
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

    def _usage(self, counted: Any) -> tuple[Usage, Any]:
        details = counted.get("promptTokensDetails") or ()
        if counted.keys() <= _GEMINI_USAGE and all(d.get("modality") == "TEXT" for d in details):
            return _usage(counted, "promptTokenCount", "candidatesTokenCount"), None
        read = self._priced or self._parse({"usageMetadata": counted}).usage
        return usage_from(read), read


_NOTHING: Mapping[str, Any] = {}

_NO_TEXTS = (int, float)
"""What no field of a delta holds; litellm's reader refuses it."""

_ANTHROPIC_USAGE = frozenset({"input_tokens", "output_tokens", "service_tier"})

_GEMINI_USAGE = frozenset(
    {"promptTokenCount", "candidatesTokenCount", "totalTokenCount", "promptTokensDetails"}
)
_GROUNDING = frozenset({"groundingMetadata", "urlContextMetadata"})
_CANDIDATE = frozenset({"content", "finishReason", "index", "safetyRatings", "avgLogprobs"})


def _usage(counted: Mapping[str, Any], prompt: str, completion: str) -> Usage:
    return usage_from(
        {"prompt_tokens": counted.get(prompt), "completion_tokens": counted.get(completion)}
    )


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


def _gemini_text(candidate: Mapping[str, Any]) -> str | None:
    """A candidate's text, or None if it is of another kind."""
    content: Mapping[str, Any] = candidate.get("content") or _NOTHING
    parts: list[Any] = content.get("parts") or []
    if not candidate.keys() <= _CANDIDATE:
        return None
    for part in parts:
        if len(part) != 1 or type(part.get("text")) is not str:
            return None
    return "".join([part["text"] for part in parts])
