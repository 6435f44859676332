"""Who is asked next. No I/O, no waiting: it looks at the providers as they are this instant.

The order is not fixed when a request begins: while it waits for one provider, another may open
its circuit or run full. So each step asks `choose` anew.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from aigateway.errors import (
    ConfigurationError,
    FailureKind,
    NoProvidersError,
    ProviderFailure,
    UnknownModelError,
)
from aigateway.resilience.limiter import Slots
from aigateway.routing.provider import Provider, in_milliseconds

__all__ = ["Choice", "Roster", "busy", "choose", "take_turn"]

NO_PROVIDERS = (
    "No provider is configured. Set OPENAI_API_KEY, GEMINI_API_KEY, ANTHROPIC_API_KEY or "
    "AZURE_OPENAI_API_KEY (with AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_DEPLOYMENT) in the "
    "environment or .env, write [[providers]] in aigateway.toml, or pass LLMConfig objects."
)


class Roster:
    """The gateway's providers, highest priority first; among equals, in the order given."""

    __slots__ = ("_by_model", "_providers", "counts_tokens")

    def __init__(self, providers: Iterable[Provider] = ()) -> None:
        self._providers: tuple[Provider, ...] = ()
        self._by_model: dict[str | None, tuple[Provider, ...]] = {}
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
        self._by_model = {}

    def remove(self, name: str) -> Provider:
        """Take one out and return it.

        Raises:
            ConfigurationError: There is none of that name.
        """
        provider = self.named(name)
        self._providers = tuple(p for p in self._providers if p is not provider)
        self._by_model = {}
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

    def candidates(self, model: str | None) -> tuple[Provider, ...]:
        """Everybody who serves that model, name or alias (None: everybody), best priority first.

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

    def away(self, model: object) -> float:
        """Seconds until somebody who serves that model can be asked.

        0 if somebody can be asked now, or has a probe out, whose result may come at any moment; and
        0 if waiting is no use: nobody serves it, or who does is set up wrong or shut off.
        """
        try:
            candidates = self.candidates(model) if isinstance(model, str | None) else ()
        except (NoProvidersError, UnknownModelError):
            return 0.0
        soonest = math.inf
        for provider in candidates:
            refusal = provider.refusal()
            if refusal is None:
                return 0.0
            if refusal.kind is not FailureKind.DISABLED:
                soonest = min(soonest, refusal.retry_after_seconds or 0.0)
        return 0.0 if soonest == math.inf else soonest

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


class Choice:
    """What `choose` found.

    Attributes:
        provider: Whom to ask, or None.
        refused: Why those who were passed over were; not filled in once somebody is found.
        full: Those who would be asked if they (or the gateway) had a free place or another minute
            had begun for their rates, and those whose probe is out: its result is worth waiting
            for, if there is nobody else.
    """

    __slots__ = ("full", "provider", "refused")

    def __init__(self) -> None:
        self.provider: Provider | None = None
        self.refused: list[ProviderFailure] = []
        self.full: list[ProviderFailure] = []


def choose(
    candidates: Sequence[Provider],
    tried: Collection[str],
    has_place: Callable[[Slots], bool],
    tokens: int = 0,
) -> Choice:
    """Pick the provider to ask now.

    The highest priority that can be asked wins. Among equals: the least loaded for its weight,
    and at equal load the one whose turn it is. One that seems to hang is asked if nobody else can
    be.

    Args:
        candidates: Best priority first.
        tried: Names that are passed over.
        has_place: Whether one more call may go out.
        tokens: How many the request will use, by estimate.
    """
    choice = Choice()
    best: Provider | None = None
    suspect: Provider | None = None
    for provider in candidates:
        if best is not None and provider.priority < best.priority:
            break
        if provider.name in tried:
            continue
        refusal = provider.refusal()
        if refusal is not None:
            (choice.full if _is_probed(refusal) else choice.refused).append(refusal)
            continue
        full = busy(provider, has_place, tokens)
        if full is not None:
            choice.full.append(full)
        elif provider.seems_to_hang():
            suspect = suspect or provider
        elif best is None or _rank(provider) < _rank(best):
            best = provider
    choice.provider = best or suspect
    return choice


def busy(
    provider: Provider, has_place: Callable[[Slots], bool], tokens: int
) -> ProviderFailure | None:
    """Why a provider that may be asked cannot take one more call just now, or None."""
    if not has_place(provider.slots):
        return ProviderFailure(provider.name, FailureKind.SATURATED)
    if provider.rates is not None:
        wait = provider.rates.wait(tokens)
        if wait > 0:
            return ProviderFailure(
                provider.name, FailureKind.SATURATED, retry_after_seconds=in_milliseconds(wait)
            )
    return None


def take_turn(provider: Provider, candidates: Sequence[Provider]) -> None:
    """Move a chosen provider back in the rotation, by less the more weight it has.

    Stride scheduling (Waldspurger and Weihl, 1995): over time each gets calls in proportion to
    its weight. One that was away does not get all it missed: it starts where the others stand.
    """
    if len(candidates) == 1:
        return
    start = provider.turn
    for peer in candidates:
        if peer.priority == provider.priority:
            # While both are asked, no two are further apart than the longest stride.
            start = max(start, peer.turn - max(1.0 / peer.weight, 1.0 / provider.weight))
    provider.turn = start + 1.0 / provider.weight


def _rank(provider: Provider) -> tuple[float, float]:
    return (provider.slots.in_flight / provider.weight, provider.turn)


def _is_probed(refusal: ProviderFailure) -> bool:
    return refusal.kind is FailureKind.CIRCUIT_OPEN and refusal.retry_after_seconds == 0


def _names(providers: Sequence[Provider]) -> str:
    return ", ".join(p.name for p in providers) or "none"
