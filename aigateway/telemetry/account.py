"""What one request comes to, kept only where somebody wants to know.

It is made by the ledger when a request begins, goes with its journey, and is closed by the ledger
again. Calls report to it; those of one request may overlap, and may outlive it.
"""

from __future__ import annotations

from aigateway.clock import Clock
from aigateway.events import AnswerDiscarded, AttemptEnded, Operation, Outcome, RequestEnded
from aigateway.messages import ChatRequest, EmbeddingRequest, Usage
from aigateway.telemetry.emitter import Emitter
from aigateway.telemetry.traces import Answer, AttemptTraces

__all__ = ["Account"]


class Account:
    """One request's.

    Args:
        emitter: Is told the ends.
        clock: Time.
        request: What is asked.
        agent: Whose request it is, as the caller named it.
        began: When it began, on the clock's own scale.
        streamed: The answer is to come piece by piece.

    Attributes:
        operation: What is asked for.
        request_id: Names the request in events.
        streamed: As given.
    """

    __slots__ = (
        "_agent",
        "_answer",
        "_attempts",
        "_began",
        "_clock",
        "_emitter",
        "_first_content_at",
        "_out",
        "_outcome",
        "_provider",
        "_since",
        "_traces",
        "_waited",
        "operation",
        "request_id",
        "streamed",
    )

    def __init__(
        self,
        emitter: Emitter,
        clock: Clock,
        request: ChatRequest | EmbeddingRequest,
        agent: str | None,
        *,
        began: float,
        streamed: bool,
    ) -> None:
        self._emitter = emitter
        self._clock = clock
        self._agent = agent
        self._began = began
        self._outcome: Outcome = "cancelled"
        self._provider: str | None = None
        self._answer: Answer | None = None
        self._attempts = 0
        self._first_content_at: float | None = None
        self._out = 0
        self._since = 0.0
        self._waited = 0.0
        self.request_id = request.request_id
        self.operation: Operation = "chat" if isinstance(request, ChatRequest) else "embeddings"
        self.streamed = streamed
        self._traces = emitter.trace(request, streamed=streamed)

    def wait(self) -> None:
        """Somebody else's work is waited for from now on: a vendor's, or another request's."""
        if not self._out:
            self._since = self._clock.now()
        self._out += 1

    def go_on(self) -> None:
        """It is over. There is one for each `wait`."""
        self._out -= 1
        if not self._out:
            self._waited += self._clock.now() - self._since

    def attempt_began(
        self, provider: str, vendor: str, model: str, number: int
    ) -> AttemptTraces | None:
        """A call is out."""
        self._attempts += 1
        self.wait()
        if self._traces is None:
            return None
        return self._traces.attempt(provider, vendor, model, number)

    def first_content(self) -> None:
        """A stream has given some; only the first time counts."""
        if self._first_content_at is None:
            self._first_content_at = self._clock.now()

    def attempt_ended(
        self, event: AttemptEnded, trace: AttemptTraces | None, answer: object
    ) -> None:
        """A call is back."""
        self.go_on()
        self._emitter.emit(event)
        if trace is not None:
            trace.ended(event, answer)

    def discarded(self, provider: str, usage: Usage, cost_usd: float | None) -> None:
        """A call that was back already brought something all the same."""
        if self._emitter.wants(AnswerDiscarded):
            self._emitter.emit(AnswerDiscarded(self.request_id, provider, usage, cost_usd))

    def answered(self, outcome: Outcome, provider: str, answer: Answer) -> None:
        """The caller gets this answer, if nothing comes between."""
        self._outcome, self._provider, self._answer = outcome, provider, answer

    def close(self, error: BaseException | None) -> None:
        """The request is over, though a call of its may still be out for others.

        Args:
            error: What the caller gets instead of an answer; a cancellation too.
        """
        if error is not None:
            self._outcome = "failed" if isinstance(error, Exception) else "cancelled"
            self._provider = self._answer = None
        now = self._clock.now()
        first = self._first_content_at
        event = RequestEnded(
            self.request_id,
            self.operation,
            self.streamed,
            self._agent,
            self._outcome,
            self._provider,
            "" if error is None else type(error).__name__,
            self._attempts,
            now - self._began,
            self._waited + (now - self._since if self._out else 0.0),
            None if first is None else first - self._began,
        )
        self._emitter.emit(event)
        if self._traces is not None:
            self._traces.ended(event, self._answer)
