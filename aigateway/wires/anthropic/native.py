"""Anthropic's Messages as they are: https://platform.claude.com/docs/en/api/messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from aigateway.envelope import is_envelope
from aigateway.messages import Choice, Chunk, Completion, NativeAnswer, ToolCall, Usage
from aigateway.wires.answers import empty_answer_kind, usage_from
from aigateway.wires.anthropic import ANTHROPIC_ENDS
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.content import ThinkingKeeper, signed_blocks
from aigateway.wires.json_bodies import parsed
from aigateway.wires.native import NativeProtocol, NativeReading
from aigateway.wires.tool_calls import CallPiece
from aigateway.wires.wire import AnswerEnd, BrokenOffError, end_of

__all__ = ["MessagesProtocol"]

_VERSION = "2023-06-01"
_BETA = "anthropic-beta"
_OAUTH = "oauth-2025-04-20"
_THINKING = frozenset({"redacted_thinking", "thinking"})
_OF_A_CHAT = frozenset({"text", "tool_use", *_THINKING})


class MessagesReading(NativeReading):
    """One stream of events, from `message_start` to `message_stop`."""

    protocol = "messages"

    def __init__(self, model: str, expected: int = 1) -> None:
        super().__init__(model, expected)
        self._thinking = ThinkingKeeper()
        self._tools: set[Any] = set()
        self._message: dict[str, Any] = {}  # the whole one, as far as it has come
        self._blocks: dict[Any, _Block] = {}
        self._is_known = True  # what has come can be put together

    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "error" or name == b"error":
            raise BrokenOffError(event)
        if kind == "content_block_delta":
            self._add(event, event["delta"])
        elif kind == "content_block_start":
            self._start(event, event["content_block"])
        elif kind == "content_block_stop":
            self._stop(event)
        elif kind == "message_start":
            message = event["message"]
            self._message = dict(message)
            self.assembly.id = str(message.get("id") or "")
            self.assembly.model = str(message.get("model") or self.assembly.model)
            self._add_count(message.get("usage"))
        elif kind == "message_delta":
            self._add_count(event.get("usage"))
            beside = {n: v for n, v in event.items() if n not in {"delta", "type", "usage"}}
            self._message |= {**event["delta"], **beside}
            self._finish(0, _ending(event["delta"].get("stop_reason")), sure=True)
        elif kind == "message_stop":
            self.over = True

    def _start(self, event: Mapping[str, Any], block: Mapping[str, Any]) -> None:
        kind, index = block.get("type"), event.get("index")
        self._blocks[index] = _Block(block)
        self._thinking.take(event)
        if kind == "tool_use":
            given = block.get("input")
            said = json.dumps(given) if given and isinstance(given, Mapping) else ""
            piece = CallPiece(index, str(block["id"]), str(block["name"]), said, "function")
            self._tools.add(index)
            self._emit(Chunk(tool_calls=self._read_calls(0, [piece])))
        elif kind == "text" and block.get("text"):
            self._emit(Chunk(block["text"]))
        else:
            self.has_more = self.has_more or kind not in _OF_A_CHAT
            if self.begun:
                self._pass()

    def _add(self, event: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
        kind, index = delta.get("type"), event.get("index")
        if index in self._blocks:
            self._is_known = self._blocks[index].add(delta) and self._is_known
        if kind == "text_delta":
            if delta["text"]:
                self._emit(Chunk(delta["text"]))
        elif kind == "input_json_delta" and index in self._tools:
            piece = CallPiece(index, "", "", delta.get("partial_json") or "", "function")
            calls = self._read_calls(0, [piece])
            if calls:
                self._emit(Chunk(tool_calls=calls))
        elif kind == "thinking_delta":
            self._thinking.take(event)
            if delta["thinking"]:
                self._emit(Chunk(reasoning=delta["thinking"]))
        elif kind == "signature_delta":
            self._thinking.take(event)
        else:
            self._pass()

    def _stop(self, event: Mapping[str, Any]) -> None:
        blocks = self._thinking.take(event)
        if blocks:
            self._emit(Chunk(thinking_json=json.dumps(blocks)))
        elif self.begun:
            self._pass()

    def _whole(self) -> Any:
        if not self._is_known:
            return None
        blocks = [self._blocks[index].whole() for index in self._blocks]
        usage = self._message.get("usage")
        counted = {**usage, **self._counted} if isinstance(usage, Mapping) else self._counted
        return {**self._message, "content": blocks, "usage": counted}

    def _missing_end(self) -> Iterable[bytes]:
        return () if self.over else (b'event: message_stop\ndata: {"type":"message_stop"}\n\n',)

    @staticmethod
    def counted(usage: Mapping[str, Any]) -> Usage:
        """Return Anthropic's count, which keeps what its cache has read and written apart."""
        cached, written = usage.get("cache_read_input_tokens"), usage.get(_WRITTEN)
        counts: tuple[Any, ...] = (
            usage.get("input_tokens"),
            usage.get("output_tokens"),
            cached or 0,
            written or 0,
        )
        if {*map(type, counts)} == _INTEGERS and 0 <= min(counts) <= sum(counts) < 2**53:
            prompt = counts[0] + counts[2] + counts[3]
            return Usage(prompt, counts[1], prompt + counts[1], counts[2], 0, counts[3])
        prompt = sum(n for n in (usage.get("input_tokens"), cached, written) if type(n) is int)
        return usage_from(
            {
                "prompt_tokens": prompt,
                "completion_tokens": usage.get("output_tokens"),
                "cache_read_input_tokens": cached,
                _WRITTEN: written,
            }
        )


