"""Sessions: which provider answers the turns of a conversation.

A vendor's prompt cache is at that vendor alone, so the turns of a session stay at one provider. It
is a preference: health, capabilities, rates and slots come first. Then the session moves, and stays
where it was answered. State only, and the choice of a provider among equals; `select.py` asks.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from aigateway.clock import Clock
from aigateway.figures import SessionMetrics
from aigateway.messages import ChatRequest, NativeRequest

__all__ = [
    "IDLE",
    "MOST_SESSIONS",
    "Affinity",
    "Session",
    "is_bearable",
    "session_of",
    "shared_name",
]

IDLE = 3600.0
"""Seconds after which an idle session is forgotten: its prompt is in no vendor's cache by then."""

MOST_SESSIONS = 50_000
"""Sessions to remember; each takes about 200 bytes. One found by its beginning counts twice. The
longest idle one is forgotten first."""

_SAMPLE = 2048
"""Characters of a text that count for the beginning of a conversation, beside its length."""

_MOST_ITEMS = 16
"""Parts of a message, and tools, that count likewise."""

_MARKS = frozenset({"cache_control"})
"""Fields of parts that are no content."""

_MORE, _FACTOR = 2, 1.5
"""A new session goes to a provider with at most so many times the calls in flight of the least
loaded equal, and so many more."""


@dataclass(frozen=True, slots=True)
class Session:
    """The session of one request.

    Attributes:
        key: A digest of tenant, model and name, so that no tenant meets another's sessions.
        begins: The session was found by the beginning of the conversation, and this is its first
            turn: it is remembered, but goes where any request would go. Else the same question,
            asked every minute, would never return to a better provider.
        start: The key of the first turn, whose provider counts for the second one. Many
            conversations may begin alike; `key` then has the first answer, too.
        place: Decides among equals; None is `key`.
        length: Messages of the conversation, if it was found by its beginning. Only a longer one
            continues it: examples in front of every question are no conversation.
    """

    key: bytes
    begins: bool = False
    start: bytes | None = None
    place: bytes | None = None
    length: int = 0

    def score(self, provider: str, weight: float) -> float:
        """Return the rank of a provider for this session; the highest serves it.

        Weighted rendezvous hashing: each gets sessions in proportion to its weight, processes that
        share nothing agree, and a provider that comes or goes moves no other sessions than its own.
        """
        key = self.key if self.place is None else self.place
        digest = blake2b(provider.encode(errors="replace"), digest_size=8, key=key).digest()
        share = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
        return -weight / math.log(share)


def session_of(request: ChatRequest) -> Session | None:
    """Return the session of a request, if it names one or its origin wants one to be found."""
    if request.session is not None:
        return Session(_digest(request, "session", request.session))
    if not request.find_session:
        return None
    start = _digest(request, "beginning", _digest_of(_first_texts(request), _SAMPLE).hex())
    # A name that is none of a conversation (an application's, a user's) only decides among equals.
    name = request.prompt_cache_key
    place = start if name is None else _digest(request, "shared", name)
    length = len(request.messages)
    for message in request.messages:
        if message.get("role") == "assistant":
            reply = _digest_of(_texts(message), _SAMPLE).hex()
            key = _digest(request, "conversation", start.hex() + reply)
            return Session(key, start=start, place=place, length=length)
    return Session(start, begins=True, place=place, length=length)


def is_bearable(load: float, least: float, weight: float) -> bool:
    """Return whether a new session may go to a provider, by the calls in flight for its weight."""
    return load <= least * _FACTOR + _MORE / weight


class _Home(NamedTuple):
    """Where a session is: by its last answer, or, before the first one, where it was sent."""

    provider: str
    since: float
    answered: bool
    length: int


