"""The record of one wire, and what goes over it: requests, responses, headers, ends of answers.

A reason for the end that is not in the wire's table (`error`, `insufficient_system_resource`), or
no reason at all, means that the answer broke off. litellm turns every unknown reason into "stop",
so the vendor's own word counts where it can be seen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from aigateway.messages import ChatRequest, ProtocolName
from aigateway.wires.json_bodies import parsed

if TYPE_CHECKING:
    from aigateway.wires.native import NativeProtocol
    from aigateway.wires.parameters import ParameterDraft
    from aigateway.wires.translation import Translation

__all__ = [
    "AnswerEnd",
    "BrokenOffError",
    "Ends",
    "LimitHeaders",
    "Received",
    "VendorRequest",
    "VendorResponse",
    "Wire",
    "caller_headers",
    "end_of",
    "ends_of_list",
    "lazily",
    "part_types",
    "with_caller_headers",
]

_NO_REASONS = frozenset({"", "null", "none"})
"""Texts that stand for no reason on every chunk but the last (DashScope)."""


class BrokenOffError(Exception):
    """The vendor says that an answer broke off. `body` says why, in the form of an error."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """Why an answer ended.

    Attributes:
        reason: In the vendor's words.
        end: In OpenAI's; None if the answer broke off.
    """

    reason: str
    end: str | None

    @property
    def body(self) -> Mapping[str, Any]:
        """The reason in the form of a vendor's error."""
        return {"error": {"code": self.reason}}


Ends = Iterator[tuple[int, Mapping[str, str], Any, Any]]
"""Of each answer in a body: its index, the wire's table, the reason given, an error beside it."""


def end_of(ends: Mapping[str, str], reason: Any, error: Any = None) -> AnswerEnd | None:
    """Judge the reason that a vendor gives for the end of an answer; anything but a text is none.

    Raises:
        BrokenOffError: The vendor says that it failed.
    """
    given = reason if isinstance(reason, str) else ""
    word = given.lower()
    if error or word == "error":
        raise BrokenOffError({"error": error or {"code": given}})
    return None if word in _NO_REASONS else AnswerEnd(given, ends.get(word))


def ends_of_list(answers: list[Any], ends: Mapping[str, str], name: str) -> Ends:
    """Yield what a list of answers says about their ends, in the field of that name."""
    for place, answer in enumerate(answers):
        if isinstance(answer, Mapping):
            index = answer.get("index")
            where = index if type(index) is int else place
            yield where, ends, answer.get(name), answer.get("error")


