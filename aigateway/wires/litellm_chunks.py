"""The chunks that litellm makes of a vendor's events, read into the house's own records.

Nothing here waits, sends or closes. litellm invents what a vendor has not said, so whoever hands a
chunk over says how far its end can be believed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any

from aigateway.messages import Chunk, Completion, ToolCallDelta
from aigateway.wires.answers import piece_from, stated_cost, usage_from
from aigateway.wires.assembly import Assembly
from aigateway.wires.content import said_beside, text_of

__all__ = ["ChunkReader", "End"]


class End(Enum):
    """How far to believe a chunk that says that the answer ends."""

    TRUE = auto()
    DOUBTFUL = auto()
    """Only once the stream has come to its end in good order."""
    INVENTED = auto()


class ChunkReader:
    """Reads one stream's chunks.

    Args:
        assembly: Empty; it knows the model and how many answers were asked for.
        finish_reason: Any vendor's finish reason in OpenAI's words.
    """

    def __init__(self, assembly: Assembly, finish_reason: Callable[[str], str]) -> None:
        self.assembly = assembly
        self.usage: dict[str, Any] = {}
        self._finish_reason = finish_reason
        self._calls = _ToolCalls()
        self._logprobs: dict[int, dict[str, list[Any]]] = {}
        self._doubtful: dict[int, str] = {}

    def read(self, chunk: Any, end: End) -> list[Chunk]:
        """Take in a chunk, and give the content that is in it.

        Raises:
            ValueError: It says that the vendor failed.
        """
        assembly = self.assembly
        assembly.id = assembly.id or text_of(getattr(chunk, "id", None)) or ""
        assembly.model = text_of(getattr(chunk, "model", None)) or assembly.model
        assembly.created = assembly.created or int(getattr(chunk, "created", None) or 0)
        if end is not End.INVENTED:
            self.count(getattr(chunk, "usage", None) or _groqs_usage(chunk))
        assembly.note(said_beside(chunk))
        pieces: list[Chunk | None] = []
        choices = getattr(chunk, "choices", None) or ()
        for position, choice in enumerate(choices):
            index = int(getattr(choice, "index", None) or 0)
            delta = getattr(choice, "delta", None)
            calls = self._calls.deltas(index, getattr(delta, "tool_calls", None) or ())
            piece = piece_from(choice, index, calls, None if position else chunk)
            pieces.append(piece and assembly.add(piece))
            self._add_logprobs(index, getattr(choice, "logprobs", None))
            reason = text_of(getattr(choice, "finish_reason", None))
            pieces.append(self._note_end(index, reason, end))
        return [piece for piece in pieces if piece is not None]

    def count(self, usage: Any) -> None:
        """Take in what the vendor has counted so far."""
        dump = getattr(usage, "model_dump", None)
        counted = dump() if callable(dump) else usage
        if isinstance(counted, Mapping):
            _take_larger(self.usage, counted)

    def finish_all(self, reason: str) -> None:
        """Believe that every answer ended for this reason."""
        for index, _ in enumerate(self.assembly.completion().choices):
            self.assembly.finish(index, self._finish_reason(reason))

    def believe_doubtful_ends(self) -> list[Chunk]:
        """The stream has come to its end in good order. Gives what was held back till then."""
        doubtful, self._doubtful = self._doubtful, {}
        rests = [
            self.assembly.finish(index, self._finish_reason(reason))
            for index, reason in doubtful.items()
        ]
        return [rest for rest in rests if rest is not None]

    def completion(self) -> Completion:
        """What has come so far, without a price but the vendor's own."""
        for index, logprobs in self._logprobs.items():
            self.assembly.add_logprobs(index, json.dumps(logprobs))
        usage = usage_from(self.usage)
        # The parts may be of different events, and then no event has their sum.
        total = max(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        return replace(
            self.assembly.completion(),
            usage=replace(usage, total_tokens=total),
            cost_usd=stated_cost(self.usage),
        )

    def _note_end(self, index: int, reason: str | None, end: End) -> Chunk | None:
        if reason == "error":  # OpenRouter: the vendor behind it failed
            raise ValueError(reason)
        if reason and end is End.TRUE:
            return self.assembly.finish(index, self._finish_reason(reason))
        if reason and end is End.DOUBTFUL:
            self._doubtful[index] = reason
        return None

    def _add_logprobs(self, index: int, logprobs: Any) -> None:
        dump = getattr(logprobs, "model_dump", None)
        given = dump() if callable(dump) else logprobs
        if not isinstance(given, Mapping):
            return
        so_far = self._logprobs.setdefault(index, {})
        for name, entries in given.items():
            if isinstance(entries, list):
                so_far.setdefault(name, []).extend(entries)


class _ToolCalls:
    """Tells the tool calls of a stream apart, and says each one's id and name once."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], ToolCallDelta] = {}
        self._counts: dict[int, int] = {}

    def deltas(self, choice: int, calls: Sequence[Any]) -> tuple[ToolCallDelta, ...]:
        """Read the pieces in one chunk of one answer."""
        deltas = [self._delta(choice, call) for call in calls]
        return tuple(d for d in deltas if d.id or d.name or d.arguments)

    def _delta(self, choice: int, call: Any) -> ToolCallDelta:
        function = getattr(call, "function", None)
        key = (choice, int(getattr(call, "index", None) or 0))
        given = ToolCallDelta(
            0,
            text_of(getattr(call, "id", None)) or "",
            text_of(getattr(function, "name", None)) or "",
            text_of(getattr(function, "arguments", None)) or "",
        )
        known = self._open.get(key)
        # Some servers give every call the index 0, and tell them apart by their ids alone.
        if known is None or (given.name and given.id and known.id not in {"", given.id}):
            index = self._counts.get(choice, 0)
            self._counts[choice] = index + 1
            self._open[key] = replace(given, index=index)
            return self._open[key]
        self._open[key] = replace(known, id=known.id or given.id, name=known.name or given.name)
        return ToolCallDelta(
            known.index,
            "" if known.id else given.id,
            "" if known.name else given.name,
            given.arguments,
        )


def _groqs_usage(chunk: Any) -> Any:
    """The count of Groq, which sends it in a field of its own."""
    beside = getattr(chunk, "x_groq", None)
    return beside.get("usage") if isinstance(beside, Mapping) else getattr(beside, "usage", None)


def _take_larger(so_far: dict[str, Any], usage: Mapping[str, Any]) -> None:
    """Join what a vendor counts in several events: its counts only grow, each in its own place."""
    for name, count in usage.items():
        known = so_far.get(name)
        if isinstance(count, Mapping):
            inner = so_far[name] = known if isinstance(known, dict) else {}
            _take_larger(inner, count)
        elif known is None:
            so_far[name] = count
        elif isinstance(known, int | float) and isinstance(count, int | float):
            so_far[name] = max(known, count)
