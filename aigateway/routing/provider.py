"""One configured provider at run time: its guards, slots, counters and connection.

Health, capabilities and disabling are kept per operation: a failure of embeddings does not affect
chat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from aigateway.clock import Clock
from aigateway.errors import FailureKind, GatewayError, ProviderFailure
from aigateway.events import CircuitOrder, Degradation, Operation
from aigateway.figures import ProviderMetrics
from aigateway.fleet.leases import Leases, SharedRates
from aigateway.fleet.votes import Votes, shared_name
from aigateway.messages import Capability, ProtocolName
from aigateway.records import Record
from aigateway.resilience.breaker import CircuitState
from aigateway.resilience.concurrency import AdaptiveLimit, Slots
from aigateway.resilience.guard import GuardRefusal
from aigateway.resilience.rates import CallRates, RateLimits
from aigateway.routing.capabilities import cannot
from aigateway.routing.guards import Guards, OperationStatus, in_milliseconds
from aigateway.settings import GatewaySettings, LLMConfig, ProviderType
from aigateway.settings.provider import default_name
from aigateway.telemetry.metrics import LatencyWindow, ProviderCounters
from aigateway.telemetry.recorder import Emitter
from aigateway.wires.client import VendorClient, VendorClientFactory
from aigateway.wires.pricing import CostEstimator, with_default_prices

__all__ = ["OPERATIONS", "Condition", "Provider", "ProviderStatus", "Word", "condition"]

OPERATIONS: tuple[Operation, ...] = ("chat", "completions", "embeddings")
"""The first that a provider offers is its main one."""


@dataclass(frozen=True, slots=True, repr=False)
class ProviderStatus(Record):
    """The present state of a provider.

    `active`, `circuit_state`, `retry_after_seconds`, `disabled_reason` and `degraded` are those of
    its main operation: chat, or what it does instead.

    Attributes:
        name: Its unique name.
        vendor: `ProviderType` value.
        model: The model it serves.
        priority: Higher is called first.
        active: Whether it could take a request now.
        circuit_state: As of the last request that looked.
        retry_after_seconds: Seconds until it gets requests again; a request that has no other
            provider may call it earlier, as last resort. None if it can be called now, infinite
            while its circuit is forced open.
        disabled_reason: Why it is misconfigured, if it is.
        in_flight: Calls in flight now.
        max_in_flight: Most calls in flight; falls when the vendor throttles, and recovers.
        forced: Whether an operator has forced its circuit open or closed.
        aliases: Other names by which a request may ask for it.
        degraded: "errors" or "latency" while it works worse than it should, else None.
        operations: The state of each of its operations.
        capabilities: What its model can (True) and cannot do (False), as far as is known:
            litellm's model map once it is loaded, over it the provider's configuration.
        max_input_tokens: The model's context window for input, if known.
    """

    name: str
    vendor: str
    model: str
    priority: int
    active: bool
    circuit_state: CircuitState
    retry_after_seconds: float | None
    disabled_reason: FailureKind | None
    in_flight: int
    max_in_flight: int
    forced: bool = False
    aliases: tuple[str, ...] = ()
    degraded: Degradation | None = None
    operations: Mapping[Operation, OperationStatus] = field(default_factory=dict)
    capabilities: Mapping[Capability, bool] = field(default_factory=dict)
    max_input_tokens: int | None = None

    def _words(self) -> Iterable[Any]:
        state = condition(self)
        yield from (self.name, state.word, state.reason)
        yield f"{self.in_flight} of {self.max_in_flight} calls"


Word = Literal["closed", "degraded", "half-open", "open", "probe is due", "cooling", "disabled"]


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of a provider in one word.

    Attributes:
        word: The state.
        wait: Seconds until it is called again, if known.
        reason: Why it is disabled or degraded, else None.
    """

    word: Word
    wait: float | None = None
    reason: str | None = None


def condition(status: ProviderStatus) -> Condition:
    """Return the state of a provider in one word."""
    wait = status.retry_after_seconds or None
    if wait is not None and math.isinf(wait):
        wait = None  # forced open
    if status.circuit_state is CircuitState.HALF_OPEN:
        return Condition("half-open")
    if status.circuit_state is CircuitState.OPEN:
        # An open circuit has no timer: the next call becomes the probe.
        if not status.retry_after_seconds:
            return Condition("probe is due")
        return Condition("open", wait)
    if status.disabled_reason is not None:
        return Condition("disabled", reason=str(status.disabled_reason))
    if wait:
        return Condition("cooling", wait)
    return Condition("closed" if status.degraded is None else "degraded", reason=status.degraded)


