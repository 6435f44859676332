"""One call to one provider: what it takes while it is out, and what its end means.

From its making to its end a call holds a permit of the breaker, a place of the limiter, and an
entry with the gates, the rates and the watch for hangs. Each end gives all of them back, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

from aigateway.clock import Clock
from aigateway.errors import FailureKind, ProviderFailure
from aigateway.events import (
    AttemptEnded,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    ProviderFailed,
)
from aigateway.messages import (
    Attempt,
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    Usage,
)
from aigateway.resilience.breaker import CircuitState, Permit, Rejected
from aigateway.resilience.limiter import Limiter
from aigateway.resilience.network import Reachability
from aigateway.routing.journey import Journey
from aigateway.routing.provider import Pace, Provider
from aigateway.telemetry.account import Account
from aigateway.telemetry.emitter import Emitter
from aigateway.telemetry.traces import AttemptTraces
from aigateway.vendor.client import Failure
from aigateway.vendor.failures import VERDICTS, Gate, Verdict

__all__ = ["FIRST_TOKEN_TIMEOUT", "Answer", "Call", "Surroundings"]

FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - tokens of a model
"""`Failure.code` of a stream that had no content in time."""

R = TypeVar("R", ChatRequest, EmbeddingRequest)

_GIVEN_UP = frozenset({FailureKind.TIMEOUT, FailureKind.DEADLINE})
"""Failures of calls that the gateway broke off, and the vendor did not end."""

_BUSY = 529
"""Anthropic's "overloaded"."""


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
    """What all calls of one gateway share.

    Attributes:
        clock: Time and randomness.
        limiter: The gateway's places.
        emitter: Is told what happens.
        network: Whether anybody at all can be reached.
        providers: Gives all of them, as they are now.
    """

    clock: Clock
    limiter: Limiter
    emitter: Emitter
    network: Reachability
    providers: Callable[[], Iterable[Provider]]

    def spare_the_circuits(self) -> None:
        """Close those that opened only because nobody at all could be reached."""
        for provider in self.providers():
            breaker = provider.breaker
            if provider.name not in self.network.down or breaker.forced:
                continue
            if breaker.state is CircuitState.OPEN:
                breaker.reset()


