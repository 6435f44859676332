"""How the service says no: a status, and OpenAI's form of an error.

https://platform.openai.com/docs/guides/error-codes. Messages are those of our own errors, which
hold no key, no prompt, no answer and no vendor's text. The vendor's text is in `detail`: it goes to
whoever made the request, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aigateway.errors import (
    AllProvidersFailedError,
    BudgetExceededError,
    ContentPolicyError,
    ContextWindowExceededError,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    NoProvidersError,
    OverloadedError,
    ProviderFailure,
    RequestRejectedError,
    StreamInterruptedError,
    UnknownModelError,
)

__all__ = ["Refusal", "refusal_of", "stopping"]


class Refusal(Exception):  # noqa: N818 - it is an answer
    """An error as it goes to whoever asked.

    Args:
        status: Of HTTP.
        message: For a person.
        kind: OpenAI's `type`.
        code: OpenAI's `code`; None where there is none.
        param: Which parameter is at fault, where that is known.
        retry_after: Seconds after which to ask again; None says nothing.
        cause: What a provider said, where that decided: its code stands for a missing `code`.
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
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.cause = cause
        self.caller: str | None = None
        """The name of the key that was refused, where that is known."""

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's form of it."""
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
        """What goes with it: `Retry-After` in whole seconds, never too early."""
        if self.retry_after is None or not math.isfinite(self.retry_after):
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


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
    (GatewayError, 503, "server_error", "unavailable"),
)

_PARAMS: dict[type[GatewayError], str] = {
    UnknownModelError: "model",
    ContextWindowExceededError: "messages",
}


def stopping() -> Refusal:
    """What is said to whoever is not answered to the end because the service stops."""
    return Refusal(
        503, "The service is stopping; ask again.", "server_error", "stopping", retry_after=1.0
    )


def refusal_of(error: Exception) -> Refusal:
    """What an error of the gateway is to whoever asked. One that is not foreseen says nothing."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, AllProvidersFailedError):
        return _of_providers(error)
    if isinstance(error, StreamInterruptedError):
        what = "" if error.cause is None else f" ({error.cause.kind})"
        message = f"The stream from {error.provider} broke after its first content{what}."
        return Refusal(502, message, "server_error", "stream_interrupted", cause=error.cause)
    for kind, status, what, code in _FORMS:
        if isinstance(error, kind):
            after = 1.0 if kind is OverloadedError else None
            param = _PARAMS.get(kind)
            causes = getattr(error, "causes", ())
            return Refusal(
                status,
                str(error),
                what,
                code,
                param=param,
                retry_after=after,
                cause=_telling(causes),
            )
    return Refusal(500, "Something is broken here; the log says what.", "server_error", "internal")


_THROTTLED = {FailureKind.RATE_LIMITED, FailureKind.COOLING_DOWN, FailureKind.SATURATED}


def _of_providers(error: AllProvidersFailedError) -> Refusal:
    message = str(error)
    after = error.retry_after_seconds
    if error.causes and all(map(_is_our_own_lack, error.causes)):
        return Refusal(503, message, "server_error", "overloaded", retry_after=1.0)
    if error.causes and all(cause.kind in _THROTTLED for cause in error.causes):
        return Refusal(
            429,
            message,
            "rate_limit_error",
            "rate_limit_exceeded",
            retry_after=after or 1.0,
            cause=_telling(error.causes),
        )
    return Refusal(
        503,
        message,
        "server_error",
        "all_providers_failed",
        retry_after=after,
        cause=_telling(error.causes),
    )


def _telling(causes: Sequence[ProviderFailure]) -> ProviderFailure | None:
    """The cause that says most of what to mend: one about a parameter, else one with words."""
    about = next((cause for cause in causes if cause.param is not None), None)
    return about or next((cause for cause in causes if cause.detail is not None), None)


def _is_our_own_lack(cause: ProviderFailure) -> bool:
    """Whether there was no place or no descriptor here; a rate that is used up says until when."""
    return cause.kind is FailureKind.SATURATED and cause.retry_after_seconds is None