class Provider:
    """The run-time side of an `LLMConfig`. Belongs to one gateway and one event loop at a time.

    Attributes:
        adaptive: Adapts `slots.limit` to the vendor's load.
        cannot: What requests may need that excludes it.
        capabilities: As in `ProviderStatus`; `max_input_tokens` likewise.
        chat: The guards of chat; `completions` and `embeddings` likewise.
        company: Identifies the vendor, or the server of an OpenAI-compatible provider.
        costs: Estimates the cost of calls whose tokens the vendor has not counted.
        has_price: Whether the price of its calls is known; True until that can be looked up.
        first_contents_seen: Percentiles of the time to the first content of streams, for metrics.
        known_operations: The operations of its model; None if not known (yet).
        only_completes: It is configured for completions, and not for chats.
        on_prepared: Called when what is known of its model may have changed.
        opened: Its connection to the vendor, if it has one: `client` without a call.
        rates: Its `rpm` and `tpm` limits, if any.
        retired: Removed from the gateway; requests in progress pass it over.
        turn: Its position in the rotation among providers of equal priority (`select.py`).
    """

    def __init__(
        self,
        config: LLMConfig,
        settings: GatewaySettings,
        clock: Clock,
        emitter: Emitter,
        make_client: VendorClientFactory,
    ) -> None:
        self.config = config = with_default_prices(config, settings.default_prices)
        self._clock = clock
        self.name = config.name
        self.vendor = str(config.provider)
        self.company = _company(config)
        self.model = config.model
        self.priority = config.priority
        self.weight = config.weight
        # One that was numbered, "openai/gpt-4o#2", stands beside the first of its name.
        usual = {default_name(config)} if config.name.startswith(f"{default_name(config)}#") else ()
        self.answers_to = frozenset({config.name, config.model, *config.aliases, *usual})
        self.attempt_timeout = config.timeout or settings.attempt_timeout
        self.turn = 0.0
        self.first_token_timeout = min(settings.first_token_timeout, self.attempt_timeout)
        self.adaptive = AdaptiveLimit(config.max_concurrency or settings.max_concurrency, clock)
        self.slots = Slots(self.adaptive.limit)
        self.rates: CallRates | None = None
        self.share_rates(None)
        self.first_contents_seen = LatencyWindow()
        self.counters = ProviderCounters()
        self.costs = CostEstimator(config)
        self.chat = Guards("chat", config, settings, clock, emitter)
        self.completions = Guards("completions", config, settings, clock, emitter)
        self.embeddings = Guards("embeddings", config, settings, clock, emitter)
        self.all_guards = (self.chat, self.completions, self.embeddings)
        given = config.operations
        self.known_operations = None if given is None else frozenset(given)
        self.only_completes = "completions" in (given or ()) and "chat" not in (given or ())
        self.capabilities: Mapping[Capability, bool] = config.capabilities
        self._drops_all = settings.drop_unsupported_params is True
        self.cannot = cannot(config, {}, drops_all=self._drops_all)
        self.max_input_tokens: int | None = None
        self.has_price = True
        self._make_client = make_client
        self.opened: VendorClient | None = None
        self.on_prepared: Callable[[], object] = lambda: None
        self.prepared = False
        self.retired = False

    def __repr__(self) -> str:
        return f"<Provider {self.name} {self.main.breaker.state}>"

    @property
    def main(self) -> Guards:
        """The guards of its main operation."""
        return self.guards(self._main_operation)

    @property
    def _main_operation(self) -> Operation:
        return next(filter(self.offers, OPERATIONS), "embeddings")

    def guards(self, operation: Operation) -> Guards:
        """Return the guards of one operation."""
        if operation == "chat":
            return self.chat
        return self.embeddings if operation == "embeddings" else self.completions

    def offers(self, operation: Operation) -> bool:
        """Return whether its model offers an operation, as far as is known."""
        if self.known_operations is None:
            return operation != "completions"
        return operation in self.known_operations

    def speaks(self, protocol: ProtocolName) -> bool | None:
        """Return whether it speaks a protocol beside OpenAI's chat; None: it may."""
        return None if self.opened is None else self.opened.speaks(protocol)

    def refusal(self, operation: Operation) -> GuardRefusal | None:
        """Return why this provider must not be called now, or None; its slots are not looked at."""
        if self.retired:
            return GuardRefusal(FailureKind.DISABLED, math.inf)
        return self.guards(operation).refusal()

    def share(self, votes: Votes, is_sound: Callable[[], bool]) -> None:
        """Share circuits and cooldowns with other processes; see `Guards.share`."""
        for guards in self.all_guards:
            guards.share(votes, is_sound)

    def refused(self, refusal: GuardRefusal) -> ProviderFailure:
        """Return a refusal as the cause of an error."""
        wait = in_milliseconds(refusal.seconds_until_worth_asking)
        return ProviderFailure(self.name, refusal.kind, retry_after_seconds=wait)

    def force_circuit(self, order: CircuitOrder) -> None:
        """Force its circuits open or closed, or end that."""
        for guards in self.all_guards:
            guards.force(order)

    def dropped(
        self, params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[str]:
        """Return the parameters of a chat that this provider would drop, as far as is known."""
        return self.opened.dropped(params, messages) if self.prepared and self.opened else ()

    @property
    def client(self) -> VendorClient:
        """The connection to the vendor, opened on the running loop at first use."""
        if self.opened is None:
            self.opened = self._make_client(self.config, self._clock)
        return self.opened

    async def prepare(self) -> None:
        """Load in advance what the first attempt needs.

        Raises:
            GatewayError: The provider has been removed.
        """
        if not self.retired:
            client = self.client
            await client.prepare()
            self.known_operations = client.operations
            known = client.capabilities
            self.capabilities = {**known, **self.config.capabilities}
            self.cannot = cannot(self.config, known, drops_all=self._drops_all)
            self.max_input_tokens = client.max_input_tokens
            self.has_price = client.has_price
            self.prepared = client is self.opened
            self.on_prepared()
        if not self.prepared:
            raise GatewayError(f"The provider {self.name} was removed or closed.")

    def share_rates(self, leases: Leases | None) -> None:
        """Limit calls and tokens together with other processes, or alone."""
        rpm, tpm = self.config.rpm, self.config.tpm
        if not (rpm or tpm):
            return
        if leases is None:
            self.rates = RateLimits(self._clock, rpm, tpm)
        else:
            self.rates = leases.rates(
                f"provider:{shared_name(self.config, 'rates')}", rpm, tpm, kept=True
            )

    def take_over(self, other: Provider) -> None:
        """Take over the state of the same configuration in another gateway.

        Both then share guards (of equal policies), rates and counters: the vendor is the same.
        """
        self.counters = other.counters
        self.first_contents_seen = other.first_contents_seen
        if not isinstance(self.rates, SharedRates) and not isinstance(other.rates, SharedRates):
            self.rates = other.rates  # shared ones go on through the fleet
        for own, others in zip(self.all_guards, other.all_guards, strict=True):
            own.take_over(others)

    def retire(self) -> Coroutine[Any, Any, None]:
        """Report no more changes; what is returned closes it once no call is in flight."""
        for guards in self.all_guards:
            guards.retire()
        return self._close_when_empty()

    async def _close_when_empty(self) -> None:
        await self.slots.empty()
        self.close_guards()
        await self.aclose()

    def close_guards(self) -> None:
        """Settle lost hedges without a failure."""
        for guards in self.all_guards:
            guards.close()

    async def aclose(self) -> None:
        """Close the connections. The next attempt opens new ones."""
        client, self.opened = self.opened, None
        self.prepared = False
        if client is not None:
            await client.aclose()

    def abandon(self) -> None:
        """Drop the connections without closing them: their event loop is gone."""
        self.opened = None
        self.prepared = False
        for guards in self.all_guards:
            guards.abandon()
        self.slots = Slots(self.adaptive.limit)  # calls in flight release the old ones

    def status(self) -> ProviderStatus:
        """Return the present state."""
        operations = {name: self.guards(name).status() for name in OPERATIONS if self.offers(name)}
        main = operations[self._main_operation]
        return ProviderStatus(
            name=self.name,
            vendor=self.vendor,
            model=self.model,
            priority=self.priority,
            active=main.active and not self.retired,
            circuit_state=main.circuit_state,
            retry_after_seconds=main.retry_after_seconds,
            disabled_reason=main.disabled_reason,
            in_flight=self.slots.in_flight,
            max_in_flight=self.adaptive.limit,
            forced=self.chat.breaker.forced,
            aliases=self.config.aliases,
            degraded=main.degraded,
            operations=operations,
            capabilities=dict(self.capabilities),
            max_input_tokens=self.max_input_tokens,
        )

    def metrics(self) -> ProviderMetrics:
        """Return counters and state as plain values for JSON."""
        status, breaker = self.status(), self.main.breaker
        return {
            **self.counters.snapshot(),
            "active": status.active,
            "circuit_state": str(status.circuit_state),
            "consecutive_failures": breaker.consecutive_failures,
            "late_results": breaker.late_results,
            "disabled_reason": str(status.disabled_reason or "") or None,
            "degraded": status.degraded,
            "first_content_seconds": self.first_contents_seen.percentiles(),
            "in_flight": self.slots.in_flight,
            "max_in_flight": self.adaptive.limit,
        }


def _company(config: LLMConfig) -> tuple[str, ...]:
    """Return what is equal for two providers of the same vendor."""
    if config.provider is ProviderType.OPENAI_COMPATIBLE:
        return (config.provider, urlsplit(config.api_base or "").netloc)
    if config.provider is ProviderType.LITELLM:
        return (config.provider, config.model.partition("/")[0], config.api_base or "")
    return (config.provider,)
