"""Middleware: hooks that may change or refuse requests, and see answers before they go out.

`Middleware` is what applications and other libraries write. `MiddlewarePipeline` runs it around the
pipeline; a gateway without middleware has the plain `Pipeline`, so that it pays nothing.

Everything fails closed: a hook that raises, takes too long or returns something else ends its
request with `MiddlewareFailedError`. What it raised is neither logged nor chained, since its text
may quote the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import math
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any, ClassVar, Protocol, Self, TypeVar

from aigateway.cache.memory import Remembered
from aigateway.clock import Clock, PutOff
from aigateway.errors import (
    ConfigurationError,
    DeadlineExceededError,
    GatewayError,
    MiddlewareFailedError,
    MiddlewareRefusedError,
    RequestRejectedError,
)
from aigateway.messages import (
    ChatRequest,
    ChatResponse,
    Choice,
    Chunk,
    Completion,
    EmbeddingRequest,
    EmbeddingResponse,
    Origin,
    ToolCallDelta,
)
from aigateway.options import Resume
from aigateway.request.json_copy import encoded_json
from aigateway.request.pipeline import ClosedByUs, Pipeline
from aigateway.request.stream import StreamOutcome, endings, pieces
from aigateway.request.validate import chat_request, embedding_request
from aigateway.settings import settings_file
from aigateway.structured import parse
from aigateway.telemetry.recorder import RequestRecord
from aigateway.wires.assembly import Assembly

__all__ = ["Middleware", "MiddlewarePipeline", "load_middleware", "whole_words"]

R = TypeVar("R", ChatRequest, EmbeddingRequest)

_log = logging.getLogger(__name__)


class Middleware(Protocol):
    """May change or refuse requests, and see and change answers before they go out.

    Subclass it and write the methods that you need; only those are called. A class that has some of
    the methods without subclassing works, too, though not for type checkers.

    `before` runs in the order in which the middleware is configured, the other methods in reverse
    order. To refuse, raise `MiddlewareRefusedError`. Any other exception, another result, and a
    call that takes longer than the setting `middleware_timeout` end the request with
    `MiddlewareFailedError`. Neither counts as a failure of a provider, and no other one is asked.

    One object serves all requests of a gateway, many at a time: keep what belongs to one request in
    local variables.

    Attributes:
        reads_native: Whether `before` looks at `request.native` itself, and `after` at
            `response.completion.native`. Unless that is so for every middleware that has a
            `before`, a request in another protocol is sent as its translation; and unless it is so
            for all the others, its answer is given as a translation. What was written in that
            protocol may say more, which the middleware would not see.
    """

    reads_native: ClassVar[bool] = False

    async def before(self, request: ChatRequest) -> ChatRequest:
        """Return the request to send: this one, or a changed one.

        Make it with `dataclasses.replace` or `request.map_texts`. It is validated again; the cache,
        identical requests in flight, logs and traces see the changed one. Fields that say who asks
        (`request_id`, `partition`, `tenant`, `on_cost`) and `response_model` must stay.

        Of a request in another protocol, `messages` and `params` are the translation, and all that
        is sent. With `reads_native`, `request.native` has the body as its caller wrote it, which
        providers of that protocol get. If `messages` or `params` change and `native` does not,
        every provider gets the translation.

        Args:
            request: The request of `chat`, `stream`, `batch`, `messages` or `responses`, validated.

        Raises:
            MiddlewareRefusedError: To refuse it.
        """
        return request

    async def before_embedding(self, request: EmbeddingRequest) -> EmbeddingRequest:
        """Return the embedding request to send: this one, or a changed one. As `before`.

        Args:
            request: Its `inputs` are texts, or lists of tokens.
        """
        return request

    async def after(self, request: ChatRequest, response: ChatResponse) -> ChatResponse:
        """Return the answer to give to the caller: this one, or a changed one.

        Every answer passes, also one from the cache, which keeps answers as the vendor gave them.
        Of the result, `completion` and `parsed` are used. If the text changed, `parsed` is made
        again and `logprobs` are dropped. The provider's own form of the answer
        (`completion.native`) is there only with `reads_native`, and dropped if anything changed.

        A streamed answer passes through `stream` instead. Without a `stream` of its own, a
        middleware holds a streamed answer back until it is whole, so that nothing gets past
        `after`. Without an `after` of its own, a whole answer passes through `stream`.

        Args:
            request: The request as it was sent.
            response: The answer, as the middleware behind this one left it.

        Raises:
            MiddlewareRefusedError: To withhold it.
        """
        del request
        return response

    def stream(self, request: ChatRequest, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        """Yield the content of a streamed answer: an async generator around the content.

            async def stream(self, request, chunks):
                async for chunk in chunks:
                    yield chunk

        A generator, and not a call for each chunk, because its local variables are the state of one
        stream: text may be held back over the borders of chunks, and what is left is yielded after
        the loop. To refuse, raise `MiddlewareRefusedError`; the stream then ends with that error.
        Once the generator ends, the rest of the answer is read and thrown away.

        Only content passes. The gateway adds the end (finish reasons, usage), and lets a stream
        that starts over (`resume="restart"`) begin with a new generator. `chunk.index` tells the
        `n` answers apart. Events in the provider's own protocol are left out, so that they carry
        nothing that was removed.

        The bound on time counts from chunk to chunk that is read, without the waiting for
        `chunks`, and once more after the last.

        Args:
            request: The request as it was sent.
            chunks: The content as it arrives. It raises what breaks the stream; let that pass.
        """
        del request
        return chunks


async def whole_words(chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """Yield the content of a stream in chunks whose texts end at the ends of words.

        async for chunk in whole_words(chunks):
            yield chunk.map_texts(redacted)

    So that what is within a word is not parted by the border of two chunks. A word without an end
    is held until the next kind of content begins. That counts for text, visible reasoning, refusal
    and the arguments of each tool call.

    Args:
        chunks: As a `stream` of a middleware gets them.
    """
    held: dict[int, dict[_Kind, str]] = {}  # by answer
    async for chunk in chunks:
        for part in _in_words(held.setdefault(chunk.index, {}), chunk):
            yield part
    for index, mine in held.items():
        for part in _rests(mine, index):
            yield part


_Kind = str | tuple[int, str]
"""Of a text in a chunk: its field, or the index and the type of a tool call."""

_TEXTS = ("reasoning", "refusal", "text")


def _in_words(held: dict[_Kind, str], chunk: Chunk) -> Iterator[Chunk]:
    """Yield what can go out now that a chunk has come."""
    index = chunk.index
    for name in _TEXTS:
        text = getattr(chunk, name)
        if text:
            yield from _rests(held, index, name)
            yield _words(held, index, name, text)
    for call in chunk.tool_calls:
        kind = (call.index, call.type)
        if kind not in held:
            yield from _rests(held, index)
        words = _words(held, index, kind, call.arguments).tool_calls[0].arguments
        yield Chunk(index=index, tool_calls=(replace(call, arguments=words),))
    beside = replace(chunk, text="", reasoning=None, refusal=None, tool_calls=())
    if beside != Chunk(index=index):
        yield from _rests(held, index)
        yield beside


def _words(held: dict[_Kind, str], index: int, kind: _Kind, text: str) -> Chunk:
    """Return a text so far but for its last word, which is held."""
    text = held.get(kind, "") + text
    end = max(map(text.rfind, " \t\r\n")) + 1
    held[kind] = text[end:]
    return _chunk_of(index, kind, text[:end])


def _rests(held: dict[_Kind, str], index: int, but: str = "") -> list[Chunk]:
    """Return what is held of one answer, of all kinds but one."""
    kinds = [kind for kind in held if kind != but]
    return [_chunk_of(index, kind, rest) for kind in kinds if (rest := held.pop(kind))]


def _chunk_of(index: int, kind: _Kind, text: str) -> Chunk:
    if isinstance(kind, tuple):
        delta = ToolCallDelta(kind[0], arguments=text, type=kind[1])
        return Chunk(index=index, tool_calls=(delta,))
    fields: dict[str, Any] = {kind: text}
    return Chunk(index=index, **fields)


_HOOKS = ("before", "before_embedding", "after", "stream")


def _has(middleware: object, name: str) -> bool:
    """Return whether it has a hook of its own, and not the default."""
    method = getattr(middleware, name, None)
    own = getattr(method, "__func__", method)
    return callable(method) and own is not getattr(Middleware, name)


def load_middleware(given: Iterable[Any]) -> tuple[Middleware, ...]:
    """Return the middleware of a gateway.

    Args:
        given: For each, the object, its class or another function without arguments that makes it,
            or the import path of one of them: "package.module:name". Modules beside
            `aigateway.toml` are found, too.

    Raises:
        ConfigurationError: One of them cannot work; the message names it.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError('middleware: must be a list, such as ["package.module:name"].')
    return tuple(map(_loaded, given))


