"""The way of a request: the cache, those who ask the same, the providers, the answer.

    cache hit               -> answer
    same request in flight  -> wait for that one
    else                    -> ask the providers; settle, price, remember, answer
    nobody could answer     -> a stale answer, if that is allowed

No policy lives here. Who is asked is `routing/`, whether to ask at all is `resilience/`, what is
remembered is `cache/`, how a vendor is called is `wires/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import replace
from functools import partial
from typing import Self

from aigateway.cache.key import cache_key, embedding_digest, rough_digest
from aigateway.cache.store import AnswerCache, Remembered, ttl_for
from aigateway.errors import (
    AllProvidersFailedError,
    DeadlineExceededError,
    FailureKind,
)
from aigateway.messages import (
    ChatRequest,
    ChatResponse,
    Chunk,
    Completion,
    EmbeddingRequest,
    EmbeddingResponse,
    Opening,
)
from aigateway.request.coalesce import Flights, Lead
from aigateway.request.stream import Outcome, endings, pieces
from aigateway.routing.attempt import PendingAttempt, Surroundings
from aigateway.routing.candidates import RequestState, Roster
from aigateway.routing.failover import Failovers, Served, Work
from aigateway.routing.stream import Resume, StreamRun, whole_answer
from aigateway.settings import GatewaySettings
from aigateway.structured import fits, parse
from aigateway.telemetry.recorder import RequestRecord, RequestRecorder
from aigateway.tokens import estimated_tokens
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.parameters import HINTS

__all__ = ["Answering"]

_TOOLS = frozenset({"functions", "tools"})

_LONG = 262_144
"""Bytes of a request from which its key is made in a thread: ten million take 0.1 s."""

_PIECES_AT_ONCE = 256
"""Pieces of a remembered answer after which others on the event loop have their turn."""


class Answering:
    """Answers the requests of one gateway, on one event loop.

    Args:
        settings: The gateway's.
        around: Clock, places and events.
        roster: Whom to ask.
        cache: What is remembered.
        ledger: Where requests are entered.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        around: Surroundings,
        roster: Roster,
        cache: AnswerCache,
        ledger: RequestRecorder,
    ) -> None:
        self._settings = settings
        self._clock = around.clock
        self._emitter = around.emitter
        self._roster = roster
        self._cache = cache
        self._ledger = ledger
        self._failovers = Failovers(settings, around)
        self._flights: Flights[Served[Completion]] = Flights()

    async def chat(self, request: ChatRequest) -> ChatResponse:
        """Answer one request."""
        with self._ledger.open(request, request.agent) as entry:
            return await self._answer(request, entry)

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """Embed texts; not cached."""
        with self._ledger.open(request, None) as entry:
            state = self._state(request, entry)
            work = Work(lambda attempt: attempt.provider.client.embed(attempt.outgoing(request)))
            served = await self._failovers.run(state, work)
            latency = self._clock.now() - entry.began
            entry.served(
                served.provider, served.answer, attempts=len(served.attempts), latency=latency
            )
            return EmbeddingResponse(
                served.answer,
                served.provider,
                served.attempts,
                latency,
                request.request_id,
                served.loading_seconds,
            )

    async def stream(
        self, request: ChatRequest, resume: Resume | None, outcome: Outcome
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one stream; when the content is through, `outcome` has the response."""
        with self._ledger.open(request, request.agent, streamed=True) as entry:
            key = self._key(request) if request.size <= _LONG else await self._key_of_long(request)
            response = self._replayed(key, request, entry)
            if response is None:
                run = self._stream_run(request, resume, entry)
                try:
                    async with contextlib.aclosing(run.chunks()) as chunks:
                        async for chunk in _ClosedByUs(chunks):
                            outcome.opening = run.opening
                            yield chunk
                    response = self._run_to_its_end(key, request, entry, run)
                except (AllProvidersFailedError, DeadlineExceededError):
                    response = self._replayed(key, request, entry, stale=True)
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
        """End what is under way."""
        await self._failovers.stop()
        await self._flights.aclose()

    async def _answer(self, request: ChatRequest, entry: RequestRecord) -> ChatResponse:
        key = self._key(request) if request.size <= _LONG else await self._key_of_long(request)
        if key is None:
            return self._fresh(request, entry, await self._dispatch(request, entry))
        # Two classes may share a schema and still judge differently, so each looks for itself.
        model = request.response_model
        if request.cache is True:
            remembered = self._cache.lookup(key)
            if remembered is not None and fits(model, remembered.completion):
                return self._from_cache(request, entry, remembered)
        try:
            served, joined = await self._share(key, request, entry)
            if joined and not fits(model, served.answer):
                served, joined = await self._dispatch(request, entry), False
        except (AllProvidersFailedError, DeadlineExceededError):
            stale = self._cache.lookup_stale(key) if request.cache is True else None
            if stale is None or not fits(model, stale.completion):
                raise
            return self._from_cache(request, entry, stale, stale=True)
        return self._fresh(request, entry, served, coalesced=joined)

    async def _share(
        self, key: str, request: ChatRequest, entry: RequestRecord
    ) -> tuple[Served[Completion], bool]:
        """Dispatch, or wait for the same request that is in flight already."""
        deadline = self._deadline(request, entry.began)
        while True:
            flight = self._flight(key, request)
            lead = self._flights.lead(flight)
            if lead is None:
                return await self._lead(flight, key, request, entry)
            try:
                return await self._join(flight, deadline, entry.account), lead.shares()
            except (AllProvidersFailedError, DeadlineExceededError) as error:
                # The request that began it may have had too little time, where this one has more.
                if not lead.lacked_time(error, self._clock.now(), deadline):
                    raise
            except TimeoutError:
                raise DeadlineExceededError(
                    "The request's deadline passed while it waited for an identical one in flight."
                ) from None

    async def _join(
        self, flight: str, deadline: float, account: RequestRecord | None
    ) -> Served[Completion]:
        if account is not None:
            account.wait()
        try:
            async with self._clock.timeout(deadline - self._clock.now()):
                return await self._flights.join(flight)
        finally:
            if account is not None:
                account.go_on()

    def _flight(self, key: str, request: ChatRequest) -> str:
        """Which flight this request joins, or begins."""
        # A refresh must not be answered by a call that began before somebody asked for it.
        flight = key if request.cache is True else f"refresh:{key}"
        if request.background and self._flights.lead(flight) is None:
            # One that lets all others go first must not be what one of those waits for.
            return f"background:{flight}"
        return flight

    async def _lead(
        self, flight: str, key: str, request: ChatRequest, entry: RequestRecord
    ) -> tuple[Served[Completion], bool]:
        """Begin a flight; its own dispatch keeps the deadline."""

        async def dispatch_and_remember() -> Served[Completion]:
            served = await self._dispatch(request, entry)
            self._remember(key, request, served)
            return served

        lead = Lead(self._deadline(request, entry.began))
        try:
            served, _ = await self._flights.share(flight, dispatch_and_remember, lead)
        except asyncio.CancelledError:
            lead.left = True
            raise
        return served, False

    async def _dispatch(self, request: ChatRequest, entry: RequestRecord) -> Served[Completion]:
        model, settings = request.response_model, self._settings

        async def ask(attempt: PendingAttempt) -> Completion:
            client, sent = attempt.provider.client, attempt.outgoing(request)
            if settings.chat_over_stream:
                first, idle = settings.first_token_timeout, settings.idle_timeout
                completion = await whole_answer(client, sent, first, idle, self._failovers.in_time)
            else:
                completion = await client.chat(sent)
            if not fits(model, completion):
                # Raised here and not from pydantic's error, which quotes the answer.
                raise VendorCallError(Failure(FailureKind.INVALID_OUTPUT), completion)
            return completion

        return await self._failovers.run(self._state(request, entry), Work(ask))

    def _key(self, request: ChatRequest) -> str | None:
        """The cache key, where the cache is of use."""
        if not self._settings.cache_enabled or request.cache is False:
            return None
        return cache_key(request, partition=request.partition)

    async def _key_of_long(self, request: ChatRequest) -> str | None:
        return await asyncio.to_thread(self._key, request)

    def _replayed(
        self, key: str | None, request: ChatRequest, entry: RequestRecord, *, stale: bool = False
    ) -> ChatResponse | None:
        """A remembered answer for a stream, if there is one."""
        if key is None or request.cache is not True:
            return None
        remembered = self._cache.lookup_stale(key) if stale else self._cache.lookup(key)
        if remembered is None or not fits(request.response_model, remembered.completion):
            return None
        return self._from_cache(request, entry, remembered, stale=stale)

    def _stream_run(
        self, request: ChatRequest, resume: Resume | None, entry: RequestRecord
    ) -> StreamRun:
        state = self._state(request, entry)
        return StreamRun(
            self._failovers,
            request,
            state,
            clock=self._clock,
            idle=self._settings.idle_timeout,
            time_to_first=state.deadline - entry.began,
            resume=resume,
        )

    def _run_to_its_end(
        self, key: str | None, request: ChatRequest, entry: RequestRecord, run: StreamRun
    ) -> ChatResponse:
        served = run.served
        assert served is not None  # noqa: S101 - its chunks have come to their end
        if key is not None and not run.resumed:
            self._remember(key, request, served)
        response = self._fresh(request, entry, served)
        first = run.first_content_at
        return replace(
            response,
            resumed=run.resumed,
            first_content_seconds=None if first is None else first - entry.began,
        )

    def _remember(self, key: str, request: ChatRequest, served: Served[Completion]) -> None:
        settings = self._settings
        ttl = ttl_for(
            request.agent, request.cache_ttl, settings.agent_ttls, settings.cache_ttl_seconds
        )
        self._cache.remember(key, served.answer, served.provider, ttl)

    def _state(self, request: ChatRequest | EmbeddingRequest, entry: RequestRecord) -> RequestState:
        deadline = self._deadline(request, entry.began)
        if isinstance(request, EmbeddingRequest):
            return RequestState(
                request.request_id,
                "embeddings",
                partial(self._roster.candidates, request.model, "embeddings"),
                entry.began,
                deadline,
                cause=lambda: embedding_digest(request),
                model=request.model,
                tenant=request.partition,
                account=entry.account,
            )
        hedge = request.hedge
        if hedge is None:
            # A tool may do something: two answers might do it twice.
            hedge = self._settings.hedge and request.params.keys().isdisjoint(_TOOLS)
        tokens = estimated_tokens(request) if self._roster.counts_tokens else 0
        return RequestState(
            request.request_id,
            "chat",
            partial(self._roster.candidates, request.model, "chat"),
            entry.began,
            deadline,
            # Without the partition: a prompt is the same, whoever sends it.
            cause=lambda: cache_key(request) if request.size <= _LONG else rough_digest(request),
            model=request.model,
            tokens=tokens,
            params=None if request.params.keys().isdisjoint(HINTS) else request.params,
            messages=request.messages,
            hedge=hedge,
            background=request.background,
            tenant=request.partition,
            account=entry.account,
        )

    def _deadline(self, request: ChatRequest | EmbeddingRequest, began: float) -> float:
        return began + (self._settings.timeout if request.timeout is None else request.timeout)

    def _fresh(
        self,
        request: ChatRequest,
        entry: RequestRecord,
        served: Served[Completion],
        *,
        coalesced: bool = False,
    ) -> ChatResponse:
        answer, attempts = served.answer, served.attempts
        parsed = parse(request.response_model, answer)
        latency = self._clock.now() - entry.began
        if coalesced:
            attempts = ()
            entry.coalesced(served.provider, answer)
        else:
            entry.served(served.provider, answer, attempts=len(attempts), latency=latency)
            if self._settings.log_prompts:
                texts = [choice.text for choice in answer.choices]
                self._emitter.log_content(request.request_id, request.messages, texts)
        return ChatResponse(
            answer,
            served.provider,
            coalesced=coalesced,
            attempts=attempts,
            latency_seconds=latency,
            loading_seconds=0.0 if coalesced else served.loading_seconds,
            parsed=parsed,
            request_id=request.request_id,
        )

    def _from_cache(
        self,
        request: ChatRequest,
        entry: RequestRecord,
        remembered: Remembered,
        *,
        stale: bool = False,
    ) -> ChatResponse:
        parsed = parse(request.response_model, remembered.completion)
        entry.remembered(remembered.provider, remembered.completion, stale=stale)
        return ChatResponse(
            remembered.completion,
            remembered.provider,
            cached=True,
            stale=stale,
            latency_seconds=self._clock.now() - entry.began,
            parsed=parsed,
            request_id=request.request_id,
        )


class _ClosedByUs:
    """The items of an asynchronous generator of which the event loop does not know.

    A loop that ends closes all generators at once. One that is being closed by the generator around
    it cannot be closed a second time, and asyncio would report that as an error.
    """

    __slots__ = ("_generator",)

    def __init__(self, generator: AsyncGenerator[Chunk, None]) -> None:
        self._generator = generator

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Chunk]:
        loops_own = sys.get_asyncgen_hooks().firstiter
        sys.set_asyncgen_hooks(firstiter=None)
        try:
            return anext(self._generator)
        finally:
            sys.set_asyncgen_hooks(firstiter=loops_own)


def _opening(response: ChatResponse) -> Opening:
    """What a stream that is whole already, or has no content, is opened with."""
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
