"""`AsyncGateway`: the public class, its providers, and opening and closing.

It composes the other parts and has no policy of its own. `request/pipeline.py` answers a request.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import (
    AsyncGenerator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack, cast, get_args

from aigateway.batch import engine
from aigateway.batch.api import Batches
from aigateway.batch.items import row_reader
from aigateway.batch.pacing import PacedSemaphore
from aigateway.cache.memory import AnswerCache, Remembered
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import (
    ConfigurationError,
    GatewayError,
    MisuseError,
)
from aigateway.events import CircuitForced, CircuitOrder, Hook, LoopStalled
from aigateway.figures import GatewayMetrics
from aigateway.fleet.fleet import Fleet
from aigateway.messages import (
    APPLICATION,
    BatchItem,
    BatchResult,
    ChatRequest,
    ChatResponse,
    Chunk,
    EmbeddingResponse,
    NativeRequest,
)
from aigateway.options import (
    EMBED_OPTIONS,
    OWN_OPTIONS,
    B,
    BatchOptions,
    BoundChat,
    CallOptions,
    ChatOptions,
    EmbedOptions,
    M,
    Messages,
    Requests,
    ResponseFormat,
    Resume,
    SettingsOverrides,
    StreamOptions,
    ToolRunOptions,
    accepts,
    call_arguments,
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
from aigateway.request.middleware import Middleware, MiddlewarePipeline, load_middleware
from aigateway.request.pipeline import Pipeline
from aigateway.request.stream import ChatStream, StreamOutcome
from aigateway.request.tools import OnToolError, ToolRun, run_tools
from aigateway.request.validate import (
    chat_request,
    embedding_request,
    one_prompt,
    stream_arguments,
)
from aigateway.resilience import retry
from aigateway.resilience.concurrency import Limiter
from aigateway.resilience.health import ResponseTimes
from aigateway.resilience.local_faults import Reachability, StallDetector
from aigateway.routing.affinity import Affinity
from aigateway.routing.attempt import CallContext
from aigateway.routing.candidates import Roster
from aigateway.routing.provider import OPERATIONS, Provider, ProviderStatus
from aigateway.settings import GatewaySettings, LLMConfig, load_providers
from aigateway.settings.provider import with_distinct_names
from aigateway.telemetry.recorder import Emitter, RequestRecorder
from aigateway.tokens import counted_tokens
from aigateway.wires.client import VendorClient, VendorClientFactory
from aigateway.wires.pricing import max_output_tokens, price_of

__all__ = ["AsyncGateway"]


_BYTES_PER_TOKEN = 4
"""OpenAI's rule of thumb."""


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
        **overrides: Any field of `GatewaySettings`; takes precedence over `settings`. See
            `SettingsOverrides`.

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
        **overrides: Unpack[SettingsOverrides],
    ) -> None:
        self.settings = _settings(settings, overrides)
        self._fleet = Fleet(self.settings, clock)
        self._middleware = load_middleware(
            self.settings.middleware if middleware is None else middleware
        )
        self._clock = clock
        self._emitter = Emitter(hooks)
        self._make_client = vendor or _vendor_clients(self.settings)
        self._uses_litellm = vendor is None
        self._recorder = RequestRecorder(clock, self._emitter)
        self._roster = Roster()
        self._network = Reachability(clock)
        self._affinity = Affinity(clock)
        self._streams: weakref.WeakSet[ChatStream[Any]] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = self._joined = False
        self.cache = AnswerCache(
            max_entries=self.settings.cache_max_entries,
            max_bytes=self.settings.cache_max_memory_bytes,
            ttl_seconds=self.settings.cache_ttl_seconds,
            stale_seconds=self.settings.stale_if_error_seconds,
            clock=clock,
        )
        self.cache.put_over(self._fleet.answers)
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
        configs = (
            load_providers() if providers is None else with_distinct_names(_checked(providers))
        )
        for config in configs:
            self.add_provider(config)
        if providers is None:
            self._roster.serving(None)  # raises if none is configured
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a process without a loop may still fork
            return
        self._begin_loading()

    def __repr__(self) -> str:
        names = [provider.name for provider in self._roster]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        closed = " (closed)" if self._closed else ""
        return f"<AsyncGateway over {', '.join(names[:3]) or 'no provider'}{more}{closed}>"

    # ── requests ─────────────────────────────────────────────────────────────────────────────

    @accepts(ChatOptions, cache=True)
    async def chat(
        self,
        prompt_or_messages: str | Messages | None = None,
        *,
        prompt: str | None = None,
        messages: Messages | None = None,
        response_format: ResponseFormat[M] = None,
        **options: Unpack[ChatOptions],
    ) -> ChatResponse[M]:
        """Get an answer from the best provider that answers, or from the cache.

        Args:
            prompt_or_messages: A prompt, or OpenAI chat messages.
            prompt: A prompt. One of the three is needed.
            messages: OpenAI chat messages.
            response_format: A pydantic model class; the answer has an instance of it as `.parsed`.
                Or OpenAI's `response_format`, passed on unchanged. Or a JSON schema
                (`{"type": "object", ...}`), sent in OpenAI's form.
            **options: See `ChatOptions`.

        Returns:
            The answer, with its provider, usage and price.

        Raises:
            RequestRejectedError: The request is at fault; the message says what to change.
            UnknownModelError: No provider serves `model`.
            AllProvidersFailedError: No provider could answer; `causes` has one entry for each.
            DeadlineExceededError: `timeout` passed first.
            OverloadedError: Too many requests are waiting already.
        """
        request = self._request(prompt_or_messages, options, prompt, messages, response_format)
        if self._closed or asyncio.get_running_loop() is not self._loop:
            self._enter_loop()
        return await self._pipeline.chat(request)

    @accepts(StreamOptions, cache=True)
    def stream(
        self,
        prompt_or_messages: str | Messages | None = None,
        *,
        prompt: str | None = None,
        messages: Messages | None = None,
        response_format: ResponseFormat[M] = None,
        **options: Unpack[StreamOptions],
    ) -> ChatStream[M]:
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
            prompt: As for `chat`.
            messages: As for `chat`.
            response_format: As for `chat`; `response.parsed` has the instance.
            **options: See `StreamOptions`. A cached answer is streamed at once.

        Raises:
            RequestRejectedError: The request is at fault; raised here, before anything is sent.
            UnknownModelError: No provider serves `model`; raised here.
            StreamInterruptedError: While iterating: the stream broke after its first content.
            GatewayError: While iterating, before the first content: as `chat`.
        """
        params, resume = stream_arguments(options)
        request = self._request(prompt_or_messages, params, prompt, messages, response_format)
        return self._stream(request, resume)

    @accepts(CallOptions, cache=True)
    async def call_llm(
        self,
        system_prompt: str | None = None,
        user_prompt: str | None = None,
        temperature: float | None = None,
        *,
        system: str | None = None,
        user: str | None = None,
        **options: Unpack[CallOptions],
    ) -> str:
        """Call `chat`, and return only the text. Raises what `chat` raises.

        Args:
            system_prompt: A system message; None sends none.
            user_prompt: The prompt.
            temperature: From 0 to 2; None takes the vendor's default.
            system: Another name of `system_prompt`.
            user: Another name of `user_prompt`. Beside it, OpenAI's parameter `user`.
            **options: See `CallOptions`.
        """
        arguments = call_arguments(system_prompt, user_prompt, system, user, options)
        response: ChatResponse = await self.chat(temperature=temperature, **arguments)
        return response.text

    @accepts(EmbedOptions, cache=False)
    async def embed(
        self,
        inputs: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        **options: Unpack[EmbedOptions],
    ) -> EmbeddingResponse:
        """Embed texts, with the same failover as `chat`. Answers are cached with `cache=True`.

        Vectors of different models cannot be compared: name a `model` that only equal providers
        serve (an alias, for example), or configure providers of one embedding model only. Cached
        vectors count only while a provider of the request would make the same. Equal requests in
        flight are not joined: each calls a provider.

        Args:
            inputs: One text, or several. Instead of a text, its tokens by the model's tokenizer;
                only OpenAI, Azure and OpenAI-compatible servers accept tokens, and other providers
                are skipped.
            **options: See `EmbedOptions`.

        Raises:
            GatewayError: As `chat`.
        """
        params: dict[str, Any] = dict(options)
        named = {name: params.pop(name) for name in EMBED_OPTIONS & params.keys()}
        origin = params.pop("origin", None) or APPLICATION
        request = embedding_request(
            inputs, **named, origin=origin, params=params, settings=self.settings
        )
        self._enter_loop()
        self._roster.candidates(request.model, "embeddings")
        return await self._pipeline.embed(request)

    @accepts(ChatOptions, cache=True)
    def check(
        self,
        prompt_or_messages: str | Messages | None = None,
        *,
        prompt: str | None = None,
        messages: Messages | None = None,
        response_format: ResponseFormat[Any] = None,
        **options: Unpack[ChatOptions],
    ) -> ChatRequest:
        """Check whether `chat` would accept a request, without calling a vendor.

        Args:
            prompt_or_messages: As for `chat`.
            prompt: As for `chat`.
            messages: As for `chat`.
            response_format: As for `chat`.
            **options: As for `chat`.

        Returns:
            The request, checked and copied; `batch` accepts it.

        Raises:
            RequestRejectedError: The request is at fault; the message says what to change.
            UnknownModelError: No provider serves its `model`.
        """
        return self._request(prompt_or_messages, options, prompt, messages, response_format)

    @accepts(ToolRunOptions, cache=False)
    async def run_tools(
        self,
        prompt_or_messages: str | Messages | None = None,
        *,
        tools: Sequence[Callable[..., Any]],
        prompt: str | None = None,
        messages: Messages | None = None,
        max_rounds: int = 10,
        timeout: float | None = None,  # noqa: ASYNC109 - it spans all rounds
        on_error: OnToolError = "return",
        response_format: ResponseFormat[M] = None,
        **options: Unpack[ToolRunOptions],
    ) -> ToolRun[M]:
        """Let the model call Python functions until it answers.

            async def weather(city: str) -> str:
                return await forecast(city)

            run = await gateway.run_tools("What should I wear in Oslo?", tools=[weather])
            print(run.text, run.cost_usd)

        The model sees each function's name, docstring and typed parameters. The calls of one round
        run at once, those of synchronous functions in threads. Every round is a `chat` with its own
        failover, and all have one session, so that they stay at one provider while it is well.

        Args:
            prompt_or_messages: As for `chat`. A conversation that ends with calls of tools goes on
                with those that have no result yet.
            tools: Functions with typed parameters. They return, and do not yield.
            prompt: As for `chat`.
            messages: As for `chat`.
            max_rounds: How often a model is asked at most.
            timeout: Seconds for all rounds and functions together; None takes the setting for each
                round, and does not bound functions. A synchronous function goes on in its thread.
            on_error: What an exception of a function does. "return" sends its type and its text to
                the model, and so to the vendor; they also stand in `messages` and in `to_dict()`.
                So keep keys and other secrets out of the texts of exceptions. "raise" ends the run
                with it, once the other calls of the round have ended. Calls that the model has to
                correct always go back to it.
            response_format: As for `chat`; the last answer has an instance as `.parsed`.
            **options: See `ToolRunOptions`. Nothing is cached by default: each run calls the model.

        Raises:
            ToolRoundsExceededError: The model still calls tools after `max_rounds`.
            DeadlineExceededError: The time was over.
            RequestRejectedError: The request, or one of `tools`, is at fault.
            GatewayError: As `chat`. Every exception, also a function's own and a cancellation, has
                the conversation so far as `tool_run`, with the results of all calls that had ended.
        """
        if prompt_or_messages is None or prompt is not None or messages is not None:
            prompt_or_messages = one_prompt(prompt_or_messages, prompt, messages)
        return await run_tools(
            partial(self.chat, response_format=response_format),
            self._clock,
            prompt_or_messages,
            tools,
            max_rounds=max_rounds,
            timeout=timeout,
            on_error=on_error,
            options={"cache": False, **options},
        )

    def _request(
        self,
        content: Any,
        options: Mapping[str, Any],
        prompt: Any = None,
        messages: Any = None,
        response_format: Any = None,
        *,
        native: NativeRequest | None = None,
        background: bool = False,
        routed: bool = True,
    ) -> ChatRequest:
        if content is None or prompt is not None or messages is not None:
            content = one_prompt(content, prompt, messages)
        params: dict[str, Any] = {}
        named = options
        if not options.keys() <= OWN_OPTIONS:
            named = {}
            for name, value in options.items():
                (named if name in OWN_OPTIONS else params)[name] = value
        if response_format is not None:
            params["response_format"] = response_format
        request = chat_request(
            content,
            native=native,
            background=background,
            params=params,
            settings=self.settings,
            **named,
        )
        if routed:
            self._roster.for_chat(request)
        return request

    def _stream(self, request: ChatRequest, resume: Resume | None = None) -> ChatStream[Any]:
        outcome = StreamOutcome(self._clock, request.request_id)

        def begin() -> AsyncGenerator[Chunk, None]:
            self._enter_loop()
            return self._pipeline.stream(request, resume, outcome)

        stream: ChatStream[Any] = ChatStream(begin, outcome)
        self._streams.add(stream)
        return stream

    # ── requests in other protocols ──────────────────────────────────────────────────────────

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
        if isinstance(body, ReadRequest):
            read = body
        else:
            read = protocol.read_copy(body, headers or {}, self.settings.max_prompt_bytes)
        named: dict[str, Any] = {**read.options, **options}
        if named.get("model") == "auto" and not any("auto" in p.answers_to for p in self._roster):
            named["model"] = None  # sent by clients that must name a model
        return read, self._request(read.messages, named, native=read.native)

    # ── batches ──────────────────────────────────────────────────────────────────────────────

    @accepts(BatchOptions, concurrency=16, cache=True, outage_patience=300.0)
    async def batch(
        self,
        requests: Requests,
        *,
        fail_fast: bool = False,
        response_format: ResponseFormat[B] = None,
        **options: Unpack[BatchOptions],
    ) -> BatchResult[B]:
        """Send many requests and return every result, in the order of the input.

            result = await gateway.batch(["a", {"prompt": "b", "id": "second"}], temperature=0)
            for item in result.items:
                print(item.id, item.response.text if item.error is None else item.error)

        A bad request becomes an item with an error; the others are not affected. Identical requests
        are asked once, and share the answer as if it were cached, also if the cache has no room for
        all answers. In the queue these requests stand behind those of `chat` and `stream`.
        Cancelling this call cancels the requests in flight.

        Args:
            requests: Prompts, lists of messages, mappings with "prompt" or "messages" (and "id",
                and any option of `chat`) or `ChatRequest`s, in any mix. A list, a generator or an
                async iterator; it is read only as far as there is room. Or a data frame (pandas,
                polars, pyarrow), whose columns are the fields of mappings; one column are prompts.
            fail_fast: Whether the first error cancels the rest and is raised.
            response_format: As for `chat`, for every request.
            **options: See `BatchOptions`. Those of `chat` hold for every request; its own take
                precedence.

        Returns:
            Every item. If the input raises, the batch ends once the requests before it are done;
            see `BatchResult.input_error`.

        Raises:
            RequestRejectedError: An argument, or a shared option, is invalid.
            UnknownModelError: No provider serves the shared `model`.
            NoProvidersError: No provider is configured.
            Exception: With `fail_fast`, the first error, of a request or of the input.
        """
        run = self._batches.run(response_format, options)
        ask = partial(self._chat_of_batch, recalled={})
        return await engine.batch(ask, requests, run, fail_fast=fail_fast)

    @accepts(BatchOptions, concurrency=16, cache=True, outage_patience=300.0)
    def as_completed(
        self,
        requests: Requests,
        *,
        response_format: ResponseFormat[B] = None,
        **options: Unpack[BatchOptions],
    ) -> AsyncGenerator[BatchItem[B], None]:
        """Send many requests and yield each result when it is done.

            async for item in gateway.as_completed(prompts):
                ...

        Nothing is sent before the first step. At most `concurrency` requests are in flight, or
        done and not taken yet, so a slow consumer slows the batch down. Leaving early (`break`,
        `aclose`, an exception, cancellation) cancels the requests in flight; after `break`, once
        the iterator is garbage-collected. Use `contextlib.aclosing` to cancel at once.

        Args:
            requests: As for `batch`.
            response_format: As for `batch`.
            **options: As for `batch`; `timeout` is counted from the first step.

        Raises:
            RequestRejectedError: An argument, or a shared option, is invalid; raised here.
            UnknownModelError: No provider serves the shared `model`; raised here.
            NoProvidersError: No provider is configured; raised here.
            Exception: While iterating, at the end: what the input raised.
        """
        return engine.as_completed(
            self._batches.ask, requests, self._batches.run(response_format, options)
        )

    @accepts(BatchOptions, concurrency=16, cache=True, outage_patience=300.0)
    async def map(
        self,
        template: str,
        rows: Requests,
        *,
        fail_fast: bool = False,
        response_format: ResponseFormat[B] = None,
        **options: Unpack[BatchOptions],
    ) -> BatchResult[B]:
        """Run a `batch` with one prompt for each row.

            await gateway.map("Translate into French: {text}", [{"text": "cat", "id": 7}, ...])

        Args:
            template: `{field}` stands for that field of the row, `{{` and `}}` for braces.
            rows: Mappings, or a data frame; any input that `batch` takes. A row that lacks a field
                of the template, or has None for it, becomes an item with an error. Its "id", if
                any, becomes the item's.
            fail_fast: As for `batch`.
            response_format: As for `batch`.
            **options: As for `batch`.

        Raises:
            GatewayError: As `batch`.
            RequestRejectedError: The template cannot work.
        """
        run = replace(self._batches.run(response_format, options), read=row_reader(template))
        ask = partial(self._chat_of_batch, recalled={})
        return await engine.batch(ask, rows, run, fail_fast=fail_fast)

    @accepts(ChatOptions, cache=True)
    def bind(
        self, *, response_format: ResponseFormat[M] = None, **defaults: Unpack[ChatOptions]
    ) -> BoundChat[M]:
        """Return `chat` with some options set, for `asyncio.gather` and `asyncio.TaskGroup`.

            ask = gateway.bind(model="fast", system="You are terse.", agent="market")
            replies = await asyncio.gather(*(ask(prompt) for prompt in prompts))

        At most `max_concurrency` bound calls of this gateway run at once; the others wait in
        order. Waiting calls take no place in the gateway's queue, and their `timeout` begins when
        they run. The event loop stays responsive however many calls are begun at once.

        Args:
            response_format: As for `chat`.
            **defaults: Options of `chat`; those of a call take precedence.

        Raises:
            RequestRejectedError: An option is unknown or cannot work.
        """
        given: dict[str, Any] = {**defaults, "response_format": response_format}
        # The model may be added later, so it is looked for when a call is made.
        prompts = {"prompt", "messages"}
        self._request("any", {n: v for n, v in given.items() if n not in prompts}, routed=False)

        async def ask(
            prompt_or_messages: str | Messages | None = None, **options: Any
        ) -> ChatResponse[Any]:
            self._enter_loop()
            async with self._bound_calls:
                return await self.chat(prompt_or_messages, **{**given, **options})

        named = [name for name, value in given.items() if value is not None]
        ask.__qualname__ = f"AsyncGateway.bind({', '.join(named)})"  # shown by its repr
        return cast("BoundChat[M]", ask)

    async def _chat_of_batch(
        self,
        prompt: Any,
        options: Mapping[str, Any],
        recalled: dict[str, Remembered] | None = None,
    ) -> ChatResponse[Any]:
        request = self._request(prompt, options, background=True)
        self._enter_loop()
        return await self._pipeline.chat(request, None, recalled)

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

    def add_provider(self, config: LLMConfig) -> str:
        """Add a provider, for requests from now on.

            name = gateway.add_provider(LLMConfig("openai", "gpt-4o-mini", api_key=second_key))
            gateway.remove_provider(name)

        Returns:
            Its name: that of `config`. If that is a default, and its vendor and model are there
            already with another key, address or options, it is `vendor/model#2`, `#3`, ...

        Raises:
            ConfigurationError: Another provider has its name, or its vendor, model, key, address
                and options.
        """
        (config,) = with_distinct_names((config,), among=[p.config for p in self._roster])
        provider = Provider(config, self.settings, self._clock, self._emitter, self._make_client)
        provider.share_rates(self._fleet.leases)
        self._roster.add(provider)
        self._on_loop(self._limiter.wake)  # waiting requests may use it
        self._on_loop(self._share_circuits)
        return config.name

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

    def get_metrics(self) -> GatewayMetrics:
        """Return counters and gauges as plain values fit for JSON.

        `total_requests`, `cache_hits`, `cache_hit_rate_percent` (two decimals), `failures`
        (requests that ended in an error), `providers_active` (can take a request now), and more.
        Under `providers`, for each one: attempts, failures by kind, circuit state, latency
        percentiles (seconds, last 512 answers), tokens, cost (US dollars). Under `fleet`, with a
        `redis_url`: whether Redis is `available`, and how many `members` (processes) share it.
        """
        fleet = self._fleet.metrics()
        metrics: GatewayMetrics = {
            **self._recorder.snapshot(),  # type: ignore[typeddict-item]  # it has no "fleet"
            "providers_active": sum(p.status().active for p in self._roster),
            "in_flight": self._limiter.in_flight,
            "waiting": self._limiter.waiting,
            "cost_usd": round(sum(p.counters.cost_usd for p in self._roster), 10),
            "cache": self.cache.stats(),
            "sessions": self._affinity.stats(),
            "providers": {p.name: p.metrics() for p in self._roster},
        }
        if fleet is not None:
            metrics["fleet"] = fleet
        return metrics

    # ── for the service ──────────────────────────────────────────────────────────────────────

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
            MisuseError: This gateway is in use.
        """
        if self._loop is not None:
            raise MisuseError("Only a gateway that is not in use yet can take over another one.")
        self._recorder.counters = other._recorder.counters
        self._affinity = other._affinity
        if self._same_cache(other.settings):
            self.cache = other.cache
        same = other._fleet.same_as(self.settings)
        self.use_fleet(other._fleet if same else self._fleet)  # over the cache, which may be new
        before = {provider.name: provider for provider in other._roster}
        self._rename_as([provider.config for provider in other._roster])
        for provider in self._roster:
            old = before.get(provider.name)
            if old is not None and old.config == provider.config:
                provider.take_over(old)
        self._start_afresh()

    def _same_cache(self, settings: GatewaySettings) -> bool:
        names = (
            *("cache_max_entries", "cache_max_memory_bytes"),
            *("cache_ttl_seconds", "stale_if_error_seconds"),
        )
        return all(getattr(self.settings, name) == getattr(settings, name) for name in names)

    def _rename_as(self, before: Sequence[LLMConfig]) -> None:
        configs = [provider.config for provider in self._roster]
        named = with_distinct_names(configs, before=before)
        if named != tuple(configs):
            for config in configs:
                self._roster.remove(config.name)
            for config in named:
                self.add_provider(config)

    @property
    def fleet(self) -> Fleet:
        """What it shares with other processes; for the service."""
        return self._fleet

    def use_fleet(self, fleet: Fleet) -> None:
        """Share through this, before the gateway is used; for the service."""
        self._fleet = fleet
        for provider in self._roster:
            provider.share_rates(fleet.leases)
        self.cache.put_over(self._fleet.answers)

    def serves(self, model: str) -> bool:
        """Return whether a provider has this model, name or alias."""
        return model in self._roster.names

    def likely_cost(
        self, model: str | None, prompt_bytes: int, answer_tokens: float
    ) -> float | None:
        """Estimate the cost of one call at the most expensive provider of a model; for the service.

        Args:
            model: Its name or alias; None is any.
            prompt_bytes: The length of the request.
            answer_tokens: Tokens of the answer; at most those that the model can write.

        Returns:
            US dollars; None if no price is known (yet).
        """
        try:
            configs = [provider.config for provider in self._roster.serving(model)]
        except GatewayError:  # the call says what is wrong
            return None
        return max(
            (
                prompt_bytes / _BYTES_PER_TOKEN * price.input
                + min(answer_tokens, max_output_tokens(config) or math.inf) * price.output
                for config in configs
                if (price := price_of(config)) is not None
            ),
            default=None,
        )

    def usual_latencies(self) -> dict[tuple[str, ...], tuple[float, float]]:
        """Return the usual latency and the 95th percentile of each kind of answer; for the service.

        They are named by provider, model, operation, and "answers" or "first_contents".
        """
        return {
            name: (times.usual, times.p95)
            for name, times in self._response_times()
            if times.usual is not None and times.p95 is not None
        }

    def restore_latencies(self, known: Mapping[tuple[str, ...], tuple[float, float]]) -> None:
        """Begin with the latencies that an earlier process has measured; for the service."""
        for name, times in self._response_times():
            if name in known:
                times.restore(*known[name])

    def _response_times(self) -> Iterator[tuple[tuple[str, ...], ResponseTimes]]:
        for provider in self._roster:
            for operation, guards in zip(OPERATIONS, provider.all_guards, strict=True):
                place = (provider.name, provider.model, operation)
                yield (*place, "answers"), guards.answers
                yield (*place, "first_contents"), guards.first_contents

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

    async def warmup(self) -> None:
        """Load litellm and tenacity and open the clients now, not at the first request.

        Raises:
            MisuseError: The gateway is closed, or in use on another running event loop.
        """
        self._enter_loop()
        retry.load()
        for provider in self._roster:
            await provider.prepare()

    async def aclose(self) -> None:
        """Cancel requests in flight and close every connection. Later calls raise."""
        self._closed = True
        if self._loop is None:
            return
        await self._pipeline.stop()
        for stream in list(self._streams):
            await stream.shut()
        await asyncio.gather(*self._retiring, *(provider.aclose() for provider in self._roster))
        if self._joined:  # not for a second `aclose`
            self._joined = False
            await self._fleet.leave()

    def _enter_loop(self) -> None:
        """Bind to the running event loop, or move to it if the previous one is closed."""
        if self._closed:
            raise MisuseError("This gateway is closed; make another one.")
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise MisuseError(
                    "This gateway is in use on another event loop. Make one gateway for each loop"
                    " (connections belong to the loop that opened them)."
                )
            # Connections and tasks are gone with it; circuits, cache and counters continue.
            self._start_afresh()
            for provider in self._roster:
                provider.abandon()
            self._fleet.abandon()
        self._loop, self._joined = loop, True
        self._fleet.join(self._emitter.emit)
        self._share_circuits()
        self._begin_loading()

    def _begin_loading(self) -> None:
        """Start importing litellm, before the first request waits for it."""
        if self._uses_litellm and any(self._roster):
            from aigateway.wires.loading import (  # noqa: PLC0415 - as in `_vendor_clients`
                begin_loading,
            )

            begin_loading(freeze=self.settings.freeze_gc)

    def _share_circuits(self) -> None:
        votes = self._fleet.votes
        for provider in self._roster:
            if votes is not None:
                provider.share(votes, partial(self._context.is_sound, provider.name))
            else:
                for guards in provider.all_guards:
                    guards.unshare()

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
        self._context = context
        parts = (self.settings, context, self._roster, self.cache, self._recorder)
        self._pipeline = Pipeline(*parts)
        if self._middleware:
            self._pipeline = MiddlewarePipeline(*parts, middleware=self._middleware)
        self._retiring: set[asyncio.Task[None]] = set()

    def _stalled(self, seconds: float) -> None:
        self._emitter.emit(LoopStalled(round(seconds, 3), self._limiter.in_flight))


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


def _settings(given: GatewaySettings | None, overrides: Mapping[str, Any]) -> GatewaySettings:
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


def _vendor_clients(settings: GatewaySettings) -> VendorClientFactory:
    def make(config: LLMConfig, clock: Clock) -> VendorClient:
        # Not at the top: importing the package must not load the HTTP client.
        from aigateway.wires.client import ChangingKeyClient  # noqa: PLC0415
        from aigateway.wires.direct_lane import DirectClient  # noqa: PLC0415

        connect = partial(DirectClient, drop_unsupported_params=settings.drop_unsupported_params)
        if callable(config.api_key):
            return ChangingKeyClient(config, clock, connect)
        return connect(config, clock)

    return make
