"""litellm's translations, called directly: requests into a vendor's form, and answers back.

`litellm.acompletion` wraps them in logging, a second SDK and cost calculation, which take ten times
as long as the translation itself. litellm does not document what is called here, so a contract test
covers every function, and a request that may be translated differently takes the other lane.

Most requests need no translation of litellm's at all: see `plain_requests`.

Each provider has one `Translation`, which works out once what does not depend on the request.
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import orjson

from aigateway.messages import ChatRequest, Completion
from aigateway.settings import LLMConfig
from aigateway.wires.assembly import Assembly
from aigateway.wires.json_bodies import fresh_copy, is_text_only, mend_usage, with_extra_body
from aigateway.wires.plain_requests import (
    NOT_PLAIN,
    NotPlainError,
    RequestFrame,
    RequestFrames,
    Shape,
)
from aigateway.wires.pricing import OWN_OPTIONS
from aigateway.wires.registry import wire_of
from aigateway.wires.stream_reading import StreamReading
from aigateway.wires.tool_calls import asks_for_custom_tools, unify
from aigateway.wires.wire import VendorRequest, VendorResponse, caller_headers

__all__ = ["PLAIN_PARAMS", "PLAIN_ROLES", "LoggingStandIn", "Translation", "translation_for"]

PLAIN_PARAMS = frozenset(
    {"frequency_penalty", "max_tokens", "presence_penalty", "seed", "stop", "temperature", "top_p"}
)
"""Parameters that each vendor's `map_openai_params` maps one by one, whatever else is asked."""

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
"""Parameters that litellm's `get_optional_params` maps, and `extra_body`. Any other takes the other
lane."""
_MAPPED_STREAMED = _MAPPED | {"stream_options"}
_UNMAPPED = frozenset({"extra_body", "stream_options"})
_NONE: Mapping[str, str] = {}


class LoggingStandIn:
    """What litellm's translations log to. They read the mappings, and nothing else."""

    def __init__(self) -> None:
        self.model_call_details: dict[str, Any] = {}
        self.optional_params: dict[str, Any] = {}
        self.litellm_params: dict[str, Any] = {}

    def pre_call(self, *_: Any, **__: Any) -> None:
        """Log nothing."""

    def post_call(self, *_: Any, **__: Any) -> None:
        """Log nothing."""


