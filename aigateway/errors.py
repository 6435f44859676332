"""What can go wrong, as one tree.

Every exception that leaves the public face is one of these::

    GatewayError
    ├── ConfigurationError             settings that cannot work (also a ValueError)
    │   └── NoProvidersError           nothing is configured
    ├── RequestRejectedError           the request itself is at fault (also a ValueError)
    │   ├── UnknownModelError          no provider has that model, name or alias
    │   ├── ContextWindowExceededError the prompt is longer than the models take
    │   └── ContentPolicyError         the vendor's content policy refused it
    ├── AllProvidersFailedError        everybody who could be asked failed
    ├── DeadlineExceededError          the request's own time ran out (also a TimeoutError)
    ├── CircuitOpenError               a guarded call was refused by its breaker
    ├── StreamInterruptedError         a stream broke after its first words; holds what came
    ├── BudgetExceededError            a spending limit was reached
    └── OverloadedError                the gateway's own queue is full

Messages name the provider, the kind of failure and the HTTP status. They never hold a key,
a prompt, an answer or the vendor's own text, so they may be logged as they are. Two attributes
do, and are in no message and no repr: `StreamInterruptedError.text` is what the caller has been
given already, and `ProviderFailure.detail` is the vendor's own text. Every error
can be pickled, so it crosses a process boundary whole.
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
    "NoProvidersError",
    "OverloadedError",
    "ProviderFailure",
    "RequestRejectedError",
    "StreamInterruptedError",
    "UnknownModelError",
]


class FailureKind(StrEnum):
    """Why a provider gave no answer. The values are stable: metrics and logs use them."""

    # The caller's side.
    REJECTED = "rejected"
    CONTEXT_WINDOW = "context_window"
    CONTENT_POLICY = "content_policy"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    """The caller's own deadline cut the attempt before the provider's timeout did."""
    HEDGE_LOST = "outrun"
    """A hedge: another attempt for the same request answered first, and this one was ended."""
    OUTRUN = HEDGE_LOST

    # This provider cannot serve this request, and is not to blame.
    UNSUPPORTED = "unsupported"
    NOT_OFFERED = "not_offered"
    """The provider does not offer this operation at all (HTTP 405 or 501)."""
    INVALID_OUTPUT = "invalid_output"
    """An answer came, but it does not parse as the requested `response_format`."""

    # The provider's configuration.
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    NO_CREDIT = "no_credit"
    MODEL_NOT_FOUND = "model_not_found"

    # The provider's health.
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    BAD_ANSWER = "bad_answer"
    """HTML, nothing, half an answer or broken JSON under a success status."""
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"

    # Not asked at all.
    CIRCUIT_OPEN = "circuit_open"
    COOLING_DOWN = "cooling_down"
    DISABLED = "disabled"
    SATURATED = "saturated"
    """Our own limit of concurrent calls (or connection pool) was full, or this process had no
    file descriptor left for a connection."""


@dataclass(frozen=True, slots=True)
class ProviderFailure:
    """Why one provider did not answer one request.

    Attributes:
        provider: The provider's name.
        kind: What happened.
        status: The vendor's HTTP status, if an answer came at all.
        retry_after_seconds: When asking again makes sense, if that is known: when it would be asked
            as last resort, if that is earlier than as of right.
        code: The vendor's machine-readable code, if it sent a plain one.
        param: The parameter that the vendor's error is about, if it names one.
        detail: The vendor's own words, with keys masked. They may quote the prompt: show them to
            the caller whose request it was, and do not log them.
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
    """Settings that cannot work. The message names the field and the fix."""


class NoProvidersError(ConfigurationError):
    """No provider is configured, so there is nobody to ask."""


class _FromProvidersError(GatewayError):
    """An error that says what each provider did."""

    def __init__(self, message: str, causes: Sequence[ProviderFailure] = ()) -> None:
        super().__init__(message)
        self.causes = tuple(causes)
        """One entry per provider that was asked or passed over, in the order of the plan."""

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.causes), self.__dict__)

    @property
    def retry_after_seconds(self) -> float | None:
        """The soonest moment, in seconds from the failure, at which a provider may answer again."""
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
    """The prompt is longer than every provider that could be asked accepts."""


class ContentPolicyError(RequestRejectedError):
    """The vendor's content policy refused the prompt or withheld the answer."""


class AllProvidersFailedError(_FromProvidersError):
    """Every provider that could be asked failed. `causes` has one entry for each."""

    @classmethod
    def of(cls, causes: Sequence[ProviderFailure]) -> AllProvidersFailedError:
        """Build the error with the message that operators grep for."""
        return cls(f"All LLM providers failed: {describe(causes)}", causes)


class DeadlineExceededError(_FromProvidersError, TimeoutError):
    """The request's own deadline ran out before a provider answered."""


class CircuitOpenError(GatewayError):
    """A call guarded by a circuit breaker was refused because the circuit is not closed.

    Attributes:
        retry_after_seconds: When the breaker will let a probe through; 0 while one is out.
    """

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.retry_after_seconds))


class StreamInterruptedError(_FromProvidersError):
    """A stream broke after its first words were delivered.

    Attributes:
        provider: Who was answering.
        text: What had arrived of the first answer's text. Not part of the message.
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
        """What broke it; the last of `causes`."""
        return self.causes[-1] if self.causes else None


class BudgetExceededError(GatewayError):
    """A spending limit was reached."""


class OverloadedError(GatewayError):
    """The gateway's own queue is full; the request was not sent anywhere."""


def describe(causes: Sequence[ProviderFailure]) -> str:
    """One line that names each provider and what it did."""
    return "; ".join(map(str, causes)) or "no provider could be asked"


def refuse(message: str) -> NoReturn:
    """Raise the refusal; `message` is a whole sentence with the fix in it."""
    raise RequestRejectedError(message)
