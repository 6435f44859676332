"""The application: every endpoint in its place."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Route

from aigateway import __version__
from aigateway.errors import GatewayError
from aigateway.request.checks import build_validators
from aigateway.server.auth.middleware import protect
from aigateway.server.http import (
    anthropic_messages,
    embeddings,
    openai_chat,
    openai_responses,
    own,
)
from aigateway.server.http.errors import ErrorBoundary, Refusal, handle
from aigateway.server.http.openapi import DocumentedApp
from aigateway.server.service import Service
from aigateway.server.status import endpoints as status

__all__ = ["create_app"]

_HOT = [
    Route(route.path, route.endpoint, methods=route.methods)
    for router in (
        openai_chat.router,
        embeddings.router,
        anthropic_messages.router,
        openai_responses.router,
    )
    for route in router.routes
    if isinstance(route, APIRoute) and "POST" in (route.methods or ())
]
"""The busiest endpoints as plain routes, in front: as FastAPI's they would cost 70 us more each."""


def create_app(service: Service) -> FastAPI:
    """Make the application.

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
    app.router.routes[:0] = _HOT
    for part in (
        openai_chat,
        embeddings,
        anthropic_messages,
        openai_responses,
        own,
        status,
    ):
        app.include_router(part.router)
    for route in app.router.routes:
        # FastAPI builds an endpoint when it is first looked for: 75 ms, for which all would wait.
        route.matches({"type": "http", "method": "GET", "path": "/", "headers": []})
    for error in (Refusal, GatewayError, HTTPException):
        app.add_exception_handler(error, handle)
    protect(app, service)
    app.add_middleware(ErrorBoundary)  # the last one added is the outermost
    return app
