"""The status page and its feed of server-sent events. Neither is part of the documented API."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, StreamingResponse

from aigateway.clock import Clock
from aigateway.server.auth.keys import Caller
from aigateway.server.auth.middleware import caller_of
from aigateway.server.http.errors import IS_HEAD, Refusal
from aigateway.server.service import Service, service_of
from aigateway.server.status.history import STEP
from aigateway.server.status.snapshot import restricted_snapshot

__all__ = ["Page", "feed", "page", "router"]

router = APIRouter(include_in_schema=False)

EVERY = 1.0
"""Seconds between two snapshots when nothing happens."""

_SOONEST = 0.2
"""Seconds between two snapshots however much happens."""


@router.get("/")
async def status_page(request: Request) -> HTMLResponse:
    """Give the page. It needs no key; its figures do, where keys are set, which the page says."""
    service, made = service_of(request), page()
    needed = service.tenant is None and service.settings.keys
    html = made.html.replace("<body ", '<body data-key="needed" ', 1) if needed else made.html
    return HTMLResponse(html, headers=dict(made.headers))


@router.get("/status/feed")
async def status_feed(request: Request) -> StreamingResponse:
    """Give the page its figures, as server-sent events."""
    service = service_of(request)
    caller = caller_of(request)
    if service.draining:
        raise Refusal(503, "The service is stopping.", "server_error", "draining", retry_after=1.0)
    # Neither a browser nor a proxy may hold back or keep what is over in a second.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    events = iter(()) if IS_HEAD in request.scope else feed(service, caller)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


# ── the feed ─────────────────────────────────────────────────────────────────────────────────────


async def feed(service: Service, caller: Caller) -> AsyncIterator[bytes]:
    """Send a snapshot at once, then every second and whenever something happens.

    Ends when the service begins to stop, so that watching does not delay that, and when the keys
    have changed: a browser connects again.

    Args:
        service: What is watched.
        caller: Who watches; the feed says whether it may do more.
    """
    access = service.access
    shown = 0.0  # the charts' last point that has been sent
    with service.recent_events.watch() as news:
        while not service.draining and service.access is access:
            news.clear()
            sent = {"admin": caller.is_admin, **_seen_by(service, caller, shown)}
            shown = sent["history"]["until"] - STEP if sent["history"] else shown
            yield b"data: " + orjson.dumps(sent) + b"\n\n"
            await _news(service.clock, news)


def _seen_by(service: Service, caller: Caller, shown: float) -> dict[str, Any]:
    """Return what a caller may see of the whole picture."""
    picture: dict[str, Any] = {**service.snapshot()}
    if not caller.sees_all_keys:
        own = [each for each in picture.get("keys", ()) if each["name"] == caller.name]
        picture["keys"] = own
    visible = service.visible_to(caller)
    if visible is None:
        return {"snapshot": picture, "history": service.history(shown)}
    return {"snapshot": restricted_snapshot(picture, visible), "history": None}


async def _news(clock: Clock, news: asyncio.Event) -> None:
    await clock.sleep(_SOONEST)
    with contextlib.suppress(TimeoutError):
        async with clock.timeout(EVERY - _SOONEST):
            await news.wait()


# ── the page ─────────────────────────────────────────────────────────────────────────────────────

_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Page:
    """What the browser gets."""

    html: str
    headers: Mapping[str, str]


@functools.cache
def page() -> Page:
    """Return the page, with a policy that lets a browser run only what is in it.

    It holds no figures: those come over the feed, for callers who may see them.
    """
    html = resources.files("aigateway.server.status").joinpath("page.html").read_text("utf-8")
    return Page(html, {"Content-Security-Policy": _policy(html), **_HEADERS})


def _policy(html: str) -> str:
    return "; ".join((
        "default-src 'none'",
        f"script-src {_digests('script', html)}",
        f"style-src {_digests('style', html)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ))  # fmt: skip


def _digests(tag: str, html: str) -> str:
    found = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in found)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
