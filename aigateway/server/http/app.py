"""The application: every endpoint in its place, alone or within an application of others.

`create_app` has all endpoints, and `routers` has one router for each door:
`docs/guides/embedding.md` shows both.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from aigateway.errors import ConfigurationError, GatewayError
from aigateway.gateway import AsyncGateway
from aigateway.request.checks import build_validators
from aigateway.server.auth.middleware import OPEN, cors_fields
from aigateway.server.http import (
    anthropic_messages,
    embeddings,
    models,
    openai_chat,
    openai_completions,
    openai_responses,
    own,
)
from aigateway.server.http.admission import Admission
from aigateway.server.http.doors import Door, DoorRouter
from aigateway.server.http.errors import Refusal, handle, request_id_of
from aigateway.server.http.openapi import DocumentedApp
from aigateway.server.service import Service, TenantOf
from aigateway.server.status import endpoints as status
from aigateway.server.status.recent_events import RecentEvents
from aigateway.settings import ServerSettings
from aigateway.telemetry.prometheus import Prometheus
from aigateway.version import __version__

__all__ = ["create_app", "routers", "service_app"]

_HOT = (openai_chat, embeddings, anthropic_messages, openai_responses, openai_completions)
"""Modules whose endpoints come first, as plain routes: as FastAPI's they cost 70 us more, and
milliseconds to build."""


_DOORS: dict[str, ModuleType] = {
    "chat_completions": openai_chat,
    "completions": openai_completions,
    "embeddings": embeddings,
    "models": models,
    "messages": anthropic_messages,
    "responses": openai_responses,
    "own": own,
    "status": status,
}
"""The doors by name; each module has a `router`."""


def create_app(
    gateway: AsyncGateway,
    settings: ServerSettings | None = None,
    *,
    tenant: TenantOf | None = None,
) -> FastAPI:
    """Make the application of `aigateway serve` over a gateway of your own.

    Run it, mount it (`app.mount("/llm", create_app(gateway))`), or call it in the process by an
    ASGI transport. It opens and closes nothing: the gateway stays its caller's.

    Args:
        gateway: Answers the requests. `RecentEvents()` and `Prometheus()` among its hooks give the
            status page its events and `/metrics` its text for scrapers.
        settings: Keys and limits; None reads `aigateway.toml`, the environment and `.env`. What
            concerns the process (`host`, `port`, `workers`, `drain_seconds`, ...) means nothing.
        tenant: Returns the tenant of a request that an application around this one has
            authenticated; None for a request without. Neither keys nor `Host` and `Origin` are
            checked then. Tenants share no cached answers. To refuse a request, it raises
            `HTTPException`. It must not be async: authenticate in the application, and return what
            that has left in `request.state`.

    Raises:
        ConfigurationError: `settings` is None, and what was read cannot work; or `tenant` is async.
    """
    return service_app(_service(gateway, settings, tenant))


def routers(
    gateway: AsyncGateway,
    settings: ServerSettings | None = None,
    *,
    tenant: TenantOf | None = None,
) -> dict[str, APIRouter]:
    """Make routers for an application of your own, one for each door.

    Dependencies of the application (`include_router(..., dependencies=[...])`) run before a body
    is read and before `tenant` is asked. Limits, request ids and forms of errors are the same as
    in `create_app`; CORS is the application's own.

    Args:
        gateway: As for `create_app`.
        settings: As for `create_app`.
        tenant: As for `create_app`.

    Returns:
        The routers by name: `chat_completions`, `completions`, `embeddings`, `models`, `messages`,
        `responses`, `own` (`/chat`, `/health`, `/ready`, `/metrics`, forced circuits), `status`.

    Raises:
        ConfigurationError: As `create_app`.
    """
    build_validators()
    service = _service(gateway, settings, tenant)
    service.endpoints = _endpoints()
    return {name: _router(door, _bound_route(service)) for name, door in _DOORS.items()}


def service_app(service: Service) -> FastAPI:
    """Make the application of a service.

    Args:
        service: Shared by the endpoints as `app.state.service`.
    """
    build_validators()
    app = DocumentedApp(
        title="aigateway",
        version=__version__,
        summary="Several LLM vendors as one that answers.",
        # Their pages load scripts from elsewhere; `/openapi.json` is there for any viewer.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    service.endpoints = _endpoints()
    routes = [(door, route) for door in _DOORS.values() for route in door.router.routes]
    app.router.routes[:0] = [
        _plain(route, path)
        for hot in _HOT
        for route in hot.router.routes
        for path in (route.path, *_without_version(route))
    ]
    app.documented += [door.router for door in _DOORS.values() if door in _HOT]
    app.router.routes += _built()
    app.router.routes += [
        _plain(route, path)
        for door, route in routes
        if door not in _HOT
        for path in _without_version(route)
    ]
    for error in (Refusal, GatewayError, HTTPException):
        app.add_exception_handler(error, handle)
    app.add_middleware(Admission, service=service, clock=service.clock, doors=_doors())
    if service.settings.cors_origins:  # first, since a preflight request has no key
        app.add_middleware(_CORSMiddleware, **cors_fields(service.settings))
    return app


class _CORSMiddleware(CORSMiddleware):
    """CORS, whose own answers have the request's id as all others."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.headers["x-request-id"] = request_id_of(request_headers.get("x-request-id"))
        return response


