"""One request that is being answered: who asks, on which terms, of which gateway."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from aigateway.gateway import AsyncGateway
from aigateway.messages import ChatResponse, Opening, Origin
from aigateway.server.auth.keys import Caller
from aigateway.server.http.headers import Terms, origin, terms
from aigateway.server.http.limits import UNTIL
from aigateway.server.http.requests import model_for
from aigateway.server.http.responses import cache_word
from aigateway.server.service import Service

__all__ = ["Exchange", "Turn", "service_of"]

_TELLING = 0.1
"""Seconds for the gateway to say how a request ended whose time is over."""


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service = request.app.state.service
    assert isinstance(service, Service)  # noqa: S101 - `create_app` put it there
    return service


@dataclass(frozen=True, slots=True)
class Turn:
    """What an admitted request is answered with.

    Attributes:
        gateway: Answers it.
        options: Keywords of `chat`, `stream` and `embed`: model, timeout, origin.
    """

    gateway: AsyncGateway
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Somebody who may ask, and what the headers of the request say.

    Attributes:
        service: That is asked.
        caller: Who asks.
        terms: How it is answered.
        origin: On whose behalf.
        until: When the service gives the request up.
    """

    service: Service
    caller: Caller
    terms: Terms
    origin: Origin
    until: float

    @classmethod
    def begin(cls, request: Request) -> Exchange:
        """Admit whoever asks.

        Raises:
            Refusal: 401, or 400 for a header that makes no sense.
        """
        service, headers = service_of(request), request.headers
        caller = service.access.admit(headers)
        whose = origin(headers, request.state.request_id, caller.partition, caller.name or "")
        until = request.scope.get(UNTIL)
        if until is None:  # no limits stand in front of this application
            until = service.clock.now() + service.settings.request_timeout
        how = terms(headers)
        if how.agent is None and caller.name is not None:
            how = replace(how, agent=caller.name)  # for `agent_ttls`
        return cls(service, caller, how, whose, until)

    def turn(
        self, stack: contextlib.AsyncExitStack, model: str | None, timeout: float | None
    ) -> Turn:
        """Take a gateway, until the stack is left.

        Args:
            stack: Of the request.
            model: As the caller named it.
            timeout: Seconds that the caller gives it.

        Raises:
            Refusal: The caller may not, or not now.
        """
        gateway = stack.enter_context(self.service.in_use())
        named = model_for(model, gateway)
        use = stack.enter_context(self.service.access.begin(self.caller, named))
        # So much earlier than the service itself gives up that the gateway still says how it ended.
        left = self.until - self.service.clock.now()
        most = max(left - _TELLING, left / 2)
        asked = gateway.settings.timeout if timeout is None else timeout
        return Turn(
            gateway,
            {
                "model": named,
                "timeout": min(asked, most),
                "origin": replace(self.origin, on_cost=use.on_cost),
            },
        )

    @staticmethod
    def cache_word(
        answer: ChatResponse | Opening, gateway: AsyncGateway, options: dict[str, Any]
    ) -> str:
        """What the cache had to do with an answer."""
        in_use = gateway.settings.cache_enabled and options.get("cache") is not False
        return cache_word(answer, in_use=in_use)
