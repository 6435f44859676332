"""Gemini's errors as a `google.rpc.Status` with details."""

from __future__ import annotations

from typing import Any

from aigateway.simulator.faults import Fault
from aigateway.simulator.wires.wire import SimulatedFailure, Words, retry_headers, words_for

__all__ = ["failure"]

_RPC = "type.googleapis.com/google.rpc."
_INVALID = "INVALID_ARGUMENT"
_PRECONDITION = "FAILED_PRECONDITION"
_EXHAUSTED = "RESOURCE_EXHAUSTED"


def failure(fault: Fault, model: str) -> SimulatedFailure:
    """Return an error; `retry_after` goes into `RetryInfo` and into the header."""
    words = words_for(fault, _ERRORS, _BY_STATUS, model)
    error: dict[str, Any] = {
        "code": words.status,
        "message": words.message,
        "status": fault.code_name or words.kind or _STATUSES.get(words.status, "UNKNOWN"),
    }
    details = _details(fault, words, model)
    if details:
        error["details"] = details
    return SimulatedFailure(words.status, {"error": error}, retry_headers(fault.retry_after))


def _details(fault: Fault, words: Words, model: str) -> list[dict[str, Any]]:
    details: list[dict[str, Any]] = []
    if words.code == "API_KEY_INVALID":
        service = {"service": "generativelanguage.googleapis.com"}
        reason = {"reason": words.code, "domain": "googleapis.com", "metadata": service}
        text = {"locale": "en-US", "message": words.message}
        details += [{"@type": f"{_RPC}ErrorInfo", **reason}]
        details += [{"@type": f"{_RPC}LocalizedMessage", **text}]
    if fault.name == "rate_limited" or (fault.name == "status" and words.status == 429):
        violation = {
            "quotaMetric": "generativelanguage.googleapis.com/generate_content_paid_tier_requests",
            "quotaId": "GenerateRequestsPerMinutePerProjectPerModel",
            "quotaDimensions": {"location": "global", "model": model},
            "quotaValue": "1000",
        }
        details.append({"@type": f"{_RPC}QuotaFailure", "violations": [violation]})
    delay = _delay(fault.retry_after)
    if delay:
        details.append({"@type": f"{_RPC}RetryInfo", "retryDelay": delay})
    return details


def _delay(value: float | str | None) -> str | None:
    """Return a protobuf duration; a date stays in the header only."""
    try:
        return None if value is None else f"{float(value):g}s"
    except ValueError:
        return None


def _no_model(method: str) -> Words:
    return Words(
        404,
        "NOT_FOUND",
        "models/{model} is not found for API version v1beta, or is not supported for "
        f"{method}. Call ListModels to see the list of available models and their supported "
        "methods.",
    )


_ERRORS = {
    "bad_request": Words(400, _INVALID, "Request contains an invalid argument."),
    "broken_json": Words(400, _INVALID, "Invalid JSON payload received. Unexpected end of string."),
    "wrong_path": Words(404, "NOT_FOUND", "Requested entity was not found."),
    "missing_key": Words(
        403,
        "PERMISSION_DENIED",
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API.",
    ),
    "bad_key": Words(
        400,
        _INVALID,
        "API key not valid. Please pass a valid API key.",
        code="API_KEY_INVALID",
    ),
    "unauthenticated": Words(
        401,
        "UNAUTHENTICATED",
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
        "cookie or other valid authentication credential.",
    ),
    "forbidden": Words(
        403, "PERMISSION_DENIED", "Your project has been denied access. Please contact support."
    ),
    "region": Words(400, _PRECONDITION, "User location is not supported for the API use."),
    "too_large": Words(400, _INVALID, "Request payload size exceeds the limit: 20971520 bytes."),
    "unsupported_media": Words(400, _INVALID, "Invalid value: unsupported content type."),
    "context_window": Words(
        400,
        _INVALID,
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    ),
    "retired_model": Words(
        404,
        "NOT_FOUND",
        "This model models/{model} is no longer available. Please update your code to use a "
        "newer model for the latest features and improvements.",
    ),
    "model_not_found": _no_model("generateContent"),
    "not_a_chat_model": _no_model("generateContent"),
    "not_an_embedding_model": _no_model("embedContent"),
    "file_not_found": Words(
        403,
        "PERMISSION_DENIED",
        "You do not have permission to access the File simulated or it may not exist.",
    ),
    "no_tools": Words(400, _INVALID, "Function calling is not enabled for models/{model}"),
    "no_credit": Words(
        429,
        _EXHAUSTED,
        "Your prepayment credits are depleted. Please go to AI Studio at "
        "https://ai.studio/projects to manage your project and billing.",
    ),
    "billing": Words(402, _PRECONDITION, "Billing is not enabled for this project."),
    "insufficient_quota": Words(
        429,
        _EXHAUSTED,
        "Your project has exceeded its monthly spending cap. Please go to AI Studio at "
        "https://ai.studio/spend to manage your project spend cap.",
    ),
    "rate_limited": Words(
        429,
        _EXHAUSTED,
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n"
        "* Quota exceeded for metric: "
        "generativelanguage.googleapis.com/generate_content_paid_tier_requests, limit: 1000, "
        "model: {model}\n{retry}",
    ),
    "server_error": Words(
        500,
        "INTERNAL",
        "An internal error has occurred. Please retry or report in "
        "https://developers.generativeai.google/guide/troubleshooting",
    ),
    "overloaded": Words(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "timeout": Words(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}

_BY_STATUS = {
    400: "bad_request",
    401: "unauthenticated",
    402: "billing",
    403: "forbidden",
    404: "model_not_found",
    413: "too_large",
    429: "rate_limited",
    500: "server_error",
    503: "overloaded",
    504: "timeout",
}

_STATUSES = {
    400: _INVALID,
    409: "ABORTED",
    412: _PRECONDITION,
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    529: "UNAVAILABLE",
}
