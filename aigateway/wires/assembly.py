"""The pieces of a streamed answer, put together again."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from aigateway.messages import Audio, Choice, Chunk, Completion, ToolCall, ToolCallDelta, Usage
from aigateway.wires.content import ThinkTags, joined_sources

__all__ = ["Assembly"]


class _Answer:
    """One of the `n` answers, as far as it has come."""

    __slots__ = (
        "audio",
        "calls",
        "finish_reason",
        "images",
        "logprobs_json",
        "reasoning",
        "refusal",
        "sources_json",
        "tags",
        "text",
    )

    def __init__(self, tags: ThinkTags | None) -> None:
        self.tags = tags
        """None once nothing but text can come."""
        self.images: list[str] = []
        self.audio: list[Audio] = []
        self.sources_json: str | None = None
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[int, list[ToolCallDelta]] = {}
        self.finish_reason: str | None = None
        self.logprobs_json: str | None = None

    def choice(self) -> Choice:
        reason = self.finish_reason
        return Choice(
            text=_joined(self.text),
            # Some vendors say that a tool call is an ordinary end.
            finish_reason="tool_calls" if self.calls and reason == "stop" else reason,
            tool_calls=tuple(_tool_call(self.calls[index]) for index in sorted(self.calls)),
            reasoning="".join(self.reasoning) or None,
            refusal="".join(self.refusal) or None,
            logprobs_json=self.logprobs_json,
            images=tuple(self.images),
            audio=_audio(self.audio) if self.audio else None,
            sources_json=self.sources_json,
        )

    def parted(self, chunk: Chunk, tags: ThinkTags) -> Chunk | None:
        """The chunk with its reasoning apart from its text; None if nothing of it is left."""
        if chunk.reasoning:  # the server parts them itself
            self.tags = None
            text, reasoning = tags.end()
            return replace(chunk, text=text + chunk.text) if text else chunk
        if not chunk.text:
            return chunk
        text, reasoning = tags.feed(chunk.text)
        if tags.done:
            self.tags = None
        left = replace(chunk, text=text, reasoning=reasoning or None)
        return None if left == Chunk(index=chunk.index) else left


class Assembly:
    """Collects what a stream brings.

    Args:
        model: Named where the vendor names none.
        expected: How many answers were asked for. They may come one after the other, so that all
            that have begun have ended, and there is more to come.
        think_tags: Whether texts may begin with reasoning: see `ThinkTags`.

    Attributes:
        id: As the vendor names the answer.
        model: As the vendor names the model.
        created: Unix time in seconds; 0 where the vendor says none.
        usage: None until the vendor has counted.
        cost_usd: What the vendor itself says that the answer cost; None where it says nothing.
    """

    __slots__ = (
        "_answers",
        "_beside",
        "_expected",
        "_think_tags",
        "cost_usd",
        "created",
        "id",
        "model",
        "usage",
    )

    def __init__(self, model: str, expected: int = 1, *, think_tags: bool = False) -> None:
        self._beside: dict[str, Any] = {}
        self._think_tags = think_tags
        self.id = ""
        self.model = model
        self.created = 0
        self.usage: Usage | None = None
        self.cost_usd: float | None = None
        self._answers: dict[int, _Answer] = {}
        self._expected = expected

    @property
    def finished(self) -> bool:
        """Whether every answer that was asked for has ended."""
        return len(self._answers) >= self._expected and self.ended

    @property
    def ended(self) -> bool:
        """Whether every answer that was begun has ended, and there is one.

        Of a stream that has come to its end in good order that is enough: some vendors give fewer
        answers than they were asked for.
        """
        return bool(self._answers) and all(
            answer.finish_reason is not None for answer in self._answers.values()
        )

    def add(self, chunk: Chunk) -> Chunk | None:
        """Take in a piece of content.

        Returns:
            What to hand on of it; None if nothing yet.
        """
        answer = self._answers.get(chunk.index) or self._answer(chunk.index)
        if answer.tags is not None:
            parted = answer.parted(chunk, answer.tags)
            if parted is None:
                return None
            chunk = parted
        if chunk.text:
            answer.text.append(chunk.text)
        if chunk.reasoning:
            answer.reasoning.append(chunk.reasoning)
        if chunk.refusal:
            answer.refusal.append(chunk.refusal)
        for delta in chunk.tool_calls:
            answer.calls.setdefault(delta.index, []).append(delta)
        if chunk.images:
            answer.images += chunk.images
        if chunk.audio is not None:
            answer.audio.append(chunk.audio)
        if chunk.sources_json:
            answer.sources_json = joined_sources(answer.sources_json, chunk.sources_json)
        return chunk

    def finish(self, index: int, reason: str) -> Chunk | None:
        """Note why one of the answers ended.

        Returns:
            What was held back of it and is to be handed on.
        """
        answer = self._answer(index)
        answer.finish_reason = reason
        if answer.tags is None:
            return None
        text, reasoning = answer.tags.end()
        answer.tags = None
        if not (text or reasoning):
            return None
        return self.add(Chunk(text, reasoning=reasoning or None, index=index))

    def note(self, said: dict[str, Any]) -> None:
        """Take in what stands beside the choices: some fields of `Completion`, by name."""
        sources = joined_sources(self._beside.get("sources_json"), said.get("sources_json"))
        self._beside |= said
        if sources:
            self._beside["sources_json"] = sources

    def add_logprobs(self, index: int, logprobs_json: str) -> None:
        """Note the OpenAI `logprobs` object of one of the answers, as JSON text."""
        self._answer(index).logprobs_json = logprobs_json

    def completion(self) -> Completion:
        """What has come so far. It has no price but the vendor's own."""
        return Completion(
            id=self.id,
            model=self.model,
            choices=tuple(self._choices()),
            usage=self.usage or Usage(),
            cost_usd=self.cost_usd,
            created=self.created,
            **self._beside,
        )

    def _choices(self) -> Iterator[Choice]:
        for index in range(max(self._answers, default=0) + 1):
            answer = self._answers.get(index)
            yield Choice() if answer is None else answer.choice()

    def _answer(self, index: int) -> _Answer:
        answer = self._answers.get(index)
        if answer is None:
            answer = self._answers[index] = _Answer(ThinkTags() if self._think_tags else None)
        return answer


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
        arguments="".join(delta.arguments for delta in deltas),
    )


def _base64(pieces: list[str]) -> str:
    """The data. Where each piece was encoded by itself, it is padded in the middle."""
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
        _joined([piece.transcript for piece in pieces]),
        max(piece.expires_at for piece in pieces),
    )
