"""Anthropic's requests and answers, through litellm's translations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aigateway.wires.anthropic.answer import anthropic_completion
from aigateway.wires.anthropic.stream import AnthropicReading
from aigateway.wires.assembly import Assembly
from aigateway.wires.stream_reading import StreamReading
from aigateway.wires.translation import Translation, is_only_text
from aigateway.wires.wire import VendorRequest

__all__ = ["AnthropicTranslation"]

_ANTHROPIC_PLAIN = frozenset({"max_tokens", "stop_sequences", "temperature", "top_p"})
"""Of the parameters in Anthropic's words, those that have no influence on the headers."""
_TOOL_NAMES = "_anthropic_tool_name_map"
"""Where litellm notes how it had to rename tools for Anthropic."""


class AnthropicTranslation(Translation):
    """Anthropic's words."""

    _read_plain = staticmethod(anthropic_completion)
    sample = (
        b'{"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [{"type":'
        b' "text", "text": "ok"}], "stop_reason": "end_turn", "stop_sequence": null,'
        b' "usage": {"input_tokens": 1, "output_tokens": 1}}'
    )

    def _address(self) -> str:
        from litellm.llms.anthropic.chat.handler import ModelResponseIterator  # noqa: PLC0415

        self._iterator = ModelResponseIterator
        return f"{self._base}/v1/messages"

    def _headers(self, messages: list[Any], options: dict[str, Any]) -> dict[str, str]:
        # They depend on what of Anthropic's trial features is used; a plain request uses none.
        if options.keys() <= _ANTHROPIC_PLAIN and all(map(is_only_text, messages)):
            if self._plain_headers is None:
                self._plain_headers = self._headers_for(messages, options)
            return dict(self._plain_headers)  # the translation of the body may add to them
        return self._headers_for(messages, options)

    _plain_headers: dict[str, str] | None = None

    def _headers_for(self, messages: list[Any], options: dict[str, Any]) -> dict[str, str]:
        headers: dict[str, str] = self._config.validate_environment(
            dict(self._extra_headers), self._model, messages, options, {}, self._key, self._base
        )
        return headers

    def _body(
        self,
        messages: list[Any],
        options: dict[str, Any],
        headers: dict[str, str],
        notes: dict[str, Any],
    ) -> dict[str, Any]:
        without = {name: value for name, value in options.items() if name != "json_mode"}
        without["is_vertex_request"] = False
        return super()._body(messages, without, headers, notes)

    stream_sample = (
        b'data: {"type": "message_start", "message": {"id": "1", "model": "m", "usage": {'
        b'"input_tokens": 1, "output_tokens": 1}}}\n\n'
        b'data: {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use",'
        b' "id": "1", "name": "f", "input": {}}}\n\n'
        b'data: {"type": "content_block_stop", "index": 0}\n\n'
        b'data: {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta",'
        b' "text": "ok"}}\n\n'
        b'data: {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {'
        b'"output_tokens": 1}}\n\n'
        b'data: {"type": "message_stop"}\n\n'
    )

    def _reading(
        self, sent: VendorRequest, assembly: Assembly, make_parser: Callable[[], Any]
    ) -> StreamReading:
        return AnthropicReading(assembly, make_parser, translated="json_mode" in sent.options)

    def _parser(self, sent: VendorRequest) -> Any:
        return self._iterator(
            iter(()),
            True,
            json_mode=sent.options.get("json_mode", False),
            tool_name_reverse_map=sent.notes.get(_TOOL_NAMES),
        )