_INTEGERS = {int}
_WRITTEN = "cache_creation_input_tokens"
_TEXTS = {"input_json_delta": "partial_json", "signature_delta": "signature"}
_TEXTS |= {"text_delta": "text", "thinking_delta": "thinking"}
"""The field of a delta that continues the text of a block."""


class _Block:
    """A block of a message whose deltas are arriving."""

    __slots__ = ("_begun", "_cited", "_texts")

    def __init__(self, begun: Mapping[str, Any]) -> None:
        self._begun = dict(begun)
        self._texts: dict[str, list[str]] = {}
        self._cited: list[Any] = []

    def add(self, delta: Mapping[str, Any]) -> bool:
        """Take in a delta; return False if it is of an unknown kind."""
        name = _TEXTS.get(str(delta.get("type")))
        if name is not None:
            self._texts.setdefault(name, []).append(str(delta.get(name) or ""))
        elif delta.get("type") == "citations_delta":
            self._cited.append(delta.get("citation"))
        else:
            return False
        return True

    def whole(self) -> dict[str, Any]:
        """Return the block as a whole message has it."""
        block = dict(self._begun)
        for name, pieces in self._texts.items():
            text = "".join(pieces)
            if name == "partial_json":
                block["input"] = parsed(text.encode()) if text else block.get("input") or {}
            else:
                block[name] = str(block.get(name) or "") + text
        if self._cited:
            block["citations"] = [*(block.get("citations") or ()), *self._cited]
        return block


