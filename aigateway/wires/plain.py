"""Plain answers, read as they are: what all wires have in common.

An ordinary answer is a text, an end and a count of tokens (on the OpenAI wire also tool calls), in
a form that needs no translation. Anything out of the ordinary (an unknown field, reasoning, tools,
caches, a broken shape) is left to litellm's translation, which costs ten times as much and knows
many servers' habits. Each wire's own part is in the `answer.py` of its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.messages import Usage

__all__ = ["UnusualError", "counted_usage", "is_name", "is_nothing", "is_said"]


def is_name(name: Any) -> bool:
    """Whether it is a text with something in it."""
    return isinstance(name, str) and bool(name)


def is_said(text: Any) -> bool:
    """Whether it is a text that needs no look for reasoning in it."""
    return isinstance(text, str) and bool(text) and "<think" not in text


def is_nothing(count: Any) -> bool:
    """Whether a count of something special says that there was none."""
    return not any(count.values()) if isinstance(count, Mapping) else not count


def counted_usage(prompt: Any, answer: Any, thought: Any = 0) -> Usage:
    """Make a usage of the vendor's counts. Raises `UnusualError` if one of them is none."""
    for count in (prompt, answer, thought):
        if type(count) is not int or not 0 <= count < 2**53:
            raise UnusualError
    completion = answer + thought
    return Usage(prompt, completion, prompt + completion, reasoning_tokens=thought)


class UnusualError(Exception):
    """An answer is not of the plain kind."""
