"""The application: every endpoint in its place."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from aigateway import __version__
from aigateway.server.gate import protect
from aigateway.server.refusals import Refusal
from aigateway.server.service import Service

__all__ = ["create_app"]


def create_app(service: Service) -> FastAPI:
    """Make the application.

    Args:
        service: What its endpoints share; `app.state.service`.
    """
    app = FastAPI(title="aigateway", version=__version__)
    app.state.service = service
    app.add_exception_handler(Refusal, _refused)
    protect(app, service)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process is alive. Needs no key."""
        return {"status": "ok"}

    return app


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)  # noqa: S101 - what it is registered for
    return JSONResponse(error.body, error.status, dict(error.headers))
