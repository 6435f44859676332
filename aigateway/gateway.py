"""`AsyncGateway`: the public class, its providers, and opening and closing.

It composes the other parts and has no policy of its own. `request/pipeline.py` answers a request.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack, get_args

from aigateway.batch import engine
from aigateway.batch.api import Batches
from aigateway.batch.engine import Concurrency, Requests
from aigateway.batch.items import row_reader
from aigateway.batch.pacing import PacedSemaphore
from aigateway.cache.memory import AnswerCache
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import (
    ConfigurationError,
    GatewayError,
    RequestRejectedError,
)
from aigateway.events import CircuitForced, Hook, LoopStalled
from aigateway.messages import (
    APPLICATION,
    BatchItem,
    BatchProgress,
    BatchResult,
    CacheMode,
    ChatRequest,
    ChatResponse,
    Chunk,
    EmbeddingResponse,
    Origin,
)
from aigateway.protocols.anthropic_messages import MESSAGES, MESSAGES_COUNT
from aigateway.protocols.openai_completions import COMPLETIONS
from aigateway.protocols.openai_responses import RESPONSES
from aigateway.protocols.protocol import (
    CallerProtocol,
    ProtocolOptions,
    ProtocolResponse,
    ProtocolStream,
    ReadRequest,
)
from aigateway.request.json_copy import check_size, copied, encoded_json
from aigateway.request.middleware import Middleware, MiddlewarePipeline, load_middleware
from aigateway.request.pipeline import Pipeline
from aigateway.request.stream import ChatStream, StreamOutcome
from aigateway.request.validate import chat_request, embedding_request
from aigateway.resilience import retry
from aigateway.resilience.concurrency import Limiter
from aigateway.resilience.local_faults import Reachability, StallDetector
from aigateway.routing.affinity import Affinity
from aigateway.routing.attempt import CallContext
from aigateway.routing.candidates import Roster
from aigateway.routing.guards import CircuitOrder
from aigateway.routing.provider import Provider, ProviderStatus
from aigateway.routing.stream import Resume
from aigateway.settings import GatewaySettings, LLMConfig, load_providers
from aigateway.telemetry.recorder import Emitter, RequestRecorder
from aigateway.tokens import counted_tokens
from aigateway.wires.client import VendorClient, VendorClientFactory

__all__ = ["AsyncGateway"]


class AsyncGateway:
    """Several LLM vendors as one that answers.

    It belongs to one event loop at a time. Use it as an async context manager, or call `aclose()`.

    Args:
        providers: The providers; None reads `aigateway.toml`, the environment and `.env`.
        settings: Everything else; None reads the same places.
        hooks: Receive every event (`aigateway.events`).
        middleware: Objects that may change or refuse requests and answers, in order; also classes
            or functions that make them, or import paths. None takes the setting.
        clock: The source of time and randomness; for tests.
        vendor: Makes a provider's client; for tests.
        **overrides: Any field of `GatewaySettings`; takes precedence over `settings`.

    Raises:
        ConfigurationError: A setting cannot work.
        NoProvidersError: `providers` is None and none is configured.
    """

    def __init__(
        self,
        providers: Iterable[LLMConfig] | None = None,
        *,
        settings: GatewaySettings | None = None,
        hooks: Iterable[Hook] = (),
        middleware: Iterable[Middleware | Callable[[], Middleware] | str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        vendor: VendorClientFactory | None = None,
        **overrides: Any,
    ) -> None:
        self.settings = _settings(settings, overrides)
        self._middleware = load_middleware(
            self.settings.middleware if middleware is None else middleware
        )
        self._clock = clock
        self._emitter = Emitter(hooks)
        self._make_client = vendor or _litellm_clients(self.settings)
        self._uses_litellm = vendor is None
        self._recorder = RequestRecorder(clock, self._emitter)
        self._roster = Roster()
        self._network = Reachability(clock)
        self._affinity = Affinity(clock)
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
        self._bound_calls: PacedSemaphore
        self._pipeline: Pipeline
        self._start_afresh()
        self._batches = Batches(
            self._chat_of_batch,
            self.check,
            clock=clock,
            roster=self._roster,
            network=self._network,
            max_concurrency=self.settings.max_concurrency,
            is_closed=lambda: self._closed,
        )
        configs = load_providers() if providers is None else _checked(providers)
        for config in configs:
            self.add_provider(config)
        if providers is None:
            self._roster.serving(None)  # raises if none is configured

    # ── requests ─────────────────────────────────────────────────────────────────────────────

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
        session: str | None = None,
        origin: Origin | None = None,
        **params: Any,
    ) -> ChatResponse:
        """Get an answer from the best provider that answers, or from the cache.

        Args:
            prompt_or_messages: A prompt, or OpenAI chat messages.
            system: A system message to put in front.
            model: A provider's model, name or alias; None leaves the choice to the gateway.
            temperature: From 0 to 2.
            max_tokens: Most tokens of the answer.
            timeout: Seconds for everything, failover and waiting included; None takes the setting.
            agent: Selects a time to live from `agent_ttls`, and labels logs.
            cache: True reads and fills the cache, False does neither, "refresh" only fills it.
            cache_ttl: Seconds to cache this answer; None takes the agent's, then the setting.
            hedge: Whether a second provider is asked if the first is slower than usual; None takes
                the setting, which does not hedge requests with tools.
            session: Names the conversation. Its turns stay at one provider while that is well, so
                that the vendor's prompt cache serves them. None: each request is on its own.
            origin: The caller, if several share this gateway.
            **params: Other OpenAI chat parameters (`tools`, `response_format`, `seed`, ...),
                passed on unchanged. `response_format` may be a pydantic model class; the answer
                then has an instance of it as `.parsed`.

        Returns:
            The answer, with its provider, usage and price.

        Raises:
            RequestRejectedError: The request is at fault; the message says what to change.
            UnknownModelError: No provider serves `model`.
            AllProvidersFailedError: No provider could answer; `causes` has one entry for each.
            DeadlineExceededError: `timeout` passed first.
            OverloadedError: Too many requests are waiting already.
        """
        request = self._request(
            prompt_or_messages,
            system=system,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            timeout=timeout,
            agent=agent,
            cache=cache,
            cache_ttl=cache_ttl,
            hedge=hedge,
            session=session,
            origin=origin,
            params=params,
        )
        if self._closed or asyncio.get_running_loop() is not self._loop:
            self._enter_loop()
        return await self._pipeline.chat(request)

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
        session: str | None = None,
        origin: Origin | None = None,
        **params: Any,
    ) -> ChatStream:
        """Stream an answer from the best provider that begins one.

            async with gateway.stream("Tell me a story.") as stream:
                async for chunk in stream:
                    print(chunk.text, end="")
            print(stream.response.usage)

        Before the first content, the gateway fails over from providers that fail or send nothing
        for `first_token_timeout`. After it, the gateway never restarts the answer silently: a break
        raises, or the stream is resumed. Leaving early (`break`, `aclose`, cancellation) closes the
        vendor's connection.

        Args:
            prompt_or_messages: As for `chat`.
            system: As for `chat`.
            model: As for `chat`.
            temperature: As for `chat`.
            max_tokens: As for `chat`.
            timeout: Seconds until the first content, failover and waiting included; None takes
                the setting. After it `idle_timeout` applies, however long the answer is.
            agent: As for `chat`.
            cache: As for `chat`. A cached answer is streamed at once.
            cache_ttl: As for `chat`.
            hedge: As for `chat`; the first content decides.
            resume: What to do when the stream breaks after its first content. None raises.
                "restart" starts over at the next provider, after a chunk marked `restarted`.
                "continue" lets another provider continue the partial text, if its model is known
                to do so; never after tool calls or with a `response_format`.
            session: As for `chat`.
            origin: As for `chat`.
            **params: As for `chat`.

        Raises:
            RequestRejectedError: The request is at fault; raised here, before anything is sent.
            UnknownModelError: No provider serves `model`; raised here.
            StreamInterruptedError: While iterating: the stream broke after its first content.
            GatewayError: While iterating, before the first content: as `chat`.
        """
        if resume is not None and resume not in ("continue", "restart"):
            raise RequestRejectedError('resume must be None, "continue" or "restart".')
        request = self._request(
            prompt_or_messages,
            system=system,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            timeout=timeout,
            agent=agent,
            cache=cache,
            cache_ttl=cache_ttl,
            hedge=hedge,
            session=session,
            origin=origin,
            params=_without_stream_options(params),
        )
        return self._stream(request, resume)

    def _stream(self, request: ChatRequest, resume: Resume | None = None) -> ChatStream:
        outcome = StreamOutcome()

        def begin() -> AsyncGenerator[Chunk, None]:
            self._enter_loop()
            return self._pipeline.stream(request, resume, outcome)

        stream = ChatStream(begin, outcome)
        self._streams.add(stream)
        return stream

    async def messages(
        self,
        body: Mapping[str, Any] | ReadRequest,
        *,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[ProtocolOptions],
    ) -> ProtocolResponse:
        """Answer a request in Anthropic's Messages protocol, from any provider.

        A provider of Anthropic's gets the body as it is, with its own model and key. For others it
        is translated, and so is their answer.

        Args:
            body: The body of `POST /v1/messages`. `stream` in it is ignored.
            headers: The caller's `anthropic-beta` and `anthropic-version`.
            **options: As for `chat`.

        Raises:
            GatewayError: As `chat`.
        """
        return await self._answer(MESSAGES, body, headers, options)

    def stream_messages(
        self,
        body: Mapping[str, Any] | ReadRequest,
        *,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[ProtocolOptions],
    ) -> ProtocolStream:
        """Stream the answer to a request in Anthropic's Messages protocol.

            async with gateway.stream_messages(body) as events:
                async for event in events:
                    print(event.name, event.data)

        Args:
            body: As for `messages`.
            headers: As for `messages`.
            **options: As for `stream`.

        Raises:
            GatewayError: As `stream`.
        """
        return self._event_stream(MESSAGES, body, headers, options)

    def count_tokens(
        self, body: Mapping[str, Any] | ReadRequest, *, model: str | None = None
    ) -> int:
        """Estimate the tokens of a request in Anthropic's Messages protocol, without a call.

        Tokenizers differ between models. The estimate goes by the bytes of all texts and tools; a
        picture, and a document, count as 1,500 tokens.

        Args:
            body: As for `messages`; `max_tokens` may be missing.
            model: As for `chat`; None takes the body's.

        Raises:
            RequestRejectedError: The request is at fault.
            UnknownModelError: No provider serves the model.
        """
        options: ProtocolOptions = {"model": model} if model is not None else {}
        return counted_tokens(self._read(MESSAGES_COUNT, body, None, options)[1])

    async def responses(
        self,
        body: Mapping[str, Any] | ReadRequest,
        **options: Unpack[ProtocolOptions],
    ) -> ProtocolResponse:
        """Answer a request in OpenAI's Responses protocol, from any provider.

        A provider that speaks the protocol gets the body as it is, with its own model and key. For
        others it is translated, and so is their answer; nothing is stored.

        Args:
            body: The body of `POST /v1/responses`. `stream` in it is ignored.
            **options: As for `chat`.

        Raises:
            GatewayError: As `chat`.
        """
        return await self._answer(RESPONSES, body, None, options)

    def stream_responses(
        self,
        body: Mapping[str, Any] | ReadRequest,
        **options: Unpack[ProtocolOptions],
    ) -> ProtocolStream:
        """Stream the answer to a request in OpenAI's Responses protocol.

        Args:
            body: As for `responses`.
            **options: As for `stream`.

        Raises:
            GatewayError: As `stream`.
        """
        return self._event_stream(RESPONSES, body, None, options)

    async def completions(
        self,
        body: Mapping[str, Any] | ReadRequest,
        **options: Unpack[ProtocolOptions],
    ) -> ProtocolResponse:
        """Complete a text in OpenAI's older protocol, at any provider.

        A provider whose `operations` have "completions" gets the body as it is, with its own model
        and key. At others the prompt is one message of a chat, and the answer to it the text.

        Args:
            body: The body of `POST /v1/completions`, with one prompt. `stream` in it is ignored.
            **options: As for `chat`.

        Raises:
            GatewayError: As `chat`.
        """
        return await self._answer(COMPLETIONS, body, None, options)

    def stream_completions(
        self,
        body: Mapping[str, Any] | ReadRequest,
        **options: Unpack[ProtocolOptions],
    ) -> ProtocolStream:
        """Stream the completion of a text in OpenAI's older protocol.

        Args:
            body: As for `completions`.
            **options: As for `stream`.

        Raises:
            GatewayError: As `stream`.
        """
        return self._event_stream(COMPLETIONS, body, None, options)

    async def _answer(
        self,
        protocol: CallerProtocol,
        body: Mapping[str, Any] | ReadRequest,
        headers: Mapping[str, str] | None,
        options: ProtocolOptions,
    ) -> ProtocolResponse:
        read, request = self._read(protocol, body, headers, options)
        if self._closed or asyncio.get_running_loop() is not self._loop:
            self._enter_loop()
        response = await self._pipeline.chat(request)
        native = response.completion.native
        if native is not None and native.body:
            return ProtocolResponse(response, raw=native.body)
        return ProtocolResponse(response, protocol.write(response, read))

    def _event_stream(
        self,
        protocol: CallerProtocol,
        body: Mapping[str, Any] | ReadRequest,
        headers: Mapping[str, str] | None,
        options: ProtocolOptions,
    ) -> ProtocolStream:
        read, request = self._read(protocol, body, headers, options)
        return ProtocolStream(self._stream(request), protocol, read, request.request_id)

    def _read(
        self,
        protocol: CallerProtocol,
        body: Mapping[str, Any] | ReadRequest,
        headers: Mapping[str, str] | None,
        options: ProtocolOptions,
    ) -> tuple[ReadRequest, ChatRequest]:
        read = body
        if not isinstance(read, ReadRequest):
            encoded = encoded_json(body, "body")
            check_size(len(encoded), self.settings.max_prompt_bytes)
            read = protocol.read(copied(body, encoded), headers or {})
        named: dict[str, Any] = {**read.options, **options}
        if named.get("model") == "auto" and not any("auto" in p.answers_to for p in self._roster):
            named["model"] = None  # as clients say it that have to name one
        params = {n: named.pop(n) for n in named.keys() - _OPTIONS}
        return read, self._request(read.messages, native=read.native, params=params, **named)

    async def call_llm(
        self, *, system: str | None = None, user: str, temperature: float | None = None
    ) -> str:
        """Call `chat`, and return only the text. Raises what `chat` raises."""
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
        """Embed texts, with the same failover as `chat`. Answers are not cached.

        Vectors of different models cannot be compared: name a `model` that only equal providers
        serve (an alias, for example), or configure providers of one embedding model only.

        Args:
            inputs: One text, or several. Instead of a text, its tokens by the model's tokenizer;
                only OpenAI, Azure and OpenAI-compatible servers accept tokens, and other providers
                are skipped.
            model: A provider's model, name or alias; None makes every provider a candidate.
            timeout: Seconds for everything; None takes the setting.
            origin: The caller, if several share this gateway.
            **params: Other OpenAI embedding parameters (`dimensions`, ...).

        Raises:
            GatewayError: As `chat`.
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
        return await self._pipeline.embed(request)

    def check(
        self, prompt_or_messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatRequest:
        """Check whether `chat` would accept a request, without calling a vendor.

        Args:
            prompt_or_messages: As for `chat`.
            **options: As for `chat`.

        Returns:
            The request, checked and copied; `batch` accepts it.

        Raises:
            RequestRejectedError: The request is at fault; the message says what to change.
            UnknownModelError: No provider serves its `model`.
        """
        return self._request_of(prompt_or_messages, options)

    def _request_of(
        self, prompt: Any, options: Mapping[str, Any], *, background: bool = False
    ) -> ChatRequest:
        params = dict(options)
        named = {name: params.pop(name) for name in _OPTIONS & params.keys()}
        return self._request(prompt, background=background, params=params, **named)

    def _request(
        self,
        prompt_or_messages: str | Sequence[Mapping[str, Any]],
        *,
        hedge: bool | None = None,
        origin: Origin | None = None,
        background: bool = False,
        **given: Any,
    ) -> ChatRequest:
        request = chat_request(
            prompt_or_messages, **given, origin=origin or APPLICATION, settings=self.settings
        )
        if hedge is not None and not isinstance(hedge, bool):
            raise RequestRejectedError("hedge must be True, False or None.")
        if hedge is not None or background:
            request = replace(request, hedge=hedge, background=background)
        self._roster.for_chat(request)
        return request

    # ── batches ──────────────────────────────────────────────────────────────────────────────

    async def batch(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = 16,
        on_progress: Callable[[BatchProgress], object] | None = None,
        fail_fast: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - what is done by then is returned
        outage_patience: float | None = 300.0,
        **shared: Any,
    ) -> BatchResult:
        """Send many requests and return every result, in the order of the input.

            result = await gateway.batch(["a", {"prompt": "b", "id": "second"}], temperature=0)
            for item in result.items:
                print(item.id, item.response.text if item.ok else item.error)

        A bad request becomes an item with an error; the others are not affected. In the queue
        these requests stand behind those of `chat` and `stream`. Cancelling this call cancels the
        requests in flight.

        Args:
            requests: Prompts, lists of messages, mappings with "prompt" or "messages" (and "id",
                and any option of `chat`) or `ChatRequest`s, in any mix. A list, a generator or an
                async iterator; it is read only as far as there is room.
            concurrency: Requests in flight at once, at most `max_concurrency`. "auto" follows the
                providers' adaptive limits.
            on_progress: Called with a `BatchProgress` after each request, on the event loop. An
                exception of it is logged and has no other effect.
            fail_fast: Whether the first error cancels the rest and is raised.
            timeout: Seconds for the whole batch; None sets no bound. Requests that are not done by
                then have a `DeadlineExceededError`. The rest of an input without a length is not
                read. (A request's own "timeout", or the setting, bounds each time it is asked.)
            outage_patience: Seconds for which requests wait during an outage: every circuit is
                open, every vendor throttles, or the network is down. Counted from the first
                request that finds no provider until a vendor answers one. Afterwards requests fail
                at once. 0 disables waiting, None waits without limit. `timeout` bounds it, too.
            **shared: Options of `chat` for every request; its own take precedence.

        Returns:
            Every item. If the input raises, the batch ends once the requests before it are done;
            see `BatchResult.input_error`.

        Raises:
            RequestRejectedError: An argument, or a shared option, is invalid.
            UnknownModelError: No provider serves the shared `model`.
            NoProvidersError: No provider is configured.
            Exception: With `fail_fast`, the first error, of a request or of the input.
        """
        options = self._batches.options(concurrency, on_progress, timeout, outage_patience, shared)
        return await engine.batch(self._batches.ask, requests, options, fail_fast=fail_fast)

    def as_completed(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = 16,
        on_progress: Callable[[BatchProgress], object] | None = None,
        timeout: float | None = None,
        outage_patience: float | None = 300.0,
        **shared: Any,
    ) -> AsyncGenerator[BatchItem, None]:
        """Send many requests and yield each result when it is done.

            async for item in gateway.as_completed(prompts):
                ...

        Nothing is sent before the first step. At most `concurrency` requests are in flight, or
        done and not taken yet, so a slow consumer slows the batch down. Leaving early (`break`,
        `aclose`, an exception, cancellation) cancels the requests in flight; after `break`, once
        the iterator is garbage-collected. Use `contextlib.aclosing` to cancel at once.

        Args:
            requests: As for `batch`, like the rest.
            concurrency: As for `batch`.
            on_progress: As for `batch`.
            timeout: As for `batch`; counted from the first step.
            outage_patience: As for `batch`.
            **shared: As for `batch`.

        Raises:
            RequestRejectedError: An argument, or a shared option, is invalid; raised here.
            UnknownModelError: No provider serves the shared `model`; raised here.
            NoProvidersError: No provider is configured; raised here.
            Exception: While iterating, at the end: what the input raised.
        """
        options = self._batches.options(concurrency, on_progress, timeout, outage_patience, shared)
        return engine.as_completed(self._batches.ask, requests, options)

    async def map(
        self,
        template: str,
        rows: Requests,
        *,
        concurrency: Concurrency = 16,
        on_progress: Callable[[BatchProgress], object] | None = None,
        fail_fast: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - as for `batch`
        outage_patience: float | None = 300.0,
        **shared: Any,
    ) -> BatchResult:
        """Run a `batch` with one prompt for each row.

            await gateway.map("Translate into French: {text}", [{"text": "cat", "id": 7}, ...])

        Args:
            template: `{field}` stands for that field of the row, `{{` and `}}` for braces.
            rows: Mappings; any input that `batch` takes. A row that lacks a field of the template,
                or has None for it, becomes an item with an error. Its "id", if any, becomes the
                item's.
            concurrency: As for `batch`, like the rest.
            on_progress: As for `batch`.
            fail_fast: As for `batch`.
            timeout: As for `batch`.
            outage_patience: As for `batch`.
            **shared: As for `batch`.

        Raises:
            GatewayError: As `batch`.
            RequestRejectedError: The template cannot work.
        """
        options = self._batches.options(concurrency, on_progress, timeout, outage_patience, shared)
        options = replace(options, read=row_reader(template))
        return await engine.batch(self._batches.ask, rows, options, fail_fast=fail_fast)

    def bind(self, **defaults: Any) -> Callable[..., Coroutine[Any, Any, ChatResponse]]:
        """Return `chat` with some options set, for `asyncio.gather` and `asyncio.TaskGroup`.

            ask = gateway.bind(model="fast", system="You are terse.", agent="market")
            replies = await asyncio.gather(*(ask(prompt) for prompt in prompts))

        At most `max_concurrency` bound calls of this gateway run at once; the others wait in
        order. Waiting calls take no place in the gateway's queue, and their `timeout` begins when
        they run. The event loop stays responsive however many calls are begun at once.

        Args:
            **defaults: Options of `chat`; those of a call take precedence.
        """

        async def ask(
            prompt_or_messages: str | Sequence[Mapping[str, Any]], **options: Any
        ) -> ChatResponse:
            self._enter_loop()
            async with self._bound_calls:
                return await self.chat(prompt_or_messages, **{**defaults, **options})

        return ask

    async def _chat_of_batch(self, prompt: Any, options: Mapping[str, Any]) -> ChatResponse:
        request = self._request_of(prompt, options, background=True)
        self._enter_loop()
        return await self._pipeline.chat(request)

    # ── providers ────────────────────────────────────────────────────────────────────────────

    @property
    def providers(self) -> tuple[ProviderStatus, ...]:
        """The current state of every provider, highest priority first."""
        return tuple(provider.status() for provider in self._roster)

    @property
    def event_loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop it belongs to; None before its first use."""
        return self._loop

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """Its hooks, as given."""
        return self._emitter.hooks

    def add_provider(self, config: LLMConfig) -> None:
        """Add a provider, for requests from now on.

        Raises:
            ConfigurationError: Another provider has its name.
        """
        self._roster.add(
            Provider(config, self.settings, self._clock, self._emitter, self._make_client)
        )
        self._on_loop(self._limiter.wake)  # waiting requests may use it

    def remove_provider(self, name: str) -> None:
        """Remove a provider. Its calls in flight continue.

        Raises:
            ConfigurationError: No provider has this name.
        """
        provider = self._roster.remove(name)
        provider.retired = True
        self._network.forget(name)
        self._on_loop(lambda: self._retire(provider))

    def force_circuit(self, name: str, state: CircuitOrder, *, by: str | None = None) -> None:
        """Force a provider's circuits open or closed, or end that.

        This applies to every operation. Calls in flight continue. Called from another thread than
        the gateway's, it takes effect in the next iteration of the gateway's event loop.

        Args:
            name: The provider's name.
            state: "open" stops all requests to it, also as last resort. "closed" allows requests
                however often it fails, and ends a cooldown and a disabled state. Both hold until
                the next call. "auto" lets the circuit decide again, closed at first; it has no
                effect if nothing is forced.
            by: The operator, for the event `operator.circuit_forced`.

        Raises:
            ConfigurationError: There is no such provider, or no such state.
        """
        if state not in get_args(CircuitOrder):
            raise ConfigurationError('state must be "open", "closed" or "auto".')
        provider = self._roster.named(name)

        def force() -> None:
            provider.force_circuit(state)
            self._emitter.emit(CircuitForced(name, state, by))

        def force_and_wake() -> None:
            force()
            self._limiter.wake()  # the candidates of waiting requests have changed

        if not self._on_loop(force_and_wake):
            force()

    def _on_loop(self, call: Callable[[], object]) -> bool:
        """Make a call in the gateway's event loop, at once or soon; return False without a loop."""
        if self._loop is None or self._loop.is_closed():
            return False
        if _running_loop() is self._loop:
            call()
        else:
            self._loop.call_soon_threadsafe(call)
        return True

    def _retire(self, provider: Provider) -> None:
        self._limiter.wake()  # requests that wait for this provider must choose another
        task = asyncio.create_task(provider.retire(), name=f"aigateway-retire-{provider.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def take_over(self, other: AsyncGateway) -> None:
        """Take over the state of another gateway, to replace it with other settings.

        Counters continue, and so does the cache if its settings are the same. A provider with the
        same configuration keeps its rates, and its circuit and cooldowns if the settings for them
        are the same; otherwise they start fresh. Latencies and adaptive limits are learned again.
        The other gateway may finish its requests meanwhile; their results count here.

        Call this before this gateway is used. Events of both go to this gateway's hooks.

        Args:
            other: The gateway to replace.

        Raises:
            GatewayError: This gateway is in use.
        """
        if self._loop is not None:
            raise GatewayError("Only a gateway that is not in use yet can take over another one.")
        self._recorder.counters = other._recorder.counters
        self._affinity = other._affinity
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
        """Load litellm and tenacity and open the clients now, not at the first request.

        Raises:
            GatewayError: The gateway is closed, or in use on another running event loop.
        """
        self._enter_loop()
        retry.load()
        for provider in self._roster:
            await provider.prepare()

    def get_metrics(self) -> dict[str, Any]:
        """Return counters and gauges as plain values fit for JSON.

        `total_requests`, `cache_hits`, `cache_hit_rate_percent` (two decimals), `failures`
        (requests that ended in an error), `providers_active` (can take a request now), and more.
        Under `providers`, for each one: attempts, failures by kind, circuit state, latency
        percentiles (seconds, last 512 answers), tokens, cost (US dollars).
        """
        return {
            **self._recorder.snapshot(),
            "providers_active": sum(p.status().active for p in self._roster),
            "in_flight": self._limiter.in_flight,
            "waiting": self._limiter.waiting,
            "cost_usd": round(sum(p.counters.cost_usd for p in self._roster), 10),
            "cache": self.cache.stats(),
            "sessions": self._affinity.stats(),
            "providers": {p.name: p.metrics() for p in self._roster},
        }

    # ── opening and closing ──────────────────────────────────────────────────────────────────

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
        """Cancel requests in flight and close every connection. Later calls raise."""
        self._closed = True
        if self._loop is None:
            return
        await self._pipeline.stop()
        for stream in list(self._streams):
            await stream.shut()
        await asyncio.gather(*self._retiring, *(provider.aclose() for provider in self._roster))

    def _enter_loop(self) -> None:
        """Bind to the running event loop, or move to it if the previous one is closed."""
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
            # Connections and tasks are gone with it; circuits, cache and counters continue.
            self._start_afresh()
            for provider in self._roster:
                provider.abandon()
        self._loop = loop
        if self._uses_litellm and any(self._roster):
            from aigateway.wires.loading import begin_loading  # noqa: PLC0415 - see below

            begin_loading()  # before the first request waits for it

    def _start_afresh(self) -> None:
        self._limiter = Limiter(self.settings.max_concurrency, self.settings.max_queue)
        self._bound_calls = PacedSemaphore(self.settings.max_concurrency)
        context = CallContext(
            self._clock,
            self._limiter,
            self._emitter,
            self._network,
            # A weak reference, so that the detector's timer does not keep the gateway alive.
            StallDetector(self._clock, _weakly(self._stalled)),
            self._affinity,
            lambda: self._roster,
        )
        parts = (self.settings, context, self._roster, self.cache, self._recorder)
        self._pipeline = Pipeline(*parts)
        if self._middleware:
            self._pipeline = MiddlewarePipeline(*parts, middleware=self._middleware)
        self._retiring: set[asyncio.Task[None]] = set()


_OPTIONS = frozenset(
    name
    for name, parameter in inspect.signature(AsyncGateway.chat).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
)
"""The named options of `chat`; its other options are OpenAI's parameters."""


def _without_stream_options(params: dict[str, Any]) -> dict[str, Any]:
    """Drop what callers of OpenAI's SDK add for a stream with usage, which is the default here."""
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
        # Not at the top: importing the package must not load the HTTP client.
        from aigateway.wires.client import ChangingKeyClient  # noqa: PLC0415
        from aigateway.wires.direct_lane import DirectClient  # noqa: PLC0415

        connect = partial(DirectClient, drop_unsupported_params=settings.drop_unsupported_params)
        if callable(config.api_key):
            return ChangingKeyClient(config, clock, connect)
        return connect(config, clock)

    return make
