"""From what a caller passed to a request that can be sent, or a refusal that says what to change.

Everything that can be known to be wrong without asking a vendor is refused here, so that no
attempt, no money and no breaker is spent on it. What comes out is the gateway's own copy:
the caller may change its lists afterwards and nobody notices. Which provider gets the request,
and whether that one can serve it, is not decided here.

Messages name the parameter and the fix. They never quote a prompt, for they end up in logs.
"""

from aigateway.intake.items import Wanted, read_request, row_reader, template_fields
from aigateway.intake.messages import MOST_MESSAGES
from aigateway.intake.requests import chat_request, embedding_request
from aigateway.intake.tokens import (
    USUAL_ANSWER,
    answer_bytes,
    answer_tokens,
    estimated_tokens,
    prompt_size,
    prompt_tokens,
)

__all__ = [
    "MOST_MESSAGES",
    "USUAL_ANSWER",
    "Wanted",
    "answer_bytes",
    "answer_tokens",
    "chat_request",
    "embedding_request",
    "estimated_tokens",
    "prompt_size",
    "prompt_tokens",
    "read_request",
    "row_reader",
    "template_fields",
]