class MessagesProtocol(NativeProtocol):
    """Messages at Anthropic, or at a server that speaks its protocol."""

    name = "messages"
    reading = MessagesReading

    def _address(self, base: str) -> str:
        return f"{base}/v1/messages"

    def _key_headers(self, key: str) -> dict[str, str]:
        if key.startswith("sk-ant-oat"):  # of a subscription
            return {"Authorization": f"Bearer {key}", _BETA: _OAUTH}
        return {"x-api-key": key}

    def _with_headers(self, own: Mapping[str, str], given: Mapping[str, str]) -> Mapping[str, str]:
        named = {name.lower(): value for name, value in own.items()}
        features = [
            feature.strip()
            for value in (named.get(_BETA), given.get(_BETA))
            for feature in (value or "").split(",")
        ]
        headers = {name: v for name, v in own.items() if name.lower() != _BETA}
        if any(features):
            headers[_BETA] = ",".join(dict.fromkeys(filter(None, features)))
        if "anthropic-version" not in named:
            headers["anthropic-version"] = given.get("anthropic-version") or _VERSION
        return headers

    def _fitted(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return _with_possible_thinking(_without_blocks(body, _is_foreign))

    def without_signatures(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave out the thinking of earlier turns."""
        return _without_blocks(body, lambda block: block.get("type") in _THINKING)

    def completion(self, body: Any, content: bytes, *, stops: bool) -> Completion:
        """Read a message."""
        if type(body) is not dict or body.get("type") != "message":
            raise BrokenOffError(body)
        reason = body.get("stop_reason")
        end = ANTHROPIC_ENDS.get(reason) if type(reason) is str else None
        if end is None:
            ending = _ending(reason)
            if ending is None:
                raise BrokenOffError(None)
            end = str(ending.end)
        given = body.get("content") or ()
        blocks: list[Mapping[str, Any]] = [block for block in given if type(block) is dict]
        text = blocks[0].get("text") if len(blocks) == 1 else None
        if text and type(text) is str and blocks[0].get("type") == "text":  # almost every message
            choice = Choice(text, end)
        else:
            choice = _choice(blocks, end)
            if all(block.get("type") in _OF_A_CHAT for block in blocks):
                silence = empty_answer_kind((choice,), stops=stops)
                if silence is not None:
                    raise VendorCallError(Failure(silence, 200))
        return Completion(
            str(body.get("id") or ""),
            str(body.get("model") or self.model),
            (choice,),
            MessagesReading.counted(body.get("usage") or {}),
            native=NativeAnswer("messages", content),
        )


def _ending(reason: Any) -> AnswerEnd | None:
    """Return why a message has ended. A reason that is new ends it as well as any other."""
    ending = end_of(ANTHROPIC_ENDS, reason)
    return ending if ending is None or ending.end else replace(ending, end="stop")


def _choice(blocks: list[Mapping[str, Any]], end: str) -> Choice:
    def joined(kind: str) -> str:
        return "".join(str(block.get(kind) or "") for block in blocks if block.get("type") == kind)

    thinking = signed_blocks([dict(block) for block in blocks if block.get("type") in _THINKING])
    return Choice(
        joined("text"),
        end,
        tuple(
            ToolCall(str(block["id"]), str(block["name"]), json.dumps(block.get("input") or {}))
            for block in blocks
            if block.get("type") == "tool_use"
        ),
        joined("thinking") or None,
        thinking_json=json.dumps(thinking) if thinking else None,
    )


def _is_foreign(block: Mapping[str, Any]) -> bool:
    """Return whether a block has what another vendor has signed, or nothing of Anthropic's."""
    kind = block.get("type")
    if kind == "redacted_thinking":
        return is_envelope(block.get("data"))
    signature = block.get("signature")
    return kind == "thinking" and (not signature or is_envelope(signature))


def _without_blocks(body: Mapping[str, Any], is_left_out: Any) -> Mapping[str, Any]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    fitted, changed = [], False
    for message in messages:
        is_message = type(message) is dict or isinstance(message, Mapping)
        content = message.get("content") if is_message else None
        if isinstance(content, list) and message.get("role") == "assistant":
            kept = [b for b in content if not (isinstance(b, Mapping) and is_left_out(b))]
            if len(kept) < len(content):
                changed = True
                if not kept:
                    continue  # a message without content is refused
                message = {**message, "content": kept}  # noqa: PLW2901 - a changed copy
        fitted.append(message)
    return {**body, "messages": fitted} if changed else body


def _with_possible_thinking(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask for no thinking where Anthropic would refuse it.

    A turn of an assistant who thinks has to begin with a thought. Another vendor may have begun
    the present turn, which waits for the result of a tool.
    """
    thinking, messages = body.get("thinking"), body.get("messages")
    if thinking is None or not (
        isinstance(thinking, Mapping)
        and thinking.get("type") in {"adaptive", "enabled"}
        and isinstance(messages, list)
    ):
        return body
    begun: Any = None  # the content with which the assistant has begun the present turn
    for message in reversed(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if message.get("role") == "assistant":
            begun = content
        elif not (isinstance(content, list) and any(map(_is_result, content))):
            break
    first = begun[0] if isinstance(begun, list) and begun else None
    if begun is None or (isinstance(first, Mapping) and first.get("type") in _THINKING):
        return body
    fitted = {name: value for name, value in body.items() if name != "thinking"}
    edited = body.get(_EDITS)
    if isinstance(edited, Mapping) and isinstance(edited.get("edits"), list):
        edits = [e for e in edited["edits"] if "thinking" not in str(dict(e).get("type"))]
        fitted[_EDITS] = {**edited, "edits": edits}
    return fitted


_EDITS = "context_management"


def _is_result(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "tool_result"
