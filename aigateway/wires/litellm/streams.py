"""Streams of the litellm lane, read without what litellm invents.

litellm's stream wrapper invents a finish reason for a stream that was cut and a usage that no
vendor sent, and forgets the ends of all answers but the first. So a stream is read one step before
it: the vendor's events as litellm has translated them. The wrapper still runs where the user has
callbacks registered with litellm, which see the stream through it. Its chunks are read only where
those before it have no common form: some of `ProviderType.LITELLM`'s, and the models that litellm
bridges to another API.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from aigateway.messages import Chunk, Completion
from aigateway.wires.answers import empty_answer_kind
from aigateway.wires.assembly import Assembly
from aigateway.wires.client import Failure, VendorCallError, retrieve_exception
from aigateway.wires.content import ThinkingKeeper, speech_in
from aigateway.wires.litellm.chunks import ChunkReader, End
from aigateway.wires.litellm.connections import StreamedBody, has_callbacks
from aigateway.wires.pricing import Tariff
from aigateway.wires.registry import endings_in
from aigateway.wires.wire import AnswerEnd, BrokenOffError

__all__ = ["LiteLLMStream", "StreamOrigin", "opened"]


@dataclass(frozen=True, slots=True)
class StreamOrigin:
    """What a stream needs of the call that opened it.

    Everything of litellm's has to run in `context`. `body` is None where litellm's own connections
    are used. `failure` classifies an exception, or a premature end (None). `stops` says whether the
    request has `stop`.
    """

    litellm: Any
    context: Context
    body: StreamedBody | None
    status: int | None
    failure: Callable[[BaseException | None], Failure]
    tariff: Tariff
    stops: bool


async def opened(acompletion: Callable[..., Coroutine[Any, Any, Any]], **arguments: Any) -> Any:
    """Call `litellm.acompletion`, and see that the request is sent (for Gemini, it waits)."""
    wrapper = await acompletion(**_unpriced(arguments))
    if getattr(wrapper, "completion_stream", wrapper) is None:
        await wrapper.fetch_stream()
    return wrapper


def _unpriced(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keep litellm from pricing a stream of which nothing has come.

    It would count the tokens of no text, and fetch a tokenizer from Hugging Face for that if the
    model's name is one of Llama's, while the event loop waits.
    """
    try:
        from litellm.utils import Rules, function_setup  # noqa: PLC0415 - loaded by now

        call = {"litellm_call_id": str(uuid4()), **arguments}
        begun = datetime.now()  # noqa: DTZ005 - as litellm's own
        log, call = function_setup("acompletion", Rules(), begun, **call)
        cost = log.response_cost_calculator
        log.response_cost_calculator = lambda *given, **named: (
            None if _is_open(*given, **named) else cost(*given, **named)
        )
    except Exception:  # noqa: BLE001 - another version of litellm does it by itself
        return arguments
    return {**call, "litellm_logging_obj": log}


def _is_open(result: Any = None, *_: Any, **__: Any) -> bool:
    return hasattr(result, "completion_stream")


