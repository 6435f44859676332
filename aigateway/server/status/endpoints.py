"""Where the status page and its feed are. Neither is part of the documented API."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, StreamingResponse

from aigateway.server.http.errors import Refusal
from aigateway.server.service import Service
from aigateway.server.status.feed import feed
from aigateway.server.status.page import page

__all__ = ["router"]

router = APIRouter(include_in_schema=False)


@router.get("/")
async def status_page() -> HTMLResponse:
    """The page. It needs no key; what it shows does."""
    return HTMLResponse(page().html, headers=dict(page().headers))


@router.get("/status/feed")
async def status_feed(request: Request) -> StreamingResponse:
    """What the page shows, as server-sent events."""
    service: Service = request.app.state.service
    caller = service.access.admit(request.headers)
    if service.draining:
        raise Refusal(503, "The service is stopping.", "server_error", "draining", retry_after=1.0)
    return StreamingResponse(
        feed(service, caller),
        media_type="text/event-stream",
        # Neither a browser nor a proxy may hold back or keep what is over in a second.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
