"""The pieces of a streamed answer, put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from aigateway.messages import Choice, Chunk, Completion, ToolCall, ToolCallDelta, Usage
from aigateway.wires.ends import Ending
from aigateway.wires.tool_calls import ToolCallReader

__all__ = ["Assembly"]


class _Answer:
    """One of the `n` answers, as far as it has come."""

    __slots__ = (
        "calls",
        "ending",
        "goes_on",
        "halves",
        "is_last",
        "is_sure",
        "logprobs_json",
        "reader",
        "reasoning",
        "refusal",
        "text",
    )

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[int, list[ToolCallDelta]] = {}
        self.reader: ToolCallReader | None = None
        self.halves: dict[Any, str] = {}  # of characters whose rest has not come
        self.ending: Ending | None = None
        self.is_sure = False  # it came alone, so that nothing may follow
        self.is_last = False  # no content has come behind it
        self.goes_on = False  # content has come behind an end: this server says it with each piece
        self.logprobs_json: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.ending is not None and self.ending.end is not None

    @property
    def has_surely_ended(self) -> bool:
        return self.has_ended and self.is_sure and not self.goes_on

    def joined(self, place: Any, piece: str) -> str:
        """A piece that comes at this place of the answer, in whole characters."""
        if not piece:
            return piece
        text = self.halves.pop(place, "") + piece
        if "\ud800" <= text[-1] <= "\udbff":
            self.halves[place] = text[-1]
            text = text[:-1]
        return _joined([text])

    def choice(self) -> Choice:
        reason = None if self.ending is None else self.ending.end
        return Choice(
            text=_joined(self.text),
            # Some vendors say that a tool call is an ordinary end.
            finish_reason="tool_calls"
            if self.calls and reason in {"stop", "function_call"}
            else reason,
            tool_calls=tuple(_tool_call(self.calls[index]) for index in sorted(self.calls)),
            reasoning="".join(self.reasoning) or None,
            refusal="".join(self.refusal) or None,
            logprobs_json=self.logprobs_json,
        )


class Assembly:
    """Collects what a stream brings.

    Args:
        model: Named where the vendor names none.
        expected: How many answers were asked for. They may come one after the other, so that all
            that have begun have ended, and there is more to come.

    Attributes:
        id: As the vendor names the answer.
        model: As the vendor names the model.
        created: Unix time in seconds; 0 where the vendor says none.
        usage: None until the vendor has counted.
        holds_half: Whether half a character has come.
        not_for_the_caller: Ids of tool calls that the vendor makes itself.
    """

    __slots__ = (
        "_answers",
        "_expected",
        "created",
        "holds_half",
        "id",
        "model",
        "not_for_the_caller",
        "usage",
    )

    def __init__(self, model: str, expected: int = 1) -> None:
        self.id = ""
        self.model = model
        self.created = 0
        self.usage: Usage | None = None
        self.not_for_the_caller: set[str] = set()
        self._answers: dict[int, _Answer] = {}
        self._expected = expected
        self.holds_half = False  # or has held one

    @property
    def finished(self) -> bool:
        """Whether every answer that was asked for has ended, and no more content can come."""
        return len(self._answers) >= self._expected and all(
            answer.has_surely_ended for answer in self._answers.values()
        )

    def is_whole(self, *, closed: bool, broken: bool = False) -> bool:
        """Whether every answer that was begun has ended, and there is one.

        Some vendors give fewer answers than they were asked for.

        Args:
            closed: The vendor has said that nothing more comes. Else the end of each answer must
                be the last that came of it.
            broken: The stream did not end in good order. Then the ends of a server that says
                "stop" with each piece count for nothing, and all answers must have begun.
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
    def broken_off(self) -> Ending | None:
        """How an answer broke off, if the vendor gave a reason for that."""
        endings = (answer.ending for answer in self._answers.values())
        return next((e for e in endings if e is not None and e.end is None), None)

    def in_whole_characters(self, chunk: Chunk) -> Chunk | None:
        """Give a piece before it is added, without the half of a character that it may end with.

        The half comes with the next piece. None if nothing else is in it.
        """
        if not self.holds_half:
            if not any(map(_has_half, _texts(chunk))):
                return chunk
            self.holds_half = True
        joined = self._answer(chunk.index).joined
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
        return chunk if any(_texts(chunk)) or chunk.tool_calls else None

    def add(self, chunk: Chunk) -> None:
        """Take in a piece of content."""
        answer = self._answers.get(chunk.index) or self._answer(chunk.index)
        if answer.ending is not None:
            answer.goes_on, answer.is_last = True, False
        if chunk.text:
            answer.text.append(chunk.text)
        if chunk.reasoning:
            answer.reasoning.append(chunk.reasoning)
        if chunk.refusal:
            answer.refusal.append(chunk.refusal)
        for delta in chunk.tool_calls:
            answer.calls.setdefault(delta.index, []).append(delta)

    def read_calls(
        self, index: int, pieces: Iterable[tuple[Any, str, str, str]]
    ) -> tuple[ToolCallDelta, ...]:
        """Tell the calls of an answer apart, before they are added.

        Args:
            index: Of the answer.
            pieces: For each the server's number, the id, the name and arguments.
        """
        deltas = []
        for number, name, function, arguments in pieces:
            answer = self._answers.get(index) or self._answer(index)
            if answer.reader is None:
                answer.reader = ToolCallReader(self.not_for_the_caller)
            delta = answer.reader.read(number, name, function, arguments)
            if delta is not None:
                deltas.append(delta)
        return tuple(deltas)

    def last_pieces(self) -> list[Chunk]:
        """What calls lack that have come without arguments, once nothing more comes of them."""
        chunks = []
        for index, answer in self._answers.items():
            deltas = () if answer.reader is None else answer.reader.close()
            for delta in deltas:
                answer.calls.setdefault(delta.index, []).append(delta)
            if deltas:
                chunks.append(Chunk(tool_calls=deltas, index=index))
        return chunks

    def finish(self, index: int, ending: Ending, *, sure: bool = True) -> None:
        """Note why one of the answers ended.

        Args:
            index: Which.
            ending: The reason; another may follow, and counts instead.
            sure: It came without content. Some servers say "stop" with each piece.
        """
        answer = self._answer(index)
        answer.ending, answer.is_sure, answer.is_last = ending, sure, True

    def close(self) -> None:
        """Note that no more content comes."""
        for answer in self._answers.values():
            answer.is_sure = True

    def add_logprobs(self, index: int, logprobs_json: str) -> None:
        """Note the OpenAI `logprobs` object of one of the answers, as JSON text."""
        self._answer(index).logprobs_json = logprobs_json

    def completion(self) -> Completion:
        """What has come so far. It has no price."""
        return Completion(
            id=self.id,
            model=self.model,
            choices=tuple(self._choices()),
            usage=self.usage or Usage(),
            created=self.created,
        )

    def _choices(self) -> Iterator[Choice]:
        for index in range(max(self._answers, default=0) + 1):
            answer = self._answers.get(index)
            yield Choice() if answer is None else answer.choice()

    def _answer(self, index: int) -> _Answer:
        answer = self._answers.get(index)
        if answer is None:
            answer = self._answers[index] = _Answer()
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
    """Whether a text begins or ends with half a character."""
    return bool(text) and ("\ud800" <= text[-1] <= "\udfff" or "\ud800" <= text[0] <= "\udfff")


def _joined(pieces: list[str]) -> str:
    """The text. Half a character at the end of one piece and half in the next are one again."""
    text = "".join(pieces)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _tool_call(deltas: list[ToolCallDelta]) -> ToolCall:
    return ToolCall(
        id=next((delta.id for delta in deltas if delta.id), ""),
        name=next((delta.name for delta in deltas if delta.name), ""),
        arguments="".join(delta.arguments for delta in deltas) or "{}",
    )
