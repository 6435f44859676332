"""One request out of everything that one call was given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from aigateway.errors import refuse
from aigateway.messages import APPLICATION, CacheMode, ChatRequest, EmbeddingRequest, Origin
from aigateway.request.json_copy import check_size, copied, encoded_json
from aigateway.request.messages import copied_messages
from aigateway.request.params import copied_chat_params, copied_embedding_params
from aigateway.request.values import check_headers, check_name, check_seconds
from aigateway.settings import GatewaySettings

__all__ = ["chat_request", "embedding_request"]

_TOKENS_END = 2**31
"""No vocabulary has so many tokens; a greater number is a mistake."""


def chat_request(
    prompt_or_messages: object,
    *,
    system: str | None = None,
    model: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    timeout: float | None = None,
    agent: str | None = None,
    cache: CacheMode = True,
    cache_ttl: float | None = None,
    origin: Origin = APPLICATION,
    params: Mapping[str, Any],
    settings: GatewaySettings,
) -> ChatRequest:
    """Check what a caller of `chat()` passed, and copy it.

    Args:
        prompt_or_messages: Text, or a list of OpenAI chat messages.
        system: Text of a system message to put in front; None or "" puts none. Refused when the
            messages begin with one, since it would be unclear which of them counts.
        model: A provider's model, name or alias.
        temperature: From 0 to 2.
        max_tokens: Longest answer, at least 1.
        timeout: Seconds for the whole request.
        agent: Whose request this is.
        cache: See `CacheMode`.
        cache_ttl: Seconds the answer may be remembered.
        origin: On whose behalf.
        params: The other OpenAI chat parameters. None counts as not given. `response_format` may
            be a pydantic model class: the answer is then asked for as strict JSON of its schema.
        settings: Gives `max_prompt_bytes`, for the messages and again for the parameters.

    Raises:
        RequestRejectedError: Something cannot be sent; the message says what, and the fix.
    """
    _check_options(model, timeout, origin)
    if agent is not None:
        check_name("agent", agent)
    if cache_ttl is not None:
        check_seconds("cache_ttl", cache_ttl)
    if not isinstance(cache, bool) and cache != "refresh":
        refuse('cache must be True, False or "refresh".')
    most = settings.max_prompt_bytes
    messages, size = copied_messages(prompt_or_messages, system, most)
    given = {name: value for name, value in params.items() if value is not None}
    if temperature is not None:
        given["temperature"] = temperature
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    own, response_model, more = copied_chat_params(given, most) if given else (given, None, 0)
    return ChatRequest(
        messages,
        model,
        own,
        timeout,
        agent,
        cache,
        cache_ttl,
        response_model,
        origin.request_id or _new_id(),
        partition=origin.partition,
        headers=origin.headers,
        on_cost=origin.on_cost,
        tenant=origin.tenant,
        size=size + more,
    )


def embedding_request(
    inputs: object,
    *,
    model: str | None = None,
    timeout: float | None = None,
    origin: Origin = APPLICATION,
    params: Mapping[str, Any],
    settings: GatewaySettings,
) -> EmbeddingRequest:
    """Check what a caller of `embed()` passed, and copy it.

    Args:
        inputs: A text or a list of texts, or the same as tokens: a list of integers, or a list of
            such lists. None of them is empty.
        model: A provider's model, name or alias.
        timeout: Seconds for the whole request.
        origin: On whose behalf.
        params: `dimensions`, `user`, `extra_body`, `extra_headers`. None counts as not given.
        settings: Gives `max_prompt_bytes`, here for all the inputs together.

    Raises:
        RequestRejectedError: Something cannot be sent; the message says what, and the fix.
    """
    _check_options(model, timeout, origin)
    if isinstance(inputs, str) or (_is_list(inputs) and inputs and _is_token(inputs[0])):
        inputs = [inputs]
    if not _is_list(inputs) or not inputs:
        refuse("inputs must be a text or a list of at least one text, or tokens in their place.")
    most = settings.max_prompt_bytes
    as_tokens = _is_list(inputs[0])
    _check_inputs(inputs, most, as_tokens=as_tokens)
    encoded = encoded_json(inputs, "inputs")
    check_size(len(encoded), most)
    own_inputs = copied(inputs, encoded)
    given = {name: value for name, value in params.items() if value is not None}
    own = copied_embedding_params(given, most)
    return EmbeddingRequest(
        tuple(map(tuple, own_inputs) if as_tokens else own_inputs),
        model,
        own,
        timeout,
        origin.request_id or _new_id(),
        origin.partition,
        origin.headers,
        origin.on_cost,
        origin.tenant,
    )


def _check_inputs(inputs: Sequence[Any], most: int, *, as_tokens: bool) -> None:
    size = 0
    check_size(len(inputs), most, or_more=True)
    for index, given in enumerate(inputs):
        if as_tokens:
            if not _is_list(given) or not given:
                refuse(f"inputs[{index}] must be a list of at least one token.")
            size += 2 * len(given)  # a digit and a comma, at least
        elif not isinstance(given, str) or not given:
            refuse(f"inputs[{index}] must be a text that is not empty.")
        else:
            size += len(given)
        check_size(size, most, or_more=True)
        if as_tokens and not all(map(_is_token, given)):
            refuse(f"inputs[{index}] must hold tokens only: integers from 0 to 2^31 - 1.")


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < _TOKENS_END


def _new_id() -> str:
    """Unique across processes, forked ones too, and a third of a UUID's cost."""
    return os.urandom(8).hex()


def _check_options(model: object, timeout: object, origin: Origin) -> None:
    if model is not None:
        check_name("model", model)
    if timeout is not None:
        check_seconds("timeout", timeout)
    if origin is not APPLICATION and not isinstance(origin, Origin):
        refuse(f"origin must be an Origin, not {type(origin).__name__}.")
    if origin.headers:
        check_headers("origin.headers", origin.headers)
