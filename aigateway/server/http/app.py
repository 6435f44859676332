"""The application: every endpoint in its place."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from aigateway import __version__
from aigateway.errors import GatewayError
from aigateway.server.auth.middleware import protect
from aigateway.server.http import openai_endpoints, operator, own_endpoints
from aigateway.server.http.errors import Refusal, refusal_of
from aigateway.server.http.openapi import completed
from aigateway.server.http.request_ids import Guard
from aigateway.server.http.responses import refused
from aigateway.server.service import Service
from aigateway.server.status import endpoints as status

__all__ = ["create_app"]


def create_app(service: Service) -> FastAPI:
    """Make the application.

    Args:
        service: What its endpoints share; `app.state.service`.
    """
    app = _Application(
        title="aigateway",
        version=__version__,
        summary="Several LLM vendors as one that answers.",
        # Their pages load scripts from elsewhere; `/openapi.json` is there for any viewer.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.router.routes[:0] = (
        *openai_endpoints.ROUTES,
        *own_endpoints.ROUTES,
    )  # what is asked most is first
    for error in (Refusal, GatewayError):
        app.add_exception_handler(error, _refused)
    app.add_exception_handler(HTTPException, _not_here)
    app.include_router(status.router)
    app.include_router(operator.router)
    protect(app, service)
    app.add_middleware(Guard)  # the last one added is the outermost
    return app


class _Application(FastAPI):
    """Documents what is written by hand, too."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = completed(super().openapi())
        return self.openapi_schema


async def _refused(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    if refusal is error:  # what the gateway refuses is in its own books
        peer = None if request.client is None else request.client.host
        request.app.state.service.complaints.note(refusal, peer)
    return refused(refusal)


async def _not_here(_: Request, error: Exception) -> Response:
    """What the router refuses: an unknown path, or a method that a path does not take."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    words = {404: "There is nothing at this path.", 405: "This path does not take this method."}
    response = refused(Refusal(error.status_code, words.get(error.status_code, error.detail)))
    response.headers.update(error.headers or {})
    return response
