"""The models that a caller may ask for, under all their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aigateway.routing.provider import ProviderStatus
from aigateway.server.auth.keys import Caller
from aigateway.server.http.requests import AUTO

__all__ = ["models_for"]


def models_for(caller: Caller, providers: Sequence[ProviderStatus]) -> dict[str, dict[str, Any]]:
    """OpenAI's model objects by name: `auto`, then models, names and aliases as they are tried.

    Args:
        caller: Who wants to know.
        providers: Best first.
    """
    owners: dict[str, list[str]] = {AUTO: []}
    for provider in providers:
        for name in (provider.model, provider.name, *provider.aliases):
            vendors = owners.setdefault(name, [])
            if provider.vendor not in vendors:
                vendors.append(provider.vendor)
    return {
        name: _model(name, vendors or ["aigateway"])
        for name, vendors in owners.items()
        if caller.may_ask(name if vendors else None)
    }


def _model(name: str, vendors: list[str]) -> dict[str, Any]:
    # No vendor says when a model was made; 0 is what a number that must be there can say of it.
    return {"id": name, "object": "model", "created": 0, "owned_by": ", ".join(vendors)}
