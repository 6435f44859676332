"""Anthropic's Messages: https://platform.claude.com/docs/en/api/messages.

A request is read as a chat, and the answer to a chat is written as a message or as its events.
Other vendors need parts of their answers back in the next request (reasoning, signatures). These
travel sealed in envelopes: as the `signature` of a `thinking` block, or as the `data` of a
`redacted_thinking` block.

litellm's own adapter is not used. It sends the thinking of the history to every server, loses
`disable_parallel_tool_use` and the signatures of other vendors, and costs more than a whole chat.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeGuard

import orjson

from aigateway.envelope import is_envelope, opened_envelope, sealed
from aigateway.errors import Refusal, RequestRejectedError, error_refusal
from aigateway.messages import (
    ChatResponse,
    Choice,
    Chunk,
    NativeRequest,
    Opening,
    ToolCallDelta,
    Usage,
)
from aigateway.protocols.protocol import (
    CallerProtocol,
    EventWriter,
    ReadRequest,
    ServerSentEvent,
    encoded,
    system_reminder,
)
from aigateway.request.checks import MOST_CALLS, CheckedMessages, check_body
from aigateway.request.json_copy import encoded_json

__all__ = ["MESSAGES", "MESSAGES_COUNT", "anthropic_error"]


# ── what travels in a conversation ───────────────────────────────────────────────────────────

_THOUGHTS = {"redacted_thinking": "data", "thinking": "signature"}
"""Blocks of thinking, and the field of each with Anthropic's signature or an envelope."""

_ID = "aigw_"
"""Prefix of the id of a tool call that contains the vendor's own id."""

_NONCE = 8
_LONGEST_ID = 64
_FIT_ID = re.compile(r"[a-zA-Z0-9_-]{9,64}")
"""Ids that are passed on unchanged. Shorter ones ("call_0") are not unique in a conversation."""

_LONGEST_NAME = 64
"""Most characters of a tool's name at OpenAI and those that imitate it; Anthropic takes 128."""


def _encoded_id(name: str, request_id: str, index: int) -> str:
    """Return the id of a tool call as every vendor takes it."""
    if _FIT_ID.fullmatch(name) and not name.startswith(_ID):
        return name
    nonce = f"{zlib.crc32(f'{request_id} {index}'.encode()):08x}"
    inner = base64.urlsafe_b64encode(name.encode("utf-8", "replace")).decode().rstrip("=")
    written = f"{_ID}{nonce}{inner}"
    return written if len(written) <= _LONGEST_ID else f"call_{_digest(name)[:32]}"


def _decoded_id(name: str) -> str:
    """Return the vendor's own id."""
    if not name.startswith(_ID):
        return name
    inner = name[len(_ID) + _NONCE :]
    try:
        return base64.urlsafe_b64decode(inner + "=" * (-len(inner) % 4)).decode() or name
    except ValueError:
        return name


def _field_of(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()


def _short_name(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:51]}_{_digest(name)[:12]}"


def _full_names(request: ReadRequest) -> dict[str, str]:
    """Return the names of tools that were too long for a chat, by their shortened names."""
    tools = request.native.body.get("tools") or ()
    names = [tool["name"] for tool in tools if isinstance(tool.get("name"), str)]
    return {_short_name(name): name for name in names if len(name) > _LONGEST_NAME}


# ── a request as a chat ──────────────────────────────────────────────────────────────────────

_MOST_STOPS = 4
"""Stop sequences that every other vendor accepts."""

_EFFORTS = {"low": "low", "medium": "medium"}
_BUDGETS = ((2048, "low"), (8192, "medium"))
"""Budgets of thinking tokens below which each effort is chosen."""

_BILLING = "x-anthropic-billing-header:"
"""Prefix of a system block of Claude Code that differs in each request. With it the prompt caches
of other vendors would never hit."""

_CHOICES = {"any": "required", "auto": "auto", "none": "none"}


