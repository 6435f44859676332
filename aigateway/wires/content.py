"""Read the content of a message, in every shape that vendors give it.

Messages of whole answers and deltas of streams have the same fields, as the vendor sent them or in
litellm's objects. Both lanes read both here, so an answer is the same whichever way it came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from aigateway.messages import Audio

__all__ = [
    "IN_ID",
    "Content",
    "ThinkTags",
    "ThinkingKeeper",
    "content_of",
    "fields_beside_choices",
    "joined_sources",
    "separated",
    "signature_of",
    "signed_blocks",
    "speech_in",
    "text_of",
]


class Content(NamedTuple):
    """The content of a message or a delta. The fields are those of `Choice`."""

    text: str = ""
    reasoning: str | None = None
    refusal: str | None = None
    images: tuple[str, ...] = ()
    audio: Audio | None = None
    sources_json: str | None = None
    thinking_json: str | None = None
    thought_signatures: tuple[str, ...] = ()


_SOURCES = ("annotations", "citations", "context", "references", "search_results")
"""Fields of a message that say where its text comes from. `context` is Azure's."""

_BESIDE = ("citations", "search_results")
"""The same beside the choices: Perplexity's."""

_GOOGLES = ("citation_metadata", "grounding_metadata", "url_context_metadata")
"""Gemini's, as litellm hands them on: lists beside the choices."""

_LITELLMS_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What litellm calls speech to which the vendor gives no id. It makes up a time for it, too."""

IN_ID = "__thought__"
"""Behind it litellm puts Gemini's signature into the id of a tool call."""

_PLAIN = frozenset(
    {"annotations", "content", "reasoning", "reasoning_content", "refusal", "role", "tool_calls"}
)


def content_of(message: Any, beside: Any = None) -> Content:
    """Read a message or a delta; with what stands `beside` it, in litellm's response or chunk."""
    content = _part(message, "content")
    if isinstance(message, Mapping) and message.keys() <= _PLAIN:
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        if (
            isinstance(content, str | None)
            and isinstance(reasoning, str | None)
            and not message.get("annotations")
        ):
            return Content(content or "", text_of(reasoning), text_of(message.get("refusal")))
    more = _part(message, "provider_specific_fields")  # where litellm keeps what it does not know
    more = more if isinstance(more, Mapping) else {}
    parts = _Parts()
    parts.add(content)
    parts.add_reasoning(_part(message, "reasoning_content") or _part(message, "reasoning"))
    parts.refusal.append(text_of(_part(message, "refusal")) or text_of(more.get("refusal")) or "")
    parts.add_images(_part(message, "images"))
    parts.add_audio(_part(message, "audio"))
    for name in _SOURCES:
        parts.cite(name, _part(message, name) or more.get(name))
    parts.cite("citations", more.get("citation"))  # one at a time in Anthropic's streams
    for name in _GOOGLES:
        parts.cite(name, _part(beside, f"vertex_ai_{name}"))
    said = parts.content()
    signed = more.get("thought_signatures")
    if isinstance(signed, list):
        # Gemini's; litellm counts those of tool calls among them.
        calls = {signature_of(call) for call in _part(message, "tool_calls") or ()}
        return said._replace(
            thought_signatures=tuple(s for s in map(text_of, signed) if s and s not in calls)
        )
    blocks = signed_blocks(_part(message, "thinking_blocks"))
    return said._replace(thinking_json=json.dumps(blocks)) if blocks else said


def signature_of(call: Any) -> str | None:
    """Return Gemini's signature of a tool call, wherever litellm and its imitators put it."""
    googles = _part(_part(call, "extra_content"), "google")  # Gemini's on the OpenAI wire
    for beside in (
        _part(call, "provider_specific_fields"),
        _part(_part(call, "function"), "provider_specific_fields"),
        googles,
    ):
        signature = text_of(_part(beside, "thought_signature"))
        if signature:
            return signature
    name = _part(call, "id")
    return (name.partition(IN_ID)[2] or None) if isinstance(name, str) and IN_ID in name else None


