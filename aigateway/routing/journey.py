"""What one request has met so far, and the words for it when it ends without an answer."""

from __future__ import annotations

from collections.abc import Sequence

from aigateway.errors import (
    AllProvidersFailedError,
    ContentPolicyError,
    ContextWindowExceededError,
    FailureKind,
    GatewayError,
    ProviderFailure,
    RequestRejectedError,
    describe,
)
from aigateway.messages import Attempt
from aigateway.resilience.breaker import CircuitState
from aigateway.resilience.limiter import Ticket
from aigateway.routing.provider import Provider
from aigateway.telemetry.account import Account

__all__ = ["MAY_PASS", "Journey", "final_error"]

_CALLERS_OWN = {
    FailureKind.CONTEXT_WINDOW: (ContextWindowExceededError, "The prompt is too long"),
    FailureKind.CONTENT_POLICY: (ContentPolicyError, "The content policy refused the request"),
    FailureKind.REJECTED: (RequestRejectedError, "The request was rejected as invalid"),
    FailureKind.UNSUPPORTED: (
        RequestRejectedError,
        "No provider supports these parameters (drop_unsupported_params leaves them out)",
    ),
}
"""Failures that another try cannot mend, and the error each becomes; the first listed wins."""

MAY_PASS = frozenset(
    {
        FailureKind.RATE_LIMITED,
        FailureKind.SERVER_ERROR,
        FailureKind.BAD_ANSWER,
        FailureKind.CONNECTION,
        FailureKind.TIMEOUT,
        FailureKind.UNKNOWN,
        FailureKind.CIRCUIT_OPEN,
        FailureKind.COOLING_DOWN,
        FailureKind.SATURATED,
    }
)
"""Failures after which asking the same provider again, a little later, makes sense."""


class Journey:
    """What one request has met so far.

    Args:
        request_id: Names it in events.
        candidates: Whom it may ask, best priority first.
        deadline: On the clock's own scale.
        tokens: How many it will use, by estimate; only for providers with a `tpm`.
        hedge: Whether a second provider may be asked while the first is slow.
        background: Whether it waits behind every request that is not in the background.
        tenant: Whose request it is: tenants that wait get free places in turn.
        account: Where its calls are reported, if anybody wants to know.

    Attributes:
        candidates: As given; shrinks when only a larger context window helps.
        causes: The latest failure of each provider, by name.
        attempts: Every call made, in the order of their ends.
        begun: How many calls have begun.
        tried: Names asked in this round.
        asked: Names asked before it: to ask them again is a retry.
        set_aside: Names that are not asked in any round.
        blamed: Names whose breaker this request has counted against: at most once each.
        lenient: A rejection by one provider does not keep it from the others.
        unreachable: Names to which no connection could be made.
        ticket: Its place in the queue for free providers; None until it has to wait.
    """

    __slots__ = (
        "account",
        "asked",
        "attempts",
        "background",
        "begun",
        "blamed",
        "candidates",
        "causes",
        "deadline",
        "hedge",
        "lenient",
        "request_id",
        "set_aside",
        "tenant",
        "ticket",
        "tokens",
        "tried",
        "unreachable",
    )

    def __init__(
        self,
        request_id: str,
        candidates: Sequence[Provider],
        deadline: float,
        *,
        tokens: int = 0,
        hedge: bool = False,
        background: bool = False,
        tenant: str = "",
        account: Account | None = None,
    ) -> None:
        self.account = account
        self.begun = 0
        self.request_id = request_id
        self.candidates = tuple(candidates)
        self.deadline = deadline
        self.tokens = tokens
        self.hedge = hedge
        self.background = background
        self.tenant = tenant
        self.causes: dict[str, ProviderFailure] = {}
        self.attempts: list[Attempt] = []
        self.tried: set[str] = set()
        self.asked: set[str] = set()
        self.set_aside: set[str] = set()
        self.blamed: set[str] = set()
        self.unreachable: set[str] = set()
        self.lenient = False
        self.ticket: Ticket | None = None

    def begin_round(self) -> None:
        """Everybody may be asked again, but for those whom it would be wrong to."""
        if self.attempts:
            self.asked = {attempt.provider for attempt in self.attempts}
        self.tried = self.not_to_probe() | self.set_aside

    def note(self, causes: Sequence[ProviderFailure]) -> None:
        """Remember why these gave no answer. What an attempt showed stands over a mere refusal."""
        for cause in causes:
            self.causes.setdefault(cause.provider, cause)

    def failed(self, attempt: Attempt, cause: ProviderFailure, *, unreachable: bool) -> None:
        """Write down an attempt that gave no answer."""
        self.attempts.append(attempt)
        self.causes[cause.provider] = cause
        if unreachable:
            self.unreachable.add(cause.provider)
        else:
            self.unreachable.discard(cause.provider)

    def not_to_probe(self) -> set[str]:
        """Providers that this request has seen fail and whose circuit is not closed.

        To probe one would count a second failure of one request against it.
        """
        if not self.blamed:
            return set()
        return {
            provider.name
            for provider in self.candidates
            if provider.name in self.blamed and provider.breaker.state is not CircuitState.CLOSED
        }

    @property
    def looks_offline(self) -> bool:
        """Whether nobody at all could be connected to, which says more of the way than of them."""
        return len(self.causes) > 1 and self.causes.keys() <= self.unreachable


def final_error(
    causes: Sequence[ProviderFailure],
    decided_by: FailureKind | None = None,
    *,
    offline: bool = False,
) -> GatewayError:
    """The error for a request that got no answer: the caller's own fault, or everybody's.

    Args:
        causes: One for each provider.
        decided_by: The kind that ended it, where one did.
        offline: No connection could be made to anybody.
    """
    kinds = {decided_by} if decided_by else {cause.kind for cause in causes}
    if kinds and kinds <= _CALLERS_OWN.keys():
        kind = next(kind for kind in _CALLERS_OWN if kind in kinds)
        error, what = _CALLERS_OWN[kind]
        return error(f"{what}: {describe(causes)}.", causes)
    if offline:
        return AllProvidersFailedError(
            f"All LLM providers failed: {describe(causes)}. No connection could be made to any of"
            " them: this looks like this machine's own network (DNS, proxy, firewall, route).",
            causes,
        )
    return AllProvidersFailedError.of(causes)
