"""One attempt: one call to one provider, with its resources and its one end.

An attempt holds a pass of its provider's guards, a slot of the limiter and an entry of the rates.
`end` releases all of them, once. `AttemptEnd` says what each end means for the provider; for
failures, that is the verdict of their kind (`wires/failures.py`). What that does to each guard is
the table in `resilience/guard.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
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
from aigateway.resilience.local_faults import REPORTED, Reachability, StallDetector
from aigateway.resilience.rates import RateEntry
from aigateway.routing.affinity import Affinity
from aigateway.routing.candidates import Candidate, RequestState
from aigateway.routing.guards import GuardPass
from aigateway.routing.provider import Provider
from aigateway.telemetry.recorder import AttemptTraces, Emitter, FirstAnswer
from aigateway.wires.client import Failure
from aigateway.wires.failures import VERDICTS, Gate, Verdict

__all__ = ["FIRST_TOKEN_TIMEOUT", "AttemptEnd", "Billable", "CallContext", "PendingAttempt"]

FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - tokens of a model
"""`Failure.code` of a stream without content in time."""

R = TypeVar("R", ChatRequest, EmbeddingRequest)

_COUNTABLE = (Completion, Embeddings)

_STALLS_MATTER = 10.0
"""Seconds for which a stall of the event loop casts doubt on failures."""

_BUSY = 529
"""Anthropic's "overloaded"."""


class AttemptEnd(Enum):
    """The end of an attempt."""

    ANSWERED = auto()
    """Its answer is used (of a stream, all of it): a success of the provider."""
    UNUSED = auto()
    """It was answered at the same moment as another attempt, which was used: a success, too."""
    FAILED = auto()
    """It has no answer, or no usable one; the meaning depends on the kind of the failure."""
    LEFT = auto()
    """The caller left the stream before its end: neutral."""
    CANCELLED = auto()
    """The caller cancelled, or the request's deadline passed: neutral."""
    HEDGE_LOST = auto()
    """Another attempt answered first, and this one was cancelled."""


_KIND_OF_END = {
    AttemptEnd.UNUSED: FailureKind.HEDGE_LOST,
    AttemptEnd.LEFT: FailureKind.CANCELLED,
    AttemptEnd.CANCELLED: FailureKind.CANCELLED,
    AttemptEnd.HEDGE_LOST: FailureKind.HEDGE_LOST,
}
"""The failure kind that is recorded for an end without a used answer."""

_EFFECTS: dict[Gate, Effect] = {
    Gate.NONE: Effect.NEUTRAL,
    Gate.COOLDOWN: Effect.THROTTLED,
    Gate.DISABLE: Effect.MISCONFIGURED,
    Gate.NOT_OFFERED: Effect.MISCONFIGURED,
}
"""The meaning of a failure that does not count as the provider's fault."""

# Names for members of enumerations that every attempt needs: Python looks these up slowly.
_WAS_ANSWERED, _ANSWERED = AttemptEnd.ANSWERED, Effect.ANSWERED

_PROPER_END = AttemptOutcome(_ANSWERED, lambda: None)
"""The end of a stream whose success was recorded at its first content."""


class Billable(Protocol):
    """An answer of any operation, or a part of one, with its usage and cost."""

    @property
    def usage(self) -> Usage:
        """Tokens as far as the vendor has counted."""

    @property
    def cost_usd(self) -> float | None:
        """US dollars as far as known."""


