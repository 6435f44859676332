"""Requests with the least said, and a refusal that is searched for the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from aigateway.errors import RequestRejectedError
from aigateway.messages import ChatRequest, EmbeddingRequest
from aigateway.request.validate import chat_request, embedding_request
from aigateway.settings import GatewaySettings

SECRET = "the-prompts-own-words"
SETTINGS = GatewaySettings.model_construct(max_prompt_bytes=10_000)
NAN, INF = math.nan, math.inf
USER = {"role": "user", "content": SECRET}
CYCLE: list[Any] = [USER]
CYCLE.append({"role": "user", "content": SECRET, "a": CYCLE})


def chat(prompt: Any = SECRET, /, **given: Any) -> ChatRequest:
    options = ("system", "model", "temperature", "max_tokens", "timeout", "agent", "cache")
    named = {name: given.pop(name) for name in (*options, "cache_ttl") if name in given}
    return chat_request(prompt, params=given, settings=SETTINGS, **named)


def embed(inputs: Any = SECRET, /, **given: Any) -> EmbeddingRequest:
    named = {name: given.pop(name) for name in ("model", "timeout") if name in given}
    return embedding_request(inputs, params=given, settings=SETTINGS, **named)


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(RequestRejectedError) as caught:
        make()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value)
