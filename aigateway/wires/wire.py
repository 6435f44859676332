"""What goes over the wire for one call in the direct lane, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["VendorRequest", "VendorResponse"]


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
        """The body as JSON. Raises `ValueError` if it is something else.

        What orjson refuses and Python's own reader takes (half an emoji, a byte order mark, NaN)
        does come from servers.
        """
        try:
            return orjson.loads(self.content)
        except orjson.JSONDecodeError:
            return json.loads(self.content)
