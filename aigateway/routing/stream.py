"""One stream across providers: one clean answer for the caller, whatever happens behind it.

Before the first content a stream fails over like any request. Once content has been delivered, the
gateway never restarts the answer silently: a break is raised, or resumed as the caller has asked.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from aigateway.clock import Clock
from aigateway.errors import FailureKind, GatewayError, StreamInterruptedError
from aigateway.messages import ChatRequest, Chunk, Completion, Opening
from aigateway.routing.attempt import AttemptEnd, PendingAttempt
from aigateway.routing.candidates import RequestState
from aigateway.routing.failover import Failovers, Served
from aigateway.routing.work import OpenedStream, StreamWork, next_content
from aigateway.structured import fits
from aigateway.wires.client import Failure, VendorCallError, VendorStream
from aigateway.wires.content import joined_sources
from aigateway.wires.failures import Failover, Verdict

__all__ = ["Resume", "StreamRun"]

_log = logging.getLogger(__name__)

Resume = Literal["continue", "restart"]
"""What becomes of a stream that breaks: another provider goes on from the partial text, or begins
anew after a chunk marked `restarted`."""


class _Delivered:
    """What the caller has been given so far."""

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
    """One stream, from the first provider asked to the last.

    Args:
        failovers: Finds a provider.
        request: What is asked.
        state: Its way so far.
        clock: The gateway's.
        idle: Seconds it may be silent after the first content.
        time_to_first: Seconds that a further search for a first content may take.
        resume: What to do when it breaks; None raises.

    Attributes:
        served: The whole answer and who gave it (or its last part), once `chunks` is through.
        resumed: Whether it was put together from two parts.
        first_content_at: On the clock's own scale.
        opening: Who answers now; None before the first content.
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
        self._before: Completion | None = None  # what broken parts came to, for "continue"
        self._overlap = ""
        self.served: Served[Completion] | None = None
        self.resumed = False
        self.first_content_at: float | None = None
        self.opening: Opening | None = None

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The content, as it comes.

        Raises:
            StreamInterruptedError: It broke after the first content.
            GatewayError: As `Failovers.run`, before it.
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
                    for chunk in self._trimmed(batch) if self._overlap else batch:
                        self._delivered.add(chunk)
                        yield chunk
                    batch = None if opened.whole else await self._next(opened.stream)
                whole = True
            except VendorCallError as error:
                failure = error.failure
            except GatewayError:
                raise
            except Exception as error:  # noqa: BLE001 - none should come through
                _log.warning("Provider %s raised %s.", attempt.provider.name, type(error).__name__)
                failure = Failure(FailureKind.UNKNOWN)
            finally:
                # Settled before the first await, for that may be cancelled.
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
        """End an attempt by what became of its stream: a break, an answer, or left by the caller.

        Args:
            attempt: Is still out.
            part: What it brought.
            completion: That, with what other attempts had brought before it.
            failure: What broke it, if something did.
            whole: It came to its end.
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
        attempts = tuple(self._state.attempts)
        self.served = Served(completion, attempt.provider.name, attempts, attempt)
        return None

    async def _open(self, request: ChatRequest) -> Served[OpenedStream]:
        served = await self._failovers.run(self._state, StreamWork(request))
        if self.first_content_at is None:
            self.first_content_at = self._clock.now()
        part, attempts = served.answer.part(), len(served.attempts) + 1
        self.opening = Opening(
            served.provider, part.model, part.id, part.created, attempts=attempts
        )
        return served

    async def _next(self, stream: VendorStream) -> Sequence[Chunk] | None:
        return await next_content(stream, self._idle, self._failovers.bounded)

    # ── after a break ────────────────────────────────────────────────────────────────────────

    def _broken(
        self, attempt: PendingAttempt, verdict: Verdict, failure: Failure
    ) -> StreamInterruptedError:
        """What the caller is told, unless the stream is resumed."""
        name = attempt.provider.name
        candidate = attempt.candidate
        # The only provider there is may begin anew itself, once.
        alone = self._resume == "restart" and len(self._state.candidates) == 1
        candidate.barred = candidate.broke or not alone
        candidate.broke = True
        # A vendor that has begun to answer has taken the request: what it says then is its own.
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
        """Find another provider for a stream that broke, as the caller has asked for; or raise."""
        request, state = self._request, self._state
        state.deadline = self._clock.now() + self._time_to_first
        # One vendor has taken this request already, so a rejection by another is that one's own.
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
        """Whether what was said is a text, and a candidate's model goes on from one."""
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
            except Exception as error:  # noqa: BLE001 - whatever it is, another may still go on
                _log.warning("Provider %s is left out: %s.", provider.name, type(error).__name__)
            else:
                if provider.client.accepts_prefill:
                    willing.append(candidate)
        state.candidates = tuple(willing)
        return bool(willing)

    def _continuation(self) -> ChatRequest:
        """The request, with the partial text as a trailing message of the assistant.

        Vendors refuse trailing whitespace there; where the model then begins with it, it has been
        delivered already.
        """
        text = self._delivered.text
        partial = text.rstrip()
        self._overlap = text[len(partial) :]
        message = {"role": "assistant", "content": partial}
        return replace(self._request, messages=(*self._request.messages, message))

    def _trimmed(self, batch: Sequence[Chunk]) -> Iterator[Chunk]:
        """The chunks, without whitespace that the caller has already."""
        for chunk in batch:
            text = chunk.text
            while text and self._overlap and text[0] == self._overlap[0]:
                text, self._overlap = text[1:], self._overlap[1:]
            if text:
                self._overlap = ""
            if text or not chunk.text:
                yield replace(chunk, text=text)

    def _joined(self, completion: Completion) -> Completion:
        """A completion together with the broken part that it goes on from."""
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
    """What came of a stream; where it is not the whole, with usage and cost by estimate."""
    part = opened.part()
    return part if whole else attempt.partial_with_cost(part)
