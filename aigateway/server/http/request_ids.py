"""Around every endpoint: each request has an id, and nothing that is broken here gets out."""

from __future__ import annotations

import logging
import traceback

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aigateway.server.http.cancellation import CallerGoneError
from aigateway.server.http.errors import refusal_of
from aigateway.server.http.headers import name_of_request
from aigateway.server.http.responses import refused

__all__ = ["Guard"]

_log = logging.getLogger("aigateway.server")


class Guard:
    """ASGI middleware. `request.state.request_id` is the request's id, sent as `x-request-id`.

    Args:
        app: What it stands around.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = name_of_request(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except (ClientDisconnect, CallerGoneError):
            if not begun:  # nobody reads it, but a server wants an answer
                await Response(status_code=499)(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - what it is for
            _report(error, request_id)
            if not begun:
                await refused(refusal_of(error))(scope, receive, send_with_id)


def _report(error: Exception, request_id: str) -> None:
    """Say what is broken and where, but not the error's own words: they may quote a request."""
    places = "".join(traceback.format_tb(error.__traceback__))
    _log.error("Request %s: %s\n%s", request_id, type(error).__name__, places)
