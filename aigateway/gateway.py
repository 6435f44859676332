"""The gateway: the public face, the providers, and the life of it all.

It wires the rooms together and holds no policy. The way of a request is `request/pipeline.py`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, get_args

from aigateway.batch.api import ManyRequests
from aigateway.batch.pacing import Turnstile
from aigateway.cache.store import AnswerCache
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import (
    ConfigurationError,
    GatewayError,
    RequestRejectedError,
)
from aigateway.events import CircuitForced, Hook, LoopStalled
from aigateway.messages import (
    APPLICATION,
    CacheMode,
    ChatRequest,
    ChatResponse,
    Chunk,
    EmbeddingResponse,
    Origin,
)
from aigateway.request.pipeline import Answering
from aigateway.request.stream import ChatStream, Outcome
from aigateway.request.validate import chat_request, embedding_request
from aigateway.resilience import retry
from aigateway.resilience.concurrency import Limiter
from aigateway.resilience.network import Reachability
from aigateway.resilience.stall import StallWatch
from aigateway.routing.attempt import Surroundings
from aigateway.routing.candidates import Roster
from aigateway.routing.provider import CircuitOrder, Provider, ProviderStatus
from aigateway.routing.stream import Resume
from aigateway.settings import GatewaySettings, LLMConfig, load_providers
from aigateway.telemetry.recorder import Emitter, RequestRecorder
from aigateway.wires.client import VendorClient, VendorClientFactory

__all__ = ["AsyncGateway"]

_OPTIONS = frozenset(
    {
        "system",
        "model",
        "temperature",
        "max_tokens",
        "timeout",
        "agent",
        "cache",
        "cache_ttl",
        "origin",
    }
)
"""What `chat` takes by name; its other options are OpenAI's parameters."""


