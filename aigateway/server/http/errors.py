"""The one writer of errors: status, form, headers, counter and log line.

The form is OpenAI's (https://platform.openai.com/docs/guides/error-codes), or Anthropic's for its
clients (https://platform.claude.com/docs/en/api/errors). Messages are those of our own errors and
hold no key, no prompt, no answer and no vendor's text. That text is in `detail`: it goes to
the caller of the request, and nowhere else.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from aigateway.clock import Clock
from aigateway.errors import GatewayError, Refusal, error_refusal
from aigateway.protocols.anthropic_messages import anthropic_error
from aigateway.server.http.json_responses import json_response
from aigateway.telemetry.log import log_event

__all__ = [
    "IS_HEAD",
    "REQUEST",
    "Refusal",
    "RefusalLog",
    "answer_error",
    "handle",
    "is_anthropics_path",
    "own_path",
    "refusal_of",
    "request_id_of",
    "speaks_anthropic",
    "written_refusal",
]

_log = logging.getLogger("aigateway.server")

REQUEST = "aigateway.request"
"""The key of the scope for the `AdmittedRequest`."""

IS_HEAD = "aigateway.is_head"
"""The key of the scope of a HEAD that is answered like a GET."""


def refusal_of(error: Exception) -> Refusal:
    """Return the refusal that stands for an error. An unforeseen error reveals nothing."""
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, error.detail, headers=error.headers)
    return error_refusal(error)


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
    if status == 404 and REQUEST in scope:
        message += f" There is {', '.join(scope[REQUEST].service.endpoints)}."
    headers = error.headers
    allowed = set((headers or {}).get("Allow", "").split(", "))
    if "GET" in allowed:  # the router's order varies
        headers = {**(headers or {}), "Allow": ", ".join(sorted(allowed | {"HEAD"}))}
    return Refusal(status, message, headers=headers)


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
    status, body = anthropic_error(refusal)
    return status, body | {"request_id": scope.get("state", {}).get("request_id")}


# ── which form ───────────────────────────────────────────────────────────────────────────────

_ANTHROPICS_PATH = re.compile(
    r"(?!.*/(?:threads|completions)/)(?:.*/)?(?:messages|complete)(?:/.*)?"
)


def speaks_anthropic(scope: Scope) -> bool:
    """Return whether a request is in Anthropic's protocol, by its path or its headers."""
    names = {name for name, _ in scope.get("headers", ())}
    return b"anthropic-version" in names or is_anthropics_path(own_path(scope))


@functools.lru_cache(64)
def is_anthropics_path(path: str) -> bool:
    """Return whether a path within the application belongs to Anthropic's protocol."""
    return _ANTHROPICS_PATH.fullmatch(path) is not None


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
        if REQUEST in scope:
            peer, request = scope.get("client"), scope[REQUEST]
            log: RefusalLog = request.service.refusal_log
            # A refused body is answered by the endpoint and, in its place, by `LimitedRequest`.
            if scope.get(_NOTED) is not refusal:
                scope[_NOTED] = refusal
                refusal.caller = refusal.caller or request.key_name()
                address = None if peer is None else str(peer[0])
                log.note(refusal, address, status, request.request_id)
    elif not isinstance(error, GatewayError):
        places = "".join(traceback.format_tb(error.__traceback__))
        request_id = scope.get("state", {}).get("request_id")
        _log.error("Request %s: %s\n%s", request_id, type(error).__name__, places)
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in refusal.headers.items()
    ]
    return json_response(body, status, headers)


async def handle(request: Request, error: Exception) -> Response:
    """Answer an error of an endpoint: the handler of every exception that the service knows."""
    return answer_error(request.scope, error)


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

    def note(
        self,
        refusal: Refusal,
        peer: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        """Count a refusal, and log it unless the same was logged a moment ago.

        Args:
            refusal: What was refused.
            peer: The caller's address, for a request without a known key.
            status: The HTTP status of the answer; None is the refusal's own.
            request_id: Of the request.
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
        how_often = "once" if silent == 1 else "{not_logged} times"
        more = f", and {how_often} since the last such line" if silent else ""
        which = " ({code})" if refusal.code else ""
        asked = "" if request_id is None else " for request {request_id}"
        log_event(
            logging.WARNING,
            "service.refused",
            f"{{caller}} got HTTP {{status}}{which}{asked}{more}.",
            caller=f"the key {refusal.caller!r}" if refusal.caller else peer or "an unknown caller",
            status=status or refusal.status,
            code=code,
            not_logged=silent,
            request_id=request_id,
        )


_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


def request_id_of(given: str | None) -> str:
    """Return the caller's id of a request if it is fit for logs and headers, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    try:
        return _ids.pop()
    except IndexError:  # all are used
        return _new_id()


_ids: list[str] = []
"""For requests to come. The system's random numbers cost as much for many as for one."""

_MORE_IDS = 64


def _new_id() -> str:
    digits = os.urandom(16 * _MORE_IDS).hex()
    _ids.extend(digits[at : at + 32] for at in range(32, len(digits), 32))
    return digits[:32]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.clear)


def own_path(scope: Scope) -> str:
    """Return a request's path within the application, wherever that is mounted."""
    path: str = scope["path"]
    root = scope.get("root_path")
    if not root:
        return path
    within = path.removeprefix(root)
    return within if within.startswith("/") else path