class ThinkingKeeper:
    """Joins Anthropic's streamed blocks of thinking."""

    __slots__ = ("_block",)

    def __init__(self) -> None:
        self._block: dict[str, Any] | None = None

    def take(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Read an event, and return the block that it completes, if any."""
        kind = event.get("type")
        if kind == "content_block_delta":
            delta = event.get("delta")
            if self._block is not None and isinstance(delta, Mapping):
                for name in ("thinking", "signature"):
                    self._block[name] = (self._block.get(name) or "") + (delta.get(name) or "")
            return []
        whole, self._block = self._block, None
        if kind == "content_block_start":
            begun = event.get("content_block")
            if isinstance(begun, Mapping) and begun.get("type") in _THINKING:
                self._block = dict(_plain(begun))
                if begun["type"] == "thinking":
                    self._block.setdefault("thinking", "")
        return signed_blocks([whole])


_THINKING = ("redacted_thinking", "thinking")


def signed_blocks(blocks: Any) -> list[dict[str, Any]]:
    """Return those of Anthropic's blocks of thinking that it takes back."""
    return [
        plain
        for plain in map(_plain, blocks if isinstance(blocks, list | tuple) else ())
        if isinstance(plain, dict)
        and text_of(plain.get("data" if plain.get("type") == "redacted_thinking" else "signature"))
    ]


def fields_beside_choices(response: Any) -> dict[str, Any]:
    """Read fields of `Completion` from beside the choices of an answer or a chunk."""
    said: dict[str, Any] = {}
    for name in ("system_fingerprint", "service_tier"):
        value = text_of(_part(response, name))
        if value:
            said[name] = value
    sources = {name: value for name in _BESIDE if (value := _part(response, name))}
    if sources:
        said["sources_json"] = json.dumps(sources)
    return said


def joined_sources(so_far: str | None, more: str | None) -> str | None:
    """Join two `sources_json`, without repeating entries of lists."""
    if not (so_far and more):
        return so_far or more
    joined = json.loads(so_far)
    for name, value in json.loads(more).items():
        known = joined.get(name)
        if isinstance(known, list) and isinstance(value, list):
            known += [entry for entry in value if entry not in known]
        else:
            joined[name] = value
    return json.dumps(joined)


def text_of(value: Any) -> str | None:
    """Return the value if it is a text that is not empty."""
    return value if isinstance(value, str) and value else None


class _Parts:
    """Collects the content of a message's parts."""

    def __init__(self) -> None:
        self.refusal: list[str] = []
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._images: list[str] = []
        self._audio: Audio | None = None
        self._sources: dict[str, Any] = {}

    def content(self) -> Content:
        return Content(
            "".join(self._text),
            "".join(self._reasoning) or None,
            "".join(self.refusal) or None,
            tuple(self._images),
            self._audio,
            json.dumps(self._sources) if self._sources else None,
        )

    def add(self, content: Any) -> None:
        if isinstance(content, str):
            self._text.append(content)
        elif isinstance(content, list | tuple):
            for part in content:
                self.add(part)
        elif content is not None:
            self._add_part(content, _part(content, "type"))

    def _add_part(self, part: Any, kind: Any) -> None:
        if kind in {"thinking", "reasoning"}:
            self.add_reasoning(_part(part, kind) or _part(part, "text"))
        elif kind == "refusal":
            self.refusal.append(text_of(_part(part, "refusal")) or "")
        elif kind in {"image_url", "output_image", "image"}:
            self.add_images([part])
        elif kind in {"audio", "output_audio", "input_audio"}:
            self.add_audio(_part(part, kind) or part)
        elif kind == "reference":
            self.cite("references", _part(part, "reference_ids"))
        else:
            self.add(text_of(_part(part, "text")))
            self.cite("annotations", _part(part, "annotations"))

    def add_reasoning(self, reasoning: Any) -> None:
        """Take in visible reasoning: a text, or Mistral's list of text parts."""
        pieces = reasoning if isinstance(reasoning, list | tuple) else (reasoning,)
        self._reasoning += [text_of(p) or text_of(_part(p, "text")) or "" for p in pieces]

    def add_images(self, images: Any) -> None:
        for image in images if isinstance(images, list | tuple) else ():
            held = _part(image, "image_url") or image
            url = text_of(held) or text_of(_part(held, "url"))
            if url:
                self._images.append(url)

    def add_audio(self, audio: Any) -> None:
        if audio is None:
            return
        expires, name = _part(audio, "expires_at"), text_of(_part(audio, "id")) or ""
        if not isinstance(audio, Mapping) and _LITELLMS_ID.fullmatch(name):
            expires, name = 0, ""
        heard = Audio(
            name,
            text_of(_part(audio, "data")) or "",
            text_of(_part(audio, "transcript")) or "",
            expires if type(expires) is int else 0,
        )
        self._audio = heard if heard != Audio() else None

    def cite(self, name: str, sources: Any) -> None:
        if not sources or not isinstance(sources, list | tuple | Mapping):
            return
        plain = _plain(sources)
        if isinstance(plain, dict) and name != "context":
            plain = [plain]
        if isinstance(plain, list):  # litellm gives Anthropic's citations as a list for each block
            flat = [e for entry in plain for e in (entry if isinstance(entry, list) else [entry])]
            self._sources.setdefault(name, []).extend(flat)
        else:
            self._sources[name] = plain


def speech_in(candidate: Mapping[str, Any]) -> list[str]:
    """Return the speech in one of Gemini's candidates, in base64."""
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, Mapping) else None
    data = [part.get("inlineData") for part in parts or () if isinstance(part, Mapping)]
    return [
        str(piece["data"])
        for piece in data
        if isinstance(piece, Mapping)
        and piece.get("data")
        and str(piece.get("mimeType")).startswith("audio/")
    ]


