"""Run many requests at once over any chat callable, in order or as they complete.

`batch` collects every item; `as_completed` yields each when it is done. Both bound the requests in
flight, keep one bad request from harming others, wait during an outage (`batch/outage.py`), and
leave no task behind. The engine knows nothing of vendors, caches or providers.

Memory holds only a window of the requests: the input is read as far as there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sized,
)
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from aigateway.batch.items import Prompt, given_id, read_request, reader_of, rows_of
from aigateway.batch.outage import Availability, OutageWait
from aigateway.batch.progress import Show
from aigateway.clock import Clock
from aigateway.errors import (
    DeadlineExceededError,
    GatewayError,
    RequestRejectedError,
)
from aigateway.messages import (
    BatchItem,
    BatchProgress,
    BatchResult,
    ChatRequest,
    ChatResponse,
    Usage,
)
from aigateway.options import Requests
from aigateway.request.checks import check_patience, check_seconds
from aigateway.structured import fields_of

__all__ = [
    "Ask",
    "BatchRun",
    "as_completed",
    "batch",
    "limit_of",
]

_log = logging.getLogger(__name__)

_PER_TURN = 16
"""Calls begun in one turn of the event loop. Beginning one takes about 100 microseconds, so a
thousand at once would block everything else on the loop."""

_CANCELLED = "The task of this request was cancelled from outside the batch."

Ask = Callable[[Any, Mapping[str, Any]], Awaitable[ChatResponse[Any]]]
"""Answers one request, given its prompt (or messages) and its options."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """How one batch runs.

    Attributes:
        clock: Time.
        limit: The most requests in flight (for `as_completed`, in flight or done and not taken
            yet); read again whenever there may be room.
        timeout: Seconds for the whole batch; None sets no bound.
        shared: Options of every request; its own take precedence.
        on_progress: Called after each request.
        read: Reads one element of the input. Raises `RequestRejectedError`.
        outage_patience: Seconds for which requests wait during an outage; 0 disables waiting,
            None waits without limit.
        availability: Which providers can be reached.
        display: Opens what shows the progress.
    """

    clock: Clock
    limit: Callable[[], int]
    timeout: float | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    on_progress: Callable[[BatchProgress], object] | None = None
    read: Callable[[Any], Prompt] = read_request
    outage_patience: float | None = 300.0
    availability: Availability = field(default_factory=Availability)
    display: Callable[[], AbstractContextManager[Show | None]] = nullcontext

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        if self.outage_patience is not None:
            check_patience("outage_patience", self.outage_patience)
        _check_listener(self.on_progress)


def limit_of(concurrency: object, most: int, adaptive: Callable[[], int]) -> Callable[[], int]:
    """Return a function that gives the limit on requests in flight.

    Args:
        concurrency: A number, or "auto".
        most: The upper bound; more would only wait in a queue.
        adaptive: The current limit for "auto".

    Raises:
        RequestRejectedError: It is neither.
    """
    if concurrency == "auto":
        return lambda: max(1, min(adaptive(), most))
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise RequestRejectedError('concurrency must be a whole number from 1, or "auto".')
    bound = min(concurrency, most)
    return lambda: bound


def _check_listener(on_progress: object) -> None:
    if on_progress is None:
        return
    if not callable(on_progress) or inspect.iscoroutinefunction(on_progress):
        raise RequestRejectedError("on_progress must be a plain function of one argument.")


async def batch(
    ask: Ask, requests: Requests, options: BatchRun, *, fail_fast: bool = False
) -> BatchResult:
    """Run all requests and return their items, in the order of the input.

    Raises:
        RequestRejectedError: `requests` is not an input of requests.
        Exception: With `fail_fast`, the first error, of a request or of the input.
    """
    run = _Run(ask, requests, options)
    items: list[BatchItem | None] = []
    async with contextlib.aclosing(run.items()) as finished:
        async for item in finished:
            if fail_fast and item.error is not None:
                raise item.error
            items.extend([None] * (item.index + 1 - len(items)))
            items[item.index] = item
    if fail_fast and run.input_error is not None:
        raise run.input_error
    in_order = tuple(item for item in items if item is not None)
    return BatchResult(
        in_order,
        usage=run.tally.usage,
        cost_usd=run.tally.cost_usd,
        complete=run.complete,
        input_error=run.input_error,
        fields=fields_of(options.shared.get("response_format")),
    )


def as_completed(
    ask: Ask, requests: Requests, options: BatchRun
) -> AsyncGenerator[BatchItem, None]:
    """Run requests and yield each item when it is done.

    Raises:
        RequestRejectedError: `requests` is not an input of requests.
        DeadlineExceededError: While iterating: the timeout passed before the input was read.
        Exception: While iterating: what the input raised, once the requests before it are done.
    """
    return _Run(ask, requests, options).items(raising=True)


# ── one running batch ────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _BatchTally:
    """Counts of the requests that are done."""

    done: int = 0
    failed: int = 0
    cached: int = 0
    usage: Usage = Usage()  # noqa: RUF009 - it is frozen
    cost_usd: float = 0.0

    def add(self, item: BatchItem) -> None:
        self.done += 1
        response = item.response
        if response is None:
            self.failed += 1
            return
        self.cached += response.cached
        if not response.cached and not response.coalesced:
            self.usage += response.usage
            self.cost_usd += response.cost_usd or 0.0


@dataclass(frozen=True, slots=True)
class _Begun:
    """A request that was read from the input."""

    index: int
    id: str
    request: Any
    at: float


class _Run:
    """One running batch: one task reads the input, one task per request asks, `items` yields.

    Attributes:
        tally: Counts so far.
        complete: Whether the input was read to its end.
        input_error: What the input raised, if anything.
    """

    def __init__(self, ask: Ask, requests: Requests, options: BatchRun) -> None:
        requests = rows_of(requests)
        if isinstance(requests, str | bytes | Mapping | ChatRequest) or not isinstance(
            requests, Iterable | AsyncIterable
        ):
            raise RequestRejectedError(
                "requests must be a list, a generator or an async iterator of requests, not"
                f" {type(requests).__name__}; for one request there is chat()."
            )
        self._ask = ask
        self._requests = requests
        self._read_one = reader_of(requests, options.read)
        self._options = options
        self._outage = OutageWait(options.clock, options.outage_patience, options.availability)
        self._total = len(requests) if isinstance(requests, Sized) else None
        self._asked: dict[asyncio.Task[ChatResponse[Any]], _Begun] = {}
        self._done: deque[BatchItem] = deque()
        self._taken = 0
        self._read_up = False  # the input is exhausted
        self._late = False
        self._fatal: BaseException | None = None  # KeyboardInterrupt and the like
        self._news = asyncio.Event()  # for `items`: a request is done, or the input is exhausted
        self._room = asyncio.Event()  # for the task that reads the input
        self._shown = contextlib.ExitStack()
        self._show: Show | None = None
        self.tally = _BatchTally()
        self.complete = False
        self.input_error: Exception | None = None

    async def items(self, *, raising: bool = False) -> AsyncGenerator[BatchItem, None]:
        """Yield items as they are done. Leaving the iterator cancels all tasks.

        Args:
            raising: Whether to raise the input's error, after everything else.
        """
        reader = asyncio.create_task(self._read(), name="aigateway-batch-input")
        reader.add_done_callback(self._input_ended)
        helpers: list[asyncio.Task[None]] = [reader]
        if self._options.timeout is not None:
            timer = self._end_after(self._options.timeout, reader)
            helpers.append(asyncio.create_task(timer, name="aigateway-batch-timeout"))
        self._show = self._shown.enter_context(self._options.display())
        if self._show is not None:
            self._show(self._progress)
        try:
            while True:
                while self._done:
                    yield self._done.popleft()
                    self._room.set()
                if self._fatal is not None:
                    raise self._fatal
                if self._read_up and not self._asked:
                    break
                self._news.clear()
                await self._news.wait()
        finally:
            with self._shown:
                await self._end([*self._asked, *helpers])
        if raising and self.input_error is not None:
            raise self.input_error
        if raising and not self.complete:
            raise DeadlineExceededError(
                f"The batch's timeout of {self._options.timeout:g} s passed before its input was"
                " read to its end."
            )

    async def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        self._asked.clear()  # their results are dropped
        interrupted: asyncio.CancelledError | None = None
        while not all(task.done() for task in tasks):
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError as error:  # leave no task behind all the same
                interrupted = error
        if interrupted is not None:
            raise interrupted

    async def _end_after(self, seconds: float, reader: asyncio.Task[None]) -> None:
        """Cancel the requests that are not done by then. An input with a length is still read."""
        await self._options.clock.sleep(seconds)
        self._late = True
        for task in self._asked:
            task.cancel()
        if self._total is None or isinstance(self._requests, AsyncIterable):
            reader.cancel()

    # ── the input ────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        if isinstance(self._requests, AsyncIterable):
            async for request in self._requests:
                await self._take(request)
        else:
            for request in self._requests:
                await self._take(request)

    def _input_ended(self, reader: asyncio.Task[None]) -> None:
        self._read_up = True
        self._news.set()
        error = None if reader.cancelled() else reader.exception()
        self.complete = error is None and not reader.cancelled()
        if isinstance(error, Exception):
            self.input_error = error
        elif reader.cancelled() and not self._late:
            self.input_error = GatewayError("The input of the batch was cancelled.")
        elif error is not None:
            self._fatal = error

    async def _take(self, request: Any) -> None:
        """Begin one request, and return when there is room for the next."""
        self._begin(request)
        if self._taken % _PER_TURN == 0:
            await asyncio.sleep(0)
        while len(self._asked) + len(self._done) >= self._options.limit():
            self._room.clear()
            await self._room.wait()

    def _begin(self, request: Any) -> None:
        begun = _Begun(self._taken, str(self._taken), request, self._options.clock.now())
        self._taken += 1
        try:
            wanted = self._read_one(request)
        except Exception as error:  # noqa: BLE001 - a mapping of the caller may raise anything
            own = given_id(request) or begun.id
            self._finish(_Begun(begun.index, own, request, begun.at), error=error)
            return
        if wanted.id is not None:
            begun = _Begun(begun.index, wanted.id, request, begun.at)
        if self._late:
            self._finish(begun, error=self._timed_out())
            return
        task = asyncio.create_task(self._answer(wanted))
        self._asked[task] = begun
        task.add_done_callback(self._answered)

    # ── one request ──────────────────────────────────────────────────────────────────────────────

    async def _answer(self, wanted: Prompt) -> ChatResponse[Any]:
        options = {**self._options.shared, **wanted.options}
        return await self._outage.answer(
            options.get("model"), lambda: self._ask(wanted.prompt, options)
        )

    def _answered(self, task: asyncio.Task[ChatResponse[Any]]) -> None:
        begun = self._asked.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if begun is None:
            return  # the batch was left meanwhile
        if task.cancelled():
            self._finish(begun, error=self._timed_out() if self._late else GatewayError(_CANCELLED))
        elif isinstance(error, GatewayError):
            self._finish(begun, error=_without_frames(error))
        elif isinstance(error, Exception):
            self._finish(begun, error=error)
        elif error is None:
            self._finish(begun, response=task.result())
        else:  # KeyboardInterrupt and the like: not an answer
            self._fatal = error
            self._news.set()

    def _finish(
        self,
        begun: _Begun,
        *,
        response: ChatResponse[Any] | None = None,
        error: Exception | None = None,
    ) -> None:
        attempts = () if response is None else response.attempts
        rest = (response, error, attempts, self._options.clock.now() - begun.at)
        kind: Any = BatchItem  # at run time: the type checker sees two classes
        item: BatchItem = kind(begun.index, begun.id, begun.request, *rest)
        self.tally.add(item)
        self._done.append(item)
        self._news.set()
        for listener in (self._show, self._options.on_progress):
            if listener is not None:
                self._report(listener)

    @property
    def _progress(self) -> BatchProgress:
        tally = self.tally
        return BatchProgress(
            tally.done, tally.failed, tally.cached, self._total, tally.usage, tally.cost_usd
        )

    def _report(self, on_progress: Callable[[BatchProgress], object]) -> None:
        try:
            on_progress(self._progress)
        except Exception as exc:  # noqa: BLE001 - a listener must not change what happens
            _log.warning("on_progress raised %s; the batch continues.", type(exc).__name__)

    def _timed_out(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"The batch's timeout of {self._options.timeout:g} s passed before this request was"
            " done. Raise `timeout` or `concurrency`, or send the missing requests again."
        )


def _without_frames(error: GatewayError) -> GatewayError:
    """Drop the traceback, which would keep the whole request in memory."""
    if error.__suppress_context__:
        error.__context__ = None
    return error.with_traceback(None)
