"""Check the arguments of a call, and copy them into one request."""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

import orjson
from pydantic import BaseModel

from aigateway.errors import refuse
from aigateway.messages import (
    APPLICATION,
    CacheMode,
    ChatRequest,
    EmbeddingRequest,
    NativeRequest,
    Origin,
)
from aigateway.options import Resume
from aigateway.request.checks import (
    LONGEST_NAME,
    CheckedMessages,
    check_extra_body,
    check_headers,
    check_inputs,
    check_messages,
    check_name,
    check_seconds,
    fit_fields,
    refuse_field,
    refuse_unknown,
)
from aigateway.request.json_copy import LONG, check_size, copied, encoded_json, json_length
from aigateway.request.schema import CHAT_FIELDS, EMBEDDING_FIELDS
from aigateway.routing.affinity import shared_name
from aigateway.routing.capabilities import NOTHING, needs_of
from aigateway.settings import GatewaySettings
from aigateway.structured import is_schema, schema_format, strict_format

__all__ = [
    "chat_request",
    "copied_messages",
    "embedding_request",
    "one_prompt",
    "stream_arguments",
]

_CHAT_OPTIONS = ("system", "model", "timeout", "agent", "cache", "cache_ttl", "session")
_EMBED_OPTIONS = ("model", "timeout", "agent", "cache", "cache_ttl")
_CHAT_NAMES = CHAT_FIELDS.keys() - {"model", "stream", "stream_options"}

_JSON_KINDS = (Mapping, str, int, float, list, tuple, type(None))
_NEVER_CHANGED = (str, CheckedMessages)

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
    "mock_response": "use a fake vendor in tests",
    "model_list": f"{_BY_GATEWAY}; give it a list of LLMConfig",
}


_ids = random.Random()
"""Names requests; a third of the cost of `os.urandom`. `random.seed` does not reach it."""
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_ids.seed)


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
    session: str | None = None,
    hedge: bool | None = None,
    background: bool = False,
    origin: Origin | None = None,
    native: NativeRequest | None = None,
    params: Mapping[str, Any],
    settings: GatewaySettings,
) -> ChatRequest:
    """Check the arguments of `chat()`, as `ChatOptions` describes them, and copy them.

    `params` are the parameters of the model; None counts as not given. A pydantic model class as
    `response_format` asks for strict JSON of its schema. The messages may have `max_prompt_bytes`,
    and the parameters as much again. `system` is refused when the messages begin with a system
    message, since it would be unclear which of them counts.

    Raises:
        RequestRejectedError: The message names the mistake, and the fix.
    """
    if not origin:
        origin = APPLICATION
    is_plain = model is None and timeout is None and hedge is None and agent is None
    if not is_plain or origin is not APPLICATION:
        _check_options(model, timeout, origin, hedge, agent)
    if cache_ttl is not None or cache is not True:
        _check_caching(None, cache, cache_ttl)
    if session is not None:
        check_name("session", session)
    most = settings.max_prompt_bytes
    messages, size = copied_messages(prompt_or_messages, system, most)
    given = {name: value for name, value in params.items() if value is not None} if params else {}
    if temperature is not None:
        given["temperature"] = temperature
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    response_model = None
    if given:
        given, response_model, more = _copied_chat_fields(given, most)
        size += more
    finds = origin.find_session and session is None
    needs = NOTHING if type(prompt_or_messages) is str and not given else needs_of(messages, given)
    return ChatRequest(  # by position, which takes half the time
        messages,
        model,
        given,
        timeout,
        agent,
        cache,
        cache_ttl,
        response_model,
        origin.request_id or _ids.getrandbits(64).to_bytes(8).hex(),
        hedge,
        background,
        origin.partition,
        origin.headers,
        origin.on_cost,
        origin.tenant,
        size,
        native,
        session,
        finds,
        shared_name(params, native) if finds and (params or native) else None,
        needs,
        origin.needs_price,
    )