@dataclass(frozen=True, slots=True)
class LimitHeaders:
    """The headers in which a vendor says what is left of its limits.

    Attributes:
        headers: For each limit the header with what is left, and the one with the time at which it
            is whole again; in lower case.
        are_times: The second is a time (RFC 3339), not a duration.
    """

    headers: tuple[tuple[str, str], ...]
    are_times: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One vendor's protocol. Everything else of its own is in its folder.

    Attributes:
        litellm_name: litellm's name for the vendor; "" where the model's own name says it.
        base: The vendor's address; None where each customer has one of their own.
        translation: Loads the class that translates in the direct lane (it needs litellm); None
            where every call goes through litellm's own.
        ends: Returns what a body or an event of this wire says about the ends of its answers; None
            for a body of another one.
        limits: Its headers about rate limits.
        sdk: The client with which litellm calls the vendor.
        think_tags: Whether a text may begin with reasoning in tags. Models that think in blocks of
            their own do not: there, the caller asked for a tag in a text.
        takes_extra_body: Whether litellm puts `extra_body` into the body.
        takes_cache_marks: Whether litellm sends `cache_control` along. For Gemini it is an order to
            create a cache first: more requests.
        like_openai: Whether the vendor embeds tokens in place of texts, and knows custom tools.
        counts_searches: Whether the vendor counts its searches in `usage`.
        lists_models: Whether the vendor's models have names of their own. A server of one's own may
            call anything "gpt-4o"; that changes neither its abilities nor its price.
        names_deployments: Whether the model of a request is the customer's own name for one.
        foreign_params: Parameters of other vendors that litellm would pass on all the same.
        fit: Fits the parameters of a chat to what the vendor documents.
        has_part: Whether litellm sends a part of this type in a message of this role. It leaves out
            all others silently. None: it sends all.
        not_taken: Names a parameter that litellm would leave out silently, if there is one.
        embed: Loads a replacement for `litellm.aembedding`; None where that will do.
        native: Loads the classes for protocols that it may speak beside OpenAI's chat.
        native_is_sure: Whether the vendor's own address speaks them. Others are asked.
    """

    litellm_name: str = ""
    base: str | None = None
    translation: Callable[[], type[Translation]] | None = None
    ends: Callable[[Mapping[str, Any]], Ends | None] | None = None
    limits: LimitHeaders | None = None
    sdk: Literal["openai", "azure", "http"] | None = None
    think_tags: bool = True
    takes_extra_body: bool = True
    takes_cache_marks: bool = True
    like_openai: bool = True
    counts_searches: bool = True
    lists_models: bool = True
    names_deployments: bool = False
    foreign_params: frozenset[str] = frozenset()
    fit: Callable[[ParameterDraft, str, Callable[..., Any]], None] | None = None
    has_part: Callable[[str, str], bool] | None = None
    not_taken: Callable[[Mapping[str, Any]], str | None] | None = None
    embed: Callable[[], Callable[..., Any]] | None = None
    native: Mapping[ProtocolName, Callable[[], type[NativeProtocol]]] = field(default_factory=dict)
    native_is_sure: bool = False


def lazily(module: str, name: str) -> Callable[[], Any]:
    """Return a function that imports a module, which may need litellm, and returns a name in it."""
    return lambda: getattr(importlib.import_module(module), name)


_ROLES = {"developer": "system", "function": "tool"}


def part_types(request: ChatRequest) -> Iterator[tuple[str, str]]:
    """Yield the role (system, user, assistant, tool) and the type of every part of a message.

    Both are texts, whatever the caller has given.
    """
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list | tuple):
            role = str(message.get("role"))
            for part in content:
                kind = part.get("type") if isinstance(part, Mapping) else None
                yield _ROLES.get(role, role), str(kind)


@dataclass(slots=True, repr=False)  # it holds keys, prompts and answers
class VendorRequest:
    """What the direct lane sends.

    Attributes:
        headers: All but those of the caller.
        options: The mapped parameters, which reading the answer needs again.
        notes: What the translation of the request leaves for the translation of the answer.
        body: JSON.
        added: The headers of the caller.
    """

    headers: Mapping[str, str]
    options: Mapping[str, Any]
    notes: Mapping[str, Any]
    body: bytes
    added: Mapping[str, str] = field(default_factory=dict)


Received = tuple[int, Mapping[str, str], bytes]
"""The status, the headers and the body of a response."""


@dataclass(slots=True, repr=False)  # it holds keys, prompts and answers
class VendorResponse:
    """What came back: as much of an `httpx.Response` as litellm's translations read."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Read the body as JSON. Raises `ValueError` if it is something else."""
        return parsed(self.content, whole=True)


_OURS = frozenset(
    {
        # Who asks, and for which account.
        "api-key",
        "authorization",
        "cookie",
        "openai-organization",
        "openai-project",
        "proxy-authorization",
        "x-api-key",
        "x-goog-api-key",
        "x-goog-user-project",
        # What is sent, and over which connection.
        "accept",
        "accept-encoding",
        "connection",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_OUR_PREFIXES = ("anthropic-", "content-", "proxy-", "sec-", "x-amz-", "x-stainless-")


def caller_headers(own: Mapping[str, str], added: Mapping[str, str]) -> Mapping[str, str]:
    """Return which of a caller's headers are added to our own, which take precedence.

    Those about the sender (`Authorization`, `x-api-key`, ...) or the transport (`Host`,
    `Content-Type`, ...) are left out.
    """
    left_out = _left_out(tuple(own), tuple(added))
    if not left_out:
        return added
    return {name: value for name, value in added.items() if name not in left_out}


def with_caller_headers(own: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Return our own headers and those of a caller that are added to them."""
    return {**own, **caller_headers(own, added)}


@lru_cache(1024)
def _left_out(own: tuple[str, ...], added: tuple[str, ...]) -> frozenset[str]:
    """Return which names of a caller's headers are not sent beside these of our own."""
    taken = _OURS.union(map(str.lower, own))
    return frozenset(
        [
            name
            for name in added
            if not name or name.lower() in taken or name.lower().startswith(_OUR_PREFIXES)
        ]
    )
