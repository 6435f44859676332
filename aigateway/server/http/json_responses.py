"""Responses in JSON, and the headers that say who answered."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aigateway.messages import Opening
from aigateway.protocols.protocol import encoded

__all__ = [
    "HeadLines",
    "JSONAnswer",
    "RawHeaders",
    "answer_headers",
    "encoded",
    "headers_of_opening",
    "json_response",
    "split_lines",
]

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Names in lower case, and values, as ASGI wants them."""

HeadLines = bytes
"""Headers as they are on the wire, each with the end of its line; their values are valid."""

_JSON = (b"content-type", b"application/json")
_JSON_LINE = b"content-type: application/json\r\n"


class JSONAnswer(Response):
    """A whole answer in JSON, whose headers and body go out as they are.

    Args:
        body: The body.
        status: HTTP status.
        headers: Beside the type and the length.

    Attributes:
        lines: All headers but the length, of an answer with status 200 that has them as lines.
    """

    body: bytes

    def __init__(
        self, body: bytes, status: int = 200, headers: RawHeaders | HeadLines = ()
    ) -> None:
        self.body = body
        self.status_code = status
        self.background = None
        self._given = headers
        self.lines = _JSON_LINE + headers if isinstance(headers, bytes) and status == 200 else None

    @functools.cached_property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        """All headers."""
        given = self._given
        own = [_JSON, (b"content-length", b"%d" % len(self.body))]
        return own + (split_lines(given) if isinstance(given, bytes) else list(given))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the answer."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self.body})


def json_response(value: Any, status: int = 200, headers: RawHeaders | HeadLines = ()) -> Response:
    """Make a response of JSON."""
    return JSONAnswer(encoded(value), status, headers)


def split_lines(lines: HeadLines) -> list[tuple[bytes, bytes]]:
    """Return the headers that lines have."""
    parted = (line.partition(b": ") for line in lines.splitlines())
    return [(name, value) for name, _, value in parted]


def headers_of_opening(opening: Opening, cache: str) -> RawHeaders:
    """Return the headers of a stream that has just begun: its cost is not known yet."""
    return _headers_of_opening(opening.provider, cache, opening.attempts)


@functools.lru_cache(256)
def _headers_of_opening(provider: str, cache: str, attempts: int) -> RawHeaders:
    return tuple(split_lines(answer_headers(provider, cache, attempts)))


def answer_headers(
    provider: str, cache: str, attempts: int, cost_usd: float | None = None
) -> HeadLines:
    """Write the headers of an answer: provider, cache, attempts and cost, None if not known."""
    known = _known_headers(provider, cache, attempts)
    if cost_usd is None:
        return known
    cost = (b"%.10f" % cost_usd).rstrip(b"0").rstrip(b".")
    return b"%bx-aigateway-cost: %b\r\n" % (known, cost)


@functools.lru_cache(256)
def _known_headers(provider: str, cache: str, attempts: int) -> HeadLines:
    plain = provider.isascii() and provider.isprintable()
    return (
        f"x-aigateway-provider: {provider if plain else quote(provider)}\r\n"
        f"x-aigateway-cache: {cache}\r\nx-aigateway-attempts: {attempts}\r\n"
    ).encode()
