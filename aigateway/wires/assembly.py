"""Join the pieces of a streamed answer."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from aigateway.messages import Audio, Choice, Chunk, Completion, ToolCall, ToolCallDelta, Usage
from aigateway.wires.content import ThinkTags, joined_sources
from aigateway.wires.json_bodies import whole_characters
from aigateway.wires.tool_calls import CallPiece, ToolCallReader
from aigateway.wires.wire import AnswerEnd

__all__ = ["Assembly"]

_LOST = "\ufffd"
"""Stands for a character of which only half came."""


@dataclass(slots=True)
class _Answer:
    """One of the `n` answers, as far as it has come."""

    tags: ThinkTags | None
    """None once nothing but text can come."""
    images: list[str] = field(default_factory=list)
    audio: list[Audio] = field(default_factory=list)
    sources_json: str | None = None
    thinking: list[dict[str, Any]] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    reader: ToolCallReader | None = None
    halves: dict[Any, str] = field(default_factory=dict)  # of characters whose rest has not come
    ending: AnswerEnd | None = None
    is_sure: bool = False  # it came alone, so that nothing may follow
    is_last: bool = False  # no content has come behind it
    goes_on: bool = False  # content came behind an end: this server sends one with each piece
    logprobs_json: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.ending is not None and self.ending.end is not None

    @property
    def has_surely_ended(self) -> bool:
        return self.has_ended and self.is_sure and not self.goes_on

    def joined(self, place: Any, piece: str) -> str:
        """Join a piece to the half character before it, and hold back the half at its end."""
        if not piece:
            return piece
        text = self.halves.pop(place, "") + piece
        if "\ud800" <= text[-1] <= "\udbff":
            self.halves[place] = text[-1]
            text = text[:-1]
        return whole_characters(text)

    def choice(self) -> Choice:
        reason = None if self.ending is None else self.ending.end
        return Choice(
            text=whole_characters("".join(self.text)),
            # Some vendors say that a tool call is an ordinary end.
            finish_reason="tool_calls"
            if self.calls and reason in {"stop", "function_call"}
            else reason,
            tool_calls=tuple(_tool_call(self.calls[index]) for index in sorted(self.calls)),
            reasoning="".join(self.reasoning) or None,
            refusal="".join(self.refusal) or None,
            logprobs_json=self.logprobs_json,
            images=tuple(self.images),
            audio=_audio(self.audio) if self.audio else None,
            sources_json=self.sources_json,
            thinking_json=json.dumps(self.thinking) if self.thinking else None,
            thought_signatures=tuple(self.signatures),
        )

    def add(self, chunk: Chunk) -> None:
        if chunk.text:
            self.text.append(chunk.text)
        if chunk.reasoning:
            self.reasoning.append(chunk.reasoning)
        if chunk.refusal:
            self.refusal.append(chunk.refusal)
        for delta in chunk.tool_calls:
            self.calls.setdefault(delta.index, []).append(delta)
        if chunk.images:
            self.images += chunk.images
        if chunk.audio is not None:
            self.audio.append(chunk.audio)
        if chunk.sources_json:
            self.sources_json = joined_sources(self.sources_json, chunk.sources_json)
        if chunk.thinking_json:
            self.thinking += chunk.thinking_blocks
        if chunk.thought_signatures:
            self.signatures += chunk.thought_signatures

    def separated(self, chunk: Chunk, tags: ThinkTags) -> Chunk | None:
        """Separate the chunk's reasoning from its text; None if nothing is left."""
        if chunk.reasoning:  # the server parts them itself
            self.tags = None
            text, reasoning = tags.end()
            return replace(chunk, text=text + chunk.text) if text else chunk
        if not chunk.text:
            return chunk
        text, reasoning = tags.feed(chunk.text)
        if tags.done:
            self.tags = None
        if text == chunk.text and not reasoning:
            return chunk
        left = replace(chunk, text=text, reasoning=reasoning or None)
        return None if left == Chunk(index=chunk.index) else left


