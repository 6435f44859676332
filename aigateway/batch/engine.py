"""Many requests at once: bounded, in order or as they come, over any chat callable.

`batch` collects everything, `as_completed` hands out what is done. Neither knows of vendors, caches
or providers: they are given something that answers one request, and see to it that at most so many
are out, that one bad request harms no other, that none is burnt while nobody can be asked
(`batch/outage.py`), and that nothing is left behind.

Only a window of the requests is in memory: the input is read as far as there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
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
from dataclasses import dataclass, field
from typing import Any, Literal

from aigateway.batch.items import Wanted, read_request
from aigateway.batch.outage import Patience
from aigateway.clock import Clock
from aigateway.errors import (
    AllProvidersFailedError,
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
from aigateway.request.checks import check_patience, check_seconds

__all__ = [
    "Ask",
    "Concurrency",
    "Requests",
    "Terms",
    "as_completed",
    "batch",
    "limit_of",
]

_log = logging.getLogger(__name__)

_AT_ONCE = 16
"""Calls begun after which others on the event loop have their turn. Beginning one takes about
100 microseconds, so a thousand begun in one go would hold up everybody else."""

Concurrency = int | Literal["auto"]
"""How many requests may be out at once; "auto" follows the providers' own limits."""

Requests = Iterable[Any] | AsyncIterable[Any]
"""Prompts, lists of messages, mappings or `ChatRequest`s, from wherever they come."""

Ask = Callable[[Any, Mapping[str, Any]], Awaitable[ChatResponse]]
"""Answers one request, given its prompt (or messages) and its options."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How requests are taken through.

    Attributes:
        clock: Time.
        limit: How many may be out (and, of `as_completed`, done and not taken yet); read anew
            whenever there may be room.
        timeout: Seconds for all of them; None sets no bound.
        shared: Options for each request; its own stand over them.
        on_progress: Is called after each request.
        read: Makes sense of one element of the input. Raises `RequestRejectedError`.
        outage_patience: Seconds for which requests are held back while nobody can be asked; 0 not
            at all, None without end.
        away: Seconds until somebody who serves a model can be asked; 0 if somebody can be now, or
            if waiting is no use. Takes whatever stands as "model", and never raises.
        last_resort: Seconds until one request may go out all the same, as the last resort; infinite
            if none may. Likewise.
        refusal: The error for a request that is not asked, since no provider can be. Likewise.
        offline: Whether no connection can be made to anybody.
    """

    clock: Clock
    limit: Callable[[], int]
    timeout: float | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    on_progress: Callable[[BatchProgress], object] | None = None
    read: Callable[[Any], Wanted] = read_request
    outage_patience: float | None = 300.0
    away: Callable[[object], float] = lambda _: 0.0
    last_resort: Callable[[object], float] = lambda _: math.inf
    refusal: Callable[[object], GatewayError] = lambda _: AllProvidersFailedError.of(())
    offline: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        if self.outage_patience is not None:
            check_patience("outage_patience", self.outage_patience)
        _check_listener(self.on_progress)


def limit_of(concurrency: object, most: int, bearable: Callable[[], int]) -> Callable[[], int]:
    """What `concurrency` means.

    Args:
        concurrency: A number, or "auto".
        most: More than that would only stand in a queue.
        bearable: How many at once are right at the moment, for "auto".

    Raises:
        RequestRejectedError: It is neither.
    """
    if concurrency == "auto":
        return lambda: max(1, min(bearable(), most))
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
    ask: Ask, requests: Requests, terms: Terms, *, fail_fast: bool = False
) -> BatchResult:
    """Take all requests through, and collect what became of them, in their order.

    Raises:
        RequestRejectedError: `requests` is nothing that holds requests.
        Exception: With `fail_fast`, the first error, of a request or of the input.
    """
    run = _Run(ask, requests, terms)
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
    )


def as_completed(ask: Ask, requests: Requests, terms: Terms) -> AsyncGenerator[BatchItem, None]:
    """Take requests through, and hand each out when it is done.

    Raises:
        RequestRejectedError: `requests` is nothing that holds requests.
        DeadlineExceededError: While iterating: the timeout was over before the input was read.
        Exception: While iterating: what the input raised, after what had been read is done.
    """
    return _Run(ask, requests, terms).items(raising=True)


# ── one batch under way ──────────────────────────────────────────────────────────────────────


class _Tally:
    """What became of the requests so far."""

    __slots__ = ("cached", "cost_usd", "done", "failed", "usage")

    def __init__(self) -> None:
        self.done = self.failed = self.cached = 0
        self.usage = Usage()
        self.cost_usd = 0.0

    def add(self, item: BatchItem) -> None:
        """Count one that is done."""
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
    """A request that has been taken from the input."""

    index: int
    id: str
    request: Any
    at: float