class Call:
    """One attempt under way. Made when it begins; `succeeded`, `failed`, ... is its end.

    Attributes:
        provider: Who is asked.
        limit: Seconds it may take.
        patience: Seconds after which the provider is slower than it usually is.
        number: Which of its request's attempts it is, from 1.
        over: It has been settled.
    """

    __slots__ = (
        "_account",
        "_around",
        "_began",
        "_entry",
        "_estimate",
        "_first_content",
        "_journey",
        "_pace",
        "_permit",
        "_rated",
        "_sent",
        "_slots",
        "_trace",
        "_watched",
        "limit",
        "number",
        "over",
        "patience",
        "provider",
    )

    def __init__(
        self,
        provider: Provider,
        permit: Permit,
        journey: Journey,
        around: Surroundings,
        pace: Pace,
    ) -> None:
        self.provider = provider
        self._permit = permit
        self._journey = journey
        self._around = around
        self._pace = pace
        self._slots = provider.slots
        self._entry = provider.gates.enter()
        self._rated = provider.rates.begin(journey.tokens) if provider.rates else None
        self._watched = pace.watch.begin()
        self._began = around.clock.now()
        self.limit = math.inf
        self.patience = math.inf
        self.over = False
        self._sent: ChatRequest | EmbeddingRequest | None = None
        self._estimate: Answer | None = None  # what it was counted for, without an answer
        around.limiter.take(self._slots)
        journey.begun = self.number = journey.begun + 1
        self._account = account = journey.account
        self._trace: AttemptTraces | None = None
        if account is not None:
            self._first_content: float | None = None
            vendor = str(provider.config.provider)
            self._trace = account.attempt_began(provider.name, vendor, provider.model, self.number)

    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._around.clock.now() - self._began

    def outgoing(self, request: R) -> R:
        """The request as it goes to the vendor: with the headers of whoever traces this call."""
        self._sent = request
        if self._trace is None or not self._trace.headers:
            return request
        own = self._trace.headers
        kept = {name: v for name, v in request.headers.items() if name.lower() not in own}
        return replace(request, headers=kept | own)

    def counted(self, answer: Answer, *, whole: bool = False) -> Answer:
        """An answer with its usage and cost: as the vendor counted, else by estimate.

        Args:
            answer: As far as it came.
            whole: It came to its end.
        """
        if self._sent is None:
            return answer
        if isinstance(answer, Completion | Embeddings):
            return self.provider.costs.counted(self._sent, answer, whole=whole)
        return self.counted_part(answer.part()) if isinstance(answer, Unfinished) else answer

    def counted_part(self, part: Completion) -> Completion:
        """Likewise what came of a stream that did not come to its end."""
        return part if self._sent is None else self.provider.costs.counted(self._sent, part)

    # ── its ends ─────────────────────────────────────────────────────────────────────────────

    def succeeded(self, answer: Answer) -> None:
        """It was answered."""
        seconds = self._answers()
        self._permit.success()
        self._counted_as_success(answer, seconds)

    def first_content(self) -> None:
        """A stream has given its first content: the verdict on the provider falls here.

        The permit of a probe is settled. What may break later is counted under one of its own.
        """
        seconds = self._answers()
        self.provider.first_contents_seen.add(seconds)
        if self._account is not None:
            self._first_content = seconds
            self._account.first_content()
        if self._permit.probe:
            self._permit.success()
            permit = self.provider.breaker.acquire()
            if not isinstance(permit, Rejected):
                self._permit = permit
        self._around.limiter.wake()  # somebody may have waited for this verdict

    def stream_ended(self, answer: Answer) -> None:
        """A stream that had given its first content came to its proper end."""
        self._permit.success()
        self._counted_as_success(answer, self.seconds())

    def failed(self, failure: Failure, part: Answer | None = None) -> Verdict:
        """It gave no answer, or none of use. Says what the failure leads to.

        Args:
            failure: What happened.
            part: What had come and has to be paid for.
        """
        provider, verdict = self.provider, VERDICTS[failure.kind]
        self._throttled_by(failure)
        if self._is_the_networks_fault(failure):
            self._permit.release()
        elif verdict.counts and provider.name not in self._journey.blamed:
            self._journey.blamed.add(provider.name)
            self._permit.failure()
        else:
            self._permit.release()
        provider.gates.leave(self._entry)
        self._close_gates(failure, verdict)
        self._heed_the_vendors_limits()
        self._pace.watch.ended(self._watched)
        # What timed out has very likely been counted by the vendor.
        refused = part is None and failure.kind is not FailureKind.TIMEOUT
        tokens = 0 if refused else (part and part.usage.total_tokens) or None
        if part is not None:
            part = self.counted(part)
            self._spent(part)
        elif failure.kind in _GIVEN_UP and failure.status is None and not failure.unreachable:
            # A provider that is silent beyond its own time is taken to have done nothing.
            part = self._unanswered(silent=failure.kind is FailureKind.TIMEOUT)
        seconds = self._book(failure, None if part is None else part.cost_usd)
        self._around.emitter.emit(
            ProviderFailed(
                self._journey.request_id,
                provider.name,
                failure.kind,
                failure.status,
                failure.code,
                seconds,
                self.number,
            )
        )
        self._leave(tokens, failure, part)
        return verdict

    def cut_short(self) -> None:
        """The caller went away, or the request's own deadline came: nobody is to blame."""
        self._permit.release()
        self.provider.gates.leave(self._entry)
        self._pace.watch.ended(self._watched)
        late = self._around.clock.now() >= self._journey.deadline
        failure = Failure(FailureKind.DEADLINE if late else FailureKind.CANCELLED)
        self._leave_unanswered(failure)

    def stream_left(self, answer: Answer) -> None:
        """The caller left a stream before its end: neutral, and paid for as far as it came."""
        self._permit.release()
        answer = self.counted(answer)
        self._spent(answer)
        failure = Failure(FailureKind.CANCELLED)
        self._book(failure, answer.cost_usd)
        self._leave(answer.usage.total_tokens or None, failure, answer)

    def outrun(self) -> None:
        """Another attempt answered first, and this one is cancelled.

        Whether it would have answered nobody knows. If it was later than this provider is known to
        be, and the provider answers nobody else until its time would have been over, it counts as
        a failure after all.
        """
        provider, journey, permit = self.provider, self._journey, self._permit

        def settle(failed: bool) -> None:
            if failed and provider.name not in journey.blamed:
                journey.blamed.add(provider.name)
                permit.failure()
            else:
                permit.release()

        provider.gates.leave(self._entry)
        late = self.seconds() >= self.patience
        if late and not permit.probe and self._pace.latency.p95 is not None:
            self._pace.watch.outrun(self._watched, self._began + self.limit, settle)
        else:
            self._pace.watch.ended(self._watched)
            # A probe that is late is judged at once: others wait for its verdict, and with its
            # place given back the next request would probe again.
            settle(permit.probe and late)
        self._leave_unanswered(Failure(FailureKind.OUTRUN))

    def answered_too_late(self, answer: Answer) -> None:
        """Another attempt answered in the same moment: this answer is not used, but is paid for."""
        self._answers()
        self._permit.success()
        answer = self.counted(answer)
        self._spent(answer)
        failure = Failure(FailureKind.OUTRUN)
        self._book(failure, answer.cost_usd)
        self._leave(answer.usage.total_tokens, failure, answer)

    def answered_after_its_end(self, answer: Answer) -> None:
        """It was settled already, as cancelled or outrun, and brought an answer all the same."""
        answer = self.counted(answer)
        usage, cost_usd = answer.usage, answer.cost_usd
        if self._estimate is not None:  # which has been counted
            usage = _beyond(usage, self._estimate.usage)
            if cost_usd is not None:
                cost_usd = max(0.0, cost_usd - (self._estimate.cost_usd or 0.0))
        self.provider.counters.spent(usage, cost_usd)
        self._tell_cost(cost_usd)
        if self._account is not None:
            self._account.discarded(self.provider.name, usage, cost_usd)

    # ── what the ends have in common ─────────────────────────────────────────────────────────

    def _answers(self) -> float:
        """The provider has shown that it is well; says how long that took, in seconds."""
        provider, seconds = self.provider, self.seconds()
        self._around.network.reached(provider.name)
        self._pace.latency.add(seconds)
        self._pace.watch.succeeded(self._watched)
        if provider.adaptive.fallen:
            provider.adaptive.succeeded(provider.slots.in_flight)
            self._bound(provider.adaptive.limit)
        if provider.gates.succeeded(self._entry):
            self._around.emitter.emit(ProviderEnabled(provider.name))
        self._heed_the_vendors_limits()
        return seconds

    def _spent(self, answer: Answer) -> None:
        self.provider.counters.spent(answer.usage, answer.cost_usd)
        self._tell_cost(answer.cost_usd)

    def _tell_cost(self, cost_usd: float | None) -> None:
        """Tell whoever keeps an account for the request."""
        if self._sent is not None and self._sent.on_cost is not None:
            self._sent.on_cost(cost_usd)

    def _unanswered(self, *, silent: bool = False) -> Answer | None:
        """Count a call that was broken off before anything came.

        Args:
            silent: The vendor is taken to have read the prompt only.
        """
        if self._sent is None:
            return None
        seconds = 0.0 if silent else self.seconds()
        self._estimate = self.provider.costs.unanswered(self._sent, seconds)
        self._spent(self._estimate)
        return self._estimate

    def _leave_unanswered(self, failure: Failure) -> None:
        estimate = self._unanswered()
        self._book(failure, None if estimate is None else estimate.cost_usd)
        self._leave(None, failure, estimate)

    def _counted_as_success(self, answer: Answer, seconds: float) -> None:
        provider = self.provider
        if self._sent is not None:
            provider.costs.learn(self._sent, answer)
        answer = self.counted(answer, whole=True)
        self._tell_cost(answer.cost_usd)
        provider.counters.succeeded(seconds, answer.usage, answer.cost_usd)
        self._journey.attempts.append(
            Attempt(provider.name, provider.model, None, None, seconds, answer.cost_usd)
        )
        self._leave(answer.usage.total_tokens or None, None, answer)

    def _book(self, failure: Failure, cost_usd: float | None = None) -> float:
        provider, seconds = self.provider, self.seconds()
        provider.counters.failed(failure.kind)
        self._journey.failed(
            Attempt(provider.name, provider.model, failure.kind, failure.status, seconds, cost_usd),
            ProviderFailure(provider.name, failure.kind, failure.status, failure.retry_after),
            unreachable=failure.unreachable,
        )
        return seconds

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
        """Set how many calls may be out; a higher bound may be what somebody waits for."""
        slots = self.provider.slots
        if slots.limit != calls:
            slots.limit = calls
            self._around.limiter.wake()

    def _close_gates(self, failure: Failure, verdict: Verdict) -> None:
        provider, emitter = self.provider, self._around.emitter
        if verdict.gate is Gate.DISABLE:
            pause = provider.gates.disable(failure.kind)
            self._around.network.forget(provider.name)  # not asked for a while: it tells nothing
            emitter.emit(
                ProviderDisabled(provider.name, failure.kind, failure.status, round(pause, 3))
            )
        elif verdict.gate is Gate.COOLDOWN and not (verdict.counts and failure.retry_after is None):
            # A sick provider is the breaker's affair; it cools down only if it said for how long.
            pause = provider.gates.throttled(failure.retry_after)
            emitter.emit(ProviderCooledDown(provider.name, round(pause, 3)))

    def _heed_the_vendors_limits(self) -> None:
        """Stop calls before they are refused, where the vendor says that none is left."""
        pause = self.provider.pause()
        if pause:
            until = self.provider.gates.throttled(pause)
            self._around.emitter.emit(ProviderCooledDown(self.provider.name, round(until, 3)))

    def _leave(
        self, tokens: int | None, failure: Failure | None, answer: Answer | None = None
    ) -> None:
        if self.over:
            raise AssertionError(f"A call to {self.provider.name} ended twice.")
        self.over = True
        if self._rated is not None:
            self._rated.settle(tokens)
        self._around.limiter.give_back(self._slots)
        if self._account is not None:
            self._report(self._account, failure, answer)

    def _report(self, account: Account, failure: Failure | None, answer: Answer | None) -> None:
        """Tell whoever follows each attempt how this one ended."""
        provider = self.provider
        others = self._journey.attempts[:-1]  # the last one is this
        event = AttemptEnded(
            account.request_id,
            self.number,
            account.operation,
            account.streamed,
            provider.name,
            str(provider.config.provider),
            provider.model,
            None if failure is None else failure.kind,
            None if failure is None else failure.status,
            any(attempt.provider == provider.name for attempt in others),
            self.seconds(),
            self._first_content,
            Usage() if answer is None else answer.usage,
            None if answer is None else answer.cost_usd,
        )
        account.attempt_ended(event, self._trace, answer)


def _beyond(usage: Usage, counted: Usage) -> Usage:
    """What a usage is beyond what was counted already."""
    prompt = max(0, usage.prompt_tokens - counted.prompt_tokens)
    answer = max(0, usage.completion_tokens - counted.completion_tokens)
    return Usage(prompt, answer, prompt + answer)
