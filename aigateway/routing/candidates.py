"""The gateway's providers, and the state of one request at each of its candidates."""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from aigateway.cache.key import request_digest
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
from aigateway.messages import Attempt, ChatRequest, EmbeddingRequest, NativeRequest
from aigateway.resilience.breaker import CircuitState
from aigateway.resilience.concurrency import Ticket
from aigateway.resilience.guard import NEVER
from aigateway.routing.affinity import Affinity, Session, session_of
from aigateway.routing.capabilities import (
    MOST_BYTES_PER_TOKEN,
    none_can,
    none_speaks,
    too_long,
    with_price,
)
from aigateway.routing.provider import Provider
from aigateway.telemetry.recorder import RequestRecord

__all__ = ["TRANSIENT", "Candidate", "RequestState", "Roster", "final_error", "none_offers"]

NO_PROVIDERS = (
    "No provider is configured. Set OPENAI_API_KEY, GEMINI_API_KEY, ANTHROPIC_API_KEY or "
    "AZURE_OPENAI_API_KEY (with AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_DEPLOYMENT) in the "
    "environment or .env, write [[providers]] in aigateway.toml, or pass LLMConfig objects."
)

TRANSIENT = frozenset(
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
"""Failures after which the same provider may answer a little later."""

_CALLER_ERRORS = {
    FailureKind.CONTEXT_WINDOW: (ContextWindowExceededError, "The prompt is too long"),
    FailureKind.CONTENT_POLICY: (ContentPolicyError, "The content policy refused the request"),
    FailureKind.REJECTED: (RequestRejectedError, "The request was rejected as invalid"),
    FailureKind.UNSUPPORTED: (
        RequestRejectedError,
        "No provider supports what this request asks for (drop_unsupported_params leaves out"  # noqa: ISC004
        " parameters that a model does not take)",
    ),
}
"""Failures that a retry cannot repair, and their errors; the first one listed wins."""


class Candidate:
    """A provider that may serve one request, and the state of the request there.

    Attributes:
        provider: The provider.
        operation: What it is asked for: the request's operation, or "completions" where a
            completion needs no translation into a chat.
        guards: Its guards for that.
        tried: It was called in this round, or is excluded from the round.
        calls: The number of calls; each further one is an extra call.
        barred: It is excluded from all rounds.
        broke: Its stream broke after its first content.
        blamed: It has failed this request through its own fault.
        unreachable: No connection could be made to it.
        cause: Why it has not answered, as far as known.
        canary: Whether this request calls it although it is degraded; None until that is drawn.
        seen: The request has counted as one with no other provider left.
    """

    # Here, since a request makes one for each provider, and most stay like this to its end.
    tried = barred = blamed = unreachable = seen = broke = False
    calls = 0
    cause: ProviderFailure | None = None
    canary: bool | None = None

    def __init__(self, provider: Provider, operation: Operation) -> None:
        self.provider = provider
        self.operation = operation
        self.guards = provider.chat if operation == "chat" else provider.guards(operation)

    def begin_round(self) -> None:
        """Allow it in the next round, if a call can help.

        A request does not probe a circuit after its own failure there: a second failure of the same
        request must not count.
        """
        hopeless = self.calls and self.cause is not None and self.cause.kind not in TRANSIENT
        self.tried = bool(
            self.barred
            or hopeless
            or (self.blamed and self.guards.breaker.state is not CircuitState.CLOSED)
        )

    def retry_without_hint(self) -> None:
        """Allow another call without the hint that it refused; that is no retry."""
        self.tried = False
        self.calls -= 1

    def note(self, cause: ProviderFailure) -> None:
        """Remember why it gave no answer; the failure of an attempt is kept."""
        if self.cause is None or not self.calls:
            self.cause = cause

    def is_canary(self) -> bool:
        """Return whether this request calls it although it is degraded; drawn once."""
        if self.canary is None:
            self.canary = self.guards.health.draw_canary()
        return self.canary

    def last_resort_wait(self, wait: float, began: float) -> float:
        """Return the seconds until this request may call it as last resort, or `NEVER`.

        `wait` is its `GuardRefusal.last_resort`, and `began` when the request began.
        """
        # If the vendor has refused key, model or billing since then, it would do so again.
        if wait == NEVER or self.calls or self.guards.disabling.refused_before(began) is None:
            return NEVER
        if not self.seen:
            self.seen = True
            self.guards.last_resort.seen()
        return wait


class RequestState:
    """The state of one request on its way across providers.

    Args:
        began: When it began, on the clock's own scale; `deadline` likewise.
        tokens: Its estimated tokens; only for providers with a `tpm`.
        params: Its parameters, if it has some that a provider may drop.
        hedge: Whether it may be hedged.
        thinks: Whether it asks the model to think.
        record: Where its attempts are reported, if anywhere.

    Raises:
        NoProvidersError: There is no provider at all.
        UnknownModelError: None of them serves the model, or does the operation.

    Attributes:
        attempts: Its calls, in the order of their ends.
        background: Whether it waits behind every request that is not in the background.
        begun: The number of calls begun.
        candidates: One for each provider.
        messages: Its messages; some of them exclude some parameters.
        model: The model that it names; every provider of it is a candidate. None: any model.
        tenant: Its tenant.
        native: The request in the protocol of its caller.
        session: Its session, if it has one.
        pinned: It may be asked of one provider only.
        loading_seconds: How long it waited until litellm was loaded and clients were open.
        go_on_when_refused: A rejection by one provider does not end it.
        nearly_over: It has waited for a last resort until the rest of its time was too short.
        overdue: It has waited so long for a free slot that it may use a last resort instead.
        rejected_by: The company that rejected it, while another one gives a second opinion.
        ticket: Its place in the queue for free slots; None until it has to wait.
        waited: Seconds of waiting for a slot without a known end.
    """

    begun = 0
    go_on_when_refused = nearly_over = overdue = pinned = background = False
    rejected_by: tuple[str, ...] | None = None
    session: Session | None = None
    ticket: Ticket | None = None
    native: NativeRequest | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    waited = loading_seconds = 0.0
    _digest: Hashable = None

    def __init__(
        self,
        request: ChatRequest | EmbeddingRequest,
        operation: Operation,
        roster: Roster,
        began: float,
        deadline: float,
        *,
        tokens: int = 0,
        params: Mapping[str, Any] | None = None,
        hedge: bool = False,
        thinks: bool = False,
        record: RequestRecord | None = None,
    ) -> None:
        self._request = request
        self.roster = roster
        self.version = roster.version
        if isinstance(request, ChatRequest):
            self.messages = request.messages
            self.background = request.background
            self.native = request.native
            self._providers = roster.for_chat(request)
            if request.session is not None or (
                request.find_session and len(roster.serving(request.model)) > 1
            ):
                self.session = session_of(request)
        else:
            self._providers = roster.candidates(request.model, operation)
        if request.needs_price:
            self._providers = with_price(self._providers)
        self.request_id = request.request_id
        self.operation: Operation = operation
        self.candidates = tuple(map(Candidate, self._providers, repeat(operation)))
        if self.native is not None and self.native.protocol == "completions":
            self.candidates = tuple(map(self._candidate, self._providers))
        self.began = began
        self.deadline = deadline
        self.model = request.model
        self.tenant = request.partition
        self.tokens = tokens
        self.params = params
        self.hedge = hedge
        self.thinks = thinks
        self.record = record
        self.attempts: list[Attempt] = []

    def share(self, seconds: float) -> float:
        """Return `seconds`, but at most a quarter of the request's time."""
        return min(seconds, (self.deadline - self.began) / 4)

    def cause(self) -> Hashable:
        """Return its digest, computed at the first failure."""
        if self._digest is None:
            self._digest = request_digest(self._request)
        return self._digest

    @property
    def causes(self) -> tuple[ProviderFailure, ...]:
        """Why each provider that was called or passed over gave no answer, in their order."""
        return tuple(c.cause for c in self.candidates if c.cause is not None)

    def _candidate(self, provider: Provider) -> Candidate:
        native = self.native
        completes = native is not None and native.protocol == "completions"
        as_it_is = completes and provider.offers("completions")
        return Candidate(provider, "completions" if as_it_is else self.operation)

    def pin_to_keeper(self, affinity: Affinity) -> None:
        """Allow only the provider that keeps what the request refers to, if that is known."""
        name = affinity.keeper(self._request) if isinstance(self._request, ChatRequest) else None
        kept = tuple([c for c in self.candidates if c.provider.name == name])
        if kept:
            self.candidates, self.pinned = kept, True

    def remember_stored(self, affinity: Affinity, provider: str, answer_id: str | None) -> None:
        """Remember where a native answer is stored; None: it is not native."""
        if answer_id and isinstance(self._request, ChatRequest):
            affinity.stored(self._request, answer_id, provider)

    def lacks(self, provider: Provider) -> bool:
        """Return whether its model is known by now not to be able to serve this request."""
        request, native = self._request, self.native
        if request.needs_price and not provider.has_price:
            return True
        if not isinstance(request, ChatRequest):
            return False
        only = native is not None and native.only is not None
        if native is not None and only and provider.speaks(native.protocol) is False:
            return True
        return not request.needs.isdisjoint(provider.cannot) or (
            request.size > self.roster.short and bool(too_long(request, (provider,)))
        )

    def bar(self, candidate: Candidate) -> None:
        """Exclude a candidate that cannot serve this request; raise if none is left.

        Raises:
            RequestRejectedError: No candidate can serve it.
        """
        candidate.tried = candidate.barred = True
        candidate.note(ProviderFailure(candidate.provider.name, FailureKind.UNSUPPORTED))
        providers = [c.provider for c in self.candidates]
        if all(map(self.lacks, providers)):
            request, native = self._request, self.native
            if request.needs_price:
                with_price(providers)  # raises if it is that
            assert isinstance(request, ChatRequest)  # noqa: S101 - only chats need something
            if native is not None and native.only is not None:
                raise none_speaks(native, providers)
            raise none_can(request, providers, too_long(request, providers))

    def add_new_providers(self) -> None:
        """Add candidates for providers that were added since the last look.

        A candidate that is known by now not to be able to serve the request is passed over.
        """
        if self.roster.version == self.version:
            return
        self.version = self.roster.version
        for candidate in self.candidates:
            if not candidate.calls and self.lacks(candidate.provider):
                candidate.tried = candidate.barred = True
                candidate.note(ProviderFailure(candidate.provider.name, FailureKind.UNSUPPORTED))
        request = self._request
        try:
            providers = (
                self.roster.for_chat(request)
                if isinstance(request, ChatRequest)
                else self.roster.candidates(self.model, self.operation)
            )
            if request.needs_price:
                providers = with_price(providers)
        except RequestRejectedError:
            return  # all that could serve it were removed
        except NoProvidersError:
            return
        known = {candidate.provider for candidate in self.candidates}.union(self._providers)
        self._providers = providers
        new = [self._candidate(p) for p in providers if p not in known and not self.pinned]
        ordered = sorted((*self.candidates, *new), key=lambda c: -c.provider.priority)
        self.candidates = tuple(ordered)

    def begin_round(self) -> None:
        """Allow each candidate in the next round, if a call can help."""
        for candidate in self.candidates:
            candidate.begin_round()

    def group(self) -> Hashable:
        """Return what is equal for waiting requests that could go on at the same moments.

        A refusal of key, model or billing holds for requests that began before it. Providers, not
        their names: a removed one differs from a new one of its name. The version, since one that
        has tried a new provider differs from one that has not looked at it yet.
        """
        open_to = [
            (c.provider, bool(c.calls), c.guards.disabling.refused_before(self.began))
            for c in self.candidates
            if not c.tried
        ]
        may = (self.overdue, self.nearly_over, self.version)
        return (self.operation, self.model, tuple(open_to), self.tokens.bit_length(), may)

    @property
    def looks_offline(self) -> bool:
        """Whether no provider could be connected to: the network is probably down."""
        known = [c for c in self.candidates if c.cause is not None]
        return len(known) > 1 and all(c.unreachable for c in known)


class Roster:
    """The gateway's providers, highest priority first; among equals, in the order given."""

    __slots__ = (
        "_by_model",
        "_for_all",
        "_providers",
        "_suited",
        "counts_tokens",
        "names",
        "short",
        "version",
    )

    def __init__(self, providers: Iterable[Provider] = ()) -> None:
        self._providers: tuple[Provider, ...] = ()
        self._by_model: dict[str | None, tuple[Provider, ...]] = {}
        self._for_all: dict[Operation, tuple[Provider, ...]] = {}
        self._suited: dict[Hashable, Sequence[Provider]] = {}
        self.names: frozenset[str] = frozenset()
        """What the providers answer to."""
        self.short = math.inf
        """Bytes of a chat that fits into each context window, as far as these are known."""
        self.version = 0
        """Grows with every change that a request in progress may have to know."""
        self.counts_tokens = False
        """Whether a provider keeps a rate of tokens, so that requests must be estimated."""
        for provider in providers:
            self.add(provider)

    def __iter__(self) -> Iterator[Provider]:
        return iter(self._providers)

    def __len__(self) -> int:
        return len(self._providers)

    def add(self, provider: Provider) -> None:
        """Add a provider.

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
        provider.on_prepared = self._clear_lookups
        self._clear_lookups()

    def remove(self, name: str) -> Provider:
        """Remove a provider and return it.

        Raises:
            ConfigurationError: There is none of that name.
        """
        provider = self.named(name)
        self._providers = tuple(p for p in self._providers if p is not provider)
        self._clear_lookups()
        return provider

    def named(self, name: str) -> Provider:
        """Return the provider of a name.

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
        """Return the providers of a model, name or alias (None: all), best priority first.

        Raises:
            NoProvidersError: There is no provider at all.
            UnknownModelError: None of them serves it.
        """
        # Read first: if another thread adds a provider meanwhile, the result goes into the old
        # mapping, which is dropped.
        by_model = self._by_model
        found = by_model.get(model)
        if found is None:
            found = self._find(model)
            by_model[model] = found  # only known models: a caller cannot make this grow
        return found

    def candidates(self, model: str | None, operation: Operation) -> Sequence[Provider]:
        """Return the providers for a request; without a model, those that offer the operation.

        Raises:
            NoProvidersError: There is no provider at all.
            UnknownModelError: None of them serves the model, or does the operation.
        """
        if model is not None:
            named = self.serving(model)  # the caller has chosen it
            able = tuple([p for p in named if not p.only_completes or p.offers(operation)])
            if not able:
                raise none_offers(operation, named)
            return able
        for_all = self._for_all
        found = for_all.get(operation)
        if found is None:
            every = self.serving(None)
            found = tuple([provider for provider in every if provider.offers(operation)])
            if not found:
                raise none_offers(operation, every)
            for_all[operation] = found
        return found

    def for_chat(self, request: ChatRequest) -> Sequence[Provider]:
        """Return the providers that may serve a chat, best priority first.

        Raises:
            NoProvidersError: There is no provider at all.
            UnknownModelError: None of them serves the model, or does chats.
            RequestRejectedError: None of them can do what the request needs; names it.
        """
        native = request.native
        completes = native is not None and native.protocol == "completions"
        suited = self._suited  # read first, as in `serving`
        key = (request.model, request.needs, completes)
        found = suited.get(key)
        if found is None:
            found = suited[key] = self._find_suited(request, completes=completes)
        if native is not None and native.only is not None:
            speaking = [p for p in found if p.speaks(native.protocol) is not False]
            if not speaking:
                raise none_speaks(native, found)
            found = speaking
        if request.size > self.short:
            long = too_long(request, found)
            if len(long) == len(found):
                every = found if native is not None else self.candidates(request.model, "chat")
                raise none_can(request, every, long)
            found = [p for p in found if p not in long]
        return found

    def _find_suited(self, request: ChatRequest, *, completes: bool) -> Sequence[Provider]:
        model = request.model
        if completes:
            every: Sequence[Provider] = self.serving(model)
            may = [p for p in every if p.offers("completions") or p.offers("chat")]
            every = may or self.candidates(model, "chat")
        else:
            every = self.candidates(model, "chat")
        needs = request.needs
        able = tuple([p for p in every if needs.isdisjoint(p.cannot)])
        if every and not able:
            raise none_can(request, every, ())
        return able

    def seconds_until_available(self, model: object) -> float:
        """Return the seconds until the guards allow a chat for that model.

        0 if they allow it now, or if the result of a probe may come at any moment; and 0 if waiting
        cannot help: no provider serves the model, or all are disabled or forced open.
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
        """Return the seconds until one chat for that model may use a last resort, or `NEVER`."""
        waits = [p.refusal("chat") for p in self._asked_for(model)]
        return min((r.last_resort for r in waits if r is not None), default=NEVER)

    def refusal_of_all(self, model: object) -> AllProvidersFailedError:
        """Return the error for a chat for that model while the guards of all providers refuse."""
        refusals = [(p, p.refusal("chat")) for p in self._asked_for(model)]
        return AllProvidersFailedError.of(
            [provider.refused(refusal) for provider, refusal in refusals if refusal is not None]
        )

    def _asked_for(self, model: object) -> Sequence[Provider]:
        try:
            return self.candidates(model, "chat") if isinstance(model, str | None) else ()
        except (NoProvidersError, UnknownModelError):
            return ()

    def _clear_lookups(self) -> None:
        self._by_model, self._for_all, self._suited = {}, {}, {}
        self.names = frozenset().union(*[p.answers_to for p in self._providers])
        windows = [p.max_input_tokens for p in self._providers if p.max_input_tokens]
        self.short = MOST_BYTES_PER_TOKEN * min(windows, default=math.inf)
        self.version += 1

    def _find(self, model: str | None) -> tuple[Provider, ...]:
        if not self._providers:
            raise NoProvidersError(NO_PROVIDERS)
        if model is None:
            return self._providers
        found = tuple(p for p in self._providers if model in p.answers_to)
        if not found:
            known = sorted(self.names)
            near = difflib.get_close_matches(model, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownModelError(
                f"No provider serves the model {model[:100]!r}.{hint} Known: {', '.join(known)}."
            )
        return found


def none_offers(operation: Operation, providers: Sequence[Provider]) -> UnknownModelError:
    """Return the error for an operation that no provider offers."""
    return UnknownModelError(
        f"No provider offers {operation}: litellm's model map (or `operations`) says that"
        f" {_names(providers)} {'does' if len(providers) == 1 else 'do'} not. Add a provider whose"
        f" model does, name one with `model=`, or set `operations` in its LLMConfig."
    )


def final_error(
    causes: Sequence[ProviderFailure],
    decided_by: FailureKind | None = None,
    *,
    offline: bool = False,
    operation: Operation = "chat",
) -> GatewayError:
    """Return the error for a request without an answer: the caller's fault, or the providers'.

    Args:
        causes: One for each provider.
        decided_by: The kind of the failure that ended it, if one did.
        offline: No connection could be made to any provider.
        operation: What was asked for.
    """
    kinds = {decided_by} if decided_by else {cause.kind for cause in causes}
    if kinds and kinds <= _CALLER_ERRORS.keys():
        kind = next(kind for kind in _CALLER_ERRORS if kind in kinds)
        error, what = _CALLER_ERRORS[kind]
        of_model = operation == "embeddings" and not any(cause.param for cause in causes)
        if kind is FailureKind.UNSUPPORTED and of_model:
            what = "No provider embeds with this model; give model= one for embeddings"
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
