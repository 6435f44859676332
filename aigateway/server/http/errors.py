"""The one writer of errors: status, form, headers, counter and log line.

The form is OpenAI's (https://platform.openai.com/docs/guides/error-codes), or Anthropic's for its
clients (https://platform.claude.com/docs/en/api/errors). Messages are those of our own errors and
hold no key, no prompt, no answer and no vendor's text. That text is in `detail`: it goes to
the caller of the request, and nowhere else.
"""

from __future__ import annotations

import logging
import math
import os
import re
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aigateway.clock import Clock
from aigateway.errors import (
    AllProvidersFailedError,
    BudgetExceededError,
    ContentPolicyError,
    ContextWindowExceededError,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    MiddlewareFailedError,
    NoProvidersError,
    OverloadedError,
    ProviderFailure,
    RequestRejectedError,
    StreamInterruptedError,
    UnknownModelError,
)
from aigateway.server.http.cancel import CallerGoneError
from aigateway.server.http.json_responses import encoded, json_response
from aigateway.telemetry.log import log_event

__all__ = [
    "SERVICE",
    "ErrorBoundary",
    "Refusal",
    "RefusalLog",
    "answer_error",
    "anthropic_error_event",
    "error_event",
    "handle",
    "own_path",
    "refusal_of",
    "request_id_of",
    "speaks_anthropic",
    "stopping",
    "written_refusal",
]

_log = logging.getLogger("aigateway.server")

SERVICE = "aigateway.service"
"""The key of the scope for the service that a request came to."""


class Refusal(Exception):  # noqa: N818 - it is an answer
    """An error as the caller gets it.

    Args:
        status: HTTP status.
        message: A sentence for a person.
        kind: OpenAI's `type`.
        code: OpenAI's `code`; None where there is none.
        param: The parameter at fault, where that is known.
        retry_after: Seconds after which to ask again; None sends no header.
        cause: The provider's failure that decided: its code stands for a missing `code`.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        cause: ProviderFailure | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.cause = cause
        self._headers = headers or {}
        self.caller: str | None = None
        """The name of the key that was refused, where that is known."""

    @property
    def body(self) -> dict[str, Any]:
        """The body, in OpenAI's form."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        if self.cause is not None:
            error["param"] = self.param or self.cause.param
            if self.code is None and self.cause.code != self.kind:
                error["code"] = self.cause.code
            if self.cause.detail is not None:
                error["detail"] = self.cause.detail
        return {"error": error}

    @property
    def headers(self) -> Mapping[str, str]:
        """Those given, and `Retry-After` in whole seconds, never too early.

        `x-should-retry` tells the vendors' SDKs, and agents on them, not to send it again.
        """
        if 400 <= self.status < 500 and self.status not in _MAY_PASS:
            return {**self._headers, "x-should-retry": "false"}
        if self.retry_after is None or not math.isfinite(self.retry_after):
            return self._headers
        return {**self._headers, "Retry-After": str(max(1, math.ceil(self.retry_after)))}


_MAY_PASS = frozenset({408, 409, 425, 429})
"""Statuses with which the same request may succeed later."""

_FORMS: tuple[tuple[type[GatewayError], int, str, str | None], ...] = (
    # Special ones first: status, OpenAI's type and code.
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (ContextWindowExceededError, 400, "invalid_request_error", "context_length_exceeded"),
    (ContentPolicyError, 400, "invalid_request_error", "content_policy_violation"),
    (RequestRejectedError, 400, "invalid_request_error", None),
    (BudgetExceededError, 429, "insufficient_quota", "insufficient_quota"),
    (OverloadedError, 503, "server_error", "overloaded"),
    (DeadlineExceededError, 504, "server_error", "deadline_exceeded"),
    (NoProvidersError, 503, "server_error", "no_providers"),
    (MiddlewareFailedError, 500, "server_error", "middleware_failed"),
    (GatewayError, 503, "server_error", "unavailable"),
)

