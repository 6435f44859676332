"""The way of a request, top to bottom: cache, coalesce, failover, answer.

    cache hit in memory     -> answer
    same request in flight  -> wait for that one
    cache hit below memory  -> answer; or wait for another process that is getting it
    else                    -> ask the providers; settle, price, remember, answer
    no provider answered    -> a stale answer, if that is allowed

No policy is here: `routing/` chooses the provider, `resilience/` decides whether it may be called,
`cache/` keeps answers, `wires/` calls the vendor.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Self

from aigateway.cache.key import LONG, cache_key, configuration_digest, embedding_key
from aigateway.cache.memory import AnswerCache, Remembered, ttl_for, worth_keeping
from aigateway.errors import (
    AllProvidersFailedError,
    DeadlineExceededError,
    RequestRejectedError,
)
from aigateway.messages import (
    Attempt,
    ChatRequest,
    ChatResponse,
    Chunk,
    Completion,
    EmbeddingRequest,
    EmbeddingResponse,
    Opening,
    asks_to_think,
)
from aigateway.options import Resume
from aigateway.request.coalesce import Coalescer
from aigateway.request.stream import StreamOutcome, endings, pieces
from aigateway.routing.attempt import CallContext
from aigateway.routing.candidates import RequestState, Roster
from aigateway.routing.failover import Failovers, Served
from aigateway.routing.stream import StreamRun
from aigateway.routing.work import ChatOverStreamWork, ChatWork, EmbeddingWork
from aigateway.settings import GatewaySettings, LLMConfig
from aigateway.structured import fits, parse
from aigateway.telemetry.recorder import RequestRecord, RequestRecorder
from aigateway.tokens import estimated_tokens
from aigateway.wires.parameters import HINTS

__all__ = ["ClosedByUs", "Pipeline"]

_TOOLS = frozenset({"functions", "tools"})

Answer = Served[Completion] | Remembered
"""What answers a request: a provider now, or the cache."""

_PIECES_AT_ONCE = 256
"""Pieces of a remembered answer after which the event loop runs other tasks."""


class Pipeline:
    """Answers the requests of one gateway, on one event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        context: CallContext,
        roster: Roster,
        cache: AnswerCache,
        recorder: RequestRecorder,
    ) -> None:
        self._settings = settings
        self._clock = context.clock
        self._emitter = context.emitter
        self._roster = roster
        self._cache = cache
        self._recorder = recorder
        self._failovers = Failovers(settings, context)
        self._coalescer: Coalescer[Answer] = Coalescer()
        self._digests: dict[str, tuple[LLMConfig, str]] = {}
        self._logs_content = settings.log_prompts

    async def chat(
        self,
        request: ChatRequest,
        within: AbstractContextManager[RequestRecord] | None = None,
        recalled: dict[str, Remembered] | None = None,
    ) -> ChatResponse:
        """Answer one request.

        Args:
            request: The request.
            within: Its record, if it has one already.
            recalled: Answers by cache key for as long as the caller keeps them, whatever the cache
                has room for. An answer that may be cached, or was, is put into it.
        """
        with within or RequestRecord(self._recorder, request) as record:
            key = self._key(request) if request.size <= LONG else await self._long_key(request)
            if key is not None and request.cache is True:
                remembered, hit = self._cache.lookup(key), None
                if remembered is not None:
                    hit = self._hit(request, record, remembered)
                if hit is None and recalled and key in recalled:
                    hit = self._hit(request, record, recalled[key])
                if hit is not None:
                    if recalled is not None:
                        recalled[key] = Remembered(hit.completion, hit.provider)
                    return hit
            may_think = request.params or request.native
            usual = self._seconds(request) if may_think else self._settings.timeout
            deadline = record.began + (request.timeout or usual)
            if key is None:
                own = await self._call_providers(request, record, deadline)
                return self._answered(request, record, own)
            try:
                served, joined = await self._coalesced(key, request, record, deadline)
            except (AllProvidersFailedError, DeadlineExceededError):
                stale = await self._stale(key, request, record)
                if stale is None:
                    raise
                return stale
            response = self._answered(request, record, served, joined=joined)
            if recalled is not None and self._may_remember(request, response.completion):
                recalled[key] = Remembered(response.completion, response.provider)
            return response

    async def embed(
        self,
        request: EmbeddingRequest,
        within: AbstractContextManager[RequestRecord] | None = None,
    ) -> EmbeddingResponse:
        """Embed texts, or take them from the cache. `within` is as for `chat`."""
        with within or RequestRecord(self._recorder, request) as record:
            key = await self._embedding_key(request)
            if key is not None and request.cache is True:
                found = self._cache.lookup_vectors(key)
                if found is not None and self._accepts(request, *found[1:]):
                    answer, provider, _ = found
                    record.remembered(provider, answer, stale=False)
                    latency = self._clock.now() - record.began
                    return EmbeddingResponse(
                        answer, provider, (), latency, request.request_id, cached=True
                    )
            deadline = record.began + self._seconds(request)
            state = RequestState(
                request,
                "embeddings",
                self._roster,
                record.began,
                deadline,
                record=record.follow(),
            )
            served = await self._failovers.run(state, EmbeddingWork(request))
            answer, provider, attempts = served.answer, served.provider, served.attempts
            latency = self._clock.now() - record.began
            record.served(provider, answer, attempts=len(attempts))
            if key is not None:
                made_by = self._digest(served.attempt.provider.config)
                ttl = self._ttl(request)
                self._cache.remember_vectors(key, answer, provider, ttl, made_by=made_by)
            loading = served.loading_seconds
            return EmbeddingResponse(
                answer, provider, attempts, latency, request.request_id, loading
            )

    async def stream(
        self,
        request: ChatRequest,
        resume: Resume | None,
        outcome: StreamOutcome,
        within: AbstractContextManager[RequestRecord] | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of one stream; after the content, `outcome` has the response.

        Streams are not coalesced: each caller reads at its own pace. `within` is as for `chat`.
        """
        with within or RequestRecord(self._recorder, request, streamed=True) as record:
            key = await self._long_key(request)
            response = self._from_cache(key, request, record, streamed=True)
            response = response or await self._from_below(key, request, record, streamed=True)
            if response is None:
                run = self._stream_run(request, resume, record)
                try:
                    async with contextlib.aclosing(run.chunks()) as chunks:
                        async for chunk in ClosedByUs(chunks):
                            outcome.opening, outcome.has_more = run.opening, run.has_more
                            yield chunk
                    response = self._streamed(key, request, record, run)
                except (AllProvidersFailedError, DeadlineExceededError):
                    response = await self._stale(key, request, record, streamed=True)
                    if response is None:
                        raise
        outcome.response = response
        if outcome.opening is None:
            outcome.opening = _opening(response)
        if response.cached:
            for count, chunk in enumerate(pieces(response.completion), 1):
                yield chunk
                if count % _PIECES_AT_ONCE == 0:
                    await asyncio.sleep(0)
        for chunk in endings(response.completion):
            yield chunk

    async def stop(self) -> None:
        """End the requests in progress."""
        await self._failovers.stop()
        await self._coalescer.aclose()

    # ── the cache ────────────────────────────────────────────────────────────────────────────

    def _key(self, request: ChatRequest) -> str | None:
        """Return the cache key; None without cache and coalescing."""
        if not self._settings.cache_enabled or request.cache is False:
            return None
        if request.native is not None and request.native.only is not None:
            return None  # the vendor keeps or does something at each request
        return cache_key(request, partition=request.partition)

    async def _long_key(self, request: ChatRequest) -> str | None:
        """Return the cache key likewise; that of a long request is made in a thread."""
        if request.size > LONG:
            return await asyncio.to_thread(self._key, request)
        return self._key(request)

    def _from_cache(
        self,
        key: str | None,
        request: ChatRequest,
        record: RequestRecord,
        *,
        stale: bool = False,
        streamed: bool = False,
    ) -> ChatResponse | None:
        """Return the answer in memory, if there is one for this request."""
        if key is None or request.cache is not True:
            return None
        remembered = self._cache.lookup_stale(key) if stale else self._cache.lookup(key)
        if remembered is None:
            return None
        return self._hit(request, record, remembered, stale=stale, streamed=streamed)

    async def _from_below(
        self,
        key: str | None,
        request: ChatRequest,
        record: RequestRecord,
        *,
        stale: bool = False,
        streamed: bool = False,
    ) -> ChatResponse | None:
        """Return the answer of the cache's second level likewise."""
        if key is None or request.cache is not True or self._cache.second is None:
            return None
        read = self._cache.fetch_stale if stale else self._cache.fetch
        remembered = await read(key, partial(self._accepts, request))
        if remembered is None:
            return None
        return self._hit(request, record, remembered, stale=stale, streamed=streamed)

    async def _stale(
        self,
        key: str | None,
        request: ChatRequest,
        record: RequestRecord,
        *,
        streamed: bool = False,
    ) -> ChatResponse | None:
        """Return an expired answer, in memory or below."""
        in_memory = self._from_cache(key, request, record, stale=True, streamed=streamed)
        return in_memory or await self._from_below(
            key, request, record, stale=True, streamed=streamed
        )

    def _hit(
        self,
        request: ChatRequest,
        record: RequestRecord,
        remembered: Remembered,
        *,
        stale: bool = False,
        streamed: bool = False,
    ) -> ChatResponse | None:
        """Return a remembered answer, unless it is none for this request.

        It must parse as `response_model`: two models may share a schema and validate differently.
        A stream is written from what a chat can say, so it needs an answer that is no more.
        """
        if streamed and remembered.completion.native is not None:
            return None
        parsed = None
        if request.response_model is not None:
            try:
                parsed = parse(request.response_model, remembered.completion)
            except RequestRejectedError:
                return None
        record.remembered(remembered.provider, remembered.completion, stale=stale)
        return ChatResponse(  # by position, which takes half the time
            remembered.completion,
            remembered.provider,
            True,
            stale,
            False,
            (),
            False,
            self._clock.now() - record.began,
            None,
            parsed,
            request.request_id,
        )

    def _accepts(
        self, request: ChatRequest | EmbeddingRequest, provider: str, made_by: str
    ) -> bool:
        """Return whether this gateway would ask that provider: an answer outlives its settings."""
        serving = self._roster.serving(request.model)
        return not made_by or any(
            each.name == provider and self._digest(each.config) == made_by for each in serving
        )

    def _digest(self, config: LLMConfig) -> str:
        known = self._digests.get(config.name)
        if known is None or known[0] is not config:
            known = self._digests[config.name] = (config, configuration_digest(config))
        return known[1]

    def _may_remember(self, request: ChatRequest, completion: Completion) -> bool:
        return worth_keeping(completion) and self._ttl(request) > 0

    def _remember(self, key: str, request: ChatRequest, served: Served[Completion]) -> None:
        native = served.answer.native
        if native is not None and not native.body:
            return  # the provider has said more than is known here
        settings = self._settings
        ttl = settings.cache_ttl_seconds
        if request.cache_ttl is not None or (settings.agent_ttls and request.agent is not None):
            ttl = self._ttl(request)
        made_by = ""
        if self._cache.second is not None:
            made_by = self._digest(served.attempt.provider.config)
        self._cache.remember(key, served.answer, served.provider, ttl, made_by=made_by)

    def _ttl(self, request: ChatRequest | EmbeddingRequest) -> float:
        settings = self._settings
        default = settings.cache_ttl_seconds
        return ttl_for(request.agent, request.cache_ttl, settings.agent_ttls, default)

    async def _embedding_key(self, request: EmbeddingRequest) -> str | None:
        if not self._settings.cache_enabled or request.cache is False:
            return None
        if sum(map(len, request.inputs)) > LONG:
            return await asyncio.to_thread(embedding_key, request)
        return embedding_key(request)

    # ── coalescing ───────────────────────────────────────────────────────────────────────────

    async def _coalesced(
        self, key: str, request: ChatRequest, record: RequestRecord, deadline: float
    ) -> tuple[Answer, bool]:
        """Call the providers, or wait for the same request in flight.

        Return the answer, and whether it belongs to another request.
        """
        coalescer = self._coalescer
        while True:
            # A refresh must not get the answer of a call that began before it.
            shared_key = key if request.cache is True else f"refresh:{key}"
            call = coalescer.calls.get(shared_key)
            if call is None and request.background:
                # A background request may wait long, and others must not wait for it.
                shared_key = f"background:{shared_key}"
                call = coalescer.calls.get(shared_key)
            if call is None:
                work: Coroutine[Any, Any, Answer]
                if self._cache.second is not None and request.cache is True:
                    work = self._fetch_or_call(key, request, record, deadline)
                    return await coalescer.begin(shared_key, work, deadline), False
                work = self._call_providers(request, record, deadline)
                keep: Callable[[Any], None] = partial(self._remember, key, request)
                return await coalescer.begin(shared_key, work, deadline, keep), False
            try:
                served = await self._join(shared_key, record, deadline)
            except (AllProvidersFailedError, DeadlineExceededError) as error:
                # The request that began it may have had too little time, and this one has more.
                if not call.lacked_time(error, self._clock.now(), deadline):
                    raise
            else:
                joined, model = call.shares(), request.response_model
                if joined and model is not None and not fits(model, _completion(served)):
                    return await self._call_providers(request, record, deadline), False
                return served, joined

    async def _join(self, shared_key: str, record: RequestRecord, deadline: float) -> Answer:
        followed = record.follow()
        if followed is not None:
            followed.wait()
        try:
            return await self._coalescer.join(shared_key, deadline, self._clock)
        except TimeoutError:
            raise DeadlineExceededError(
                "The request's deadline passed while it waited for an identical one in flight."
            ) from None
        finally:
            if followed is not None:
                followed.go_on()

    # ── failover ─────────────────────────────────────────────────────────────────────────────

    async def _fetch_or_call(
        self, key: str, request: ChatRequest, record: RequestRecord, deadline: float
    ) -> Answer:
        """Read below the memory, or wait for another process; else call the providers."""
        level = self._cache.second  # a reload may put another one there meanwhile
        followed = record.follow()
        if followed is not None:
            followed.wait()
        try:
            found = await self._cache.fetch(
                key,
                partial(self._accepts, request),
                # The rest of its time is for its own call, should the other process fail.
                patience=(deadline - self._clock.now()) / 2,
                background=request.background,
            )
            if found is not None and fits(request.response_model, found.completion):
                return found
        finally:
            if followed is not None:
                followed.go_on()
        try:
            served = await self._call_providers(request, record, deadline)
            self._remember(key, request, served)
            return served
        finally:
            if level is not None:
                level.give_up(key, background=request.background)

    def _call_providers(
        self, request: ChatRequest, record: RequestRecord, deadline: float
    ) -> Coroutine[Any, Any, Served[Completion]]:
        """Get an answer by failover. Not a coroutine itself, to be no frame above the wire."""
        settings, state = self._settings, self._state(request, record, deadline)
        work = ChatWork(request)
        if settings.chat_over_stream:
            longest = settings.thinking_timeout if state.thinks else 0.0
            first = max(settings.first_token_timeout, longest)
            idle = max(settings.idle_timeout, longest)
            work = ChatOverStreamWork(request, first, idle, self._failovers.in_time)
        return self._failovers.run(state, work)

    def _seconds(self, request: ChatRequest | EmbeddingRequest) -> float:
        if request.timeout is not None:
            return request.timeout
        if isinstance(request, EmbeddingRequest) or not (request.params or request.native):
            return self._settings.timeout
        return self._settings.seconds_for(thinks=asks_to_think(request.params, request.native))

    def _state(self, request: ChatRequest, record: RequestRecord, deadline: float) -> RequestState:
        names, hedge = request.params.keys(), request.hedge
        if hedge is None:
            # A tool may have side effects, which two answers may cause twice.
            hedge = self._settings.hedge and names.isdisjoint(_TOOLS)
        return RequestState(
            request,
            "chat",
            self._roster,
            record.began,
            deadline,
            tokens=estimated_tokens(request) if self._roster.counts_tokens else 0,
            params=None if names.isdisjoint(HINTS) else request.params,
            hedge=hedge,
            thinks=bool(names or request.native) and asks_to_think(request.params, request.native),
            record=record if record.followed else record.follow(),
        )

    def _stream_run(
        self, request: ChatRequest, resume: Resume | None, record: RequestRecord
    ) -> StreamRun:
        settings, seconds = self._settings, self._seconds(request)
        state = self._state(request, record, record.began + seconds)
        idle = settings.idle_timeout
        return StreamRun(
            self._failovers,
            request,
            state,
            clock=self._clock,
            idle=max(idle, settings.thinking_timeout) if state.thinks else idle,
            time_to_first=seconds,
            resume=resume,
        )

    # ── the answer ───────────────────────────────────────────────────────────────────────────

    def _answered(
        self,
        request: ChatRequest,
        record: RequestRecord,
        served: Answer,
        *,
        joined: bool = False,
    ) -> ChatResponse:
        if isinstance(served, Remembered):
            if not (joined or served.waited):
                hit = self._hit(request, record, served)
                assert hit is not None  # noqa: S101 - it fits, as has been looked at
                return hit
            answer, joined = served.completion, True
        else:
            answer = served.answer
        parsed = None if request.response_model is None else parse(request.response_model, answer)
        latency = self._clock.now() - record.began
        attempts: tuple[Attempt, ...] = ()
        loading = 0.0
        if joined or isinstance(served, Remembered):
            record.coalesced(served.provider, answer)
        else:
            attempts, loading = served.attempts, served.loading_seconds
            record.served(served.provider, answer, attempts=len(attempts))
            if self._logs_content:
                self._log_content(request, answer)
        return ChatResponse(
            answer,
            served.provider,
            False,
            False,
            joined,
            attempts,
            False,
            latency,
            None,
            parsed,
            request.request_id,
            loading,
        )

    def _log_content(self, request: ChatRequest, answer: Completion) -> None:
        texts = [choice.text for choice in answer.choices]
        self._emitter.log_content(request.request_id, request.messages, texts)

    def _streamed(
        self, key: str | None, request: ChatRequest, record: RequestRecord, run: StreamRun
    ) -> ChatResponse:
        """Return the whole answer of a stream at its end."""
        served = run.served
        assert served is not None  # noqa: S101 - its chunks have come to their end
        if key is not None and not run.resumed:
            self._remember(key, request, served)
        first = run.first_content_at
        return replace(
            self._answered(request, record, served),
            resumed=run.resumed,
            first_content_seconds=None if first is None else first - record.began,
        )


class ClosedByUs:
    """Iterates over an asynchronous generator that the event loop does not close.

    A loop closes all registered generators when it ends, and each that is garbage. A generator that
    is being closed by the one around it cannot be closed a second time, and asyncio would report
    that as an error.
    """

    __slots__ = ("_begun", "_generator")

    def __init__(self, generator: AsyncGenerator[Chunk, None]) -> None:
        self._generator = generator
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Chunk]:
        if self._begun:
            return anext(self._generator)
        self._begun = True
        loops_own = sys.get_asyncgen_hooks()
        # Without a finalizer Python itself would close it, at once and only up to an `await`.
        sys.set_asyncgen_hooks(firstiter=None, finalizer=_leave_open)
        try:
            return anext(self._generator)
        finally:
            sys.set_asyncgen_hooks(*loops_own)


def _leave_open(_: AsyncGenerator[Any, Any]) -> None:
    """Do nothing: the generator around it is garbage, too, and closes it."""


def _completion(answer: Answer) -> Completion:
    return answer.completion if isinstance(answer, Remembered) else answer.answer


def _opening(response: ChatResponse) -> Opening:
    """Return the opening of a stream that is whole already, or has no content."""
    completion = response.completion
    return Opening(
        response.provider,
        completion.model,
        completion.id,
        completion.created,
        attempts=len(response.attempts),
        cached=response.cached,
        stale=response.stale,
    )
