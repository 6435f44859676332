"""One request of the service: its caller, what its headers ask for, and the gateway it gets."""

from __future__ import annotations

import contextlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from aigateway.clock import Clock
from aigateway.gateway import AsyncGateway
from aigateway.messages import CacheMode, ChatResponse, Opening, Origin, asks_to_think
from aigateway.server.auth.keys import Caller, Estimate, MeteredRequest
from aigateway.server.auth.middleware import check_local, tenant_of
from aigateway.server.http.bodies import ChatBody
from aigateway.server.http.errors import (
    REQUEST,
    Refusal,
    is_anthropics_path,
    own_path,
    request_id_of,
)
from aigateway.server.http.json_responses import HeadLines, answer_headers
from aigateway.server.http.limits import LimitedRequest
from aigateway.server.service import Service
from aigateway.settings.server import AUTO

__all__ = [
    "REQUEST_HEADERS",
    "AdmittedRequest",
    "CallHeaders",
    "GatewayUse",
    "cache_word",
    "read_headers",
    "trace_headers",
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
        names = ("cache", "cache_ttl", "timeout", "agent", "session")
        given = ((name, getattr(self, name)) for name in names)
        return {name: value for name, value in given if value is not None}


_ASKING = frozenset(name.encode() for name in (*REQUEST_HEADERS, *_SESSION_HEADERS))
_TRACE = (b"traceparent", b"tracestate")
"""Names of headers."""


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


def trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a request's trace, which go on to the vendor, if they are valid."""
    parent, state = headers.get("traceparent"), headers.get("tracestate")
    if parent is None or not _TRACE_PARENT.fullmatch(parent):
        return {}
    if state is None or not _TRACE_STATE.fullmatch(state):
        return {"traceparent": parent}
    return {"traceparent": parent, "tracestate": state}


class AdmittedRequest(LimitedRequest):
    """One request of the service: what the endpoints know of it, beside its limits.

    Args:
        scope: Of ASGI, as the others.
        receive: Receives the request.
        send: Sends the answer.
        service: The service it came to.
        clock: Time.

    Attributes:
        service: As given.
        path: Within the application, wherever that is mounted.
        request_id: Names it in logs and answers; also `request.state.request_id`.
        options: Keywords of `chat` that its headers ask for, once it is admitted.
        resume: How a stream that breaks is resumed, as its headers ask for; None: nothing.
    """

    __slots__ = ("_caller", "_outer_body", "options", "path", "request_id", "resume", "service")

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, service: Service, clock: Clock
    ) -> None:
        super().__init__(scope, receive, send, service.settings, clock)
        self.service = service
        self.path: str = own_path(scope) if scope.get("root_path") else scope["path"]
        given = self.fields.get(b"x-request-id")
        self.request_id = request_id_of(None if given is None else given.decode("latin-1"))
        self._outer_body: Callable[[], Awaitable[bytes]] | None = None
        self._caller: Caller | None = None
        scope[REQUEST] = self
        scope.setdefault("state", {})["request_id"] = self.request_id
        written = self.request_id.encode()
        if b"anthropic-version" in self.fields or is_anthropics_path(self.path):
            # Its clients read the second one.
            self.added = ((b"x-request-id", written), (b"request-id", written))
        else:
            self.added = ((b"x-request-id", written),)

    @classmethod
    def of(cls, request: Request) -> AdmittedRequest:
        """Return the request that FastAPI has as another object.

        A dependency of the application around it may have read the body, which is there then.
        """
        admitted: AdmittedRequest = request.scope[REQUEST]
        admitted._outer_body = request.body
        admitted._direct = None
        return admitted

    def text(self, name: bytes) -> str | None:
        """Return a header, by its name in lower case."""
        value = self.fields.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def caller(self) -> Caller:
        """The caller, identified by its key, or by an application around this one.

        Raises:
            Refusal: That application refuses the request.
        """
        if self._caller is None:
            self._caller = Caller(tenant_of(self.service, self.scope))
        return self._caller

    def check_access(self, *, is_open: bool) -> None:
        """Identify the caller by its key, unless an application around this one does that.

        Args:
            is_open: Whether no key is needed.

        Raises:
            Refusal: 401, or 403 for a request from elsewhere if there are no keys.
        """
        service = self.service
        if service.tenant is not None:
            return
        if not service.settings.keys:
            check_local(self.text(b"host"), self.text(b"origin"), service.settings)
        if is_open:
            return
        access, direct, given = service.access, self._direct, self.fields.get(b"authorization")
        if direct is None or given is None or b"x-api-key" in self.fields:
            self._caller = access.identify(self.text(b"authorization"), self.text(b"x-api-key"))
            return
        # The digest of the key is made once for a connection.
        connection = direct.connection
        known = connection.recognized
        if known is None or known[0] is not access or not hmac.compare_digest(known[1], given):
            caller = access.identify(given.decode("latin-1"), None)
            known = connection.recognized = (access, given, caller)
        self._caller = known[2]

    def key_name(self) -> str | None:
        """Return the name of the caller's key, also of a request that was refused by its head."""
        if self._caller is None:
            with contextlib.suppress(Refusal):
                self.check_access(is_open=False)
        return None if self._caller is None else self._caller.name

    def admit(self) -> None:
        """Identify the caller, and read the headers.

        Raises:
            Refusal: As `caller`; 400 for a header that is not valid.
        """
        name = (self._caller or self.caller).name
        self.resume = None
        self.options: dict[str, Any] = {}
        if name is not None:
            self.options["agent"] = name  # for `agent_ttls`
        if not _ASKING.isdisjoint(self.fields):
            asked = read_headers(self._texts(_ASKING))
            self.resume = asked.resume
            self.options |= asked.options()

    def _texts(self, names: Iterable[bytes]) -> dict[str, str]:
        fields = self.fields
        return {name.decode(): fields[name].decode("latin-1") for name in names if name in fields}

    async def read_body(self) -> bytes:
        """Return the body.

        Raises:
            ClientDisconnect: The caller is gone.
        """
        if self._outer_body is not None:
            return await self._outer_body()
        pieces: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece = message.get("body", b"")
            if not message.get("more_body", False):
                return b"".join([*pieces, piece]) if pieces else piece
            pieces.append(piece)

    async def enter_gateway(
        self,
        model: str | None,
        timeout: float | None,  # noqa: ASYNC109 - it spans providers and retries
        *,
        thinks: bool = False,
        params: Mapping[str, Any] | None = None,
    ) -> GatewayUse:
        """Take the gateway until the result is left. If the caller leaves before that, it ends.

        Args:
            model: As the caller named it.
            timeout: Seconds that the caller allows.
            thinks: Whether the request asks the model to think, which takes longer.
            params: Of the chat; None if no text is asked for.

        Raises:
            Refusal: The caller may not use the model, or has used up its budget or rate.
        """
        key = (self._caller or self.caller).key
        if key is not None and key.sha256 in self.service.access.renewable:
            await self._renew(model, params, thinks=thinks)
        return self._begin(model, timeout, params, thinks=thinks)

    async def _renew(
        self, model: str | None, params: Mapping[str, Any] | None, *, thinks: bool
    ) -> None:
        """Wait for what the key lacks, if it may come with an exchange; see `Access.renew`."""
        service, caller = self.service, self.caller
        gateway, access = service.gateway, service.access
        named = _model_for(model, gateway)
        estimate = self._estimate_of(gateway, named, params, thinks=thinks)
        if access.lacks(caller, named, estimate):
            self.watch_caller()
            with service.in_use():
                await access.renew(caller, named, estimate)

    def _begin(
        self,
        model: str | None,
        timeout: float | None,
        params: Mapping[str, Any] | None,
        *,
        thinks: bool,
    ) -> GatewayUse:
        """Take the gateway; see `enter_gateway`."""
        self.watch_caller()
        service, caller = self.service, self._caller or self.caller
        use = GatewayUse()
        use.service, use.gateway = service, service.take()
        gateway = use.gateway
        try:
            named = model if model and model != AUTO else _model_for(model, gateway)
            access, estimate = service.access, None
            if access.has_budgets:
                estimate = self._estimate_of(gateway, named, params, thinks=thinks)
            access.begin(caller, named, estimate, use)
        except BaseException:
            service.give_back(gateway)
            raise
        # The gateway gives up a little earlier than the service, and so reports how it ended.
        left = self.until - self._clock.now()
        most = left - _END_SECONDS if left > 2 * _END_SECONDS else left / 2
        settings = gateway.settings
        if timeout is None:
            timeout = settings.seconds_for(thinks=True) if thinks else settings.timeout
        carried = {"X-Request-ID": self.request_id}
        if b"traceparent" in self.fields:
            carried |= trace_headers(self._texts(_TRACE))
        account = use.account
        whose = Origin(
            self.request_id,
            caller.partition,
            carried,
            None if account is None else use.on_cost,
            caller.name or "",
            True,
            account is not None and account.budget_usd is not None,
        )
        use.options = {"model": named, "timeout": min(most, timeout), "origin": whose}
        return use

    def _estimate_of(
        self,
        gateway: AsyncGateway,
        model: str | None,
        params: Mapping[str, Any] | None,
        *,
        thinks: bool,
    ) -> Estimate:
        """Return what tells a key's budget what the request may cost."""

        def estimate() -> float | None:
            tokens = _answer_tokens(params, thinks=thinks)
            return gateway.likely_cost(model, self.body_bytes, tokens)

        return estimate

    async def chat(self, body: ChatBody) -> tuple[ChatResponse, HeadLines]:
        """Return the whole answer to a chat, and the headers that go with it.

        Raises:
            Refusal: As `enter_gateway`.
            GatewayError: As `AsyncGateway.chat`.
            CallerGoneError: The caller has closed the connection.
        """
        params = body.options
        options = self.options | params
        thinks = bool(params) and asks_to_think(params)
        # As in `enter_gateway`, which would be one coroutine more for each chat.
        key = (self._caller or self.caller).key
        if key is not None and key.sha256 in self.service.access.renewable:
            await self._renew(body.model, params, thinks=thinks)
        use = self._begin(body.model, options.get("timeout"), params, thinks=thinks)
        is_answered = False
        try:
            options |= use.options
            response = await use.gateway.chat(body.prompt, **options)
            is_answered = True
        finally:
            use.end(is_answered=is_answered)
        word = cache_word(response, use.gateway, options)
        return response, answer_headers(
            response.provider, word, len(response.attempts), response.cost_usd
        )