class Assembly:
    """Collects what a stream brings.

    The `expected` answers may come one after the other: all that have begun may have ended, with
    more to come. `usage` is None until the vendor has counted. `not_for_the_caller` holds the ids
    of tool calls that the vendor makes itself.
    """

    def __init__(self, model: str, expected: int = 1, *, think_tags: bool = False) -> None:
        self._beside: dict[str, Any] = {}
        self._think_tags = think_tags
        self.id = ""
        self.model = model
        self.created = 0
        self.usage: Usage | None = None
        self.cost_usd: float | None = None
        self.not_for_the_caller: set[str] = set()
        self._answers: dict[int, _Answer] = {}
        self._expected = expected

    @property
    def finished(self) -> bool:
        """Whether every answer that was asked for has ended, and no more content can come."""
        if len(self._answers) < self._expected:
            return False
        for answer in self._answers.values():
            if answer.ending is None or not answer.has_surely_ended:
                return False
        return True

    def is_whole(self, *, closed: bool, broken: bool = False) -> bool:
        """Return whether there is an answer, and each that was begun has ended.

        Some vendors give fewer answers than they were asked for. Unless the vendor has said that
        nothing more comes (`closed`), the end of each answer must be the last that came of it. If
        the stream is `broken`, the ends of a server that says "stop" with each piece count for
        nothing, and all answers must have begun.
        """
        answers = self._answers.values()
        return (
            bool(answers)
            and all(answer.has_ended for answer in answers)
            and (closed or all(answer.is_last for answer in answers))
            and not (broken and any(answer.goes_on for answer in answers))
            and not (broken and len(answers) < self._expected)
        )

    @property
    def broken_off(self) -> AnswerEnd | None:
        """How an answer broke off, if the vendor gave a reason for that."""
        endings = (answer.ending for answer in self._answers.values())
        return next((e for e in endings if e is not None and e.end is None), None)

    def _in_whole_characters(self, chunk: Chunk) -> Chunk | None:
        """Hold back the half of a character at the end of a chunk for the next one."""
        answer = self._answers.get(chunk.index)
        if (answer is None or not answer.halves) and not any(map(_has_half, _texts(chunk))):
            return chunk
        joined = (answer or self._answer(chunk.index)).joined
        calls = tuple(
            replace(delta, arguments=joined(delta.index, delta.arguments))
            for delta in chunk.tool_calls
        )
        chunk = replace(
            chunk,
            text=joined("text", chunk.text),
            reasoning=joined("reasoning", chunk.reasoning or "") or None,
            refusal=joined("refusal", chunk.refusal or "") or None,
            tool_calls=tuple(d for d in calls if d.id or d.name or d.arguments),
        )
        return None if chunk == Chunk(index=chunk.index) else chunk

    def add(self, chunk: Chunk) -> Chunk | None:
        """Take in a piece of content; return what to hand on of it, if anything yet."""
        answer = self._answers.get(chunk.index)
        if (
            answer is None
            or answer.halves
            or not chunk.text.isascii()
            or chunk.tool_calls
            or chunk.reasoning
            or chunk.refusal
        ):
            whole = self._in_whole_characters(chunk)
            if whole is None:
                return None
            chunk, answer = whole, self._answer(chunk.index)
        if answer.tags is not None:
            separated = answer.separated(chunk, answer.tags)
            if separated is None:
                return None
            chunk = separated
        if answer.ending is not None:
            answer.goes_on, answer.is_last = True, False
        answer.add(chunk)
        return chunk

    def read_calls(self, index: int, pieces: Iterable[CallPiece]) -> tuple[ToolCallDelta, ...]:
        """Assign pieces of tool calls to the calls of an answer."""
        deltas = []
        for piece in pieces:
            answer = self._answers.get(index) or self._answer(index)
            if answer.reader is None:
                answer.reader = ToolCallReader(self.not_for_the_caller)
            delta = answer.reader.read(piece)
            if delta is not None:
                deltas.append(delta)
        return tuple(deltas)

    def last_pieces(self) -> list[Chunk]:
        """Return what was held back, and what calls lack, once nothing more comes."""
        chunks = []
        for index, answer in self._answers.items():
            rest = self._held_back(index, answer)
            if rest is not None:
                chunks.append(rest)
            deltas = () if answer.reader is None else answer.reader.close()
            for delta in deltas:
                answer.calls.setdefault(delta.index, []).append(delta)
            if deltas:
                chunks.append(Chunk(tool_calls=deltas, index=index))
        return chunks

    def finish(self, index: int, ending: AnswerEnd, *, sure: bool = True) -> Chunk | None:
        """Note why one of the answers ended; return what was held back of it.

        Another reason may follow, and counts instead. `sure`: it came without content; some servers
        say "stop" with each piece.
        """
        answer = self._answer(index)
        answer.ending, answer.is_sure, answer.is_last = ending, sure, True
        return self._held_back(index, answer) if sure else None

    @staticmethod
    def _held_back(index: int, answer: _Answer) -> Chunk | None:
        halves, answer.halves = answer.halves, {}
        text, reasoning = (_LOST if place in halves else "" for place in ("text", "reasoning"))
        if answer.tags is not None:
            said, thought = answer.tags.feed(text)
            text, more = answer.tags.end()
            answer.tags = None
            text, reasoning = said + text, reasoning + thought + more
        rest = Chunk(
            text,
            tuple(
                ToolCallDelta(place, arguments=_LOST, type=answer.calls[place][0].type)
                for place in halves
                if place in answer.calls
            ),
            reasoning or None,
            _LOST if "refusal" in halves else None,
            index=index,
        )
        if rest == Chunk(index=index):
            return None
        answer.add(rest)
        return rest

    def close(self) -> None:
        """Note that no more content comes."""
        for answer in self._answers.values():
            answer.is_sure = True

    def note(self, said: dict[str, Any]) -> None:
        """Add fields of `Completion` from beside the choices."""
        sources = joined_sources(self._beside.get("sources_json"), said.get("sources_json"))
        self._beside |= said
        if sources:
            self._beside["sources_json"] = sources

    def add_logprobs(self, index: int, logprobs_json: str) -> None:
        """Add the OpenAI `logprobs` object of an answer, as JSON text."""
        self._answer(index).logprobs_json = logprobs_json

    def completion(self) -> Completion:
        """Return what has come so far, without a price but the vendor's own."""
        return Completion(
            id=self.id,
            model=self.model,
            choices=tuple(
                Choice() if answer is None else answer.choice()
                for answer in map(self._answers.get, range(max(self._answers, default=0) + 1))
            ),
            usage=self.usage or Usage(),
            cost_usd=self.cost_usd,
            created=self.created,
            **self._beside,
        )

    def _answer(self, index: int) -> _Answer:
        answer = self._answers.get(index)
        if answer is None:
            answer = self._answers[index] = _Answer(ThinkTags() if self._think_tags else None)
        return answer