class Affinity:
    """Which provider answered each session last. One for each gateway; bounded.

    Beside them, which provider keeps what OpenAI's Responses refer to (`previous_response_id`).
    """

    __slots__ = ("_begun", "_clock", "_homes", "_keepers", "_kept", "_most", "_moved")

    def __init__(self, clock: Clock, most: int = MOST_SESSIONS) -> None:
        self._clock = clock
        self._most = most
        self._homes: OrderedDict[bytes, _Home] = OrderedDict()
        self._keepers: OrderedDict[bytes, str] = OrderedDict()
        self._begun = self._kept = self._moved = 0

    def home(self, session: Session) -> str | None:
        """Return the name of the provider that answered a session last; None for a new one."""
        found = None if session.begins else self._known(session)
        if found is None or 0 < session.length <= found.length:
            return None
        return found.provider

    def sent(self, session: Session, provider: str) -> None:
        """Remember where a new session is sent, so that turns at the same time go there, too."""
        if self._known(session) is None:
            self._remember(session, provider, answered=False)

    def answered(self, session: Session, provider: str, *, stays: bool = False) -> None:
        """Remember who answered a turn; with `stays`, only this one was answered elsewhere."""
        found = self._known(session)
        if found is None or not found.answered:
            self._begun += 1
        elif found.provider == provider:
            self._kept += 1
        else:
            self._moved += 1
        home = found.provider if stays and found is not None else provider
        self._remember(session, home, answered=True)

    def _known(self, session: Session) -> _Home | None:
        found = self._homes.get(session.key)
        if found is None and session.start is not None:
            found = self._homes.get(session.start)
        return None if found is None or self._clock.now() - found.since >= IDLE else found

    def _remember(self, session: Session, provider: str, *, answered: bool) -> None:
        homes, now = self._homes, self._clock.now()
        homes[session.key] = _Home(provider, now, answered, session.length)
        homes.move_to_end(session.key)
        # The first one is idle for the longest: this forgets two for each new one, if they are due.
        for _ in range(2):
            oldest = next(iter(homes.values()))
            if len(homes) > self._most or now - oldest.since >= IDLE:
                homes.popitem(last=False)

    def keeper(self, request: ChatRequest) -> str | None:
        """Return the provider that keeps what a request of OpenAI's Responses refers to."""
        for name in _references(request):
            found = self._keepers.get(_digest(request, "stored", name))
            if found is not None:
                return found
        return None

    def stored(self, request: ChatRequest, response_id: str, provider: str) -> None:
        """Remember which provider has stored a native answer, and a conversation that it is in."""
        keepers = self._keepers
        for name in (response_id, *_references(request)):
            key = _digest(request, "stored", name)
            keepers[key] = provider
            keepers.move_to_end(key)
        while len(keepers) > self._most:
            keepers.popitem(last=False)

    def stats(self) -> SessionMetrics:
        """Return counters: turns of new, kept and moved sessions, and the sessions remembered."""
        return {
            "entries": len(self._homes),
            "begun": self._begun,
            "kept": self._kept,
            "moved": self._moved,
        }


def _digest(request: ChatRequest, kind: str, name: str) -> bytes:
    """Return a key for a name within one tenant and one model.

    An agent uses several models in a session: each has a provider, and a prompt cache, of its own.
    """
    model = (request.model or "") if kind != "stored" else ""
    return _digest_of((kind, request.partition, request.tenant, model, name))


def _digest_of(texts: Iterable[str], most: int | None = None) -> bytes:
    """Return a digest of texts that differs wherever one of them, or its length, does.

    Of each at most so many characters count.
    """
    joined = "".join([f"{len(text)}:{text[:most]}" for text in texts])
    return blake2b(joined.encode(errors="surrogatepass"), digest_size=16).digest()


def shared_name(params: Mapping[str, Any], native: NativeRequest | None) -> str | None:
    """Return what a body names in `prompt_cache_key` or `metadata.user_id`."""
    for body in ({} if native is None else native.body, params):
        metadata = body.get("metadata")
        user = metadata.get("user_id") if isinstance(metadata, Mapping) else None
        for name in (body.get("prompt_cache_key"), user):
            if name and isinstance(name, str):
                return name
    return None


def _references(request: ChatRequest) -> Sequence[str]:
    """Return the names of stored objects that a request of OpenAI's Responses refers to."""
    native = request.native
    if native is None or native.protocol != "responses":
        return ()
    conversation = native.body.get("conversation")
    if isinstance(conversation, Mapping):
        conversation = conversation.get("id")
    given = (native.body.get("previous_response_id"), conversation)
    return [name for name in given if isinstance(name, str) and name]


def _first_texts(request: ChatRequest) -> Iterable[str]:
    for tool in (request.params.get("tools") or ())[:_MOST_ITEMS]:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        yield str(function.get("name") if isinstance(function, Mapping) else "")
    for message in request.messages:
        yield from _texts(message)
        if message.get("role") == "user":
            return


def _texts(message: Mapping[str, Any]) -> Iterable[str]:
    """Yield the texts of a message, without marks that move from turn to turn."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, Sequence):
        yield from _texts_of_parts(content[:_MOST_ITEMS])
    yield from _texts_of_parts((message.get("tool_calls") or ())[:_MOST_ITEMS])


def _texts_of_parts(parts: Iterable[Any]) -> Iterable[str]:
    for part in parts:
        fields = part.items() if isinstance(part, Mapping) else (("", part),)
        for name, value in fields:
            if name in _MARKS:
                continue
            inner = value.values() if isinstance(value, Mapping) else (value,)
            yield from (text for text in inner if isinstance(text, str))