@runtime_checkable
class Unfinished(Protocol):
    """An answer that is still arriving."""

    def part(self) -> Completion:
        """Return what has arrived so far."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """The parts that all attempts of one gateway share; `providers` returns the present ones."""

    clock: Clock
    limiter: Limiter
    emitter: Emitter
    network: Reachability
    stalls: StallDetector
    affinity: Affinity
    providers: Callable[[], Iterable[Provider]]

    def is_sound(self, name: str) -> bool:
        """Return whether failures of a provider are evidence against it, for other processes.

        They are none while this machine's network is in doubt or its event loop has stood still.
        """
        now = self.clock.now()
        if self.stalls.stalled(now - _STALLS_MATTER, now) >= REPORTED:
            return False
        return self.network.is_proven_without(name)

    def reset_circuits_opened_offline(self) -> None:
        """Close the circuits that opened only because no provider could be reached."""
        for provider in self.providers():
            if provider.name not in self.network.down:
                continue
            for guards in provider.all_guards:
                breaker = guards.breaker
                if breaker.state is CircuitState.OPEN and not breaker.forced:
                    breaker.reset()


class PendingAttempt:
    """One call in flight. Created when it begins; `end` is called exactly once.

    Attributes:
        began: When it began, on the clock's own scale.
        cut: What it means if it takes longer than `limit`; None: the request's deadline is earlier.
        failure: Why it has failed, if it has.
        limit: Seconds it may take.
        times: The latencies to compare it with.
        patience: Seconds after which the provider is slower than usual.
        number: Its number among the request's attempts, from 1.
        over: It has ended.
    """

    # Here, since one is made for each request, and most of these stay like this to its end.
    cut: FailureKind | None = FailureKind.TIMEOUT
    failure: Failure | None = None
    limit = patience = math.inf
    over = False
    _sent: ChatRequest | EmbeddingRequest | None = None
    _estimate: Billable | None = None  # what was counted for it without an answer
    _first_content: float | None = None
    _rated: RateEntry | None = None
    _trace: AttemptTraces | None = None

    def __init__(
        self,
        candidate: Candidate,
        held: GuardPass,
        request: RequestState,
        context: CallContext,
        times: ResponseTimes,
    ) -> None:
        self.candidate = candidate
        self.provider = provider = candidate.provider
        self.client = provider.opened or provider.client
        self._pass = held
        self._request = request
        self._context = context
        self.times = times
        self._slots = provider.slots
        if provider.rates:
            self._rated = provider.rates.begin(request.tokens)
        self._outstanding = times.begin(context.stalls)
        self.began = self._outstanding.began
        context.stalls.begin()
        context.limiter.take(self._slots)
        request.begun = self.number = request.begun + 1
        if (record := request.record) is not None:
            self._trace = record.attempt_began(
                provider.name, provider.vendor, provider.model, self.number
            )

    def seconds(self) -> float:
        """Return the seconds since it began."""
        return self._context.clock.now() - self.began

    def outgoing(self, request: R) -> R:
        """Return the request as the vendor gets it, with headers for tracing."""
        self._sent = request
        if self._trace is None or not self._trace.headers:
            return request
        own = self._trace.headers
        kept = {name: v for name, v in request.headers.items() if name.lower() not in own}
        return replace(request, headers=kept | own)

    def counted(self, answer: Billable) -> Billable:
        """Return an answer or the part that came, with usage and cost as counted or estimated."""
        if self._sent is None:
            return answer
        if isinstance(answer, _COUNTABLE):
            return self.provider.costs.counted(self._sent, answer)
        return self.partial_with_cost(answer.part()) if isinstance(answer, Unfinished) else answer

    def partial_with_cost(self, part: Completion) -> Completion:
        """Return the part that came of a broken stream, with usage and cost."""
        return part if self._sent is None else self.provider.costs.counted(self._sent, part)

    def first_content(self) -> None:
        """Record the first content of a stream: the provider's success is counted here."""
        seconds = self._succeeded()
        self.provider.first_contents_seen.add(seconds)
        self._first_content = seconds
        if self._request.record is not None:
            self._request.record.first_content()
        self._context.limiter.wake()  # another request may wait for this result

    def end(
        self, how: AttemptEnd, failure: Failure | None = None, answer: Billable | None = None
    ) -> Verdict | None:
        """Release what the attempt holds, report to the guards, and record it.

        Args:
            how: How it ended.
            failure: The failure; for `AttemptEnd.FAILED` only.
            answer: The answer, or the part of one that has to be paid for.

        Returns:
            For `AttemptEnd.FAILED`: the verdict on the failure.
        """
        if self.over:
            raise AssertionError(f"An attempt at {self.provider.name} ended twice.")
        self.over = True
        verdict = None
        if how is _WAS_ANSWERED:
            assert answer is not None  # noqa: S101 - it was answered
            if self._pass.answered:
                self.candidate.guards.end(self._pass, _PROPER_END)
            else:
                self._succeeded(whole=True)
            if self._sent is not None and isinstance(answer, _COUNTABLE):
                answer = self.provider.costs.whole(self._sent, answer)
            self._record(None, answer)
            return None
        if how in _KIND_OF_END:
            failure = Failure(self._neutral_kind(how))
        elif failure is not None:
            verdict = VERDICTS[failure.kind]
        if how is AttemptEnd.UNUSED:
            self._succeeded(whole=True)
        elif failure is not None and verdict is not None:
            self._failed(failure, verdict)
        elif how is AttemptEnd.HEDGE_LOST:
            self._hedge_lost()
        else:
            outcome = AttemptOutcome(Effect.NEUTRAL, self._request.cause)
            self.candidate.guards.end(self._pass, outcome)
            self.times.ended(self._outstanding)
        answer = self._unanswered(how, failure) if answer is None else self.counted(answer)
        self._record(failure, answer)
        return verdict

    def fail(self, failure: Failure, unusable: Billable | None) -> None:
        """End it, unless a race has, with a failure; `unusable` is an answer that came with it."""
        if self.over:
            return
        self.failure = failure
        self.end(AttemptEnd.FAILED, failure, unusable)
        if failure.mendable:
            self.candidate.retry_without_hint()

    def count_late_answer(self, answer: Billable) -> None:
        """Count an answer that came although the attempt was cancelled or had lost its hedge."""
        answer = self.counted(answer)
        usage, cost_usd = answer.usage, answer.cost_usd
        if self._estimate is not None:  # it has been counted
            usage = _excess(usage, self._estimate.usage)
            if cost_usd is not None:
                cost_usd = max(0.0, cost_usd - (self._estimate.cost_usd or 0.0))
        self.provider.counters.spent(usage, cost_usd)
        self._report_cost(cost_usd)
        if self._request.record is not None:
            self._request.record.discarded(self.provider.name, usage, cost_usd)

    # ── the guards ───────────────────────────────────────────────────────────────────────────

    def _succeeded(self, *, whole: bool = False) -> float:
        """Report the provider's success; return the seconds that it took."""
        provider, context, began = self.provider, self._context, self.began
        now = context.clock.now()
        seconds = now - began
        context.network.reached(provider.name)
        own = seconds - context.stalls.stalled(began, now)
        guards, held, times, call = self.candidate.guards, self._pass, self.times, self._outstanding
        if not (whole and guards.answered_as_usual(held, own, times, call)):
            outcome = AttemptOutcome(_ANSWERED, self._request.cause, own)
            guards.answered(held, outcome, times, call, whole=whole)
        if provider.adaptive.fallen:
            provider.adaptive.succeeded(provider.slots.in_flight)
            self._limit_calls(provider.adaptive.limit)
        if pause := self.client.pause():
            self.candidate.guards.cooldown.throttle(pause)
        return seconds

    def _failed(self, failure: Failure, verdict: Verdict) -> None:
        effect = Effect.FAILED if verdict.counts else _EFFECTS[verdict.gate]
        # If no provider can be connected to, it is the network's fault.
        if self._is_network_fault(failure):
            effect = Effect.NEUTRAL
        if effect is Effect.FAILED:
            self.candidate.blamed = True
        elif effect is Effect.MISCONFIGURED:
            self._context.network.forget(self.provider.name)  # it is not called for a while
        self._throttled_by(failure)
        retry_after = failure.retry_after
        if effect is Effect.FAILED and verdict.gate is not Gate.COOLDOWN:
            retry_after = None
        certain = failure.certain or verdict.gate is Gate.NOT_OFFERED
        outcome = AttemptOutcome(
            effect, self._request.cause, 0.0, failure.kind, failure.status, retry_after, certain
        )
        self.candidate.guards.end(self._pass, outcome)
        if pause := self.client.pause():
            self.candidate.guards.cooldown.throttle(pause)
        self.times.ended(self._outstanding)

    def _hedge_lost(self) -> None:
        """Settle an attempt that was cancelled because another was quicker.

        Its result is unknown. If it took longer than usual here, and the provider answers no other
        call until its timeout would have come, it counts as a failure after all.
        """
        guards, request, held, times = self.candidate.guards, self._request, self._pass, self.times

        def settle(failed: bool) -> None:
            if failed:
                self.candidate.blamed = True
            effect = Effect.FAILED if failed else Effect.NEUTRAL
            guards.end(held, AttemptOutcome(effect, request.cause))

        now = self._context.clock.now()
        late = now - self.began - self._context.stalls.stalled(self.began, now) >= self.patience
        if late and not held.probe and times.p95 is not None:
            times.hedge_lost(self._outstanding, self.began + self.limit, settle)
        else:
            times.ended(self._outstanding)
            # A late probe is judged at once: others wait for its result, and if its permit were
            # released, the next request would probe again.
            settle(held.probe and late)

    def _is_network_fault(self, failure: Failure) -> bool:
        context, name = self._context, self.provider.name
        if not failure.unreachable:
            if failure.status is not None:
                context.network.reached(name)
            return False
        if not context.network.unreachable(name):
            return False
        context.reset_circuits_opened_offline()
        return True

    def _throttled_by(self, failure: Failure) -> None:
        """Lower the limit of calls in flight, if the vendor is overloaded."""
        if (
            failure.kind is FailureKind.RATE_LIMITED
            or failure.status == _BUSY
            or failure.code == FIRST_TOKEN_TIMEOUT
        ):
            provider = self.provider
            provider.adaptive.throttled(provider.slots.in_flight, self.began)
            self._limit_calls(provider.adaptive.limit)

    def _limit_calls(self, calls: int) -> None:
        """Limit the calls in flight; a request may wait for a higher limit."""
        slots = self.provider.slots
        if slots.limit != calls:
            slots.limit = calls
            self._context.limiter.wake()

    # ── accounting ───────────────────────────────────────────────────────────────────────────

    def _neutral_kind(self, how: AttemptEnd) -> FailureKind:
        late = how is AttemptEnd.CANCELLED and self._context.clock.now() >= self._request.deadline
        return FailureKind.DEADLINE if late else _KIND_OF_END[how]

    def _unanswered(self, how: AttemptEnd, failure: Failure | None) -> Billable | None:
        """Estimate what an attempt without an answer costs; None if nothing.

        After a timeout the vendor is assumed to have read the prompt only.
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

    def _report_cost(self, cost_usd: float | None) -> None:
        if self._sent is not None and self._sent.on_cost is not None:
            self._sent.on_cost(cost_usd)

    def _record(self, failure: Failure | None, answer: Billable | None) -> None:
        """Count the attempt, emit its events, and release its slot."""
        provider, request, context = self.provider, self._request, self._context
        seconds = context.clock.now() - self.began
        cost_usd = kind = status = None
        if answer is not None:
            cost_usd = answer.cost_usd
            if self._sent is not None and self._sent.on_cost is not None:
                self._sent.on_cost(cost_usd)
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
                ()
                if failure is not None or request.params is None
                else tuple(provider.dropped(request.params, request.messages)),
            )
        )
        if self._rated is not None:
            self._rated.settle(self._tokens(failure, answer))
        context.stalls.calls -= 1
        context.limiter.release(self._slots)
        if failure is not None or request.record is not None:
            self._report(failure, answer, seconds)

    def _tokens(self, failure: Failure | None, answer: Billable | None) -> int | None:
        """Return the tokens that the vendor has counted; None if not known."""
        if answer is not None and answer is not self._estimate:
            return answer.usage.total_tokens or None
        if failure is None or failure.kind in _POSSIBLY_BILLED:
            return None
        return 0

    def _report(self, failure: Failure | None, answer: Billable | None, seconds: float) -> None:
        """Emit the end of this attempt; if nothing follows each attempt, only a failure."""
        provider, record = self.provider, self._request.record
        plain = failure is None and self.number == 1 and not self._pass.last_resort
        if plain and answer is not None and record is not None:
            kept = FirstAnswer(
                provider.name,
                provider.model,
                seconds,
                self._first_content,
                answer.usage,
                answer.cost_usd,
                partial(self._ended, None, answer, seconds),
            )
            if record.first_answered(kept):
                return
        event = self._ended(failure, answer, seconds)
        if record is None:
            self._context.emitter.emit(event)
        else:
            record.attempt_ended(event, self._trace, answer)

    def _ended(
        self, failure: Failure | None, answer: Billable | None, seconds: float
    ) -> AttemptEnded:
        provider, request, record = self.provider, self._request, self._request.record
        attempts = request.attempts  # the last one is this
        return AttemptEnded(
            request.request_id,
            self.number,
            self.candidate.operation,
            record is not None and record.streamed,
            provider.name,
            provider.vendor,
            provider.model,
            None if failure is None else failure.kind,
            None if failure is None else failure.status,
            len(attempts) > 1
            and any(attempt.provider == provider.name for attempt in attempts[:-1]),
            seconds,
            self._first_content,
            Usage() if answer is None else answer.usage,
            None if answer is None else answer.cost_usd,
            self._pass.last_resort,
            None if failure is None else failure.code,
            "" if record is None else record.tenant,
        )


def _excess(usage: Usage, counted: Usage) -> Usage:
    """Return the part of a usage that has not been counted yet."""
    prompt = max(0, usage.prompt_tokens - counted.prompt_tokens)
    answer = max(0, usage.completion_tokens - counted.completion_tokens)
    return Usage(prompt, answer, prompt + answer)


_POSSIBLY_BILLED = frozenset(
    {FailureKind.TIMEOUT, FailureKind.CANCELLED, FailureKind.DEADLINE, FailureKind.HEDGE_LOST}
)
"""Failures after which the vendor has very likely counted the request's tokens."""