class LiteLLMStream:
    """A `VendorStream` over the wrapper that litellm returned."""

    def __init__(self, wrapper: Any, origin: StreamOrigin, assembly: Assembly) -> None:
        self._origin = origin
        self._reader = ChunkReader(assembly)
        self._whole = False
        self._closed = False
        self._wrapper: Any = wrapper
        self._tap: _Tap | None = None
        source = getattr(wrapper, "completion_stream", None)
        if isinstance(source, AsyncIterable):
            self._tap = wrapper.completion_stream = _Tap(source, origin.body)
        self._driver: AsyncIterator[Any] = wrapper.__aiter__()
        if self._tap is not None and origin.body is not None and not has_callbacks(origin.litellm):
            self._driver = self._tap

    @property
    def finished(self) -> bool:
        """See `VendorStream`."""
        return self._reader.assembly.finished

    async def read(self) -> Sequence[Chunk] | None:
        """See `VendorStream.read`."""
        if self._whole:
            return None
        if self._closed:
            raise RuntimeError("This stream is closed.")
        # A task of its own, because litellm has to run in the context of the call.
        step = asyncio.create_task(self._step(), context=self._origin.context)
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError:
            step.cancel()
            step.add_done_callback(retrieve_exception)
            await asyncio.wait([step])
            await self.aclose()
            raise
        error = asyncio.CancelledError() if step.cancelled() else step.exception()
        chunks = None if error is not None else step.result()
        if chunks is not None:
            return [*chunks, *self._reader.assembly.last_pieces()] if self.finished else chunks
        if self._tap is not None and self._tap.is_over:
            error = None  # newer ones of litellm make one of an end without a finish reason
        failure = None if self._is_whole(error) else self._origin.failure(self._reason(error))
        # Neither behind our exception nor among the locals of its traceback is litellm's.
        del step, error
        await self._end(failure)
        return self._reader.assembly.last_pieces() or None

    def _is_whole(self, error: BaseException | None) -> bool:
        body = self._origin.body
        closed = error is None and (body is None or body.is_over)
        return self._reader.assembly.is_whole(closed=closed, broken=error is not None)

    def _reason(self, error: BaseException | None) -> BaseException | None:
        """Return why the answer is not whole: the vendor's reason before litellm's."""
        ending = self._reader.assembly.broken_off
        return error if ending is None else BrokenOffError(ending.body)

    def completion(self) -> Completion:
        """See `VendorStream`."""
        completion = self._reader.completion()
        if not completion.usage.total_tokens:
            return completion
        return replace(completion, cost_usd=self._cost(completion))

    def _cost(self, completion: Completion) -> float | None:
        # litellm prices streams at 0.
        litellm, counted = self._origin.litellm, self._reader.usage
        try:
            usage = litellm.Usage(**{name: n for name, n in counted.items() if n is not None})
            response = litellm.ModelResponse(model=completion.model, usage=usage)
            response.service_tier = completion.service_tier
        except Exception:  # noqa: BLE001 - an answer without a price is still an answer
            return None
        return self._origin.tariff.cost(response, completion)

    async def aclose(self) -> None:
        """Close the connection, unless the answer was read to its end. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._origin.body is not None:
            self._origin.body.close()
            if self._whole:
                return
        step = asyncio.create_task(self._unwind(), context=self._origin.context)
        try:
            await asyncio.wait([step])
        finally:
            step.cancel()  # where the wait itself was cancelled

    async def _end(self, failure: Failure | None) -> None:
        """Finish a stream. Raises `VendorCallError` if it failed or says nothing."""
        answer = None
        if failure is None:
            self._whole = True
            if self._origin.body is not None:
                await self._origin.body.end()
            answer = self.completion()
            silence = empty_answer_kind(answer.choices, stops=self._origin.stops)
            if silence is None:
                return
            failure = Failure(silence, self._origin.status)
        await self.aclose()
        raise VendorCallError(failure, answer)

    async def _step(self) -> list[Chunk] | None:
        """Let litellm go on to the vendor's next event, and read it. None at the end."""
        chunk = await anext(self._driver, None)
        if self._tap is None or self._tap.is_foreign:
            pieces = self._reader.read(chunk, End.INVENTED)
            self._accept_wrapper()
        else:
            pieces = []
            body = self._origin.body
            if body is not None:
                self._reader.assembly.not_for_the_caller |= body.server_calls
            for passed, endings in self._tap.take():
                pieces += self._reader.read(passed, self._end_of(passed), endings)
        if chunk is not None or pieces:
            return pieces
        return self._reader.accept_doubtful_ends() or None

    def _end_of(self, chunk: Any) -> End:
        # litellm says "stop" with every event of Gemini's, and this beside it.
        hidden = getattr(chunk, "_hidden_params", None) or {}
        doubtful = self._origin.body is None and hidden.get("is_finished") is False
        return End.DOUBTFUL if doubtful else End.TRUE

    def _accept_wrapper(self) -> None:
        """Take the end and the usage from litellm's wrapper, as far as the vendor sent them."""
        reason = getattr(self._wrapper, "received_finish_reason", None) or getattr(
            self._wrapper, "intermittent_finish_reason", None
        )
        if reason and not self.finished:
            self._reader.finish_all(str(reason))
        for chunk in (getattr(self._wrapper, "chunks", None) or ())[-2:]:
            self._reader.count(getattr(chunk, "usage", None))

    async def _unwind(self) -> None:
        """Run litellm's generators to their ends, so that no error goes unretrieved."""
        with suppress(Exception):
            if self._origin.body is not None:
                await self._read_out()
                return
            if not self._whole:
                # Not all of litellm's streams have a way to be closed, but a read that is
                # cancelled closes every connection.
                reading = asyncio.create_task(self._read_out())
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait([reading])
            await self._wrapper.aclose()

    async def _read_out(self) -> None:
        """Read until it breaks. Behind what is buffered of a closed body comes an error."""
        with suppress(Exception):
            while self._tap is not None:
                await anext(self._tap)


