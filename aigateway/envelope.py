"""Envelopes for what a vendor wants back with its own answers, in another vendor's protocol.

Signatures of thinking have a place of their own in each vendor's protocol. A caller who speaks
another protocol gets them in the place that this one has, as an envelope, and sends them back
unchanged. The prefix tells an envelope from a signature of the protocol's own vendor, which must
not get one.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, TypeGuard

import orjson

__all__ = ["is_envelope", "opened_envelope", "sealed"]

_PREFIX = "aigateway1."


def sealed(content: Mapping[str, Any]) -> str:
    """Put JSON into an envelope: letters, digits, "-", "_", "=" and "."."""
    return _PREFIX + urlsafe_b64encode(orjson.dumps(content)).decode()


def is_envelope(text: object) -> TypeGuard[str]:
    """Return whether this is an envelope."""
    return isinstance(text, str) and text.startswith(_PREFIX)


def opened_envelope(text: object) -> dict[str, Any] | None:
    """Return what an envelope holds; None if this is none, or was changed."""
    if not is_envelope(text):
        return None
    try:
        content = orjson.loads(urlsafe_b64decode(text[len(_PREFIX) :]))
    except (ValueError, binascii.Error):
        return None
    return content if isinstance(content, dict) else None