class AsyncGateway(ManyRequests):
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
        self._uses_litellm = vendor is None
        self._ledger = RequestRecorder(clock, self._emitter)
        self._roster = Roster()
        self._network = Reachability(clock)
        self._streams: weakref.WeakSet[ChatStream] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.cache = AnswerCache(
            max_entries=self.settings.cache_max_entries,
            ttl_seconds=self.settings.cache_ttl_seconds,
            stale_seconds=self.settings.stale_if_error_seconds,
            clock=clock,
        )
        self._limiter: Limiter
        self._turnstile: Turnstile
        self._answering: Answering
        self._start_afresh()
        configs = load_providers() if providers is None else _checked(providers)
        for config in configs:
            self.add_provider(config)
        if providers is None:
            self._roster.serving(None)  # nothing configured is an error now, not at 3 a.m.

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
        hedge: bool | None = None,
        origin: Origin | None = None,
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
            hedge: Whether a second provider is asked when the first is slower than usual; None
                takes the setting, which leaves requests with tools alone.
            origin: On whose behalf, where many share this gateway.
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
        request = self._request(
            prompt_or_messages,
            hedge,
            system=system,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            timeout=timeout,
            agent=agent,
            cache=cache,
            cache_ttl=cache_ttl,
            origin=origin or APPLICATION,
            params=params,
        )
        self._enter_loop()
        return await self._answering.chat(request)

    def stream(
        self,
        prompt_or_messages: str | Sequence[Mapping[str, Any]],
        *,
        system: str | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout: float | None = None,
        agent: str | None = None,
        cache: CacheMode = True,
        cache_ttl: float | None = None,
        hedge: bool | None = None,
        resume: Resume | None = None,
        origin: Origin | None = None,
        **params: Any,
    ) -> ChatStream:
        """Get an answer piece by piece, from the best provider that begins one.

            async with gateway.stream("Tell me a story.") as stream:
                async for chunk in stream:
                    print(chunk.text, end="")
            print(stream.response.usage)

        Until the first content, providers that fail or keep silent for `first_token_timeout` are
        passed over unseen. After it nothing is silently begun anew: a break raises, or is resumed.
        Leaving early (`break`, `aclose`, cancellation) closes the vendor's connection.

        Args:
            prompt_or_messages: As for `chat`, like the rest but for these:
            system: As for `chat`.
            model: As for `chat`.
            temperature: As for `chat`.
            max_tokens: As for `chat`.
            timeout: Seconds until the first content, failover and waiting included; None takes
                the setting. After it `idle_timeout` rules, however long the answer is.
            agent: As for `chat`.
            cache: As for `chat`. What is remembered is streamed at once.
            cache_ttl: As for `chat`.
            hedge: As for `chat`; what counts is the first content.
            resume: What to do when the stream breaks after its first content. None raises.
                "restart" begins anew at the next provider, after a chunk marked `restarted`.
                "continue" lets another provider go on from the partial text, where its model is
                known to do so; never after tool calls or with a `response_format`.
            origin: As for `chat`.
            **params: As for `chat`.

        Raises:
            RequestRejectedError: The request is at fault; raised here, before anything is sent.
            UnknownModelError: No provider serves `model`; likewise.
            StreamInterruptedError: While iterating: it broke after its first content.
            GatewayError: While iterating, before the first content: as `chat`.
        """
        if resume is not None and resume not in ("continue", "restart"):
            raise RequestRejectedError('resume must be None, "continue" or "restart".')
        request = self._request(
            prompt_or_messages,
            hedge,
            system=system,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            timeout=timeout,
            agent=agent,
            cache=cache,
            cache_ttl=cache_ttl,
            origin=origin or APPLICATION,
            params=_without_stream_options(params),
        )
        outcome = Outcome()

        def begin() -> AsyncGenerator[Chunk, None]:
            self._enter_loop()
            return self._answering.stream(request, resume, outcome)

        stream = ChatStream(begin, outcome)
        self._streams.add(stream)
        return stream

    async def call_llm(
        self, *, system: str | None = None, user: str, temperature: float | None = None
    ) -> str:
        """`chat`, for callers that only want the text. Raises what `chat` raises."""
        return (await self.chat(user, system=system, temperature=temperature)).text

    async def embed(
        self,
        inputs: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        *,
        model: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it spans providers and retries
        origin: Origin | None = None,
        **params: Any,
    ) -> EmbeddingResponse:
        """Turn texts into vectors, with the same failover as `chat`. Not cached.

        Vectors of different models cannot be compared: name a `model` that only equal providers
        serve (an alias does it), or give the gateway providers of one embedding model only.

        Args:
            inputs: One text, or several. In place of a text, the tokens that the model's own
                tokenizer makes of it; only OpenAI, Azure and OpenAI-compatible servers take them,
                others are passed over.
            model: A provider's model, name or alias; None leaves every provider a candidate.
            timeout: Seconds for everything; None takes the setting.
            origin: On whose behalf, where many share this gateway.
            **params: Other OpenAI embedding parameters (`dimensions`, ...).

        Raises:
            As `chat`.
        """
        request = embedding_request(
            inputs,
            model=model,
            timeout=timeout,
            origin=origin or APPLICATION,
            params=params,
            settings=self.settings,
        )
        self._enter_loop()
        self._roster.candidates(request.model, "embeddings")
        return await self._answering.embed(request)

    def check(
        self, prompt_or_messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatRequest:
        """See whether `chat` would take a request, without asking anybody.

        Args:
            prompt_or_messages: As for `chat`.
            **options: Likewise.

        Returns:
            The request, checked and copied; `batch` takes it as it is.

        Raises:
            RequestRejectedError: The request is at fault; says what to change.
            UnknownModelError: No provider serves its `model`.
        """
        return self._request_of(prompt_or_messages, options)

    def _request_of(
        self, prompt: Any, options: Mapping[str, Any], *, background: bool = False
    ) -> ChatRequest:
        params = dict(options)
        hedge = params.pop("hedge", None)
        if params.get("origin") is None:
            params["origin"] = APPLICATION
        named = {name: params.pop(name) for name in _OPTIONS & params.keys()}
        return self._request(prompt, hedge, background=background, params=params, **named)

    def _request(
        self,
        prompt_or_messages: str | Sequence[Mapping[str, Any]],
        hedge: bool | None,
        *,
        background: bool = False,
        **given: Any,
    ) -> ChatRequest:
        """Check what a caller passed. An unknown model is refused before the request counts."""
        request = chat_request(prompt_or_messages, **given, settings=self.settings)
        if hedge is not None and not isinstance(hedge, bool):
            raise RequestRejectedError("hedge must be True, False or None.")
        if hedge is not None or background:
            request = replace(request, hedge=hedge, background=background)
        self._roster.candidates(request.model, "chat")
        return request

    # ── what asking much needs; see `batch/api.py` ────────────────────────────────────────────────

    async def _ask(self, prompt: Any, options: Mapping[str, Any]) -> ChatResponse:
        """One request of a batch."""
        request = self._request_of(prompt, options, background=True)
        self._enter_loop()
        return await self._answering.chat(request)

    def _door(self) -> Turnstile:
        self._enter_loop()
        return self._turnstile

    def _seconds_until_available(self, model: object) -> float:
        # Closed, it need not be waited for: the request hears of it.
        return 0.0 if self._closed else self._roster.seconds_until_available(model)

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
        if self._loop is not None and not self._loop.is_closed():
            wake = self._limiter.wake  # requests that wait may go to it
            if _running_loop() is self._loop:
                wake()
            else:
                self._loop.call_soon_threadsafe(wake)

    def remove_provider(self, name: str) -> None:
        """Ask a provider no more. Calls that are out end as they would have.

        Raises:
            ConfigurationError: There is none of that name.
        """
        provider = self._roster.remove(name)
        provider.retired = True
        self._network.forget(name)
        if self._loop is None or self._loop.is_closed():
            return
        if _running_loop() is self._loop:
            self._retire(provider)
        else:
            self._loop.call_soon_threadsafe(self._retire, provider)

    def force_circuit(self, name: str, state: CircuitOrder, *, by: str | None = None) -> None:
        """Take a provider's circuits in hand, or leave them to themselves again.

        It holds for every operation. Calls that are out end as they would have. From another
        thread than the gateway's it takes effect at the next turn of the gateway's event loop.

        Args:
            name: The provider's.
            state: "open" asks it no more, whatever it would answer, not as last resort either;
                "closed" asks it, however often it fails, and ends a cooldown and a disabled state;
                both hold until the next order. "auto" lets the circuit decide
                by itself again, and begin closed; it changes nothing where nothing is forced.
            by: Who wants it; for the event `operator.circuit_forced`.

        Raises:
            ConfigurationError: There is no such provider, or no such state.
        """
        if state not in get_args(CircuitOrder):
            raise ConfigurationError('A circuit is forced "open" or "closed", or left to "auto".')
        provider = self._roster.named(name)

        def force() -> None:
            provider.force_circuit(state)
            self._emitter.emit(CircuitForced(name, state, by))

        def force_and_wake() -> None:
            force()
            self._limiter.wake()  # whoever waits may have somebody to go to now, or nobody

        if self._loop is None or self._loop.is_closed():
            force()
        elif _running_loop() is self._loop:
            force_and_wake()
        else:
            self._loop.call_soon_threadsafe(force_and_wake)

    def _retire(self, provider: Provider) -> None:
        self._limiter.wake()  # whoever waits for a place there had better look elsewhere
        task = asyncio.create_task(provider.retire(), name=f"aigateway-retire-{provider.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def take_over(self, other: AsyncGateway) -> None:
        """Go on where another gateway is, to put this one in its place with other settings.

        Counters go on. Answers are remembered on if the settings of the cache are the same. A
        provider that is configured in the same way goes on with its rates, and with its circuit
        and gates if what governs them is the same, too; else they begin anew. What was learned of
        latencies, and of how many calls a vendor bears, is learned again. The other gateway may
        end its requests meanwhile; what they find out counts here.

        To be called before this gateway is used. Events of both go to this one's hooks.

        Args:
            other: The one to be replaced.

        Raises:
            GatewayError: This gateway is in use.
        """
        if self._loop is not None:
            raise GatewayError("Only a gateway that is not in use yet can take over another one.")
        self._ledger.counters = other._ledger.counters
        if self._same_cache(other.settings):
            self.cache = other.cache
        before = {provider.name: provider for provider in other._roster}
        for provider in self._roster:
            old = before.get(provider.name)
            if old is not None and old.config == provider.config:
                provider.take_over(old)
        self._start_afresh()

    def _stalled(self, seconds: float) -> None:
        self._emitter.emit(LoopStalled(round(seconds, 3), self._limiter.in_flight))

    def _same_cache(self, settings: GatewaySettings) -> bool:
        names = ("cache_max_entries", "cache_ttl_seconds", "stale_if_error_seconds")
        return all(getattr(self.settings, name) == getattr(settings, name) for name in names)

    async def warmup(self) -> None:
        """Load litellm (and tenacity) and open the clients now, instead of at the first request.

        Raises:
            GatewayError: The gateway is closed, or in use on another running event loop.
        """
        self._enter_loop()
        retry.load()
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
            "providers_active": sum(p.status().active for p in self._roster),
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
        await self._answering.stop()
        for stream in list(self._streams):
            await stream.shut()
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
        if self._uses_litellm and any(self._roster):
            from aigateway.wires.loading import begin_loading  # noqa: PLC0415 - see below

            begin_loading()  # before the first request waits for it

    def _start_afresh(self) -> None:
        self._limiter = Limiter(self.settings.max_concurrency, self.settings.max_queue)
        self._turnstile = Turnstile(self.settings.max_concurrency)
        around = Surroundings(
            self._clock,
            self._limiter,
            self._emitter,
            self._network,
            # Weakly, so that a timer of the watch does not keep a forgotten gateway alive.
            StallWatch(self._clock, _weakly(self._stalled)),
            lambda: self._roster,
        )
        self._answering = Answering(self.settings, around, self._roster, self.cache, self._ledger)
        self._retiring: set[asyncio.Task[None]] = set()


def _without_stream_options(params: dict[str, Any]) -> dict[str, Any]:
    """What callers of other libraries add to get a stream with usage, which this one is anyway."""
    kept = dict(params)
    if kept.pop("stream", True) is not True:
        raise RequestRejectedError("stream() streams: leave `stream` out, or call chat().")
    options = kept.get("stream_options")
    if isinstance(options, Mapping) and options.keys() <= {"include_usage"}:
        del kept["stream_options"]
    return kept


def _weakly(method: Callable[[float], None]) -> Callable[[float], None]:
    reference = weakref.WeakMethod(method)

    def call(argument: float) -> None:
        bound = reference()
        if bound is not None:
            bound(argument)

    return call


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
        from aigateway.wires.changing_key import ChangingKeyClient  # noqa: PLC0415
        from aigateway.wires.direct_lane import DirectClient  # noqa: PLC0415

        connect = partial(DirectClient, drop_unsupported_params=settings.drop_unsupported_params)
        if callable(config.api_key):
            return ChangingKeyClient(config, clock, connect)
        return connect(config, clock)

    return make
