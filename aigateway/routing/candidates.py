"""The gateway's providers, and what one request has met at each that may serve it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from aigateway.errors import (
    AllProvidersFailedError,
    ConfigurationError,
    ContentPolicyError,
    ContextWindowExceededError,
    FailureKind,
    GatewayError,
    NoProvidersError,
    ProviderFailure,
    RequestRejectedError,
    UnknownModelError,
    describe,
)
from aigateway.events import Operation
from aigateway.messages import Attempt
from aigateway.resilience.breaker import CircuitState
from aigateway.resilience.concurrency import Ticket
from aigateway.resilience.guard import NEVER
from aigateway.routing.provider import Provider
from aigateway.telemetry.recorder import RequestRecord

__all__ = ["MAY_PASS", "Candidate", "RequestState", "Roster", "final_error", "none_offers"]

NO_PROVIDERS = (
    "No provider is configured. Set OPENAI_API_KEY, GEMINI_API_KEY, ANTHROPIC_API_KEY or "
    "AZURE_OPENAI_API_KEY (with AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_DEPLOYMENT) in the "
    "environment or .env, write [[providers]] in aigateway.toml, or pass LLMConfig objects."
)

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

_CALLERS_OWN = {
    FailureKind.CONTEXT_WINDOW: (ContextWindowExceededError, "The prompt is too long"),
    FailureKind.CONTENT_POLICY: (ContentPolicyError, "The content policy refused the request"),
    FailureKind.REJECTED: (RequestRejectedError, "The request was rejected as invalid"),
    FailureKind.UNSUPPORTED: (
        RequestRejectedError,
        "No provider supports what this request asks for (drop_unsupported_params leaves out"  # noqa: ISC004
        " parameters that a model does not take)",
    ),
}
"""Failures that another try cannot mend, and the error each becomes; the first listed wins."""


class Candidate:
    """A provider that may serve one request, and what the request has met there.

    Attributes:
        provider: The provider.
        guards: Its guards for the request's operation.
        tried: It was asked in this round, or passed over for good.
        calls: How often it was asked: to ask it again is an extra call.
        barred: It is not asked in any round.
        broke: Its stream broke after its first content.
        blamed: This request has seen it fail through its own fault.
        unreachable: No connection could be made to it.
        cause: Why it has not answered, as far as is known.
        canary: Whether this request asks it although it is degraded; None until that is drawn.
        seen: The request has come to it as its last resort.
    """

    tried = barred = blamed = unreachable = seen = broke = False
    calls = 0
    cause: ProviderFailure | None = None
    canary: bool | None = None
    # Defaults of the class: what most requests never touch costs them nothing.

    def __init__(self, provider: Provider, operation: Operation) -> None:
        self.provider = provider
        self.guards = provider.guards(operation)

    def begin_round(self) -> None:
        """It may be asked again, unless it would be wrong to.

        To probe a circuit that this request has seen fail would count a second failure of one
        request against it.
        """
        hopeless = self.calls and self.cause is not None and self.cause.kind not in MAY_PASS
        self.tried = bool(
            self.barred
            or hopeless
            or (self.blamed and self.guards.breaker.state is not CircuitState.CLOSED)
        )

    def may_be_asked_without(self) -> None:
        """It refused a hint, and may be asked again without it: that is no retry."""
        self.tried = False
        self.calls -= 1

    def note(self, cause: ProviderFailure) -> None:
        """Remember why it gave no answer. What an attempt showed stands over a mere refusal."""
        if self.cause is None or not self.calls:
            self.cause = cause

    def is_canary(self) -> bool:
        """Whether this request asks it although it is degraded; drawn once."""
        if self.canary is None:
            self.canary = self.guards.health.draw_canary()
        return self.canary

    def last_resort_wait(self, wait: float, began: float) -> float:
        """Seconds until this request may ask it as last resort; `NEVER` if it may not.

        Args:
            wait: What its guards say.
            began: When the request began, on the clock's own scale.
        """
        # What the vendor has said since then of key, model or billing holds for this request, too.
        if wait == NEVER or self.calls or self.guards.setup.refused_before(began) is None:
            return NEVER
        if not self.seen:
            self.seen = True
            self.guards.last_resort.seen()
        return wait


class RequestState:
    """One request on its way across providers.

    Args:
        request_id: Names it in events.
        operation: What is asked for.
        providers: Gives those that it may ask, best priority first, as they are now.
        began: When it began, on the clock's own scale.
        deadline: When it has to end, likewise.
        cause: Gives its digest, which is equal for repeats of it.
        model: The model that it names: then every provider of that is a candidate. None: any.
        tokens: How many it will use, by estimate; only for providers with a `tpm`.
        params: Its parameters, if it has some that a provider may do without.
        messages: What is said, which may leave no room for some of them.
        hedge: Whether a second provider may be asked while the first is slow.
        background: Whether it waits behind every request that is not in the background.
        tenant: On whose behalf, where places are shared out.
        account: Where its attempts are reported, if anything wants to know.

    Attributes:
        attempts: Every call made, in the order of their ends.
        begun: How many calls have begun.
        candidates: One for each provider.
        loading_seconds: How long it waited for litellm to load and clients to be made.
        go_on_when_refused: A rejection by one provider does not keep it from the others.
        nearly_over: It has waited for its turn of a last resort until it was too late for one.
        overdue: It has waited so long for a free place that it takes a last resort instead.
        rejected_by: The company that called it invalid, while another is asked for its opinion.
        ticket: Its place in the queue for free providers; None until it has to wait.
        waited: Seconds for which it has waited for a place, while none could say how long to wait.
    """

    begun = 0
    go_on_when_refused = nearly_over = overdue = False
    rejected_by: tuple[str, ...] | None = None
    ticket: Ticket | None = None
    waited = 0.0
    loading_seconds = 0.0
    _digest: Hashable = None
    _looked = False

    def __init__(
        self,
        request_id: str,
        operation: Operation,
        providers: Callable[[], Sequence[Provider]],
        began: float,
        deadline: float,
        *,
        cause: Callable[[], Hashable],
        model: str | None = None,
        tokens: int = 0,
        params: Mapping[str, Any] | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        hedge: bool = False,
        background: bool = False,
        tenant: str = "",
        account: RequestRecord | None = None,
    ) -> None:
        self.request_id = request_id
        self.operation: Operation = operation
        self._serving = providers
        self._providers = providers()
        self.candidates = tuple([Candidate(provider, operation) for provider in self._providers])
        self.began = began
        self.deadline = deadline
        self.model = model
        self.tokens = tokens
        self.params = params
        self.messages = messages
        self.hedge = hedge
        self.background = background
        self.tenant = tenant
        self.account = account
        self._cause = cause
        self.attempts: list[Attempt] = []

    def share(self, seconds: float) -> float:
        """So many seconds, but no more than a quarter of its time."""
        return min(seconds, (self.deadline - self.began) / 4)

    def cause(self) -> Hashable:
        """Its digest, worked out at the first failure: most requests never need it."""
        if self._digest is None:
            self._digest = self._cause()
        return self._digest

    @property
    def causes(self) -> tuple[ProviderFailure, ...]:
        """Why each provider that was asked or passed over gave no answer, in the plan's order."""
        return tuple(c.cause for c in self.candidates if c.cause is not None)

    def take_new_providers(self) -> None:
        """Make candidates of providers that were added since the request began.

        The first time it has just begun.
        """
        if not self._looked:
            self._looked = True
            return
        try:
            providers = self._serving()
        except (NoProvidersError, UnknownModelError):
            return  # all were removed
        if providers is self._providers:
            return
        known = {candidate.provider for candidate in self.candidates}.union(self._providers)
        self._providers = providers
        new = [Candidate(p, self.operation) for p in providers if p not in known]
        ordered = sorted((*self.candidates, *new), key=lambda c: -c.provider.priority)
        self.candidates = tuple(ordered)

    def begin_round(self) -> None:
        """Each candidate may be asked again, but for those that it would be wrong to ask."""
        for candidate in self.candidates:
            candidate.begin_round()

    def group(self) -> Hashable:
        """Equal for requests that could go on in the same moments, while they wait for a place.

        What a vendor has refused for its setup holds for requests that were there before; and a
        provider that was removed is another than the one that has its name now. Which providers
        may be added hangs on the model.
        """
        open_to = [
            (c.provider, bool(c.calls), c.guards.setup.refused_before(self.began))
            for c in self.candidates
            if not c.tried
        ]
        may = (self.overdue, self.nearly_over)
        return (self.operation, self.model, tuple(open_to), self.tokens.bit_length(), may)

    @property
    def looks_offline(self) -> bool:
        """Whether none could be connected to, which says more of the way than of them."""
        known = [c for c in self.candidates if c.cause is not None]
        return len(known) > 1 and all(c.unreachable for c in known)


