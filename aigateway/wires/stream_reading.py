"""What every wire's stream has in common: events in, chunks out, and an answer put together.

Ordinary events are read as they are, in the `stream.py` of each wire's folder: a piece of text, an
end, a count of tokens (on the OpenAI wire also reasoning and tool calls). The others go through
litellm's own reader for the vendor, which costs ten times as much and knows many servers' habits;
one for each stream because it remembers: which block is being sent, how many tool
calls have come, whether one of them stands for the text. What it gives is turned into the house's
records here.
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aigateway.messages import Chunk, ToolCallDelta, Usage
from aigateway.wires.answers import piece_from, read_calls, stated_cost, usage_from
from aigateway.wires.assembly import Assembly
from aigateway.wires.ends import BrokenOffError, Ending
from aigateway.wires.json_bodies import mend_usage, parsed
from aigateway.wires.loading import SILENT
from aigateway.wires.sse import Event
from aigateway.wires.tool_calls import CallPiece

__all__ = ["CorruptEventError", "StreamReading", "counted"]


_MOST_ANSWERS = 256
"""OpenAI gives 128 to one request."""


class CorruptEventError(Exception):
    """What came is nothing that anybody can read."""


class StreamReading(ABC):
    """One stream, as far as it has come.

    Args:
        assembly: Takes the answer in.
        make_parser: Makes litellm's reader, which only some streams need.

    Attributes:
        assembly: The answer.
        over: The vendor has said that nothing more comes.
        problem: Why the rest cannot be read: a `BrokenOffError` or a `CorruptEventError`.
    """

    __slots__ = (
        "_chunks",
        "_counted",
        "_logprobs",
        "_make_parser",
        "_parser",
        "assembly",
        "over",
        "problem",
    )

    def __init__(self, assembly: Assembly, make_parser: Callable[[], Any]) -> None:
        self.assembly = assembly
        self.over = False
        self.problem: Exception | None = None
        self._make_parser = make_parser
        self._parser: Any = None
        self._chunks: list[Chunk] = []
        self._counted: dict[str, Any] = {}  # the vendor's own count, in its own words
        self._logprobs: dict[int, dict[str, list[Any]]] = {}

    def take(self, events: Iterable[Event]) -> list[Chunk]:
        """Read what came, up to the end or to what cannot be read, and give its content."""
        chunks: list[Chunk] = []
        self._chunks = chunks
        try:
            for name, data in events:
                self._take(name, data)
                if self.over:
                    break
        except (BrokenOffError, CorruptEventError) as problem:
            self.problem = problem.with_traceback(None)
        if self.assembly.finished:
            chunks += self.assembly.last_pieces()
        return chunks

    def count(self) -> Any:
        """Work out usage, and note it in the assembly.

        Returns:
            litellm's `Usage`, where the vendor counted what only litellm can price; else None.
        """
        counted = None
        if self._counted:
            try:
                self.assembly.usage, counted = self._usage(self._counted)
                self.assembly.cost_usd = stated_cost(self._counted)
            except Exception:  # noqa: BLE001 - an answer without a count is still an answer
                self.assembly.usage = None
        for index, logprobs in self._logprobs.items():
            with contextlib.suppress(RecursionError):  # nested too deeply to be any
                self.assembly.add_logprobs(index, json.dumps(logprobs))
        return counted

    @abstractmethod
    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        """Take one event in.

        Raises:
            BrokenOffError: It is the vendor's error.
            Exception: It is nothing that can be read.
        """

    @abstractmethod
    def _usage(self, counted: Any) -> tuple[Usage, Any]:
        """The vendor's count in the house's form, and in litellm's where that is needed."""

    def _take(self, name: bytes, data: bytes) -> None:
        if not data or data == b"[DONE]":
            self.over = self.over or bool(data)
            return
        try:
            event = parsed(data)
            if not isinstance(event, Mapping):
                raise CorruptEventError  # noqa: TRY301 - as whatever else cannot be read
            if b'"usage' in data:  # few events have counts
                mend_usage(event)
            self._read(name, event)
        except Exception as problem:
            if self.assembly.finished:
                return  # it is none of the answer
            if isinstance(problem, BrokenOffError):
                raise
            raise CorruptEventError from None

    def _add_count(self, usage: Any) -> None:
        """Take in the vendor's count so far. Counts only grow, so a later null or zero is none."""
        if isinstance(usage, Mapping):
            _add_counts(self._counted, usage)

    def _say(self, chunk: Chunk) -> None:
        if type(chunk.text) is not str or not _is_place(chunk.index):
            raise CorruptEventError
        said = self.assembly.add(chunk)
        if said is not None:
            self._chunks.append(said)

    def _read_calls(self, index: int, pieces: list[CallPiece]) -> tuple[ToolCallDelta, ...]:
        if pieces and not _is_place(index):
            raise CorruptEventError
        return self.assembly.read_calls(index, pieces) if pieces else ()

    def _finish(self, index: int, ending: Ending | None, *, sure: bool) -> None:
        if ending is None:
            return
        if not _is_place(index):
            raise CorruptEventError
        rest = self.assembly.finish(index, ending, sure=sure)
        if rest is not None:
            self._chunks.append(rest)

    def _add_logprobs(self, index: int, logprobs: Mapping[str, Any]) -> None:
        if not _is_place(index):
            raise CorruptEventError
        collected = self._logprobs.setdefault(index, {})
        for name, tokens in logprobs.items():
            if isinstance(tokens, list):
                collected.setdefault(name, []).extend(tokens)

    def _parse(self, event: Mapping[str, Any]) -> Any:
        """Let litellm read one event: a `ModelResponseStream`."""
        token = SILENT.set(True)
        try:
            if self._parser is None:
                self._parser = self._make_parser()
            return self._parser.chunk_parser(event)
        finally:
            SILENT.reset(token)

    def _take_choice(self, choice: Any, ending: Ending | None, *, beside: Any = None) -> None:
        """Take in one of the choices that litellm read.

        Args:
            choice: A `StreamingChoices`.
            beside: The chunk, if this choice is to have what stands beside the choices.
            ending: As the vendor gave it; litellm makes one up.
        """
        index = choice.index or 0
        deltas = self._read_calls(index, read_calls(choice.delta))
        chunk = piece_from(choice, index, deltas, beside)
        if chunk is not None:
            self._say(chunk)
        logprobs = getattr(choice, "logprobs", None)
        if logprobs:
            dump = getattr(logprobs, "model_dump", None)
            self._add_logprobs(index, dump() if dump else logprobs)
        self._finish(index, ending, sure=chunk is None)


def _add_counts(so_far: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, count in more.items():
        known = so_far.get(name)
        if isinstance(count, Mapping) and isinstance(known, Mapping):
            so_far[name] = joined = dict(known)
            _add_counts(joined, count)
        elif count or name not in so_far:
            so_far[name] = count


def _is_place(index: Any) -> bool:
    """Whether this can be the place of one of the answers: as many are kept as it says."""
    return type(index) is int and 0 <= index < _MOST_ANSWERS


def counted(usage: Mapping[str, Any], prompt: str, completion: str) -> Usage:
    """Make a usage of a vendor's count, by its names for both figures."""
    return usage_from(
        {"prompt_tokens": usage.get(prompt), "completion_tokens": usage.get(completion)}
    )