class Translation(ABC):
    """Translates for one provider.

    Attributes:
        url: Where chat requests go.
        stream_url: Where requests for a stream go.
        streams: Whether the model can stream; litellm imitates it for the few that cannot.
        think_tags: Whether texts may begin with reasoning: see `ThinkTags`.
        read_plain: Reads a plain answer from its JSON; None if it takes litellm.
        sample: A small answer of the vendor's, for the trial before the lane is used.
        stream_sample: Likewise a stream, with something in it that litellm has to read.
        counts_streams: Whether the server takes `stream_options`, as far as is known.
    """

    url: str
    stream_url: str
    streams: bool
    read_plain: Callable[[Any], Completion | None]
    sample: bytes
    stream_sample: bytes
    counts_streams = True
    _inlines_media = True
    """Whether pictures must be in the request itself, so that a URL has to be fetched first."""
    _count_option = "n"
    """The mapped parameter that says how many answers are asked for."""
    _own_params: frozenset[str] = frozenset()
    """The vendor's own parameters that `get_optional_params` passes on."""
    _slots = frozenset({"messages"})
    """The names under which a body has messages."""
    _fixed_headers: Mapping[str, str] | None = None

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
        self._frames = RequestFrames(litellm, self._slots)
        self.url, self.stream_url = self._addresses()
        self.streams = not self._config.should_fake_stream(config.model, True, wire.litellm_name)

    @abstractmethod
    def _addresses(self) -> tuple[str, str]:
        """Return where chat requests go, and those for a stream."""

    def request(self, request: ChatRequest, *, streamed: bool = False) -> VendorRequest | None:
        """Translate a request; return None unless `litellm.acompletion` would surely send the same.

        Raises:
            Exception: litellm's `UnsupportedParamsError` and others; nothing has been sent.
        """
        known = self.known(request, streamed=streamed)
        return known or self._translated(request, streamed=streamed)

    def known(self, request: ChatRequest, *, streamed: bool = False) -> VendorRequest | None:
        """Translate a request without litellm; None if that is not possible, or not yet."""
        try:
            # Read as in `_plain`: almost every request passes here.
            shape, slots = self._arranged(request.messages)
            key: tuple[Any, ...] = (shape, streamed, streamed and self.counts_streams)
            if request.params:
                key = self._frames.key(request.params, *key)
            frame = self._frames.find(key)
            if frame is None:
                return None
            headers, body = frame.headers, frame.body(slots)
            added = caller_headers(headers, request.headers) if request.headers else _NONE
            return VendorRequest(headers, frame.options, frame.notes, body, added)
        except NOT_PLAIN:
            return None

    def _plain(self, request: ChatRequest, streamed: bool) -> tuple[Any, Mapping[str, Any]]:
        """Return which frame fits, and the messages in the vendor's form, as `_arranged`."""
        shape, slots = self._arranged(request.messages)
        key = (shape, streamed, streamed and self.counts_streams)
        params = request.params
        return (self._frames.key(params, *key) if params else key), slots

    def _arranged(self, _messages: Sequence[Mapping[str, Any]]) -> tuple[Shape, Mapping[str, Any]]:
        """Return plain messages in the vendor's form, by their names in a body, and what occurs.

        Raises:
            NotPlainError: litellm has to translate them. All others of `NOT_PLAIN` mean the same.
        """
        raise NotPlainError

    def _translated(self, request: ChatRequest, *, streamed: bool) -> VendorRequest | None:
        """Translate a request with litellm, and remember what the next ones may share."""
        params = request.params
        if not params.keys() - self._own_params <= (_MAPPED_STREAMED if streamed else _MAPPED):
            return None
        if text_only := is_text_only(request.messages, PLAIN_ROLES):
            messages = list(map(dict, request.messages))
        elif not all(_is_simple(message, self._inlines_media) for message in request.messages):
            return None
        else:
            messages = [
                {name: fresh_copy(value) for name, value in message.items() if value is not None}
                for message in request.messages
            ]
        wire = self._wire
        if (
            any("cache_control" in tool for tool in params.get("tools") or ())
            # What the vendor does not have, the other lane refuses.
            or (not wire.like_openai and asks_for_custom_tools(request))
            or (wire.not_taken is not None and wire.not_taken(params) is not None)
        ):
            return None
        settings = self._frames.settings()
        options = self._options(params, messages)
        headers = self._fixed_headers or self._headers(messages, options, plain=text_only)
        notes: dict[str, Any] = {}
        body = self._body(messages, options, headers, notes, plain=text_only)
        if streamed:
            body.update(self._streaming(request))
        extra = params.get("extra_body")
        if extra:
            body = self._with_extra(body, extra)
        written = orjson.dumps(body)
        with contextlib.suppress(*NOT_PLAIN):
            key, slots = self._plain(request, streamed)
            if not notes:

                def make() -> RequestFrame | None:
                    frame = RequestFrame(body, slots, headers, options, notes)
                    return frame if frame.body(slots) == written else None

                self._frames.learn(key, settings, make)
        added = caller_headers(headers, request.headers)
        return VendorRequest(headers, options, notes, written, added)

    def answer(self, request: ChatRequest, sent: VendorRequest, received: VendorResponse) -> Any:
        """Read the vendor's answer into litellm's `ModelResponse`."""
        options = fresh_copy(sent.options)
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
            request_data=orjson.loads(sent.body),
            messages=request.messages,
            optional_params=options,
            litellm_params=fresh_copy(sent.notes),
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

    @abstractmethod
    def _reading(
        self, sent: VendorRequest, assembly: Assembly, make_parser: Callable[[], Any]
    ) -> StreamReading: ...

    @abstractmethod
    def _parser(self, sent: VendorRequest) -> Any:
        """Make litellm's reader of one stream."""

    def _streaming(self, _request: ChatRequest) -> dict[str, Any]:
        """Return what a body has besides if its answer is to be a stream."""
        return {"stream": True}

    def _options(self, params: Mapping[str, Any], messages: list[Any]) -> dict[str, Any]:
        """Return the parameters in the vendor's form."""
        if not _UNMAPPED.isdisjoint(params):
            params = {name: v for name, v in params.items() if name not in _UNMAPPED}
        if params.keys() <= PLAIN_PARAMS and params.keys() <= self._supported:
            mapped: dict[str, Any] = self._map(dict(params))  # also none: litellm has defaults
            return mapped
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

    def _headers(
        self,
        _messages: list[Any],
        _options: dict[str, Any],
        *,
        plain: bool,  # noqa: ARG002
    ) -> Mapping[str, str]:
        """Return the headers, where they depend on the request."""
        return {}

    def _body(
        self,
        messages: list[Any],
        options: dict[str, Any],
        headers: Mapping[str, str],
        notes: dict[str, Any],
        *,
        plain: bool,  # noqa: ARG002 - for wires with a short way
    ) -> dict[str, Any]:
        body: dict[str, Any] = self._config.transform_request(
            self._model, messages, dict(options), notes, headers
        )
        return body


def translation_for(
    litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]
) -> Translation | None:
    """Make a provider's translation; None where all its requests take the other lane.

    That is the case for `LITELLM`, for options in `extra` that only litellm understands, and for
    models that litellm bridges to another API.
    """
    load = wire_of(config).translation
    if load is None or config.extra.keys() - OWN_OPTIONS - {"base_model"}:
        return None
    entry = litellm.model_cost.get(config.model) or {}
    if entry.get("mode", "chat") != "chat":
        return None
    return load()(litellm, config, options)


def _is_simple(message: Mapping[str, Any], inline: bool) -> bool:
    if "cache_control" in message or message.get("role") == "developer":
        return False  # Gemini's cache is a call of its own; the role goes by another name
    content = message.get("content")
    if content is None or isinstance(content, str):
        return True
    may_show = message.get("role") in {"tool", "user"}
    return all(_is_simple_part(part, inline, may_show) for part in content)


def _is_simple_part(part: Any, inline: bool, may_show: bool) -> bool:
    if not isinstance(part, Mapping) or "cache_control" in part:
        return False
    if part.get("type") == "text":
        return True
    if part.get("type") != "image_url" or not may_show:
        return False
    picture = part.get("image_url")
    url = picture.get("url") if isinstance(picture, Mapping) else picture
    return isinstance(url, str) and (not inline or url.startswith("data:"))
