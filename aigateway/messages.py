"""The records that travel: a request in, an answer out.

All of them are frozen and hold only immutable values, so a cached answer can be handed to a
thousand callers and none can change it for the next. Nothing here validates or sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aigateway.errors import FailureKind

__all__ = [
    "APPLICATION",
    "CHAT_PARAMS",
    "Attempt",
    "Audio",
    "BatchItem",
    "BatchProgress",
    "BatchResult",
    "CacheMode",
    "ChatRequest",
    "ChatResponse",
    "Choice",
    "Chunk",
    "Completion",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "Embeddings",
    "Opening",
    "Origin",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "openai_beside",
    "openai_media",
    "openai_signature",
    "openai_usage",
]


CacheMode = Literal[True, False, "refresh"]
"""`True` reads and fills the cache, `False` does neither, `"refresh"` only fills it."""


@dataclass(frozen=True, slots=True)
class Usage:
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
"""What OpenAI calls the input of a tool of each type."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the model wants called.

    Attributes:
        id: The result names it.
        name: The tool's.
        arguments: JSON text, just as the model wrote it; free text where `type` is "custom".
        type: "function", or "custom" for one of OpenAI's custom tools.
    """

    id: str
    name: str
    arguments: str
    type: str = "function"
    thought_signature: str | None = field(default=None, repr=False)
    """Gemini's, which it wants back with the call."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. `id` and `name` come whole, with the first piece of each call.

    Attributes:
        index: Which of the answer's tool calls, from 0.
        id: As in `ToolCall`; empty in later pieces.
        name: Likewise.
        arguments: The next piece of the JSON text, or of a custom tool's input.
        type: As in `ToolCall`, in every piece.
        thought_signature: As in `ToolCall`; it comes whole.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    type: str = "function"
    thought_signature: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Audio:
    """Speech, or a piece of it.

    Attributes:
        id: Names it in a later turn, at OpenAI: `{"role": "assistant", "audio": {"id": ...}}`.
            "" where the vendor gives none; `to_openai()` leaves it out then.
        data: Base64, in the format that was asked for; in a chunk the next piece.
        transcript: What is said; in a chunk the next piece.
        expires_at: Unix time in seconds until which `id` is known; 0 where the vendor says none.
    """

    id: str = ""
    data: str = field(default="", repr=False)
    transcript: str = ""
    expires_at: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer, as it comes. Its fields say what is added, not what there is.

    Attributes:
        text: The next piece of the text; often a word.
        tool_calls: The next pieces of tool calls.
        reasoning: The next piece of visible reasoning.
        refusal: The next piece of a refusal.
        finish_reason: Why the answer ended; only on its last chunk.
        usage: Tokens as the vendor counted them; only on the stream's last chunk.
        index: Which of the `n` answers this belongs to.
        restarted: The answer begins anew with the chunks that follow; forget what came before.
        images: Pictures that came: see `Choice`. Each comes whole.
        audio: The next piece of speech.
        sources_json: Further sources of the text: see `Choice`.
        thinking_json: Further blocks of thinking: see `Choice`. Each comes whole, at its end.
        thought_signatures: Further signatures: see `Choice`.
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

    @property
    def thinking_blocks(self) -> list[dict[str, Any]]:
        """Further blocks of thinking, each whole; a fresh list."""
        return _blocks(self.thinking_json)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the `n` answers."""

    text: str = ""
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    refusal: str | None = None
    logprobs_json: str | None = None
    """The OpenAI `logprobs` object as JSON text (text, because text cannot be changed)."""
    images: tuple[str, ...] = field(default=(), repr=False)
    """Pictures that the model made: URLs, mostly `data:` ones that hold the picture itself."""
    audio: Audio | None = None
    """What the model speaks."""
    sources_json: str | None = field(default=None, repr=False)
    """Where the text comes from, as a JSON object in the vendor's own words: `annotations` (OpenAI,
    Gemini), `citations` (Anthropic), `grounding_metadata` (Gemini), `references` (Mistral), ..."""
    thinking_json: str | None = field(default=None, repr=False)
    """Anthropic's signed blocks of thinking, as JSON text: it wants them back, exactly."""
    thought_signatures: tuple[str, ...] = field(default=(), repr=False)
    """Gemini's signatures of the text; those of tool calls are in `ToolCall`."""

    @property
    def thinking_blocks(self) -> list[dict[str, Any]]:
        """The blocks of `thinking_json`; a fresh list."""
        return _blocks(self.thinking_json)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a vendor answered, in one form for all vendors."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage = Usage()
    cost_usd: float | None = None
    """Price of this call in US dollars; None where the model's price is not known."""
    created: int = 0
    """Unix time in seconds, as the vendor says."""
    system_fingerprint: str | None = None
    """Of the OpenAI wire: which configuration of the model answered."""
    service_tier: str | None = None
    """Of the OpenAI wire: which tier served the request; prices depend on it."""
    sources_json: str | None = field(default=None, repr=False)
    """Sources of all choices (Perplexity's `citations`, `search_results`), as in `Choice`."""

    def price(self, cost_usd: float | None) -> Self:
        """Note the price of an answer that has just been read, and that nobody else holds yet."""
        object.__setattr__(self, "cost_usd", cost_usd)
        return self


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a vendor answered to an embedding request; `vectors` are in input order."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage = Usage()
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to one provider for a request.

    Attributes:
        provider: The provider's name.
        model: The model asked.
        failure: None for the attempt that answered, else why it did not.
        status: The vendor's HTTP status where one came with a failure.
        latency_seconds: From sending to answer or failure.
        cost_usd: US dollars, where this attempt's price is known.
        last_resort: The provider was asked although its circuit was not closed, or although it
            was disabled, since no other was left.
        dropped: The parameters that were left out, since the model does not take them; of an
            attempt that answered.
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
        """Whether this attempt answered."""
        return self.failure is None


