"""What a vendor's HTTP response says went wrong: status, headers and body to a `Failure`.

This is the shared core of every lane and knows no HTTP library and no litellm. It reads the error
bodies of OpenAI (and the servers that imitate it), Azure OpenAI, Google and Anthropic. The body's
code is looked at before its words, and those before the status, because vendors say very different
things under the same 400 and 429.

Words are read only where a vendor sends no code, and those that would take a provider out of
service only at the beginning of the message: a message may quote the prompt, and a prompt must
not be able to disable a provider.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aigateway.errors import FailureKind
from aigateway.settings.secrets import tells_a_key
from aigateway.vendor.client import Failure
from aigateway.vendor.retry_after import retry_after_from_headers, seconds_from_google_delay

__all__ = ["classify_response", "kind_of_status", "tame_code"]

_LARGEST_BODY = 1_000_000
"""Bytes or characters. A longer body is cut, so it will not parse and the status decides."""

_TAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def _key(code: str) -> str:
    """One spelling for "InternalServerError" and "internal_server_error"."""
    return code.lower().replace("_", "")


_CODES: Mapping[str, FailureKind] = {
    _key(code): kind
    for kind, codes in {
        FailureKind.CONTEXT_WINDOW: (
            "context_length_exceeded",
            "context_window_exceeded",
            "exceed_context_size_error",  # llama.cpp
            "model_context_window_exceeded",
        ),
        FailureKind.CONTENT_POLICY: (
            "content_filter",
            "content_policy_violation",
            "invalid_prompt",  # OpenAI: "your prompt was flagged"
            "moderation_blocked",
            "responsibleaipolicyviolation",
        ),
        FailureKind.AUTHENTICATION: (
            "account_deactivated",
            "api_key_invalid",
            "invalid_api_key",
            "invalid_authentication",
            "invalid_organization",
        ),
        FailureKind.PERMISSION: (
            "access_terminated",
            "account_suspended",
            "api_key_android_app_blocked",
            "api_key_http_referrer_blocked",
            "api_key_ip_address_blocked",
            "api_key_service_blocked",
            "consumer_suspended",
            "insufficient_permissions",
            "ip_not_authorized",
            "request_forbidden",
            "service_disabled",
            "unsupported_country_region_territory",
        ),
        FailureKind.NO_CREDIT: (
            "billing_disabled",
            "billing_error",
            "billing_hard_limit_reached",
            "billing_not_active",
            "insufficient_balance",
            "insufficient_quota",
            "organization_quota_exceeded",
            "payment_required",
            "spend_limit_reached",
            "spending_limit_exceeded",
        ),
        FailureKind.MODEL_NOT_FOUND: (
            "deploymentnotfound",
            "model_deprecated",
            "model_not_available",
            "model_not_found",
            "model_retired",
            "modeldeprecated",
            "modelnotfound",
        ),
        FailureKind.UNSUPPORTED: (
            # This model cannot do it; another one may. Nobody is at fault.
            "operationnotsupported",
            "unsupported_parameter",
            "unsupported_value",
        ),
    }.items()
    for code in codes
}
"""Codes that decide whatever the status says."""

_GENERIC_CODES: Mapping[str, FailureKind] = {
    _key(code): kind
    for kind, codes in {
        FailureKind.AUTHENTICATION: ("authentication_error", "unauthenticated"),
        FailureKind.PERMISSION: ("permission_denied", "permission_error"),
        FailureKind.SERVER_ERROR: (
            "api_error",
            "deadline_exceeded",
            "internal",
            "internal_error",
            "internal_server_error",
            "overloaded_error",
            "server_error",
            "service_unavailable",
            "timeout_error",
            "unavailable",
            "aborted",
            "engine_overloaded_error",
            "overloaded",
            "unavailable_error",
        ),
        FailureKind.RATE_LIMITED: (
            "rate_limit_error",
            "rate_limit_exceeded",
            "resource_exhausted",
            "too_many_requests",
        ),
        FailureKind.MODEL_NOT_FOUND: ("not_found", "not_found_error"),
        FailureKind.REJECTED: (
            "invalid_argument",
            "invalid_request_error",
            "request_too_large",
            "bad_request",
            "bad_request_error",
            "failed_precondition",
        ),
    }.items()
    for code in codes
}
"""Codes that only repeat the status: they decide where there is none, as in a 200 or a stream."""

_OPENINGS: tuple[tuple[str, FailureKind], ...] = (
    # Anthropic
    ("your credit balance is too low", FailureKind.NO_CREDIT),
    ("you have reached your specified api usage limits", FailureKind.NO_CREDIT),
    ("this organization has been disabled", FailureKind.PERMISSION),
    # Google
    ("api key not valid", FailureKind.AUTHENTICATION),
    ("api key expired", FailureKind.AUTHENTICATION),
    ("api key not found", FailureKind.AUTHENTICATION),
    ("your api key was reported as leaked", FailureKind.AUTHENTICATION),
    ("user location is not supported", FailureKind.PERMISSION),
    ("gemini api free tier is not available in your country", FailureKind.PERMISSION),
    ("your prepayment credits are depleted", FailureKind.NO_CREDIT),
    ("your project has exceeded its", FailureKind.NO_CREDIT),  # "... monthly spending cap"
    # OpenAI, and servers that imitate it
    ("incorrect api key provided", FailureKind.AUTHENTICATION),
    ("you exceeded your current quota, please check your plan", FailureKind.NO_CREDIT),
    ("your account is not active", FailureKind.NO_CREDIT),
    ("insufficient balance", FailureKind.NO_CREDIT),
    ("country, region, or territory not supported", FailureKind.PERMISSION),
)
"""How a message begins that takes the provider out of service. Lower case."""

_MODEL_IS_GONE = re.compile(
    r"(the )?(model|deployment)s?\W.{0,100}?"
    r"(does not exist|has been (deprecated|retired|decommissioned|shut down)"
    r"|is (no longer (available|supported)|deprecated|retired)|not found)",
    re.IGNORECASE | re.DOTALL,
)

_PHRASES: tuple[tuple[re.Pattern[str], FailureKind], ...] = (
    (
        re.compile(
            r"prompt is too long"
            r"|exceed context limit"
            r"|maximum context length"
            r"|model's context length is"
            r"|input token count.{0,60}exceeds the maximum"
            r"|exceeds the available context size",
            re.IGNORECASE,
        ),
        FailureKind.CONTEXT_WINDOW,
    ),
    (
        re.compile(
            r"content management policy|content filtering policy|flagged as potentially violating"
            r"|rejected as a result of our safety system",
            re.IGNORECASE,
        ),
        FailureKind.CONTENT_POLICY,
    ),
)
"""Words anywhere near the beginning; what they lead to harms no provider."""

_STATUSES: Mapping[int, FailureKind] = {
    401: FailureKind.AUTHENTICATION,
    402: FailureKind.NO_CREDIT,
    403: FailureKind.PERMISSION,
    451: FailureKind.PERMISSION,  # for legal reasons: the region
    404: FailureKind.MODEL_NOT_FOUND,
    405: FailureKind.MODEL_NOT_FOUND,  # no such address, as some proxies put it
    410: FailureKind.MODEL_NOT_FOUND,
    400: FailureKind.REJECTED,
    413: FailureKind.REJECTED,
    414: FailureKind.REJECTED,
    422: FailureKind.REJECTED,
    431: FailureKind.REJECTED,
    407: FailureKind.CONNECTION,  # a proxy between us and the vendor
    408: FailureKind.TIMEOUT,
    429: FailureKind.RATE_LIMITED,
    # The vendor's own trouble under a client's number: a lock, a dependency, a replay, a hang-up.
    409: FailureKind.SERVER_ERROR,
    424: FailureKind.SERVER_ERROR,
    425: FailureKind.SERVER_ERROR,
    499: FailureKind.SERVER_ERROR,
}


def classify_response(
    status: int | None,
    headers: Mapping[str, str],
    body: bytes | str | object,
    *,
    now_wall: float,
) -> Failure:
    """Say what an HTTP response that is no answer means.

    Args:
        status: The HTTP status. 2xx (or None, for an error event in a stream) means that the body
            was no answer; then an error inside it decides, and without one it is a `BAD_ANSWER`.
        headers: Response headers, names in any case.
        body: As received, or already parsed from JSON. Anything else is ignored.
        now_wall: Seconds since the Unix epoch, for `Retry-After` dates.
    """
    error = _error_object(_parsed(body), succeeded=status is not None and status < 300)
    codes = tuple(_codes(error))
    message = _message(error)
    lowered = {str(name).lower(): str(value) for name, value in headers.items()}
    retry_after = retry_after_from_headers(lowered, now_wall=now_wall)
    if retry_after is None:
        retry_after = _google_retry_delay(error)
    return Failure(
        kind=_kind(status, codes, message, _inner_status(error)),
        status=status,
        retry_after=retry_after,
        code=next((code for code in codes if tame_code(code)), None),
    )


def kind_of_status(status: int) -> FailureKind:
    """What a bare HTTP status means.

    A redirect is never followed: a POST that is sent elsewhere points at a wrong base URL or a
    login page, so it is a `BAD_ANSWER` like an HTML page. So is a success that is no answer.
    """
    known = _STATUSES.get(status)
    if known is not None:
        return known
    if 500 <= status < 600:
        return FailureKind.SERVER_ERROR
    return FailureKind.BAD_ANSWER if 100 <= status < 400 else FailureKind.UNKNOWN


def tame_code(code: object) -> str | None:
    """The code, if it is short and plain enough for logs and labels, and tells no key."""
    if not isinstance(code, str) or not _TAME.fullmatch(code) or tells_a_key(code):
        return None
    return code


def _kind(
    status: int | None, codes: tuple[str, ...], message: str, inner_status: int | None
) -> FailureKind:
    keys = tuple(map(_key, codes))
    for key in keys:
        if key in _CODES:
            return _CODES[key]
    if status is None or status < 500:
        # Google words an ordinary rate limit like OpenAI words an empty account.
        throttled = "resourceexhausted" in keys
        from_words = _kind_of_words(message, throttled=throttled)
        if from_words is not None:
            return from_words
    if status is not None and status >= 300:
        return kind_of_status(status)
    for key in keys:
        if key in _GENERIC_CODES:
            return _GENERIC_CODES[key]
    if inner_status is not None and inner_status >= 400:
        return kind_of_status(inner_status)
    return FailureKind.BAD_ANSWER


def _kind_of_words(message: str, *, throttled: bool) -> FailureKind | None:
    opening = message[:200].lower().lstrip()
    for words, kind in _OPENINGS:
        if opening.startswith(words) and not (throttled and words.startswith("you exceeded")):
            return kind
    if _MODEL_IS_GONE.match(message):
        return FailureKind.MODEL_NOT_FOUND
    return next((kind for pattern, kind in _PHRASES if pattern.search(message[:400])), None)


def _parsed(body: object) -> object:
    if isinstance(body, bytes | bytearray):
        body = bytes(body[:_LARGEST_BODY]).decode("utf-8", "replace")
    if not isinstance(body, str):
        return body
    try:
        parsed: object = json.loads(body[:_LARGEST_BODY])
    except (ValueError, RecursionError):
        return None
    return parsed


def _error_object(parsed: object, *, succeeded: bool) -> Mapping[str, Any]:
    """The object that holds code and message, wherever this vendor puts it."""
    if isinstance(parsed, list):  # Google wraps errors of streams in a list
        parsed = parsed[0] if parsed else None
    if not isinstance(parsed, Mapping):
        return {}
    inner = parsed.get("error")
    if isinstance(inner, Mapping):
        return inner
    if isinstance(inner, str):  # Ollama
        return {"message": inner}
    if succeeded and parsed.get("object") != "error":
        return {}  # an answer of some kind, and what it says is the model's
    return parsed  # vLLM, Azure's front door, and bodies that an SDK has already unwrapped


def _codes(error: Mapping[str, Any]) -> Iterator[str]:
    """Every code in the body, the most specific first."""
    for detail in _details(error):
        yield from _text(detail.get("reason"))
    inner = error.get("innererror")
    code = error.get("code")
    if isinstance(code, str) and not code.isdecimal():
        yield code
    if isinstance(inner, Mapping):
        yield from _text(inner.get("code"))
    yield from _text(error.get("type"))
    yield from _text(error.get("status"))


def _text(value: object) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value


def _details(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    if isinstance(details, list):
        yield from (detail for detail in details[:16] if isinstance(detail, Mapping))


def _message(error: Mapping[str, Any]) -> str:
    message = error.get("message")
    return message if isinstance(message, str) else ""


def _inner_status(error: Mapping[str, Any]) -> int | None:
    code = error.get("code")
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        return int(code)
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _google_retry_delay(error: Mapping[str, Any]) -> float | None:
    for detail in _details(error):
        delay = seconds_from_google_delay(detail.get("retryDelay"))
        if delay is not None:
            return delay
    return None