def _loaded(entry: Any) -> Middleware:
    found, place = entry, f'middleware "{entry}"'
    if isinstance(entry, str):
        found = _imported(entry, place)
    else:
        place = f"middleware {getattr(entry, '__qualname__', type(entry).__qualname__)}"
    if isinstance(found, type) or (callable(found) and not any(_has(found, h) for h in _HOOKS)):
        try:
            found = found()
        except Exception as error:
            problem = f"cannot be made without arguments ({type(error).__name__})"
            raise ConfigurationError(f"{place}: {problem}.") from error
    if not any(_has(found, hook) for hook in _HOOKS):
        raise ConfigurationError(f"{place}: has none of {', '.join(_HOOKS)}; write one of them.")
    made: Middleware = found
    return made


def _imported(path: str, place: str) -> Any:
    module, colon, name = path.partition(":")
    if not (colon and name and all(part.isidentifier() for part in module.split("."))):
        raise ConfigurationError(f'{place}: must be written "package.module:name".')
    beside = str(settings_file().absolute().parent)
    if beside not in sys.path:
        sys.path.append(beside)  # at the end, so that it hides nothing that is installed
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError)
        problem = str(error) if missing else f"importing it raised {type(error).__name__}"
        raise ConfigurationError(f"{place}: {problem}.") from error
    for part in name.split("."):
        found = getattr(found, part, _END)
        if found is _END:
            raise ConfigurationError(f"{place}: {module} has no {name}.")
    return found


