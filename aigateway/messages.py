"""Requests and answers as records, and answers in OpenAI's form.

The records are frozen and hold only immutable values, so that callers who share a cached answer
cannot change it. Nothing here validates or sends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Self

from typing_extensions import TypeVar

from aigateway.errors import FailureKind, GatewayError, error_words
from aigateway.records import Record, shown_cost

__all__ = [
    "APPLICATION",
    "CHAT_PARAMS",
    "TOOL_INPUTS",
    "AnsweredItem",
    "Attempt",
    "Audio",
    "BatchItem",
    "BatchProgress",
    "BatchResult",
    "CacheMode",
    "Capability",
    "ChatRequest",
    "ChatResponse",
    "Choice",
    "Chunk",
    "Completion",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "Embeddings",
    "FailedItem",
    "NativeAnswer",
    "NativeRequest",
    "Opening",
    "Origin",
    "ProtocolName",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "asks_to_think",
    "openai_beside",
    "openai_call",
    "openai_delta",
    "openai_media",
    "openai_signature",
    "openai_usage",
]


S = TypeVar("S", "Choice", "Chunk")
P_co = TypeVar("P_co", covariant=True, default=Any)
"""What an answer is parsed as: a pydantic model class, or None."""

CacheMode = Literal[True, False, "refresh"]
"""`True` reads and fills the cache, `False` does neither, `"refresh"` only fills it."""


Capability = Literal[
    "vision",
    "pdf",
    "audio_input",
    "audio_output",
    "tools",
    "parallel_tools",
    "json_schema",
    "reasoning",
]
"""What a request may need of a model. docs/guides/sessions.md says what each means."""


ProtocolName = Literal["messages", "responses", "completions"]
"""A protocol beside OpenAI's chat: Anthropic's Messages, OpenAI's Responses and completions."""


@dataclass(frozen=True, slots=True, repr=False)
class NativeRequest(Record):
    """A request in another protocol than OpenAI's chat, beside its translation into a chat.

    A provider that speaks the protocol gets `body`; every other one gets the chat.

    Attributes:
        protocol: The protocol of `body`.
        body: The JSON object as the caller wrote it, copied. `model` and `stream` are replaced.
        headers: Sent along with `body` (`anthropic-beta`, `anthropic-version`).
        only: Names what of it no chat can say ("previous_response_id"); only providers that speak
            the protocol are asked then. None: the chat says it all.
        instead: What the caller can do without it; for errors.
    """

    protocol: ProtocolName
    body: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    only: str | None = None
    instead: str = "leave it out"

    def map_texts(self, change: Callable[[str], str]) -> NativeRequest:
        """Return the request with the texts of `body` changed; itself if none is.

        Texts are all strings but names, ids and types, images and files, and what the vendor has
        signed or encrypted.

        Args:
            change: Returns the text to put in the place of a text.
        """
        body = _with_native_texts(self.body, change)
        return self if body == self.body else replace(self, body=body)

    def _words(self) -> Iterable[Any]:
        return (self.protocol, self.only)


@dataclass(frozen=True, slots=True, repr=False)
class NativeAnswer(Record):
    """An answer in the protocol of its `NativeRequest`, as the provider sent it.

    Attributes:
        protocol: Its protocol.
        body: The whole answer as JSON; empty if it is not known.
        events: The server-sent events of a stream that came after its last content, each as its
            bytes, with the empty line at its end; none of an answer from the cache.
    """

    protocol: ProtocolName
    body: bytes = field(default=b"", repr=False)
    events: tuple[bytes, ...] = field(default=(), repr=False)

    def _words(self) -> Iterable[Any]:
        return (self.protocol, f"{len(self.body)} bytes", f"{len(self.events)} events")

    def _values(self) -> Iterator[tuple[str, Any]]:
        yield "protocol", self.protocol
        yield "body", json.loads(self.body) if self.body else None


@dataclass(frozen=True, slots=True)
class Usage(Record):
    """Tokens as the vendor counted them; zeros where it sent none."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    """Part of `prompt_tokens` that the vendor read from its own prompt cache."""
    reasoning_tokens: int = 0
    """Part of `completion_tokens` spent on hidden reasoning."""
    cache_write_tokens: int = 0
    """Part of `prompt_tokens` that the vendor wrote to its own prompt cache."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


TOOL_INPUTS = {"function": "arguments", "custom": "input"}
"""OpenAI's name for the input of a tool, by the tool's type."""


@dataclass(frozen=True, slots=True, repr=False)
class ToolCall(Record):
    """A call of a tool that the model requests.

    Attributes:
        id: The message with the tool's result refers to it.
        name: The tool's name.
        arguments: JSON text exactly as the model wrote it; free text if `type` is "custom".
        type: "function", or "custom" for one of OpenAI's custom tools.
        thought_signature: Gemini's; it must be sent back with the call.
    """

    id: str
    name: str
    arguments: str
    type: str = "function"
    thought_signature: str | None = field(default=None, repr=False)

    def _words(self) -> Iterable[Any]:
        return (self.name, self.id)


