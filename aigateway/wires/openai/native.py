"""OpenAI's Responses and completions as they are.

https://platform.openai.com/docs/api-reference/responses and .../completions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from aigateway.envelope import OWN_ITEM, is_envelope
from aigateway.messages import Choice, Chunk, Completion, NativeAnswer, ToolCall, Usage
from aigateway.settings import is_token
from aigateway.wires.answers import empty_answer_kind, usage_from
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.content import text_of
from aigateway.wires.native import NativeProtocol, NativeReading
from aigateway.wires.openai import OPENAI_ENDS
from aigateway.wires.tool_calls import CallPiece
from aigateway.wires.wire import AnswerEnd, BrokenOffError, end_of

__all__ = [
    "AzureResponsesProtocol",
    "CompletionsProtocol",
    "ResponsesProtocol",
]

_CALLS = {"custom_tool_call": ("custom", "input"), "function_call": ("function", "arguments")}
_OF_A_CHAT = frozenset({"message", "reasoning", *_CALLS})
_PENDING = frozenset({"in_progress", "queued"})
"""What is asked for in the background begins so."""
_INCOMPLETE = {"content_filter": "content_filter", "max_output_tokens": "length"}


class _OpenAIProtocol(NativeProtocol):
    path: str

    def _address(self, base: str) -> str:
        return f"{base}/{self.path}"

    def _key_headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}


def _ending(response: Mapping[str, Any], *, calls: bool) -> AnswerEnd | None:
    """Return why a response has ended.

    Raises:
        BrokenOffError: It failed, or has not come to an end.
    """
    status = response.get("status")
    if status == "completed" or status in _PENDING:
        return AnswerEnd(str(status), "tool_calls" if calls else "stop")
    details = response.get("incomplete_details")
    reason = text_of(details.get("reason") if isinstance(details, Mapping) else None) or ""
    if status == "incomplete":
        return AnswerEnd(reason, _INCOMPLETE.get(reason, "length"))
    raise BrokenOffError({"error": response.get("error") or {"code": str(status)}})


class ResponsesReading(NativeReading):
    """One stream of events, from `response.created` to `response.completed`."""

    protocol = "responses"
    _last: Any = None

    def __init__(self, model: str, expected: int = 1) -> None:
        super().__init__(model, expected)
        self._begun: set[tuple[str, Any]] = set()  # what has come in pieces

    def _whole(self) -> Any:
        return self._last

    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        kind = str(event.get("type") or name.decode("ascii", "replace"))
        if kind == "error":
            raise BrokenOffError({"error": event.get("error") or event})
        response = event.get("response")
        if isinstance(response, Mapping):
            self._take_response(kind, response)
        elif kind == "response.output_item.added":
            self._start(event)
        elif kind.endswith(".delta"):
            self._add(kind.removeprefix("response."), event)
        elif kind in _WHOLE:
            self._add_whole(kind.removeprefix("response."), event)
        elif self.begun and kind not in _SILENT:
            self._pass()

    def _take_response(self, kind: str, response: Mapping[str, Any]) -> None:
        self.assembly.id = str(response.get("id") or self.assembly.id)
        self.assembly.model = str(response.get("model") or self.assembly.model)
        if kind in _LAST:
            self.assembly.note({"service_tier": text_of(response.get("service_tier"))})
            self._add_count(response.get("usage"))
            calls = any(item.get("type") in _CALLS for item in _items(response))
            self._finish(0, _ending(response, calls=calls), sure=True)
            self.has_more = any(item.get("type") not in _OF_A_CHAT for item in _items(response))
            self._last = response
            self.over = True

    def _start(self, event: Mapping[str, Any]) -> None:
        item = event["item"]
        kind, place = item.get("type"), event.get("output_index")
        if kind in _CALLS:
            form, _ = _CALLS[kind]
            piece = CallPiece(place, str(item["call_id"]), str(item["name"]), "", form)
            self._emit(Chunk(tool_calls=self._read_calls(0, [piece])))
        elif self.begun:
            self._pass()

    def _add(self, kind: str, event: Mapping[str, Any]) -> None:
        delta, place = event.get("delta"), event.get("output_index")
        if not delta:
            return
        self._begun.add((kind.removesuffix("delta"), place))
        if kind == "output_text.delta":
            self._emit(Chunk(delta))
        elif kind == "refusal.delta":
            self._emit(Chunk(refusal=delta))
        elif kind in {"reasoning_summary_text.delta", "reasoning_text.delta"}:
            self._emit(Chunk(reasoning=delta))
        elif kind in {"custom_tool_call_input.delta", "function_call_arguments.delta"}:
            form = "custom" if kind.startswith("custom") else "function"
            calls = self._read_calls(0, [CallPiece(place, "", "", delta, form)])
            if calls:
                self._emit(Chunk(tool_calls=calls))
        else:
            self._pass()

    def _add_whole(self, kind: str, event: Mapping[str, Any]) -> None:
        """Take in what a server sends whole, without pieces before."""
        kind = kind.removesuffix("done")
        if (kind, event.get("output_index")) in self._begun:
            self._pass()
        else:
            said = event.get(_WHOLE[f"response.{kind}done"])
            self._add(f"{kind}delta", {**event, "delta": said})

    @staticmethod
    def counted(usage: Mapping[str, Any]) -> Usage:
        """Return OpenAI's count."""
        prompt, answer = usage.get("input_tokens_details"), usage.get("output_tokens_details")
        return usage_from(
            {
                "prompt_tokens": usage.get("input_tokens"),
                "completion_tokens": usage.get("output_tokens"),
                "total_tokens": usage.get("total_tokens"),
                "prompt_tokens_details": prompt,
                "completion_tokens_details": answer,
            }
        )


