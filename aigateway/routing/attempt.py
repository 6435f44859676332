"""One attempt: one call to one provider, what it holds while it is out, and its one end.

From its making to `end` an attempt holds a pass of its provider's guards, a place of the limiter
and an entry of the rates. `end` gives all of them back, once. What each end says about the provider
is written at `AttemptEnd`, of failures at the verdict of their kind (`wires/failures.py`); what
that does to each guard is the table in `resilience/guard.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol, TypeVar, runtime_checkable

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.events import AttemptEnded
from aigateway.messages import Attempt as AttemptRecord
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings, Usage
from aigateway.resilience.breaker import CircuitState
from aigateway.resilience.concurrency import Limiter
from aigateway.resilience.guard import AttemptOutcome, Effect
from aigateway.resilience.health import ResponseTimes
from aigateway.resilience.network import Reachability
from aigateway.resilience.stall import StallWatch
from aigateway.routing.candidates import Candidate, RequestState
from aigateway.routing.provider import Pass, Provider
from aigateway.telemetry.recorder import Emitter
from aigateway.wires.client import Failure
from aigateway.wires.failures import VERDICTS, Gate, Verdict

__all__ = ["FIRST_TOKEN_TIMEOUT", "Answer", "AttemptEnd", "PendingAttempt", "Surroundings"]

FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - tokens of a model
"""`Failure.code` of a stream that had no content in time."""

R = TypeVar("R", ChatRequest, EmbeddingRequest)

_COUNTABLE = (Completion, Embeddings)

_BUSY = 529
"""Anthropic's "overloaded"."""


class AttemptEnd(Enum):
    """How an attempt ends."""

    ANSWERED = auto()
    """Its answer is used (a stream came to its proper end): good for the provider."""
    UNUSED = auto()
    """It was answered in the same moment as another attempt, which was quicker: good, too."""
    FAILED = auto()
    """It gave no answer, or none of use: what that means depends on the kind of the failure."""
    LEFT = auto()
    """The caller left the stream before its end: neutral."""
    CANCELLED = auto()
    """The caller went away, or the request's own deadline came: neutral."""
    OUTRUN = auto()
    """Another attempt answered first, and this one was cancelled: see `PendingAttempt._outrun`."""


_BOOKED = {
    AttemptEnd.UNUSED: FailureKind.OUTRUN,
    AttemptEnd.LEFT: FailureKind.CANCELLED,
    AttemptEnd.CANCELLED: FailureKind.CANCELLED,
    AttemptEnd.OUTRUN: FailureKind.OUTRUN,
}
"""The kind under which an end that brings the caller nothing is booked."""

_EFFECTS: dict[Gate, Effect] = {
    Gate.NONE: Effect.NEUTRAL,
    Gate.COOLDOWN: Effect.THROTTLED,
    Gate.DISABLE: Effect.MISCONFIGURED,
    Gate.NOT_OFFERED: Effect.MISCONFIGURED,
}
"""What a failure says about the provider that does not count as its own fault."""


_PROPER_END = AttemptOutcome(Effect.ANSWERED, lambda: None)
"""What `end` says of an attempt whose answer `answered` has told of."""


class Answer(Protocol):
    """What any operation brings back."""

    @property
    def usage(self) -> Usage:
        """Tokens as far as the vendor has counted."""

    @property
    def cost_usd(self) -> float | None:
        """US dollars as far as is known."""


@runtime_checkable
class Unfinished(Protocol):
    """An answer that is still coming."""

    def part(self) -> Completion:
        """What has come so far."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all attempts of one gateway share.

    Attributes:
        clock: Time and randomness.
        limiter: The gateway's places.
        emitter: Is told what happens.
        network: Whether any provider at all can be reached.
        stalls: Whether our own event loop stood still.
        providers: Gives all of them, as they are now.
    """

    clock: Clock
    limiter: Limiter
    emitter: Emitter
    network: Reachability
    stalls: StallWatch
    providers: Callable[[], Iterable[Provider]]

    def spare_the_circuits(self) -> None:
        """Close those that opened only because no provider at all could be reached."""
        for provider in self.providers():
            if provider.name not in self.network.down:
                continue
            for guards in (provider.chat, provider.embeddings):
                breaker = guards.breaker
                if breaker.state is CircuitState.OPEN and not breaker.forced:
                    breaker.reset()


