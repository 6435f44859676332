"""Classify any exception, and say what each kind of failure leads to.

Exceptions are known by their shape and by class names, so neither litellm nor an HTTP library is
imported here. litellm's own exceptions give wrong statuses (a refused connection is an
`InternalServerError` 500), so they come last: first the chain behind the exception
(`original_exception`, `__cause__`, `__context__`) is searched for a response that really came, or
for the way the connection failed.

`VERDICTS` is the table of rules; nothing else decides whose fault a failure is.
"""

from __future__ import annotations

import errno
import json
import socket
import ssl
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TypeGuard

from aigateway.errors import FailureKind
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.error_bodies import classify_response

__all__ = ["VERDICTS", "Failover", "Gate", "Verdict", "classify", "classify_response"]


class Failover(StrEnum):
    """Whether the next provider is asked after this failure."""

    NEVER = "never"
    ALWAYS = "always"
    SECOND_OPINION = "second_opinion"
    """One provider of another vendor is asked: the request may be at fault, or this vendor alone
    may not take it."""
    LARGER_WINDOW = "larger_window"
    """Only one whose model is known to take more input."""


class Gate(StrEnum):
    """What takes the provider out of rotation, beside its breaker."""

    NONE = "none"
    COOLDOWN = "cooldown"
    DISABLE = "disable"
    """The provider, for this operation: at once if the failure is certain, else when a second
    request meets the same."""
    NOT_OFFERED = "not_offered"
    """This operation of the provider."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one kind of failure leads to.

    Attributes:
        failover: Whether the next provider is asked.
        counts: Whether the provider's breaker counts it as a failure; else it is neutral.
        gate: Which gate closes. A kind that counts may ask for a cooldown too: it takes effect
            only where the vendor sent a `Retry-After`. A rate limit cools down in any case.
    """

    failover: Failover
    counts: bool = False
    gate: Gate = Gate.NONE


_ANOTHER = Verdict(Failover.ALWAYS)
_RAISE = Verdict(Failover.NEVER)
_MISCONFIGURED = Verdict(Failover.ALWAYS, gate=Gate.DISABLE)
_ILL = Verdict(Failover.ALWAYS, counts=True)
_ILL_AND_SAYS_WHEN = Verdict(Failover.ALWAYS, counts=True, gate=Gate.COOLDOWN)

VERDICTS: Mapping[FailureKind, Verdict] = MappingProxyType(
    {
        FailureKind.REJECTED: Verdict(Failover.SECOND_OPINION),
        FailureKind.CONTENT_POLICY: _RAISE,
        FailureKind.CONTEXT_WINDOW: Verdict(Failover.LARGER_WINDOW),
        FailureKind.CANCELLED: _RAISE,
        FailureKind.DEADLINE: _ANOTHER,
        FailureKind.HEDGE_LOST: _ANOTHER,
        FailureKind.UNSUPPORTED: _ANOTHER,
        FailureKind.NOT_OFFERED: Verdict(Failover.ALWAYS, gate=Gate.NOT_OFFERED),
        FailureKind.INVALID_OUTPUT: _ANOTHER,
        FailureKind.AUTHENTICATION: _MISCONFIGURED,
        FailureKind.PERMISSION: _MISCONFIGURED,
        FailureKind.NO_CREDIT: _MISCONFIGURED,
        FailureKind.MODEL_NOT_FOUND: _MISCONFIGURED,
        FailureKind.RATE_LIMITED: Verdict(Failover.ALWAYS, gate=Gate.COOLDOWN),
        FailureKind.SERVER_ERROR: _ILL_AND_SAYS_WHEN,
        FailureKind.BAD_ANSWER: _ILL_AND_SAYS_WHEN,
        FailureKind.CONNECTION: _ILL,
        FailureKind.TIMEOUT: _ILL,
        FailureKind.UNKNOWN: _ILL,
        FailureKind.CIRCUIT_OPEN: _ANOTHER,
        FailureKind.COOLING_DOWN: _ANOTHER,
        FailureKind.DISABLED: _ANOTHER,
        FailureKind.SATURATED: _ANOTHER,
    }
)
"""The rules: one verdict for every kind of failure."""