def _read(
    body: dict[str, Any], headers: Mapping[str, str], form: str = "anthropic_messages"
) -> ReadRequest:
    check_body(form, body)
    encoded_json(body, "The body")  # it may be nested too deeply
    if body.get("thread") is not None:
        # One vendor would store the conversation, and no other one could continue it.
        text = "thread: conversations are not held here; send all messages, without a thread"
        raise RequestRejectedError(text, param="thread", code="thread_unsupported_request")
    reader = _RequestReader()
    reader.read(body.get("system"), body["messages"])
    options: dict[str, Any] = {"model": body.get("model"), "max_tokens": body.get("max_tokens")}
    for name in ("temperature", "top_k", "top_p", "cache_control"):
        if body.get(name) is not None:
            options[name] = body[name]
    if body.get("stop_sequences"):
        options["stop"] = body["stop_sequences"]
    reader.read_tools(body, options)
    _read_thinking(body, options)
    _read_format(body, options)
    for name in ("container", "mcp_servers"):
        if body.get(name):
            reader.only = reader.only or name
    if len(body.get("stop_sequences") or ()) > _MOST_STOPS:
        reader.only = reader.only or "stop_sequences"
    native = NativeRequest("messages", body, headers, reader.only)
    return ReadRequest(CheckedMessages(reader.messages), options, native, bool(body.get("stream")))


def _read_thinking(body: Mapping[str, Any], options: dict[str, Any]) -> None:
    thinking, config = body.get("thinking") or {}, body.get("output_config") or {}
    kind, effort = thinking.get("type"), config.get("effort")
    # Nothing is sent for `disabled`, nor for `metadata.user_id`: a provider that takes a parameter
    # comes before others, and these two change no answer.
    if kind == "disabled":
        return
    if effort is not None:
        options["reasoning_effort"] = _EFFORTS.get(effort, "high")
    elif kind == "enabled":
        budget = thinking["budget_tokens"]
        fitting = (effort for most, effort in _BUDGETS if budget < most)
        options["reasoning_effort"] = next(fitting, "high")
    elif kind is not None:
        options["reasoning_effort"] = "high"  # Anthropic's default


def _read_format(body: Mapping[str, Any], options: dict[str, Any]) -> None:
    config = body.get("output_config") or {}
    wanted = config.get("format") or body.get("output_format")
    if wanted and wanted["type"] == "json_schema":
        schema = wanted["schema"]
        form = {"name": "answer", "schema": schema}
        if _is_strict(schema):
            form["strict"] = True
        options["response_format"] = {"type": "json_schema", "json_schema": form}


def _is_strict(schema: Any) -> bool:
    """Return whether OpenAI accepts a schema as strict: every property must be required."""
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            properties = each.get("properties")
            if isinstance(properties, dict) or each.get("type") == "object":
                required = each.get("required")
                names = set(required) if _are_texts(required) else set()
                if each.get("additionalProperties") is not False or names != set(properties or ()):
                    return False
            waiting += each.values()
    return True


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _refuse(path: str, problem: str) -> NoReturn:
    raise RequestRejectedError(f"{path}: {problem}", param=path)


