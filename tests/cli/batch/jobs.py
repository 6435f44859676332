"""Jobs to look at: totals from real records, and a view that a test moves by hand."""

import re
from dataclasses import dataclass, field

from aigateway.batch.files.output import answer_record, copied, error_record
from aigateway.batch.files.totals import JobTotals
from aigateway.errors import FailureKind, GatewayError
from aigateway.messages import Attempt, ChatResponse, Choice, Completion, Usage
from aigateway.resilience.breaker import CircuitState
from aigateway.routing.provider import ProviderStatus
from aigateway.testing import FakeClock

OPENAI = "openai/gpt-4o-mini"
LONG = "litellm/bedrock/anthropic.claude-3-haiku-20240307-v1:0"
ANSWER = "the-answers-own-words"


def answer(provider=OPENAI, seconds=0.5, cost=0.001, failed=(), **about):
    attempts = [Attempt(OPENAI, "m", kind, None, 0.1) for kind in failed]
    attempts.append(Attempt(provider, "m", None, None, seconds))
    completion = Completion("c", "m", (Choice(ANSWER),), Usage(10, 20, 30), cost)
    response = ChatResponse(
        completion, provider, attempts=tuple(attempts), latency_seconds=seconds, **about
    )
    return answer_record("line", response)


def add(totals, record, times=1):
    for _ in range(times):
        totals.add(record)


def mixed_totals(provider=OPENAI):
    """100 answers, 3 errors: of every kind something."""
    totals = JobTotals()
    for number in range(1, 91):
        totals.add(answer(provider, seconds=number / 10))
    add(totals, answer(LONG, cost=None, failed=[FailureKind.TIMEOUT]), 6)
    add(totals, copied(answer(provider), "other"), 4)
    add(totals, error_record("line", GatewayError("x")), 3)
    return totals


def status(name=OPENAI, state=CircuitState.CLOSED, wait=None, disabled=None):
    active = wait is None and disabled is None
    return ProviderStatus(name, "openai", "m", 1, active, state, wait, disabled, 0, 10)


@dataclass
class Gateway:
    providers: tuple[ProviderStatus, ...] = (status(),)


@dataclass
class Job:
    clock: FakeClock
    totals: JobTotals = field(default_factory=JobTotals)
    total: int = 200
    stopping: str | None = None
    waiting: bool = False
    in_flight: int = 7
    gateway: Gateway = field(default_factory=Gateway)
    began: float = 0.0

    def __post_init__(self):
        self.began = self.clock.now()

    @property
    def elapsed(self):
        return self.clock.now() - self.began


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def widest(text):
    """Of what was drawn: the longest line, wherever the cursor went back to the left."""
    return max(len(line) for line in re.split(r"[\r\n]", without_codes(text)))
