"""Read the chunks that litellm makes of a vendor's events into our records.

Nothing here waits, sends or closes. litellm invents what a vendor has not said, so a chunk comes
with the ends from the vendor's event, or with how far to believe its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum, auto
from typing import Any

from aigateway.messages import Chunk, Completion
from aigateway.wires.answers import piece_from, read_calls, stated_cost, usage_from
from aigateway.wires.assembly import Assembly
from aigateway.wires.content import fields_beside_choices, text_of
from aigateway.wires.openai import OPENAI_ENDS
from aigateway.wires.wire import AnswerEnd, end_of

__all__ = ["ChunkReader", "End"]


class End(Enum):
    """How far to believe a chunk that says that the answer ends."""

    TRUE = auto()
    DOUBTFUL = auto()
    """Only once the stream has come to its end in good order."""
    INVENTED = auto()


class ChunkReader:
    """Reads one stream's chunks into an assembly."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.usage: dict[str, Any] = {}
        self._logprobs: dict[int, dict[str, list[Any]]] = {}
        self._doubtful: dict[int, AnswerEnd] = {}

    def read(
        self, chunk: Any, end: End, endings: Mapping[int, AnswerEnd] | None = None
    ) -> list[Chunk]:
        """Take in a chunk, and return its content.

        `end` says how far to believe the chunk's own end; `endings` are from the vendor's event.

        Raises:
            BrokenOffError: It says that the vendor failed.
        """
        assembly = self.assembly
        assembly.id = assembly.id or text_of(getattr(chunk, "id", None)) or ""
        assembly.model = text_of(getattr(chunk, "model", None)) or assembly.model
        assembly.created = assembly.created or int(getattr(chunk, "created", None) or 0)
        if end is not End.INVENTED:
            self.count(getattr(chunk, "usage", None) or _usage_elsewhere(chunk))
        assembly.note(fields_beside_choices(chunk))
        pieces: list[Chunk | None] = []
        choices = getattr(chunk, "choices", None) or ()
        for position, choice in enumerate(choices):
            index = int(getattr(choice, "index", None) or 0)
            calls = assembly.read_calls(index, read_calls(getattr(choice, "delta", None)))
            piece = piece_from(choice, index, calls, None if position else chunk)
            pieces.append(piece and assembly.add(piece))
            self._add_logprobs(index, getattr(choice, "logprobs", None))
            said = getattr(choice, "finish_reason", None)
            if endings is None:
                ending = end_of(OPENAI_ENDS, said)
                pieces.append(self._note_end(index, ending, end, sure=piece is None))
            elif index in endings:
                ending = _agreed(endings[index], said)
                pieces.append(self._note_end(index, ending, End.TRUE, sure=piece is None))
        if endings is not None and not choices and self.usage:
            assembly.close()  # the count that was asked for comes behind everything else
        return [piece for piece in pieces if piece is not None]

    def count(self, usage: Any) -> None:
        """Take in what the vendor has counted so far."""
        dump = getattr(usage, "model_dump", None)
        counted = dump() if callable(dump) else usage
        if isinstance(counted, Mapping):
            _take_larger(self.usage, counted)

    def finish_all(self, reason: str) -> None:
        """Believe that every answer ended for this reason."""
        ending = end_of(OPENAI_ENDS, reason)
        for index, _ in enumerate(self.assembly.completion().choices):
            if ending is not None:
                self.assembly.finish(index, ending)

    def accept_doubtful_ends(self) -> list[Chunk]:
        """Accept the doubtful ends after an orderly end; return what was held back."""
        doubtful, self._doubtful = self._doubtful, {}
        rests = [self.assembly.finish(index, ending) for index, ending in doubtful.items()]
        return [rest for rest in rests if rest is not None]

    def completion(self) -> Completion:
        """Return what has come so far, without a price but the vendor's own."""
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

    def _note_end(
        self, index: int, ending: AnswerEnd | None, end: End, *, sure: bool
    ) -> Chunk | None:
        if ending is not None and end is End.TRUE:
            return self.assembly.finish(index, ending, sure=sure)
        if ending is not None and end is End.DOUBTFUL:
            self._doubtful[index] = ending
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


def _agreed(ending: AnswerEnd, said: Any) -> AnswerEnd:
    """Return the vendor's end, except for a tool call that litellm turned into text."""
    turned = ending.end == "tool_calls" and said == "stop"
    return AnswerEnd(ending.reason, "stop") if turned else ending


def _usage_elsewhere(chunk: Any) -> Any:
    """Return the count of Groq (a field of its own) or Moonshot (in the choice)."""
    beside = getattr(chunk, "x_groq", None)
    if beside is None:
        choices = getattr(chunk, "choices", None) or (None,)
        return getattr(choices[0], "usage", None)
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
