"""What of a caller's own goes to the vendor as it is: headers, and parts of a body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["with_carried", "with_extra_body"]

_OURS = frozenset(
    {
        # Who asks, and what may be asked.
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
_OURS_TOO = ("anthropic-", "content-", "proxy-", "sec-", "x-amz-", "x-stainless-")


def with_carried(own: Mapping[str, str], carried: Mapping[str, str]) -> dict[str, str]:
    """Put a caller's headers beside those of the gateway and the provider, which stand over them.

    Args:
        own: What is sent in any case.
        carried: What the caller adds. What would say who asks (`Authorization`, `x-api-key`, ...)
            or how the request is sent (`Host`, `Content-Type`, ...) is left out.
    """
    taken = {name.lower() for name in own}
    added = {name: value for name, value in carried.items() if _is_free(name.lower(), taken)}
    return {**own, **added}


def with_extra_body(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Put `extra_body` over a body. Objects at its top (`generationConfig`) are put together."""
    merged = dict(body)
    for name, value in extra.items():
        own = merged.get(name)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            merged[name] = {**own, **value}
        else:
            merged[name] = value
    return merged


def _is_free(name: str, taken: set[str]) -> bool:
    return name not in taken and name not in _OURS and not name.startswith(_OURS_TOO)