def embedding_request(
    inputs: object,
    *,
    model: str | None = None,
    timeout: float | None = None,
    agent: str | None = None,
    cache: CacheMode = False,
    cache_ttl: float | None = None,
    origin: Origin = APPLICATION,
    params: Mapping[str, Any],
    settings: GatewaySettings,
) -> EmbeddingRequest:
    """Check the arguments of `embed()`, as `EmbedOptions` describes them, and copy them.

    `inputs` are a text or a list of texts, or the same as tokens: a list of integers, or a list of
    such lists. None of them is empty. All together may have `max_prompt_bytes`.

    Raises:
        RequestRejectedError: The message names the mistake, and the fix.
    """
    _check_options(model, timeout, origin, None, None)
    _check_caching(agent, cache, cache_ttl)
    most = settings.max_prompt_bytes
    inputs = check_inputs(inputs, "inputs", most)
    encoded = encoded_json(inputs, "inputs")
    check_size(len(encoded), most)
    own_inputs = copied(inputs, encoded)
    given = {name: value for name, value in params.items() if value is not None}
    _check_fields("embedding", given, EMBEDDING_FIELDS.keys() - {"model"}, _EMBED_OPTIONS)
    if given.pop("encoding_format", "float") != "float":
        refuse_field("encoding_format", 'must be "float" or left out: vectors come as numbers')
    own = _copied_fields(given, most)[0]
    as_tokens = isinstance(own_inputs[0], list)
    return EmbeddingRequest(
        tuple(map(tuple, own_inputs) if as_tokens else own_inputs),
        model,
        own,
        timeout,
        origin.request_id or _ids.getrandbits(64).to_bytes(8).hex(),
        origin.partition,
        origin.headers,
        origin.on_cost,
        origin.tenant,
        origin.needs_price,
        agent,
        cache,
        cache_ttl,
    )


def one_prompt(*given: Any) -> Any:
    """Return the prompt, or the messages, that a call was given."""
    contents = [each for each in given if each is not None]
    if len(contents) != 1:
        how = 'chat("..."), chat(prompt="...") or chat(messages=[...])'
        refuse(f"Give one prompt, or messages: {how}.")
    return contents[0]


def stream_arguments(options: Mapping[str, Any]) -> tuple[dict[str, Any], Resume | None]:
    """Return the options of `stream` that `chat` has, too, and `resume`.

    Callers of OpenAI's SDK add `stream` and `stream_options` for a stream with usage, which is the
    default here.
    """
    kept = dict(options)
    if kept.pop("stream", True) is not True:
        refuse("stream() streams: leave `stream` out, or call chat().")
    usage = kept.get("stream_options")
    if isinstance(usage, Mapping) and usage.keys() <= {"include_usage"}:
        del kept["stream_options"]
    resume = kept.pop("resume", None)
    if resume is not None and resume not in ("continue", "restart"):
        refuse('resume must be None, "continue" or "restart".')
    return kept, resume


def copied_messages(
    prompt: object, system: object, max_bytes: int
) -> tuple[tuple[dict[str, Any], ...], int]:
    """Check a prompt, put the system message in front, and return both with their bytes as JSON."""
    if system is not None and not isinstance(system, str):
        refuse("system must be a text; pass a message with parts inside the list of messages.")
    if system:
        check_size(json_length(system), max_bytes, or_more=True)
    if type(prompt) is str and 0 < len(prompt) <= min(LONG, max_bytes) and not prompt.isspace():
        messages: Sequence[Any] = ({"role": "user", "content": prompt},)  # almost every prompt
    elif type(prompt) is CheckedMessages:
        messages = prompt
    else:
        messages = _checked_messages(prompt, max_bytes)
    encoded = encoded_json(messages, "The prompt" if isinstance(prompt, str) else "messages")
    size = len(encoded)
    front: tuple[dict[str, Any], ...] = ()
    if system:
        if messages[0].get("role") in {"system", "developer"}:
            refuse("system= is given and the messages begin with a system message; give only one.")
        front = ({"role": "system", "content": system},)
        encoded_front = encoded_json(front, "system")
        size += len(encoded_front) - 2  # without the brackets of the list
        if type(system) is not str:
            front = tuple(copied(front, encoded_front))
    if size > max_bytes:
        check_size(size, max_bytes)
    if type(prompt) not in _NEVER_CHANGED:
        messages = copied(messages, encoded)
    return (*front, *messages) if front else tuple(messages), size