class PendingAttempt:
    """One call under way. Made when it begins; `end` is called exactly once.

    Attributes:
        candidate: Whom it asks, as the request knows it.
        provider: Whom it asks.
        limit: Seconds it may take.
        patience: Seconds after which the provider is slower than it usually is.
        number: Which of its request's attempts it is, from 1.
        over: It has ended.
    """

    limit = patience = math.inf
    over = False
    _sent: ChatRequest | EmbeddingRequest | None = None
    _estimate: Answer | None = None  # what it was counted for, without an answer
    _first_content: float | None = None

    def __init__(
        self,
        candidate: Candidate,
        held: Pass,
        request: RequestState,
        around: Surroundings,
        pace: ResponseTimes,
    ) -> None:
        self.candidate = candidate
        self.provider = provider = candidate.provider
        self._pass = held
        self._request = request
        self._around = around
        self._pace = pace
        self._slots = provider.slots
        self._rated = provider.rates.begin(request.tokens) if provider.rates else None
        self._outstanding = pace.begin(around.stalls)
        self._began = self._outstanding.began
        around.stalls.begin()
        around.limiter.take(self._slots)
        request.begun = self.number = request.begun + 1
        account = request.account
        self._trace = (
            None
            if account is None
            else account.attempt_began(provider.name, provider.vendor, provider.model, self.number)
        )

    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._around.clock.now() - self._began

    def outgoing(self, request: R) -> R:
        """The request as it goes to the vendor: with the headers of whatever traces this call."""
        self._sent = request
        if self._trace is None or not self._trace.headers:
            return request
        own = self._trace.headers
        kept = {name: v for name, v in request.headers.items() if name.lower() not in own}
        return replace(request, headers=kept | own)

    def counted(self, answer: Answer) -> Answer:
        """An answer as far as it came, with its usage and cost: as counted, else by estimate."""
        if self._sent is None:
            return answer
        if isinstance(answer, _COUNTABLE):
            return self.provider.costs.counted(self._sent, answer)
        return self.counted_part(answer.part()) if isinstance(answer, Unfinished) else answer

    def counted_part(self, part: Completion) -> Completion:
        """Likewise what came of a stream that did not come to its end."""
        return part if self._sent is None else self.provider.costs.counted(self._sent, part)

    def first_content(self) -> None:
        """A stream has given its first content: the verdict on the provider falls here."""
        seconds = self._answered()
        self.provider.first_contents_seen.add(seconds)
        self._first_content = seconds
        if self._request.account is not None:
            self._request.account.first_content()
        self._around.limiter.wake()  # another request may have waited for this verdict

    def end(
        self, how: AttemptEnd, failure: Failure | None = None, answer: Answer | None = None
    ) -> Verdict | None:
        """Give back what the attempt holds, tell the guards, and book it.

        Args:
            how: How it ended.
            failure: What happened; for `AttemptEnd.FAILED` only.
            answer: What came: the answer, or the part of one that has to be paid for.

        Returns:
            For `AttemptEnd.FAILED`: what the failure leads to.
        """
        if self.over:
            raise AssertionError(f"An attempt at {self.provider.name} ended twice.")
        self.over = True
        if how is AttemptEnd.ANSWERED and answer is not None:
            self._end_well(answer)
            return None
        verdict = None
        if how in _BOOKED:
            failure = Failure(self._nothing_learned(how))
        elif failure is not None:
            verdict = VERDICTS[failure.kind]
        if how is AttemptEnd.UNUSED:
            self._answered()
            self.candidate.guards.end(self._pass, _PROPER_END)
        elif failure is not None and verdict is not None:
            self._failed(failure, verdict)
        elif how is AttemptEnd.OUTRUN:
            self._outrun()
        else:
            outcome = AttemptOutcome(Effect.NEUTRAL, self._request.cause)
            self.candidate.guards.end(self._pass, outcome)
            self._pace.ended(self._outstanding)
        answer = self._unanswered(how, failure) if answer is None else self.counted(answer)
        self._book(failure, answer)
        self._leave(failure, answer)
        return verdict

    def _end_well(self, answer: Answer) -> None:
        if not self._pass.answered:
            self._answered()
        self.candidate.guards.end(self._pass, _PROPER_END)
        if self._sent is not None and isinstance(answer, _COUNTABLE):
            answer = self.provider.costs.whole(self._sent, answer)
        self._book(None, answer)
        self._leave(None, answer)

    def answered_after_its_end(self, answer: Answer) -> None:
        """It had ended already, as cancelled or outrun, and brought an answer all the same."""
        answer = self.counted(answer)
        usage, cost_usd = answer.usage, answer.cost_usd
        if self._estimate is not None:  # which has been counted
            usage = _beyond(usage, self._estimate.usage)
            if cost_usd is not None:
                cost_usd = max(0.0, cost_usd - (self._estimate.cost_usd or 0.0))
        self.provider.counters.spent(usage, cost_usd)
        self._tell_cost(cost_usd)
        if self._request.account is not None:
            self._request.account.discarded(self.provider.name, usage, cost_usd)

    # ── the guards ───────────────────────────────────────────────────────────────────────────

    def _answered(self) -> float:
        """The provider has shown that it is well; returns how long that took, in seconds."""
        provider, around, began = self.provider, self._around, self._began
        now = around.clock.now()
        seconds = now - began
        around.network.reached(provider.name)
        own = seconds - around.stalls.stood(began, now)
        outcome = AttemptOutcome(Effect.ANSWERED, self._request.cause, own)
        self.candidate.guards.answered(self._pass, outcome, self._pace, self._outstanding)
        if provider.adaptive.fallen:
            provider.adaptive.succeeded(provider.slots.in_flight)
            self._bound(provider.adaptive.limit)
        self._heed_the_vendors_limits()
        return seconds

    def _failed(self, failure: Failure, verdict: Verdict) -> None:
        effect = Effect.FAILED if verdict.counts else _EFFECTS[verdict.gate]
        # A connection that could not be made to any provider is the network's fault.
        if self._is_the_networks_fault(failure):
            effect = Effect.NEUTRAL
        if effect is Effect.FAILED:
            self.candidate.blamed = True
        elif effect is Effect.MISCONFIGURED:
            self._around.network.forget(self.provider.name)  # not asked for a while
        self._throttled_by(failure)
        retry_after = failure.retry_after
        if effect is Effect.FAILED and verdict.gate is not Gate.COOLDOWN:
            retry_after = None
        certain = failure.certain or verdict.gate is Gate.NOT_OFFERED
        outcome = AttemptOutcome(
            effect, self._request.cause, 0.0, failure.kind, failure.status, retry_after, certain
        )
        self.candidate.guards.end(self._pass, outcome)
        self._heed_the_vendors_limits()
        self._pace.ended(self._outstanding)

    def _outrun(self) -> None:
        """Settle an attempt that was cancelled because another was quicker.

        Whether it would have answered is unknown. If it was later than this provider is known to
        be, and the provider answers no other until its time would have been over, it counts as
        a failure after all.
        """
        guards, request, held, pace = self.candidate.guards, self._request, self._pass, self._pace

        def settle(failed: bool) -> None:
            if failed:
                self.candidate.blamed = True
            effect = Effect.FAILED if failed else Effect.NEUTRAL
            guards.end(held, AttemptOutcome(effect, request.cause))

        now = self._around.clock.now()
        late = now - self._began - self._around.stalls.stood(self._began, now) >= self.patience
        if late and not held.probe and pace.p95 is not None:
            pace.outrun(self._outstanding, self._began + self.limit, settle)
        else:
            pace.ended(self._outstanding)
            # A probe that is late is judged at once: others wait for its verdict, and with its
            # place given back the next request would probe again.
            settle(held.probe and late)

    def _is_the_networks_fault(self, failure: Failure) -> bool:
        around, name = self._around, self.provider.name
        if not failure.unreachable:
            if failure.status is not None:
                around.network.reached(name)
            return False
        if not around.network.unreachable(name):
            return False
        around.spare_the_circuits()
        return True

    def _throttled_by(self, failure: Failure) -> None:
        """Let fewer calls out at once, if that is what the vendor says."""
        if (
            failure.kind is FailureKind.RATE_LIMITED
            or failure.status == _BUSY
            or failure.code == FIRST_TOKEN_TIMEOUT
        ):
            provider = self.provider
            provider.adaptive.throttled(provider.slots.in_flight, self._began)
            self._bound(provider.adaptive.limit)

    def _bound(self, calls: int) -> None:
        """Set how many calls may be out; a higher bound may be what a request waits for."""
        slots = self.provider.slots
        if slots.limit != calls:
            slots.limit = calls
            self._around.limiter.wake()

    def _heed_the_vendors_limits(self) -> None:
        """Stop calls before they are refused, where the vendor says that none is left."""
        pause = self.provider.pause()
        if pause:
            self.candidate.guards.cooldown.throttle(pause)

    # ── the books ────────────────────────────────────────────────────────────────────────────

    def _nothing_learned(self, how: AttemptEnd) -> FailureKind:
        late = how is AttemptEnd.CANCELLED and self._around.clock.now() >= self._request.deadline
        return FailureKind.DEADLINE if late else _BOOKED[how]

    def _unanswered(self, how: AttemptEnd, failure: Failure | None) -> Answer | None:
        """What an attempt comes to that was broken off before anything came; None if nothing.

        A provider that is silent beyond its own time is taken to have read the prompt only.
        """
        if self._sent is None:
            return None
        silent = False
        if how is AttemptEnd.FAILED:
            assert failure is not None  # noqa: S101 - it failed
            silent = failure.kind is FailureKind.TIMEOUT
            given_up = silent or failure.kind is FailureKind.DEADLINE
            if not given_up or failure.status is not None or failure.unreachable:
                return None
        seconds = 0.0 if silent else self.seconds()
        self._estimate = self.provider.costs.unanswered(self._sent, seconds)
        return self._estimate

    def _tell_cost(self, cost_usd: float | None) -> None:
        """Tell the account that is kept for the request."""
        if self._sent is not None and self._sent.on_cost is not None:
            self._sent.on_cost(cost_usd)

    def _book(self, failure: Failure | None, answer: Answer | None) -> None:
        provider, request, seconds = self.provider, self._request, self.seconds()
        cost_usd = kind = status = None
        if answer is not None:
            cost_usd = answer.cost_usd
            self._tell_cost(cost_usd)
        if failure is None:
            assert answer is not None  # noqa: S101 - it was answered
            provider.counters.succeeded(seconds, answer.usage, cost_usd)
        else:
            kind, status = failure.kind, failure.status
            if answer is not None:
                provider.counters.spent(answer.usage, cost_usd)
            provider.counters.failed(kind)
            longest = self.candidate.guards.cooldown.policy.clamp
            self.candidate.cause = failure.of(provider.name, longest)
            self.candidate.unreachable = failure.unreachable
        request.attempts.append(
            AttemptRecord(
                provider.name,
                provider.model,
                kind,
                status,
                seconds,
                cost_usd,
                self._pass.last_resort,
                self._dropped() if failure is None else (),
            )
        )

    def _dropped(self) -> tuple[str, ...]:
        params, messages = self._request.params, self._request.messages
        return () if params is None else tuple(self.provider.dropped(params, messages))

    def _leave(self, failure: Failure | None, answer: Answer | None) -> None:
        if self._rated is not None:
            self._rated.settle(self._tokens(failure, answer))
        self._around.stalls.end()
        self._around.limiter.give_back(self._slots)
        if failure is not None or self._request.account is not None:
            self._report(failure, answer)

    def _tokens(self, failure: Failure | None, answer: Answer | None) -> int | None:
        """What the vendor has counted; None where that is not known."""
        if answer is not None and answer is not self._estimate:
            return answer.usage.total_tokens or None
        if failure is None or failure.kind in _MAY_BE_COUNTED:
            return None
        return 0

    def _report(self, failure: Failure | None, answer: Answer | None) -> None:
        """Emit the end of this attempt; if nothing follows each attempt, only a failure."""
        provider, request, account = self.provider, self._request, self._request.account
        others = self._request.attempts[:-1]  # the last one is this
        event = AttemptEnded(
            request.request_id,
            self.number,
            request.operation,
            account is not None and account.streamed,
            provider.name,
            provider.vendor,
            provider.model,
            None if failure is None else failure.kind,
            None if failure is None else failure.status,
            any(attempt.provider == provider.name for attempt in others),
            self.seconds(),
            self._first_content,
            Usage() if answer is None else answer.usage,
            None if answer is None else answer.cost_usd,
            self._pass.last_resort,
            None if failure is None else failure.code,
        )
        if account is None:
            self._around.emitter.emit(event)
        else:
            account.attempt_ended(event, self._trace, answer)


def _beyond(usage: Usage, counted: Usage) -> Usage:
    """What a usage is beyond what was counted already."""
    prompt = max(0, usage.prompt_tokens - counted.prompt_tokens)
    answer = max(0, usage.completion_tokens - counted.completion_tokens)
    return Usage(prompt, answer, prompt + answer)


_MAY_BE_COUNTED = frozenset(
    {FailureKind.TIMEOUT, FailureKind.CANCELLED, FailureKind.DEADLINE, FailureKind.OUTRUN}
)
"""Failures after which the vendor has very likely counted what it was asked."""