@functools.cache
def _doors() -> Mapping[tuple[str, str], Door]:
    """Return the doors by method and path, those of `/v1` also without it."""
    routers = [made.router for made in _DOORS.values() if isinstance(made.router, DoorRouter)]
    doors = {key: door for router in routers for key, door in router.doors.items()}
    short = {(m, p.removeprefix("/v1")): door for (m, p), door in doors.items()}
    return short | doors


@functools.cache
def _built() -> tuple[BaseRoute, ...]:
    """Return the routes that FastAPI builds, which hold nothing of a service.

    It does so when one is first looked for, and takes 75 ms, for which all requests would wait.
    """
    router = APIRouter()
    for door in _DOORS.values():
        if door not in _HOT:
            router.include_router(door.router)
    for route in router.routes:
        route.matches({"type": "http", "method": "GET", "path": "/", "headers": []})
    return tuple(router.routes)


def _service(
    gateway: AsyncGateway, settings: ServerSettings | None, tenant: TenantOf | None
) -> Service:
    if inspect.iscoroutinefunction(tenant):
        raise ConfigurationError(
            "tenant: must not be `async def`. Authenticate in a dependency or a middleware of the"
            " application, and return what that has left in request.state."
        )
    hooks = gateway.hooks
    return Service(
        gateway,
        ServerSettings() if settings is None else settings,
        recent_events=next((hook for hook in hooks if isinstance(hook, RecentEvents)), None),
        prometheus=next((hook for hook in hooks if isinstance(hook, Prometheus)), None),
        tenant=tenant,
    )


def _endpoints() -> list[str]:
    """Return what the service offers, as a 404 lists it."""
    return [
        f"{method} {route.path_format}"
        for door in _DOORS.values()
        for route in door.router.routes
        if route.include_in_schema and route.path.startswith(("/chat", "/v1/"))
        for method in route.methods
    ]


_SAME = ("name", "methods", "summary", "response_model", "responses", "openapi_extra")
"""Of a route: what is the same in each router that has it."""


def _router(door: ModuleType, route_class: type[APIRoute] = APIRoute) -> APIRouter:
    """Return a router with the routes of a door, those of `/v1` also without it."""
    made = APIRouter(route_class=route_class)
    for route in door.router.routes:
        kept: dict[str, Any] = {name: getattr(route, name) for name in _SAME}
        shown = route.include_in_schema
        made.add_api_route(route.path, route.endpoint, **kept, include_in_schema=shown)
        for short in _without_version(route):
            made.add_api_route(short, route.endpoint, **kept, include_in_schema=False)
    return made


def _without_version(route: APIRoute) -> tuple[str, ...]:
    """Return the path of a route without `/v1`, if it has that."""
    return (route.path.removeprefix("/v1"),) if route.path.startswith("/v1/") else ()


def _plain(route: APIRoute, path: str) -> Route:
    """Return a route without FastAPI's part, which takes milliseconds to build."""
    endpoint, names = route.endpoint, inspect.signature(route.endpoint).parameters

    async def with_parameters(request: Request) -> Response:
        given = {n: value for n, value in request.path_params.items() if n in names}
        answer: Response = await endpoint(**given, request=request)
        return answer

    return Route(path, with_parameters if "{" in path else endpoint, methods=route.methods)


def _bound_route(service: Service) -> type[APIRoute]:
    """Return a class of routes that have the service's `Admission` around them."""

    class BoundRoute(APIRoute):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            is_head = scope["type"] == "http" and scope["method"] == "HEAD"
            return super().matches({**scope, "method": "GET"} if is_head else scope)

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            is_open = self.name in OPEN.values()
            admission = Admission(super().handle, service, service.clock, {}, is_open=is_open)
            await admission(scope, receive, send)

    return BoundRoute
