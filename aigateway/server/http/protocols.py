"""One way for every protocol of `aigateway.protocols`: admit, read, ask the gateway, write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from aigateway.errors import stopping
from aigateway.messages import asks_to_think
from aigateway.protocols.protocol import CallerProtocol, ProtocolStream, ReadRequest
from aigateway.request.checks import refuse_field
from aigateway.server.http.bodies import json_body
from aigateway.server.http.call import AdmittedRequest, GatewayUse, cache_word
from aigateway.server.http.json_responses import (
    JSONAnswer,
    answer_headers,
    encoded,
    headers_of_opening,
)
from aigateway.server.http.sse import EventStream
from aigateway.settings.server import decides_route

__all__ = ["ProtocolDoor"]

_USUAL = (
    "input instructions max_output_tokens max_tokens messages metadata model store stream system"
    " temperature thinking tool_choice tools"
)
_ORDINARY = frozenset([name for name in _USUAL.split() if not decides_route(name)])
"""Fields that most bodies have, and that need no look each."""


@dataclass(frozen=True, slots=True)
class ProtocolDoor:
    """How the service speaks one protocol.

    Attributes:
        protocol: Reads and writes it.
        whole: The gateway's method for a whole answer.
        streamed: The gateway's method for a stream.
        headers: Names of the caller's headers that belong to the protocol, in lower case.
    """

    protocol: CallerProtocol
    whole: Callable[..., Any]
    streamed: Callable[..., ProtocolStream]
    headers: tuple[bytes, ...] = ()

    def read(self, request: AdmittedRequest) -> Awaitable[ReadRequest]:
        """Read the body of a request, with the headers that belong to the protocol."""
        forwarded = {}
        for name in self.headers:
            if name in request.fields:
                given = [value for key, value in request.scope["headers"] if key == name]
                forwarded[name.decode()] = b",".join(given).decode("latin-1")
        return json_body(request, self._read, forwarded)

    def _read(self, body: dict[str, Any], forwarded: Mapping[str, str]) -> ReadRequest:
        if not body.keys() <= _ORDINARY:
            for name in filter(decides_route, body):
                refuse_field(name, "is not for a caller to set: the service decides that")
        return self.protocol.read(body, forwarded)

    async def respond(self, request: AdmittedRequest, read: ReadRequest) -> Response:
        """Answer one request whose body has been read."""
        options = request.options
        use = await request.enter_gateway(
            read.options.get("model"),
            options.get("timeout"),
            thinks=asks_to_think(read.options, read.native),
            params=read.options,
        )
        options |= use.options
        if read.stream:
            return await self._stream(request, use, read, options)
        with use:
            answer = await self.whole(use.gateway, read, **options)
            response = answer.response
            word = cache_word(response, use.gateway, options)
            headers = answer_headers(
                response.provider, word, len(response.attempts), response.cost_usd
            )
            return JSONAnswer(answer.raw or encoded(answer.body), headers=headers)

    async def _stream(
        self,
        request: AdmittedRequest,
        use: GatewayUse,
        read: ReadRequest,
        options: Mapping[str, Any],
    ) -> Response:
        return await EventStream.begin(
            request,
            use,
            lambda: self.streamed(use.gateway, read, **options),
            sse=lambda stream: stream.sse(ping_seconds=None),
            headers=lambda opening: headers_of_opening(
                opening, cache_word(opening, use.gateway, options)
            ),
            ping=self.protocol.ping,
            last_event=lambda stream: stream.failure(stopping()),
        )
