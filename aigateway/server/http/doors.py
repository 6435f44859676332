"""Doors: endpoints that ask the gateway, reached without FastAPI.

Each is a function from an `AdmittedRequest` to a response. `Admission` calls it directly; within an
application of others FastAPI does, after that application's dependencies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from aigateway.server.http.call import AdmittedRequest

__all__ = ["Door", "DoorRouter"]

Door = Callable[[AdmittedRequest], Awaitable[Response]]
"""Answers one request."""


class DoorRouter(APIRouter):
    """A router whose endpoints can be doors.

    Attributes:
        doors: By method and path.
    """

    def __init__(self) -> None:
        super().__init__()
        self.doors: dict[tuple[str, str], Door] = {}

    def door(self, path: str, **documented: Any) -> Callable[[Door], Door]:
        """Return a decorator that adds a door.

        Args:
            path: Its path.
            documented: Keywords of FastAPI's decorators.
        """

        def add(door: Door) -> Door:
            async def endpoint(request: Request) -> Response:
                admitted = AdmittedRequest.of(request)
                admitted.admit()
                return await door(admitted)

            endpoint.__name__, endpoint.__doc__ = door.__name__, door.__doc__
            self.add_api_route(path, endpoint, methods=["POST"], **documented)
            self.doors["POST", path] = door
            return door

        return add
