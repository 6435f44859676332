"""The service: the gateway over HTTP, for teams that share one, and for OpenAI's clients.

    from aigateway.server import create_app, routers

Thin: who may ask (`auth`), what may arrive (`http/limits`), what it means (`http/bodies`), how an
error is said (`http/errors`), what operators see (`status`), how it runs (`process`). Whatever an
answer takes is the gateway's affair. Needs the extra `[server]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigateway.server.http.app import create_app, routers
    from aigateway.server.status.recent_events import RecentEvents

__all__ = ["RecentEvents", "create_app", "routers"]


def __getattr__(name: str) -> Any:  # loading all of it takes long, and most modules need little
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "status.recent_events" if name == "RecentEvents" else "http.app"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
