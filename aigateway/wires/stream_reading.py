"""Streams of every wire: bytes to server-sent events, events to chunks, chunks to an answer.

Each wire's own `StreamReading` reads ordinary events: a piece of text, an end, a count of tokens
(on the OpenAI wire also reasoning and tool calls). All others go through litellm's reader for the
vendor, which costs ten times as much and knows many servers' habits. Each stream has one of its
own, because it remembers the open block, the number of tool calls, and whether one of them stands
for the text.

`EventParser` is the WHATWG's algorithm for event streams, as far as vendors use it: lines end in
LF, CR or CRLF, comments and unknown fields are left out, lines of data are joined. The fields `id`
and `retry` concern reconnecting, which the gateway never does.
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aigateway.messages import Chunk, NativeAnswer, ToolCallDelta, Usage
from aigateway.wires.answers import piece_from, read_calls, stated_cost, usage_from
from aigateway.wires.assembly import Assembly
from aigateway.wires.json_bodies import mend_usage, parsed
from aigateway.wires.loading import silent
from aigateway.wires.tool_calls import CallPiece
from aigateway.wires.wire import AnswerEnd, BrokenOffError

__all__ = ["LONGEST_EVENT", "CorruptEventError", "Event", "EventParser", "StreamReading", "counted"]

_MOST_ANSWERS = 256
"""OpenAI gives 128 to one request."""


class CorruptEventError(Exception):
    """What came cannot be read."""


class StreamReading(ABC):
    """One stream, as far as it has come.

    Attributes:
        assembly: The answer.
        over: The vendor has said that nothing more comes.
        problem: Why the rest cannot be read: a `BrokenOffError` or a `CorruptEventError`.
        has_more: The answer has content that no chat has.
    """

    has_more = False
    _mends_late = False
    """Whether `_read` gets counts as the vendor wrote them, and mends those that are needed."""

    def __init__(self, assembly: Assembly, make_parser: Callable[[], Any]) -> None:
        self.assembly = assembly
        self.over = False
        self.problem: Exception | None = None
        self._make_parser = make_parser
        self._parser: Any = None
        self._chunks: list[Chunk] = []
        self._counted: dict[str, Any] = {}  # the vendor's own count, in its own words
        self._logprobs: dict[int, dict[str, list[Any]]] = {}

    @property
    def native(self) -> NativeAnswer | None:
        """The events that have not been handed on in a chunk, in the native lane."""
        return None

    def take(self, events: Iterable[Event]) -> list[Chunk]:
        """Read what came, up to the end or to what cannot be read, and return its content."""
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
        """Note usage in the assembly; return litellm's `Usage` if only litellm can price it."""
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
        """Take one event in. Raises `BrokenOffError` for an error of the vendor's."""

    @abstractmethod
    def _usage(self, counted: Any) -> tuple[Usage, Any]:
        """Return the vendor's count as a `Usage`, and as litellm's where that is needed."""

    def _take(self, name: bytes, data: bytes) -> None:
        if not data or data == b"[DONE]":
            self.over = self.over or bool(data)
            return
        try:
            event = parsed(data)
            if type(event) is not dict:
                raise CorruptEventError  # noqa: TRY301 - as whatever else cannot be read
            # Few events have counts, but OpenAI's all say `"usage":null`.
            if (
                b'"usage' in data
                and not self._mends_late
                and (event.get("usage") is not None or _may_count(event))
            ):
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

    def _emit(self, chunk: Chunk) -> None:
        index = chunk.index
        if type(chunk.text) is not str or type(index) is not int or not 0 <= index < _MOST_ANSWERS:
            raise CorruptEventError
        said = self.assembly.add(chunk)
        if said is not None:
            self._chunks.append(said)

    def _read_calls(self, index: int, pieces: list[CallPiece]) -> tuple[ToolCallDelta, ...]:
        if pieces and not _is_valid_index(index):
            raise CorruptEventError
        return self.assembly.read_calls(index, pieces) if pieces else ()

    def _finish(self, index: int, ending: AnswerEnd | None, *, sure: bool) -> None:
        if ending is None:
            return
        if not _is_valid_index(index):
            raise CorruptEventError
        rest = self.assembly.finish(index, ending, sure=sure)
        if rest is not None:
            self._chunks.append(rest)

    def _add_logprobs(self, index: int, logprobs: Mapping[str, Any]) -> None:
        if not _is_valid_index(index):
            raise CorruptEventError
        collected = self._logprobs.setdefault(index, {})
        for name, tokens in logprobs.items():
            if isinstance(tokens, list):
                collected.setdefault(name, []).extend(tokens)

    def _parse(self, event: Mapping[str, Any]) -> Any:
        """Let litellm read one event: a `ModelResponseStream`."""
        with silent():
            if self._parser is None:
                self._parser = self._make_parser()
            return self._parser.chunk_parser(event)

    def _take_choice(self, choice: Any, ending: AnswerEnd | None, *, beside: Any = None) -> None:
        """Take in one of the choices that litellm read, with the end that the vendor gave.

        `beside` is the chunk, if this choice is to have what stands beside the choices.
        """
        index = choice.index or 0
        deltas = self._read_calls(index, read_calls(choice.delta))
        chunk = piece_from(choice, index, deltas, beside)
        if chunk is not None:
            self._emit(chunk)
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


