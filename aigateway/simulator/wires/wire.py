"""The interface of all wires, and what they share."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import orjson

from aigateway.simulator.answers import (
    Call,
    ChatCall,
    EmbeddingCall,
    ModelsCall,
    Received,
    Reply,
    count_tokens,
)
from aigateway.simulator.faults import Fault, RefusedError

__all__ = [
    "Event",
    "Peek",
    "SimulatedFailure",
    "SimulatedWire",
    "Words",
    "files_named_in",
    "fresh_id",
    "json_body",
    "plain_text",
    "retry_headers",
    "signature",
    "sse",
    "text_tokens",
    "texts",
    "whole_number",
    "words_for",
]


class Event(NamedTuple):
    """Some bytes of a stream.

    Attributes:
        data: As sent.
        content: They contain a part of the answer.
        ending: They mark the end of the answer.
    """

    data: bytes
    content: bool = False
    ending: bool = False


class Peek(NamedTuple):
    """What is known of a request before it is checked."""

    model: str
    stream: bool


@dataclass(frozen=True, slots=True)
class SimulatedFailure:
    """An error answer in the vendor's form."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Words:
    """The vendor's words for one kind of error. `message` may contain `{model}` and `{retry}`."""

    status: int
    kind: str | None
    message: str
    code: str | None = None
    param: str | None = None


class SimulatedWire(Protocol):
    """One vendor's protocol."""

    name: str
    default_model: str

    def peek(self, received: Received) -> Peek:
        """Return the model and whether to stream, as far as the request shows."""

    def read(self, received: Received, keys: frozenset[str] | None) -> Call:
        """Check a request; raises `RefusedError` with the fault that the vendor would report.

        Args:
            received: The request.
            keys: The valid keys; None takes any.
        """

    def chat(self, call: ChatCall, reply: Reply) -> dict[str, Any]:
        """Return the body of a plain answer."""

    def events(self, call: ChatCall, reply: Reply) -> Iterator[Event]:
        """Yield the body of a streamed answer."""

    def embeddings(self, call: EmbeddingCall) -> dict[str, Any]:
        """Return the body of an embedding answer."""

    def models(self, call: ModelsCall) -> dict[str, Any]:
        """Return the list of models."""

    def failure(self, fault: Fault, model: str) -> SimulatedFailure:
        """Return the answer for a fault."""

    def error_event(self, call: ChatCall) -> bytes:
        """Return what a failing server sends in the middle of a stream."""

    def headers(self) -> dict[str, str]:
        """Headers on every answer."""


def signature(vendor: str, text: str) -> str:
    """Return a signature for reasoning, which the vendor recognises."""
    return base64.b64encode(hashlib.sha512(f"{vendor}:{text}".encode()).digest()).decode()


def fresh_id(prefix: str) -> str:
    """Return a new identifier in the vendor's style."""
    return f"{prefix}{uuid4().hex[:24]}"


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + orjson.dumps(data) + b"\n\n"


def json_body(received: Received) -> Mapping[str, Any]:
    """Return the body as an object, or `RefusedError`."""
    if not isinstance(received.body, Mapping):
        raise RefusedError(Fault("broken_json"))
    return received.body


def files_named_in(body: Any) -> set[str]:
    """Return the ids of the vendor's own files that a prompt names, in any vendor's form."""
    found: set[str] = set()
    prompts = ("messages", "contents", "input")
    waiting = [body.get(name) for name in prompts] if isinstance(body, Mapping) else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, Mapping):
            uri = value.get("fileUri") or value.get("file_uri")
            if isinstance(uri, str) and "/files/" in uri:
                found.add(uri.rpartition("/")[2])
            if isinstance(value.get("file_id"), str):
                found.add(value["file_id"])
            # Nothing else belongs to the prompt: arguments of a tool may have any name.
            nested = ("content", "parts", "file", "source", "fileData", "file_data")
            waiting.extend(value.get(name) for name in nested)
    return found


def plain_text(content: Any) -> str:
    """Return the text of a message's content in any vendor's form."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return str(content.get("text") or "")
    if isinstance(content, Sequence):
        return " ".join(filter(None, map(plain_text, content)))
    return ""


def text_tokens(contents: Any) -> int:
    """Return plausible prompt tokens of several contents; at least one."""
    return max(1, sum(count_tokens(plain_text(content)) for content in contents))


def whole_number(value: Any) -> int | None:
    """Return a whole number, or None for anything else (a truth value is no number)."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def texts(value: Any) -> tuple[str, ...]:
    """One text or a list of them (stop sequences); `RefusedError` for anything else."""
    several = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(text, str) and text for text in several):
        raise RefusedError(Fault.bad_request("stop sequences must be non-empty text"))
    return several


def words_for(
    fault: Fault, table: Mapping[str, Words], by_status: Mapping[int, str], model: str
) -> Words:
    """Return the vendor's words for a fault, with its own message and code."""
    if fault.name == "status":
        status = fault.code or 500
        plain = Words(status, None, _phrase(status))
        words = replace(table.get(by_status.get(status, ""), plain), status=status)
        if fault.message is not None:  # the code would not fit
            words = replace(words, code=None)
    elif fault.name in table:
        words = table[fault.name]
    else:
        words = table["server_error"]
    retry = f" Please try again in {fault.retry_after}s." if _is_number(fault.retry_after) else ""
    return replace(
        words,
        message=fault.message or words.message.replace("{model}", model).replace("{retry}", retry),
        code=fault.code_name or words.code,
        param=fault.param or words.param,
    )


def retry_headers(value: float | str | None) -> dict[str, str]:
    """Return the header for a fault's `retry_after`."""
    if value is None:
        return {}
    if isinstance(value, str):
        milliseconds = value.removesuffix("ms").strip()
        if value.endswith("ms") and milliseconds.isdigit():
            return {"retry-after-ms": milliseconds}
        return {"retry-after": value}
    return {"retry-after": f"{value:g}"}


def _is_number(value: float | str | None) -> bool:
    return isinstance(value, (int, float))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Unexpected status {status}"