class _RequestReader:
    """Reads messages and tools. `only` names the first feature that a chat does not have."""

    __slots__ = ("_calls", "_has_answer", "_open", "_system", "messages", "only")

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.only: str | None = None
        self._system: list[dict[str, Any]] = []
        self._open: dict[str, None] = {}  # calls whose results have not come
        self._calls = 0
        self._has_answer = False

    def read(self, system: Any, messages: list[Any]) -> None:
        self._add_system(system or (), "system")
        self._read_messages(messages)
        if not self.messages:
            _refuse("messages", "must have a message of the user that is not empty")
        if self._system:
            content = _content(self._system, "\n\n")
            self.messages.insert(0, {"role": "system", "content": content})

    def _add_system(self, content: Any, path: str) -> bool:
        """Add to the system message; return whether there is something to add."""
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts: list[dict[str, Any]] = []
        for place, block in enumerate(blocks):
            if block["type"] != "text":
                _refuse(f"{path}.content.{place}.type", 'must be "text"')
            if not block["text"].startswith(_BILLING):
                self._add_parts(parts, block)
        self._system += parts
        return bool(blocks)

    def _read_messages(self, messages: list[Any]) -> None:
        before, last = None, len(messages) - 1
        for place, message in enumerate(messages):
            role, content, path = message["role"], message["content"], f"messages.{place}"
            if self._open and role == "assistant" and before != role:
                self._refuse_missing_result(path)
            if role == "system":
                said = self._read_reminder(content, path)
            elif isinstance(content, str):
                said = bool(content)
                if said:
                    self.messages.append({"role": role, "content": content})
            elif role == "assistant":
                said = self._read_answer(content, path, is_last=place == last)
            else:
                said = self._read_user(content, path)
            if not said and not (role == "assistant" and place == last):
                _refuse(f"{path}.content", "must not be empty")
            if role != "system":
                before = role
                self._has_answer = self._has_answer or role == "assistant"
        if self._open:
            self._refuse_missing_result(f"messages.{last}")

    def _refuse_missing_result(self, path: str) -> NoReturn:
        first = next(iter(self._open))[:64]
        problem = "`tool_use` ids were found without `tool_result` blocks immediately after"
        _refuse(path, f"{problem}: {first}")

    def _read_reminder(self, content: Any, path: str) -> bool:
        """Read a system message between others; return whether it says something."""
        length = len(self._system)
        said = self._add_system(content, path)
        if self._has_answer:
            texts = [part["text"] for part in self._system[length:]]
            del self._system[length:]
            if texts:
                self.messages.append(system_reminder(*texts))
        return said

    # ── the user's blocks ────────────────────────────────────────────────────────────────────

    def _read_user(self, blocks: list[Any], path: str) -> bool:
        parts: list[dict[str, Any]] = []
        shown: list[dict[str, Any]] = []  # media of tools: the message of a result holds only text
        before = len(self.messages)
        for place, block in enumerate(blocks):
            if block["type"] == "tool_result":
                self.messages.append(self._result(block, shown, f"{path}.content.{place}"))
            else:
                self._add_parts(parts, block)
        parts[:0] = shown
        if parts:
            self.messages.append({"role": "user", "content": _content(parts, "\n\n")})
        return len(self.messages) > before

    def _result(
        self, block: Mapping[str, Any], shown: list[dict[str, Any]], path: str
    ) -> dict[str, Any]:
        name, content = block["tool_use_id"], block.get("content") or ""
        if name not in self._open:
            _refuse(f"{path}.tool_use_id", f"has no `tool_use` block before it: {name[:64]}")
        del self._open[name]
        if not isinstance(content, str):
            parts: list[dict[str, Any]] = []
            for each in content:
                self._add_parts(parts, each)
            texts = [part["text"] for part in parts if part["type"] == "text"]
            media = [part for part in parts if part["type"] != "text"]
            if media and shown:
                shown.append({"type": "text", "text": f"Shown by the tool call {name}:"})
            shown += media
            content = "\n\n".join(texts) or ("[shown in the next message]" if media else "")
        if block.get("is_error") and not content.lower().startswith(("error", "<")):
            content = f"Error: {content}"
        message = {"role": "tool", "tool_call_id": _decoded_id(name), "content": content}
        return _with_cache_control(message, block)

    def _add_parts(self, parts: list[dict[str, Any]], block: Mapping[str, Any]) -> None:
        """Add the content of a block; a text replaces what a chat cannot show."""
        kind, source = block["type"], block.get("source")
        if kind == "text":
            if block["text"]:
                parts.append(_with_cache_control({"type": "text", "text": block["text"]}, block))
        elif kind == "image" and (url := _url_of(source)):
            image = {"type": "image_url", "image_url": {"url": url}}
            parts.append(_with_cache_control(image, block))
        elif kind == "document" and isinstance(source, dict):
            self._add_document(parts, block, source)
        elif kind == "search_result":
            texts = [text["text"] for text in block["content"]]
            found = "\n".join([block["title"], str(source), *texts])
            parts.append(_with_cache_control({"type": "text", "text": found}, block))
        else:
            self._add_foreign(parts, f"{kind} block")

    def _add_document(
        self, parts: list[dict[str, Any]], block: Mapping[str, Any], source: Mapping[str, Any]
    ) -> None:
        title, context = block.get("title"), block.get("context")
        about = [text for text in (title and f"Document: {title}", context) if text]
        url = _url_of(source)
        if url:
            held = {"file_data": url} if source["type"] == "base64" else {"file_id": url}
            name = title or "document"
            name = name if name.lower().endswith(".pdf") else f"{name}.pdf"
            parts += [{"type": "text", "text": context}] if context else []
            parts.append(
                _with_cache_control({"type": "file", "file": {"filename": name, **held}}, block)
            )
        elif source["type"] == "text":
            said = "\n\n".join([*about, source["data"]])
            if said:
                parts.append(_with_cache_control({"type": "text", "text": said}, block))
        elif source["type"] == "content":
            parts += [{"type": "text", "text": text} for text in about]
            content = source["content"]
            given = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for each in given:
                self._add_parts(parts, each)
        else:
            self._add_foreign(parts, "document of Anthropic's files")

    def _add_foreign(self, parts: list[dict[str, Any]], what: str) -> None:
        self.only = self.only or f"a {what[:80]}"
        parts.append({"type": "text", "text": f"[{what[:80]}]"})

    # ── the assistant's blocks ───────────────────────────────────────────────────────────────

    def _read_answer(self, blocks: list[Any], path: str, *, is_last: bool) -> bool:
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        thoughts: _Thinking | None = None
        for place, block in enumerate(blocks):
            kind = block["type"]
            if kind == "tool_use":
                calls.append(self._call(block, f"{path}.content.{place}"))
            elif kind == "text":
                self._add_parts(parts, block)
            elif kind in _THOUGHTS:
                thoughts = thoughts or _Thinking()
                thoughts.read(block)
            elif kind in {"document", "image", "search_result", "tool_result"}:
                _refuse(f"{path}.content.{place}.type", f'"{kind}" is not a block of an assistant')
            else:
                self._add_parts(parts, block)
        if not (parts or calls or (thoughts and thoughts.fields())):
            # Only thinking, which was lost; wires put a text in place of the empty one.
            self.messages += [{"role": "assistant", "content": ""}] * (bool(blocks) and not is_last)
            return bool(blocks)
        message: dict[str, Any] = {"role": "assistant", "content": _content(parts, "")}
        if calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = calls
        if thoughts is not None:
            for call, block in zip(calls, _tool_uses(blocks), strict=True):
                thoughts.sign(call, block["id"])
            message |= thoughts.fields()
        self.messages.append(message)
        return True

    def _call(self, block: Mapping[str, Any], path: str) -> dict[str, Any]:
        name = block["id"]
        if name in self._open:
            _refuse(f"{path}.id", "is the id of another `tool_use` block")
        self._open[name] = None
        self._calls += 1
        if self._calls > MOST_CALLS:
            _refuse("messages", f"must have at most {MOST_CALLS:,} tool calls")
        arguments = orjson.dumps(block["input"]).decode()
        function = {"name": _short_name(block["name"]), "arguments": arguments}
        return {"id": _decoded_id(name), "type": "function", "function": function}

    # ── tools ────────────────────────────────────────────────────────────────────────────────

    def read_tools(self, body: Mapping[str, Any], options: dict[str, Any]) -> None:
        given, choice = body.get("tools") or (), body.get("tool_choice") or {}
        tools, kind = [], choice.get("type")
        for tool in given:
            if tool.get("type") in {None, "custom"}:
                tools.append(_function(tool))
            else:
                self.only = self.only or f"the tool {str(tool['type'])[:64]}"
        if kind in {"any", "tool"} and not given:
            _refuse("tool_choice", "may only be given with tools")
        if kind == "tool" and all(tool.get("name") != choice["name"] for tool in given):
            _refuse("tool_choice.name", "is not the name of one of the tools")
        if not tools:
            return
        options["tools"] = tools
        if kind == "tool":
            function = {"name": _short_name(choice["name"])}
            options["tool_choice"] = {"type": "function", "function": function}
        elif kind in _CHOICES:
            options["tool_choice"] = _CHOICES[kind]
        if choice.get("disable_parallel_tool_use"):
            options["parallel_tool_calls"] = False


