"""What is written for each line of a job: OpenAI's batch output format, and a little beside it.

https://platform.openai.com/docs/guides/batch. Whatever reads OpenAI's files reads these; what the
gateway knows beyond them is under "aigateway", which is also all that a resumed job needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import orjson

from aigateway.batch.files.lines import Problem
from aigateway.errors import (
    AllProvidersFailedError,
    ContentPolicyError,
    ContextWindowExceededError,
    DeadlineExceededError,
    GatewayError,
    OverloadedError,
    ProviderFailure,
    RequestRejectedError,
    UnknownModelError,
)
from aigateway.messages import Attempt, BatchItem, ChatResponse

__all__ = [
    "Record",
    "answer_record",
    "copied",
    "encoded",
    "error_record",
    "is_record",
    "item_record",
    "problem_record",
]

Record = dict[str, Any]
"""One line of the output, or of the file of errors."""

_CODES: tuple[tuple[type[GatewayError], str], ...] = (
    (UnknownModelError, "unknown_model"),
    (ContextWindowExceededError, "context_window_exceeded"),
    (ContentPolicyError, "content_policy"),
    (RequestRejectedError, "request_rejected"),
    (AllProvidersFailedError, "all_providers_failed"),
    (DeadlineExceededError, "deadline_exceeded"),
    (OverloadedError, "overloaded"),
)
"""Special ones first."""


def item_record(line_id: str, item: BatchItem) -> Record:
    """The record of a request that is over."""
    if item.response is not None:
        return answer_record(line_id, item.response)
    assert item.error is not None  # noqa: S101 - an item has one of the two
    return error_record(line_id, item.error)


def answer_record(line_id: str, response: ChatResponse) -> Record:
    """The record of an answer."""
    shared = response.cached or response.coalesced
    return _record(
        line_id,
        response={
            "status_code": 200,
            "request_id": response.request_id,
            "body": response.to_openai(),
        },
        about={
            "provider": response.provider,
            "cost_usd": response.cost_usd,
            "cached": shared,
            "latency_seconds": round(response.latency_seconds, 6),
            "attempts": [_attempt(attempt) for attempt in response.attempts],
        },
    )


def copied(record: Record, line_id: str) -> Record:
    """The record of a line that asks what another one has asked: the same end, at no cost."""
    about = record["aigateway"] | {"cached": True, "cost_usd": 0.0, "attempts": []}
    about["same_as"] = record["custom_id"]
    return record | {"id": _new_id(), "custom_id": line_id, "aigateway": about}


def error_record(line_id: str, error: Exception) -> Record:
    """The record of a line that got no answer.

    `final` says that asking again is of no use: the request itself is at fault.
    """
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "internal_error")
    # What is no GatewayError may quote a prompt.
    message = str(error) if isinstance(error, GatewayError) else type(error).__name__
    causes: tuple[ProviderFailure, ...] = getattr(error, "causes", ())
    return _record(
        line_id,
        error={"code": code, "message": message},
        about={
            "final": isinstance(error, RequestRejectedError),
            "attempts": [_cause(cause) for cause in causes],
        },
    )


def problem_record(line_id: str, problem: Problem) -> Record:
    """The record of a line that nobody can be asked."""
    return _record(
        line_id,
        error={"code": "bad_line", "message": f"Line {problem.number}: {problem.what}."},
        about={"final": True, "attempts": []},
    )


def encoded(record: Record) -> bytes:
    """The record as a line.

    A vendor may have cut an answer in the middle of a character, which is no JSON; what is left of
    that character becomes a question mark.
    """
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def is_record(value: object) -> bool:
    """Whether this is a whole record that this program wrote."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("custom_id"), str)
        and isinstance(value.get("aigateway"), dict)
        and (value.get("response") is None) != (value.get("error") is None)
    )


def _record(
    line_id: str,
    *,
    about: Mapping[str, Any],
    response: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> Record:
    return {
        "id": _new_id(),
        "custom_id": line_id,
        "response": response,
        "error": error,
        "aigateway": about,
    }


def _new_id() -> str:
    return f"batch_req_{os.urandom(12).hex()}"


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "provider": attempt.provider,
        "failure": attempt.failure,
        "status": attempt.status,
        "latency_seconds": round(attempt.latency_seconds, 6),
    }


def _cause(cause: ProviderFailure) -> dict[str, Any]:
    return {
        "provider": cause.provider,
        "failure": cause.kind,
        "status": cause.status,
        "latency_seconds": None,
    }
