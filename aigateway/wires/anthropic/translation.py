"""Anthropic's requests, answers and streams.

litellm translates; plain answers and ordinary events are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aigateway.messages import Choice, Chunk, Completion, Usage
from aigateway.wires.answers import (
    UnusualError,
    counted_usage,
    is_absent,
    usage_from,
)
from aigateway.wires.anthropic import ANTHROPIC_ENDS, InputKeeper, server_calls_in
from aigateway.wires.assembly import Assembly
from aigateway.wires.content import ThinkingKeeper
from aigateway.wires.plain_requests import (
    ASKED,
    CALLED,
    PARTS,
    SYSTEM,
    NotPlainError,
    Shape,
    arguments_of,
    calls_of,
    checked,
    texts_of,
)
from aigateway.wires.stream_reading import StreamReading, counted
from aigateway.wires.translation import Translation
from aigateway.wires.wire import AnswerEnd, BrokenOffError, VendorRequest, end_of

__all__ = ["AnthropicReading", "AnthropicTranslation", "anthropic_completion"]

_NOTHING: Mapping[str, Any] = {}


def anthropic_completion(body: Any) -> Completion | None:
    """Read a plain answer; None if it is of another kind."""
    try:
        (block,) = body["content"]
        usage, text, model, name = body["usage"], block["text"], body["model"], body["id"]
        finish = _FINISHES[body["stop_reason"]]
        if (
            body.get("error")
            or not (type(name) is str and name and type(model) is str and model)
            or body["type"] != "message"
            or block["type"] != "text"
            or not (type(text) is str and text and "<think" not in text)
            or block.get("citations")
        ):
            return None
        for count in usage.keys() - _USAGE:
            if usage[count] and not is_absent(usage[count]):
                return None
        counted = counted_usage(usage["input_tokens"], usage["output_tokens"])
        return Completion(name, model, (Choice(text, finish),), counted)
    except (UnusualError, KeyError, TypeError, AttributeError, ValueError):
        return None


_FINISHES = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
_USAGE = frozenset({"input_tokens", "output_tokens", "service_tier"})


class AnthropicReading(StreamReading):
    """Streams of blocks.

    litellm's reader remembers the open block, so from the first block that is not a text it gets
    every event except pieces of text, which it ignores. If a tool call may stand for the answer's
    text (`translated`), it gets them from the beginning, because it turns that call into text.
    """

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
                self._emit(Chunk(text))
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
            self._emit(Chunk(thinking_json=json.dumps([block])))

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
            ending = AnswerEnd(ending.reason, str(read.finish_reason))
        self._finish(0, ending, sure=True)

    def _usage(self, given: Any) -> tuple[Usage, Any]:
        # Where reasoning was shown, litellm counts it.
        if not self._translated and not any(map(given.get, given.keys() - _USAGE)):
            return counted(given, "input_tokens", "output_tokens"), None
        read = self._parse({"type": "message_delta", "delta": {}, "usage": given}).usage
        return usage_from(read), read


_ANTHROPIC_PLAIN = frozenset({"max_tokens", "stop_sequences", "temperature", "top_p"})
"""Of the parameters in Anthropic's words, those that have no influence on the headers."""
_TOOL_NAMES = "_anthropic_tool_name_map"
"""Where litellm notes how it had to rename tools for Anthropic."""
_BILLING = "x-anthropic-billing-header"
"""How instructions begin that litellm may leave out."""
_WORD = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Ids and names of tools that litellm leaves as they are."""


_SPEAKERS = frozenset({"assistant", "user"})


class _AnthropicTalk:
    """Plain messages in Anthropic's form: neighbours of one role are put together."""

    def __init__(self) -> None:
        self.system: list[Any] = []
        self.turns: list[Any] = []
        self.shape = 0
        self._blocks: list[Any] = []
        self._role = ""
        self._ids: set[str] = set()
        self._open: set[str] = set()  # calls whose results have not come

    def add(self, message: Mapping[str, Any]) -> None:
        """Add a message. Raises `NotPlainError`, and other errors that mean the same."""
        content = message.get("content")
        if len(message) == 2 and type(content) is str and message["role"] in _SPEAKERS:
            self._say_text(message["role"], content)  # almost every message
            return
        role = checked(message)
        if role == "system":
            self._instruct(content)
        elif role == "tool":
            self._add_result(message, content)
        elif self._open or (role == "assistant" and not self.turns):
            raise NotPlainError
        else:
            self._turn(role)
            calls = message.get("tool_calls")
            if content is not None or not calls:
                self._say(content)
            if role == "assistant":
                self.shape |= ASKED
            if calls:
                self._call(message)

    def _say_text(self, role: str, text: str) -> None:
        if self._open or not text or text.isspace():
            raise NotPlainError
        if role == "assistant":
            if not self.turns:
                raise NotPlainError
            self.shape |= ASKED
        if role != self._role:
            self._turn(role)
        self._blocks.append({"type": "text", "text": text})

    def _turn(self, role: str) -> None:
        if role != self._role:
            self._role, self._blocks = role, []
            self.turns.append({"role": role, "content": self._blocks})

    def _instruct(self, content: Any) -> None:
        self.shape |= SYSTEM
        if self.turns:
            raise NotPlainError  # it depends on the model where it goes
        if type(content) is not str:
            self.shape |= PARTS
        for text in texts_of(content):
            if text.startswith(_BILLING):
                raise NotPlainError
            self.system.append({"type": "text", "text": text})

    def _say(self, content: Any) -> None:
        if type(content) is not str:
            self.shape |= PARTS
        for text in texts_of(content):
            self._blocks.append({"type": "text", "text": text})

    def _call(self, message: Mapping[str, Any]) -> None:
        self.shape |= CALLED
        for call in calls_of(message):
            is_safe = _WORD.fullmatch(call.id) and _WORD.fullmatch(call.name)
            if not is_safe or call.id.startswith("srvtoolu_") or call.id in self._ids:
                raise NotPlainError
            self._ids.add(call.id)
            self._open.add(call.id)
            block = {"type": "tool_use", "id": call.id, "name": call.name}
            self._blocks.append({**block, "input": arguments_of(call)})

    def _add_result(self, message: Mapping[str, Any], content: Any) -> None:
        given = message["tool_call_id"]
        self._open.remove(given)  # an unknown one is a KeyError
        if type(content) is not str or not content or content.isspace():
            raise NotPlainError
        self._turn("user")
        block = {"type": "tool_result", "tool_use_id": given, "content": content}
        self._blocks.append(block)