class _Tap:
    """The vendor's events as litellm translates them, noted as they pass.

    `is_foreign`: something passed that is not of OpenAI's shape. `is_over`: they came to their end.
    """

    def __init__(self, source: Any, body: StreamedBody | None) -> None:
        self._source = source
        self._iterator = source.__aiter__()
        self._body = body
        self._passed: list[tuple[Any, dict[int, AnswerEnd] | None]] = []
        self._thinking = ThinkingKeeper()
        self.is_foreign = False
        self.is_over = False

    def __aiter__(self) -> _Tap:
        return self

    async def __anext__(self) -> Any:
        while True:
            try:
                chunk = await anext(self._iterator)
            except StopAsyncIteration:
                self.is_over = True
                raise
            if hasattr(chunk, "choices"):
                event = None if self._body is None else self._body.event
                endings = endings_in(event)
                if endings is not None:
                    _correct(chunk, event, endings)
                    if isinstance(event, Mapping) and "content_block" in str(event.get("type")):
                        for choice in chunk.choices:
                            choice.delta.thinking_blocks = self._thinking.take(event) or None
                self._passed.append((chunk, endings))
                return chunk
            if chunk is not None and not _is_empty(chunk):
                self.is_foreign = True
                return chunk

    def take(self) -> list[tuple[Any, dict[int, AnswerEnd] | None]]:
        """Return what has passed since the last time, with the ends in the vendor's events."""
        passed, self._passed = self._passed, []
        return passed

    async def aclose(self) -> None:
        """Close the source, whichever way it has."""
        for holder in (self._iterator, self._source):
            close = getattr(holder, "aclose", None) or getattr(holder, "close", None)
            closing = close() if callable(close) else None
            if inspect.isawaitable(closing):
                await closing


def _correct(chunk: Any, event: Any, endings: Mapping[int, AnswerEnd]) -> None:
    """Believe the vendor's event, not litellm: of Gemini's each is a "stop", and without speech."""
    candidates = event.get("candidates") if isinstance(event, Mapping) else None
    listed = candidates if isinstance(candidates, list) else ()
    sent = {c.get("index", n): c for n, c in enumerate(listed) if isinstance(c, Mapping)}
    for choice in chunk.choices:
        index = choice.index or 0
        if choice.finish_reason and index not in endings:
            choice.finish_reason = None
        speech = speech_in(sent.get(index, {}))
        if speech:
            choice.delta.audio = {"data": "".join(speech)}


def _is_empty(chunk: object) -> bool:
    """Return whether this is litellm's own form of a chunk, for a line without data."""
    names = ("text", "tool_use", "finish_reason", "usage", "provider_specific_fields")
    return isinstance(chunk, Mapping) and not any(map(chunk.get, names))
