"""Which of a caller's headers go to the vendor, and which are not theirs to set."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["with_carried"]

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


def _is_free(name: str, taken: set[str]) -> bool:
    return name not in taken and name not in _OURS and not name.startswith(_OURS_TOO)