def _texts(chunk: Chunk) -> Iterator[str]:
    yield chunk.text
    if chunk.reasoning:
        yield chunk.reasoning
    if chunk.refusal:
        yield chunk.refusal
    for delta in chunk.tool_calls:
        yield delta.arguments


def _has_half(text: str) -> bool:
    return bool(text) and ("\ud800" <= text[-1] <= "\udfff" or "\ud800" <= text[0] <= "\udfff")


def _tool_call(deltas: list[ToolCallDelta]) -> ToolCall:
    return ToolCall(
        id=next((delta.id for delta in deltas if delta.id), ""),
        name=next((delta.name for delta in deltas if delta.name), ""),
        arguments="".join(delta.arguments for delta in deltas)
        or ("{}" if deltas[0].type == "function" else ""),
        type=deltas[0].type,
        thought_signature=next((d.thought_signature for d in deltas if d.thought_signature), None),
    )


def _base64(pieces: list[str]) -> str:
    """Join base64 pieces; where each was encoded by itself, there is padding in the middle."""
    joined = "".join(pieces)
    if "=" not in joined.rstrip("="):
        return joined
    try:
        return b64encode(b"".join(map(b64decode, pieces))).decode()
    except ValueError:
        return joined


def _audio(pieces: list[Audio]) -> Audio:
    return Audio(
        next((piece.id for piece in pieces if piece.id), ""),
        _base64([piece.data for piece in pieces]),
        whole_characters("".join([piece.transcript for piece in pieces])),
        max(piece.expires_at for piece in pieces),
    )
