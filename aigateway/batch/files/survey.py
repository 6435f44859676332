"""A first look through the whole input, before anybody is asked and anything is spent."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from aigateway.batch.files.index import Index
from aigateway.batch.files.lines import Line, Problem, Source
from aigateway.batch.files.requests import BREATH, Check, asked_of, judged, name_of, repeated
from aigateway.messages import ChatRequest
from aigateway.tokens import USUAL_ANSWER, answer_tokens, prompt_tokens

__all__ = ["Counter", "Survey", "Tally", "survey"]

Counter = Callable[[Sequence[Mapping[str, Any]]], int | None]
"""Counts the tokens of messages; None where it cannot."""

_TOLD = 20
"""Problems that are kept; of the others only the number."""

_COUNTED = 500
"""Prompts that are counted token by token, the first ones; the others are estimated after them."""

_CHARACTERS = 4
"""For each token of what is sent beside the messages: tools, a schema."""


@dataclass(slots=True)
class Tally:
    """What is asked of one model.

    Attributes:
        requests: How many.
        prompt_tokens: In their prompts, by estimate.
        answer_tokens: In the answers: as many as each allows, or a usual number.
        unbounded: Requests that do not say how long an answer may be.
    """

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    unbounded: int = 0


@dataclass(slots=True)
class Survey:
    """What is in an input.

    Attributes:
        total: Lines, the ones with a problem included.
        problems: The first of those.
        wrong: How many there are.
        repeated: Lines that ask what an earlier one asks; only where that was looked for.
        tallies: What is asked, by model; None stands for "any". Repeated lines are left out.
        counted: Prompts whose tokens were counted one by one.
        factor: What the estimate was multiplied by after that.
    """

    total: int = 0
    problems: list[Problem] = field(default_factory=list)
    wrong: int = 0
    repeated: int = 0
    tallies: dict[str | None, Tally] = field(default_factory=lambda: defaultdict(Tally))
    counted: int = 0
    factor: float = 1.0

    def note(self, problem: Problem) -> None:
        """Enter a line that is none."""
        self.wrong += 1
        if len(self.problems) < _TOLD:
            self.problems.append(problem)


async def survey(
    source: Source,
    check: Check,
    shared: Mapping[str, Any],
    index: Index,
    *,
    count: Counter | None = None,
    tell: Callable[[int], object] | None = None,
) -> Survey:
    """Read the input once: every line's id into the index, and what is wrong with it.

    Args:
        source: The input.
        check: Refuses what no vendor should be asked.
        shared: Options for every line; its own stand over them.
        index: Empty.
        count: For an estimate of the cost: also look for repeated lines, and count tokens.
        tell: Is told now and then how many lines have been read.

    Raises:
        ConfigurationError: The file cannot be read to its end.
        GatewayError: The index has no room on the disk.
    """
    found = Survey()
    scale = _Scale(count)
    for line in source.lines():
        found.total += 1
        if found.total % BREATH == 0:
            await asyncio.sleep(0)
            if tell is not None:
                tell(found.total)
        judgement = _entered(judged(line, check, shared), index)
        if isinstance(judgement, Problem):
            found.note(judgement)
        elif count is not None and _is_new(judgement[0], shared, index):
            _add(found, judgement[1], scale)
        elif count is not None:
            found.repeated += 1
    scale.apply(found)
    return found


class _Scale:
    """What the estimate of the prompts is off by, from those that were counted."""

    def __init__(self, count: Counter | None) -> None:
        self._count = count
        self._counted = self._estimated = self._exact = 0

    def weigh(self, request: ChatRequest, estimate: int) -> None:
        """Count one of the first prompts."""
        if self._count is None or self._counted >= _COUNTED:
            return
        tokens = self._count(request.messages)
        if tokens is not None:
            self._counted += 1
            self._estimated += estimate
            self._exact += tokens

    def apply(self, found: Survey) -> None:
        """Correct the whole after them."""
        if not self._estimated:
            return
        found.counted, found.factor = self._counted, self._exact / self._estimated
        for tally in found.tallies.values():
            tally.prompt_tokens = round(tally.prompt_tokens * found.factor)


def _entered(
    judgement: tuple[Line, ChatRequest] | Problem, index: Index
) -> tuple[Line, ChatRequest] | Problem:
    """Enter a line into the index. One whose id is taken is a problem, too."""
    if not isinstance(judgement, Problem):
        line, _ = judgement
        first = index.enter(line.id, line.number)
        if first is None:
            return judgement
        judgement = repeated(line, first)
    index.enter(name_of(judgement, index), judgement.number)
    return judgement


def _is_new(line: Line, shared: Mapping[str, Any], index: Index) -> bool:
    """Whether no earlier line asks the same."""
    asked = asked_of(line, shared)
    return asked is None or index.first(asked)


def _add(found: Survey, request: ChatRequest, scale: _Scale) -> None:
    tally = found.tallies[request.model]
    prompt, bound = prompt_tokens(request), answer_tokens(request)
    scale.weigh(request, prompt)
    many = request.params.get("n") or 1
    tally.requests += 1
    tally.prompt_tokens += prompt + _beside(request)
    tally.answer_tokens += (USUAL_ANSWER if bound is None else bound) * many
    tally.unbounded += bound is None


def _beside(request: ChatRequest) -> int:
    """Tokens of what is sent beside the messages."""
    sent = [request.params[name] for name in ("tools", "response_format") if name in request.params]
    return len(orjson.dumps(sent)) // _CHARACTERS if sent else 0