def _checked_messages(prompt: object, max_bytes: int) -> Sequence[Any]:
    """Check a prompt without copying it."""
    if isinstance(prompt, str):
        if len(prompt) > min(LONG, max_bytes):
            check_size(json_length(prompt), max_bytes, or_more=True)
        if not prompt or prompt.isspace():
            refuse("The prompt is empty.")
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple):
        refuse(f"The prompt must be a text or a list of messages, not {type(prompt).__name__}.")
    check_messages(prompt, max_bytes)
    return prompt


def _copied_chat_fields(
    given: dict[str, Any], max_bytes: int
) -> tuple[dict[str, Any], type[BaseModel] | None, int]:
    """Return the copy, the class if `response_format` was one, and the copy's bytes as JSON."""
    if given.get("stream") is False:
        del given["stream"]  # `chat` does not stream anyway
    response_format, response_model = given.get("response_format"), None
    if isinstance(response_format, type) and issubclass(response_format, BaseModel):
        response_model = given.pop("response_format")
    elif not isinstance(response_format, _JSON_KINDS):
        refuse_field("response_format", "must be a pydantic model class, or OpenAI's dict")
    tools = given.get("tools")
    if isinstance(tools, list | tuple) and any(map(callable, tools)):
        fix = "gateway.run_tools(prompt, tools=[...]) calls functions"
        refuse_field("tools", f"must be objects in OpenAI's form; {fix}")
    _check_fields("chat", given, _CHAT_NAMES, _CHAT_OPTIONS)
    given.pop("metadata", None)  # for the service's clients; no vendor gets it
    if response_model is not None:
        given["response_format"] = orjson.Fragment(strict_format(response_model))
    own, size = _copied_fields(given, max_bytes)
    if isinstance(response_format, Mapping) and is_schema(response_format):
        schema = own["response_format"]
        title = schema.get("title")
        name = title if isinstance(title, str) and title else "answer"
        own["response_format"] = schema_format(name, schema)
    return own, response_model, size


def _check_fields(
    form: Literal["chat", "embedding"],
    given: dict[str, Any],
    names: AbstractSet[str],
    options: Sequence[str],
) -> None:
    if not given.keys() <= names:
        unknown = next(name for name in given if name not in names)
        otherwise = "if a vendor knows it, put it into extra_body={...}, else leave it out"
        refuse_unknown(unknown, (*names, *options), _ELSEWHERE, otherwise)
    fit_fields(form, given)
    if "extra_headers" in given:
        check_headers("extra_headers", given["extra_headers"])
    if "extra_body" in given:
        check_extra_body("extra_body", given["extra_body"])


def _copied_fields(given: dict[str, Any], max_bytes: int) -> tuple[dict[str, Any], int]:
    encoded = encoded_json(given, "params")
    check_size(len(encoded), max_bytes, "parameters have")
    return copied(given, encoded), len(encoded)


def _check_caching(agent: object, cache: object, cache_ttl: object) -> None:
    if agent is not None:
        check_name("agent", agent)
    if cache_ttl is not None:
        check_seconds("cache_ttl", cache_ttl)
    if not isinstance(cache, bool) and cache != "refresh":
        refuse('cache must be True, False or "refresh".')


def _check_options(
    model: object, timeout: object, origin: Origin, hedge: object, agent: object
) -> None:
    # What is usual needs no further look; the checks have the words for the rest.
    if model is not None and not (type(model) is str and 0 < len(model) <= LONGEST_NAME):
        check_name("model", model)
    if timeout is not None and not (type(timeout) is float and 0 < timeout < math.inf):
        check_seconds("timeout", timeout)
    if not isinstance(origin, Origin):
        refuse(f"origin must be an Origin, not {type(origin).__name__}.")
    if origin.headers:
        check_headers("origin.headers", origin.headers)
    if hedge is not None and not isinstance(hedge, bool):
        refuse("hedge must be True, False or None.")
    if agent is not None and not (type(agent) is str and 0 < len(agent) <= LONGEST_NAME):
        check_name("agent", agent)
