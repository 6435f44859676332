"""OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses.

A request is read as a chat. Tools that a chat does not have become functions, and their calls are
written in the tools' own forms. What a vendor needs back in the next request travels sealed as
`encrypted_content` of reasoning items. Nothing is stored.
"""

from __future__ import annotations

from aigateway.protocols.openai_responses.answer import (
    ResponsesWriter,
    ended_with_error,
    written_response,
)
from aigateway.protocols.openai_responses.request import read_request
from aigateway.protocols.protocol import CallerProtocol

__all__ = ["RESPONSES"]

RESPONSES = CallerProtocol(read_request, written_response, ResponsesWriter, ended_with_error)
