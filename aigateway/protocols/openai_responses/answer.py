"""Answers of Responses: output items, written as one object or as the events of a stream."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from aigateway.clock import SYSTEM_CLOCK
from aigateway.envelope import OWN_ITEM, sealed
from aigateway.errors import error_refusal
from aigateway.messages import (
    ChatResponse,
    Choice,
    Chunk,
    Completion,
    Opening,
    ToolCallDelta,
    Usage,
)
from aigateway.protocols.openai_responses.request import ResponsesRequest
from aigateway.protocols.openai_responses.tools import (
    CALL_FIELDS,
    CALL_ITEMS,
    Json,
    ResponsesTool,
    custom_input,
    object_in,
)
from aigateway.protocols.protocol import EventWriter, ReadRequest, ServerSentEvent, encoded

__all__ = ["ResponsesWriter", "ended_with_error", "written_response"]


def _new_token() -> str:
    return OWN_ITEM + os.urandom(16).hex()


def _response(request: ReadRequest, token: str, model: str, created: int) -> Json:
    """Return a Response without its output: what was asked, as OpenAI repeats it."""
    given = request.native.body
    reasoning = given.get("reasoning") or {}
    return {
        "id": f"resp_{token}",
        "object": "response",
        "created_at": created or int(SYSTEM_CLOCK.wall()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata") or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": given.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {
            "effort": reasoning.get("effort"),
            "summary": reasoning.get("summary"),
        },
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": given.get("service_tier") or "default",
        "store": False,
        "temperature": 1.0 if (warmth := given.get("temperature")) is None else warmth,
        "text": {"format": {"type": "text"}, **_without_none(given.get("text"))},
        "tool_choice": given.get("tool_choice") or "auto",
        "tools": [_repeated_tool(tool) for tool in given.get("tools") or ()],
        "top_logprobs": given.get("top_logprobs") or 0,
        "top_p": 1.0 if (share := given.get("top_p")) is None else share,
        "truncation": given.get("truncation") or "disabled",
        "usage": None,
        "user": given.get("user"),
    }


def _without_none(fields: Any) -> Json:
    return {n: v for n, v in (fields or {}).items() if v is not None}


def _repeated_tool(tool: Json) -> Json:
    if tool["type"] != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer is not complete, by its finish reason."""


def _finish_response(response: Json, completion: Completion, output: _Output) -> None:
    """Write the end of an answer, and close what is open in it."""
    choice = completion.choices[0] if completion.choices else Choice()
    output.reason = reason = _INCOMPLETE.get(choice.finish_reason or "")
    output.end(choice)
    response["status"] = "completed" if reason is None else "incomplete"
    if reason is not None:
        response["incomplete_details"] = {"reason": reason}
    if completion.service_tier is not None:
        response["service_tier"] = completion.service_tier
    response["output"] = output.items
    response["usage"] = _usage(completion.usage)


def written_response(response: ChatResponse, request: ReadRequest) -> Json:
    """Return an answer as a Response."""
    completion, token = response.completion, _new_token()
    output = _Output(request, token, streamed=False)
    for choice in completion.choices[:1]:
        output.add_content(choice)
        for index, call in enumerate(choice.tool_calls):
            given = (call.id, call.name, call.arguments, call.type, call.thought_signature)
            output.add_call(ToolCallDelta(index, *given))
    written = _response(request, token, completion.model, completion.created)
    _finish_response(written, completion, output)
    return written


class _OpenItem:
    """An item that is being written."""

    __slots__ = ("head", "index", "item", "pieces", "tool")

    def __init__(self, index: int, item: Json) -> None:
        self.index = index
        self.item = item
        self.head = b'"item_id":"%b","output_index":%d,' % (item["id"].encode(), index)
        self.pieces: list[str] = []
        self.tool = ResponsesTool("function", "")