_PARAMS: dict[type[GatewayError], str] = {
    UnknownModelError: "model",
    ContextWindowExceededError: "messages",
}


def stopping() -> Refusal:
    """Return the refusal of a request that the service does not finish because it stops."""
    return Refusal(
        503, "The service is stopping; ask again.", "server_error", "stopping", retry_after=1.0
    )


def refusal_of(error: Exception) -> Refusal:
    """Return the refusal that stands for an error. An unforeseen error reveals nothing."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, error.detail, headers=error.headers)
    if isinstance(error, AllProvidersFailedError):
        return _of_providers(error)
    if isinstance(error, StreamInterruptedError):
        reason = "" if error.cause is None else f" ({error.cause.kind})"
        message = f"The stream from {error.provider} broke after its first content{reason}."
        return Refusal(502, message, "server_error", "stream_interrupted", cause=error.cause)
    for form, status, kind, code in _FORMS:
        if isinstance(error, form):
            return Refusal(
                getattr(error, "status", status),
                str(error),
                kind,
                code or getattr(error, "code", None),
                param=getattr(error, "param", None) or _PARAMS.get(form),
                retry_after=1.0 if form is OverloadedError else None,
                cause=_most_telling(getattr(error, "causes", ())),
            )
    return Refusal(500, "The service failed; its log has the details.", "server_error", "internal")


_THROTTLED = {FailureKind.RATE_LIMITED, FailureKind.COOLING_DOWN, FailureKind.SATURATED}


def _of_providers(error: AllProvidersFailedError) -> Refusal:
    message = str(error)
    after = error.retry_after_seconds
    if error.causes and all(map(_is_local_exhaustion, error.causes)):
        return Refusal(503, message, "server_error", "overloaded", retry_after=1.0)
    if error.causes and all(cause.kind in _THROTTLED for cause in error.causes):
        return Refusal(
            429,
            message,
            "rate_limit_error",
            "rate_limit_exceeded",
            retry_after=after or 1.0,
            cause=_most_telling(error.causes),
        )
    return Refusal(
        503,
        message,
        "server_error",
        "all_providers_failed",
        retry_after=after,
        cause=_most_telling(error.causes),
    )


def _most_telling(causes: Sequence[ProviderFailure]) -> ProviderFailure | None:
    """Return the cause that helps most: one about a parameter, else one with the vendor's text."""
    about = next((cause for cause in causes if cause.param is not None), None)
    return about or next((cause for cause in causes if cause.detail is not None), None)


def _is_local_exhaustion(cause: ProviderFailure) -> bool:
    """Return whether concurrency or descriptors ran out here; a used-up rate has a time to wait."""
    return cause.kind is FailureKind.SATURATED and cause.retry_after_seconds is None


# ── what is not there ────────────────────────────────────────────────────────────────────────

_GEMINIS = r"/v1(?:alpha|beta\d*)/.*|(?:/v1)?/(?:models|tunedModels)/[^/]+:[a-z]+[A-Z]\w*"

_OLLAMAS = "blobs|chat|copy|create|delete|embed|embeddings|generate|ps|pull|push|show|tags|version"
_OPENAIS = (
    "assistants|audio|batches|chatkit|containers|conversations|edits|engines|evals|files"
    "|fine[_-]tun(es|ing)|images|moderations|organization|realtime|skills|threads|uploads"
    "|vector_stores|videos"
)

_APIS: Sequence[tuple[str, str]] = (
    # What a path stands for, and how it begins. What is closer stands first.
    ("batches of messages", r"/v1/messages/batches"),
    ("Anthropic's older completions", r"/v1/complete"),
    ("stored chats", r"/v1/chat/completions/.+"),
    ("Gemini's API", _GEMINIS),
    ("Ollama's API", rf"/api/({_OLLAMAS})"),
    ("rerank", r"/v\d/rerank"),
    ("{}", rf"/v1/(?P<name>{_OPENAIS})"),
)
_NOT_OFFERED = [(what, re.compile(f"(?:{path})(?:/.*)?")) for what, path in _APIS]


