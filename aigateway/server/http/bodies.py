"""Read bodies of requests: JSON of the right form, or a refusal that names the mistake.

No body may hold up the other requests of the process. The number of JSON values is bounded before
a body is parsed, the first mistake ends the check, and a long body is read in a thread: one at a
time, so that the event loop waits for no more than one call that holds the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from aigateway.errors import RequestRejectedError
from aigateway.request.checks import (
    CheckedMessages,
    check_inputs,
    check_messages,
    fit_fields,
    refuse_field,
    refuse_unknown,
)
from aigateway.request.schema import CHAT_FIELDS, EMBEDDING_FIELDS, PLAIN_FIELDS
from aigateway.server.http.errors import Refusal, refusal_of
from aigateway.settings.server import DECIDED_BY_SERVICE

if TYPE_CHECKING:
    from aigateway.server.http.call import AdmittedRequest

__all__ = [
    "COMPLETION_NAMES",
    "EMBEDDING_NAMES",
    "MAY_BE_PASSED",
    "MOST_VALUES",
    "PLAIN_NAMES",
    "ChatBody",
    "EmbeddingBody",
    "json_body",
    "read_chat",
    "read_completion",
    "read_embedding",
    "take_passed",
]

_Read = TypeVar("_Read")

_JSON = b"application/json"

MOST_VALUES = 100_000
"""JSON values in a body, about. A chat of 10,000 messages has 30,000."""

_SHORT = 65_536
"""Bytes of a body that is read at once: a few milliseconds at most."""

_WINDOW = 65_536
"""Bytes of one step of the count."""

_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)

_readers = ThreadPoolExecutor(1, thread_name_prefix="aigateway-bodies")

_BY_SERVICE = "the service decides that"
_BY_HEADER = "use the header"
_ELSEWHERE = {
    **dict.fromkeys(("agent",), f"{_BY_HEADER} x-aigateway-agent"),
    **dict.fromkeys(("cache", "caching"), f"{_BY_HEADER} x-aigateway-cache"),
    "cache_ttl": f"{_BY_HEADER} x-aigateway-cache-ttl",
    "session": f"{_BY_HEADER} x-aigateway-session",
    **dict.fromkeys(
        ("request_timeout", "stream_timeout", "timeout"), f"{_BY_HEADER} x-aigateway-timeout"
    ),
    **dict.fromkeys(DECIDED_BY_SERVICE, _BY_SERVICE),
    "stream": "use /v1/chat/completions for a stream",
    "stream_options": "use /v1/chat/completions for a stream",
}


async def json_body(
    request: AdmittedRequest, read: Callable[..., _Read], *further: object
) -> _Read:
    """Read a body.

    Args:
        request: The request.
        read: Turns the JSON object into what the endpoint wants, or raises a
            `RequestRejectedError`. For a long body it runs in a thread.
        further: More arguments of `read`.

    Raises:
        Refusal: 415, the content type is not JSON; 400, it is no JSON object, has too many values,
            or `read` rejects it.
    """
    kind = request.fields.get(b"content-type", b"")
    if kind != _JSON and kind.partition(b";")[0].strip().lower() != _JSON:
        raise Refusal(415, "The body must be JSON: send Content-Type: application/json.")
    raw = request.take_body()
    if raw is None:
        raw = await request.read_body()
    try:
        if len(raw) <= _SHORT:
            return read(_parsed(raw), *further)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_readers, lambda: read(_parsed(raw), *further))
    except RequestRejectedError as error:
        raise refusal_of(error) from None  # the service counts it: the gateway has not seen it


def _parsed(raw: bytes) -> dict[str, Any]:
    if len(raw) > _SHORT and _has_too_many_values(raw):
        raise Refusal(400, f"The body has more than {MOST_VALUES:,} JSON values.")
    try:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            if not raw.startswith(codecs.BOM_UTF8):  # which RFC 8259, 8.1, lets a parser ignore
                raise
            body = orjson.loads(raw.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        problem = f"{error.msg}: line {error.lineno} column {error.colno}"
    else:
        if isinstance(body, dict):
            return body
        problem = "it is not an object"
    raise Refusal(400, f"The body must be a JSON object in UTF-8 ({problem[:200]}).")


def _has_too_many_values(raw: bytes) -> bool:
    """Return whether there are more than `MOST_VALUES`; count in pieces of a millisecond.

    A value follows a comma or an opening bracket. Those within strings do not count; most bodies
    have so few of them that it does not matter where the strings are.
    """
    if _marks(raw, 0, len(raw)) <= MOST_VALUES:
        return False
    values = strings = at = 0
    while at < len(raw):
        quote = raw.find(b'"', at, at + _WINDOW)
        end = at + _WINDOW if quote < 0 else quote
        values += _marks(raw, at, end)
        strings += quote >= 0
        if values > MOST_VALUES or strings > 2 * MOST_VALUES:  # a key is a string, too
            return True
        at = end if quote < 0 else _after_string(raw, quote + 1)
    return False


def _marks(raw: bytes, start: int, end: int) -> int:
    return sum(raw.count(mark, start, end) for mark in (b",", b"[", b"{"))


def _after_string(raw: bytes, at: int) -> int:
    """Return where the string ends whose content begins at a place."""
    while at < len(raw):
        end = at + _WINDOW
        quote = raw.find(b'"', at, end)
        escape = raw.find(b"\\", at, end if quote < 0 else quote)
        if escape < 0:
            if quote >= 0:
                return quote + 1
            at = end
            continue
        content = _IN_STRING.match(raw, escape, end)
        assert content is not None  # noqa: S101 - it matches nothing, too
        at = content.end()
        if raw[at : at + 1] == b'"':
            return at + 1
        if at + 1 == len(raw):  # a backslash is the last of all
            break
    return len(raw)


# ── what a body asks ─────────────────────────────────────────────────────────────────────────

_NOT_SENT = ("model", "stream", "stream_options")


@dataclass(slots=True)
class ChatBody:
    """The body of a chat.

    Attributes:
        prompt: A text, or messages.
        model: As the caller named it.
        options: Keywords of `chat`.
        stream: Whether the answer is streamed.
        with_usage: Whether the stream ends with usage.
    """

    prompt: Any
    model: str | None
    options: dict[str, Any]
    stream: bool = False
    with_usage: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingBody:
    """The body of an embedding request.

    Attributes:
        inputs: A text, or several, or tokens in their place.
        model: As the caller named it.
        options: Keywords of `embed`.
        in_base64: Whether vectors go out in base64.
    """

    inputs: Any
    model: str | None
    options: dict[str, Any]
    in_base64: bool


_LIBRARY = {"extra_body", "extra_headers"}  # in a body they would say where the request goes
COMPLETION_NAMES = CHAT_FIELDS.keys() - _LIBRARY | {"messages"}
PLAIN_NAMES = PLAIN_FIELDS.keys() | {"message", "messages"}
EMBEDDING_NAMES = EMBEDDING_FIELDS.keys() - _LIBRARY | {"input"}


def read_completion(body: dict[str, Any], passed: Sequence[str] = ()) -> ChatBody:
    """Read the body of `/v1/chat/completions`.

    Args:
        body: The body.
        passed: See the setting `pass_params`.

    Raises:
        RequestRejectedError: Names the fault.
    """
    extra = take_passed(body, COMPLETION_NAMES, passed) if passed else {}
    if not body.keys() <= COMPLETION_NAMES:
        _check_names(body, COMPLETION_NAMES, MAY_BE_PASSED)
    messages, model = _messages(body), body.get("model")
    if len(body) == 2 and type(model) is str:
        return ChatBody(messages, model, extra)
    options = _without(body, ("messages",))
    fit_fields("chat", options)
    model, stream = options.pop("model", None), options.pop("stream", None)
    stream_options = options.pop("stream_options", None)  # which means nothing without a stream
    return ChatBody(
        messages,
        model,
        options | extra,
        bool(stream),
        bool(stream_options and stream_options.get("include_usage")),
    )


def read_chat(body: dict[str, Any], passed: Sequence[str] = ()) -> ChatBody:
    """Read the body of `/chat`.

    Args:
        body: The body.
        passed: See the setting `pass_params`.

    Raises:
        RequestRejectedError: Names the fault.
    """
    extra = take_passed(body, PLAIN_NAMES, passed)
    _check_names(body, PLAIN_NAMES, MAY_BE_PASSED)
    if ("message" in body) == ("messages" in body):
        refuse_field("message", "must be given, or messages in its place, and not both")
    if "messages" in body:
        if "system" in body:
            refuse_field("system", "goes with message; put it into messages as the first of them")
        prompt = _messages(body)
    else:
        prompt = body["message"]
        if not isinstance(prompt, str) or not prompt or prompt.isspace():
            refuse_field("message", "must be a text that is not empty")
    fields = _without(body, ("message", "messages"))
    fit_fields("plain", fields)
    if fields.get("stream"):
        refuse_field("stream", "must be false here: use /v1/chat/completions for a stream")
    return ChatBody(prompt, fields.get("model"), _without(fields, _NOT_SENT) | extra)


def read_embedding(body: dict[str, Any]) -> EmbeddingBody:
    """Read the body of `/v1/embeddings`.

    Raises:
        RequestRejectedError: Names the fault.
    """
    _check_names(body, EMBEDDING_NAMES)
    inputs = check_inputs(body.get("input"), "input")
    fields = _without(body, ("input",))
    fit_fields("embedding", fields)
    return EmbeddingBody(
        inputs,
        fields.get("model"),
        _without(fields, ("encoding_format", "model")),
        fields.get("encoding_format") == "base64",
    )


def _check_names(body: Mapping[str, Any], names: AbstractSet[str], hint: str = "") -> None:
    if not body.keys() <= names:
        unknown = next(name for name in body if name not in names)
        refuse_unknown(unknown, names, _ELSEWHERE, "leave it out", hint)


MAY_BE_PASSED = " If a provider knows it, the service's setting pass_params can pass it on."


def take_passed(
    body: dict[str, Any], names: AbstractSet[str], passed: Sequence[str]
) -> dict[str, Any]:
    """Take the parameters that are passed on out of a body, and return them as `extra_body`."""
    if not passed:
        return {}
    taken = {name: body.pop(name) for name in passed if name in body and name not in names}
    extra = _without(taken, ())
    return {"extra_body": extra} if extra else {}


def _messages(body: dict[str, Any]) -> CheckedMessages:
    messages = body.get("messages")
    if not isinstance(messages, list):
        refuse_field("messages", "must be a list of messages")
    check_messages(messages)
    return CheckedMessages(messages)


def _without(body: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None and name not in names}
