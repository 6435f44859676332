"""Many requests at once, as the gateway offers them: batches, maps, and `chat` with options set.

What a batch is stands in `batch/engine.py`; here it meets the providers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aigateway.batch import engine
from aigateway.batch.engine import Concurrency, Requests, Terms
from aigateway.batch.items import row_reader
from aigateway.batch.pacing import Turnstile
from aigateway.clock import Clock
from aigateway.messages import (
    BatchItem,
    BatchProgress,
    BatchResult,
    ChatRequest,
    ChatResponse,
)
from aigateway.resilience.local_faults import Reachability
from aigateway.routing.candidates import Roster
from aigateway.settings import GatewaySettings

__all__ = ["ManyRequests"]


class ManyRequests(ABC):
    """The part of `AsyncGateway` that asks many requests at once."""

    settings: GatewaySettings
    _clock: Clock
    _roster: Roster
    _network: Reachability

    @abstractmethod
    async def chat(
        self, prompt_or_messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatResponse:
        """Answer one request."""

    @abstractmethod
    def check(
        self, prompt_or_messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatRequest:
        """See whether `chat` would take a request."""

    @abstractmethod
    async def _ask(self, prompt: Any, options: Mapping[str, Any]) -> ChatResponse:
        """Answer one request, behind all who ask one by one."""

    @abstractmethod
    def _door(self) -> Turnstile:
        """Where those wait who begin everything at once. Raises `GatewayError` when closed."""

    @abstractmethod
    def _seconds_until_available(self, model: object) -> float:
        """Seconds until a provider of that model can be asked as of right; see `Terms.away`."""

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
        """Ask many requests, and collect what became of each, in their order.

            result = await gateway.batch(["a", {"prompt": "b", "id": "second"}], temperature=0)
            for item in result.items:
                print(item.id, item.response.text if item.ok else item.error)

        One bad request is an item with an error and harms no other. In the queue for free places
        these requests stand behind those of `chat` and `stream`. Cancelling this call ends what
        is in flight.

        Args:
            requests: Prompts, lists of messages, mappings with "prompt" or "messages" (and "id",
                and any option of `chat`) or `ChatRequest`s, in any mix; from a list, a generator
                or an async iterator, which is read only as far as there is room.
            concurrency: How many may be out at once, at most `max_concurrency`; "auto" follows
                what the providers bear at the moment.
            on_progress: Called with a `BatchProgress` after each request, on the event loop. What
                it raises is logged and changes nothing.
            fail_fast: Whether the first error ends the rest and is raised.
            timeout: Seconds for the whole batch; None sets no bound. What is not done by then has
                a `DeadlineExceededError`. Of an input without a length the rest is not read.
                (What bounds one request, each time it is asked, is its "timeout", or the setting.)
            outage_patience: Seconds for which requests are held back, and not burnt, while nobody
                can be asked: every circuit is open, every vendor throttles, or no connection can
                be made at all. Counted from when one found it so until a vendor answers one again.
                When it is over, requests are asked all the same and fail. 0 fails at once, None
                waits without end. `timeout` stands over it.
            **shared: Options of `chat` for every request; its own stand over them.

        Returns:
            Every item. An input that raises ends the batch when what it gave before is done: see
            `BatchResult.input_error`.

        Raises:
            RequestRejectedError: An argument, or a shared option, cannot work.
            UnknownModelError: No provider serves the shared `model`.
            NoProvidersError: There is no provider at all.
            Exception: With `fail_fast`, the first error, be it a request's or the input's.
        """
        terms = self._terms(concurrency, on_progress, timeout, outage_patience, shared)
        return await engine.batch(self._ask, requests, terms, fail_fast=fail_fast)

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
        """Ask many requests, and get each when it is done. Nothing begins before the first step.

            async for item in gateway.as_completed(prompts):
                ...

        At most `concurrency` requests are out, or done and not taken yet: who takes slowly is
        asked for slowly. Leaving early (`break`, `aclose`, an exception, cancellation) ends what
        is in flight; after `break`, as soon as nothing refers to the iterator any more. For "at
        once" use `contextlib.aclosing`.

        Args:
            requests: As for `batch`, like the rest.
            concurrency: As for `batch`.
            on_progress: As for `batch`.
            timeout: As for `batch`; it counts from the first step.
            outage_patience: As for `batch`.
            **shared: As for `batch`.

        Raises:
            RequestRejectedError: An argument, or a shared option, cannot work; raised here.
            UnknownModelError: No provider serves the shared `model`; likewise.
            NoProvidersError: There is no provider at all; likewise.
            Exception: While iterating, at the end: what the input raised.
        """
        terms = self._terms(concurrency, on_progress, timeout, outage_patience, shared)
        return engine.as_completed(self._ask, requests, terms)

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
        """`batch`, with one prompt for each row.

            await gateway.map("Translate into French: {text}", [{"text": "cat", "id": 7}, ...])

        Args:
            template: `{field}` stands for that field of the row, `{{` and `}}` for braces.
            rows: Mappings, from wherever requests may come. A row without a field that the
                template needs, or with None for it, is an item with an error. Its "id", if any,
                becomes the item's.
            concurrency: As for `batch`, like the rest.
            on_progress: As for `batch`.
            fail_fast: As for `batch`.
            timeout: As for `batch`.
            outage_patience: As for `batch`.
            **shared: As for `batch`.

        Raises:
            As `batch`; RequestRejectedError also for a template that cannot work.
        """
        terms = self._terms(concurrency, on_progress, timeout, outage_patience, shared)
        terms = replace(terms, read=row_reader(template))
        return await engine.batch(self._ask, rows, terms, fail_fast=fail_fast)

    def bind(self, **defaults: Any) -> Callable[..., Coroutine[Any, Any, ChatResponse]]:
        """Get `chat` with some options set, for `asyncio.gather` and `asyncio.TaskGroup`.

            ask = gateway.bind(model="fast", system="You are terse.", agent="market")
            replies = await asyncio.gather(*(ask(prompt) for prompt in prompts))

        However many are begun at once, no more than `max_concurrency` bound calls of this gateway
        are under way; the others wait in front of it, in order. They take no place in its queue,
        their `timeout` begins when it is their turn, and the event loop stays responsive.

        Args:
            **defaults: Options of `chat`; those given with a call stand over them.
        """

        async def ask(
            prompt_or_messages: str | Sequence[Mapping[str, Any]], **options: Any
        ) -> ChatResponse:
            async with self._door():
                return await self.chat(prompt_or_messages, **{**defaults, **options})

        return ask

    def _terms(
        self,
        concurrency: Concurrency,
        on_progress: Callable[[BatchProgress], object] | None,
        timeout: float | None,
        outage_patience: float | None,
        shared: Mapping[str, Any],
    ) -> Terms:
        # What is wrong with a shared option is one error, not one for each request.
        model = self.check("any prompt", **shared).model

        def bearable() -> int:
            asked = (p for p in self._roster if model is None or model in p.answers_to)
            return sum(p.adaptive.limit for p in asked if p.refusal("chat") is None)

        limit = engine.limit_of(concurrency, self.settings.max_concurrency, bearable)
        return Terms(
            self._clock,
            limit,
            timeout,
            shared,
            on_progress,
            outage_patience=outage_patience,
            away=self._seconds_until_available,
            last_resort=self._roster.seconds_until_last_resort,
            refusal=self._roster.refusal_of_all,
            offline=lambda: self._network.network_is_down,
        )
