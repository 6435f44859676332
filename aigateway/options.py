"""What the calls of a gateway take by keyword: their names, types, units and defaults.

Each is written down once, here: checkers and editors read it from `Unpack[ChatOptions]`, notebooks
from `inspect.signature`, and the gateway itself from the names. None counts as not given.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict, Unpack, overload

from pydantic import BaseModel
from typing_extensions import TypeVar

from aigateway.errors import refuse
from aigateway.messages import BatchProgress, CacheMode, ChatResponse, Origin, P_co

__all__ = [
    "BatchOptions",
    "BoundChat",
    "CallOptions",
    "ChatOptions",
    "Concurrency",
    "EmbedOptions",
    "Frame",
    "Messages",
    "ModelParams",
    "Requests",
    "ResponseFormat",
    "Resume",
    "SettingsOverrides",
    "StreamOptions",
    "ToolRunOptions",
]

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel | None, default=None)
B = TypeVar("B", bound=BaseModel | None, default=Any)
"""As M, for batches: without a common `response_format`, each request may have its own."""

ResponseFormat = type[M] | Mapping[str, Any] | None
"""A pydantic model class, OpenAI's `response_format`, or a JSON schema of an object."""

Messages = Sequence[Mapping[str, Any]]
"""OpenAI chat messages."""

Concurrency = int | Literal["auto"]
"""Requests in flight at once; "auto" follows the providers' adaptive limits."""


class Frame(Protocol):
    """A data frame; most of them speak the Arrow PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Requests = Iterable[Any] | AsyncIterable[Any] | Frame
"""Prompts, lists of messages, mappings with "prompt" or "messages" (and "id", and any option of
`chat`) or `ChatRequest`s, in any mix; or a data frame with a row for each."""

Resume = Literal["continue", "restart"]
"""What to do when a stream breaks after its first content."""


class _ParamsBesideTools(TypedDict, total=False):
    audio: Mapping[str, Any] | None
    """Voice and format of a spoken answer: `{"voice": "alloy", "format": "mp3"}`."""
    cache_control: Mapping[str, Any] | None
    """Anthropic: where its prompt cache ends."""
    extra_body: Mapping[str, Any] | None
    """Anything else that a vendor knows; added to the body of the request as it is."""
    extra_headers: Mapping[str, str] | None
    """Headers to send along; not credentials."""
    frequency_penalty: float | None
    """From -2 to 2."""
    function_call: str | Mapping[str, Any] | None
    """The older form of `tool_choice`."""
    functions: Sequence[Mapping[str, Any]] | None
    """The older form of `tools`."""
    logit_bias: Mapping[str, float] | None
    """From -100 to 100, by token."""
    logprobs: bool | None
    """Whether to return log probabilities of the tokens."""
    max_completion_tokens: int | None
    """Most tokens of the answer, reasoning included."""
    max_tokens: int | None
    """Most tokens of the answer."""
    metadata: Mapping[str, Any] | None
    """Accepted because clients of OpenAI send it; no vendor gets it."""
    modalities: Sequence[str] | None
    """Kinds of output: "text", "audio"."""
    n: int | None
    """How many answers to return, from 1 to 128."""
    parallel_tool_calls: bool | None
    """Whether the model may call several tools at once."""
    prediction: Mapping[str, Any] | None
    """Text that the answer will mostly repeat."""
    presence_penalty: float | None
    """From -2 to 2."""
    prompt_cache_key: str | None
    """OpenAI: names a prompt that several requests share."""
    prompt_cache_retention: str | None
    """OpenAI: how long its prompt cache keeps the prompt, such as "24h"."""
    reasoning_effort: str | None
    """How much to think: "none", "minimal", "low", "medium", "high"."""
    safety_identifier: str | None
    """OpenAI: a stable name of the end user, hashed."""
    safety_settings: Sequence[Mapping[str, Any]] | None
    """Gemini: its filters."""
    seed: int | None
    """Asks for the same answer each time, as far as the vendor can."""
    service_tier: str | None
    """OpenAI: "auto", "default", "flex" or "priority"."""
    stop: str | Sequence[str] | None
    """Texts at which the answer ends."""
    store: bool | None
    """OpenAI: whether to keep the answer for its dashboard."""
    thinking: Mapping[str, Any] | None
    """Anthropic: `{"type": "enabled", "budget_tokens": 4000}`."""
    tool_choice: str | Mapping[str, Any] | None
    """"auto", "none", "required", or the tool to call."""
    top_k: int | None
    """Most tokens to choose the next one from. Not at OpenAI."""
    top_logprobs: int | None
    """Log probabilities to return for each token, from 0 to 20."""
    top_p: float | None
    """From 0 to 1."""
    verbosity: str | None
    """OpenAI: "low", "medium" or "high"."""
    web_search_options: Mapping[str, Any] | None
    """What a model that searches the web searches for."""


class _Params(_ParamsBesideTools, total=False):
    tools: Sequence[Mapping[str, Any]] | None
    """The tools that the model may call, in OpenAI's form, or a vendor's own."""


class _TemperatureAndUser(TypedDict, total=False):
    temperature: float | None
    """From 0 to 2."""
    user: str | None
    """A stable name of the end user."""


class ModelParams(_Params, _TemperatureAndUser, total=False):
    """Parameters of the model: OpenAI's, and others that litellm translates for its vendor.

    They are passed on unchanged. `response_format` is an argument of the calls themselves, since
    the type of the answer depends on it. What is not named here goes into `extra_body`.
    """


class _Own(TypedDict, total=False):
    model: str | None
    """A provider's model, name or alias; None leaves the choice to the gateway."""
    agent: str | None
    """Selects a time to live from `agent_ttls`, and labels logs."""
    cache: CacheMode
    """True (the default) reads and fills the cache, False does neither, "refresh" only fills it."""
    cache_ttl: float | None
    """Seconds to cache this answer; None takes the agent's, then the setting."""
    hedge: bool | None
    """Whether a second provider is asked if the first is slower than usual; of a stream, the first
    content decides. None takes the setting, which does not hedge requests with tools."""
    session: str | None
    """Names the conversation. Its turns stay at one provider while that is well, so that the
    vendor's prompt cache serves them. None: each request is on its own."""
    origin: Origin | None
    """The caller, if several share this gateway."""


class _System(TypedDict, total=False):
    system: str | None
    """A system message to put in front."""


class SharedOptions(_Own, ModelParams, _System, total=False):
    """The options that `chat`, `stream` and the batches have in common."""


class ChatOptions(SharedOptions, total=False):
    """The options of `chat`, beside the prompt and `response_format`."""

    timeout: float | None
    """Seconds for everything, failover and waiting included; None takes the setting."""


class ToolRunOptions(_Own, _ParamsBesideTools, _System, _TemperatureAndUser, total=False):
    """The options of `run_tools` that each of its rounds takes, as for `chat`.

    `cache` is False by default. A `tool_choice` that demands a call holds for the first round.
    """


class CallOptions(_Own, _Params, total=False):
    """The options of `call_llm`, beside its prompts and `temperature`: as for `chat`."""

    timeout: float | None
    """Seconds for everything, failover and waiting included; None takes the setting."""


class StreamOptions(SharedOptions, total=False):
    """The options of `stream`, beside the prompt and `response_format`."""

    timeout: float | None
    """Seconds until the first content, failover and waiting included; None takes the setting. After
    it `idle_timeout` applies, however long the answer is."""
    resume: Resume | None
    """What to do when the stream breaks after its first content. None raises. "restart" starts over
    at the next provider, after a chunk marked `restarted`. "continue" lets another provider
    continue the partial text, if its model is known to do so; never after tool calls or with a
    `response_format`."""


class BatchOptions(SharedOptions, total=False):
    """The options of `batch`, `as_completed` and `map`.

    Those of `chat` hold for every request; a request's own take precedence.
    """

    concurrency: Concurrency
    """Requests in flight at once, at most `max_concurrency`; 16 by default. "auto" follows the
    providers' adaptive limits."""
    on_progress: Callable[[BatchProgress], object] | None
    """Called with a `BatchProgress` after each request, on the event loop. An exception of it is
    logged and has no other effect."""
    progress: bool
    """Whether to show a progress bar, on a terminal (stderr) or in a notebook; False by default."""
    timeout: float | None
    """Seconds for the whole batch; None sets no bound. Requests that are not done by then have a
    `DeadlineExceededError`. The rest of an input without a length is not read. (A request's own
    "timeout", or the setting, bounds each time it is asked.)"""
    outage_patience: float | None
    """Seconds for which requests wait during an outage: every circuit is open, every vendor
    throttles, or the network is down; 300 by default. Counted from the first request that finds no
    provider until a vendor answers one. Afterwards requests fail at once. 0 disables waiting, None
    waits without limit. `timeout` bounds it, too."""


class EmbedOptions(TypedDict, total=False):
    """The options of `embed`."""

    model: str | None
    """A provider's model, name or alias; None makes every provider a candidate."""
    timeout: float | None
    """Seconds for everything, failover and waiting included; None takes the setting."""
    origin: Origin | None
    """The caller, if several share this gateway."""
    agent: str | None
    """Selects a time to live from `agent_ttls`, and labels logs."""
    cache: CacheMode
    """False (the default) neither reads nor fills the cache, True does both, "refresh" only fills
    it. Vectors are kept in memory, a request as one entry, if they are at most 65,536 numbers."""
    cache_ttl: float | None
    """Seconds to cache these vectors; None takes the agent's, then the setting."""
    dimensions: int | None
    """Length of the vectors, at models that can shorten them."""
    encoding_format: Literal["float"] | None
    """Accepted because clients of OpenAI send it: vectors come as numbers."""
    extra_body: Mapping[str, Any] | None
    """Anything else that a vendor knows; added to the body of the request as it is."""
    extra_headers: Mapping[str, str] | None
    """Headers to send along; not credentials."""
    user: str | None
    """A stable name of the end user."""


class SettingsOverrides(TypedDict, total=False):
    """The fields of `GatewaySettings`, where each is described. Durations are seconds.

    `middleware` is missing: `AsyncGateway` has an argument of this name, which takes more.
    """

    timeout: float
    attempt_timeout: float
    first_token_timeout: float
    thinking_timeout: float
    idle_timeout: float
    chat_over_stream: bool
    retries_per_provider: int
    hedge: bool
    hedge_delay_seconds: float
    hedge_max_percent: float
    failure_threshold: int
    reset_timeout_seconds: float
    max_open_seconds: float
    probe_lease_seconds: float
    retry_rounds: int
    max_retry_wait_seconds: float
    max_cooldown_seconds: float
    degraded_window_seconds: float
    degraded_min_attempts: int
    degraded_error_percent: float
    degraded_latency_factor: float
    degraded_canary_percent: float
    disabled_recheck_seconds: float
    disabled_recheck_max_seconds: float
    failover_on_rejection: bool | Literal["once"]
    failover_on_content_policy: bool
    drop_unsupported_params: Literal["hints"] | bool
    cache_enabled: bool
    cache_ttl_seconds: float
    cache_max_entries: int
    cache_max_memory_bytes: int
    cache_url: str | None
    cache_max_bytes: int
    agent_ttls: Mapping[str, float]
    stale_if_error_seconds: float
    max_concurrency: int
    max_queue: int
    max_prompt_bytes: int
    freeze_gc: bool
    log_prompts: bool
    middleware_timeout: float
    default_prices: Mapping[str, float] | None
    redis_url: str | None
    fleet_name: str


class BoundChat(Protocol[P_co]):
    """What `AsyncGateway.bind` returns: `chat` with some options set."""

    @overload
    def __call__(
        self,
        prompt_or_messages: str | Messages | None = None,
        *,
        prompt: str | None = None,
        messages: Messages | None = None,
        response_format: None = None,
        **options: Unpack[ChatOptions],
    ) -> Coroutine[Any, Any, ChatResponse[P_co]]: ...
    @overload
    def __call__(
        self,
        prompt_or_messages: str | Messages | None = None,
        *,
        prompt: str | None = None,
        messages: Messages | None = None,
        response_format: type[M] | Mapping[str, Any],
        **options: Unpack[ChatOptions],
    ) -> Coroutine[Any, Any, ChatResponse[M]]: ...


OWN_OPTIONS = frozenset(ChatOptions.__annotations__.keys() - ModelParams.__annotations__.keys())
"""The options of `chat` that are no parameters of the model."""


EMBED_OPTIONS = EmbedOptions.__annotations__.keys() & OWN_OPTIONS - {"origin"}
"""Likewise of `embed`; `origin` has another default."""


def call_arguments(
    system_prompt: str | None,
    user_prompt: str | None,
    system: str | None,
    user: str | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments of `chat` for those of `call_llm`, which has two names for each prompt.

    Raises:
        RequestRejectedError: No prompt is given, or two system messages are.
    """
    if system_prompt is not None and system is not None:
        refuse("system_prompt= and system= are given, which are the same; give only one.")
    arguments = {**options, "system": system_prompt if system is None else system}
    if user_prompt is None:
        if user is None:
            refuse("user_prompt is missing; use call_llm(user_prompt=...).")
        return {**arguments, "prompt": user}
    return {**arguments, "prompt": user_prompt, "user": user}


def accepts(options: type, **defaults: Any) -> Callable[[F], F]:
    """Name the options of a call in its signature, for notebooks and `inspect.signature`.

    Args:
        options: The TypedDict of the call's `**options`.
        **defaults: Those that are not None.
    """
    named = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(name),
            annotation=annotation.__forward_arg__,
        )
        for name, annotation in sorted(
            options.__annotations__.items(), key=lambda each: each[0] in ModelParams.__annotations__
        )
    ]

    def decorated(call: F) -> F:
        signature = inspect.signature(call)
        *own, rest = signature.parameters.values()
        whole = signature.replace(parameters=[*own, *named, rest])
        call.__signature__ = whole  # type: ignore[attr-defined]
        return call

    return decorated
