"""A first look through the whole input, before anybody is asked and anything is spent."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from aigateway.errors import RequestRejectedError
from aigateway.intake import USUAL_ANSWER, answer_tokens, prompt_tokens
from aigateway.jobs.index import Index
from aigateway.jobs.lines import Line, Problem, Source
from aigateway.messages import ChatRequest

__all__ = ["BREATH", "Counter", "Survey", "Tally", "asked_of", "name_of", "repeated", "survey"]

Check = Callable[..., ChatRequest]
"""`AsyncGateway.check`."""

Counter = Callable[[Sequence[Mapping[str, Any]]], int | None]
"""Counts the tokens of messages; None where it cannot."""

BREATH = 256
"""Lines that need no vendor, after which others on the event loop have their turn."""

_TOLD = 20
"""Problems that are kept; of the others only the number."""

_COUNTED = 500
"""Prompts that are counted token by token, the first ones; the others are estimated after them."""


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
    """
    found = Survey()
    estimated = exact = 0
    for line in source.lines():
        found.total += 1
        if found.total % BREATH == 0:
            await asyncio.sleep(0)
            if tell is not None:
                tell(found.total)
        problem, request = _checked(line, check, shared, index)
        if problem is not None:
            found.note(problem)
            index.enter(name_of(problem, index), problem.number)
        if request is None or count is None:
            continue
        assert isinstance(line, Line)  # noqa: S101 - it has become a request
        asked = asked_of(line, shared)
        if asked is not None and not index.first(asked):
            found.repeated += 1
            continue
        prompt = _add(found.tallies[request.model], request)
        tokens = count(request.messages) if found.counted < _COUNTED else None
        if tokens is not None:
            found.counted += 1
            estimated += prompt
            exact += tokens
    if estimated:
        found.factor = exact / estimated
        for tally in found.tallies.values():
            tally.prompt_tokens = round(tally.prompt_tokens * found.factor)
    return found


def asked_of(line: Line, shared: Mapping[str, Any]) -> bytes | None:
    """What two lines have in common if one answer serves both; None if each wants its own."""
    options = {**shared, **line.options}
    if options.pop("cache", True) is not True:
        return None
    for name in ("timeout", "agent", "cache_ttl", "hedge"):
        options.pop(name, None)
    prompt = line.prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return orjson.dumps([prompt, options], option=orjson.OPT_SORT_KEYS)


def name_of(problem: Problem, index: Index) -> str:
    """What a line is called that cannot be asked: as it says, unless another is called so."""
    if problem.id is not None and index.find(problem.id)[0] in {0, problem.number}:
        return problem.id
    return f"(line {problem.number})"


def repeated(line: Line, first: int) -> Problem:
    """A line that is called as an earlier one is. It has no id of its own, then."""
    return Problem(line.number, f"its id is that of line {first} already")


def _checked(
    line: Line | Problem, check: Check, shared: Mapping[str, Any], index: Index
) -> tuple[Problem | None, ChatRequest | None]:
    if isinstance(line, Problem):
        return line, None
    first = index.enter(line.id, line.number)
    if first is not None:
        return repeated(line, first), None
    try:
        return None, check(line.prompt, **{**shared, **line.options})
    except RequestRejectedError as error:
        return Problem(line.number, str(error).rstrip("."), line.id), None
    except TypeError:  # a field of the line that cannot be a keyword
        return Problem(line.number, "it has a field that is no option of chat", line.id), None


def _add(tally: Tally, request: ChatRequest) -> int:
    """Add a request; returns the tokens its prompt is estimated at."""
    prompt, bound = prompt_tokens(request), answer_tokens(request)
    tally.requests += 1
    tally.prompt_tokens += prompt
    tally.answer_tokens += USUAL_ANSWER if bound is None else bound
    tally.unbounded += bound is None
    return prompt