_MOST_LINKS = 64
"""Exceptions looked at in one chain. Real chains have fewer than ten."""

_KINDS_OF_CLASSES: Mapping[str, FailureKind] = {
    # How it went on the wire: httpx, httpcore, aiohttp, requests, botocore, the openai SDK.
    "PoolTimeout": FailureKind.SATURATED,
    "UnsupportedParamsError": FailureKind.UNSUPPORTED,
    "TimeoutException": FailureKind.TIMEOUT,
    "ServerTimeoutError": FailureKind.TIMEOUT,
    "APITimeoutError": FailureKind.TIMEOUT,
    "RemoteProtocolError": FailureKind.CONNECTION,
    "NetworkError": FailureKind.CONNECTION,
    "ProxyError": FailureKind.CONNECTION,
    "ClientHttpProxyError": FailureKind.CONNECTION,
    "UnsupportedProtocol": FailureKind.CONNECTION,
    "InvalidURL": FailureKind.CONNECTION,
    "ClientConnectionError": FailureKind.CONNECTION,
    "ClientPayloadError": FailureKind.CONNECTION,
    "DecodingError": FailureKind.BAD_ANSWER,
    "TooManyRedirects": FailureKind.BAD_ANSWER,
    "ContentTypeError": FailureKind.BAD_ANSWER,
    "HttpProcessingError": FailureKind.BAD_ANSWER,  # aiohttp: what came is no HTTP
    "APIResponseValidationError": FailureKind.BAD_ANSWER,
    # google-auth: no token could be had, so nothing was sent.
    "DefaultCredentialsError": FailureKind.AUTHENTICATION,
    "RefreshError": FailureKind.AUTHENTICATION,
}

_UNCONNECTED_CLASSES = frozenset(
    {
        # aiohttp: refused, DNS, TLS; too slow; a proxy that did not let us through
        "ClientConnectorError",
        "ConnectionTimeoutError",
        "ClientHttpProxyError",
    }
)
_UNCONNECTED_ERRNOS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)
"""How libraries and the system say that no connection was made."""

_EXHAUSTED_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE})
"""How the system says that this process, or all of this machine, has no descriptor left."""

_BROKEN_CLASSES = frozenset(
    {"ReadError", "ReadTimeout", "RemoteProtocolError", "ServerDisconnectedError", "WriteError"}
)
_BROKEN_ERRNOS = frozenset({errno.ECONNABORTED, errno.ECONNRESET, errno.EPIPE})
"""How they say that one was made, and broke."""

_VAGUE_CLASSES: Mapping[str, bool] = {
    # litellm's own transport calls a reset "ConnectError", too.
    "ConnectError": True,
    "ConnectTimeout": True,
    "ProxyError": True,
    "APITimeoutError": False,
}
"""Those that leave it to what is behind them, and what they mean where nothing is."""

_KINDS_OF_LITELLM_CLASSES: Mapping[str, FailureKind] = {
    # Only what litellm found out from words that it alone reads; the rest follows from the status.
    "ContextWindowExceededError": FailureKind.CONTEXT_WINDOW,
    "ContentPolicyViolationError": FailureKind.CONTENT_POLICY,
    "Timeout": FailureKind.TIMEOUT,
}


def classify(
    exc: BaseException, *, now_wall: float, outside: BaseException | None = None
) -> Failure:
    """Classify an exception. Never raises an `Exception`, whatever comes in.

    Cancellation is not a failure: let it through instead. `outside` is the exception that was
    being handled when the call began (`sys.exception()`); Python links it into the chain though the
    vendor did not cause it.
    """
    try:
        return _classified(exc, now_wall, outside)
    except Exception:  # noqa: BLE001 - properties of foreign exceptions may raise anything
        return Failure(FailureKind.UNKNOWN)


