"""Fit a conversation to the provider that is asked next.

Several vendors may have answered the turns of a conversation. What a vendor wants back with its own
answers (signatures, blocks of thinking) goes back to it as it came. Others refuse it, as they
refuse unknown fields and long ids of tool calls. All of this is read from the messages, because
each turn may meet another process.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from aigateway.clock import Clock
from aigateway.messages import ChatRequest
from aigateway.settings import LLMConfig, ProviderType
from aigateway.wires.client import Failure
from aigateway.wires.content import IN_ID, signature_of, signed_blocks, text_of
from aigateway.wires.json_bodies import fresh_copy, is_text_only

__all__ = ["THOUGHT", "History"]

THOUGHT = ("reasoning_effort", "thinking")
"""The parameters that make a model of Anthropic's think."""

_Message = Mapping[str, Any]


class _Kind(Enum):
    """How a provider takes a conversation."""

    ANTHROPIC = auto()
    GEMINI = auto()
    OPENAI = auto()
    """Also Azure. It refuses fields that it does not know."""
    STRICT = auto()
    """As OpenAI, but without `refusal` and `audio`: Groq, Mistral."""
    LENIENT = auto()
    """Other servers. Some of them want `reasoning_content` back."""
    GOOGLES_OPENAI = auto()
    """Gemini on the OpenAI wire."""


_TEXT_ROLES = frozenset({"assistant", "developer", "system", "user"})

_KNOWN = frozenset({"content", "function_call", "name", "role", "tool_call_id", "tool_calls"})
_KNOWN_TO: Mapping[_Kind, frozenset[str]] = {
    _Kind.OPENAI: _KNOWN | {"audio", "refusal"},
    _Kind.STRICT: _KNOWN,
    _Kind.GOOGLES_OPENAI: _KNOWN,
}
"""Fields of any message."""

_ANSWERED: Mapping[_Kind, frozenset[str]] = {
    **_KNOWN_TO,
    _Kind.ANTHROPIC: _KNOWN | {"cache_control", "provider_specific_fields", "thinking_blocks"},
    _Kind.GEMINI: _KNOWN | {"images", "provider_specific_fields"},
}
"""Fields of an assistant's message."""

_NOT_FOR_SERVERS = frozenset(
    {
        "annotations",
        "audio",
        "citation_metadata",
        "citations",
        "context",
        "grounding_metadata",
        "images",
        "parsed",
        "provider_specific_fields",
        "references",
        "refusal",
        "search_results",
        "thinking_blocks",
        "url_context_metadata",
    }
)
"""What an answer says beside its text, which no server wants back."""

_REASONING = frozenset({"reasoning", "reasoning_content", "reasoning_details"})

_BESIDE: Mapping[_Kind, frozenset[str]] = {
    # Of `provider_specific_fields`, what litellm puts back where it came from.
    _Kind.ANTHROPIC: frozenset({"compaction_blocks", "tool_results", "web_search_results"}),
    _Kind.GEMINI: frozenset({"server_side_tool_invocations", "thought_signatures"}),
}

_NOT_OF_A_CALL = frozenset({"caller", "index", "provider_specific_fields"})
_OF_A_CALL = frozenset({"custom", "function", "id", "type"})
_OF_A_FUNCTION = frozenset({"arguments", "name"})
_THOUGHTS = frozenset({"reasoning", "redacted_thinking", "thinking"})

_SAFE = re.compile(r"[a-zA-Z0-9_.:-]{1,40}")
_IDS: Mapping[_Kind, re.Pattern[str]] = {
    _Kind.ANTHROPIC: re.compile(r"[a-zA-Z0-9_-]{1,64}"),
    _Kind.GEMINI: re.compile(r"[a-zA-Z0-9_.:-]{1,64}"),
}
_MISTRALS_IDS = re.compile(r"[a-zA-Z0-9]{9}")
_DIGITS = string.digits + string.ascii_letters
_MISTRALS = re.compile(
    r"(^|[/_.-])(mistral|mixtral|ministral|codestral|devstral|magistral|pixtral)"
)