@dataclass(frozen=True, slots=True)
class Origin:
    """On whose behalf a request is made. A service that many share says so; nobody else need.

    Attributes:
        request_id: Names the request in logs and events; "" takes a fresh one.
        partition: Answers are shared (cached, coalesced) only among requests of the same one, and
            partitions whose requests wait for a free place get it in turn.
        headers: Go to the vendor (`traceparent`, `X-Request-ID`, ...), but for those that are not
            the caller's to set: who asks (`Authorization`, `x-api-key`, ...), how it is sent
            (`Host`, `Content-Type`, ...), and what the provider has in its own `headers`. They do
            not count when requests are compared.
        on_cost: Gets the US dollars of each call that was made for the request, when the call ends:
            of failed ones, of hedges that lost, and of those that the caller left, too. None where
            the price is not known. Calls that others joined may end after the request.
        tenant: Names the one who asks in logs and events, before the agent if there is one.
    """

    request_id: str = ""
    partition: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    on_cost: Callable[[float | None], None] | None = field(default=None, repr=False, compare=False)
    tenant: str = ""


APPLICATION = Origin()
"""The application itself asks."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the caller asked once: validated, and the same whichever provider gets it.

    Attributes:
        messages: OpenAI chat messages. They are the gateway's own copy.
        model: A provider's model, name or alias; None leaves every provider a candidate.
        params: The other OpenAI chat parameters, untouched.
        timeout: Seconds for the whole request; None takes the setting.
        agent: Which of `agent_ttls` applies, and a label in metrics; never sent.
        cache: See `CacheMode`.
        cache_ttl: Seconds this answer may be remembered; None takes the setting.
        response_model: A pydantic model class the answer must parse as.
        request_id: Names this request in logs and events.
        hedge: Whether a second provider may be asked while the first is slow; None takes the
            setting.
        background: It waits for a free place behind every request that is not in the background.
        partition: See `Origin`.
        headers: See `Origin`.
        on_cost: See `Origin`.
        tenant: See `Origin`.
        size: Bytes of the messages and parameters as JSON; 0 is not counted.
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


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or texts as tokens, to turn into vectors. Attributes as in `ChatRequest`."""

    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    model: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    request_id: str = ""
    partition: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    on_cost: Callable[[float | None], None] | None = field(default=None, repr=False, compare=False)
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class ChatResponse:
    """An answer, and who gave it, why, and for how much.

    Attributes:
        completion: The vendor's answer.
        provider: Name of the provider that answered (also for a cached answer).
        cached: Came from the cache: no vendor was called for it.
        stale: Came from the cache after its time, because every provider failed.
        coalesced: Shared with an identical request that was already in flight.
        attempts: Every call made for this request, in the order of their ends; the last one
            answered.
        resumed: Put together from a stream that broke and what another provider added to it.
        latency_seconds: From `chat()` to the answer; for a stream, to its end.
        first_content_seconds: For a stream: to its first content.
        parsed: An instance of the pydantic model given as `response_format`, else None.
        request_id: As in logs and events.
        loading_seconds: How much of `latency_seconds` the request waited for litellm to load and
            for its providers' clients to be made: 0.0 once that is done, for cached answers, and
            for coalesced ones. No attempt's `latency_seconds` has it.
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
    parsed: Any = None
    request_id: str = ""
    loading_seconds: float = 0.0

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All `n` answers."""
        return self.completion.choices

    @property
    def text(self) -> str:
        """The first answer's text; empty when the model only calls tools."""
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
        """The first answer's visible reasoning, where the vendor shows any."""
        return self.completion.choices[0].reasoning

    @property
    def thinking_blocks(self) -> list[dict[str, Any]]:
        """The first answer's signed blocks of thinking (Anthropic); a fresh list."""
        return self.completion.choices[0].thinking_blocks

    @property
    def images(self) -> tuple[str, ...]:
        """Pictures of the first answer: URLs, mostly `data:` ones that hold the picture itself."""
        return self.completion.choices[0].images

    @property
    def audio(self) -> Audio | None:
        """What the first answer speaks."""
        return self.completion.choices[0].audio

    @property
    def sources(self) -> dict[str, Any]:
        """Where the first answer's text comes from, in the vendor's own words; a fresh dict.

        The keys are those that vendors use: `annotations` (OpenAI, Gemini), `citations`
        (Anthropic, Perplexity), `search_results`, `grounding_metadata` (Gemini), `references`, ...
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
        """US dollars spent on this answer: 0.0 for a cached or coalesced one, None if unpriced."""
        return 0.0 if self.cached or self.coalesced else self.completion.cost_usd

    def to_openai(self) -> dict[str, Any]:
        """The answer as an OpenAI `chat.completion` object; a fresh dict at each call."""
        return {
            "id": self.completion.id,
            "object": "chat.completion",
            "created": self.completion.created,
            "model": self.completion.model,
            "choices": [
                {
                    "index": index,
                    "finish_reason": choice.finish_reason,
                    "logprobs": json.loads(choice.logprobs_json) if choice.logprobs_json else None,
                    "message": _openai_message(choice),
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": openai_usage(self.usage),
            **openai_beside(self.completion),
        }


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known of a streamed answer when its first chunk comes.

    Attributes:
        provider: Name of the provider that answers.
        model: The model that answers, as the vendor names it.
        id: As the vendor names the answer; "" where it has not said.
        created: Unix time in seconds, as the vendor says; 0 where it has not said.
        attempts: Calls made so far, the one that answers included; 0 from the cache.
        cached: As in `ChatResponse`.
        stale: Likewise.
    """

    provider: str
    model: str
    id: str = ""
    created: int = 0
    attempts: int = 0
    cached: bool = False
    stale: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingResponse:
    """Vectors in input order, and who made them. Attributes as in `ChatResponse`."""

    embeddings: Embeddings
    provider: str
    attempts: tuple[Attempt, ...] = ()
    latency_seconds: float = 0.0
    request_id: str = ""
    loading_seconds: float = 0.0

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
        """US dollars; None where the model's price is not known."""
        return self.embeddings.cost_usd


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What became of one request of a batch. It has a response or an error.

    Attributes:
        index: Its place in the input, from 0. No two items of a batch share it.
        id: As the caller named it; else its index as text. It is the caller's: nobody sees to it
            that two items have different ones.
        request: As the caller gave it.
        response: The answer, if there is one.
        error: Else why not; a `GatewayError`, unless something is broken.
        attempts: The calls that the answer took. Of an error, `causes` says what each provider did.
        latency_seconds: From being taken from the input to its end, waiting included, also for
            providers that were away.
    """

    index: int
    id: str
    request: Any = field(repr=False)
    response: ChatResponse | None = field(default=None, repr=False)
    error: Exception | None = None
    attempts: tuple[Attempt, ...] = field(default=(), repr=False)
    latency_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.response is not None


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch has come.

    Attributes:
        done: Requests that are over, however they ended.
        failed: Those of them that ended in an error.
        cached: Those of them that were answered from the cache.
        total: How many there are, where the input says so.
        usage: Tokens of the answers so far; cached and coalesced ones took none.
        cost_usd: US dollars of the answers so far, as far as prices are known.
    """

    done: int
    failed: int
    cached: int
    total: int | None
    usage: Usage
    cost_usd: float


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of every request of a batch.

    Attributes:
        items: In the order of the input.
        usage: Tokens of all answers; cached and coalesced ones took none.
        cost_usd: US dollars of all answers, as far as prices are known.
        complete: Whether the input was read to its end. A timeout leaves the rest of a generator
            unread, and an error of the input itself ends it.
        input_error: What the input raised, if it did; every request before that is in `items`.
        responses: Those of the items that have one, in order.
        failed: The items that have an error, in order.
        errors: Their errors.
    """

    items: tuple[BatchItem, ...] = field(repr=False)
    usage: Usage = Usage()
    cost_usd: float = 0.0
    complete: bool = True
    input_error: Exception | None = None
    responses: tuple[ChatResponse, ...] = field(init=False, repr=False)
    failed: tuple[BatchItem, ...] = field(init=False, repr=False)
    errors: tuple[Exception, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Once, and not at each look: `result.responses[i]` in a loop is what people write.
        responses = tuple(item.response for item in self.items if item.response is not None)
        errors = tuple(item.error for item in self.items if item.error is not None)
        object.__setattr__(self, "responses", responses)
        object.__setattr__(self, "failed", tuple(i for i in self.items if i.error is not None))
        object.__setattr__(self, "errors", errors)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[BatchItem]:
        return iter(self.items)

    def raise_for_errors(self) -> None:
        """Raise if anything went wrong.

        Raises:
            ExceptionGroup: Of all errors, in order, as `asyncio.TaskGroup` raises them; that of
                the input itself is the last.
        """
        errors = self.errors
        if self.input_error is not None:
            errors = (*errors, self.input_error)
        if errors:
            what = f"{len(self.errors)} of {len(self.items)} requests of the batch failed"
            if self.input_error is not None:
                what += ", and its input raised an error"
            raise ExceptionGroup(what, errors)


def _openai_message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text
        or (None if choice.tool_calls or choice.refusal or choice.audio else ""),
        "refusal": choice.refusal,
    }
    if choice.reasoning is not None:
        message["reasoning_content"] = choice.reasoning
    message.update(openai_media(choice))
    if choice.tool_calls:
        message["tool_calls"] = list(map(openai_call, choice.tool_calls))
    return message


def openai_call(call: ToolCall) -> dict[str, Any]:
    """A tool call as an OpenAI message has it."""
    written = {"name": call.name, TOOL_INPUTS[call.type]: call.arguments}
    return {"id": call.id, "type": call.type, call.type: written, **openai_signature(call)}


def openai_signature(call: ToolCall | ToolCallDelta) -> dict[str, Any]:
    """What a tool call has beside its function: Gemini's signature, where litellm puts it."""
    if call.thought_signature is None:
        return {}
    return {"provider_specific_fields": {"thought_signature": call.thought_signature}}