def _part(holder: Any, name: str) -> Any:
    if type(holder) is dict:  # almost always
        return holder.get(name)
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _plain(value: Any) -> Any:
    """Return JSON values, also of litellm's objects."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool) else None


class ThinkTags:
    """Separates reasoning from text where a server sends both in one: `<think>...</think>answer`.

    Only tags at the very beginning count; a later one is what the answer speaks of. Reasoning that
    is never closed is reasoning to its end.
    """

    __slots__ = ("_held", "_thinks", "done")

    _OPENING = re.compile(r"\s*<(?:think|thinking|budget:thinking)>")
    _CLOSING = re.compile(r"</(?:think|thinking|budget:thinking)>")
    _OPENINGS = ("<think>", "<thinking>", "<budget:thinking>")
    _CLOSINGS = ("</think>", "</thinking>", "</budget:thinking>")

    def __init__(self) -> None:
        self._held = ""  # what may be the beginning of a tag
        self._thinks = False
        self.done = False
        """Whether the rest is text."""

    @classmethod
    def separated(cls, text: str) -> tuple[str, str]:
        """Separate a whole answer into its text and its reasoning."""
        tags = cls()
        text, reasoning = tags.feed(text)
        rest, more = tags.end()
        return text + rest, reasoning + more

    def feed(self, piece: str) -> tuple[str, str]:
        """Take in the next piece; return how the text, and how the reasoning, goes on.

        What may be half a tag is held back.
        """
        if self.done:
            return piece, ""
        if not (self._held or self._thinks or piece.lstrip()[:1] in {"", "<"}):  # almost always
            self.done = True
            return piece, ""
        self._held += piece
        if not self._thinks:
            opening = self._OPENING.match(self._held)
            if opening is None:
                return ("", "") if self._may_open() else self.end()
            self._thinks = True
            self._held = self._held[opening.end() :]
        closing = self._CLOSING.search(self._held)
        if closing is not None:
            reasoning, text = self._held[: closing.start()], self._held[closing.end() :]
            self._held, self._thinks, self.done = "", False, True
            return text, reasoning
        return "", self._all_but_half_a_tag()

    def end(self) -> tuple[str, str]:
        """Return what was held back, since no tag comes any more."""
        held, self._held, self.done = self._held, "", True
        return ("", held) if self._thinks else (held, "")

    def _may_open(self) -> bool:
        start = self._held.lstrip()
        return any(tag.startswith(start) for tag in self._OPENINGS)

    def _all_but_half_a_tag(self) -> str:
        start = self._held.rfind("<")
        half = start >= 0 and any(tag.startswith(self._held[start:]) for tag in self._CLOSINGS)
        cut = start if half else len(self._held)
        reasoning, self._held = self._held[:cut], self._held[cut:]
        return reasoning


def separated(content: Content) -> Content:
    """Separate the reasoning from the text of a whole message, where the vendor did not."""
    if content.reasoning or not content.text.lstrip().startswith("<"):
        return content
    text, reasoning = ThinkTags.separated(content.text)
    return content._replace(text=text, reasoning=reasoning or None)
