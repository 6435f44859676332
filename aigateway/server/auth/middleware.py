"""Who may ask: callers with a key, this machine where there are none, tenants of applications."""

from __future__ import annotations

import inspect
import ipaddress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from aigateway.server.auth.keys import Caller
from aigateway.server.http.errors import REQUEST, Refusal
from aigateway.server.service import Service
from aigateway.settings import ServerSettings

__all__ = ["OPEN", "caller_of", "check_local", "cors_fields", "tenant_of"]

OPEN = {"/": "status_page", "/health": "health", "/ready": "ready"}
"""Paths without a key, and the names of their endpoints: health checks, and the status page, which
asks for a key itself."""

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


def cors_fields(settings: ServerSettings) -> dict[str, Any]:
    """Return the fields of `CORSMiddleware`: who may ask, and what a page may read."""
    return {
        "allow_origins": settings.cors_origins,
        "allow_methods": ("GET", "HEAD", "POST"),
        "allow_headers": ("*",),
        "expose_headers": _EXPOSED,
    }


def caller_of(request: Request) -> Caller:
    """Return the caller that `Admission` has identified, or an application around this one."""
    caller: Caller = request.scope[REQUEST].caller
    return caller


def tenant_of(service: Service, scope: Scope) -> str | None:
    """Return the tenant that an application around this one names; it may refuse the request."""
    assert service.tenant is not None  # noqa: S101 - else a key has identified the caller
    try:
        name: object = service.tenant(Request(scope))
    except HTTPException as error:
        raise Refusal(error.status_code, str(error.detail), headers=error.headers) from None
    if name is None or (isinstance(name, str) and 0 < len(name) <= _LONGEST_TENANT):
        return name
    if inspect.iscoroutine(name):
        name.close()
    raise TypeError("`tenant` must return None, or a text of 1 to 1,024 characters.")


def check_local(host: str | None, origin: str | None, settings: ServerSettings) -> None:
    """Refuse a request from elsewhere, for a service without keys.

    A web page can make its visitor's browser send requests to 127.0.0.1, across origins or under a
    host name of its own.

    Args:
        host: The header.
        origin: The header.
        settings: Of the service.

    Raises:
        Refusal: 403.
    """
    host = "localhost" if host is None else host
    if not _is_local(host):
        raise Refusal(
            403,
            "Without keys only requests to localhost, 127.0.0.1 or [::1] are answered; the Host"
            " of this one is another. To serve others, make a key with `aigateway key`.",
            code="foreign_host",
        )
    if origin is None or origin.partition("://")[2].lower() == host.lower():
        return
    allowed = settings.cors_origins
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