def openai_media(said: Choice | Chunk) -> dict[str, Any]:
    """What an OpenAI message or delta has beside text and tool calls.

    Pictures, speech, sources, and what the vendor wants back in the next turn.
    """
    fields = _parsed(said.sources_json)
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
        audio = said.audio
        whole = isinstance(said, Choice)
        given = {
            "id": audio.id,
            "data": audio.data,
            "transcript": audio.transcript,
            "expires_at": audio.expires_at,
        }
        if not audio.id:
            del given["id"]
        fields["audio"] = given if whole else {name: v for name, v in given.items() if v}
    return fields


def openai_beside(completion: Completion) -> dict[str, Any]:
    """What an OpenAI answer has beside choices and usage, as far as the vendor said it."""
    fields = _parsed(completion.sources_json)
    if completion.system_fingerprint is not None:
        fields["system_fingerprint"] = completion.system_fingerprint
    if completion.service_tier is not None:
        fields["service_tier"] = completion.service_tier
    return fields


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Tokens as OpenAI counts them."""
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
# One name a line would be a page.
CHAT_PARAMS = frozenset({
    # OpenAI's own, from its chat.completions.create, except what the gateway decides itself.
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "modalities", "n", "parallel_tool_calls", "prediction",
    "presence_penalty", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort",
    "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "temperature",
    "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    # Other vendors' that litellm translates.
    "cache_control", "safety_settings", "thinking", "top_k",
    # The ways to send what is not named here.
    "extra_body", "extra_headers",
})
# fmt: on
