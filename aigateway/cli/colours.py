"""The colours of what the gateway thinks of a provider, as rich names them."""

from __future__ import annotations

from aigateway.routing.provider import Word

__all__ = ["COLOURS"]

COLOURS: dict[Word, str] = {
    "closed": "green",
    "degraded": "yellow",
    "half-open": "yellow",
    "probe is due": "yellow",
    "cooling": "magenta",
    "open": "red",
    "disabled": "red",
}
