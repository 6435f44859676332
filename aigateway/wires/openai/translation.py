"""OpenAI's requests and answers, and Azure's, through litellm's translations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import orjson

from aigateway.messages import ChatRequest
from aigateway.settings import LLMConfig, is_token
from aigateway.wires.assembly import Assembly
from aigateway.wires.json_copy import fresh_copy
from aigateway.wires.openai.answer import openai_completion
from aigateway.wires.openai.stream import OpenAIReading
from aigateway.wires.stream_reading import StreamReading
from aigateway.wires.translation import PLAIN_PARAMS, PLAIN_ROLES, Translation, is_only_text
from aigateway.wires.wire import VendorRequest

__all__ = ["AzureTranslation", "OpenAITranslation"]


class OpenAITranslation(Translation):
    """OpenAI's words, and those of the servers that imitate it."""

    _inlines_media = False
    _read_plain = staticmethod(openai_completion)

    def __init__(self, litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]) -> None:
        super().__init__(litellm, config, options)
        self._is_verbatim = self._leaves_as_it_is()

    def _leaves_as_it_is(self) -> bool:
        """Whether litellm has nothing to change in plain requests to this model."""
        messages = [{"role": role, "content": "x"} for role in sorted(PLAIN_ROLES)]
        options = dict.fromkeys(PLAIN_PARAMS, 1)
        body = super()._body(fresh_copy(messages), dict(options), {}, {})
        return orjson.dumps(body) == orjson.dumps(self._verbatim(messages, options))

    def _with_extra(self, body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
        return {**body, **fresh_copy(extra)}  # as OpenAI's SDK does

    def _verbatim(self, messages: list[Any], options: dict[str, Any]) -> dict[str, Any]:
        return {"model": self._model, "messages": messages, **options}

    def _body(
        self,
        messages: list[Any],
        options: dict[str, Any],
        headers: dict[str, str],
        notes: dict[str, Any],
    ) -> dict[str, Any]:
        if (
            self._is_verbatim
            and options.keys() <= PLAIN_PARAMS
            and all(map(is_only_text, messages))
            and not getattr(self._litellm, "openai_system_messages_first", False)
        ):
            return self._verbatim(messages, options)
        return super()._body(messages, options, headers, notes)

    sample = (
        b'{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index"'
        b': 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],'
        b' "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
    )

    def _address(self) -> str:
        self._fixed_headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            **self._extra_headers,
        }
        return f"{self._base}/chat/completions"

    def _headers(self, _messages: list[Any], _options: dict[str, Any]) -> dict[str, str]:
        return self._fixed_headers

    stream_sample = (
        b'data: {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "ok",'
        b' "annotations": []}, "finish_reason": "stop"}]}\n\n'
        b'data: {"id": "1", "model": "m", "choices": [], "usage": {"prompt_tokens": 1,'
        b' "completion_tokens": 1, "total_tokens": 2, "prompt_tokens_details": {"audio_tokens": 1'
        b"}}}\n\ndata: [DONE]\n\n"
    )

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
    """Azure's words: other addresses and another header for the key."""

    def __init__(self, litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]) -> None:
        super().__init__(litellm, config, options)
        self._reader = litellm.OpenAIGPTConfig()  # Azure answers as OpenAI does

    def _address(self) -> str:
        by_token = is_token(self._key)
        self._fixed_headers = {
            **({"Authorization": f"Bearer {self._key}"} if by_token else {"api-key": self._key}),
            "Content-Type": "application/json",
            **self._extra_headers,
        }
        if self._version in {"v1", "latest", "preview"}:
            return f"{self._base}/openai/v1/chat/completions"
        deployment = f"{self._base}/openai/deployments/{self._model}"
        return f"{deployment}/chat/completions?api-version={self._version}"

    def _map(self, params: dict[str, Any]) -> Any:
        return self._config.map_openai_params(
            params, {}, self._model, self._drop, api_version=self._version or ""
        )
