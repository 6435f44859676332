"""One admitted request: its caller, what its headers ask for, and the gateway that answers it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from aigateway.gateway import AsyncGateway
from aigateway.messages import CacheMode, ChatResponse, Opening, Origin, asks_to_think
from aigateway.server.auth.keys import Caller
from aigateway.server.auth.middleware import caller_of
from aigateway.server.http.bodies import AUTO, ChatBody
from aigateway.server.http.cancel import cancel_on_disconnect
from aigateway.server.http.errors import Refusal
from aigateway.server.http.json_responses import headers_of
from aigateway.server.http.limits import UNTIL
from aigateway.server.service import Service, service_of

__all__ = [
    "REQUEST_HEADERS",
    "AdmittedRequest",
    "CallHeaders",
    "cache_word",
    "origin",
    "read_headers",
]

_END_SECONDS = 0.1
"""Left for the gateway to report how a request ended whose time is over."""

_SECONDS = r"0\.0{0,8}[1-9][0-9]{0,8}|[1-9][0-9]{0,9}(\.[0-9]{1,9})?"
"""A number above 0. `float` takes more than numbers."""

_LABEL = r"[!-~]([ -~]{0,126}[!-~])?"

_SESSION = r"[!-~]([ -~]{0,254}[!-~])?"

_SESSION_HEADERS = (
    "x-aigateway-session",
    "x-claude-code-session-id",
    "session-id",
    "thread-id",
    "session_id",
    "conversation_id",
)
"""Name a session, the first of them first: ours, Claude Code's, Codex's, and older ones of Codex.
Those of others are ignored if they have another form."""

_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_STATE = re.compile(r"[ -~]{1,512}")
_RESUME = ("continue", "restart", "none")
_CACHE: Mapping[str, CacheMode] = {"true": True, "false": False, "refresh": "refresh"}

_SECONDS_SCHEMA = {"type": "string", "pattern": f"^({_SECONDS})$"}

REQUEST_HEADERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "x-aigateway-cache": (
        "Whether a remembered answer will do; refresh only fills the cache.",
        {"enum": list(_CACHE)},
    ),
    "x-aigateway-cache-ttl": ("Seconds to remember the answer.", _SECONDS_SCHEMA),
    "x-aigateway-timeout": (
        "Seconds for the whole request; of a stream, until its first content.",
        _SECONDS_SCHEMA,
    ),
    "x-aigateway-resume": (
        "How to resume a stream that breaks after its first content.",
        {"enum": list(_RESUME)},
    ),
    "x-aigateway-agent": (
        "A label for logs and `agent_ttls`.",
        {"type": "string", "pattern": f"^{_LABEL}$"},
    ),
    "x-aigateway-session": (
        "Names the conversation: its turns stay at one provider while that is well.",
        {"type": "string", "pattern": f"^{_SESSION}$"},
    ),
}
"""Each with its description and its JSON schema, for the OpenAPI document."""


@dataclass(frozen=True, slots=True)
class CallHeaders:
    """What the headers of a request ask for. None: nothing.

    Attributes:
        cache: See `CacheMode`.
        cache_ttl: Seconds.
        timeout: Seconds.
        agent: A label for the request.
        resume: How a stream that breaks is resumed; "none" ends it.
        session: Names the conversation.
    """

    cache: CacheMode | None = None
    cache_ttl: float | None = None
    timeout: float | None = None
    agent: str | None = None
    resume: str | None = None
    session: str | None = None

    def options(self) -> dict[str, Any]:
        """Return them as keywords of `chat`."""
        if self is _NO_HEADERS:
            return {}
        names = ("cache", "cache_ttl", "timeout", "agent", "session")
        given = ((name, getattr(self, name)) for name in names)
        return {name: value for name, value in given if value is not None}


_NO_HEADERS = CallHeaders()


def read_headers(headers: Mapping[str, str]) -> CallHeaders:
    """Read the headers that begin with `x-aigateway-`, and those that name a session.

    Raises:
        Refusal: 400, one of ours is not valid.
    """
    given = {
        name: text
        for name, text in headers.items()
        if name.startswith("x-aigateway-") or name in _SESSION_HEADERS
    }
    if not given:
        return _NO_HEADERS
    cache = given.get("x-aigateway-cache")
    if cache is not None and cache.lower() not in _CACHE:
        raise _invalid("x-aigateway-cache", "true, false or refresh")
    agent = given.get("x-aigateway-agent")
    if agent is not None and not re.fullmatch(_LABEL, agent):
        raise _invalid("x-aigateway-agent", "1 to 128 printable ASCII characters")
    resume = given.get("x-aigateway-resume")
    if resume is not None and resume.lower() not in _RESUME:
        raise _invalid("x-aigateway-resume", "continue, restart or none")
    return CallHeaders(
        None if cache is None else _CACHE[cache.lower()],
        _seconds(given, "x-aigateway-cache-ttl"),
        _seconds(given, "x-aigateway-timeout"),
        agent,
        None if resume is None else resume.lower(),
        _session(given),
    )


def _session(given: Mapping[str, str]) -> str | None:
    own = given.get("x-aigateway-session")
    if own is not None and not re.fullmatch(_SESSION, own):
        raise _invalid("x-aigateway-session", "1 to 256 printable ASCII characters")
    named = (given[name] for name in _SESSION_HEADERS if name in given)
    return next((name for name in named if re.fullmatch(_SESSION, name)), None)


def _seconds(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name)
    if text is None:
        return None
    if not re.fullmatch(_SECONDS, text):
        raise _invalid(name, "a number of seconds above 0, such as 30 or 2.5")
    return float(text)


def _invalid(name: str, form: str) -> Refusal:
    return Refusal(400, f"The header {name} must be {form}.", param=name)


def origin(headers: Mapping[str, str], request_id: str, partition: str, tenant: str = "") -> Origin:
    """Return the origin of a request, with its id and its trace, which go on to the vendor."""
    carried = {"X-Request-ID": request_id}
    parent = headers.get("traceparent")
    if parent is not None and _TRACE_PARENT.fullmatch(parent):
        carried["traceparent"] = parent
        state = headers.get("tracestate")
        if state is not None and _TRACE_STATE.fullmatch(state):
            carried["tracestate"] = state
    return Origin(request_id, partition, carried, tenant=tenant, find_session=True)


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """A request whose caller may ask.

    Attributes:
        service: The service it came to.
        caller: The caller.
        asked: What its headers ask for.
        origin: On whose behalf the gateway is called.
        until: When the service gives the request up, on the clock's scale.
    """

    service: Service
    caller: Caller
    asked: CallHeaders
    origin: Origin
    until: float

    @classmethod
    def admit(cls, request: Request) -> AdmittedRequest:
        """Admit the caller and read the headers.

        Raises:
            Refusal: 401, or 400 for a header that is not valid.
        """
        service, headers = service_of(request), request.headers
        caller = caller_of(request)
        whose = origin(headers, request.state.request_id, caller.partition, caller.name or "")
        until = request.scope.get(UNTIL)
        if until is None:  # the application runs without `RequestLimits`
            until = service.clock.now() + service.settings.request_timeout
        asked = read_headers(headers)
        if asked.agent is None and caller.name is not None:
            asked = replace(asked, agent=caller.name)  # for `agent_ttls`
        return cls(service, caller, asked, whose, until)

    def enter_gateway(
        self,
        stack: contextlib.AsyncExitStack,
        model: str | None,
        timeout: float | None,
        *,
        thinks: bool = False,
    ) -> tuple[AsyncGateway, dict[str, Any]]:
        """Take the gateway until the stack is left.

        Args:
            stack: The exit stack of the request.
            model: As the caller named it.
            timeout: Seconds that the caller allows.
            thinks: Whether the request asks the model to think, which takes longer.

        Returns:
            The gateway, and keywords of its `chat`, `stream` and `embed`: model, timeout, origin.

        Raises:
            Refusal: The caller may not use the model, or has used up its budget or rate.
        """
        gateway = stack.enter_context(self.service.in_use())
        named = _model_for(model, gateway)
        use = stack.enter_context(self.service.access.begin(self.caller, named))
        # The gateway gives up a little earlier than the service, and so reports how it ended.
        left = self.until - self.service.clock.now()
        most = max(left - _END_SECONDS, left / 2)
        asked = gateway.settings.seconds_for(thinks=thinks) if timeout is None else timeout
        return gateway, {
            "model": named,
            "timeout": min(asked, most),
            "origin": replace(self.origin, on_cost=use.on_cost),
        }

    async def chat(self, request: Request, body: ChatBody) -> tuple[ChatResponse, dict[str, str]]:
        """Return the whole answer to a chat, and the headers that go with it.

        Raises:
            Refusal: As `enter_gateway`.
            GatewayError: As `AsyncGateway.chat`.
            CallerGoneError: The caller has closed the connection.
        """
        options = {**self.asked.options(), **body.options}
        async with contextlib.AsyncExitStack() as stack:
            gateway, own = self.enter_gateway(
                stack, body.model, options.get("timeout"), thinks=asks_to_think(body.options)
            )
            options |= own
            async with cancel_on_disconnect(request.receive):
                response = await gateway.chat(body.prompt, **options)
            return response, headers_of(response, cache_word(response, gateway, options))


def cache_word(
    answer: ChatResponse | Opening, gateway: AsyncGateway, options: Mapping[str, Any]
) -> str:
    """Name the cache's part in an answer: hit, miss, stale, coalesced or off."""
    if answer.stale:
        return "stale"
    if answer.cached:
        return "hit"
    if isinstance(answer, ChatResponse) and answer.coalesced:
        return "coalesced"
    in_use = gateway.settings.cache_enabled and options.get("cache") is not False
    return "miss" if in_use else "off"


def _model_for(name: str | None, gateway: AsyncGateway) -> str | None:
    """Return the gateway's model for the caller's: "auto" and none leave the choice to it.

    A provider that is called "auto" comes first.
    """
    if not name:
        return None
    if name == AUTO and not any(
        AUTO in (provider.name, provider.model, *provider.aliases) for provider in gateway.providers
    ):
        return None
    return name