def _may_count(event: Mapping[str, Any]) -> bool:
    """Return whether `mend_usage` may find something in an event whose own usage is null."""
    return "choices" not in event or "message" in event or "usageMetadata" in event


def _is_valid_index(index: Any) -> bool:
    """Return whether this can be the index of an answer. It bounds how many are kept."""
    return type(index) is int and 0 <= index < _MOST_ANSWERS


def counted(usage: Mapping[str, Any], prompt: str, completion: str) -> Usage:
    """Make a usage of a vendor's count, by its names for both figures."""
    return usage_from(
        {"prompt_tokens": usage.get(prompt), "completion_tokens": usage.get(completion)}
    )


Event = tuple[bytes, bytes]
"""Name (empty where the vendor gave none) and data, as UTF-8."""

LONGEST_EVENT = 16 * 1024 * 1024
"""Bytes. A picture in an event takes a few million; without a limit a broken server fills the
memory."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventParser:
    """Cuts one stream into its events."""

    __slots__ = ("_after_cr", "_at_start", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of an event that has not come to its end
        self._size = 0
        self._after_cr = False  # so that a line feed that comes next ends no second line
        self._at_start = True

    @property
    def is_too_long(self) -> bool:
        """Whether the event that is under way is longer than `LONGEST_EVENT`: stop feeding."""
        return self._size > LONGEST_EVENT

    def feed(self, received: bytes) -> list[Event]:
        """Take in what came, and return the events that are whole now."""
        if self._after_cr or b"\r" in received:
            received = self._with_line_feeds(received)
        if b"\n\n" not in received and not self._ends_with(received):
            self._keep(received)
            return []
        if self._parts:
            received = b"".join((*self._parts, received))
        *blocks, rest = received.split(b"\n\n")
        self._parts, self._size = [rest] if rest else [], len(rest)
        if self._at_start:
            self._at_start = False
            blocks[0] = blocks[0].removeprefix(_BYTE_ORDER_MARK)
        events: list[Event] = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append((b"", block[6:]))  # the ordinary case
            else:
                events.extend(_events_in(block))
        return events

    def end(self) -> list[Event]:
        """Return what is left when nothing more comes.

        The standard drops an event without an empty line after it. Some servers forget the line
        after their last event, and one that was cut off is no JSON anyway.
        """
        return self.feed(b"\n\n")

    def _with_line_feeds(self, received: bytes) -> bytes:
        if self._after_cr and received.startswith(b"\n"):
            received = received[1:]
        self._after_cr = received.endswith(b"\r")
        return received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _ends_with(self, received: bytes) -> bool:
        """Return whether the empty line that ends an event came in two pieces."""
        return received.startswith(b"\n") and bool(self._parts) and self._parts[-1].endswith(b"\n")

    def _keep(self, part: bytes) -> None:
        # Joined only at the end: a long event comes in many pieces.
        if part:
            self._parts.append(part)
            self._size += len(part)


def _events_in(block: bytes) -> list[Event]:
    name, data = b"", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return [(name, b"\n".join(data))] if data else []
