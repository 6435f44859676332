"""Gemini's requests and answers, through litellm's translations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aigateway.messages import ChatRequest
from aigateway.wires.assembly import Assembly
from aigateway.wires.gemini.answer import gemini_completion
from aigateway.wires.gemini.stream import GeminiReading
from aigateway.wires.stream_reading import StreamReading
from aigateway.wires.translation import LoggingStandIn, Translation
from aigateway.wires.wire import VendorRequest

__all__ = ["GeminiTranslation"]


class GeminiTranslation(Translation):
    """Gemini's words."""

    _read_plain = staticmethod(gemini_completion)
    sample = (
        b'{"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": "ok"}]},'
        b' "finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 1,'
        b' "candidatesTokenCount": 1, "totalTokenCount": 2}, "modelVersion": "m"}'
    )

    def _address(self) -> str:
        from litellm.llms.vertex_ai.gemini.transformation import (  # noqa: PLC0415
            sync_transform_request_body,
        )
        from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import (  # noqa: PLC0415
            ModelResponseIterator,
        )

        self._transform = sync_transform_request_body
        self._iterator = ModelResponseIterator
        self._fixed_headers = {
            "Content-Type": "application/json",
            "x-goog-api-key": self._key,
            **self._extra_headers,
        }
        return f"{self._base}/models/{self._model}:generateContent"

    stream_sample = (
        b'data: {"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": "hm",'
        b' "thought": true}, {"text": "ok"}]}, "finishReason": "STOP"}], "usageMetadata": {'
        b'"promptTokenCount": 1, "thoughtsTokenCount": 1, "totalTokenCount": 2},'
        b' "modelVersion": "m"}\n\n'
    )
    _count_option = "candidate_count"

    def _stream_address(self) -> str:
        return f"{self._base}/models/{self._model}:streamGenerateContent?alt=sse"

    def _reading(
        self, _sent: VendorRequest, assembly: Assembly, make_parser: Callable[[], Any]
    ) -> StreamReading:
        return GeminiReading(assembly, make_parser)

    def _parser(self, sent: VendorRequest) -> Any:
        log = LoggingStandIn()
        log.optional_params = dict(sent.options)
        return self._iterator(iter(()), True, log)

    def _streaming(self, _request: ChatRequest) -> dict[str, Any]:
        return {}  # the address says it

    def _headers(self, _messages: list[Any], _options: dict[str, Any]) -> dict[str, str]:
        return self._fixed_headers

    def _body(
        self,
        messages: list[Any],
        options: dict[str, Any],
        _headers: dict[str, str],
        _notes: dict[str, Any],
    ) -> dict[str, Any]:
        body: dict[str, Any] = self._transform(
            gemini_api_key=self._key,
            messages=messages,
            api_base=self._base,
            model=self._model,
            client=None,
            timeout=None,
            extra_headers=None,
            optional_params=dict(options),
            logging_obj=LoggingStandIn(),
            custom_llm_provider="gemini",
            litellm_params={},
            vertex_project=None,
            vertex_location=None,
            vertex_auth_header=None,
        )
        return body