_STAND_IN = "skip_thought_signature_validator"
"""Google's own for a call that Gemini has not made.

https://ai.google.dev/gemini-api/docs/thought-signatures
"""
_WANTS_SIGNATURES = re.compile(r"gemini-([3-9]|\d\d|(flash|pro|flash-lite)-latest)")

_HOSTS: Mapping[str, _Kind] = {
    "api.openai.com": _Kind.OPENAI,
    "openai.azure.com": _Kind.OPENAI,
    "api.groq.com": _Kind.STRICT,
    "api.mistral.ai": _Kind.STRICT,
    "googleapis.com": _Kind.GOOGLES_OPENAI,
}
_FAMILIES: Mapping[str, frozenset[str]] = {
    "claude": frozenset({"", "anthropic", "bedrock", "vertex_ai"}),
    "gemini": frozenset({"", "gemini", "vertex_ai"}),
}
"""Where litellm speaks a vendor's own wire, by how models of it are called."""
_PREFIXES: Mapping[str, _Kind] = {
    "": _Kind.OPENAI,
    "azure": _Kind.OPENAI,
    "groq": _Kind.STRICT,
    "mistral": _Kind.STRICT,
    "openai": _Kind.OPENAI,
}
_BY_TYPE: Mapping[ProviderType, _Kind] = {
    ProviderType.ANTHROPIC: _Kind.ANTHROPIC,
    ProviderType.AZURE: _Kind.OPENAI,
    ProviderType.GEMINI: _Kind.GEMINI,
    ProviderType.OPENAI: _Kind.OPENAI,
}

