"""One stream across providers.

Before the first content a stream fails over like any request. Once content has been delivered, the
gateway never restarts the answer silently: a break is raised, or resumed if the caller wants that.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from dataclasses import replace

from aigateway.clock import Clock
from aigateway.errors import FailureKind, GatewayError, StreamInterruptedError
from aigateway.messages import ChatRequest, Chunk, Completion, Opening
from aigateway.options import Resume
from aigateway.routing.attempt import AttemptEnd, PendingAttempt
from aigateway.routing.candidates import RequestState
from aigateway.routing.failover import Failovers, Served
from aigateway.routing.work import OpenedStream, StreamWork, next_content
from aigateway.structured import fits
from aigateway.wires.client import Failure, VendorCallError, VendorStream
from aigateway.wires.content import joined_sources
from aigateway.wires.failures import Failover, Verdict

__all__ = ["StreamRun"]

_log = logging.getLogger(__name__)


class _Delivered:
    """The content that the caller has got so far."""

    __slots__ = ("_text", "only_text")

    def __init__(self) -> None:
        self._text: list[str] = []
        self.only_text = True

    @property
    def text(self) -> str:
        return "".join(self._text)

    def add(self, chunk: Chunk) -> None:
        if chunk.index == 0 and chunk.text:
            self._text.append(chunk.text)
        if chunk.tool_calls or chunk.refusal or chunk.index or chunk.images or chunk.audio:
            self.only_text = False


class StreamRun:
    """One stream, from its first provider to its last.

    Args:
        failovers: Finds a provider.
        request: The request.
        state: Its state across providers.
        clock: The gateway's.
        idle: Most seconds without content after the first content.
        time_to_first: Seconds to the first content after a break.
        resume: How to resume a broken stream; None raises.

    Attributes:
        served: The whole answer and its (last) provider, at the end of `chunks`.
        resumed: Whether the answer has parts of several providers.
        first_content_at: On the clock's own scale.
        opening: The provider that answers now; None before the first content.
        has_more: The chunk after the present one came with it, so it is not waited for.
    """

    def __init__(
        self,
        failovers: Failovers,
        request: ChatRequest,
        state: RequestState,
        *,
        clock: Clock,
        idle: float,
        time_to_first: float,
        resume: Resume | None,
    ) -> None:
        self._failovers = failovers
        self._request = request
        self._state = state
        self._clock = clock
        self._idle = idle
        self._time_to_first = time_to_first
        self._resume = resume
        self._delivered = _Delivered()
        self._before: Completion | None = None  # the broken parts so far, for "continue"
        self._overlap = ""
        self.served: Served[Completion] | None = None
        self.resumed = False
        self.first_content_at: float | None = None
        self.has_more = False
        self.opening: Opening | None = None

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yield the content as it arrives.

        Raises:
            StreamInterruptedError: It broke after the first content.
            GatewayError: As `Failovers.run`, before the first content.
        """
        served = await self._open(self._request)
        restarted = False
        while True:
            opened, attempt = served.answer, served.attempt
            failure: Failure | None = None
            whole = False
            try:
                if restarted:
                    yield Chunk(restarted=True)
                batch: Sequence[Chunk] | None = opened.first
                while batch is not None:
                    batch = tuple(self._trimmed(batch)) if self._overlap else batch
                    left = len(batch)
                    for chunk in batch:
                        left -= 1
                        self.has_more = left > 0
                        self._delivered.add(chunk)
                        yield chunk
                    batch = None if opened.whole else await self._next(opened.stream)
                whole = True
            except VendorCallError as error:
                failure = error.failure
            except GatewayError:
                raise
            except Exception as error:  # noqa: BLE001 - a wire raises `VendorCallError` only
                _log.warning("Provider %s raised %s.", attempt.provider.name, type(error).__name__)
                failure = Failure(FailureKind.UNKNOWN)
            finally:
                # Settled before the first await, which may be cancelled.
                part = _part(opened, attempt, whole=whole)
                so_far = self._joined(part)
                broken = self._settled(attempt, part, so_far, failure, whole=whole)
                await opened.stream.aclose()
            if broken is None:
                return
            served = await self._resumed(broken, so_far)
            restarted = self._resume == "restart"
            if restarted:
                self._delivered = _Delivered()

    def _settled(
        self,
        attempt: PendingAttempt,
        part: Completion,
        completion: Completion,
        failure: Failure | None,
        *,
        whole: bool,
    ) -> StreamInterruptedError | None:
        """End an attempt at the end of its stream; return the error of a break.

        `part` is its content, `completion` that after the content of earlier attempts.
        """
        if whole and failure is None and not fits(self._request.response_model, completion):
            failure = Failure(FailureKind.INVALID_OUTPUT)
        if failure is not None:
            verdict = attempt.end(AttemptEnd.FAILED, failure, part)
            assert verdict is not None  # noqa: S101 - it failed
            return self._broken(attempt, verdict, failure)
        if not whole:
            attempt.end(AttemptEnd.LEFT, answer=part)
            return None
        attempt.end(AttemptEnd.ANSWERED, answer=part)
        if not completion.created and self.opening is not None:
            completion = replace(completion, created=self.opening.created)
        attempts = tuple(self._state.attempts)
        self.served = Served(completion, attempt.provider.name, attempts, attempt)
        return None

    async def _open(self, request: ChatRequest) -> Served[OpenedStream]:
        bounded = self._failovers.in_time if self._state.thinks else None
        served = await self._failovers.run(self._state, StreamWork(request, bounded))
        if self.first_content_at is None:
            self.first_content_at = self._clock.now()
        part, attempts = served.answer.part(), len(served.attempts) + 1
        self.opening = Opening(
            served.provider,
            part.model,
            part.id,
            part.created or int(self._clock.wall()),
            attempts=attempts,
        )
        return served

    def _next(self, stream: VendorStream) -> Awaitable[Sequence[Chunk] | None]:
        return next_content(stream, self._idle, self._failovers.bounded)

    # ── after a break ────────────────────────────────────────────────────────────────────────

    def _broken(
        self, attempt: PendingAttempt, verdict: Verdict, failure: Failure
    ) -> StreamInterruptedError:
        """Return the error of a broken stream, for the case that it is not resumed."""
        name = attempt.provider.name
        candidate = attempt.candidate
        # A single provider may restart its own stream, once.
        alone = self._resume == "restart" and len(self._state.candidates) == 1
        candidate.barred = candidate.broke or not alone
        candidate.broke = True
        # Not resumed: a failure after which no other provider is called (a content policy, ...).
        if verdict.failover is Failover.NEVER:
            self._resume = None
        return StreamInterruptedError(
            f"The stream from {name} broke after its first content ({failure.kind})."
            " What had arrived is in `text`.",
            (failure.of(name),),
            name,
            self._delivered.text,
        )

    async def _resumed(
        self, broken: StreamInterruptedError, so_far: Completion
    ) -> Served[OpenedStream]:
        """Find another provider for a broken stream, or raise."""
        request, state = self._request, self._state
        state.deadline = self._clock.now() + self._time_to_first
        # One vendor has accepted this request, so a rejection by another one does not end it.
        state.go_on_when_refused = True
        if self._resume is None or (self._resume == "continue" and not await self._can_continue()):
            raise broken
        if self._resume == "continue":
            request = self._continuation()
            self._before, self.resumed = so_far, True
        try:
            return await self._open(request)
        except GatewayError as error:
            self._failovers.refuse_if_stopped()
            causes = getattr(error, "causes", ())
        broken.causes = (*(c for c in causes if c.provider != broken.provider), *broken.causes)
        raise broken

    async def _can_continue(self) -> bool:
        """Return whether a plain text was delivered, and a candidate's model can continue one."""
        params = self._request.params
        if (
            not self._delivered.only_text
            or not self._delivered.text.strip()
            or "response_format" in params
            or params.get("n", 1) != 1
        ):
            return False
        state = self._state
        willing = []
        for candidate in state.candidates:
            provider = candidate.provider
            if candidate.barred or provider.refusal(state.operation) is not None:
                continue
            try:
                await self._failovers.bounded(self._time_to_first, provider.prepare())
            except Exception as error:  # noqa: BLE001 - another one may still continue
                _log.warning("Provider %s is skipped: %s.", provider.name, type(error).__name__)
            else:
                if provider.client.accepts_prefill:
                    willing.append(candidate)
        state.candidates = tuple(willing)
        return bool(willing)

    def _continuation(self) -> ChatRequest:
        """Return the request with the partial text as its last message, by the assistant.

        Vendors refuse trailing whitespace there. If the model then begins with it, it is removed:
        the caller has it already.
        """
        text = self._delivered.text
        partial = text.rstrip()
        self._overlap = text[len(partial) :]
        message = {"role": "assistant", "content": partial}
        return replace(self._request, messages=(*self._request.messages, message))

    def _trimmed(self, batch: Sequence[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks without whitespace that the caller has already."""
        for chunk in batch:
            text = chunk.text
            while text and self._overlap and text[0] == self._overlap[0]:
                text, self._overlap = text[1:], self._overlap[1:]
            if text:
                self._overlap = ""
            if text or not chunk.text:
                yield replace(chunk, text=text)

    def _joined(self, completion: Completion) -> Completion:
        """Join a completion with the broken parts that it continues."""
        before = self._before
        if before is None:
            return completion
        choice = completion.choices[0]
        reasoning = (before.choices[0].reasoning or "") + (choice.reasoning or "")
        choice = replace(
            choice,
            text=self._delivered.text,
            reasoning=reasoning or None,
            sources_json=joined_sources(before.choices[0].sources_json, choice.sources_json),
        )
        costs = (before.cost_usd, completion.cost_usd)
        known = [cost for cost in costs if cost is not None]
        return replace(
            completion,
            choices=(choice,),
            usage=before.usage + completion.usage,
            cost_usd=sum(known) if known else None,
        )


def _part(opened: OpenedStream, attempt: PendingAttempt, *, whole: bool) -> Completion:
    """Return the content of a stream; if it is not whole, with estimated usage and cost."""
    part = opened.part()
    return part if whole else attempt.partial_with_cost(part)