class AnthropicTranslation(Translation):
    """Translates for Anthropic."""

    read_plain = staticmethod(anthropic_completion)
    _plain_headers: dict[str, str] | None = None
    _own_params = frozenset({"top_k"})
    _slots = frozenset({"messages", "system"})
    sample = (
        b'{"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [{"type":'
        b' "text", "text": "ok"}], "stop_reason": "end_turn", "stop_sequence": null,'
        b' "usage": {"input_tokens": 1, "output_tokens": 1}}'
    )

    def _addresses(self) -> tuple[str, str]:
        from litellm.llms.anthropic.chat.handler import ModelResponseIterator  # noqa: PLC0415

        self._iterator = ModelResponseIterator
        url = f"{self._base}/v1/messages"
        return url, url

    def _arranged(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Shape, Mapping[str, Any]]:
        talk = _AnthropicTalk()
        for message in messages:
            talk.add(message)
        if not talk.turns or talk.turns[-1]["role"] != "user":
            raise NotPlainError  # litellm changes the end of an answer that is to go on
        slots = {"messages": talk.turns}
        return talk.shape, {**slots, "system": talk.system} if talk.system else slots

    def _headers(
        self, messages: list[Any], options: dict[str, Any], *, plain: bool
    ) -> dict[str, str]:
        # They depend on what of Anthropic's trial features is used; a plain request uses none.
        if plain and options.keys() <= _ANTHROPIC_PLAIN:
            if self._plain_headers is None:
                self._plain_headers = self._headers_for(messages, options)
            return dict(self._plain_headers)  # the translation of the body may add to them
        return self._headers_for(messages, options)

    def _headers_for(self, messages: list[Any], options: dict[str, Any]) -> dict[str, str]:
        headers: dict[str, str] = self._config.validate_environment(
            dict(self._extra_headers), self._model, messages, options, {}, self._key, self._base
        )
        return headers

    def _body(
        self,
        messages: list[Any],
        options: dict[str, Any],
        headers: Mapping[str, str],
        notes: dict[str, Any],
        *,
        plain: bool,
    ) -> dict[str, Any]:
        without = {name: value for name, value in options.items() if name != "json_mode"}
        without["is_vertex_request"] = False
        return super()._body(messages, without, headers, notes, plain=plain)

    stream_sample = (
        b'data: {"type": "message_start", "message": {"id": "1", "model": "m", "usage": {'
        b'"input_tokens": 1, "output_tokens": 1}}}\n\n'
        b'data: {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use",'
        b' "id": "1", "name": "f", "input": {}}}\n\n'
        b'data: {"type": "content_block_stop", "index": 0}\n\n'
        b'data: {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta",'
        b' "text": "ok"}}\n\n'
        b'data: {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {'
        b'"output_tokens": 1}}\n\n'
        b'data: {"type": "message_stop"}\n\n'
    )

    def _reading(
        self, sent: VendorRequest, assembly: Assembly, make_parser: Callable[[], Any]
    ) -> StreamReading:
        return AnthropicReading(assembly, make_parser, translated="json_mode" in sent.options)

    def _parser(self, sent: VendorRequest) -> Any:
        return self._iterator(
            iter(()),
            True,
            json_mode=sent.options.get("json_mode", False),
            tool_name_reverse_map=sent.notes.get(_TOOL_NAMES),
        )