def _classified(exc: BaseException, now_wall: float, outside: BaseException | None) -> Failure:
    chain = tuple(_chain(exc, outside))
    for nearest, link in enumerate(chain):
        failure = _from_vendor(link, now_wall) or _from_wire(link, chain[nearest:])
        if failure is not None:
            return _refined(failure, chain)
    for link in chain:
        failure = _from_litellm(link, now_wall)
        if failure is not None:
            return failure
    return Failure(FailureKind.UNKNOWN)


def _chain(exc: BaseException, outside: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception and everything behind it, nearest first, each once."""
    queue, seen = deque([exc]), {id(exc), id(outside)}
    for _ in range(_MOST_LINKS):
        if not queue:
            return
        link = queue.popleft()
        yield link
        behind = [_get(link, "original_exception"), link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            behind += link.exceptions[:_MOST_LINKS]
        for other in behind:
            if isinstance(other, BaseException) and id(other) not in seen:
                seen.add(id(other))
                queue.append(other)


def _from_vendor(link: BaseException, now_wall: float) -> Failure | None:
    """Read the response that an exception carries, if it came from the vendor."""
    if isinstance(link, VendorCallError):
        return link.failure
    names = _class_names(link)
    if _is_litellms(link) and "HTTPStatusError" not in names:
        return None  # these make responses up
    if "ClientHttpProxyError" in names:
        return None  # what a proxy said, not the vendor
    if link.__cause__ is not None and "HttpProcessingError" in _class_names(link.__cause__):
        return None  # aiohttp puts 400 on what is no HTTP at all
    response = _get(link, "response")
    status = _get(response, "status_code", "status")
    if isinstance(response, dict):  # botocore's ClientError
        metadata = response.get("ResponseMetadata")
        status = metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None
    if not _is_status(status):
        # aiohttp's ClientResponseError is its own response.
        status = _get(link, "status") if "ClientResponseError" in names else None
    if not _is_status(status):
        return None
    headers = _headers(_get(response, "headers") or _get(link, "headers"))
    body = _body(response, link)
    return classify_response(status, headers, body, now_wall=now_wall)


def _from_wire(link: BaseException, chain: tuple[BaseException, ...]) -> Failure | None:
    """Classify how the connection failed, where nothing came that could be read."""
    kind = _kind_on_wire(link)
    if kind is None:
        return None
    if any(map(_is_local_exhaustion, chain)):
        return Failure(FailureKind.SATURATED)
    # A status with "nothing came" would be made up.
    return Failure(kind, unreachable=_is_unreachable(chain))


def _kind_on_wire(link: BaseException) -> FailureKind | None:
    if not _is_litellms(link):
        for name in _class_names(link):
            if name in _KINDS_OF_CLASSES:
                for_now = name == "RefreshError" and _get(link, "retryable") is True
                return FailureKind.SERVER_ERROR if for_now else _KINDS_OF_CLASSES[name]
    elif "UnsupportedParamsError" in _class_names(link):
        return FailureKind.UNSUPPORTED
    if isinstance(link, TimeoutError):
        return FailureKind.TIMEOUT
    if isinstance(link, OSError | ssl.SSLError | EOFError):
        return FailureKind.CONNECTION
    if isinstance(link, json.JSONDecodeError | UnicodeDecodeError):
        return FailureKind.BAD_ANSWER
    return None


def _is_local_exhaustion(link: BaseException) -> bool:
    """Return whether this process had no descriptor left, so that the call never got out."""
    if isinstance(link, socket.gaierror):
        # Where no socket can be had, the C library knows no name any more, and does not say why.
        return not _can_have_a_descriptor()
    return isinstance(link, OSError) and link.errno in _EXHAUSTED_ERRNOS


def _can_have_a_descriptor() -> bool:
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno not in _EXHAUSTED_ERRNOS
    return True


def _is_unreachable(chain: tuple[BaseException, ...]) -> bool:
    """Return whether no connection was made at all."""
    vague = not _VAGUE_CLASSES.keys().isdisjoint(_class_names(chain[0]))
    for link in chain if vague else chain[:1]:
        connected = _was_connected(link)
        if connected is not None:
            return not connected
    return vague and any(_VAGUE_CLASSES.get(name) for link in chain for name in _class_names(link))


def _was_connected(link: BaseException) -> bool | None:
    """Return whether there was a connection; None if this exception does not say."""
    names = frozenset(() if _is_litellms(link) else _class_names(link))
    number = link.errno if isinstance(link, OSError) else None
    if not names.isdisjoint(_BROKEN_CLASSES) or number in _BROKEN_ERRNOS:
        return True
    if (
        not names.isdisjoint(_UNCONNECTED_CLASSES)
        or number in _UNCONNECTED_ERRNOS
        or isinstance(link, ConnectionRefusedError | socket.gaierror | ssl.SSLCertVerificationError)
    ):
        return False
    return None


def _from_litellm(link: BaseException, now_wall: float) -> Failure | None:
    """Believe litellm where nothing behind its exception says more."""
    for name in _class_names(link):
        if name in _KINDS_OF_LITELLM_CLASSES and _is_litellms(link):
            return Failure(_KINDS_OF_LITELLM_CLASSES[name])
    status = _get(link, "status_code")
    if not _is_status(status):
        return None
    headers = _headers(_get(link, "litellm_response_headers") or _get(link, "headers"))
    failure = classify_response(status, headers, _get(link, "body"), now_wall=now_wall)
    # litellm puts 500 on everything it does not understand, and no response stands behind the
    # other numbers either: they tell the kind, but the vendor need not have sent them.
    unknown = _is_litellms(link) and status == 500
    kind = FailureKind.UNKNOWN if unknown else failure.kind
    return replace(failure, kind=kind, status=None, certain=failure.certain and not unknown)


def _refined(failure: Failure, chain: tuple[BaseException, ...]) -> Failure:
    """Let litellm's reading of the words sharpen a plain rejection, and nothing else."""
    if failure.kind is not FailureKind.REJECTED:
        return failure
    for link in chain:
        for name in _class_names(link) if _is_litellms(link) else ():
            kind = _KINDS_OF_LITELLM_CLASSES.get(name)
            if kind in {FailureKind.CONTEXT_WINDOW, FailureKind.CONTENT_POLICY}:
                return replace(failure, kind=kind)
    return failure


def _is_status(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599


def _is_litellms(link: BaseException) -> bool:
    return type(link).__module__.partition(".")[0] == "litellm"


def _class_names(link: BaseException) -> tuple[str, ...]:
    return tuple(cls.__name__ for cls in type(link).__mro__)


def _get(holder: object, *names: str) -> object:
    """Return the first of these attributes that can be read. httpx's raise where unset."""
    for name in names:
        try:
            value: object = getattr(holder, name, None)
        except Exception:  # noqa: BLE001, S112 - a property may raise anything
            continue
        if value is not None:
            return value
    return None


def _headers(headers: object) -> Mapping[str, str]:
    items = _get(headers, "items")
    if not callable(items):
        return {}
    return {
        name: value for name, value in items() if isinstance(name, str) and isinstance(value, str)
    }


def _body(response: object, link: BaseException) -> object:
    """Return the body as it came, else what an SDK made of it."""
    if isinstance(response, dict):
        error = response.get("Error")
        if not isinstance(error, dict):
            return None
        return {"error": {"code": error.get("Code"), "message": error.get("Message")}}
    content = _get(response, "content")
    if isinstance(content, bytes) and content:
        return content
    return _get(link, "body")
