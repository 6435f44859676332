"""The one layer before every endpoint: request id, limits, access, and errors in the right form."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from aigateway.clock import Clock
from aigateway.server.auth.middleware import OPEN
from aigateway.server.http.call import AdmittedRequest
from aigateway.server.http.cancel import CallerGoneError
from aigateway.server.http.doors import Door
from aigateway.server.http.errors import IS_HEAD, REQUEST, Refusal, answer_error
from aigateway.server.service import Service

__all__ = ["Admission"]

_TRACED = "fastapi.telemetry"
"""The key of the scope of a request that FastAPI traces, by its route."""


class Admission:
    """Admits requests, and answers those that are not: ASGI middleware, so no endpoint forgets it.

    A request gets an id and limits, and its caller is identified. Then its door answers it or, if
    it has none, the application within.

    Args:
        app: The application within.
        service: The service that requests come to.
        clock: Time of the limits.
        doors: By method and path within the application.
        is_open: Whether a key is needed at no path; None decides by `OPEN`.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        clock: Clock,
        doors: Mapping[tuple[str, str], Door],
        *,
        is_open: bool | None = None,
    ) -> None:
        self.app = app
        self._service = service
        self._clock = clock
        self._doors = doors
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._pass_on(scope, receive, send)
            return
        request = AdmittedRequest(scope, receive, send, self._service, self._clock)
        try:
            await request.run(self._answer)
        except (ClientDisconnect, CallerGoneError):
            if not request.begun:  # the caller is gone, but uvicorn wants a response
                await Response(status_code=499)(scope, receive, request.send)
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            response = answer_error(scope, error)
            if not request.begun:
                await response(scope, receive, request.send)
        finally:
            scope.pop(REQUEST, None)  # they refer to each other

    def _answer(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[Response | None]:
        """Let a door or the application within answer a request."""
        request: AdmittedRequest = scope[REQUEST]
        path = request.path
        request.check_access(is_open=path in OPEN if self._is_open is None else self._is_open)
        door = self._doors.get((scope["method"], path))
        if door is not None and _TRACED not in scope:
            request.admit()
            return door(request)
        if path == "*":
            return _answer_options()
        if scope["method"] == "HEAD":  # a copy: the server leaves out the body by its own scope
            scope = {**scope, "method": "GET", IS_HEAD: True}
        return self.app(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is not HTTP. A websocket needs a key, too."""
        if scope["type"] == "websocket":
            try:
                request = AdmittedRequest(scope, receive, send, self._service, self._clock)
                request.check_access(is_open=request.path in OPEN)
            except Refusal as refusal:
                answer_error(scope, refusal)
                await send({"type": "websocket.close", "code": 1008})
                return
        await self.app(scope, receive, send)


async def _answer_options() -> Response:
    """Answer `OPTIONS *`, which asks for the methods of the server as a whole."""
    return Response(status_code=204, headers={"allow": "GET, HEAD, OPTIONS, POST"})
