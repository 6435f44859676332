"""The errors of the gateway, as one tree.

Every exception that the public functions raise is one of these::

    GatewayError
    ├── ConfigurationError             settings that cannot work (also a ValueError)
    │   └── NoProvidersError           nothing is configured
    ├── RequestRejectedError           the request itself is at fault (also a ValueError)
    │   ├── UnknownModelError          no provider has that model, name or alias
    │   ├── ContextWindowExceededError the prompt is longer than the models take
    │   ├── ContentPolicyError         the vendor's content policy refused it
    │   └── MiddlewareRefusedError     the application's middleware refused it, or the answer
    ├── AllProvidersFailedError        every provider that could be asked failed
    ├── DeadlineExceededError          the request's deadline passed (also a TimeoutError)
    ├── CircuitOpenError               a circuit breaker rejected a guarded call
    ├── StreamInterruptedError         a stream broke after its first content; has the text so far
    ├── BudgetExceededError            a spending limit was reached
    ├── MiddlewareFailedError          the application's middleware raised or took too long
    ├── MisuseError                    the program calls the library as it cannot be called
    ├── ToolRoundsExceededError        `run_tools` has reached its bound, and the model wants more
    └── OverloadedError                the gateway's own queue is full

Messages name the provider, the kind of failure and the HTTP status. They never contain a key, a
prompt, an answer or the vendor's own text, so they may be logged. Two attributes do, and are in no
message and no repr: `StreamInterruptedError.text`, which the caller has received already, and
`ProviderFailure.detail`, the vendor's own text. Every error can be pickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn

__all__ = [
    "AllProvidersFailedError",
    "BudgetExceededError",
    "CircuitOpenError",
    "ConfigurationError",
    "ContentPolicyError",
    "ContextWindowExceededError",
    "DeadlineExceededError",
    "FailureKind",
    "GatewayError",
    "MiddlewareFailedError",
    "MiddlewareRefusedError",
    "MisuseError",
    "NoProvidersError",
    "OverloadedError",
    "ProviderFailure",
    "RequestRejectedError",
    "StreamInterruptedError",
    "ToolRoundsExceededError",
    "UnknownModelError",
]


class FailureKind(StrEnum):
    """Why a provider gave no answer. The values are stable, because metrics and logs use them."""

    # The caller's side.
    REJECTED = "rejected"
    CONTEXT_WINDOW = "context_window"
    CONTENT_POLICY = "content_policy"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    """The request's deadline ended the attempt before the provider's timeout."""
    HEDGE_LOST = "outrun"
    """Another attempt for the same request answered first, and this one was cancelled."""
    OUTRUN = HEDGE_LOST

    # This provider cannot serve this request; its health is not affected.
    UNSUPPORTED = "unsupported"
    NOT_OFFERED = "not_offered"
    """The provider does not offer this operation at all (HTTP 405 or 501)."""
    INVALID_OUTPUT = "invalid_output"
    """The answer does not parse as the requested `response_format`."""

    # The provider's configuration.
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    NO_CREDIT = "no_credit"
    MODEL_NOT_FOUND = "model_not_found"

    # The provider's health.
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    BAD_ANSWER = "bad_answer"
    """HTML, an empty or incomplete answer, or broken JSON with a success status."""
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"

    # Not asked at all.
    CIRCUIT_OPEN = "circuit_open"
    COOLING_DOWN = "cooling_down"
    DISABLED = "disabled"
    SATURATED = "saturated"
    """The gateway's own limit of concurrent calls or its connection pool was full, or the process
    had no file descriptor left."""


@dataclass(frozen=True, slots=True, repr=False)
class ProviderFailure:
    """Why one provider did not answer one request.

    Attributes:
        provider: The provider's name.
        kind: What happened.
        status: The vendor's HTTP status, if an answer came at all.
        retry_after_seconds: Seconds until the provider can be asked again, if that is known; as
            last resort, if that is sooner.
        code: The vendor's machine-readable code, if it sent a plain one.
        param: The parameter that the vendor's error names, if any.
        detail: The vendor's own text, with keys masked. It may quote the prompt: show it only to
            the caller of this request, and do not log it.
    """

    provider: str
    kind: FailureKind
    status: int | None = None
    retry_after_seconds: float | None = None
    code: str | None = None
    param: str | None = None
    detail: str | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, without the vendor's text."""
        after = self.retry_after_seconds
        return {
            "provider": self.provider,
            "kind": self.kind.value,
            "status": self.status,
            "retry_after_seconds": after if after is None or math.isfinite(after) else None,
            "code": self.code,
            "param": self.param,
        }

    def __repr__(self) -> str:
        return f"<ProviderFailure {self}>"

    def __str__(self) -> str:
        details = []
        if self.status is not None:
            details.append(f"HTTP {self.status}")
        if self.param is not None:
            details.append(f"{self.code or 'parameter'}: {self.param}")
        if self.retry_after_seconds is not None and math.isfinite(self.retry_after_seconds):
            details.append(f"retry in {self.retry_after_seconds:.1f} s")
        return f"{self.provider}: {self.kind}" + (f" ({', '.join(details)})" if details else "")