class _Thinking:
    """The thinking in one message of the assistant, and the signatures of vendors."""

    __slots__ = ("_blocks", "_call_signatures", "_reasoning")

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []  # Anthropic's
        self._reasoning: list[str] = []
        self._call_signatures: dict[str, str] = {}

    def read(self, block: Mapping[str, Any]) -> None:
        is_visible = block["type"] == "thinking"
        signed = block.get(_THOUGHTS[block["type"]])
        if signed and not is_envelope(signed):
            names = ("type", "thinking", "signature") if is_visible else ("type", "data")
            self._blocks.append({name: block[name] for name in names})
            return
        content = opened_envelope(signed) or {}
        reasoning = (is_visible and block["thinking"]) or content.get("r")
        if isinstance(reasoning, str) and reasoning:
            self._reasoning.append(reasoning)
        for name, signature in _pairs(content.get("c")):
            if isinstance(signature, str):
                self._call_signatures[name] = signature

    def sign(self, call: dict[str, Any], written_id: str) -> None:
        """Add the signature that the vendor sent with a call."""
        signature = self._call_signatures.get(written_id)
        if signature is not None:
            call["provider_specific_fields"] = {"thought_signature": signature}

    def fields(self) -> dict[str, Any]:
        """Return the fields of the message."""
        fields: dict[str, Any] = {}
        if self._blocks:
            fields["thinking_blocks"] = self._blocks
        if self._reasoning:
            fields["reasoning_content"] = "".join(self._reasoning)
        return fields