class Roster:
    """The gateway's providers, highest priority first; among equals, in the order given."""

    __slots__ = ("_by_model", "_for_all", "_providers", "counts_tokens")

    def __init__(self, providers: Iterable[Provider] = ()) -> None:
        self._providers: tuple[Provider, ...] = ()
        self._by_model: dict[str | None, tuple[Provider, ...]] = {}
        self._for_all: dict[Operation, tuple[Provider, ...]] = {}
        self.counts_tokens = False
        """Whether a provider keeps a rate of tokens, so that requests must be estimated."""
        for provider in providers:
            self.add(provider)

    def __iter__(self) -> Iterator[Provider]:
        return iter(self._providers)

    def __len__(self) -> int:
        return len(self._providers)

    def add(self, provider: Provider) -> None:
        """Add one.

        Raises:
            ConfigurationError: The name is taken.
        """
        if any(other.name == provider.name for other in self._providers):
            raise ConfigurationError(
                f"Two providers are named {provider.name!r}; give one of them another `name`."
            )
        ordered = sorted((*self._providers, provider), key=lambda p: -p.priority)
        self._providers = tuple(ordered)
        self.counts_tokens = self.counts_tokens or provider.config.tpm is not None
        provider.on_prepared = self._forget_what_was_found
        self._forget_what_was_found()

    def remove(self, name: str) -> Provider:
        """Take one out and return it.

        Raises:
            ConfigurationError: There is none of that name.
        """
        provider = self.named(name)
        self._providers = tuple(p for p in self._providers if p is not provider)
        self._forget_what_was_found()
        return provider

    def named(self, name: str) -> Provider:
        """The one of that name.

        Raises:
            ConfigurationError: There is none.
        """
        for provider in self._providers:
            if provider.name == name:
                return provider
        raise ConfigurationError(
            f"There is no provider named {name!r}; there are: {_names(self._providers)}."
        )

    def serving(self, model: str | None) -> tuple[Provider, ...]:
        """The providers of that model, name or alias (None: all), best priority first.

        Raises:
            NoProvidersError: There is no provider at all.
            UnknownModelError: None of them serves it.
        """
        # Taken before looking: should another thread add a provider meanwhile, what is found goes
        # into the mapping that it threw away.
        by_model = self._by_model
        found = by_model.get(model)
        if found is None:
            found = self._find(model)
            by_model[model] = found  # only known models: a caller cannot make this grow
        return found

    def candidates(self, model: str | None, operation: Operation) -> Sequence[Provider]:
        """Who may serve a request. Without a model, only those whose model does the operation.

        Raises:
            NoProvidersError: There is no provider at all.
            UnknownModelError: None of them serves the model, or does the operation.
        """
        if model is not None:
            return self.serving(model)  # named: the caller knows better
        for_all = self._for_all
        found = for_all.get(operation)
        if found is None:
            every = self.serving(None)
            found = tuple([provider for provider in every if provider.offers(operation)])
            if not found:
                raise none_offers(operation, every)
            for_all[operation] = found
        return found

    def seconds_until_available(self, model: object) -> float:
        """Seconds until a chat for that model can be asked as of right.

        0 if it can be now, or if a probe is out, whose result may come at any moment; and 0 if
        waiting is no use: no provider serves it, or those that do are set up wrong or shut off.
        """
        soonest = math.inf
        for provider in self._asked_for(model):
            refusal = provider.refusal("chat")
            if refusal is None:
                return 0.0
            if refusal.kind is not FailureKind.DISABLED:
                soonest = min(soonest, refusal.retry_after)
        return 0.0 if soonest == math.inf else soonest

    def seconds_until_last_resort(self, model: object) -> float:
        """Seconds until one chat for that model may be asked as last resort; `NEVER` if none."""
        waits = [p.refusal("chat") for p in self._asked_for(model)]
        return min((r.last_resort for r in waits if r is not None), default=NEVER)

    def refusal_of_all(self, model: object) -> AllProvidersFailedError:
        """The error for a chat for that model while no provider may be asked as of right."""
        refusals = [(p, p.refusal("chat")) for p in self._asked_for(model)]
        return AllProvidersFailedError.of(
            [provider.refused(refusal) for provider, refusal in refusals if refusal is not None]
        )

    def _asked_for(self, model: object) -> Sequence[Provider]:
        try:
            return self.candidates(model, "chat") if isinstance(model, str | None) else ()
        except (NoProvidersError, UnknownModelError):
            return ()

    def _forget_what_was_found(self) -> None:
        self._by_model, self._for_all = {}, {}

    def _find(self, model: str | None) -> tuple[Provider, ...]:
        if not self._providers:
            raise NoProvidersError(NO_PROVIDERS)
        if model is None:
            return self._providers
        found = tuple(p for p in self._providers if model in p.answers_to)
        if not found:
            known = sorted({name for p in self._providers for name in p.answers_to})
            near = difflib.get_close_matches(model, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownModelError(
                f"No provider serves the model {model[:100]!r}.{hint} Known: {', '.join(known)}."
            )
        return found


def none_offers(operation: Operation, providers: Sequence[Provider]) -> UnknownModelError:
    """The error for an operation that no provider's model is known for."""
    return UnknownModelError(
        f"No provider is for {operation}: litellm's model map (or `operations`) says that"
        f" {_names(providers)} {'is' if len(providers) == 1 else 'are'} not. Add a provider whose"
        f" model is, name one with `model=`, or set `operations` in its LLMConfig."
    )


def final_error(
    causes: Sequence[ProviderFailure],
    decided_by: FailureKind | None = None,
    *,
    offline: bool = False,
) -> GatewayError:
    """The error for a request that got no answer: the caller's own fault, or the providers'.

    Args:
        causes: One for each provider.
        decided_by: The kind that ended it, where one did.
        offline: No connection could be made to any provider.
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


def _names(providers: Sequence[Provider]) -> str:
    return ", ".join(p.name for p in providers) or "none"
