"""Which parameters a request may have, and what to do instead of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import orjson
from pydantic import BaseModel

from aigateway.errors import refuse
from aigateway.messages import CHAT_PARAMS
from aigateway.request.json_copy import check_size, copied, encoded_json
from aigateway.request.values import CHECKS
from aigateway.settings import suggestion
from aigateway.structured import strict_format

__all__ = ["copied_chat_params", "copied_embedding_params"]

_CHAT_OPTIONS = ("system", "model", "timeout", "agent", "cache", "cache_ttl")
_EMBEDDING_OPTIONS = ("model", "timeout")

_EMBEDDING_PARAMS = frozenset(
    {"dimensions", "encoding_format", "extra_body", "extra_headers", "user"}
)

_BY_CONFIG = "it belongs to a provider: set it in LLMConfig"
_BY_GATEWAY = "the gateway itself decides that"
_ELSEWHERE = {
    **dict.fromkeys(("api_base", "base_url"), f"{_BY_CONFIG}(api_base=...)"),
    **dict.fromkeys(("max_retries", "num_retries"), "use GatewaySettings(retry_rounds=...)"),
    **dict.fromkeys(("request_timeout", "stream_timeout"), "use timeout="),
    **dict.fromkeys(
        ("stream", "stream_options"), "leave it out; gateway.stream() streams, chat() does not"
    ),
    **{name: f"{_BY_CONFIG}({name}=...)" for name in ("api_key", "api_version")},
    "caching": 'use cache=True, False or "refresh"',
    "client": f"{_BY_GATEWAY}; it keeps its own connections",
    "custom_llm_provider": f"{_BY_CONFIG}(provider=...)",
    "drop_params": "use GatewaySettings(drop_unsupported_params=True)",
    "fallbacks": f"{_BY_GATEWAY}; give it more providers, in order of LLMConfig(priority=...)",
    "headers": "use extra_headers=, or LLMConfig(headers=...) for every call",
    "input_cost_per_token": "a request does not set prices; leave it out",
    "messages": "pass it as the first argument",
    "metadata": "it is not sent; use agent= to label a request",
    "mock_response": "use a fake vendor in tests",
    "model_list": f"{_BY_GATEWAY}; give it a list of LLMConfig",
}


def copied_chat_params(
    given: dict[str, Any], max_bytes: int
) -> tuple[dict[str, Any], type[BaseModel] | None, int]:
    """Check the parameters of `chat()`, and copy them.

    Args:
        given: What the caller passed.
        max_bytes: Longest parameters, as JSON.

    Returns:
        The copy, the class if `response_format` was one, and the bytes of the copy as JSON.
    """
    if given.get("stream") is False:
        del given["stream"]  # what chat() does anyway
    _check_params(given, CHAT_PARAMS, _CHAT_OPTIONS)
    response_model = None
    response_format = given.get("response_format")
    if response_format is not None and not isinstance(response_format, Mapping):
        if not isinstance(response_format, type) or not issubclass(response_format, BaseModel):
            refuse("response_format must be a pydantic model class or OpenAI's mapping for it.")
        response_model = response_format
        given["response_format"] = orjson.Fragment(strict_format(response_model))
    own, size = _copy(given, max_bytes)
    return own, response_model, size


def copied_embedding_params(given: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """Check the parameters of `embed()`, and copy them."""
    _check_params(given, _EMBEDDING_PARAMS, _EMBEDDING_OPTIONS)
    return _copy(given, max_bytes)[0]


def _copy(given: dict[str, Any], max_bytes: int) -> tuple[dict[str, Any], int]:
    encoded = encoded_json(given, "params")
    check_size(len(encoded), max_bytes, "parameters have")
    return copied(given, encoded), len(encoded)


def _check_params(given: dict[str, Any], allowed: frozenset[str], more: Iterable[str]) -> None:
    for name, value in given.items():
        if name not in allowed:
            _refuse_unknown(name, (*allowed, *more))
        check = CHECKS.get(name)
        if check is not None:
            check(name, value)


def _refuse_unknown(name: object, known: Iterable[str]) -> NoReturn:
    text = str(name)[:64]
    if text in _ELSEWHERE:
        refuse(f'"{text}" cannot be given with a request: {_ELSEWHERE[text]}.')
    hint = suggestion(text, sorted(known)) or (
        "; if a vendor knows it, put it into extra_body={...}, else leave it out"
    )
    refuse(f'There is no parameter "{text}"{hint}')
