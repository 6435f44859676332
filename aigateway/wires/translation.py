"""litellm's translations, called directly: a request into a vendor's words, and its answer back.

`litellm.acompletion` wraps these in logging, a second SDK and cost calculation, which take ten
times as long as the translation itself. What is called here is not documented by litellm, so
every function is held to by a contract test, and a request that is not surely carried the same
way goes the other way (`carries`).

One `Translation` is made for each provider; what does not depend on the request is worked out
then.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from aigateway.messages import ChatRequest, Completion
from aigateway.settings import LLMConfig
from aigateway.wires.assembly import Assembly
from aigateway.wires.headers import with_carried, with_extra_body
from aigateway.wires.json_bodies import mend_usage
from aigateway.wires.json_copy import fresh_copy
from aigateway.wires.pricing import OWN_OPTIONS
from aigateway.wires.registry import wire_of
from aigateway.wires.stream_reading import StreamReading
from aigateway.wires.tool_calls import asks_for_custom_tools, unify
from aigateway.wires.wire import VendorRequest, VendorResponse

__all__ = [
    "PLAIN_PARAMS",
    "PLAIN_ROLES",
    "LoggingStandIn",
    "Translation",
    "is_only_text",
    "translation_for",
]

PLAIN_PARAMS = frozenset(
    {"frequency_penalty", "max_tokens", "presence_penalty", "seed", "stop", "temperature", "top_p"}
)
"""Parameters that each vendor's `map_openai_params` takes over one by one, without a look at the
rest of the request."""

PLAIN_ROLES = frozenset({"assistant", "system", "user"})

_MAPPED = PLAIN_PARAMS | {
    "extra_body",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "n",
    "parallel_tool_calls",
    "reasoning_effort",
    "response_format",
    "tool_choice",
    "tools",
    "top_logprobs",
    "user",
}
"""Parameters that litellm's `get_optional_params` maps, and what is put over its body; any other
goes the other way."""

_BESIDE = frozenset({"extra_body", "stream_options"})
"""Those that are not mapped."""


_MAPPED_STREAMED = _MAPPED | {"stream_options"}


class LoggingStandIn:
    """What litellm's translations want to log to. They read the two mappings, and nothing else."""

    def __init__(self) -> None:
        self.model_call_details: dict[str, Any] = {}
        self.optional_params: dict[str, Any] = {}
        self.litellm_params: dict[str, Any] = {}

    def pre_call(self, *_: Any, **__: Any) -> None:
        """Log nothing."""

    def post_call(self, *_: Any, **__: Any) -> None:
        """Log nothing."""


class Translation(ABC):
    """One provider's words.

    Attributes:
        url: Where chat requests go.
        stream_url: Where those go whose answer is to be a stream.
        streams: Whether the model can give one; litellm makes one up for the few that cannot.
        think_tags: Whether texts may begin with reasoning: see `ThinkTags`.
    """

    _defaults: Mapping[str, Any] | None = None
    counts_streams = True
    """Whether the server takes `stream_options`, as far as is known."""
    url: str
    stream_url: str
    streams: bool

    def __init__(self, litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]) -> None:
        self._litellm = litellm
        self._wire = wire = wire_of(config)
        self.think_tags = wire.think_tags
        self._model = config.model
        self._key: str = options["api_key"]
        self._base: str = options["api_base"]
        self._version: str | None = options.get("api_version")
        self._drop = bool(options.get("drop_params"))
        self._extra_headers = dict(config.headers)
        provider = litellm.LlmProviders(wire.litellm_name)
        from litellm.utils import ProviderConfigManager, get_optional_params  # noqa: PLC0415

        self._config = ProviderConfigManager.get_provider_chat_config(config.model, provider)
        self._reader = self._config
        self._supported = frozenset(self._config.get_supported_openai_params(config.model))
        self._get_optional_params = get_optional_params
        self.url = self._address()
        self.stream_url = self._stream_address()
        self.streams = not self._config.should_fake_stream(config.model, True, wire.litellm_name)

    @abstractmethod
    def _address(self) -> str: ...

    def _stream_address(self) -> str:
        return self.url

    @abstractmethod
    def _headers(self, _messages: list[Any], _options: dict[str, Any]) -> dict[str, str]: ...

    def carries(self, request: ChatRequest, *, streamed: bool = False) -> bool:
        """Whether this request is surely translated as `litellm.acompletion` would."""
        return (
            request.params.keys() <= (_MAPPED_STREAMED if streamed else _MAPPED)
            and all(_is_plain(message, self._inlines_media) for message in request.messages)
            and not any("cache_control" in tool for tool in request.params.get("tools") or ())
            # What the vendor does not have is the other lane's to refuse.
            and (self._wire.like_openai or not asks_for_custom_tools(request))
            and (self._wire.not_taken is None or self._wire.not_taken(request.params) is None)
        )

    _read_plain: Callable[[Any], Completion | None]
    sample: bytes
    """A small answer of the vendor's, for the trial that is made before the lane is used."""
    stream_sample: bytes
    """Likewise as a stream, with something in it that litellm has to read."""

    _inlines_media = True
    """Whether pictures must be in the request itself, so that a URL has to be fetched first."""

    def request(self, request: ChatRequest, *, streamed: bool = False) -> VendorRequest:
        """Put a request into the vendor's words.

        Args:
            request: What is asked.
            streamed: The answer is to be a stream.

        Raises:
            Exception: litellm's `UnsupportedParamsError` and others; nothing has been sent.
        """
        messages = [
            {name: fresh_copy(value) for name, value in message.items() if value is not None}
            for message in request.messages
        ]
        options = self._options(request, messages)
        headers = self._headers(messages, options)
        notes: dict[str, Any] = {}
        body = self._body(messages, options, headers, notes)
        if streamed:
            body.update(self._streaming(request))
        extra = request.params.get("extra_body")
        if extra:
            body = self._with_extra(body, extra)
        sent = with_carried(headers, request.headers) if request.headers else headers
        return VendorRequest(sent, body, options, notes)

    def plain_answer(self, sent: VendorRequest, received: VendorResponse) -> Completion | None:
        """The answer, if it is of the plain kind that needs no translation."""
        # Where an answer was asked for as a tool call, a text is not what it seems.
        return None if "json_mode" in sent.options else self._read_plain(received.json())

    def answer(self, request: ChatRequest, sent: VendorRequest, received: VendorResponse) -> Any:
        """Read the vendor's answer into litellm's `ModelResponse`."""
        options = dict(sent.options)
        body = received.json()
        if unify(body) | mend_usage(body, whole=True):
            content = json.dumps(body).encode()
            received = VendorResponse(received.status_code, received.headers, content)
        return self._reader.transform_response(
            model=self._model,
            raw_response=received,
            model_response=self._litellm.ModelResponse(),
            logging_obj=LoggingStandIn(),
            api_key=self._key,
            request_data=sent.data,
            messages=request.messages,
            optional_params=options,
            litellm_params=sent.notes,
            encoding=None,
            json_mode=options.pop("json_mode", False),
        )

    def reading(self, sent: VendorRequest) -> StreamReading:
        """Begin to read a streamed answer."""
        count = sent.options.get(self._count_option)
        assembly = Assembly(
            self._model, count if isinstance(count, int) else 1, think_tags=self.think_tags
        )
        return self._reading(sent, assembly, partial(self._parser, sent))

    _count_option = "n"
    """Among the mapped parameters, how many answers are asked for."""

    @abstractmethod
    def _reading(
        self, sent: VendorRequest, assembly: Assembly, make_parser: Callable[[], Any]
    ) -> StreamReading: ...

    @abstractmethod
    def _parser(self, sent: VendorRequest) -> Any:
        """Make litellm's reader of one stream."""

    def _streaming(self, _request: ChatRequest) -> dict[str, Any]:
        """What a body has more if its answer is to be a stream."""
        return {"stream": True}

    def _options(self, request: ChatRequest, messages: list[Any]) -> dict[str, Any]:
        params = request.params
        if not _BESIDE.isdisjoint(params):
            params = {name: v for name, v in params.items() if name not in _BESIDE}
        if params.keys() <= PLAIN_PARAMS and params.keys() <= self._supported:
            if params:
                mapped: dict[str, Any] = self._map(dict(params))
                return mapped
            if self._defaults is None:  # litellm may have some
                self._defaults = self._map({})
            return dict(self._defaults)
        options: dict[str, Any] = self._get_optional_params(
            model=self._model,
            custom_llm_provider=self._wire.litellm_name,
            messages=messages,
            api_version=self._version,
            drop_params=self._drop,
            **fresh_copy(params),
        )
        options.pop("stream", None)
        options.pop("extra_body", None)
        return options

    def _map(self, params: dict[str, Any]) -> Any:
        return self._config.map_openai_params(params, {}, self._model, self._drop)

    def _with_extra(self, body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
        return with_extra_body(body, fresh_copy(extra))

    def _body(
        self,
        messages: list[Any],
        options: dict[str, Any],
        headers: dict[str, str],
        notes: dict[str, Any],
    ) -> dict[str, Any]:
        body: dict[str, Any] = self._config.transform_request(
            self._model, messages, dict(options), notes, headers
        )
        return body


def translation_for(
    litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]
) -> Translation | None:
    """Make a provider's translation; None where every request of its goes the other way.

    That is for `LITELLM`, for options in `extra` that only litellm understands, and for models
    that litellm bridges to another API.
    """
    load = wire_of(config).translation
    if load is None or config.extra.keys() - OWN_OPTIONS - {"base_model"}:
        return None
    entry = litellm.model_cost.get(config.model) or {}
    if entry.get("mode", "chat") != "chat":
        return None
    return load()(litellm, config, options)


def is_only_text(message: Mapping[str, Any]) -> bool:
    """Whether a message is a role and a text, and nothing else."""
    return (
        len(message) == 2
        and type(message.get("content")) is str
        and message.get("role") in PLAIN_ROLES
    )


def _is_plain(message: Mapping[str, Any], inline: bool) -> bool:
    if "cache_control" in message or message.get("role") == "developer":
        return False  # Gemini's cache is a call of its own; the role goes by another name
    content = message.get("content")
    if content is None or isinstance(content, str):
        return True
    may_show = message.get("role") in {"tool", "user"}
    return all(_is_plain_part(part, inline, may_show) for part in content)


def _is_plain_part(part: Any, inline: bool, may_show: bool) -> bool:
    if not isinstance(part, Mapping) or "cache_control" in part:
        return False
    if part.get("type") == "text":
        return True
    if part.get("type") != "image_url" or not may_show:
        return False
    picture = part.get("image_url")
    url = picture.get("url") if isinstance(picture, Mapping) else picture
    return isinstance(url, str) and (not inline or url.startswith("data:"))
