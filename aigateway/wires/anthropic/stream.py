"""Streams of the Anthropic wire: see `wires/stream_reading.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aigateway.messages import Chunk, Usage
from aigateway.wires.answers import usage_from
from aigateway.wires.anthropic.ends import ANTHROPIC_ENDS
from aigateway.wires.anthropic.tool_calls import InputKeeper, server_calls_in
from aigateway.wires.content import ThinkingKeeper
from aigateway.wires.ends import BrokenOffError, Ending, end_of
from aigateway.wires.stream_reading import StreamReading, counted

__all__ = ["AnthropicReading"]

_NOTHING: Mapping[str, Any] = {}


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

    def _usage(self, given: Any) -> tuple[Usage, Any]:
        # Where reasoning was shown, litellm counts it.
        if not self._translated and not any(map(given.get, given.keys() - _USAGE)):
            return counted(given, "input_tokens", "output_tokens"), None
        read = self._parse({"type": "message_delta", "delta": {}, "usage": given}).usage
        return usage_from(read), read


_USAGE = frozenset({"input_tokens", "output_tokens", "service_tier"})
