"""OpenAI's requests, answers and streams, and Azure's.

litellm translates; plain answers and ordinary events are read here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import orjson

from aigateway.messages import (
    TOOL_INPUTS,
    ChatRequest,
    Choice,
    Chunk,
    Completion,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from aigateway.settings import LLMConfig, is_token
from aigateway.wires.answers import UnusualError, chunk_of, stated_cost, usage_from
from aigateway.wires.assembly import Assembly
from aigateway.wires.content import (
    IN_ID,
    content_of,
    fields_beside_choices,
    separated,
    signature_of,
    text_of,
)
from aigateway.wires.json_bodies import fresh_copy
from aigateway.wires.openai import OPENAI_ENDS
from aigateway.wires.plain_requests import (
    ASKED,
    CALLED,
    PARTS,
    SAID_BY,
    SYSTEM,
    Shape,
    calls_of,
    checked,
    texts_of,
)
from aigateway.wires.stream_reading import StreamReading
from aigateway.wires.tool_calls import CallPiece, as_functions, is_cut
from aigateway.wires.translation import PLAIN_PARAMS, PLAIN_ROLES, Translation
from aigateway.wires.wire import BrokenOffError, VendorRequest, end_of

__all__ = ["AzureTranslation", "OpenAIReading", "OpenAITranslation", "openai_completion"]

_NOTHING: Mapping[str, Any] = {}
_MESSAGE = frozenset(
    {
        "annotations",
        "audio",
        "citations",
        "content",
        "context",
        "images",
        "reasoning",
        "reasoning_content",
        "refusal",
        "role",
        "search_results",
        "tool_calls",
    }
)
_TEXT = frozenset({"annotations", "content", "refusal", "role"})
_BESIDE = frozenset({"citations", "search_results"})
_MOST = 2**53
_CHOICE = frozenset({"index", "message", "finish_reason", "logprobs", "content_filter_results"})
_FINISHES = frozenset({"stop", "length", "tool_calls", "content_filter"})
_CALL = frozenset({"custom", "id", "type", "function", "index"})


def openai_completion(body: Any) -> Completion | None:
    """Read a plain answer; None if it is of another kind."""
    try:
        if body.get("error") or body.get("service_tier") not in {None, "default", "auto"}:
            return None
        answers = body["choices"]
        choices = (_choice(answers[0]),) if len(answers) == 1 else tuple(map(_choice, answers))
        usage = _usage(body["usage"])
        created = body["created"]
        name, model, fingerprint = body["id"], body["model"], body.get("system_fingerprint")
    except (UnusualError, KeyError, TypeError, AttributeError, ValueError):
        return None
    if not (choices and name and type(name) is str and model and type(model) is str):
        return None
    return Completion(
        name,
        model,
        choices,
        usage,
        stated_cost(body["usage"]) if "cost" in body["usage"] else None,
        created if type(created) is int else 0,
        (fingerprint or None) if type(fingerprint) is str else None,
        body.get("service_tier"),
        fields_beside_choices(body).get("sources_json") if body.keys() & _BESIDE else None,
    )


def _choice(choice: Mapping[str, Any]) -> Choice:
    message, finish = choice["message"], choice["finish_reason"]
    text = message["content"] if message.keys() <= _TEXT else None
    if (
        type(text) is str
        and text[:1].isalnum()  # no tag
        and finish in _FINISHES
        and choice.keys() <= _CHOICE
        and not (choice.get("logprobs") or message.get("refusal") or message.get("annotations"))
    ):
        return Choice(text, finish)  # almost every answer
    if (
        not (choice.keys() <= _CHOICE and message.keys() <= _MESSAGE and finish in _FINISHES)
        or isinstance(message.get("content"), int | float)
        or not isinstance(message.get("refusal"), str | None)
        or choice.get("logprobs")
    ):
        raise UnusualError
    as_functions(message)
    calls = tuple(map(_tool_call, message.get("tool_calls") or ()))
    if calls and (finish == "stop" or len({call.id for call in calls}) < len(calls)):
        raise UnusualError  # corrected elsewhere
    content = separated(content_of(message))
    says = content.text or content.refusal or content.images or content.audio
    if not (says or calls or finish == "length"):
        raise UnusualError  # an empty answer is judged elsewhere
    return Choice(finish_reason=finish, tool_calls=calls, **content._asdict())


def _tool_call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    name, arguments = function["name"], function["arguments"]
    kind = call.get("type")
    if (
        not call.keys() <= _CALL
        or kind not in TOOL_INPUTS
        or not (text_of(name) and isinstance(arguments, str) and text_of(call["id"]))
        or (kind == "function" and (not arguments.strip() or is_cut(arguments)))
        or IN_ID in call["id"]
    ):
        raise UnusualError
    return ToolCall(call["id"], name, arguments, kind)


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    total = usage.get("total_tokens") or prompt + completion
    before = usage.get("prompt_tokens_details") or _NOTHING
    after = usage.get("completion_tokens_details") or _NOTHING
    cached = before.get("cached_tokens") or usage.get("prompt_cache_hit_tokens")
    cached = cached or usage.get("cached_tokens") or 0
    written = before.get("cache_write_tokens") or 0
    reasoning = after.get("reasoning_tokens") or 0
    if before.get("audio_tokens") or after.get("audio_tokens"):
        raise UnusualError  # priced by litellm
    counts = (prompt, completion, total, cached, reasoning, written)
    for count in counts:
        if type(count) is not int or not 0 <= count < _MOST:
            raise UnusualError
    return Usage(*counts)


_SOURCES = frozenset({"citations", "search_results"})
"""Fields beside the choices that any event may have."""


class OpenAIReading(StreamReading):
    """Streams of `chat.completion.chunk`s, for which litellm's reader keeps no state."""

    _made_by: tuple[Any, Any] = (None, None)
    """Fingerprint and tier, as the last event that had them."""

    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        choices = event.get("choices")
        is_old_error = not choices and event.get("object") == "error"
        if event.get("error") or name == b"error" or is_old_error:
            raise BrokenOffError(event)
        if not self.assembly.id:
            self._begin(event)
        usage = event.get("usage") or (event.get("x_groq") or _NOTHING).get("usage")
        if usage or not choices:
            self._add_count(usage)
        made_by = event.get("system_fingerprint"), event.get("service_tier")
        if made_by != self._made_by or usage or not choices or not _SOURCES.isdisjoint(event):
            self._made_by = made_by
            self.assembly.note(fields_beside_choices(event))
        if usage and not choices:  # the count that was asked for comes behind everything else
            self.assembly.close()
        for choice in choices or ():
            self._choice(event, choice)

    def _begin(self, event: Mapping[str, Any]) -> None:
        """Take in what every chunk repeats. Azure sends one before them, with empty names."""
        assembly, created = self.assembly, event.get("created")
        assembly.id = str(event.get("id") or "")
        assembly.model = str(event.get("model") or assembly.model)
        assembly.created = created if type(created) is int else 0

    def _choice(self, event: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        delta, finish = choice.get("delta") or _NOTHING, choice.get("finish_reason")
        error = choice.get("error")
        ending = end_of(OPENAI_ENDS, finish, error) if finish or error else None
        index = choice.get("index") or 0
        text = delta.get("content")
        says = True
        if text and len(delta) == 1 and type(text) is str:  # almost every chunk
            self._emit(Chunk(text, index=index))
        else:
            calls = delta.get("tool_calls")
            if calls is not None:
                as_functions(delta)
            if not _is_plain_delta(delta):
                for read in self._parse({**event, "choices": [choice]}).choices:
                    self._take_choice(read, ending)
                return
            deltas = self._tool_calls(index, calls) if calls else ()
            chunk = chunk_of(content_of(delta), index, deltas)
            says = chunk is not None
            if chunk is not None:
                self._emit(chunk)
        if choice.get("logprobs"):
            self._add_logprobs(index, choice["logprobs"])
        if "usage" in choice:  # Moonshot's
            self._add_count(choice["usage"])
        if ending is not None:
            self._finish(index, ending, sure=not says)

    def _tool_calls(self, index: int, calls: list[Mapping[str, Any]]) -> tuple[ToolCallDelta, ...]:
        pieces = []
        for call in calls:
            function = call.get("function") or _NOTHING
            name, called = call.get("id") or "", function.get("name") or ""
            pieces.append(
                CallPiece(
                    call.get("index"),
                    name.partition(IN_ID)[0],
                    called,
                    function.get("arguments") or "",
                    call.get("type") or "",
                    signature_of(call) if len(call) > 4 or IN_ID in name else None,
                )
            )
        return self._read_calls(index, pieces)

    def _usage(self, counted: Any) -> tuple[Usage, Any]:
        details = (counted.get("prompt_tokens_details"), counted.get("completion_tokens_details"))
        if any((detail or _NOTHING).get("audio_tokens") for detail in details):
            # It has a price of its own.
            return usage_from(counted), self._parse({"choices": [], "usage": counted}).usage
        return usage_from(counted), None


_NO_TEXTS = (int, float)
"""What no field of a delta holds; litellm's reader refuses it."""


def _is_plain_delta(delta: Mapping[str, Any]) -> bool:
    if len(delta) == 1 and type(delta.get("content")) is str:
        return True
    if "function_call" in delta or any(isinstance(value, _NO_TEXTS) for value in delta.values()):
        return False
    calls = delta.get("tool_calls")
    return calls is None or all(map(_is_plain_piece, calls))


def _is_plain_piece(call: Mapping[str, Any]) -> bool:
    function = call.get("function") or _NOTHING
    return call.get("type") in {None, "", "function", "custom"} and all(
        value is None or type(value) is str
        for value in (call.get("id"), function.get("name"), function.get("arguments"))
    )


class OpenAITranslation(Translation):
    """Translates for OpenAI, and for the servers that imitate it."""

    _inlines_media = False
    read_plain = staticmethod(openai_completion)
    sample = (
        b'{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index"'
        b': 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],'
        b' "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
    )
    stream_sample = (
        b'data: {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "ok",'
        b' "annotations": []}, "finish_reason": "stop"}]}\n\n'
        b'data: {"id": "1", "model": "m", "choices": [], "usage": {"prompt_tokens": 1,'
        b' "completion_tokens": 1, "total_tokens": 2, "prompt_tokens_details": {"audio_tokens": 1'
        b"}}}\n\ndata: [DONE]\n\n"
    )

    def __init__(self, litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]) -> None:
        super().__init__(litellm, config, options)
        self.streams = True  # every model does; litellm imitates it for some at Azure
        # litellm may have nothing to change in plain requests to this model.
        self._is_verbatim = True
        messages: list[Any] = [{"role": role, "content": "x"} for role in sorted(PLAIN_ROLES)]
        mapped = dict.fromkeys(PLAIN_PARAMS, 1)
        verbatim = self._body(messages, mapped, {}, {}, plain=True)
        translated = super()._body(fresh_copy(messages), mapped, {}, {}, plain=True)
        self._is_verbatim = orjson.dumps(translated) == orjson.dumps(verbatim)

    def _body(
        self,
        messages: list[Any],
        options: dict[str, Any],
        headers: Mapping[str, str],
        notes: dict[str, Any],
        *,
        plain: bool,
    ) -> dict[str, Any]:
        if (
            plain
            and self._is_verbatim
            and options.keys() <= PLAIN_PARAMS
            and not getattr(self._litellm, "openai_system_messages_first", False)
        ):
            return {"model": self._model, "messages": messages, **options}
        return super()._body(messages, options, headers, notes, plain=plain)

    def _arranged(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Shape, Mapping[str, Any]]:
        shape, sent = 0, []
        for message in messages:
            content = message.get("content")
            if len(message) == 2 and type(content) is str:  # almost every message
                shape |= SAID_BY[message["role"]]
                sent.append(message)
                continue
            calls = None
            if checked(message) == "assistant":
                shape |= ASKED
                calls = list(calls_of(message))
            elif message["role"] == "system":
                shape |= SYSTEM
            if calls:
                shape |= CALLED
            if type(content) is not str and (content is not None or not calls):
                shape |= PARTS
                texts_of(content)
            sent.append({name: value for name, value in message.items() if value is not None})
        return shape, {"messages": sent}

    def _with_extra(self, body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
        return {**body, **fresh_copy(extra)}  # as OpenAI's SDK does

    def _addresses(self) -> tuple[str, str]:
        self._fixed_headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            **self._extra_headers,
        }
        url = f"{self._base}/chat/completions"
        return url, url

    def _streaming(self, request: ChatRequest) -> dict[str, Any]:
        if not self.counts_streams:
            return {"stream": True}
        given = request.params.get("stream_options") or {}
        return {"stream": True, "stream_options": {**given, "include_usage": True}}

    def _reading(
        self, _sent: VendorRequest, assembly: Assembly, make_parser: Callable[[], Any]
    ) -> StreamReading:
        return OpenAIReading(assembly, make_parser)

    def _parser(self, _sent: VendorRequest) -> Any:
        return self._reader.get_model_response_iterator(iter(()), True)


class AzureTranslation(OpenAITranslation):
    """Translates for Azure: other addresses and another header for the key."""

    def __init__(self, litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]) -> None:
        super().__init__(litellm, config, options)
        self._reader = litellm.OpenAIGPTConfig()  # Azure answers as OpenAI does

    def _addresses(self) -> tuple[str, str]:
        by_token = is_token(self._key)
        self._fixed_headers = {
            **({"Authorization": f"Bearer {self._key}"} if by_token else {"api-key": self._key}),
            "Content-Type": "application/json",
            **self._extra_headers,
        }
        if self._version in {"v1", "latest", "preview"}:
            url = f"{self._base}/openai/v1/chat/completions"
        else:
            deployment = f"{self._base}/openai/deployments/{self._model}"
            url = f"{deployment}/chat/completions?api-version={self._version}"
        return url, url

    def _map(self, params: dict[str, Any]) -> Any:
        # Models that reason have a mapping of their own, which takes no version.
        takes = inspect.signature(self._config.map_openai_params).parameters
        version = {"api_version": self._version or ""} if "api_version" in takes else {}
        return self._config.map_openai_params(params, {}, self._model, self._drop, **version)
