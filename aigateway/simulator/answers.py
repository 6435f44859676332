"""The answers of a simulated vendor, independent of any wire.

A wire turns an HTTP request into a `ChatCall` (or another call), this module finds the answer, and
the wire writes it in its vendor's form.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aigateway.simulator.schema import minimal_instance

__all__ = [
    "AnswerSource",
    "Call",
    "ChatCall",
    "EmbeddingCall",
    "ModelsCall",
    "Received",
    "Reply",
    "SimulatedAnswer",
    "SimulatedToolCall",
    "TokensCall",
    "count_tokens",
    "default_answer",
    "embed",
    "reply_for",
]

DEFAULT_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived.

    Attributes:
        method: In capitals.
        path: Decoded, without the query.
        query: The query's parameters; the last value of a repeated one.
        headers: A mapping that ignores case.
        body: The parsed JSON, or None if there was none or it was broken.
        at: Seconds on the monotonic clock.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    at: float


@dataclass(frozen=True, slots=True)
class SimulatedToolCall:
    """A call of a tool by the model; `arguments` is a mapping, or JSON text sent unchanged."""

    name: str
    arguments: Mapping[str, Any] | str = ""
    id: str | None = None

    def as_text(self) -> str:
        """Return the arguments as JSON text (OpenAI's form)."""
        if isinstance(self.arguments, str):
            return self.arguments or "{}"
        return json.dumps(self.arguments)

    def as_object(self) -> Any:
        """Return the arguments as an object (Gemini's and Anthropic's form)."""
        if isinstance(self.arguments, str):
            return json.loads(self.arguments or "{}")
        return dict(self.arguments)


@dataclass(frozen=True, slots=True)
class SimulatedAnswer:
    """The answer of the model; each wire writes it in its vendor's form.

    Attributes:
        text: The content.
        tool_calls: Tool calls, mappings with `name`, `arguments` and maybe `id`, or pairs of
            name and arguments.
        finish_reason: In OpenAI's words: "stop", "length", "tool_calls" or "content_filter".
            None gives "tool_calls" if there are any, else "stop".
        usage: `prompt_tokens`, `completion_tokens`, `cached_tokens`, `reasoning_tokens`; missing
            ones are counted in words.
        reasoning: Visible reasoning.
        chunks: How a stream cuts the text; None cuts it into words.
        thinking: How Anthropic shows reasoning: "shown", "redacted" or "omitted".
    """

    text: str = ""
    tool_calls: Sequence[SimulatedToolCall | Mapping[str, Any] | tuple[str, Any]] = ()
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None
    reasoning: str | None = None
    chunks: Sequence[str] | None = None
    thinking: str = "shown"


AnswerSource = SimulatedAnswer | str | Callable[[Received], SimulatedAnswer | str] | None
"""What `SimulatedVendor.answer` takes."""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat request, independent of any wire.

    Attributes:
        prompt: The last user message, as text.
        prompt_tokens: Words in all messages.
        logprobs: How many alternatives to each token are wanted; None if no logprobs are.
        json_array: Stream one JSON array instead of events (Gemini without `alt=sse`).
        schema: The answer has to be JSON of this form.
        json_mode: The answer has to be some JSON object.
        forced_tool: Name and parameter schema of the tool that has to be called.
    """

    model: str
    prompt: str
    prompt_tokens: int
    stream: bool = False
    n: int = 1
    include_usage: bool = False
    logprobs: int | None = None
    json_array: bool = False
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    json_mode: bool = False
    forced_tool: tuple[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """Texts to turn into vectors; `base64` asks for packed little-endian floats."""

    model: str
    inputs: tuple[str, ...]
    dimensions: int | None = None
    base64: bool = False
    batch: bool = True

    stream: bool = False


@dataclass(frozen=True, slots=True)
class ModelsCall:
    """A request for the list of models."""

    model: str = ""
    stream: bool = False


@dataclass(frozen=True, slots=True)
class TokensCall:
    """A request to count the tokens of a prompt."""

    model: str
    tokens: int
    stream: bool = False


Call = ChatCall | EmbeddingCall | ModelsCall | TokensCall


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer, ready to be written.

    Attributes:
        n: How many equal choices are sent.
        show_usage: False leaves the usage out (a fault some vendors have).
        show_choices: False leaves every choice out.
    """

    text: str
    pieces: tuple[str, ...]
    tool_calls: tuple[SimulatedToolCall, ...]
    finish_reason: str
    reasoning: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    n: int = 1
    thinking: str = "shown"
    show_usage: bool = True
    show_choices: bool = True

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


def count_tokens(text: str) -> int:
    """Return a plausible number of tokens: the words."""
    return len(text.split())


def reply_for(answer: SimulatedAnswer, call: ChatCall) -> Reply:
    """Complete an answer with defaults."""
    tool_calls = tuple(_tool_call(index, given) for index, given in enumerate(answer.tool_calls))
    pieces = tuple(answer.chunks) if answer.chunks is not None else _words(answer.text)
    text = answer.text or "".join(pieces)
    usage = answer.usage or {}
    reasoning_tokens = usage.get("reasoning_tokens", count_tokens(answer.reasoning or ""))
    counted = count_tokens(text) + sum(count_tokens(c.as_text()) for c in tool_calls)
    return Reply(
        text=text,
        pieces=pieces,
        tool_calls=tool_calls,
        finish_reason=answer.finish_reason or ("tool_calls" if tool_calls else "stop"),
        reasoning=answer.reasoning,
        prompt_tokens=usage.get("prompt_tokens", call.prompt_tokens),
        completion_tokens=usage.get("completion_tokens", counted * call.n + reasoning_tokens),
        cached_tokens=usage.get("cached_tokens", 0),
        reasoning_tokens=reasoning_tokens,
        n=call.n,
        thinking=answer.thinking,
    )


def default_answer(call: ChatCall) -> SimulatedAnswer:
    """Return the answer of a vendor without a script: an echo, or a minimal valid answer."""
    if call.forced_tool:
        name, parameters = call.forced_tool
        return SimulatedAnswer(
            tool_calls=(SimulatedToolCall(name, minimal_instance(parameters) or {}),)
        )
    if call.schema is not None:
        return SimulatedAnswer(text=json.dumps(minimal_instance(call.schema)))
    if call.json_mode:
        return SimulatedAnswer(text="{}")
    said = "4" if "2+2" in call.prompt.replace(" ", "") else call.prompt
    return _within_limits(said or "ok", call)  # the prompt may be an image alone


def embed(text: str, dimensions: int | None) -> list[float]:
    """Return a unit vector that depends only on the text and the size."""
    size = dimensions or DEFAULT_DIMENSIONS
    numbers: list[float] = []
    block = 0
    while len(numbers) < size:
        digest = hashlib.sha256(f"{block}:{text}".encode()).digest()
        numbers.extend(byte / 127.5 - 1 for byte in digest)
        block += 1
    numbers = numbers[:size]
    length = math.hypot(*numbers) or 1.0
    return [number / length for number in numbers]


def _within_limits(text: str, call: ChatCall) -> SimulatedAnswer:
    for stop in call.stop:
        text = text.split(stop, 1)[0]
    words = _words(text)
    if call.max_tokens is not None and len(words) > call.max_tokens:
        return SimulatedAnswer(text="".join(words[: call.max_tokens]), finish_reason="length")
    return SimulatedAnswer(text=text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\s*\S+\s*?|\s+", text))


def _tool_call(
    index: int, given: SimulatedToolCall | Mapping[str, Any] | tuple[str, Any]
) -> SimulatedToolCall:
    if isinstance(given, Mapping):
        call = SimulatedToolCall(given["name"], given.get("arguments", ""), given.get("id"))
    elif isinstance(given, tuple):
        call = SimulatedToolCall(*given)
    else:
        call = given
    return call if call.id else replace(call, id=f"call_{index}")