def _of_router(scope: Scope, error: HTTPException) -> Refusal:
    """Return the refusal of a request that has no endpoint; it says which there are."""
    path, status = own_path(scope), error.status_code
    message = "This path does not take this method." if status == 405 else "There is nothing here."
    for what, known in _NOT_OFFERED:
        if found := known.fullmatch(path) or known.fullmatch("/v1" + path):
            name = what.format(found.groupdict().get("name"))
            status, message = 404, f"This service does not offer {name}."
            break
    if path.startswith("/v1/v1/"):
        message = "The client's base URL ends with /v1 already; the path has it twice."
    if status == 404 and SERVICE in scope:
        message += f" There is {', '.join(scope[SERVICE].endpoints)}."
    return Refusal(status, message, headers=error.headers)


_GEMINI = re.compile(_GEMINIS)
_GEMINI_STATUSES = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}


def written_refusal(scope: Scope, refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a refusal, in the form that its caller reads."""
    path, status = own_path(scope), refusal.status
    if _GEMINI.fullmatch(path):
        name = _GEMINI_STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
        return status, {"error": {"code": status, "message": refusal.message, "status": name}}
    if path.startswith("/api/"):  # Ollama's
        return status, {"error": refusal.message}
    if not speaks_anthropic(scope):
        return status, refusal.body
    status, body = _in_anthropics_form(refusal)
    return status, body | {"request_id": scope.get("state", {}).get("request_id")}


# ── Anthropic's form ─────────────────────────────────────────────────────────────────────────

_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""By status. Other ones are `invalid_request_error` below 500, and `api_error` above."""

_ANTHROPIC_STATUSES: Mapping[str, int] = {"insufficient_quota": 402, "no_providers": 500}
"""By code, where it is another status than OpenAI's."""

_TOO_LONG = "prompt is too long"
"""Anthropic's own words, by which its clients know that a conversation has to be made shorter."""

_ANTHROPICS_PATH = re.compile(
    r"(?!.*/(?:threads|completions)/)(?:.*/)?(?:messages|complete)(?:/.*)?"
)


def speaks_anthropic(scope: Scope) -> bool:
    """Return whether a request is in Anthropic's protocol, by its path or its headers."""
    names = [name for name, _ in scope.get("headers", ())]
    if b"anthropic-version" in names:
        return True
    return _ANTHROPICS_PATH.fullmatch(own_path(scope)) is not None


def _in_anthropics_form(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    status = _ANTHROPIC_STATUSES.get(refusal.code or "", refusal.status)
    status = 529 if status == 503 else status
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message, detail = refusal.message, refusal.cause.detail if refusal.cause else None
    if detail is not None:
        message = f"{message} {detail}"
    if refusal.code == "context_length_exceeded":
        message = f"{_TOO_LONG}: {message}"
    error: dict[str, Any] = {"type": kind, "message": message}
    if refusal.code == "thread_unsupported_request":  # Anthropic's clients then go on without one
        error["details"] = {"error_code": refusal.code, "unsupported": ["thread"]}
    return status, {"type": "error", "error": error}


def anthropic_error_event(error: Exception) -> bytes:
    """Return the event with which a stream in Anthropic's protocol ends after an error."""
    return b"event: error\ndata: " + encoded(_in_anthropics_form(refusal_of(error))[1]) + b"\n\n"


# ── the writer ───────────────────────────────────────────────────────────────────────────────


_NOTED = "aigateway.noted_refusal"


def answer_error(scope: Scope, error: Exception) -> Response:
    """Turn an error into its response; count it and log it.

    An error of the gateway's is in its own metrics already, and is not counted again. Of an
    unforeseen error the log gets the type and the place, but not the text: it may quote a request.
    """
    refusal = _of_router(scope, error) if isinstance(error, HTTPException) else refusal_of(error)
    status, body = written_refusal(scope, refusal)
    if isinstance(error, Refusal | HTTPException):
        if SERVICE in scope:
            peer = scope.get("client")
            log: RefusalLog = scope[SERVICE].refusal_log
            # A refused body is answered by the endpoint and, in its place, by `RequestLimits`.
            if scope.get(_NOTED) is not refusal:
                scope[_NOTED] = refusal
                log.note(refusal, None if peer is None else str(peer[0]), status)
    elif not isinstance(error, GatewayError):
        places = "".join(traceback.format_tb(error.__traceback__))
        request_id = scope.get("state", {}).get("request_id")
        _log.error("Request %s: %s\n%s", request_id, type(error).__name__, places)
    return json_response(body, status, refusal.headers)


async def handle(request: Request, error: Exception) -> Response:
    """Answer an error of an endpoint: the handler of every exception that the service knows."""
    return answer_error(request.scope, error)


def error_event(error: Exception) -> bytes:
    """Return the event with which a stream that has begun ends after an error."""
    return b"data: " + encoded(refusal_of(error).body) + b"\n\n"


_LOG_SECONDS = 60.0
"""Within this time the same refusal of the same key or address is logged once."""

_MOST_LOGGED = 1000
"""Kinds remembered of addresses, and as many of keys: a flood of addresses hides no key."""

_Logged = dict[tuple[str | None, str], tuple[float, int]]


class RefusalLog:
    """Counts the refusals of the service itself, and logs them without flooding the log.

    Args:
        clock: Time.

    Attributes:
        counts: The refusals so far, by code (or status, where there is none).
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of_keys: _Logged = {}  # the oldest first, here and there
        self._of_peers: _Logged = {}
        self.counts: Counter[str] = Counter()

    def note(self, refusal: Refusal, peer: str | None = None, status: int | None = None) -> None:
        """Count a refusal, and log it unless the same was logged a moment ago.

        Args:
            refusal: What was refused.
            peer: The caller's address, for a request without a known key.
            status: The HTTP status of the answer; None is the refusal's own.
        """
        code = refusal.code or str(refusal.status)
        self.counts[code] += 1
        kind, now = (refusal.caller or peer, code), self._clock.now()
        logged = self._of_keys if refusal.caller else self._of_peers
        since, silent = logged.get(kind, (None, 0))
        if since is not None and now - since < _LOG_SECONDS:
            logged[kind] = (since, silent + 1)
            return
        logged.pop(kind, None)
        while len(logged) >= _MOST_LOGGED:
            oldest = next(iter(logged))
            if now - logged[oldest][0] < _LOG_SECONDS:
                return  # a flood: it is counted, and that is enough
            del logged[oldest]
        logged[kind] = (now, 0)
        more = ", and {not_logged} times since the last such line" if silent else ""
        log_event(
            logging.WARNING,
            "service.refused",
            f"{{caller}} got HTTP {{status}} ({{code}}){more}.",
            caller=f"the key {refusal.caller!r}" if refusal.caller else peer or "an unknown caller",
            status=status or refusal.status,
            code=code,
            not_logged=silent,
        )


_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


def request_id_of(given: str | None) -> str:
    """Return the caller's id of a request if it is fit for logs and headers, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()


def own_path(scope: Scope) -> str:
    """Return a request's path within the application, wherever that is mounted."""
    path: str = scope["path"]
    within = path.removeprefix(scope.get("root_path", ""))
    return within if within.startswith("/") else path


class ErrorBoundary:
    """The outermost ASGI middleware: gives each request an id, and answers unforeseen errors.

    `request.state.request_id` is the request's id, sent as `x-request-id`; to Anthropic's clients
    also as `request-id`, which is what they read.

    Args:
        app: The application within.
        service: The service that requests come to.
    """

    def __init__(self, app: ASGIApp, service: Any) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[SERVICE] = self._service
        request_id = request_id_of(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if speaks_anthropic(scope):
                    headers["request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except (ClientDisconnect, CallerGoneError):
            if not begun:  # the caller is gone, but uvicorn wants a response
                await Response(status_code=499)(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            response = answer_error(scope, error)
            if not begun:
                await response(scope, receive, send_with_id)
