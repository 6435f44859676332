"""One way for every protocol of `aigateway.protocols`: admit, read, ask the gateway, write."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from aigateway.errors import GatewayError
from aigateway.gateway import AsyncGateway
from aigateway.messages import asks_to_think
from aigateway.protocols.protocol import (
    CallerProtocol,
    ProtocolStream,
    ReadRequest,
    ServerSentEvent,
)
from aigateway.request.checks import refuse_field
from aigateway.server.http.bodies import json_body
from aigateway.server.http.call import AdmittedRequest, cache_word
from aigateway.server.http.cancel import cancel_on_disconnect
from aigateway.server.http.errors import stopping
from aigateway.server.http.json_responses import headers_of, headers_of_opening, json_response
from aigateway.server.http.openai_chat import PING_SECONDS
from aigateway.server.http.sse import EventStream
from aigateway.settings.server import decides_route

__all__ = ["Door"]


@dataclass(frozen=True, slots=True)
class Door:
    """How the service speaks one protocol.

    Attributes:
        protocol: Reads and writes it.
        whole: The gateway's method for a whole answer.
        streamed: The gateway's method for a stream.
        error_event: Writes the event that ends a stream after an error.
        ping: Sent while a stream has nothing to say.
        headers: Names of the caller's headers that belong to the protocol, in lower case.
        failed: Writes those events for a stream that has begun, where they depend on it.
    """

    protocol: CallerProtocol
    whole: Callable[..., Any]
    streamed: Callable[..., ProtocolStream]
    error_event: Callable[[Exception], bytes]
    ping: bytes
    headers: tuple[str, ...] = ()
    failed: Callable[[ProtocolStream, Exception], bytes] | None = None

    async def answer(self, request: Request) -> Response:
        """Answer one request, whole or as a stream."""
        admitted = AdmittedRequest.admit(request)
        given = request.headers
        forwarded = {n: ",".join(given.getlist(n)) for n in self.headers if n in given}

        def read(body: dict[str, Any]) -> ReadRequest:
            for name in filter(decides_route, body):
                refuse_field(name, "is not for a caller to set: the service decides that")
            return self.protocol.read(body, forwarded)

        return await self.respond(request, admitted, await json_body(request, read))

    async def respond(
        self, request: Request, admitted: AdmittedRequest, read: ReadRequest
    ) -> Response:
        """Answer one request whose body has been read."""
        options = admitted.asked.options()
        async with contextlib.AsyncExitStack() as stack:
            gateway, own = admitted.enter_gateway(
                stack,
                read.options.get("model"),
                options.get("timeout"),
                thinks=asks_to_think(read.options, read.native),
            )
            options |= own
            if read.stream:
                return await self._stream(
                    request, admitted, stack, gateway=gateway, read=read, options=options
                )
            async with cancel_on_disconnect(request.receive):
                answer = await self.whole(gateway, read, **options)
            word = cache_word(answer.response, gateway, options)
            headers = headers_of(answer.response, word)
            if answer.raw:
                return Response(answer.raw, 200, headers, "application/json")
            return json_response(answer.body, headers=headers)

    async def _stream(
        self,
        request: Request,
        admitted: AdmittedRequest,
        stack: contextlib.AsyncExitStack,
        *,
        gateway: AsyncGateway,
        read: ReadRequest,
        options: Mapping[str, Any],
    ) -> Response:
        """Wait for the first content, so that a failure before it gets an HTTP status."""
        service = admitted.service
        await service.turns.take()
        stream = await stack.enter_async_context(self.streamed(gateway, read, **options))
        async with cancel_on_disconnect(request.receive):
            first = await anext(stream)
        opening = stream.opening
        assert opening is not None  # noqa: S101 - its first event is here
        return EventStream(
            self._events(stream, first),
            stack.pop_all(),
            headers_of_opening(opening, cache_word(opening, gateway, options)),
            ping=self.ping,
            ping_seconds=PING_SECONDS,
            last_event=partial(self._last_event, stream, stopping()),
            stopping=service.stopping,
            turns=service.turns,
            clock=service.clock,
        )

    async def _events(
        self, stream: ProtocolStream, first: ServerSentEvent
    ) -> AsyncGenerator[bytes, None]:
        # What comes at once is sent at once: each sending costs more than an event.
        yield first.raw + stream.take_ready()
        try:
            async for event in stream:
                yield event.raw + stream.take_ready()
        except GatewayError as error:
            yield self._last_event(stream, error)

    def _last_event(self, stream: ProtocolStream, error: Exception) -> bytes:
        return self.error_event(error) if self.failed is None else self.failed(stream, error)