class _Run:
    """One batch under way: a task reads the input, one task each asks, `items` hands out.

    Attributes:
        tally: What became of the requests so far.
        complete: The input was read to its end.
        input_error: What the input raised, if it did.
    """

    def __init__(self, ask: Ask, requests: Requests, terms: Terms) -> None:
        if isinstance(requests, str | bytes | Mapping | ChatRequest) or not isinstance(
            requests, Iterable | AsyncIterable
        ):
            raise RequestRejectedError(
                "requests must be a list, a generator or an async iterator of requests, not"
                f" {type(requests).__name__}; for one request there is chat()."
            )
        self._ask = ask
        self._requests = requests
        self._terms = terms
        self._patience = Patience(
            terms.clock,
            terms.outage_patience,
            terms.away,
            terms.offline,
            last_resort=terms.last_resort,
            refusal=terms.refusal,
        )
        self._total = len(requests) if isinstance(requests, Sized) else None
        self._asked: dict[asyncio.Task[ChatResponse], _Begun] = {}
        self._done: deque[BatchItem] = deque()
        self._taken = 0
        self._read_up = False  # nothing more comes from the input
        self._late = False
        self._fatal: BaseException | None = None  # what must not be swallowed
        self._news = asyncio.Event()  # for `items`: something is done, or nothing more comes
        self._room = asyncio.Event()  # for who reads the input
        self.tally = _Tally()
        self.complete = False
        self.input_error: Exception | None = None

    async def items(self, *, raising: bool = False) -> AsyncGenerator[BatchItem, None]:
        """What is done, as it is done. Leaving it ends everything that is under way.

        Args:
            raising: Whether what the input raised is raised, after everything else.
        """
        reader = asyncio.create_task(self._read(), name="aigateway-batch-input")
        reader.add_done_callback(self._input_over)
        helpers: list[asyncio.Task[None]] = [reader]
        if self._terms.timeout is not None:
            timer = self._end_after(self._terms.timeout, reader)
            helpers.append(asyncio.create_task(timer, name="aigateway-batch-timeout"))
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
            await self._end([*self._asked, *helpers])
        if raising and self.input_error is not None:
            raise self.input_error
        if raising and not self.complete:
            raise DeadlineExceededError(
                f"The batch's timeout of {self._terms.timeout:g} s was over before its input was"
                " read to its end."
            )

    async def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        self._asked.clear()  # whatever they still bring is of no interest
        interrupted: asyncio.CancelledError | None = None
        while not all(task.done() for task in tasks):
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError as error:  # a second time: nothing is left all the same
                interrupted = error
        if interrupted is not None:
            raise interrupted

    async def _end_after(self, seconds: float, reader: asyncio.Task[None]) -> None:
        """End what is not done by then. What can be counted is read to its end all the same."""
        await self._terms.clock.sleep(seconds)
        self._late = True
        for task in self._asked:
            task.cancel()
        if self._total is None or isinstance(self._requests, AsyncIterable):
            reader.cancel()

    # ── the input ────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        """Take requests from the input, as far as there is room for them."""
        if isinstance(self._requests, AsyncIterable):
            async for request in self._requests:
                await self._take(request)
        else:
            for request in self._requests:
                await self._take(request)

    def _input_over(self, reader: asyncio.Task[None]) -> None:
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
        """Begin one request, and come back when there is room for the next."""
        self._begin(request)
        if self._taken % _AT_ONCE == 0:
            await asyncio.sleep(0)
        while len(self._asked) + len(self._done) >= self._terms.limit():
            self._room.clear()
            await self._room.wait()

    def _begin(self, request: Any) -> None:
        begun = _Begun(self._taken, str(self._taken), request, self._terms.clock.now())
        self._taken += 1
        try:
            wanted = self._terms.read(request)
        except Exception as error:  # noqa: BLE001 - a mapping of the caller's may raise anything
            self._over(begun, error=error)
            return
        if wanted.id is not None:
            begun = _Begun(begun.index, wanted.id, request, begun.at)
        if self._late:
            self._over(begun, error=self._too_late())
            return
        task = asyncio.create_task(self._answer(wanted))
        self._asked[task] = begun
        task.add_done_callback(self._answered)

    # ── one request ──────────────────────────────────────────────────────────────────────────

    async def _answer(self, wanted: Wanted) -> ChatResponse:
        options = {**self._terms.shared, **wanted.options}
        return await self._patience.answer(
            options.get("model"), lambda: self._ask(wanted.prompt, options)
        )

    def _answered(self, task: asyncio.Task[ChatResponse]) -> None:
        begun = self._asked.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if begun is None:
            return  # everything was left meanwhile
        if task.cancelled():
            self._over(begun, error=self._too_late() if self._late else _cancelled())
        elif isinstance(error, GatewayError):
            self._over(begun, error=_without_frames(error))
        elif isinstance(error, Exception):
            self._over(begun, error=error)
        elif error is None:
            self._over(begun, response=task.result())
        else:  # Ctrl-C and the like, which are nobody's answer
            self._fatal = error
            self._news.set()

    def _over(
        self,
        begun: _Begun,
        *,
        response: ChatResponse | None = None,
        error: Exception | None = None,
    ) -> None:
        item = BatchItem(
            begun.index,
            begun.id,
            begun.request,
            response,
            error,
            () if response is None else response.attempts,
            self._terms.clock.now() - begun.at,
        )
        self.tally.add(item)
        self._done.append(item)
        self._news.set()
        if self._terms.on_progress is not None:
            self._tell(self._terms.on_progress)

    def _tell(self, on_progress: Callable[[BatchProgress], object]) -> None:
        tally = self.tally
        progress = BatchProgress(
            tally.done, tally.failed, tally.cached, self._total, tally.usage, tally.cost_usd
        )
        try:
            on_progress(progress)
        except Exception as exc:  # noqa: BLE001 - who watches must not change what happens
            _log.warning("on_progress raised %s; the batch goes on.", type(exc).__name__)

    def _too_late(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"The batch's timeout of {self._terms.timeout:g} s was over before this request was"
            " done. Raise `timeout` or `concurrency`, or ask again for what is missing."
        )


def _without_frames(error: GatewayError) -> GatewayError:
    """Its words say all; its traceback would keep the whole request in memory."""
    if error.__suppress_context__:
        error.__context__ = None
    return error.with_traceback(None)


def _cancelled() -> GatewayError:
    return GatewayError("The task that asked for this was cancelled, and not by the batch.")