class _Output:
    """Collects the output items of an answer, and writes each step as an event.

    A reasoning item precedes the item it belongs to; the signature of a call is in one before that
    call. Calls stay open until the end: servers may send their parts in any order.

    Args:
        request: The request.
        token: In the ids of the items.
        streamed: Whether events are wanted.

    Attributes:
        items: The items.
        reason: Why the answer is not complete; known only at its end.
        events: The events since this was set.
        written: All events so far.
    """

    __slots__ = (
        "_calls",
        "_message",
        "_pending",
        "_reasoning",
        "_streamed",
        "_token",
        "_tools",
        "events",
        "items",
        "reason",
        "written",
    )

    def __init__(self, request: ReadRequest, token: str, *, streamed: bool) -> None:
        self.items: list[Json] = []
        self.reason: str | None = None
        self.events: list[ServerSentEvent] = []
        self.written = 0
        self._tools = request.tools if isinstance(request, ResponsesRequest) else {}
        self._token = token
        self._streamed = streamed
        self._calls: dict[int, _OpenItem] = {}
        self._message: _OpenItem | None = None
        self._reasoning: _OpenItem | None = None
        self._pending: Json = {}  # what the next reasoning item seals

    def emit(self, name: bytes, head: bytes, last: bytes, value: Any) -> None:
        """Write an event, if events are wanted.

        Args:
            name: Its type.
            head: Its fields in JSON, each with a comma at its end.
            last: The name of its last field.
            value: The value of that.
        """
        if self._streamed:
            raw = b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b"%b":%b}\n\n' % (
                name,
                name,
                self.written,
                head,
                last,
                encoded(value),
            )
            self.written += 1
            self.events.append(ServerSentEvent(raw))

    def add_content(self, chunk: Chunk | Choice) -> None:
        """Add the content of a chunk, or of a whole answer, without its calls."""
        if chunk.reasoning or chunk.thinking_json:
            self._add_reasoning(chunk)
        if chunk.text:
            self._add_text("output_text", chunk.text)
        if chunk.refusal:
            self._add_text("refusal", chunk.refusal)
        if chunk.sources_json:
            self._add_citations(chunk.sources_json)
        for image in chunk.images:
            self._add_image(image)
        if chunk.thought_signatures:
            self._pending.setdefault("signatures", []).extend(chunk.thought_signatures)

    # ── reasoning ────────────────────────────────────────────────────────────────────────────

    def _add_reasoning(self, chunk: Chunk | Choice) -> None:
        opened = self._reasoning or self._open_reasoning()
        if chunk.reasoning:
            head = opened.head + b'"summary_index":0,'
            if not opened.pieces:
                part = {"type": "summary_text", "text": ""}
                self.emit(b"response.reasoning_summary_part.added", head, b"part", part)
            opened.pieces.append(chunk.reasoning)
            self.emit(b"response.reasoning_summary_text.delta", head, b"delta", chunk.reasoning)
        if chunk.thinking_json:
            self._pending.setdefault("thinking", []).extend(chunk.thinking_blocks)

    def _open_reasoning(self) -> _OpenItem:
        self._close_message()
        self._reasoning = self._open("rs", {"type": "reasoning", "summary": []})
        return self._reasoning

    def _close_reasoning(self) -> None:
        opened, self._reasoning = self._reasoning, None
        if opened is None:
            return
        text = "".join(opened.pieces)
        if text:
            part = {"type": "summary_text", "text": text}
            opened.item["summary"] = [part]
            head = opened.head + b'"summary_index":0,'
            self.emit(b"response.reasoning_summary_text.done", head, b"text", text)
            self.emit(b"response.reasoning_summary_part.done", head, b"part", part)
            if "thinking" not in self._pending:
                self._pending["reasoning"] = text
        opened.item["encrypted_content"] = _sealed(self._pending)
        self._pending = {}
        self._emit_done(opened)

    def _flush_pending(self) -> None:
        """Write pending thinking and signatures as a reasoning item, if there are any."""
        if self._reasoning is None and self._pending:
            self._open_reasoning()
        self._close_reasoning()

    # ── messages ─────────────────────────────────────────────────────────────────────────────

    def _add_text(self, kind: str, text: str) -> None:
        message = self._message
        if message is None:
            self._close_reasoning()
            item = {"type": "message", "role": "assistant", "status": "in_progress", "content": []}
            self._message = message = self._open("msg", item)
        content = message.item["content"]
        if not content or content[-1]["type"] != kind:
            self._close_part(message)
            part: Json = {"type": kind, "refusal": ""}
            if kind == "output_text":
                part = {"type": kind, "text": "", "annotations": [], "logprobs": []}
            content.append(part)
            self.emit(b"response.content_part.added", _part_head(message), b"part", part)
        if text:
            message.pieces.append(text)
            head = message.head + b'"content_index":%d,' % (len(content) - 1)
            if kind == "output_text":
                self.emit(b"response.output_text.delta", head + b'"logprobs":[],', b"delta", text)
            else:
                self.emit(b"response.refusal.delta", head, b"delta", text)

    def _close_part(self, message: _OpenItem, logprobs: Sequence[Json] = ()) -> None:
        if not message.item["content"]:
            return
        part, text = message.item["content"][-1], "".join(message.pieces)
        message.pieces.clear()
        head = _part_head(message)
        if part["type"] == "output_text":
            part["text"] = text
            part["logprobs"] = logprobs = list(logprobs)
            done = head + b'"logprobs":%b,' % encoded(logprobs)
            self.emit(b"response.output_text.done", done, b"text", text)
        else:
            part["refusal"] = text
            self.emit(b"response.refusal.done", head, b"refusal", text)
        self.emit(b"response.content_part.done", head, b"part", part)

    def _close_message(self, logprobs: Sequence[Json] = ()) -> None:
        message, self._message = self._message, None
        if message is not None:
            self._close_part(message, logprobs)
            self._complete(message)
            self._emit_done(message)

    def _add_citations(self, sources_json: str) -> None:
        """Add citations in OpenAI's form to the open text."""
        message = self._message
        if message is None or message.item["content"][-1]["type"] != "output_text":
            return
        known = message.item["content"][-1]["annotations"]
        for given in json.loads(sources_json).get("annotations") or ():
            cited = given.get("url_citation") if isinstance(given, dict) else None
            if isinstance(cited, dict) and isinstance(cited.get("url"), str):
                annotation = {
                    "type": "url_citation",
                    "start_index": cited.get("start_index") or 0,
                    "end_index": cited.get("end_index") or 0,
                    "title": cited.get("title") or cited["url"],
                    "url": cited["url"],
                }
                head = _part_head(message) + b'"annotation_index":%d,' % len(known)
                known.append(annotation)
                name = b"response.output_text.annotation.added"
                self.emit(name, head, b"annotation", annotation)

    def _add_image(self, url: str) -> None:
        self._close_reasoning()
        self._close_message()
        result = url.partition(";base64,")[2] or url
        item = {"type": "image_generation_call", "status": "completed", "result": result}
        self._emit_done(self._open("ig", item))

    # ── calls ────────────────────────────────────────────────────────────────────────────────

    def add_call(self, delta: ToolCallDelta) -> None:
        """Add the next part of a call."""
        opened = self._calls.get(delta.index)
        if opened is None:
            opened = self._open_call(delta)
        if delta.arguments:
            opened.pieces.append(delta.arguments)
            if opened.tool.type == "function":
                name = b"response.function_call_arguments.delta"
                self.emit(name, opened.head, b"delta", delta.arguments)

    def _open_call(self, delta: ToolCallDelta) -> _OpenItem:
        if delta.thought_signature is not None:
            self._pending["calls"] = {delta.id: delta.thought_signature}
        self._close_message()
        self._flush_pending()
        kind = "custom" if delta.type == "custom" else "function"
        tool = self._tools.get(delta.name) or ResponsesTool(kind, delta.name)
        prefix, item = CALL_ITEMS[tool.type](tool)
        status = {} if kind == "custom" else {"status": "in_progress"}
        opened = self._open(prefix, {**item, "call_id": delta.id, **status})
        opened.tool = tool
        self._calls[delta.index] = opened
        return opened

    def _close_call(self, opened: _OpenItem) -> None:
        given = "".join(opened.pieces)
        kind = opened.tool.type
        if kind == "function":
            opened.item["arguments"] = given
            name = b"response.function_call_arguments.done"
            self.emit(name, opened.head, b"arguments", given)
        elif kind == "custom":
            opened.item["input"] = text = custom_input(given)
            self.emit(b"response.custom_tool_call_input.delta", opened.head, b"delta", text)
            self.emit(b"response.custom_tool_call_input.done", opened.head, b"input", text)
        else:
            opened.item |= CALL_FIELDS[kind](object_in(given))
        if "status" in opened.item:
            self._complete(opened)
        self._emit_done(opened)

    # ── all items ────────────────────────────────────────────────────────────────────────────

    def _open(self, prefix: str, item: Json) -> _OpenItem:
        index = len(self.items)
        opened = _OpenItem(index, {"id": f"{prefix}_{self._token}{index:02x}", **item})
        self.items.append(opened.item)
        head = b'"output_index":%d,' % index
        self.emit(b"response.output_item.added", head, b"item", opened.item)
        return opened

    def _complete(self, opened: _OpenItem) -> None:
        cut = self.reason is not None and opened.index == len(self.items) - 1
        opened.item["status"] = "incomplete" if cut else "completed"

    def _emit_done(self, opened: _OpenItem) -> None:
        head = b'"output_index":%d,' % opened.index
        self.emit(b"response.output_item.done", head, b"item", opened.item)

    def end(self, choice: Choice) -> None:
        """Close what is open."""
        silent = all(item["type"] == "reasoning" for item in self.items)
        if silent and self.reason is None:
            self._add_text("output_text", "")  # clients read a message
        self._close_message(_logprobs(choice))
        self._flush_pending()
        for opened in self._calls.values():
            self._close_call(opened)


