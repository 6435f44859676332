"""The cache key: equal for two requests that one answer serves.

A needless miss costs one call, a wrong hit gives a caller the wrong answer. So everything unknown
is part of the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from aigateway.errors import RequestRejectedError
from aigateway.messages import CHAT_PARAMS, ChatRequest, EmbeddingRequest
from aigateway.settings import LLMConfig

__all__ = [
    "LONG",
    "NEUTRAL",
    "cache_key",
    "configuration_digest",
    "embedding_key",
    "prompt_key",
    "request_digest",
    "same_number",
]

LONG = 262_144
"""Bytes of a request above which its key is made in a thread: ten million take 0.1 s."""

_FORMAT = 2
"""Part of every key. Raise it with any change here, so that no old entry is read."""

NEUTRAL = frozenset(
    {
        # Identify the caller to the vendor.
        "metadata",
        "safety_identifier",
        "store",
        "user",
        # Change the cost or the latency, not the model or its answer.
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        # Change how the answer is transported.
        "stream",
        "stream_options",
    }
)
"""Parameters that do not change the answer."""

_TRANSPORT = frozenset({"stream", "stream_options"})

_EXACT = 2**53  # above, floats cannot represent every whole number


def cache_key(request: ChatRequest, *, partition: str = "") -> str:
    """Return the key of the request's answer: equal for two requests if one answer serves both.

    It covers the model, the messages in their order, and every parameter that can change the
    answer. The order of a mapping's keys does not count, None is the same as absent (for a
    parameter and for a message's field), and a parameter of 1 is the same as 1.0 but not as True.

    Not covered: `timeout`, `agent`, `cache`, `cache_ttl` and `request_id`, which the vendor never
    sees; parameters that only identify the caller or change cost or transport (`user`, `metadata`,
    `store`, `safety_identifier`, `service_tier`, `prompt_cache_key`, `stream`, ...); and
    `response_model`, because its schema is in `params["response_format"]` and each caller parses
    the cached text with its own class.

    Args:
        request: The request.
        partition: Separates groups of callers that must not share answers, such as tenants.

    Returns:
        64 hexadecimal digits (BLAKE2b, which is quicker for short texts than OpenSSL's SHA-256),
        which do not reveal the prompt.

    Raises:
        RequestRejectedError: The request cannot be written as JSON. `chat()` rejects such a
            request before.
    """
    # Only parameters themselves: walking through every tool's schema would cost more than the rare
    # miss that it saves.
    params = request.params and {
        name: same_number(value)
        for name, value in request.params.items()
        if value is not None and name not in NEUTRAL
    }
    messages: Iterable[Mapping[str, Any]] = request.messages
    for message in messages:
        if None in message.values():
            messages = tuple(map(_without_none, messages))
            break
    identity: tuple[Any, ...] = (_FORMAT, partition, request.model, messages, params or {})
    if request.native is not None:
        # The chat may say less than the body, which a provider of its protocol gets.
        native = request.native
        # A whole answer repeats what else the body says (`metadata`, `store`, `user`).
        body = {name: v for name, v in native.body.items() if name not in _TRANSPORT}
        identity = (*identity, native.protocol, body, native.headers)
    try:
        canonical = orjson.dumps(identity, default=_mapping, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:  # it names a type, never a value
        problem = str(error)
    else:
        return hashlib.blake2b(canonical, digest_size=32).hexdigest()
    raise RequestRejectedError(f"The request cannot be written as JSON: {problem}.")


def request_digest(request: ChatRequest | EmbeddingRequest) -> str | int:
    """Return a digest that is equal for repeats of a request.

    Not for the cache: the partition is left out, since a prompt is the same for every caller.
    """
    if isinstance(request, EmbeddingRequest):
        return _embedding_digest(request, request.params)
    return cache_key(request) if request.size <= LONG else _rough_digest(request)


def _rough_digest(request: ChatRequest) -> int:
    """Return a digest that is cheap for long requests: of all texts, and the size of the rest.

    Python hashes ten million characters in milliseconds, and each text only once.
    """
    contents = (message.get("content") for message in request.messages)
    texts = tuple([content for content in contents if isinstance(content, str)])
    return hash((request.model, request.size, texts))


def prompt_key(
    system: str | None, user: str, model: str | None = None, *, partition: str = ""
) -> str:
    """Return the `cache_key` of `chat(user, system=system, model=model)`.

    Args:
        system: Text of the system message; None or "" stands for none.
        user: Text of the user's message.
        model: As given to `chat()`.
        partition: As for `cache_key`.

    Raises:
        RequestRejectedError: A text holds half a surrogate pair, so it cannot be sent.
    """
    front = ({"role": "system", "content": system},) if system else ()
    request = ChatRequest((*front, {"role": "user", "content": user}), model)
    return cache_key(request, partition=partition)


def configuration_digest(config: LLMConfig) -> str:
    """Return a digest of what decides how a provider answers: model, address, default parameters.

    An answer outlives the configuration below the memory, and vectors outlive it in memory after a
    reload: a provider's name, or an alias, may come to mean another model.
    """
    names = CHAT_PARAMS | {"dimensions"}
    defaults = {name: value for name, value in config.extra.items() if name in names}
    identity = (_FORMAT, config.provider, config.model, config.api_base, defaults)
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    canonical = orjson.dumps(identity, default=repr, option=options)
    return hashlib.sha256(canonical, usedforsecurity=False).hexdigest()[:16]


def embedding_key(request: EmbeddingRequest) -> str:
    """Return the key of the request's vectors, likewise; no chat has it."""
    params = {name: value for name, value in request.params.items() if name not in NEUTRAL}
    return f"embeddings:{_embedding_digest(request, params, request.partition)}"


def _embedding_digest(request: EmbeddingRequest, params: Mapping[str, Any], *also: str) -> str:
    identity = (_FORMAT, request.model, request.inputs, dict(params), *also)
    canonical = orjson.dumps(identity, default=_mapping, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(canonical, digest_size=32).hexdigest()


def _without_none(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in message.items() if value is not None}


def same_number(value: Any) -> Any:
    """Return a whole float as an int: `temperature=0.0` is `temperature=0`."""
    if isinstance(value, float) and value.is_integer() and -_EXACT <= value <= _EXACT:
        return int(value)
    return value


def _mapping(value: object) -> dict[Any, Any]:
    """Convert a mapping that is not a dict, such as a frozen one."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError
