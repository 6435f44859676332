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
    └── OverloadedError                the gateway's own queue is full

Messages name the provider, the kind of failure and the HTTP status. They never contain a key, a
prompt, an answer or the vendor's own text, so they may be logged. Two attributes do, and are in no
message and no repr: `StreamInterruptedError.text`, which the caller has received already, and
`ProviderFailure.detail`, the vendor's own text. Every error can be pickled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn

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
    "NoProvidersError",
    "OverloadedError",
    "ProviderFailure",
    "RequestRejectedError",
    "StreamInterruptedError",
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


@dataclass(frozen=True, slots=True)
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
    """Base of every error the gateway raises."""


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


class OverloadedError(GatewayError):
    """The gateway's own queue is full; the request was not sent."""


def describe(causes: Sequence[ProviderFailure]) -> str:
    """Return one line with each provider's failure."""
    return "; ".join(map(str, causes)) or "no provider could be asked"


def refuse(message: str) -> NoReturn:
    """Raise `RequestRejectedError`; `message` is a sentence that contains the fix."""
    raise RequestRejectedError(message)