class GatewayError(Exception):
    """Base of every error the gateway raises.

    Attributes:
        tool_run: What `run_tools` has done until it raised this, a `ToolRun`; else None.

    `http_status`, `http_headers` and `to_openai()` are for applications that answer over HTTP: what
    `aigateway serve` answers in their place.
    """

    tool_run: Any = None

    @property
    def http_status(self) -> int:
        """The HTTP status: 400 for a bad request, 503 in an outage, 429, 504, ..."""
        return error_refusal(self).status

    @property
    def http_headers(self) -> dict[str, str]:
        """The headers that go with it: `Retry-After` in seconds, where waiting may help."""
        refusal = error_refusal(self)
        waits = {"Retry-After": "1"} if refusal.status in _MAY_WAIT else {}
        return waits | dict(refusal.headers)

    def to_dict(self) -> dict[str, Any]:
        """Return its class, message and causes as plain values, fit for logs."""
        causes: Sequence[ProviderFailure] = getattr(self, "causes", ())
        return {
            "error": type(self).__name__,
            "message": str(self),
            "causes": [cause.to_dict() for cause in causes],
        }

    def to_openai(self) -> dict[str, Any]:
        """Return the body of an OpenAI error, with the vendor's own text as `detail`."""
        return error_refusal(self).body


class ConfigurationError(GatewayError, ValueError):
    """A setting cannot work. The message names the field and the fix."""


class NoProvidersError(ConfigurationError):
    """No provider is configured."""


class _FromProvidersError(GatewayError):
    """An error with the failure of each provider."""

    def __init__(self, message: str, causes: Sequence[ProviderFailure] = ()) -> None:
        super().__init__(message)
        self.causes = tuple(causes)
        """One entry for each provider that was asked or skipped, in order."""

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.causes), self.__dict__)

    @property
    def retry_after_seconds(self) -> float | None:
        """The fewest seconds, from the failure on, until a provider can be asked again."""
        return min(
            (c.retry_after_seconds for c in self.causes if c.retry_after_seconds is not None),
            default=None,
        )


class RequestRejectedError(_FromProvidersError, ValueError):
    """The request itself is at fault; no other provider would take it either."""

    def __init__(
        self,
        message: str,
        causes: Sequence[ProviderFailure] = (),
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, causes)
        self.param = param
        """The field at fault, such as `messages[0].content`, where the gateway itself found it."""
        self.code = code
        """OpenAI's code of the mistake, likewise."""


class UnknownModelError(RequestRejectedError):
    """No provider has the requested model, name or alias."""


class ContextWindowExceededError(RequestRejectedError):
    """The prompt is too long for every provider that could be asked."""


class ContentPolicyError(RequestRejectedError):
    """The vendor's content policy refused the prompt or withheld the answer."""


class MiddlewareRefusedError(RequestRejectedError):
    """Middleware refused the request, or withheld its answer. Middleware itself raises it.

    Args:
        message: The reason, for the caller. It may be logged: do not quote the request.
        code: A word for programs, sent by the service.
        param: The field at fault, if there is one.
        status: The HTTP status that the service answers with: 400 to 499.
    """

    def __init__(
        self,
        message: str,
        causes: Sequence[ProviderFailure] = (),
        *,
        param: str | None = None,
        code: str = "middleware_refused",
        status: int = 400,
    ) -> None:
        super().__init__(message, causes, param=param, code=code)
        self.status = status if status in range(400, 500) else 400


