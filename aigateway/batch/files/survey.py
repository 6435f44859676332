"""Read the whole input before anything is sent: what is wrong with it, and what it would cost."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from aigateway.batch.files.index import Index
from aigateway.batch.files.input import (
    LINES_PER_TURN,
    Check,
    Line,
    Problem,
    Source,
    checked,
    problem_name,
    repeated_id,
    same_answer_key,
)
from aigateway.errors import ConfigurationError
from aigateway.messages import ChatRequest
from aigateway.settings import LLMConfig
from aigateway.tokens import USUAL_ANSWER, answer_tokens, prompt_tokens
from aigateway.wires.pricing import Price, price_of

__all__ = ["Estimate", "Survey", "Tally", "TokenCounter", "estimates", "refuse_unpriced", "survey"]

TokenCounter = Callable[[Sequence[Mapping[str, Any]]], int | None]
"""Counts the tokens of messages; None where it cannot."""

_KEPT_PROBLEMS = 20
"""Further problems are only counted."""

_COUNTED_PROMPTS = 500
"""The first prompts are counted token by token; the others are scaled by the result."""

_CHARACTERS_PER_TOKEN = 4
"""For what is sent with the messages: tools, a schema."""


@dataclass(slots=True)
class Tally:
    """The requests for one model, with estimated tokens.

    `answer_tokens` has as many as each request allows, or a usual number for the `unbounded` ones.
    """

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    unbounded: int = 0


@dataclass(slots=True)
class Survey:
    """The content of an input.

    Attributes:
        total: Lines, including those with a problem.
        problems: The first problems.
        wrong: Lines with a problem.
        repeated: Lines that repeat an earlier one; counted only for an estimate.
        tallies: Requests by model; None stands for any. Repeated lines are left out.
        counted: Prompts whose tokens were counted.
        blank: Rows of a table with an empty cell in a column of the template.
    """

    total: int = 0
    problems: list[Problem] = field(default_factory=list)
    wrong: int = 0
    repeated: int = 0
    tallies: dict[str | None, Tally] = field(default_factory=lambda: defaultdict(Tally))
    counted: int = 0
    blank: int = 0

    def note(self, problem: Problem) -> None:
        """Count a problem."""
        self.wrong += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)


async def survey(
    source: Source,
    check: Check,
    shared: Mapping[str, Any],
    index: Index,
    *,
    count: TokenCounter | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Survey:
    """Read the input once, and enter every line's id into the index.

    Args:
        source: The input.
        check: Checks a request (`AsyncGateway.check`).
        shared: Options of every line; its own take precedence.
        index: An empty index.
        count: For a cost estimate: count tokens, and look for repeated lines.
        on_progress: Called now and then with the number of lines read.

    Raises:
        ConfigurationError: The file cannot be read to its end.
        GatewayError: The index has no room on the disk.
    """
    found = Survey()
    scale = _Scale(count)
    for line in source.lines():
        found.total += 1
        if found.total % LINES_PER_TURN == 0:
            await asyncio.sleep(0)
            if on_progress is not None:
                on_progress(found.total)
        entered = _entered(checked(line, check, shared), index, source.unit)
        if isinstance(entered, Problem):
            found.note(entered)
            continue
        row = entered[0].row
        found.blank += row is not None and any(row[name] == "" for name in source.template_columns)
        if count is not None and _is_new(entered[0], shared, index):
            _add(found, entered[1], scale)
        elif count is not None:
            found.repeated += 1
    scale.apply(found)
    return found


class _Scale:
    """The ratio of counted to estimated prompt tokens."""

    def __init__(self, count: TokenCounter | None) -> None:
        self._count = count
        self._counted = self._estimated = self._exact = 0

    def weigh(self, request: ChatRequest, estimate: int) -> None:
        """Count the tokens of one of the first prompts."""
        if self._count is None or self._counted >= _COUNTED_PROMPTS:
            return
        tokens = self._count(request.messages)
        if tokens is not None:
            self._counted += 1
            self._estimated += estimate
            self._exact += tokens

    def apply(self, found: Survey) -> None:
        """Correct all prompt tokens by the ratio."""
        if not self._estimated:
            return
        found.counted = self._counted
        for tally in found.tallies.values():
            tally.prompt_tokens = round(tally.prompt_tokens * self._exact / self._estimated)


def _entered(
    line: tuple[Line, ChatRequest] | Problem, index: Index, unit: str
) -> tuple[Line, ChatRequest] | Problem:
    """Enter a line into the index. A line whose id is taken is a problem, too."""
    if not isinstance(line, Problem):
        first = index.enter(line[0].id, line[0].number)
        if first is None:
            return line
        line = repeated_id(line[0], first, unit)
    index.enter(problem_name(line, index), line.number)
    return line


def _is_new(line: Line, shared: Mapping[str, Any], index: Index) -> bool:
    key = same_answer_key(line, shared)
    return key is None or index.first(key)


def _add(found: Survey, request: ChatRequest, scale: _Scale) -> None:
    tally = found.tallies[request.model]
    prompt, bound = prompt_tokens(request), answer_tokens(request)
    scale.weigh(request, prompt)
    tally.requests += 1
    tally.prompt_tokens += prompt + _extra_tokens(request)
    tally.answer_tokens += (USUAL_ANSWER if bound is None else bound) * (
        request.params.get("n") or 1
    )
    tally.unbounded += bound is None


def _extra_tokens(request: ChatRequest) -> int:
    sent = [request.params[name] for name in ("tools", "response_format") if name in request.params]
    return len(orjson.dumps(sent)) // _CHARACTERS_PER_TOKEN if sent else 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a job if one provider answered all requests whose model it serves."""

    config: LLMConfig
    tally: Tally
    price: Price | None

    @property
    def cost_usd(self) -> float | None:
        """US dollars; None if the price is unknown."""
        if self.price is None:
            return None
        tally = self.tally
        return tally.prompt_tokens * self.price.input + tally.answer_tokens * self.price.output


def estimates(tallies: Mapping[str | None, Tally], configs: Sequence[LLMConfig]) -> list[Estimate]:
    """Return an estimate per provider, highest priority first. Loads litellm."""
    ordered = sorted(configs, key=lambda config: -config.priority)
    return [Estimate(config, _served(tallies, config), price_of(config)) for config in ordered]


def refuse_unpriced(configs: Sequence[LLMConfig]) -> None:
    """Check that every provider has a price. Loads litellm.

    Raises:
        ConfigurationError: A provider has none.
    """
    for config in configs:
        if price_of(config) is None:
            raise ConfigurationError(
                f"--max-cost cannot be enforced: the price of {config.name} is unknown. Give it"
                ' extra = {"input_cost_per_token": ..., "output_cost_per_token": ...}, or leave'
                " --max-cost out."
            )


def _served(tallies: Mapping[str | None, Tally], config: LLMConfig) -> Tally:
    names = {None, config.name, config.model, *config.aliases}
    mine = [tally for model, tally in tallies.items() if model in names]
    return Tally(
        sum(tally.requests for tally in mine),
        sum(tally.prompt_tokens for tally in mine),
        sum(tally.answer_tokens for tally in mine),
        sum(tally.unbounded for tally in mine),
    )
