"""Identify the caller of every request: plain ASGI, so no endpoint can forget it."""

from __future__ import annotations

import inspect
import ipaddress

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from aigateway.server.auth.keys import Caller
from aigateway.server.http.errors import Refusal, answer_error, own_path
from aigateway.server.http.limits import RequestLimits
from aigateway.server.service import Service, service_of

__all__ = ["OPEN", "AccessMiddleware", "caller_of", "protect"]

OPEN = {"/": "status_page", "/health": "health", "/ready": "ready"}
"""Paths without a key, and the names of their endpoints: health checks, and the status page, which
asks for a key itself."""

_CALLER = "aigateway.caller"

_LONGEST_TENANT = 1024

_EXPOSED = (
    "Retry-After",
    "X-Request-ID",
    "request-id",
    "x-aigateway-attempts",
    "x-aigateway-cache",
    "x-aigateway-cost",
    "x-aigateway-provider",
)


def protect(app: FastAPI, service: Service) -> None:
    """Add the middleware that protects an application.

    CORS comes first, since its preflight requests have no key; then the limits of a request; then
    the key. `cors_origins` cannot change later.

    Args:
        app: It is protected.
        service: Has keys and settings.
    """
    app.add_middleware(AccessMiddleware, service=service)
    app.add_middleware(RequestLimits, settings=lambda: service.settings, clock=service.clock)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )


def caller_of(request: Request) -> Caller:
    """Return the caller that the middleware has identified, or an application around this one."""
    caller = request.scope.get(_CALLER)
    if caller is None:
        service = service_of(request)
        caller = request.scope[_CALLER] = Caller(_tenant(service, request))
    assert isinstance(caller, Caller)  # noqa: S101 - `AccessMiddleware` put it there
    return caller


def _tenant(service: Service, request: Request) -> str | None:
    """Return the tenant that an application around this one names; it may refuse the request."""
    assert service.tenant is not None  # noqa: S101 - else the middleware has a caller
    try:
        name: object = service.tenant(request)
    except HTTPException as error:
        raise Refusal(error.status_code, str(error.detail), headers=error.headers) from None
    if name is None or (isinstance(name, str) and 0 < len(name) <= _LONGEST_TENANT):
        return name
    if inspect.iscoroutine(name):
        name.close()
    raise TypeError("`tenant` must return None, or a text of 1 to 1,024 characters.")


class AccessMiddleware:
    """Admits callers with a key; if no keys are configured, callers on this machine.

    A web page can make its visitor's browser send requests to 127.0.0.1, across origins or under a
    host name of its own. Without keys, `Host` and `Origin` are therefore checked.

    Args:
        app: It is protected.
        service: Has keys and settings.
        is_open: Whether a key is needed at no path; None decides by `OPEN`.
    """

    def __init__(self, app: ASGIApp, service: Service, *, is_open: bool | None = None) -> None:
        self._app = app
        self._service = service
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, and pass it on with its caller."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope, Headers(scope=scope))
        except Refusal as refusal:
            response = answer_error(scope, refusal)
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._service.tenant is not None:
            return
        if not self._service.settings.keys:
            self._check_local(headers)
        if not (own_path(scope) in OPEN if self._is_open is None else self._is_open):
            scope[_CALLER] = self._service.access.admit(headers)

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
    """Return whether a `Host`, with or without a port, names this machine."""
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