def _pairs(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else ()


def _tool_uses(blocks: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    return (block for block in blocks if block["type"] == "tool_use")


def _content(parts: list[dict[str, Any]], between: str) -> Any:
    """Return parts as one text if they are plain texts, which more servers accept."""
    for part in parts:
        if part["type"] != "text" or "cache_control" in part:
            return parts
    return parts[0]["text"] if len(parts) == 1 else between.join([p["text"] for p in parts])


def _with_cache_control(part: dict[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    mark = block.get("cache_control")
    if isinstance(mark, dict):
        part["cache_control"] = mark
    return part


def _url_of(source: Any) -> str | None:
    kind = _field_of(source, "type")
    if kind == "base64":
        return f"data:{source['media_type']};base64,{source['data']}"
    return str(source["url"]) if kind == "url" else None


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    schema = tool["input_schema"]
    if schema.get("type") == "object" and "properties" not in schema:
        schema = {**schema, "properties": {}}  # OpenAI wants them
    function = {"name": _short_name(tool["name"]), "parameters": schema}
    if tool.get("description"):
        function["description"] = tool["description"]
    if tool.get("strict") and _is_strict(schema):
        function["strict"] = True
    return _with_cache_control({"type": "function", "function": function}, tool)


# ── an answer as a message ───────────────────────────────────────────────────────────────────

_STOPS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def _write(response: ChatResponse, request: ReadRequest) -> dict[str, Any]:
    choice = response.choices[0]
    blocks: list[dict[str, Any]] = []
    hidden = None
    if choice.thinking_json is not None:
        blocks += choice.thinking_blocks
    elif choice.reasoning and _shows_thinking(request):
        signature = sealed({})
        blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": signature})
    else:
        hidden = choice.reasoning
    text = choice.text
    if choice.refusal or choice.audio or choice.images:
        text = _with_media(choice)
    if text:
        blocks.append({"type": "text", "text": text})
    if choice.tool_calls:
        names = _full_names(request)
        for index, call in enumerate(choice.tool_calls):
            name = _encoded_id(call.id, response.request_id, index)
            if hidden or call.thought_signature:
                blocks.append(_envelope_block(request, hidden, name, call.thought_signature))
                hidden = None
            given = {"name": names.get(call.name, call.name), "input": _input(call.arguments)}
            blocks.append({"type": "tool_use", "id": name, **given})
    completion = response.completion
    return {
        "id": _message_id(completion.id, response.request_id),
        "type": "message",
        "role": "assistant",
        "model": completion.model,
        "content": blocks,
        "stop_reason": _stop_reason(choice),
        "stop_sequence": None,
        "usage": _usage(completion.usage),
    }


def _message_id(given: str, request_id: str) -> str:
    if given.startswith("msg_"):
        return given
    return f"msg_{given if given not in {'', '-'} else request_id}"


def _stop_reason(choice: Choice) -> str:
    if choice.refusal:
        return "refusal"
    reason = _STOPS.get(choice.finish_reason or "", "end_turn")
    return "tool_use" if choice.tool_calls and reason == "end_turn" else reason


def _usage(usage: Usage) -> dict[str, int]:
    plain = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
    return {
        "input_tokens": max(0, plain),
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _shows_thinking(request: ReadRequest) -> bool:
    thinking = request.native.body.get("thinking")
    asks = _field_of(thinking, "type") not in {None, "disabled"}
    return asks and _field_of(thinking, "display") != "omitted"


def _with_media(choice: Choice) -> str:
    text = choice.text + (choice.refusal or "") + (choice.audio.transcript if choice.audio else "")
    for url in choice.images:
        text += _image_link(url, after=text)
    return text


def _image_link(url: str, *, after: object) -> str:
    """Return a picture as a link: Anthropic's messages have no other form for one."""
    return ("\n\n" if after else "") + f"![image]({url})"


def _envelope_block(
    request: ReadRequest,
    reasoning: str | None = None,
    call: str = "",
    signature: str | None = None,
) -> dict[str, Any]:
    """Return the block that carries what the vendor needs in the next request.

    It precedes a tool call and is never the last block, which Claude Code prints. Gemini's
    signatures of a text come at the end and are left out, since Gemini does not require them.
    """
    content: dict[str, Any] = {}
    if reasoning:  # it may have a lone surrogate
        content["r"] = reasoning.encode("utf-8", "replace").decode()
    if signature:
        content["c"] = {call: signature}
    if _field_of(request.native.body.get("thinking"), "display") == "omitted":
        return {"type": "thinking", "thinking": "", "signature": sealed(content)}
    return {"type": "redacted_thinking", "data": sealed(content)}


def _input(arguments: str) -> dict[str, Any]:
    """Return the input of a tool, which has to be an object."""
    try:
        given = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        given = None
    return given if isinstance(given, dict) else {"arguments": arguments}


# ── an answer as events ──────────────────────────────────────────────────────────────────────

_DELTAS = {
    # By a block's type: the type and the field of its deltas.
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
_STOPPED = ServerSentEvent.of("message_stop", {"type": "message_stop"})


class _CallInStream:
    """A tool call of a stream. `waiting` pieces have not been written."""

    __slots__ = ("id", "is_open", "is_signed", "name", "pieces", "signature", "waiting")

    def __init__(self) -> None:
        self.is_open = False  # or has been
        self.is_signed = False
        self.id = ""
        self.name = ""
        self.pieces: list[str] = []
        self.waiting: list[str] = []
        self.signature: str | None = None

    @property
    def is_complete(self) -> bool:
        if not (self.pieces and self.pieces[-1].rstrip().endswith("}")):
            return False  # so for almost every piece; joining all of them is slow
        try:
            return isinstance(orjson.loads("".join(self.pieces)), dict)
        except orjson.JSONDecodeError:
            return False


class _MessageEvents:
    """Writes one stream.

    Blocks come one after another. Where a vendor mixes the pieces of several tool calls, those of
    later calls wait until the first one is complete.
    """

    __slots__ = (
        "_begun",
        "_call",
        "_calls",
        "_delayed_texts",
        "_full_names",
        "_has_text",
        "_head",
        "_hidden",
        "_index",
        "_kind",
        "_out",
        "_request",
        "_request_id",
        "_shows_thinking_text",
        "_start",
    )

    def __init__(self, opening: Opening, request: ReadRequest, request_id: str) -> None:
        self._request = request
        self._request_id = request_id
        self._head = (_message_id(opening.id, request_id), opening.model)
        self._shows_thinking_text = _shows_thinking(request)
        self._full_names = _full_names(request)
        self._begun = False
        self._has_text = False
        self._index = -1
        self._kind: str | None = None  # of the open block
        self._start = b""  # of its deltas
        self._call: _CallInStream | None = None
        self._calls: dict[int, _CallInStream] = {}
        self._delayed_texts: list[str] = []  # text that came in the middle of a tool call
        self._hidden: list[str] = []
        self._out: list[ServerSentEvent] = []

    def events(self, chunk: Chunk) -> Iterable[ServerSentEvent]:
        """Return the events for a chunk; for the first one with `message_start`."""
        if not self._begun:
            self._begin()
        if chunk.index == 0:
            if chunk.reasoning:
                self._add_reasoning(chunk.reasoning)
            if chunk.thinking_json:
                self._end_thinking(chunk.thinking_blocks)
            if chunk.text:
                self._add_text(chunk.text)
            if chunk.refusal or chunk.audio or chunk.images:
                self._add_media(chunk)
            if chunk.tool_calls:
                self._add_calls(chunk.tool_calls)
        out, self._out = self._out, []
        return out

    def end(self, response: ChatResponse) -> Iterable[ServerSentEvent]:
        """Return the end of the last block, `message_delta` and `message_stop`."""
        self._write_calls(at_end=True)
        if self._delayed_texts:
            self._add_text("".join(self._delayed_texts))
        self._close()
        for index, call in self._calls.items():
            if call.signature and not call.is_signed:
                name = _encoded_id(call.id, self._request_id, index)
                self._add_block(_envelope_block(self._request, None, name, call.signature))
        delta = {"stop_reason": _stop_reason(response.choices[0]), "stop_sequence": None}
        self._emit("message_delta", delta=delta, usage=_usage(response.usage))
        return [*self._out, _STOPPED]

    def _begin(self) -> None:
        self._begun = True
        name, model = self._head
        message: dict[str, Any] = {
            "id": name,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Usage()),
        }
        self._emit("message_start", message=message)

    def _emit(self, kind: str, **data: Any) -> None:
        self._out.append(ServerSentEvent.of(kind, {"type": kind, **data}))

    def _open(self, kind: str, block: Mapping[str, Any]) -> None:
        self._close()
        self._index += 1
        self._kind = kind
        self._emit("content_block_start", index=self._index, content_block={"type": kind, **block})
        if kind in _DELTAS:
            delta, field = _DELTAS[kind]
            self._start = (
                b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
                b'"delta":{"type":"%b","%b":' % (self._index, delta.encode(), field.encode())
            )

    def _close(self) -> None:
        if self._kind == "thinking":  # of another vendor than Anthropic
            self._add_signature(sealed({}))
        if self._kind is not None:
            self._kind = None
            self._emit("content_block_stop", index=self._index)

    def _add_signature(self, signature: str) -> None:
        delta = {"type": "signature_delta", "signature": signature}
        self._emit("content_block_delta", index=self._index, delta=delta)
        self._kind = "signed"

    def _add_block(self, block: Mapping[str, Any]) -> None:
        if block["type"] != "thinking":
            self._open(block["type"], block)
        else:
            self._open("thinking", {"thinking": "", "signature": ""})
            if block.get("thinking"):
                self._add_delta(block["thinking"])
            self._add_signature(block["signature"])
        self._close()

    def _add_delta(self, text: str) -> None:
        """Write a delta of the open block: almost every event."""
        self._out.append(ServerSentEvent(self._start + encoded(text) + b"}}\n\n"))

    def _add_text(self, text: str) -> None:
        self._has_text = True
        if self._kind != "text":
            if self._call is not None and not self._call.is_complete:
                self._delayed_texts.append(text)
                return
            self._write_calls(at_end=True)
            self._open("text", {"text": ""})
        self._add_delta(text)

    def _add_media(self, chunk: Chunk) -> None:
        spoken = chunk.audio.transcript if chunk.audio else ""
        for text in (chunk.refusal, spoken):
            if text:
                self._add_text(text)
        for url in chunk.images:
            self._add_text(_image_link(url, after=self._has_text))

    def _add_reasoning(self, text: str) -> None:
        if not self._shows_thinking_text:
            self._hidden.append(text)
            return
        if self._kind != "thinking":
            self._write_calls(at_end=True)
            self._open("thinking", {"thinking": "", "signature": ""})
        self._add_delta(text)

    def _end_thinking(self, blocks: Sequence[Mapping[str, Any]]) -> None:
        """Write what Anthropic has signed; its text has been written already where it is shown."""
        self._hidden.clear()
        for block in blocks:
            if block["type"] == self._kind == "thinking":
                self._add_signature(block["signature"])
                self._close()
            else:
                self._write_calls(at_end=True)
                self._add_block(block)

    # ── tool calls ───────────────────────────────────────────────────────────────────────────

    def _add_calls(self, deltas: Sequence[ToolCallDelta]) -> None:
        for delta in deltas:
            call = self._calls.setdefault(delta.index, _CallInStream())
            call.id = call.id or delta.id
            call.name = call.name or delta.name
            call.signature = call.signature or delta.thought_signature
            if delta.arguments:
                call.pieces.append(delta.arguments)
                call.waiting.append(delta.arguments)
            self._write_calls()

    def _write_calls(self, *, at_end: bool = False) -> None:
        """Write waiting pieces; open the next call once the open one is complete, or at the end."""
        while True:
            if self._call is not None:
                for piece in self._call.waiting:
                    self._add_delta(piece)
                self._call.waiting = []
            following = next((index for index in self._calls if self._may_open(index)), None)
            if following is None or not (at_end or self._call is None or self._call.is_complete):
                break
            self._open_call(following, self._calls[following])
        if at_end:
            self._call = None

    def _may_open(self, index: int) -> bool:
        call = self._calls[index]
        return not call.is_open and bool(call.id and (call.name or call.waiting))

    def _open_call(self, index: int, call: _CallInStream) -> None:
        name = _encoded_id(call.id, self._request_id, index)
        if self._hidden or call.signature:
            self._add_block(
                _envelope_block(self._request, "".join(self._hidden), name, call.signature)
            )
            self._hidden.clear()
            call.is_signed = True
        tool = self._full_names.get(call.name, call.name)
        self._open("tool_use", {"id": name, "name": tool, "input": {}})
        call.is_open = True
        self._call = call


# ── errors ───────────────────────────────────────────────────────────────────────────────────

_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""By status. Other ones are `invalid_request_error` below 500, and `api_error` above."""

_ANTHROPIC_STATUSES: Mapping[str, int] = {"insufficient_quota": 402, "no_providers": 500}
"""By code, where it is another status than OpenAI's."""

_TOO_LONG = "prompt is too long"
"""Anthropic's wording, by which its clients recognise a conversation that is too long."""


def anthropic_error(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a refusal (https://platform.claude.com/docs/en/api/errors)."""
    status = _ANTHROPIC_STATUSES.get(refusal.code or "", refusal.status)
    status = 529 if status == 503 else status
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message, detail = refusal.message, refusal.cause.detail if refusal.cause else None
    if detail is not None:
        message = f"{message} {detail}"
    if refusal.code == "context_length_exceeded":
        message = f"{_TOO_LONG}: {message}"
    error: dict[str, Any] = {"type": kind, "message": message}
    if refusal.code == "thread_unsupported_request":  # clients then continue without a thread
        error["details"] = {"error_code": refusal.code, "unsupported": ["thread"]}
    return status, {"type": "error", "error": error}


def _failed(error: Exception, writer: EventWriter | None, written: int) -> bytes:  # noqa: ARG001 - as each protocol
    return ServerSentEvent.of("error", anthropic_error(error_refusal(error))[1]).raw


MESSAGES = CallerProtocol(
    _read, _write, _MessageEvents, _failed, b'event: ping\ndata: {"type": "ping"}\n\n'
)
MESSAGES_COUNT = CallerProtocol(partial(_read, form="anthropic_count"), _write, _MessageEvents)
"""The same for a request whose tokens are counted: `max_tokens` is not needed."""
