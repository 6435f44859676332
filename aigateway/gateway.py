"""The gateway: it wires the rooms together and reads like the way of a request.

No policy lives here. Who is asked is `routing/`, whether to ask at all is `resilience/`, what is
remembered is `cache/`, how a vendor is called is `vendor/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from aigateway import intake
from aigateway.cache.flight import Flights, Lead
from aigateway.cache.key import cache_key
from aigateway.cache.store import AnswerCache, Remembered, ttl_for
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import (
    AllProvidersFailedError,
    ConfigurationError,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
)
from aigateway.events import Hook
from aigateway.messages import (
    CacheMode,
    ChatRequest,
    ChatResponse,
    Completion,
    EmbeddingRequest,
    EmbeddingResponse,
)
from aigateway.resilience.limiter import Limiter
from aigateway.routing.dispatch import Dispatcher, Journey, Served
from aigateway.routing.plan import Roster
from aigateway.routing.provider import Provider, ProviderStatus
from aigateway.settings import GatewaySettings, LLMConfig, load_providers
from aigateway.structured import fits, parse
from aigateway.telemetry.emitter import Emitter
from aigateway.telemetry.ledger import Ledger
from aigateway.vendor.client import Failure, VendorCallError, VendorClient, VendorClientFactory

__all__ = ["AsyncGateway"]


class AsyncGateway:
    """Several LLM vendors as one that answers.

    Belongs to one event loop at a time. Use it as an async context manager, or call `aclose()`.

    Args:
        providers: Whom to ask; None reads `aigateway.toml`, the environment and `.env`.
        settings: Everything else; None reads the same places.
        hooks: Get every event (`aigateway.events`).
        clock: Time and randomness; only tests give another.
        vendor: Makes the connection to a vendor; only tests give another.
        **overrides: Any field of `GatewaySettings`; stands over `settings`.

    Raises:
        ConfigurationError: A setting cannot work.
        NoProvidersError: `providers` is None and nothing is configured anywhere.
    """

    def __init__(
        self,
        providers: Iterable[LLMConfig] | None = None,
        *,
        settings: GatewaySettings | None = None,
        hooks: Iterable[Hook] = (),
        clock: Clock = SYSTEM_CLOCK,
        vendor: VendorClientFactory | None = None,
        **overrides: Any,
    ) -> None:
        self.settings = _settings(settings, overrides)
        self._clock = clock
        self._emitter = Emitter(hooks)
        self._make_client = vendor or _litellm_clients(self.settings)
        self._ledger = Ledger(clock, self._emitter)
        self._roster = Roster()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._limiter: Limiter
        self._dispatcher: Dispatcher
        self._flights: Flights[Served[Completion]]
        self._start_afresh()
        self.cache = AnswerCache(
            max_entries=self.settings.cache_max_entries,
            ttl_seconds=self.settings.cache_ttl_seconds,
            stale_seconds=self.settings.stale_if_error_seconds,
            clock=clock,
        )
        configs = load_providers() if providers is None else _checked(providers)
        for config in configs:
            self.add_provider(config)
        if providers is None:
            self._roster.candidates(None)  # nothing configured is an error now, not at 3 a.m.

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    async def chat(
        self,
        prompt_or_messages: str | Sequence[Mapping[str, Any]],
        *,
        system: str | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it spans providers and retries
        agent: str | None = None,
        cache: CacheMode = True,
        cache_ttl: float | None = None,
        **params: Any,
    ) -> ChatResponse:
        """Get an answer from the best provider that gives one, or from the cache.

        Args:
            prompt_or_messages: A prompt, or OpenAI chat messages.
            system: A system message put in front.
            model: A provider's model, name or alias; None leaves the choice to the gateway.
            temperature: From 0 to 2.
            max_tokens: Upper bound of the answer's length.
            timeout: Seconds for everything, failover and waiting included; None takes the setting.
            agent: Selects a time to live from `agent_ttls`, and labels logs.
            cache: True reads and fills the cache, False does neither, "refresh" only fills it.
            cache_ttl: Seconds to remember this answer; None takes the agent's, then the setting.
            **params: Other OpenAI chat parameters (`tools`, `response_format`, `seed`, ...),
                passed through untouched. `response_format` may be a pydantic model class; the
                answer then has an instance of it as `.parsed`.

        Returns:
            The answer, with who gave it, its usage and its price.

        Raises:
            RequestRejectedError: The request is at fault; says what to change.
            UnknownModelError: No provider serves `model`.
            AllProvidersFailedError: Nobody could answer; one cause for each.
            DeadlineExceededError: `timeout` was over first.
            OverloadedError: Too many requests are waiting already.
        """
        request = intake.chat_request(
            prompt_or_messages,
            system=system,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            timeout=timeout,
            agent=agent,
            cache=cache,
            cache_ttl=cache_ttl,
            params=params,
            settings=self.settings,
        )
        self._enter_loop()
        self._roster.candidates(request.model)  # an unknown model is refused before it counts
        with self._ledger.open(request, agent) as began:
            return await self._answer(request, began)

    async def call_llm(
        self, *, system: str | None = None, user: str, temperature: float | None = None
    ) -> str:
        """`chat`, for callers that only want the text. Raises what `chat` raises."""
        return (await self.chat(user, system=system, temperature=temperature)).text

    async def embed(
        self,
        inputs: str | Sequence[str],
        *,
        model: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it spans providers and retries
        **params: Any,
    ) -> EmbeddingResponse:
        """Turn texts into vectors, with the same failover as `chat`. Not cached.

        Vectors of different models cannot be compared: name a `model` that only equal providers
        serve (an alias does it), or give the gateway providers of one embedding model only.

        Args:
            inputs: One text, or several.
            model: A provider's model, name or alias; None leaves every provider a candidate.
            timeout: Seconds for everything; None takes the setting.
            **params: Other OpenAI embedding parameters (`dimensions`, ...).

        Raises:
            As `chat`.
        """
        request = intake.embedding_request(
            inputs, model=model, timeout=timeout, params=params, settings=self.settings
        )
        self._enter_loop()
        self._roster.candidates(request.model)
        with self._ledger.open(request, None) as began:
            journey = self._journey(request, began)
            served = await self._dispatcher.dispatch(journey, lambda client: client.embed(request))
            latency = self._clock.now() - began
            self._ledger.served(
                request,
                None,
                served.provider,
                served.answer,
                attempts=len(served.attempts),
                latency=latency,
            )
            return EmbeddingResponse(
                served.answer, served.provider, served.attempts, latency, request.request_id
            )

    # ── the way of a request ─────────────────────────────────────────────────────────────────

    async def _answer(self, request: ChatRequest, began: float) -> ChatResponse:
        if not self.settings.cache_enabled or request.cache is False:
            return self._fresh(request, began, await self._dispatch(request, began))
        key = cache_key(request)
        # Two classes may share a schema and still judge differently, so each looks for itself.
        model = request.response_model
        if request.cache is True:
            remembered = self.cache.lookup(key)
            if remembered is not None and fits(model, remembered.completion):
                return self._from_cache(request, began, remembered)
        try:
            served, joined = await self._share(key, request, began)
            if joined and not fits(model, served.answer):
                served, joined = await self._dispatch(request, began), False
        except (AllProvidersFailedError, DeadlineExceededError):
            stale = self.cache.lookup_stale(key) if request.cache is True else None
            if stale is None or not fits(model, stale.completion):
                raise
            return self._from_cache(request, began, stale, stale=True)
        return self._fresh(request, began, served, coalesced=joined)

    async def _share(
        self, key: str, request: ChatRequest, began: float
    ) -> tuple[Served[Completion], bool]:
        """Dispatch, or wait for the same request that is in flight already."""
        deadline = self._deadline(request, began)
        # A refresh must not be answered by a call that began before somebody asked for it.
        flight = key if request.cache is True else f"refresh:{key}"
        while True:
            lead = self._flights.lead(flight)
            if lead is None:
                return await self._lead(flight, key, request, began)
            try:
                async with self._clock.timeout(deadline - self._clock.now()):
                    return await self._flights.join(flight), lead.shares()
            except (AllProvidersFailedError, DeadlineExceededError) as error:
                # The request that began it may have had too little time, where this one has more.
                if not lead.lacked_time(error, self._clock.now(), deadline):
                    raise
            except TimeoutError:
                raise DeadlineExceededError(
                    "The request's deadline passed while it waited for an identical one in flight."
                ) from None

    async def _lead(
        self, flight: str, key: str, request: ChatRequest, began: float
    ) -> tuple[Served[Completion], bool]:
        """Begin a flight; its own dispatch keeps the deadline."""

        async def dispatch_and_remember() -> Served[Completion]:
            served = await self._dispatch(request, began)
            ttl = ttl_for(
                request.agent,
                request.cache_ttl,
                self.settings.agent_ttls,
                self.settings.cache_ttl_seconds,
            )
            self.cache.remember(key, served.answer, served.provider, ttl)
            return served

        lead = Lead(self._deadline(request, began))
        try:
            served, _ = await self._flights.share(flight, dispatch_and_remember, lead)
        except asyncio.CancelledError:
            lead.left = True
            raise
        return served, False

    async def _dispatch(self, request: ChatRequest, began: float) -> Served[Completion]:
        model = request.response_model

        async def ask(client: VendorClient) -> Completion:
            completion = await client.chat(request)
            if not fits(model, completion):
                # Raised here and not from pydantic's error, which quotes the answer.
                raise VendorCallError(Failure(FailureKind.INVALID_OUTPUT), completion)
            return completion

        return await self._dispatcher.dispatch(self._journey(request, began), ask)

    def _journey(self, request: ChatRequest | EmbeddingRequest, began: float) -> Journey:
        candidates = self._roster.candidates(request.model)
        return Journey(request.request_id, candidates, self._deadline(request, began))

    def _deadline(self, request: ChatRequest | EmbeddingRequest, began: float) -> float:
        return began + (self.settings.timeout if request.timeout is None else request.timeout)

    def _fresh(
        self,
        request: ChatRequest,
        began: float,
        served: Served[Completion],
        *,
        coalesced: bool = False,
    ) -> ChatResponse:
        answer, attempts = served.answer, served.attempts
        parsed = parse(request.response_model, answer)
        latency = self._clock.now() - began
        if coalesced:
            attempts = ()
            self._ledger.coalesced()
        else:
            self._ledger.served(
                request,
                request.agent,
                served.provider,
                answer,
                attempts=len(attempts),
                latency=latency,
            )
            if self.settings.log_prompts:
                texts = [choice.text for choice in answer.choices]
                self._emitter.log_content(request.request_id, request.messages, texts)
        return ChatResponse(
            answer,
            served.provider,
            coalesced=coalesced,
            attempts=attempts,
            latency_seconds=latency,
            parsed=parsed,
            request_id=request.request_id,
        )

    def _from_cache(
        self, request: ChatRequest, began: float, remembered: Remembered, *, stale: bool = False
    ) -> ChatResponse:
        parsed = parse(request.response_model, remembered.completion)
        self._ledger.remembered(request, request.agent, remembered.provider, stale=stale)
        return ChatResponse(
            remembered.completion,
            remembered.provider,
            cached=True,
            stale=stale,
            latency_seconds=self._clock.now() - began,
            parsed=parsed,
            request_id=request.request_id,
        )

    # ── providers ────────────────────────────────────────────────────────────────────────────

    @property
    def providers(self) -> tuple[ProviderStatus, ...]:
        """Every provider as it is now, highest priority first."""
        return tuple(provider.status() for provider in self._roster)

    def add_provider(self, config: LLMConfig) -> None:
        """Add a provider; it takes requests from now on.

        Raises:
            ConfigurationError: Its name is taken.
        """
        self._roster.add(
            Provider(config, self.settings, self._clock, self._emitter, self._make_client)
        )

    def remove_provider(self, name: str) -> None:
        """Ask a provider no more. Calls that are out end as they would have.

        Raises:
            ConfigurationError: There is none of that name.
        """
        provider = self._roster.remove(name)
        provider.retired = True
        if self._loop is None or self._loop.is_closed():
            return
        if _running_loop() is self._loop:
            self._retire(provider)
        else:
            self._loop.call_soon_threadsafe(self._retire, provider)

    def _retire(self, provider: Provider) -> None:
        task = asyncio.create_task(provider.retire(), name=f"aigateway-retire-{provider.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def warmup(self) -> None:
        """Load litellm and open the clients now, instead of at the first request.

        Raises:
            GatewayError: The gateway is closed, or in use on another running event loop.
        """
        self._enter_loop()
        for provider in self._roster:
            await provider.prepare()

    def get_metrics(self) -> dict[str, Any]:
        """What happened so far, as plain values fit for JSON.

        `total_requests`, `cache_hits`, `cache_hit_rate_percent` (two decimals), `failures`
        (requests whose caller got an error), `providers_active` (could take a request now), and
        more; under `providers`, for each one: attempts, failures by kind, circuit state, latency
        percentiles (seconds, last 512 answers), tokens, cost (US dollars).
        """
        return {
            **self._ledger.snapshot(),
            "providers_active": sum(p.refusal() is None for p in self._roster),
            "in_flight": self._limiter.in_flight,
            "waiting": self._limiter.waiting,
            "cost_usd": round(sum(p.counters.cost_usd for p in self._roster), 10),
            "cache": self.cache.stats(),
            "providers": {p.name: p.metrics() for p in self._roster},
        }

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        self._enter_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End what is in flight and close every connection. Later calls are refused."""
        self._closed = True
        if self._loop is None:
            return
        await self._dispatcher.stop()
        await self._flights.aclose()
        await asyncio.gather(*self._retiring, *(provider.aclose() for provider in self._roster))

    def _enter_loop(self) -> None:
        """Bind to the running loop, or move to it if the one before is over."""
        if self._closed:
            raise GatewayError("This gateway is closed; make another one.")
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise GatewayError(
                    "This gateway is in use on another event loop. Make one gateway for each loop"
                    " (connections belong to the loop that opened them)."
                )
            # What was opened there went down with it; circuits, cache and counters go on.
            self._start_afresh()
            for provider in self._roster:
                provider.abandon()
        self._loop = loop

    def _start_afresh(self) -> None:
        self._limiter = Limiter(self.settings.max_concurrency, self.settings.max_queue)
        self._dispatcher = Dispatcher(self.settings, self._clock, self._limiter, self._emitter)
        self._flights = Flights()
        self._retiring: set[asyncio.Task[None]] = set()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _settings(given: GatewaySettings | None, overrides: dict[str, Any]) -> GatewaySettings:
    if given is None:
        return GatewaySettings.load(**overrides)
    if not overrides:
        return given
    return GatewaySettings.load(**{**given.model_dump(include=given.model_fields_set), **overrides})


def _checked(providers: Iterable[LLMConfig]) -> list[LLMConfig]:
    configs = list(providers)
    for config in configs:
        if not isinstance(config, LLMConfig):
            raise ConfigurationError(
                f"providers takes LLMConfig objects; got {type(config).__name__}."
            )
    return configs


def _litellm_clients(settings: GatewaySettings) -> VendorClientFactory:
    def make(config: LLMConfig, clock: Clock) -> VendorClient:
        # Not at the top: it is the first step towards litellm, and nobody may ever ask for it.
        from aigateway.vendor.direct_lane import DirectClient  # noqa: PLC0415

        return DirectClient(config, clock, drop_unsupported_params=settings.drop_unsupported_params)

    return make