def _part_head(message: _OpenItem) -> bytes:
    return message.head + b'"content_index":%d,' % (len(message.item["content"]) - 1)


def _sealed(content: Json) -> str:
    try:
        return sealed(content)
    except orjson.JSONEncodeError:
        text = json.dumps(content, ensure_ascii=False)  # it has a lone surrogate
        return sealed(json.loads(text.encode("utf-8", "replace")))


def _logprobs(choice: Choice) -> list[Json]:
    if choice.logprobs_json is None:
        return []
    content = json.loads(choice.logprobs_json).get("content")
    return content if isinstance(content, list) else []


class ResponsesWriter:
    """Writes one stream as the events of OpenAI's Responses.

    Args:
        opening: The beginning of the answer.
        request: The request.
        request_id: As in logs.
    """

    __slots__ = ("_opening", "_output", "_response")

    def __init__(self, opening: Opening, request: ReadRequest, request_id: str) -> None:
        del request_id  # a caller may use it twice, but no two responses have the same id
        token = _new_token()
        self._opening = opening
        self._output = _Output(request, token, streamed=True)
        self._response = _response(request, token, opening.model, opening.created)

    def events(self, chunk: Chunk) -> Iterable[ServerSentEvent]:
        """Return the events for a chunk."""
        output = self._output
        output.events = []
        if not output.written:
            begun = orjson.Fragment(encoded(self._response))
            output.emit(b"response.created", b"", b"response", begun)
            output.emit(b"response.in_progress", b"", b"response", begun)
        output.add_content(chunk)
        for delta in chunk.tool_calls:
            output.add_call(delta)
        return output.events

    def end(self, response: ChatResponse) -> Iterable[ServerSentEvent]:
        """Return the events that end the stream."""
        output = self._output
        output.events = []
        _finish_response(self._response, response.completion, output)
        name = b"response.completed" if output.reason is None else b"response.incomplete"
        output.emit(name, b"", b"response", self._response)
        return output.events

    def failed(self, error: Mapping[str, Any], written: int) -> Iterable[ServerSentEvent]:
        """Return the events that end a stream that broke.

        Args:
            error: OpenAI's object of an error.
            written: The events before; also those that the provider has written itself.
        """
        output = self._output
        if not output.written and self._opening.id:
            self._response["id"] = self._opening.id  # as the provider's events say
        output.events, output.written = [], written
        self._response |= _failure(error)
        output.emit(b"response.failed", b"", b"response", self._response)
        # As documented, and as OpenAI really sends it: its SDK raises an exception for the latter.
        fields = {name: error.get(name) for name in ("code", "message", "param")}
        head = encoded(fields)[1:-1] + b","
        output.emit(b"error", head, b"error", error)
        return output.events


def _failure(error: Mapping[str, Any]) -> Json:
    known = error.get("code") == "rate_limit_exceeded"
    code = "rate_limit_exceeded" if known else "server_error"
    return {"status": "failed", "error": {"code": code, "message": error.get("message")}}


def ended_with_error(error: Exception, writer: EventWriter | None, written: int) -> bytes:
    """Return the events that end a stream that broke: `response.failed` and `error`."""
    assert isinstance(writer, ResponsesWriter)  # noqa: S101 - `RESPONSES` makes no other
    said = error_refusal(error).body["error"]
    return b"".join(event.raw for event in writer.failed(said, written))