@dataclass(frozen=True, slots=True, repr=False)
class ToolCallDelta(Record):
    """A part of a tool call in a stream. Attributes not named here are as in `ToolCall`.

    Attributes:
        index: Index of the tool call in the answer, from 0.
        id: Complete in the first part of a call, empty in later ones.
        name: Like `id`.
        arguments: The next part.
        type: Set in every part.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    type: str = "function"
    thought_signature: str | None = field(default=None, repr=False)

    def _words(self) -> Iterable[Any]:
        return (self.index, self.name, self.id)


@dataclass(frozen=True, slots=True, repr=False)
class Audio(Record):
    """Speech, or in a chunk the next part of it.

    Attributes:
        id: Refers to it in a later turn at OpenAI: `{"role": "assistant", "audio": {"id": ...}}`.
            "" if the vendor sends none; `to_openai()` then leaves it out.
        data: Base64, in the requested format.
        transcript: The spoken text.
        expires_at: Unix time in seconds until which `id` is valid; 0 if the vendor sends none.
    """

    id: str = ""
    data: str = field(default="", repr=False)
    transcript: str = ""
    expires_at: int = 0

    def _words(self) -> Iterable[Any]:
        return (self.id, f"{len(self.data)} characters of base64")


@dataclass(frozen=True, slots=True, repr=False)
class Chunk(Record):
    """A part of a streamed answer: what is added to the fields of `Choice`.

    Attributes:
        text: The next part of the text; often a word.
        tool_calls: The next parts of tool calls.
        reasoning: The next part of visible reasoning.
        refusal: The next part of a refusal.
        finish_reason: Why the answer ended; only in its last chunk.
        usage: Tokens as the vendor counted them; only in the stream's last chunk.
        index: Index of the answer among the `n` answers.
        restarted: The answer starts over with the next chunk; discard everything before.
        images: Further pictures, each complete.
        audio: The next part of speech.
        sources_json: Further sources of the text.
        thinking_json: Further thinking blocks, each complete.
        thought_signatures: Further signatures.
        native_events: The server-sent events in which this part came, and those since the part
            before it, if the provider speaks the protocol of the `NativeRequest`. A chunk with
            them replaces the events that a translation would write.
    """

    text: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    index: int = 0
    restarted: bool = False
    images: tuple[str, ...] = field(default=(), repr=False)
    audio: Audio | None = None
    sources_json: str | None = field(default=None, repr=False)
    thinking_json: str | None = field(default=None, repr=False)
    thought_signatures: tuple[str, ...] = field(default=(), repr=False)
    native_events: tuple[bytes, ...] = field(default=(), repr=False)

    def map_texts(self, change: Callable[[str], str]) -> Chunk:
        """Return the chunk with its texts changed, as `ChatResponse.map_texts`.

        What is looked for may be parted by the border of two chunks: see `whole_words`.

        Args:
            change: Returns the text to put in the place of a text.
        """
        return _with_content(self, change)

    def to_openai(self, opening: Opening | None = None) -> dict[str, Any]:
        """Return the chunk as an OpenAI `chat.completion.chunk` object.

        `stream.sse()` sends a whole stream in that form, with a role, `logprobs` and `[DONE]`.

        Args:
            opening: `stream.opening`, for `id`, `created` and `model`; None leaves them empty.
        """
        choice = {
            "index": self.index,
            "delta": openai_delta(self),
            "logprobs": None,
            "finish_reason": self.finish_reason,
        }
        return {
            "id": "" if opening is None else opening.id,
            "object": "chat.completion.chunk",
            "created": 0 if opening is None else opening.created,
            "model": "" if opening is None else opening.model,
            "choices": [choice],
            **({} if self.usage is None else {"usage": openai_usage(self.usage)}),
            **({"aigateway": {"restarted": True}} if self.restarted else {}),
        }

    @property
    def thinking_blocks(self) -> list[dict[str, Any]]:
        """Further thinking blocks, each complete; a fresh list."""
        return _blocks(self.thinking_json)

    def _words(self) -> Iterable[Any]:
        yield "restarted" if self.restarted else ""
        yield from _said(self)
        yield "" if self.usage is None else _tokens(self.usage)

    def _values(self) -> Iterator[tuple[str, Any]]:
        return self._fields_but("native_events")


@dataclass(frozen=True, slots=True, repr=False)
class Choice(Record):
    """One of the `n` answers.

    Attributes:
        text: The text; empty if the model only calls tools.
        finish_reason: Why it ended: "stop", "length", "tool_calls", "content_filter", ...
        tool_calls: The tool calls.
        reasoning: Visible reasoning, if the vendor shows any.
        refusal: The model's refusal, if it refused.
        logprobs_json: OpenAI's `logprobs` object, as immutable JSON text.
        images: Pictures that the model made: URLs, mostly `data:` ones with the picture itself.
        audio: Speech.
        sources_json: Sources of the text, as a JSON object with the vendor's own keys:
            `annotations` (OpenAI, Gemini), `citations` (Anthropic), `grounding_metadata` (Gemini),
            `references` (Mistral), ...
        thinking_json: Anthropic's signed thinking blocks, as JSON text; they must be sent back
            unchanged.
        thought_signatures: Gemini's signatures of the text; those of tool calls are in `ToolCall`.
    """

    text: str = ""
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    refusal: str | None = None
    logprobs_json: str | None = None
    images: tuple[str, ...] = field(default=(), repr=False)
    audio: Audio | None = None
    sources_json: str | None = field(default=None, repr=False)
    thinking_json: str | None = field(default=None, repr=False)
    thought_signatures: tuple[str, ...] = field(default=(), repr=False)

    @property
    def thinking_blocks(self) -> list[dict[str, Any]]:
        """The blocks of `thinking_json`; a fresh list."""
        return _blocks(self.thinking_json)

    def _words(self) -> Iterable[Any]:
        return _said(self)


@dataclass(frozen=True, slots=True, repr=False)
class Completion(Record):
    """A vendor's answer to a chat, in one form for all vendors.

    Attributes:
        id: The vendor's name for the answer.
        model: The model that answered, as the vendor names it.
        choices: The `n` answers.
        usage: Tokens as the vendor counted them.
        cost_usd: Price of this call in US dollars; None if the model's price is not known.
        created: Unix time in seconds, from the vendor; else when the answer arrived.
        system_fingerprint: OpenAI's name for the configuration of the model.
        service_tier: The tier that served the request at OpenAI; prices depend on it.
        sources_json: Sources of all choices (Perplexity's `citations`, `search_results`), as in
            `Choice`.
        native: The answer in the protocol of the request, if its provider speaks that.
    """

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage = Usage()
    cost_usd: float | None = None
    created: int = 0
    system_fingerprint: str | None = None
    service_tier: str | None = None
    sources_json: str | None = field(default=None, repr=False)
    native: NativeAnswer | None = field(default=None, repr=False)

    def price(self, cost_usd: float | None) -> Self:
        """Set the price of a new answer that only the caller holds yet."""
        object.__setattr__(self, "cost_usd", cost_usd)
        return self

    def _words(self) -> Iterable[Any]:
        return (self.model, _tokens(self.usage), shown_cost(self.cost_usd))

    def _values(self) -> Iterator[tuple[str, Any]]:
        return self._fields_but("native")


@dataclass(frozen=True, slots=True, repr=False)
class Embeddings(Record):
    """A vendor's answer to an embedding request; `vectors` are in input order."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage = Usage()
    cost_usd: float | None = None

    def _words(self) -> Iterable[Any]:
        return (self.model, _sizes(self.vectors), _tokens(self.usage), shown_cost(self.cost_usd))


@dataclass(frozen=True, slots=True, repr=False)
class Attempt(Record):
    """One call to one provider for a request.

    Attributes:
        provider: The provider's name.
        model: The requested model.
        failure: None for the attempt that answered, else why it did not.
        status: The vendor's HTTP status, if one came with a failure.
        latency_seconds: From sending to answer or failure.
        cost_usd: US dollars, if this attempt's price is known.
        last_resort: The provider was asked although its circuit was not closed or it was disabled,
            because no other was left.
        dropped: The parameters that were left out, because the model does not support them; only
            of an attempt that answered.
    """

    provider: str
    model: str
    failure: FailureKind | None
    status: int | None
    latency_seconds: float
    cost_usd: float | None = None
    last_resort: bool = False
    dropped: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Return whether this attempt answered."""
        return self.failure is None

    def _words(self) -> Iterable[Any]:
        yield from (self.provider, self.failure or "ok")
        yield "" if self.status is None else f"HTTP {self.status}"
        yield from (shown_cost(self.cost_usd), _duration(self.latency_seconds))


@dataclass(frozen=True, slots=True, repr=False)
class Origin(Record):
    """The caller of a request, for services that several callers share.

    Attributes:
        request_id: Names the request in logs and events; "" takes a new one.
        partition: Answers are shared (cached, coalesced) only within a partition, and partitions
            take turns when their requests wait for a free slot.
        headers: Sent to the vendor (`traceparent`, `X-Request-ID`, ...). Not sent are credentials
            (`Authorization`, `x-api-key`, ...), headers of the transport (`Host`, `Content-Type`,
            ...), and those in the provider's own `headers`. They are ignored when requests are
            compared.
        on_cost: Called with the US dollars of each call made for the request, when the call ends,
            including failed ones, hedges that lost and calls that the caller cancelled. None if the
            price is not known. Calls that others have joined may end after the request.
        tenant: Names the caller in logs and events, in front of the agent.
        needs_price: Whether only providers with a known price may be called, because the caller has
            a budget.
        find_session: Whether a request that names no session gets one, from the beginning of its
            conversation. `prompt_cache_key` or `metadata.user_id` then decide among equals.
    """

    request_id: str = ""
    partition: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    on_cost: Callable[[float | None], None] | None = field(default=None, repr=False, compare=False)
    tenant: str = ""
    find_session: bool = False
    needs_price: bool = False

    def _words(self) -> Iterable[Any]:
        return (self.tenant, self.request_id)


APPLICATION = Origin()
"""The application itself."""


@dataclass(frozen=True, slots=True, repr=False)
class ChatRequest(Record):
    """A validated request, the same for every provider. Its other fields are those of `Origin`.

    Attributes:
        messages: OpenAI chat messages, copied.
        model: A provider's model, name or alias; None makes every provider a candidate.
        params: The other OpenAI chat parameters, unchanged.
        timeout: Seconds for the whole request; None takes the setting.
        agent: Selects one of `agent_ttls`, and labels metrics; never sent.
        cache: See `CacheMode`.
        cache_ttl: Seconds this answer may be cached; None takes the setting.
        response_model: A pydantic model class that the answer must parse as.
        hedge: Whether a second provider may be asked while the first is slow; None takes the
            setting.
        background: Wait for a free slot behind all requests that are not in the background.
        size: Bytes of the messages and parameters as JSON; 0 if not counted.
        native: The request as its caller wrote it, if that was in another protocol.
        session: Names the conversation; its turns stay at one provider while that is well.
        find_session: As in `Origin`; False if `session` is given.
        prompt_cache_key: Names a prompt that several conversations share (`prompt_cache_key`,
            `metadata.user_id`); with `find_session` it decides among equal providers.
        needs: What a model must be able to do to serve it.
    """

    messages: tuple[Mapping[str, Any], ...]
    model: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    agent: str | None = None
    cache: CacheMode = True
    cache_ttl: float | None = None
    response_model: type[Any] | None = None
    request_id: str = ""
    hedge: bool | None = None
    background: bool = False
    partition: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    on_cost: Callable[[float | None], None] | None = field(default=None, repr=False, compare=False)
    tenant: str = ""
    size: int = field(default=0, compare=False)
    native: NativeRequest | None = None
    session: str | None = None
    find_session: bool = False
    prompt_cache_key: str | None = None
    needs: frozenset[Capability] = frozenset()
    needs_price: bool = False

    def map_texts(self, change: Callable[[str], str]) -> ChatRequest:
        """Return the request with its texts changed; itself if none is.

        Texts are the contents of all messages with their text parts, and the arguments of tool
        calls (JSON, mostly), and those of `native`. Images, files and signed thinking stay.

        Args:
            change: Returns the text to put in the place of a text.
        """
        messages = tuple(_with_texts(message, change) for message in self.messages)
        native = None if self.native is None else self.native.map_texts(change)
        if messages == self.messages and native is self.native:
            return self
        return replace(self, messages=messages, native=native)

    def _words(self) -> Iterable[Any]:
        return (self.request_id, f"{len(self.messages)} messages", self.model, *self.params)


_THINKS_BY = frozenset({"output_config", "reasoning", "reasoning_effort", "thinking"})
_DOES_NOT_THINK = (None, "disabled", "none", {"type": "disabled"}, {"effort": "none"})


def asks_to_think(params: Mapping[str, Any], native: NativeRequest | None = None) -> bool:
    """Return whether a request asks the model to think, which may take minutes without a word."""
    if _THINKS_BY.isdisjoint(params) and (native is None or _THINKS_BY.isdisjoint(native.body)):
        return False  # almost every request
    holders = (params,) if native is None else (params, native.body)
    return any(
        name in holder and holder[name] not in _DOES_NOT_THINK
        for holder in holders
        for name in _THINKS_BY
    )


@dataclass(frozen=True, slots=True, repr=False)
class EmbeddingRequest(Record):
    """A validated request to embed texts, or texts as tokens. Attributes as in `ChatRequest`."""

    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    model: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    request_id: str = ""
    partition: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    on_cost: Callable[[float | None], None] | None = field(default=None, repr=False, compare=False)
    tenant: str = ""
    needs_price: bool = False
    agent: str | None = None
    cache: CacheMode = False
    cache_ttl: float | None = None

    def map_texts(self, change: Callable[[str], str]) -> EmbeddingRequest:
        """Return the request with its texts changed; itself if none is. Tokens stay.

        Args:
            change: Returns the text to put in the place of a text.
        """
        texts = tuple([change(text) for text in self.inputs if isinstance(text, str)])
        return self if not texts or texts == self.inputs else replace(self, inputs=texts)

    def _words(self) -> Iterable[Any]:
        return (self.request_id, f"{len(self.inputs)} inputs", self.model, *self.params)


@dataclass(frozen=True, slots=True, repr=False)
class ChatResponse(Record, Generic[P_co]):
    """An answer, with its provider, its attempts and its price.

    Attributes:
        completion: The vendor's answer.
        provider: Name of the provider that answered, also for a cached answer.
        cached: Whether it came from the cache, without a call to a vendor.
        stale: Whether it came from the cache after it expired, because every provider failed.
        coalesced: Whether it is shared with an identical request that was already in flight.
        attempts: Every call made for this request, in the order in which they ended; the last one
            answered.
        resumed: Whether another provider continued it after a stream broke.
        latency_seconds: From `chat()` to the answer; for a stream, to its end.
        first_content_seconds: For a stream: to its first content.
        parsed: An instance of the pydantic model given as `response_format`; None without one. It
            is also None if the model refused or called tools instead: see `choices`, `tool_calls`.
        request_id: As in logs and events.
        loading_seconds: The part of `latency_seconds` for which the request waited for litellm to
            load and for clients to be made; not part of any attempt's `latency_seconds`. 0.0 once
            that is done, and for cached and coalesced answers.
    """

    completion: Completion
    provider: str
    cached: bool = False
    stale: bool = False
    coalesced: bool = False
    attempts: tuple[Attempt, ...] = ()
    resumed: bool = False
    latency_seconds: float = 0.0
    first_content_seconds: float | None = None
    parsed: P_co = None  # type: ignore[assignment]  # as without a model
    request_id: str = ""
    loading_seconds: float = 0.0

    def map_texts(self, change: Callable[[str], str]) -> Self:
        """Return the answer with its texts changed; itself if none is.

        Texts are text, visible reasoning, refusal and the arguments of tool calls. Signed thinking
        whose text would change is left out, since its signature is of the text as it was. Sources
        and speech stay. `completion.native` is left out if a text in it would change.

        Args:
            change: Returns the text to put in the place of a text.
        """
        choices = tuple([_with_content(choice, change) for choice in self.choices])
        native = self.completion.native
        if native is not None and native.body:
            body = json.loads(native.body)
            native = native if _with_native_texts(body, change) == body else None
        if choices == self.choices and native is self.completion.native:
            return self
        completion = replace(self.completion, choices=choices, native=native)
        return replace(self, completion=completion)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All `n` answers."""
        return self.completion.choices

    @property
    def text(self) -> str:
        """The first answer's text; empty if the model only calls tools."""
        return self.completion.choices[0].text

    @property
    def finish_reason(self) -> str | None:
        """Why the first answer ended: "stop", "length", "tool_calls", "content_filter", ..."""
        return self.completion.choices[0].finish_reason

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The first answer's tool calls."""
        return self.completion.choices[0].tool_calls

    @property
    def reasoning(self) -> str | None:
        """The first answer's visible reasoning, if the vendor shows any."""
        return self.completion.choices[0].reasoning

    @property
    def thinking_blocks(self) -> list[dict[str, Any]]:
        """The first answer's signed thinking blocks (Anthropic); a fresh list."""
        return self.completion.choices[0].thinking_blocks

    @property
    def images(self) -> tuple[str, ...]:
        """Pictures of the first answer: URLs, mostly `data:` ones with the picture itself."""
        return self.completion.choices[0].images

    @property
    def audio(self) -> Audio | None:
        """The first answer's speech."""
        return self.completion.choices[0].audio

    @property
    def sources(self) -> dict[str, Any]:
        """Sources of the first answer's text; a fresh dict.

        The keys are the vendor's own: `annotations` (OpenAI, Gemini), `citations` (Anthropic,
        Perplexity), `search_results`, `grounding_metadata` (Gemini), `references`, ...
        """
        own = self.completion.choices[0].sources_json
        return _parsed(self.completion.sources_json) | _parsed(own)

    @property
    def model(self) -> str:
        """The model that answered, as the vendor names it."""
        return self.completion.model

    @property
    def usage(self) -> Usage:
        """Tokens of the call that produced this answer (also when it is cached)."""
        return self.completion.usage

    @property
    def cost_usd(self) -> float | None:
        """US dollars spent on this answer: 0.0 if cached or coalesced, None if not known."""
        return 0.0 if self.cached or self.coalesced else self.completion.cost_usd

    def to_openai(self) -> dict[str, Any]:
        """Return the answer as an OpenAI `chat.completion` object; a fresh dict each time."""
        completion = self.completion
        choices: list[dict[str, Any]] = []
        for choice in completion.choices:
            logprobs = json.loads(choice.logprobs_json) if choice.logprobs_json else None
            choices.append(
                {
                    "index": len(choices),
                    "finish_reason": choice.finish_reason,
                    "logprobs": logprobs,
                    "message": _openai_message(choice),
                }
            )
        answer = {
            "id": completion.id,
            "object": "chat.completion",
            "created": completion.created,
            "model": completion.model,
            "choices": choices,
            "usage": openai_usage(completion.usage),
        }
        if not (
            completion.system_fingerprint is completion.service_tier is None
            and not completion.sources_json
        ):
            answer |= openai_beside(completion)
        return answer

    def _words(self) -> Iterable[Any]:
        states = ("cached", "stale", "coalesced", "resumed")
        yield from (self.provider, *[state for state in states if getattr(self, state)])
        if self.finish_reason != "stop":
            yield self.finish_reason
        yield from (_tokens(self.usage), shown_cost(self.cost_usd))
        yield _duration(self.latency_seconds)
        yield f"({_duration(self.loading_seconds)} loading)" if self.loading_seconds >= 0.05 else ""

    def _values(self) -> Iterator[tuple[str, Any]]:
        """Yield the first answer, then what is known of it, then all answers."""
        for name in ("text", "parsed", "finish_reason", "tool_calls", "provider", "model"):
            yield name, getattr(self, name)
        yield from self._fields_but("completion", "parsed", "provider")
        yield from (("usage", self.usage), ("cost_usd", self.cost_usd))
        yield from self.completion._fields_but("native", "cost_usd", "model", "usage")  # noqa: SLF001


@dataclass(frozen=True, slots=True, repr=False)
class Opening(Record):
    """What is known of a streamed answer at its first chunk. The rest is as in `ChatResponse`.

    Attributes:
        provider: Name of the provider that answers.
        model: The model that answers, as the vendor names it.
        id: The vendor's name for the answer; "" if not known yet.
        created: Unix time in seconds, from the vendor; else of the first chunk.
        attempts: Calls made so far, including the one that answers; 0 from the cache.
    """

    provider: str
    model: str
    id: str = ""
    created: int = 0
    attempts: int = 0
    cached: bool = False
    stale: bool = False

    def _words(self) -> Iterable[Any]:
        return (self.provider, self.model, "cached" if self.cached else "")


@dataclass(frozen=True, slots=True, repr=False)
class EmbeddingResponse(Record):
    """Vectors in input order, and their provider. Attributes as in `ChatResponse`."""

    embeddings: Embeddings
    provider: str
    attempts: tuple[Attempt, ...] = ()
    latency_seconds: float = 0.0
    request_id: str = ""
    loading_seconds: float = 0.0
    cached: bool = False

    @property
    def vectors(self) -> Sequence[tuple[float, ...]]:
        """One vector for each input, in order."""
        return self.embeddings.vectors

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.embeddings.model

    @property
    def usage(self) -> Usage:
        """Tokens the vendor counted."""
        return self.embeddings.usage

    @property
    def cost_usd(self) -> float | None:
        """US dollars spent on these vectors: 0.0 if cached, None if not known."""
        return 0.0 if self.cached else self.embeddings.cost_usd

    def _words(self) -> Iterable[Any]:
        yield from (self.provider, _sizes(self.vectors), _tokens(self.usage))
        yield from (shown_cost(self.cost_usd), _duration(self.latency_seconds))

    def _values(self) -> Iterator[tuple[str, Any]]:
        yield from self._fields_but("embeddings")
        for name in ("model", "vectors", "usage", "cost_usd"):
            yield name, getattr(self, name)


@dataclass(frozen=True, slots=True, repr=False)
class _BatchItem(Record, Generic[P_co]):
    """The result of one request of a batch: a response or an error.

    Attributes:
        index: Position in the input, from 0; unique within a batch.
        id: The caller's id, not necessarily unique; else the index as text.
        request: As the caller gave it.
        response: The answer, if there is one.
        error: Otherwise the error: a `GatewayError`, except for defects.
        attempts: The calls that the answer took. An error has `causes` instead.
        latency_seconds: From reading the request to its end, including all waiting.
    """

    index: int
    id: str
    request: Any = field(repr=False)
    response: ChatResponse[Any] | None = field(default=None, repr=False)
    error: Exception | None = None
    attempts: tuple[Attempt, ...] = field(default=(), repr=False)
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        kind = FailedItem if self.response is None else AnsweredItem
        object.__setattr__(self, "__class__", kind)  # also of one that `replace` makes

    @property
    def ok(self) -> bool:
        """Return whether it was answered."""
        return self.response is not None

    def _words(self) -> Iterable[Any]:
        yield from (self.index, "" if self.id == str(self.index) else self.id)
        yield type(self.error).__name__ if self.response is None else self.response.provider
        yield _duration(self.latency_seconds)

    def _values(self) -> Iterator[tuple[str, Any]]:
        yield from self._fields_but()
        yield "ok", self.ok


_BatchItem.__name__ = _BatchItem.__qualname__ = "BatchItem"


class AnsweredItem(_BatchItem[P_co]):
    """The answer to one request of a batch. Attributes are as in `BatchItem`."""

    __slots__ = ()
    if TYPE_CHECKING:
        response: ChatResponse[P_co]
        error: None
        ok: Literal[True]


class FailedItem(_BatchItem[Any]):
    """The error of one request of a batch. Attributes are as in `BatchItem`."""

    __slots__ = ()
    if TYPE_CHECKING:
        response: None
        error: Exception
        ok: Literal[False]


BatchItem = AnsweredItem[P_co] | FailedItem
"""The result of one request of a batch. At run time also the base of both."""
if not TYPE_CHECKING:
    BatchItem = _BatchItem


@dataclass(frozen=True, slots=True, repr=False)
class BatchProgress(Record):
    """The progress of a batch.

    Attributes:
        done: Requests that have ended.
        failed: Requests that ended in an error.
        cached: Requests that were answered from the cache.
        total: The number of requests, if the input has a length.
        usage: Tokens of the answers so far; cached and coalesced ones took none.
        cost_usd: US dollars of the answers so far, as far as prices are known.
    """

    done: int
    failed: int
    cached: int
    total: int | None
    usage: Usage
    cost_usd: float

    def _words(self) -> Iterable[Any]:
        of = "" if self.total is None else f" of {self.total}"
        yield f"{self.done}{of} done"
        yield from (f"{self.failed} failed", f"{self.cached} cached")
        yield from (_tokens(self.usage), shown_cost(self.cost_usd))


ANSWER_COLUMNS = {
    "answer": "string",
    "error": "string",
    "error_message": "string",
    "provider": "string",
    "model": "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "cost_usd": "float64",
    "latency_seconds": "float64",
    "cached": "bool",
}
"""The columns of an answer in a table, and their types."""

_COLUMNS_WITHOUT_ERRORS = [name for name in ANSWER_COLUMNS if not name.startswith("error")]


def answer_row(*values: Any) -> dict[str, Any]:
    """Return an answer's row of a table, of its values in the order of `ANSWER_COLUMNS`."""
    return dict(zip(_COLUMNS_WITHOUT_ERRORS, values, strict=True))


def error_row(code: str, message: str) -> dict[str, Any]:
    """Return the row of an error likewise."""
    return {"error": code, "error_message": message}


@dataclass(frozen=True, slots=True, repr=False)
class BatchResult(Record, Generic[P_co]):
    """The results of all requests of a batch.

    Attributes:
        items: The results, in the order of the input.
        usage: Tokens of all answers; cached and coalesced ones took none.
        cost_usd: US dollars of all answers, as far as prices are known.
        complete: Whether the input was read to its end. A timeout leaves the rest of a generator
            unread, and an error of the input itself ends it.
        input_error: The exception of the input, if it raised; all requests before are in `items`.
        fields: The fields of answers by the JSON schema of all requests, if they had one.
        responses: The responses, in order.
        failed: The items with an error, in order.
        errors: Their errors.
    """

    items: tuple[BatchItem[P_co], ...] = field(repr=False)
    usage: Usage = Usage()
    cost_usd: float = 0.0
    complete: bool = True
    input_error: Exception | None = None
    fields: tuple[str, ...] = field(default=(), repr=False)
    responses: tuple[ChatResponse[P_co], ...] = field(init=False, repr=False)
    failed: tuple[FailedItem, ...] = field(init=False, repr=False)
    errors: tuple[Exception, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Once, and not at each access, because of loops with `result.responses[i]`.
        responses = tuple(item.response for item in self.items if item.response is not None)
        errors = tuple(item.error for item in self.items if item.error is not None)
        object.__setattr__(self, "responses", responses)
        object.__setattr__(self, "failed", tuple(i for i in self.items if i.error is not None))
        object.__setattr__(self, "errors", errors)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[BatchItem[P_co]]:
        return iter(self.items)

    def texts(self) -> list[str | None]:
        """Return the text of each answer, in the order of the input; None for an error.

        `df["answer"] = result.texts()` puts them into a pandas frame, and
        `df.with_columns(pl.Series("answer", result.texts()))` into one of polars.
        """
        return [None if item.response is None else item.response.text for item in self.items]

    def to_columns(self, prefix: str = "") -> dict[str, list[Any]]:
        """Return the results as columns, in the order of the input, for a data frame.

        They are those of a table of `aigateway batch`, without `id`. With a pydantic model or a
        JSON schema as `response_format` each field of the answer is a column, too: "answer.city".

        Args:
            prefix: Stands before each name, for a frame that has such a column itself.
        """
        rows = [_result_row(item, self.fields) for item in self.items]
        answer, *rest = ANSWER_COLUMNS
        fields = dict.fromkeys(f"answer.{name}" for name in self.fields)
        fields |= dict.fromkeys(name for row in rows for name in row if name not in ANSWER_COLUMNS)
        names = (answer, *fields, *rest)
        return {prefix + name: [row.get(name) for row in rows] for name in names}

    def raise_for_errors(self) -> None:
        """Raise if there was any error.

        Raises:
            ExceptionGroup: All errors, in order; the input's own is the last.
        """
        errors = self.errors
        if self.input_error is not None:
            errors = (*errors, self.input_error)
        if errors:
            what = f"{len(self.errors)} of {len(self.items)} requests of the batch failed"
            if self.input_error is not None:
                what += ", and its input raised an error"
            raise ExceptionGroup(what, errors)

    def _words(self) -> Iterable[Any]:
        yield f"{len(self.responses)} of {len(self.items)} answered"
        yield f"(first error: {error_words(self.errors[0])[0]})" if self.errors else ""
        yield "" if self.complete else "incomplete"
        yield from (_tokens(self.usage), shown_cost(self.cost_usd))

    def _values(self) -> Iterator[tuple[str, Any]]:
        return self._fields_but("fields", "responses", "failed", "errors")


def _result_row(item: BatchItem, schema: Sequence[str]) -> dict[str, Any]:
    response = item.response
    if response is None:
        return error_row(*error_words(item.error or GatewayError()))
    dump = getattr(response.parsed, "model_dump", None)
    fields = {} if dump is None else dump(mode="json", by_alias=True)
    if schema and dump is None:
        with contextlib.suppress(ValueError, RecursionError):  # it may be cut, or a refusal
            found = json.loads(response.text)
            fields = {name: found.get(name) for name in schema} if isinstance(found, dict) else {}
    return {f"answer.{name}": value for name, value in fields.items()} | answer_row(
        response.text,
        response.provider,
        response.model,
        response.finish_reason,
        response.usage.prompt_tokens,
        response.usage.completion_tokens,
        response.cost_usd,
        response.latency_seconds,
        response.cached or response.coalesced,
    )


def _tokens(usage: Usage) -> str:
    return f"{usage.prompt_tokens}+{usage.completion_tokens} tokens"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _sizes(vectors: Sequence[Sequence[float]]) -> str:
    return f"{len(vectors)} vectors of {len(vectors[0]) if vectors else 0}"


def _said(part: Choice | Chunk) -> Iterator[Any]:
    """Describe a part of an answer without its words."""
    yield f"{len(part.text)} characters" if part.text else ""
    yield f"{len(part.tool_calls)} tool calls" if part.tool_calls else ""
    for name in ("reasoning", "refusal", "images", "audio"):
        yield name if getattr(part, name) else ""
    yield part.finish_reason


def _with_texts(message: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a message with its texts changed."""
    changed = dict(message)
    for name in ("content", "reasoning_content", "refusal"):
        said = message.get(name)
        if isinstance(said, str):
            changed[name] = change(said)
        elif isinstance(said, list):
            changed[name] = [_with_text(part, ("text", "refusal"), change) for part in said]
    if isinstance(message.get("tool_calls"), list):
        changed["tool_calls"] = [
            {n: _with_text(part, ("arguments", "input"), change) for n, part in call.items()}
            for call in message["tool_calls"]
        ]
    return changed


def _with_text(part: Any, names: Sequence[str], change: Callable[[str], str]) -> Any:
    if not isinstance(part, Mapping):
        return part
    texts = {n: change(part[n]) for n in names if isinstance(part.get(n), str)}
    return {**part, **texts} if texts else part


_NO_TEXTS = frozenset(
    {
        "call_id",
        "data",
        "encrypted_content",
        "file_data",
        "file_url",
        "id",
        "image_url",
        "media_type",
        "model",
        "name",
        "role",
        "signature",
        "thinking",
        "tool_use_id",
        "type",
        "url",
    }
)
"""Fields of other protocols whose strings are no texts; in the inputs of tools they are."""


def _with_native_texts(
    value: Any, change: Callable[[str], str], no_texts: frozenset[str] = _NO_TEXTS
) -> Any:
    """Return what another protocol says, with its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        changed = {}
        for name, part in value.items():
            if name == "input" and isinstance(part, Mapping):
                changed[name] = _with_native_texts(part, change, frozenset())
            elif isinstance(part, str) and name in no_texts:
                changed[name] = part
            else:
                changed[name] = _with_native_texts(part, change, no_texts)
        return changed
    if isinstance(value, list):
        return [_with_native_texts(part, change, no_texts) for part in value]
    return value


def _with_content(said: S, change: Callable[[str], str]) -> S:
    """Return a part of an answer with its texts changed."""
    thinking = said.thinking_json
    if thinking is not None:
        blocks = _blocks(thinking)
        signed = [b for b in blocks if not (text := b.get("thinking")) or change(text) == text]
        if len(signed) < len(blocks):
            thinking = json.dumps(signed) if signed else None
    return replace(
        said,
        text=said.text and change(said.text),
        reasoning=said.reasoning and change(said.reasoning),
        refusal=said.refusal and change(said.refusal),
        tool_calls=tuple(
            [replace(call, arguments=change(call.arguments)) for call in said.tool_calls]
        ),
        thinking_json=thinking,
    )


def _openai_message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text
        or (None if choice.tool_calls or choice.refusal or choice.audio else ""),
        "refusal": choice.refusal,
    }
    if choice.reasoning is not None:
        message["reasoning_content"] = choice.reasoning
    if (
        choice.images
        or choice.audio
        or choice.sources_json
        or choice.thinking_json is not None
        or choice.thought_signatures
    ):
        message.update(openai_media(choice))
    if choice.tool_calls:
        message["tool_calls"] = list(map(openai_call, choice.tool_calls))
    return message


def openai_call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call as in an OpenAI message."""
    written = {"name": call.name, TOOL_INPUTS[call.type]: call.arguments}
    return {"id": call.id, "type": call.type, call.type: written, **openai_signature(call)}


def openai_delta(chunk: Chunk) -> dict[str, Any]:
    """Return what a chunk adds, as in an OpenAI chunk."""
    delta: dict[str, Any] = {}
    if chunk.text:
        delta["content"] = chunk.text
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if (
        chunk.images
        or chunk.audio
        or chunk.sources_json
        or chunk.thinking_json
        or chunk.thought_signatures
    ):
        delta.update(openai_media(chunk))
    if chunk.refusal:
        delta["refusal"] = chunk.refusal
    if chunk.tool_calls:
        delta["tool_calls"] = [_openai_piece(call) for call in chunk.tool_calls]
    return delta


def _openai_piece(call: ToolCallDelta) -> dict[str, Any]:
    """Return a piece of a tool call, without empty fields: clients join what they get."""
    named = {"name": call.name} if call.name else {}
    begun = {"id": call.id, "type": call.type} if call.id else {}
    piece = {**named, TOOL_INPUTS[call.type]: call.arguments}
    return {"index": call.index, **begun, call.type: piece, **openai_signature(call)}


def openai_signature(call: ToolCall | ToolCallDelta) -> dict[str, Any]:
    """Return the fields of a tool call beside its function: Gemini's signature, as in litellm."""
    if call.thought_signature is None:
        return {}
    return {"provider_specific_fields": {"thought_signature": call.thought_signature}}


def openai_media(said: Choice | Chunk) -> dict[str, Any]:
    """Return the other fields of an OpenAI message or delta, beside text and tool calls.

    Pictures, speech, sources, and what must be sent back to the vendor in the next turn.
    """
    fields = _parsed(said.sources_json) if said.sources_json else {}
    if said.thinking_json is not None:
        fields["thinking_blocks"] = said.thinking_blocks
    if said.thought_signatures:
        signatures = list(said.thought_signatures)
        fields["provider_specific_fields"] = {"thought_signatures": signatures}
    if said.images:
        fields["images"] = [
            {"index": index, "type": "image_url", "image_url": {"url": url}}
            for index, url in enumerate(said.images)
        ]
    if said.audio is not None:
        required = {"data", "transcript", "expires_at"} if isinstance(said, Choice) else ()
        fields["audio"] = {n: v for n, v in asdict(said.audio).items() if v or n in required}
    return fields


def openai_beside(completion: Completion) -> dict[str, Any]:
    """Return the other fields of an OpenAI answer, beside choices and usage, if known."""
    fields = _parsed(completion.sources_json) if completion.sources_json else {}
    if completion.system_fingerprint is not None:
        fields["system_fingerprint"] = completion.system_fingerprint
    if completion.service_tier is not None:
        fields["service_tier"] = completion.service_tier
    return fields


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Return `usage` in OpenAI's form."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _blocks(json_list: str | None) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = json.loads(json_list) if json_list else []
    return blocks


def _parsed(json_object: str | None) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(json_object) if json_object else {}
    return parsed


# fmt: off
CHAT_PARAMS = frozenset({
    # OpenAI's own, of its chat.completions.create, except those that the gateway sets itself.
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "modalities", "n", "parallel_tool_calls", "prediction",
    "presence_penalty", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort",
    "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "temperature",
    "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    # Other vendors' parameters that litellm translates.
    "cache_control", "safety_settings", "thinking", "top_k",
    # For everything that is not named here.
    "extra_body", "extra_headers",
})
# fmt: on
"""The OpenAI parameters of a chat that `chat` passes on to a vendor."""