class GatewayUse(MeteredRequest):
    """The gateway, taken for one request that counts in its key's account: a context.

    Attributes:
        gateway: Answers the request.
        options: Keywords of its `chat`, `stream` and `embed`: model, timeout, origin.
        service: Whose gateway it is.
    """

    __slots__ = ("gateway", "options", "service")

    gateway: AsyncGateway
    options: dict[str, Any]
    service: Service

    def end(self, *, is_answered: bool) -> None:
        """Leave the gateway."""
        if self.account is not None:
            self.account.end(self, is_answered=is_answered)
        self.options = {}  # whose origin refers to this
        self.service.give_back(self.gateway)


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


_USUAL_ANSWER, _USUAL_THOUGHTS = 1_000, 4_000
"""Tokens expected of an answer whose length the request does not bound; with those of thinking."""


def _answer_tokens(params: Mapping[str, Any] | None, *, thinks: bool) -> float:
    """Return the tokens that a budget has to expect before the model has a usual price."""
    if params is None:
        return 0
    bound = params.get("max_completion_tokens") or params.get("max_tokens")
    many = params.get("n")
    usual = _USUAL_THOUGHTS if thinks else _USUAL_ANSWER
    tokens = bound if isinstance(bound, int) else usual
    return float(min(tokens, _MOST) * (min(many, _MOST) if isinstance(many, int) else 1))


_MOST = 10**6
"""Bounds what a request says: numbers in JSON have no end."""


def _model_for(name: str | None, gateway: AsyncGateway) -> str | None:
    """Return the gateway's model for the caller's: "auto" and none leave the choice to it.

    A provider that is called "auto" comes first.
    """
    if not name or (name == AUTO and not gateway.serves(AUTO)):
        return None
    return name