class AllProvidersFailedError(_FromProvidersError):
    """Every provider that could be asked failed. `causes` has one entry for each."""

    @classmethod
    def of(cls, causes: Sequence[ProviderFailure]) -> AllProvidersFailedError:
        """Make the error with the message that operators search for."""
        return cls(f"All LLM providers failed: {describe(causes)}", causes)


class DeadlineExceededError(_FromProvidersError, TimeoutError):
    """The request's deadline passed before a provider answered."""


class CircuitOpenError(GatewayError):
    """A circuit breaker rejected a call because its circuit is not closed.

    Attributes:
        retry_after_seconds: Seconds until the breaker allows a probe; 0 while one is in flight.
    """

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.retry_after_seconds))


class StreamInterruptedError(_FromProvidersError):
    """A stream broke after its first content was delivered.

    Attributes:
        provider: The provider that was answering.
        text: The first answer's text so far. Not part of the message.
    """

    def __init__(
        self,
        message: str,
        causes: Sequence[ProviderFailure] = (),
        provider: str = "",
        text: str = "",
    ) -> None:
        super().__init__(message, causes)
        self.provider = provider
        self.text = text

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.causes, self.provider, self.text))

    @property
    def cause(self) -> ProviderFailure | None:
        """The failure that broke it: the last of `causes`."""
        return self.causes[-1] if self.causes else None


class BudgetExceededError(GatewayError):
    """A spending limit was reached."""


class MiddlewareFailedError(GatewayError):
    """Middleware raised an exception, took too long, or returned something that cannot be used.

    The request is not sent, or its answer is withheld. The message names the middleware; what it
    raised is left out, since its text may quote the request.
    """


class MisuseError(GatewayError):
    """The program calls the library as it cannot be called; the message says what to change.

    Such as `sse()` before `start()`, a gateway of another event loop or one that was closed, or
    `call_llm` on an event loop. Waiting does not help: the HTTP status is 500.
    """


class ToolRoundsExceededError(GatewayError):
    """The model still calls tools after `max_rounds`. `tool_run` has the conversation so far."""


class OverloadedError(GatewayError):
    """The gateway's own queue is full; the request was not sent."""


def describe(causes: Sequence[ProviderFailure]) -> str:
    """Return one line with each provider's failure."""
    return "; ".join(map(str, causes)) or "no provider could be asked"


def refuse(message: str) -> NoReturn:
    """Raise `RequestRejectedError`; `message` is a sentence that contains the fix."""
    raise RequestRejectedError(message)


# ── as an HTTP answer ────────────────────────────────────────────────────────────────────────


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

_MAY_WAIT = frozenset({429, 503})
"""Statuses that come with `Retry-After`."""

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
    (ConfigurationError, 500, "server_error", "configuration"),
    (MisuseError, 500, "server_error", "misuse"),
    (ToolRoundsExceededError, 500, "server_error", "tool_rounds_exceeded"),
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


def error_refusal(error: Exception) -> Refusal:
    """Return the refusal that stands for an error. An unforeseen error reveals nothing.

    It is what a service answers, and an application that sends a stream to its own callers.
    """
    if isinstance(error, Refusal):
        return error
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


_CODES: tuple[tuple[type[GatewayError], str], ...] = (
    (UnknownModelError, "unknown_model"),
    (ContextWindowExceededError, "context_window_exceeded"),
    (ContentPolicyError, "content_policy"),
    (RequestRejectedError, "request_rejected"),
    (AllProvidersFailedError, "all_providers_failed"),
    (DeadlineExceededError, "deadline_exceeded"),
    (OverloadedError, "overloaded"),
)
"""Subclasses stand before their base classes."""


def error_words(error: Exception) -> tuple[str, str]:
    """Return an error's code and message."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "internal_error")
    # The text of any other exception may quote a prompt.
    return code, str(error) if isinstance(error, GatewayError) else type(error).__name__