_FIXED = (
    *("request_id", "partition", "tenant", "on_cost", "needs_price"),
    *("background", "response_model"),
)
"""Fields that say who asks, and what the caller gets; not those of an embedding request."""

_MADE = [f.name for f in fields(ChatRequest) if f.name in {"messages", "needs", "params", "size"}]
"""Fields that validation copies or derives; the others are taken from the changed request."""

_END: Any = object()


class MiddlewarePipeline(Pipeline):
    """A pipeline with middleware around it.

    Args:
        *parts: As for `Pipeline`.
        middleware: In order; not empty.
    """

    def __init__(self, *parts: Any, middleware: Iterable[Middleware]) -> None:
        super().__init__(*parts)
        given = tuple(middleware)
        self._seconds_per_hook = self._settings.middleware_timeout
        self._befores = [each for each in given if _has(each, "before")]
        self._read_native = all(getattr(each, "reads_native", False) for each in self._befores)
        self._embeds = [each for each in given if _has(each, "before_embedding")]
        self._answers = [
            each for each in reversed(given) if _has(each, "after") or _has(each, "stream")
        ]
        self._logs_content = self._settings.log_prompts and not self._answers
        self._answer_native = all(getattr(each, "reads_native", False) for each in self._answers)

    async def chat(
        self,
        request: ChatRequest,
        within: AbstractContextManager[RequestRecord] | None = None,
        recalled: dict[str, Remembered] | None = None,
    ) -> ChatResponse:
        """Answer one request."""
        del within
        request, opened = await self._admitted(request, self._changed_chat)
        if not self._answers:
            return await super().chat(request, opened, recalled)
        with opened as record:
            given = response = await super().chat(request, nullcontext(record), recalled)
            if response.completion.native is not None and not self._answer_native:
                response = replace(response, completion=replace(response.completion, native=None))
            # A stale answer stands in for one that was too late.
            deadline = math.inf if given.stale else record.began + self._seconds(request)
            for middleware in self._answers:
                response = await self._after(middleware, request, response, deadline)
            if response.completion is not given.completion:
                record.changed(response.completion)
            self._log_changed(request, response)
            return replace(response, latency_seconds=self._clock.now() - record.began)

    async def embed(
        self,
        request: EmbeddingRequest,
        within: AbstractContextManager[RequestRecord] | None = None,
    ) -> EmbeddingResponse:
        """Embed texts; only `before_embedding` is called."""
        del within
        request, opened = await self._admitted(request, self._changed_embedding)
        return await super().embed(request, opened)

    async def stream(
        self,
        request: ChatRequest,
        resume: Resume | None,
        outcome: StreamOutcome,
        within: AbstractContextManager[RequestRecord] | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of one stream; after the content, `outcome` has the response."""
        del within
        request, opened = await self._admitted(request, self._changed_chat, streamed=True)
        if not self._answers:
            async with aclosing(super().stream(request, resume, outcome, opened)) as plain:
                async for chunk in ClosedByUs(plain):
                    yield chunk
            return
        inner = StreamOutcome()
        with opened as record:
            given = super().stream(request, resume, inner, nullcontext(record))
            async with aclosing(given), aclosing(self._passed(request, given, inner)) as passed:
                async for chunk in ClosedByUs(passed):
                    outcome.opening = inner.opening
                    yield chunk
            response = inner.response
            assert response is not None  # noqa: S101 - its content has come to its end
            record.changed(response.completion)
            self._log_changed(request, response)
        outcome.response, outcome.opening = response, inner.opening
        for chunk in endings(response.completion):
            yield chunk

    def _log_changed(self, request: ChatRequest, response: ChatResponse) -> None:
        """Log an answer as it goes out; one that is withheld is not logged."""
        if self._settings.log_prompts and not (response.cached or response.coalesced):
            self._log_content(request, response.completion)

    # ── before ───────────────────────────────────────────────────────────────────────────────

    async def _admitted(
        self, request: R, change: Callable[[R, float], Any], *, streamed: bool = False
    ) -> tuple[R, RequestRecord]:
        """Return the request as changed, and its record, which is not entered yet.

        The record begins with the changed request: traces show no content that was removed.
        """
        began = self._clock.now()
        try:
            changed = await change(request, began)
        except BaseException:
            with self._opened(_without_content(request), began, streamed):
                raise
        return changed, self._opened(changed, began, streamed)

    def _opened(
        self, request: ChatRequest | EmbeddingRequest, began: float, streamed: bool
    ) -> RequestRecord:
        record = RequestRecord(self._recorder, request, streamed=streamed)
        record.began = began
        return record

    async def _changed_chat(self, request: ChatRequest, began: float) -> ChatRequest:
        if not self._read_native:
            request = _as_chat(request)
        for middleware in self._befores:
            written = _written(request)
            call = partial(middleware.before, request)
            deadline = began + self._seconds(request)
            new = await self._called(middleware, "before", call, deadline)
            self._check(middleware, "before", request, new, _FIXED)
            request = self._checked_chat(middleware, request, new, written)
        return request

    def _checked_chat(
        self, middleware: Middleware, old: ChatRequest, new: ChatRequest, written: bytes
    ) -> ChatRequest:
        """Validate what `before` returned; a message may also have been changed in its place."""
        problem = None
        try:
            content_changed = _written(new) != written
            if new is old and not content_changed:
                return old
            made = chat_request(
                new.messages,
                model=new.model,
                timeout=new.timeout,
                agent=new.agent,
                cache=new.cache,
                cache_ttl=new.cache_ttl,
                session=new.session,
                origin=_origin(new),
                native=new.native,
                params=new.params,
                settings=self._settings,
            )
        except Exception as error:  # fields may have any type  # noqa: BLE001
            problem = _unsendable(error)
        if problem is not None:
            raise _failed(middleware, "before", problem)
        made = replace(new, **{name: getattr(made, name) for name in _MADE})
        if self._read_native and not (content_changed and made.native is old.native):
            return made
        return _as_chat(made)

    async def _changed_embedding(self, request: EmbeddingRequest, began: float) -> EmbeddingRequest:
        for middleware in self._embeds:
            call = partial(middleware.before_embedding, request)
            deadline = began + self._seconds(request)
            new: Any = await self._called(middleware, "before_embedding", call, deadline)
            self._check(middleware, "before_embedding", request, new, _FIXED[:4])
            problem, made = None, request
            try:
                made = embedding_request(
                    list(new.inputs),
                    model=new.model,
                    timeout=new.timeout,
                    agent=new.agent,
                    cache=new.cache,
                    cache_ttl=new.cache_ttl,
                    origin=_origin(new),
                    params=new.params,
                    settings=self._settings,
                )
            except Exception as error:  # fields may have any type  # noqa: BLE001
                problem = _unsendable(error)
            if problem is not None:
                raise _failed(middleware, "before_embedding", problem)
            request = replace(new, inputs=made.inputs, params=made.params)
        return request

    @staticmethod
    def _check(
        middleware: Middleware, hook: str, old: object, new: object, fixed: Iterable[str]
    ) -> None:
        """Check the type of a changed request, and the fields that must stay."""
        if not isinstance(new, type(old)):
            raise _failed(
                middleware, hook, f"returned {type(new).__name__}, not {type(old).__name__}"
            )
        for name in fixed:
            if getattr(new, name) != getattr(old, name):
                raise _failed(middleware, hook, f"changed {name}, which must stay")

    # ── after ────────────────────────────────────────────────────────────────────────────────

    async def _after(
        self,
        middleware: Middleware,
        request: ChatRequest,
        response: ChatResponse,
        deadline: float = math.inf,
    ) -> ChatResponse:
        if not _has(middleware, "after"):
            return await self._in_pieces(middleware, request, response, deadline)
        call = partial(middleware.after, request, response)
        new: Any = await self._called(middleware, "after", call, deadline)
        if not isinstance(new, ChatResponse):
            raise _failed(middleware, "after", f"returned {type(new).__name__}, not ChatResponse")
        given: Any = new.completion
        if not isinstance(given, Completion) or not all(map(_is_choice, given.choices)):
            raise _failed(middleware, "after", "returned an answer with another type in it")
        if len(new.choices) != len(response.choices):
            raise _failed(middleware, "after", "changed the number of answers")
        if new is response:
            return response
        return _consistent(request, response, new.completion, new.parsed)

    async def _in_pieces(
        self,
        middleware: Middleware,
        request: ChatRequest,
        response: ChatResponse,
        deadline: float,
    ) -> ChatResponse:
        """Pass a whole answer through a middleware that has only `stream`."""
        inner, said = StreamOutcome(), Assembly("")
        inner.response = response
        given = _iterated(pieces(response.completion))
        async with aclosing(self._stage(middleware, request, given, inner, deadline)) as passed:
            async for chunk in ClosedByUs(passed):
                said.add(chunk)
        said.last_pieces()
        choices = _choices(response, said)
        if choices == response.choices:
            return response
        completion = replace(response.completion, choices=choices)
        return _consistent(request, response, completion, response.parsed)

    async def _passed(
        self, request: ChatRequest, given: AsyncGenerator[Chunk, None], inner: StreamOutcome
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the content as the middleware lets it pass; then `inner` has the response of it."""
        restarted = True
        while restarted:
            restarted = False
            content = _UntilRestart(given)
            said = Assembly("")
            chunks: AsyncIterator[Chunk] = content
            async with contextlib.AsyncExitStack() as stack:
                for each in self._answers:
                    stage = self._stage if _has(each, "stream") else self._held_back
                    chunks = stage(each, request, chunks, inner)
                    stack.push_async_callback(chunks.aclose)
                    chunks = ClosedByUs(chunks)
                try:
                    async for chunk in chunks:
                        kept = said.add(chunk)
                        if kept is not None and kept != Chunk(index=kept.index):
                            yield kept
                    async for _ in content:
                        pass  # so that the whole answer is paid, counted and remembered
                except _StartOverError:
                    restarted = True
            if restarted:
                inner.response = None
                yield Chunk(restarted=True)
        for chunk in said.last_pieces():
            yield chunk
        inner.response = _assembled(request, inner, said)

    async def _stage(
        self,
        middleware: Middleware,
        request: ChatRequest,
        upstream: AsyncIterator[Chunk],
        inner: StreamOutcome,
        deadline: float = math.inf,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield what one middleware makes of the content."""
        del inner
        read = _Upstream(upstream, self._clock, self._seconds_per_hook, deadline)

        async def begin() -> Any:
            return middleware.stream(request, read)

        given = await self._called(middleware, "stream", begin, deadline)
        if not hasattr(given, "__anext__"):
            if inspect.iscoroutine(given):
                given.close()
            raise _failed(middleware, "stream", "is no async generator; write `yield` in it")
        chunks = ClosedByUs(given)
        try:
            while True:
                read.begin()
                call = partial(anext, chunks, _END)
                chunk = await self._called(middleware, "stream", call, deadline, read)
                read.end()
                if chunk is _END:
                    break
                if not isinstance(chunk, Chunk) or not isinstance(chunk.text, str):
                    raise _failed(
                        middleware, "stream", f"yielded {type(chunk).__name__}, not Chunk"
                    )
                yield chunk
        finally:
            close = getattr(given, "aclose", None)
            if close is not None:
                with contextlib.suppress(GatewayError):
                    await self._called(middleware, "stream", close)
        if read.error is not None:
            raise read.error  # the middleware did not let it pass

    async def _held_back(
        self,
        middleware: Middleware,
        request: ChatRequest,
        upstream: AsyncIterator[Chunk],
        inner: StreamOutcome,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the content once the middleware's `after` has seen all of it."""
        said = Assembly("")
        async for chunk in upstream:
            said.add(chunk)
        said.last_pieces()
        whole = _assembled(request, inner, said)
        inner.response = await self._after(middleware, request, whole)
        for count, chunk in enumerate(pieces(inner.response.completion), 1):
            yield chunk
            if count % 256 == 0:
                await asyncio.sleep(0)

    # ── one hook ─────────────────────────────────────────────────────────────────────────────

    async def _called(
        self,
        middleware: Middleware,
        hook: str,
        call: Callable[[], Any],
        deadline: float = math.inf,
        read: _Upstream | None = None,
    ) -> Any:
        """Call one hook within its time.

        Args:
            middleware: Its owner.
            hook: Its name.
            call: Calls it.
            deadline: Of the request.
            read: What the hook reads; waiting for that does not count.
        """
        most = self._seconds_per_hook
        own = most if read is None else read.own()
        in_time = deadline - self._clock.now()
        seconds = min(own, in_time)
        problem, places, late = "", "", seconds <= 0
        try:
            if not late:
                return await self._bounded(call, seconds, None if read is None else read.left)
            problem = f"took more than {most:g} s"
        except (MiddlewareRefusedError, MiddlewareFailedError):
            raise
        except _LateError:
            problem, late = f"took more than {most:g} s", True
        except _HookError as error:
            problem = str(error)
        except Exception as error:  # the application's own code may raise anything
            if read is not None and error is read.error:
                raise
            problem = f"raised {type(error).__name__}"
            # Places without values: the error's text may quote the request.
            places = "".join(traceback.format_tb(error.__traceback__))
        if late and in_time < own:
            name = type(middleware).__qualname__
            raise DeadlineExceededError(f"The request's deadline passed in the middleware {name}.")
        raise _failed(middleware, hook, problem, places)

    async def _bounded(self, call: Callable[[], Any], seconds: float, more: PutOff | None) -> Any:
        """Return the result of a hook; also one that swallows its cancellation is late."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - the pipeline runs in tasks
        cancelling, limit = task.cancelling(), None
        try:
            async with self._clock.timeout(seconds, more=more) as limit:
                result = call()
                is_async = inspect.isawaitable(result)
                if is_async:
                    result = await result
        except asyncio.CancelledError:
            if task.cancelling() > cancelling:
                raise
            raise _HookError("was cancelled from within") from None
        except Exception:
            if limit is None or not limit.expired():
                raise
        if task.cancelling() > cancelling:
            raise asyncio.CancelledError
        if limit.expired():
            raise _LateError
        if not is_async:
            raise _HookError("is not async; write `async def`")
        return result


class _HookError(Exception):
    """A hook is at fault without having raised anything."""


class _LateError(Exception):
    """A hook has taken too long."""


class _StartOverError(Exception):
    """The stream starts over."""


class _UntilRestart:
    """The content of a stream until its end, or until it starts over."""

    __slots__ = ("_chunks", "_ended")

    def __init__(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        self._chunks = ClosedByUs(chunks)
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        while not self._ended:
            chunk = await anext(self._chunks)
            self._ended = chunk.restarted or chunk.finish_reason is not None
            if chunk.restarted:
                raise _StartOverError
            if chunk.native_events:
                chunk = replace(chunk, native_events=())
            if not self._ended and chunk != Chunk(index=chunk.index):
                return chunk
        raise StopAsyncIteration


class _Upstream:
    """What the hook of a stream reads; remembers what the hook has taken since, and what it raised.

    The time of the hook is what passes within its calls since it has read last, so that one that
    yields without end fails, and a caller that reads slowly does not count.
    """

    __slots__ = ("_chunks", "_clock", "_deadline", "_left", "_most", "_since", "_waits", "error")

    def __init__(
        self, chunks: AsyncIterator[Chunk], clock: Clock, most: float, deadline: float
    ) -> None:
        self._chunks = chunks
        self._clock = clock
        self._most = self._left = most
        self._deadline = deadline
        self._since: float | None = None  # when the call began, or has read last
        self._waits = False
        self.error: Exception | None = None

    def begin(self) -> None:
        """Begin a call of the hook."""
        self._since = self._clock.now()

    def end(self) -> None:
        """End it."""
        self._left, self._since = self.own(), None

    def own(self) -> float:
        """Return the seconds that the hook itself has left."""
        since = self._since
        taken = 0.0 if since is None or self._waits else self._clock.now() - since
        return self._left - taken

    def left(self, *_: float) -> float:
        """Return the seconds that it has left, of the request's, too."""
        return min(self.own(), self._deadline - self._clock.now())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        self._waits = True
        self._left = self._most
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise
        finally:
            self._waits = False
            self._since = self._clock.now()


def _failed(
    middleware: Middleware, hook: str, problem: str, places: str = ""
) -> MiddlewareFailedError:
    """Return the error of a hook, and log it."""
    name = type(middleware).__qualname__
    message = f"The middleware {name} failed: {hook} {problem}".rstrip(".") + "."
    _log.error("%s%s", message, f"\n{places}".rstrip())
    return MiddlewareFailedError(message)


async def _iterated(chunks: Iterable[Chunk]) -> AsyncGenerator[Chunk, None]:
    for chunk in chunks:
        yield chunk


def _without_content(request: ChatRequest | EmbeddingRequest) -> ChatRequest | EmbeddingRequest:
    if isinstance(request, ChatRequest):
        return replace(request, messages=())
    return replace(request, inputs=())


def _as_chat(request: ChatRequest) -> ChatRequest:
    """Return a request without its body in another protocol."""
    native = request.native
    if native is None:
        return request
    if native.only is None:
        return replace(request, native=None)
    raise RequestRejectedError(
        f"{native.only}: no chat can say this, and the middleware of this gateway lets chats alone"
        f" pass; {native.instead}.",
        param=native.only,
    )


def _unsendable(error: Exception) -> str:
    """Say why a request cannot be sent: the messages of validation quote no content."""
    why = str(error) if isinstance(error, RequestRejectedError) else type(error).__name__
    return f"left a request that cannot be sent: {why}"


def _written(request: ChatRequest) -> bytes:
    return encoded_json((request.messages, request.params), "messages or params")


def _origin(request: ChatRequest | EmbeddingRequest) -> Origin:
    return Origin(
        request.request_id,
        request.partition,
        request.headers,
        request.on_cost,
        request.tenant,
        needs_price=request.needs_price,
    )


def _consistent(
    request: ChatRequest, old: ChatResponse, completion: Completion, parsed: Any
) -> ChatResponse:
    """Return the answer as changed, without what belongs to the answer as it was."""
    if completion == old.completion:
        return replace(old, parsed=parsed)
    choices = tuple(
        new if new.text == was.text else replace(new, logprobs_json=None)
        for was, new in zip(old.choices, completion.choices, strict=True)
    )
    if choices[0].text != old.text and parsed is old.parsed:
        parsed, problem = None, False
        try:
            parsed = parse(request.response_model, completion)
        except RequestRejectedError:
            problem = True
        if problem:
            raise MiddlewareFailedError(
                "Middleware has changed the answer: it no longer parses as `response_format`."
            )
    return replace(old, completion=replace(completion, choices=choices, native=None), parsed=parsed)


def _assembled(request: ChatRequest, inner: StreamOutcome, said: Assembly) -> ChatResponse:
    """Return the whole answer of a stream, with the content that passed."""
    response = inner.response
    assert response is not None  # noqa: S101 - its content has come to its end
    completion = replace(response.completion, choices=_choices(response, said), native=None)
    return _consistent(request, response, completion, response.parsed)


def _choices(response: ChatResponse, said: Assembly) -> tuple[Choice, ...]:
    """Return the answers with the content that passed, and else as they were."""
    missing = (Choice(),) * len(response.choices)
    return tuple(
        replace(new, finish_reason=_reason(was, new), logprobs_json=was.logprobs_json)
        for was, new in zip(response.choices, said.completion().choices + missing, strict=False)
    )


def _is_choice(value: Any) -> bool:
    return isinstance(value, Choice) and isinstance(value.text, str)


def _reason(was: Choice, new: Choice) -> str | None:
    """Return why an answer ended whose tool calls may have been taken out."""
    removed = was.finish_reason == "tool_calls" and not new.tool_calls
    return "stop" if removed else was.finish_reason
