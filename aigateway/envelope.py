"""Envelopes for what a vendor wants back with its own answers, in another vendor's protocol.

Signatures of thinking have a place of their own in each vendor's protocol. A caller who speaks
another protocol gets them in the place that this one has, as an envelope, and sends them back
unchanged. The prefix tells an envelope from a signature of the protocol's own vendor, which must
not get one.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, TypeGuard

import orjson

__all__ = ["OWN_ITEM", "is_envelope", "opened_envelope", "sealed"]

OWN_ITEM = "aigw"
"""Follows the kind in ids of items that the gateway has made, which no vendor has: `rs_aigw`."""

_PREFIX = "aigateway1."

_MOST_BRACKETS = 4096
"""In one envelope: a caller may have made it, and a million lists take a second to read."""


def sealed(content: Mapping[str, Any]) -> str:
    """Put JSON into an envelope: letters, digits, "-", "_", "=" and "."."""
    return _PREFIX + urlsafe_b64encode(orjson.dumps(content)).decode()


def is_envelope(text: object) -> TypeGuard[str]:
    """Return whether this is an envelope."""
    return isinstance(text, str) and text.startswith(_PREFIX)


def opened_envelope(text: object) -> dict[str, Any] | None:
    """Return what an envelope holds; None if this is none, was changed, or holds too much."""
    if not is_envelope(text):
        return None
    try:
        held = urlsafe_b64decode(text[len(_PREFIX) :])
        if _brackets(held) > _MOST_BRACKETS and _brackets(_STRING.sub(b"", held)) > _MOST_BRACKETS:
            return None
        content = orjson.loads(held)
    except (ValueError, binascii.Error):
        return None
    return content if isinstance(content, dict) else None


_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def _brackets(held: bytes) -> int:
    return held.count(b"[") + held.count(b"{")