_SILENT = frozenset({"keepalive", "response.created", "response.in_progress", "response.queued"})
_WHOLE = {
    "response.custom_tool_call_input.done": "input",
    "response.function_call_arguments.done": "arguments",
    "response.output_text.done": "text",
    "response.refusal.done": "refusal",
}
_LAST = frozenset({"response.completed", "response.failed", "response.incomplete"})


class ResponsesProtocol(_OpenAIProtocol):
    """Responses at OpenAI, or at a server that speaks its protocol."""

    name = "responses"
    path = "responses"
    reading = ResponsesReading
    limit = "max_output_tokens"

    def _fitted(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return _changed(_without_items(body, _is_foreign), _with_short_id)

    def without_signatures(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave out reasoning, which only the account that has it can decrypt.

        The ids of other items go with it: an item of an id may need its reasoning.
        """
        left = _without_items(body, lambda item: item.get("type") == "reasoning")
        return body if left is body else _changed(left, _without_id)

    def completion(self, body: Any, content: bytes, *, stops: bool) -> Completion:
        """Read a response."""
        if not isinstance(body, Mapping) or body.get("object") != "response":
            raise BrokenOffError(body)
        items = _items(body)
        ending = _ending(body, calls=any(item.get("type") in _CALLS for item in items))
        assert ending is not None  # noqa: S101 - else it raises
        choice = _choice(items, str(ending.end))
        whole = ending.reason not in _PENDING
        if whole and all(item.get("type") in _OF_A_CHAT for item in items):
            silence = empty_answer_kind((choice,), stops=stops)
            if silence is not None:
                raise VendorCallError(Failure(silence, 200))
        created = body.get("created_at")
        return Completion(
            str(body.get("id") or ""),
            str(body.get("model") or self.model),
            (choice,),
            ResponsesReading.counted(body.get("usage") or {}),
            created=int(created) if isinstance(created, int | float) else 0,
            service_tier=text_of(body.get("service_tier")),
            native=NativeAnswer("responses", content),
        )


class AzureResponsesProtocol(ResponsesProtocol):
    """Responses at Azure, whose key has a header of its own."""

    def _address(self, base: str) -> str:
        version = self._config.api_version
        if version in {"latest", "preview", "v1"}:
            return f"{base}/openai/v1/responses"
        return f"{base}/openai/responses?api-version={version}"

    def _key_headers(self, key: str) -> dict[str, str]:
        return super()._key_headers(key) if is_token(key) else {"api-key": key}


def _items(response: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [item for item in response.get("output") or () if isinstance(item, Mapping)]


def _choice(items: list[Mapping[str, Any]], end: str) -> Choice:
    parts = [
        part
        for item in items
        for part in item.get("content") or ()
        if item.get("type") == "message"
    ]
    if len(items) == len(parts) == 1 and isinstance(parts[0], Mapping):  # almost every response
        (part,) = parts
        return Choice(
            str(part.get("text") or ""), end, refusal=str(part.get("refusal") or "") or None
        )
    thoughts = [
        part
        for item in items
        if item.get("type") == "reasoning"
        for part in (item.get("summary") or item.get("content") or ())
    ]

    def joined(parts: list[Any], name: str) -> str:
        return "".join(str(p.get(name) or "") for p in parts if isinstance(p, Mapping))

    return Choice(
        joined(parts, "text"),
        end,
        tuple(
            ToolCall(
                str(item["call_id"]),
                str(item["name"]),
                str(item.get(_CALLS[item["type"]][1]) or ""),
                _CALLS[item["type"]][0],
            )
            for item in items
            if item.get("type") in _CALLS
        ),
        joined(thoughts, "text") or None,
        joined(parts, "refusal") or None,
    )


def _is_foreign(item: Mapping[str, Any]) -> bool:
    """Return whether an item has another vendor's reasoning, or refers to what no vendor has."""
    if item.get("type") == "reasoning":
        return is_envelope(item.get("encrypted_content"))
    return "role" not in item and item.get("type") in _REFERENCES and _OWN in str(item.get("id"))


_REFERENCES = frozenset({None, "item_reference"})
_OWN = f"_{OWN_ITEM}"


def _without_items(
    body: Mapping[str, Any], is_left_out: Callable[[Mapping[str, Any]], bool]
) -> Mapping[str, Any]:
    """Return a body without some of its items."""
    given = body.get("input")
    if not isinstance(given, list):
        return body
    kept = [item for item in given if not (isinstance(item, Mapping) and is_left_out(item))]
    return body if len(kept) == len(given) else {**body, "input": kept}


def _changed(
    body: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Mapping[str, Any]:
    given = body.get("input")
    if not isinstance(given, list):
        return body
    changed = [change(item) if isinstance(item, Mapping) else item for item in given]
    same = all(one is other for one, other in zip(changed, given, strict=True))
    return body if same else {**body, "input": changed}


_LONGEST_CALL_ID = 64


def _with_short_id(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Shorten the id of a call, which another vendor may have made longer than OpenAI takes."""
    given = item.get("call_id")
    if not isinstance(given, str) or len(given) <= _LONGEST_CALL_ID:
        return item
    digest = hashlib.sha256(given.encode("utf-8", "replace"), usedforsecurity=False)
    return {**item, "call_id": f"call_{digest.hexdigest()[:32]}"}


def _without_id(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: v for name, v in item.items() if name != "id" or item.get("type") in _REFERENCES}


class CompletionsReading(NativeReading):
    """One stream of pieces of text, up to `[DONE]`."""

    protocol = "completions"

    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        if event.get("error") or name == b"error":
            raise BrokenOffError(event)
        self.assembly.id = str(event.get("id") or self.assembly.id)
        self.assembly.model = str(event.get("model") or self.assembly.model)
        self._add_count(event.get("usage"))
        for choice in event.get("choices") or ():
            index = choice.get("index") or 0
            if choice.get("text"):
                self._emit(Chunk(choice["text"], index=index))
            ending = end_of(OPENAI_ENDS, choice.get("finish_reason"))
            self._finish(index, ending, sure=not choice.get("text"))

    @staticmethod
    def counted(usage: Mapping[str, Any]) -> Usage:
        """Return OpenAI's count."""
        return usage_from(usage)


class CompletionsProtocol(_OpenAIProtocol):
    """Completions of a prompt, at a server without chat."""

    name = "completions"
    path = "completions"
    reading = CompletionsReading

    def completion(self, body: Any, content: bytes, *, stops: bool) -> Completion:
        """Read a completion."""
        choices = body.get("choices") if isinstance(body, Mapping) else None
        if not (choices and isinstance(choices, list)) or body.get("error"):
            raise BrokenOffError(body)
        read = []
        for choice in choices:
            ending = end_of(OPENAI_ENDS, choice.get("finish_reason"))
            if ending is None or ending.end is None:
                raise BrokenOffError(None if ending is None else ending.body)
            read.append(Choice(str(choice.get("text") or ""), ending.end))
        silence = empty_answer_kind(read, stops=stops)
        if silence is not None:
            raise VendorCallError(Failure(silence, 200))
        created = body.get("created")
        return Completion(
            str(body.get("id") or ""),
            str(body.get("model") or self.model),
            tuple(read),
            usage_from(body.get("usage")),
            created=created if type(created) is int else 0,
            native=NativeAnswer("completions", content),
        )
