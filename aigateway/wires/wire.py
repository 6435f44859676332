"""What one wire is to the code that all of them share, and what goes over it in the direct lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import orjson

from aigateway.messages import ChatRequest
from aigateway.wires.ends import Given
from aigateway.wires.json_bodies import parsed

if TYPE_CHECKING:
    from aigateway.wires.parameters import Draft
    from aigateway.wires.translation import Translation

__all__ = ["LimitHeaders", "VendorRequest", "VendorResponse", "Wire", "part_types"]


@dataclass(frozen=True, slots=True)
class LimitHeaders:
    """The headers in which a vendor says what is left of its limits.

    Attributes:
        headers: For each limit the name of the header that says what is left, and of the one that
            says when it is whole again; in lower case.
        are_times: The second is a time (RFC 3339), not a duration.
    """

    headers: tuple[tuple[str, str], ...]
    are_times: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One vendor's protocol. What else is its own stands in the modules of its folder.

    Attributes:
        litellm_name: litellm's name for the vendor; "" where the model's own name says it.
        base: The vendor's address; None where each customer has one of their own.
        translation: Loads the class that translates in the direct lane (it needs litellm); None
            where every call goes through litellm's own.
        ends: What a body or an event of this wire says of the ends of its answers; None for a body
            of another one.
        limits: Its headers about rate limits.
        sdk: Which client litellm calls the vendor with.
        think_tags: Whether a text may begin with reasoning in tags. Models that think in blocks of
            their own do not: there a tag in a text was asked for.
        takes_extra_body: Whether litellm puts `extra_body` into the body.
        takes_cache_marks: Whether litellm sends `cache_control` along. For Gemini it is an order to
            create a cache first: more requests.
        like_openai: Whether tokens may be embedded in place of texts, and custom tools be known.
        counts_searches: Whether the vendor counts its searches in `usage`.
        lists_models: Whether the vendor's models have names of their own. A server of one's own may
            call anything "gpt-4o"; that does not make it what it is, or cost as much.
        names_deployments: Whether the model of a request is the customer's own name for one.
        foreign_params: Parameters of other vendors that litellm would hand on all the same.
        fit: Brings the parameters of a chat into what the vendor documents.
        has_part: Whether litellm sends a part of this type in a message of this role; all others it
            would leave out without a word. None: it sends all.
        not_taken: Names a parameter that litellm would leave out without a word, if there is one.
        embed: Loads what stands in for `litellm.aembedding`; None where that will do.
    """

    litellm_name: str = ""
    base: str | None = None
    translation: Callable[[], type[Translation]] | None = None
    ends: Callable[[Mapping[str, Any]], Given | None] | None = None
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
    fit: Callable[[Draft, str, Callable[..., Any]], None] | None = None
    has_part: Callable[[str, str], bool] | None = None
    not_taken: Callable[[Mapping[str, Any]], str | None] | None = None
    embed: Callable[[], Callable[..., Any]] | None = None


_ROLES = {"developer": "system", "function": "tool"}


def part_types(request: ChatRequest) -> Iterator[tuple[str, str]]:
    """Give the type of every part in the messages, with the role: system, user, assistant or tool.

    Both are texts, whatever the caller has given.
    """
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list | tuple):
            role = str(message.get("role"))
            for part in content:
                kind = part.get("type") if isinstance(part, Mapping) else None
                yield _ROLES.get(role, role), str(kind)


class VendorRequest:
    """What is sent.

    Attributes:
        headers: All of them.
        data: The body before it was made JSON; reading the answer needs it again.
        options: The mapped parameters, likewise.
        notes: What the translation of the request leaves for the translation of the answer.
        body: JSON.
    """

    __slots__ = ("body", "data", "headers", "notes", "options")

    def __init__(
        self,
        headers: Mapping[str, str],
        data: Mapping[str, Any],
        options: dict[str, Any],
        notes: dict[str, Any],
    ) -> None:
        self.headers = headers
        self.data = data
        self.options = options
        self.notes = notes
        self.body = orjson.dumps(data)


class VendorResponse:
    """What came back: as much of an `httpx.Response` as litellm's translations read."""

    __slots__ = ("content", "headers", "status_code")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status_code = status
        self.headers = headers
        self.content = body

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON. Raises `ValueError` if it is something else."""
        return parsed(self.content, whole=True)