_REFUSED_UNDER = frozenset({400, 422})
_REFUSES_BLOCKS = re.compile(
    r"signature|thinking`? block|expected `?thinking|thinking.*found", re.IGNORECASE
)
_REFUSES_FIELDS = re.compile(
    r"additional|extra|forbidden|invalid|unexpected|un(known|recognized|supported)"
    r"|not (be )?(allowed|permitted|supported|valid)|(must|should|can)( ?not|n't)|remove",
    re.IGNORECASE,
)
_MISSES_FIELDS = re.compile(r"missing|must|required|passed back", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_OF_MESSAGES = frozenset({"assistant", "messages", "system", "tool", "tool_calls", "user"})
"""How a path ends that leads to a message or a call, and not to a field of it."""

_OPTIONAL = _REASONING | _NOT_FOR_SERVERS | {"cache_control", "extra_content"}
"""Fields that may be left out: no caller's words are lost."""

_CONTENT = "reasoning_content"

_FORGOTTEN_AFTER = 3600.0
"""Seconds for which a field is remembered: what one caller's request has brought about ends."""

_MOST_CHANGES = 4
_CHANGES_WITHIN = 60.0
"""Seconds. A server that refuses `reasoning_content` and misses it gets it as it is given."""

_MOST_REFUSED = 1024

_NO_ANSWER = "[no answer]"
"""Replaces an empty answer, which no vendor takes."""

_PDF = "data:application/pdf;"


class History:
    """Fits conversations to one provider.

    `base` is the vendor's address, where the configuration gives none. What was learned about
    fields is forgotten after an hour.
    """

    def __init__(self, config: LLMConfig, clock: Clock, base: str | None = None) -> None:
        host = urlsplit(str(config.api_base or base or "")).hostname or ""
        self._kind = _kind_of(config, host)
        self._ids = _IDS.get(self._kind, _SAFE)
        self._is_mistrals = "mistral.ai" in host or bool(
            config.provider in {ProviderType.OPENAI_COMPATIBLE, ProviderType.LITELLM}
            and _MISTRALS.search(config.model.lower())
        )
        if self._is_mistrals:
            self._ids = _MISTRALS_IDS
        self._marks_prefix = self._is_mistrals and self._kind is _Kind.STRICT
        """Mistral refuses an assistant's message at the end that is not marked as a prefix."""
        self._wants_signatures = bool(_WANTS_SIGNATURES.search(config.model.lower()))
        by_litellm = config.provider is ProviderType.LITELLM
        # At Gemini litellm, or its lane, decides about `cache_control`.
        self._takes_marks = self._kind in {_Kind.ANTHROPIC, _Kind.GEMINI} or (
            self._kind is _Kind.LENIENT
            and (by_litellm or "claude" in config.model.lower() or "openrouter.ai" in host)
        )
        self._wants_tools = self._kind in {_Kind.ANTHROPIC, _Kind.GEMINI} or (
            by_litellm and self._kind is _Kind.LENIENT
        )
        self.wants_unique_ids = self._kind is _Kind.ANTHROPIC
        """Whether no two calls of a conversation may have the same id."""
        self._defaults = config.extra
        self._refused: dict[bytes, None] = {}  # blocks that Anthropic did not take
        self._clock = clock
        self._withheld: dict[str, float] = {}  # fields that the server refused, and when
        self._fills_in_reasoning = False
        self._filled_since = 0.0
        self._changes: list[float] = []

    def fitted(self, request: ChatRequest) -> ChatRequest:
        """Return the request as the provider takes it: the same one if nothing changes."""
        if self._marks_prefix or self._fills_in_reasoning or "tools" in request.params:
            return self._fitted_to_all(request)
        for message in request.messages:  # `is_text_only`, without a call
            if (
                len(message) != 2
                or type(message.get("content")) is not str
                or message.get("role") not in _TEXT_ROLES
            ):
                return self._fitted_to_all(request)
        return request

    def _fitted_to_all(self, request: ChatRequest) -> ChatRequest:
        """Fit a request to all that the provider asks of a conversation."""
        given, plain = request, is_text_only(request.messages, _TEXT_ROLES)
        if not (plain and "tools" not in request.params) and not self._takes_marks:
            request = _without_marks(request)
        prefilled = self._marks_prefix and request.messages[-1].get("role") == "assistant"
        if plain and not (self._fills_in_reasoning or prefilled):  # texts, and nothing else
            return request
        if self._withheld or self._fills_in_reasoning:
            self._forget()
        messages: Sequence[_Message] = request.messages
        if self._wants_tools:
            messages = self._with_tools(messages)
        params = request.params
        thinks = True
        if self._kind is _Kind.ANTHROPIC:
            thinks = self.thinks(messages, params)
            if not thinks:
                params = _without_thinking(params, self._defaults)
        names = _CallIds(self)
        fitted = tuple([self._fitted(m, names, thinks=thinks) for m in messages])
        if self._kind is _Kind.GEMINI and not self._wants_signatures:
            fitted = _merged_calls(fitted)
        if prefilled and not fitted[-1].get("tool_calls"):
            fitted = (*fitted[:-1], {**fitted[-1], "prefix": True})
        if (
            params is given.params
            and len(fitted) == len(given.messages)
            and all(map(_is, fitted, given.messages))
        ):
            return given
        return replace(request, messages=fitted, params=params)

    def thinks(self, messages: Sequence[_Message], params: Mapping[str, Any]) -> bool:
        """Return whether the model may think, if the parameters ask for it.

        Anthropic wants each turn of an assistant who thinks to begin with a thought of its own. A
        turn is everything since the user has spoken, results of tools included.
        """
        if self._kind is not _Kind.ANTHROPIC or not _asks_to_think(params, self._defaults):
            return True
        begun: _Message | None = None
        before: Any = None
        for message in messages:
            role = message.get("role")
            if role == "user" and before not in {"tool", "function"}:
                begun = None
            elif role == "assistant" and begun is None:
                begun = message
            before = role
        if begun is None or not (begun.get("tool_calls") or begun.get("function_call")):
            return True
        content = begun.get("content")
        first = content[0] if isinstance(content, list | tuple) and content else None
        within = isinstance(first, Mapping) and first.get("type") in _THOUGHTS
        return within or bool(self._blocks(begun))

    def learn(self, failure: Failure, sent: ChatRequest) -> bool:
        """Learn how the provider takes conversations; return whether to send again."""
        if failure.status not in _REFUSED_UNDER:
            return False
        words = f"{failure.param or ''} {failure.detail or ''}"[:1000]
        if self._kind is _Kind.ANTHROPIC:
            return bool(_REFUSES_BLOCKS.search(words)) and self._refuse_blocks(sent.messages)
        return self._kind is _Kind.LENIENT and self._learn_fields(failure, sent.messages)

    def _learn_fields(self, failure: Failure, messages: Sequence[_Message]) -> bool:
        """Learn which fields a server refuses or misses, as far as it names them."""
        words = (failure.detail or "")[:1000]
        named = _named(failure.param or "", words)
        given = {n for m in messages for n in m}
        given.update(n for m in messages for c in m.get("tool_calls") or () for n in c)
        refused, now = named & given, self._clock.now()
        if refused and _REFUSES_FIELDS.search(words):
            if _CONTENT in refused and _CONTENT not in self._withheld and not self._may_change():
                return False
            self._withheld |= dict.fromkeys(refused, now)
            self._fills_in_reasoning &= _CONTENT not in refused
            return True
        answers = [m for m in messages if m.get("role") == "assistant"]
        misses = _CONTENT in named and bool(_MISSES_FIELDS.search(words))
        if not misses or all(_CONTENT in message for message in answers):
            return False
        if not self._fills_in_reasoning:
            if not self._may_change():
                return False
            # At first as it was given, and made up only where that is not enough.
            self._fills_in_reasoning = self._withheld.pop(_CONTENT, None) is None
            self._filled_since = now
        return True

    def _may_change(self) -> bool:
        """Return whether the handling of `reasoning_content` may change; else it goes as given."""
        now = self._clock.now()
        self._changes = [at for at in self._changes if at > now - _CHANGES_WITHIN]
        if len(self._changes) >= _MOST_CHANGES:
            self._withheld.pop(_CONTENT, None)
            self._fills_in_reasoning = False
            return False
        self._changes.append(now)
        return True

    def _forget(self) -> None:
        before = self._clock.now() - _FORGOTTEN_AFTER
        if any(since <= before for since in self._withheld.values()):
            self._withheld = {n: since for n, since in self._withheld.items() if since > before}
        if self._filled_since <= before:
            self._fills_in_reasoning = False

    def id_for(self, given: str) -> str:
        """Return the id of a tool call as the provider takes it, which depends on the id alone."""
        name = given.partition(IN_ID)[0]
        return name if self._ids.fullmatch(name) else self.hashed_id(given)

    def hashed_id(self, given: str) -> str:
        """Return an id that the provider takes, for one that it would refuse."""
        digest = hashlib.sha256(given.encode("utf-8", "surrogatepass"), usedforsecurity=False)
        if not self._is_mistrals:
            return f"call_{digest.hexdigest()[:32]}"
        number, digits = int(digest.hexdigest(), 16), ""
        while len(digits) < 9:
            number, digit = divmod(number, len(_DIGITS))
            digits += _DIGITS[digit]
        return digits

    def _with_tools(self, messages: Sequence[_Message]) -> Sequence[_Message]:
        """Turn calls of functions, as OpenAI had them until 2023, into calls of tools.

        litellm gives such a call and its result two different ids.
        """
        fitted: list[_Message] = []
        name = None  # of a call whose result has not come
        for place, message in enumerate(messages):
            call = message.get("function_call")
            if message.get("role") == "function" and name is not None:
                left = {n: v for n, v in message.items() if n not in {"name", "role"}}
                fitted.append({"role": "tool", "tool_call_id": name, **left})
                name = None
            elif _is_map(call) and not message.get("tool_calls"):
                name = self.hashed_id(f"function_call {place}")
                left = {n: v for n, v in message.items() if n != "function_call"}
                made = {"id": name, "type": "function", "function": call}
                fitted.append({**left, "tool_calls": [made]})
            else:
                fitted.append(message)
                name = None
        return fitted

    # ── messages ─────────────────────────────────────────────────────────────────────────────

    def _fitted(self, message: _Message, names: _CallIds, *, thinks: bool) -> _Message:
        if message.get("role") == "assistant":
            return self._answer(message, names, thinks=thinks)
        known = _KNOWN_TO.get(self._kind)
        changed = {
            name: value
            for name, value in message.items()
            if (value is not None or name == "content")
            and (known is None or name in known)
            and name not in self._withheld
        }
        if "tool_call_id" in changed:
            changed["tool_call_id"] = names.of_result(changed["tool_call_id"])
        if isinstance(changed.get("content"), list | tuple):
            changed["content"] = self._parts(changed["content"])
        return message if changed == message else changed

    def _answer(self, message: _Message, names: _CallIds, *, thinks: bool) -> _Message:
        changed = {
            name: value
            for name, value in message.items()
            if (value is not None or name == "content") and self._takes(name, message)
        }
        if changed.get("tool_calls"):
            changed["tool_calls"] = self._calls(changed["tool_calls"], names)
        elif "tool_calls" in changed:
            del changed["tool_calls"]
        if _is_map(changed.get("function_call")):
            changed["function_call"] = self._function(changed["function_call"])
        if "thinking_blocks" in changed:
            blocks = self._blocks(message) if thinks else []
            changed |= {"thinking_blocks": blocks}
            if not blocks:
                del changed["thinking_blocks"]
        if "provider_specific_fields" in changed:
            taken = _BESIDE[self._kind]
            beside = changed["provider_specific_fields"]
            left = {n: v for n, v in beside.items() if n in taken} if _is_map(beside) else {}
            changed |= {"provider_specific_fields": left}
            if not left:
                del changed["provider_specific_fields"]
        if _is_map(message.get("audio")):
            _fit_speech(changed, message["audio"])
        if isinstance(changed.get("content"), list | tuple):
            said = self._without_thoughts(changed["content"], thinks=thinks)
            changed["content"] = said if isinstance(said, str) else self._as_text(said)
        self._fill(changed, message)
        return message if changed == message else changed

    def _takes(self, name: str, message: _Message) -> bool:
        known = _ANSWERED.get(self._kind)
        if known is not None:
            return name in known
        if name in self._withheld:
            return False
        if name in _REASONING:  # of another vendor, if that has signed it
            beside = message.get("provider_specific_fields")
            return not (message.get("thinking_blocks") or beside or _is_signed(message))
        return name not in _NOT_FOR_SERVERS

    def _fill(self, changed: dict[str, Any], message: _Message) -> None:
        """Replace by words what left-out fields said, where nothing else would remain."""
        if self._fills_in_reasoning and "reasoning_content" not in changed:
            changed["reasoning_content"] = " "
        if changed.get("content") or changed.keys() & {"tool_calls", "function_call"}:
            return
        if not any(map(changed.get, ("audio", "images", "refusal"))):
            audio = message.get("audio")
            instead = text_of(message.get("refusal")) or (
                text_of(audio.get("transcript")) if _is_map(audio) else None
            )
            if instead or message.get("images"):
                changed["content"] = instead or "[image]"
            elif changed.get("content") is None and "thinking_blocks" not in changed:
                changed["content"] = _NO_ANSWER

    def _blocks(self, message: _Message) -> list[dict[str, Any]]:
        """Return the blocks of thinking that go back, as they came."""
        blocks = signed_blocks(message.get("thinking_blocks"))
        if self._refused and any(_digest(block) in self._refused for block in blocks):
            return []
        return [
            {n: block[n] for n in ("type", "thinking", "signature", "data") if n in block}
            for block in blocks
        ]

    def _refuse_blocks(self, messages: Sequence[_Message]) -> bool:
        known = len(self._refused)
        for message in messages:
            for block in signed_blocks(message.get("thinking_blocks")):
                self._refused[_digest(block)] = None
        learned = len(self._refused) > known
        while len(self._refused) > _MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        return learned

    # ── parts of messages ────────────────────────────────────────────────────────────────────

    def _calls(self, calls: Sequence[Any], names: _CallIds) -> list[Any]:
        ids = names.of_calls([c.get("id") if _is_map(c) else None for c in calls])
        fitted = [
            {**self._call(call), **({} if name is None else {"id": name})}
            if _is_map(call)
            else call
            for call, name in zip(calls, ids, strict=True)
        ]
        if self._kind not in {_Kind.GEMINI, _Kind.GOOGLES_OPENAI}:
            return fitted
        signatures = [signature_of(call) for call in calls]
        if self._wants_signatures and not any(signatures):
            signatures[0] = _STAND_IN
        for call, signature in zip(fitted, signatures, strict=True):
            if signature is not None and isinstance(call, dict):
                call.update(self._signature(signature))
        return fitted

    def _call(self, call: _Message) -> dict[str, Any]:
        lenient = self._kind is _Kind.LENIENT
        fitted = {
            name: value
            for name, value in call.items()
            if (name not in _NOT_OF_A_CALL if lenient else name in _OF_A_CALL)
            and name not in self._withheld
        }
        function = fitted.get("function")
        if _is_map(function):
            function = {n: v for n, v in function.items() if n in _OF_A_FUNCTION}
            fitted["function"] = self._function(function)
            fitted.setdefault("type", "function")
        return fitted

    def _function(self, function: _Message) -> _Message:
        """Turn arguments into an object where the vendor knows no others."""
        if self._kind not in {_Kind.ANTHROPIC, _Kind.GEMINI}:
            return function
        return {**function, "arguments": _as_object(function.get("arguments"))}

    def _signature(self, signature: str) -> dict[str, Any]:
        if self._kind is _Kind.GEMINI:
            return {"provider_specific_fields": {"thought_signature": signature}}
        return {"extra_content": {"google": {"thought_signature": signature}}}

    def _parts(self, parts: Sequence[Any]) -> Sequence[Any]:
        """Turn PDFs in the place of pictures into documents."""
        if self._kind not in {_Kind.ANTHROPIC, _Kind.OPENAI}:
            return parts
        fitted = [_document(part) for part in parts]
        return parts if all(map(_is, fitted, parts)) else fitted

    def _without_thoughts(self, parts: Sequence[Any], *, thinks: bool) -> Sequence[Any]:
        """Leave out the thoughts of other vendors."""
        own = self._kind is _Kind.ANTHROPIC or self._is_mistrals
        if own and thinks:
            return parts
        left = [p for p in parts if not (_is_map(p) and p.get("type") in _THOUGHTS)]
        return parts if len(left) == len(parts) else left or ""

    def _as_text(self, parts: Sequence[Any]) -> Sequence[Any]:
        """Turn parts that the vendor does not have into text."""
        if self._kind not in {_Kind.ANTHROPIC, _Kind.GEMINI}:
            return parts
        fitted = list(map(_part_as_text, parts))
        return parts if all(map(_is, fitted, parts)) else fitted


def _named(param: str, words: str) -> frozenset[str]:
    """Return the optional fields that an error is about."""
    path = _WORD.findall(param)
    named = _OPTIONAL.intersection(path)
    if not named and path and not (path[-1].isdecimal() or path[-1] in _OF_MESSAGES):
        return named  # it is about something else, and may quote a prompt
    return named or _OPTIONAL.intersection(_WORD.findall(words))


class _CallIds:
    """The ids of one conversation's tool calls."""

    __slots__ = ("_history", "_names", "_taken")

    def __init__(self, history: History) -> None:
        self._history = history
        self._names: dict[str, str] = {}
        self._taken: dict[str, str] = {}

    def of_calls(self, ids: Sequence[Any]) -> list[str | None]:
        return [self._of_call(name) if isinstance(name, str) else None for name in ids]

    def of_result(self, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        return self._names.get(given) or self._history.id_for(given)

    def _of_call(self, given: str) -> str:
        name = self._history.id_for(given)
        if self._taken.setdefault(name, given) != given:
            name = self._history.hashed_id(given)  # they differ in what was cut off
        elif given in self._names and self._history.wants_unique_ids:
            # Some servers count their calls anew in each turn.
            name = self._history.hashed_id(f"{given} {len(self._taken)}")
            self._taken[name] = given
        self._names[given] = name
        return name


def _merged_calls(messages: tuple[_Message, ...]) -> tuple[_Message, ...]:
    """Merge equal calls of a message, and their results.

    For older models of Gemini's, which have no ids of calls, litellm sends such calls once, and
    all the results.
    """
    left: list[_Message] = []
    same: dict[Any, Any] = {}
    results: dict[Any, int] = {}
    for message in messages:
        calls = message.get("tool_calls")
        if calls:
            first: dict[str, Any] = {}
            same = {c.get("id"): first.setdefault(_call_key(c), c.get("id")) for c in calls}
            results = {}
            kept = [c for c in calls if same[c.get("id")] == c.get("id")]
            left.append(message if len(kept) == len(calls) else {**message, "tool_calls": kept})
            continue
        name = same.get(message.get("tool_call_id"))
        if name is not None and name in results:
            before = left[results[name]]
            said, more = before.get("content"), message.get("content")
            if said != more and isinstance(said, str) and isinstance(more, str):
                left[results[name]] = {**before, "content": f"{said}\n{more}"}
        elif name is None or name == message["tool_call_id"]:
            results[name] = len(left)
            left.append(message)
        else:
            results[name] = len(left)
            left.append({**message, "tool_call_id": name})
    return tuple(left)


_MARK = "cache_control"


def _without_marks(request: ChatRequest) -> ChatRequest:
    """Remove the marks for Anthropic's cache, which other vendors refuse."""
    messages = tuple(map(_unmarked, request.messages))
    tools = request.params.get("tools")
    params = request.params
    if isinstance(tools, list | tuple):
        left = [_unmarked(tool, "function") for tool in tools]
        if not all(map(_is, left, tools)):
            params = {**params, "tools": left}
    if params is request.params and all(map(_is, messages, request.messages)):
        return request
    return replace(request, messages=messages, params=params)


def _unmarked(holder: Any, *within: str) -> Any:
    """Remove the mark of a message, a part or a tool, and those within these fields of it."""
    if not _is_map(holder):
        return holder
    changed = {name: value for name, value in holder.items() if name != _MARK}
    for name in within or ("content", "tool_calls"):
        held = changed.get(name)
        if isinstance(held, list | tuple):
            left = [_unmarked(part) for part in held]
            changed[name] = held if all(map(_is, left, held)) else left
        elif _is_map(held):
            changed[name] = _unmarked(held)
    same = len(changed) == len(holder) and all(changed[name] is holder[name] for name in changed)
    return holder if same else changed


def _fit_speech(changed: dict[str, Any], spoken: _Message) -> None:
    """Send OpenAI the id of its own speech, and other vendors its transcript."""
    name = spoken.get("id")
    if "audio" in changed and isinstance(name, str) and name.startswith(_OPENAIS_SPEECH):
        changed["audio"] = {"id": name}
        return
    changed.pop("audio", None)
    if changed.get("content") or changed.keys() & {"tool_calls", "function_call"}:
        return
    if not text_of(changed.get("refusal")):
        changed["content"] = text_of(spoken.get("transcript")) or "[audio]"


_OPENAIS_SPEECH = "audio_"
"""How the ids of speech begin at OpenAI."""


def _call_key(call: Any) -> str:
    """Return what a call asks for: the same for equal calls."""
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = function.get("arguments")
    return json.dumps([function.get("name"), arguments], sort_keys=True)


def _kind_of(config: LLMConfig, host: str) -> _Kind:
    kind = _BY_TYPE.get(config.provider)
    if kind is not None:
        return kind
    model = config.model.lower()
    if config.provider is ProviderType.LITELLM:
        prefix = model.partition("/")[0] if "/" in model else ""
        for family, hosts in _FAMILIES.items():
            if family in model and prefix in hosts:
                return _Kind.ANTHROPIC if family == "claude" else _Kind.GEMINI
        return _PREFIXES.get(prefix, _Kind.LENIENT)
    known = (kind for name, kind in _HOSTS.items() if host == name or host.endswith(f".{name}"))
    return next(known, _Kind.LENIENT)


def _asks_to_think(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    body = params.get("extra_body")
    asked = {**defaults, **params}
    effort = asked.get("reasoning_effort")
    thinking = asked.get("thinking") or (body.get("thinking") if _is_map(body) else None)
    if _is_map(thinking):
        return bool(thinking.get("type") != "disabled")
    return effort not in {None, "none"} if isinstance(effort, str | None) else True


def _without_thinking(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    left = {name: value for name, value in params.items() if name not in THOUGHT}
    body = left.get("extra_body")
    if _is_map(body) and "thinking" in body:
        left["extra_body"] = {name: value for name, value in body.items() if name != "thinking"}
    if "thinking" in defaults:
        left["thinking"] = {"type": "disabled"}
    if "reasoning_effort" in defaults:
        left["reasoning_effort"] = "none"
    return left


def _as_object(arguments: Any) -> str:
    """Return arguments as a JSON object; other values are wrapped in one."""
    given = arguments
    if isinstance(arguments, str):
        try:
            given = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            given = None
        if isinstance(given, dict):
            return arguments if arguments.strip() else "{}"
    elif arguments is None:
        return "{}"
    return json.dumps(fresh_copy(given if _is_map(given) else {"arguments": arguments}))


def _is_signed(message: _Message) -> bool:
    calls = message.get("tool_calls")
    return any(map(signature_of, calls if isinstance(calls, list | tuple) else ()))


def _document(part: Any) -> Any:
    if not _is_map(part) or part.get("type") != "image_url":
        return part
    picture = part.get("image_url")
    url = picture.get("url") if _is_map(picture) else picture
    if not (isinstance(url, str) and url.startswith(_PDF)):
        return part
    more = {name: v for name, v in part.items() if name not in {"image_url", "type"}}
    return {"type": "file", "file": {"filename": "document.pdf", "file_data": url}, **more}


def _part_as_text(part: Any) -> Any:
    kind = part.get("type") if _is_map(part) else None
    if kind == "refusal":
        return {"type": "text", "text": text_of(part.get("refusal")) or ""}
    if kind == "output_text":
        return {"type": "text", "text": text_of(part.get("text")) or ""}
    if kind in {"image_url", "output_image"}:
        return {"type": "text", "text": "[image]"}
    if kind in {"audio", "input_audio", "output_audio"}:
        held = part.get(kind)
        held = held if _is_map(held) else part
        return {"type": "text", "text": text_of(held.get("transcript")) or "[audio]"}
    return part


def _digest(block: Mapping[str, Any]) -> bytes:
    signature = str(block.get("signature") or block.get("data"))
    return hashlib.sha256(signature.encode("utf-8", "surrogatepass")).digest()


def _is_map(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _is(one: Any, other: Any) -> bool:
    return one is other
