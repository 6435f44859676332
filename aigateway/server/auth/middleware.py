"""Who gets in at all: plain ASGI, in front of every endpoint, so that none can forget to ask."""

from __future__ import annotations

import ipaddress

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from aigateway.server.http.errors import Refusal, answer_error
from aigateway.server.http.limits import RequestLimits
from aigateway.server.service import Service

__all__ = ["Gate", "protect"]

_OPEN = {"/", "/health", "/ready"}
"""What needs no key: whether it is alive, and the page itself, which asks for a key."""

_EXPOSED = (
    "Retry-After",
    "X-Request-ID",
    "x-aigateway-attempts",
    "x-aigateway-cache",
    "x-aigateway-cost",
    "x-aigateway-provider",
)


def protect(app: FastAPI, service: Service) -> None:
    """Put everything that a request has to pass in front of an application.

    Browsers' questions whether they may ask (CORS) come first, since they bring no key; then what
    may arrive; then who asks. `cors_origins` are those of the moment when this is called.

    Args:
        app: Whose endpoints are protected.
        service: Has the keys and the settings.
    """
    app.add_middleware(Gate, service=service)
    app.add_middleware(RequestLimits, settings=lambda: service.settings, clock=service.clock)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )


class Gate:
    """Lets those in who have a key; without any keys, those who are on this machine.

    A web page can have its visitor's browser ask at 127.0.0.1, under a name of its own that it has
    resolved to there, or across origins. Where no key stands in its way, the `Host` and the
    `Origin` must.

    Args:
        app: What is behind it.
        service: Has the keys and the settings.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope["path"], Headers(scope=scope))
        except Refusal as refusal:
            response = answer_error(scope, refusal)
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        if not self._service.settings.keys:
            self._check_local(headers)
        if path not in _OPEN:
            self._service.access.admit(headers)

    def _check_local(self, headers: Headers) -> None:
        host = headers.get("host", "localhost")
        if not _is_local(host):
            raise Refusal(
                403,
                "Without keys only requests to localhost, 127.0.0.1 or [::1] are answered; the Host"
                " of this one is another. To serve others, make a key with `aigateway key`.",
                code="foreign_host",
            )
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2].lower() == host.lower():
            return
        allowed = self._service.settings.cors_origins
        if "*" not in allowed and origin not in allowed:
            raise Refusal(
                403,
                "A web page of another origin may not ask here; cors_origins can allow it.",
                code="foreign_origin",
            )


def _is_local(host: str) -> bool:
    """Whether a `Host`, which may have a port, names this machine."""
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
