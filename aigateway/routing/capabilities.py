"""What a request needs of a model, which providers have it, and the errors if none does.

Unknown means "may": excluding a provider that could have answered is worse than asking one that
refuses, after which the request fails over. Hints (`reasoning_effort`, `parallel_tool_calls`) never
exclude a provider unless its `LLMConfig(capabilities=...)` says that it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from aigateway.errors import (
    ContextWindowExceededError,
    FailureKind,
    ProviderFailure,
    RequestRejectedError,
)
from aigateway.messages import Capability, ChatRequest, NativeRequest
from aigateway.settings import LLMConfig
from aigateway.tokens import prompt_size

if TYPE_CHECKING:
    from aigateway.routing.provider import Provider

__all__ = [
    "MOST_BYTES_PER_TOKEN",
    "NOTHING",
    "WORDS",
    "cannot",
    "described",
    "needs_of",
    "none_can",
    "none_speaks",
    "too_long",
]

NOTHING: frozenset[Capability] = frozenset()

WORDS: Mapping[Capability, str] = {
    "vision": "images",
    "pdf": "PDF files",
    "audio_input": "audio input",
    "audio_output": "audio output",
    "tools": "tools",
    "parallel_tools": "parallel tool calls",
    "json_schema": "answers by a JSON schema",
    "reasoning": "reasoning",
}
"""Each capability in plain words."""

_HINTS: frozenset[Capability] = frozenset({"parallel_tools", "reasoning"})
"""What the map says of these excludes no provider: they change an answer, but cost none."""

_BY_PARAMETER: frozenset[Capability] = frozenset({"audio_output", "json_schema", "tools"})

_PARTS: Mapping[str, Capability] = {"image_url": "vision", "input_audio": "audio_input"}

MOST_BYTES_PER_TOKEN = 128
"""Bytes of text, for each token of a context window, that exclude a provider: the longest tokens
of any vocabulary. Most have 4, those of padded tables 14: an estimate must not exclude a provider
that could have answered."""

_PROTOCOLS = {
    "messages": "Anthropic's Messages protocol",
    "responses": "OpenAI's Responses protocol",
    "completions": "OpenAI's completions protocol",
}

_NO_REASONING = (None, "none", "disabled")


def needs_of(
    messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]
) -> frozenset[Capability]:
    """Return what a checked chat needs."""
    needs: set[Capability] = set()
    for message in messages:
        content = message.get("content")
        if type(content) is list:
            _look_at_parts(content, needs)
    if params:
        _look_at_params(params, needs)
    return frozenset(needs) if needs else NOTHING


def _look_at_parts(parts: Iterable[Any], needs: set[Capability]) -> None:
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "file":
            _look_at_file(part.get("file"), needs)
        elif isinstance(kind, str) and kind in _PARTS:
            needs.add(_PARTS[kind])


def _look_at_file(file: Any, needs: set[Capability]) -> None:
    """Note what a file needs, if its type is known."""
    if not isinstance(file, Mapping):
        return
    said = (file.get("format"), file.get("file_data"), file.get("filename"))
    kind, data, name = ((each if isinstance(each, str) else "")[-64:] for each in said)
    beginning = file["file_data"][:32].lower() if data else ""
    if kind == "application/pdf" or beginning.startswith("data:application/pdf"):
        needs.add("pdf")
    elif kind.startswith("image/") or beginning.startswith("data:image/"):
        needs.add("vision")
    elif name.lower().endswith(".pdf") and not kind and not beginning.startswith("data:"):
        needs.add("pdf")


def _look_at_params(params: Mapping[str, Any], needs: set[Capability]) -> None:
    if params.get("tools") or params.get("functions"):
        needs.add("tools")
        if params.get("parallel_tool_calls") is True:
            needs.add("parallel_tools")
    form = params.get("response_format")
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        needs.add("json_schema")
    modalities = params.get("modalities")
    if params.get("audio") or (isinstance(modalities, list) and "audio" in modalities):
        needs.add("audio_output")
    thinking = params.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if params.get("reasoning_effort") not in _NO_REASONING or kind not in _NO_REASONING:
        needs.add("reasoning")


def cannot(
    config: LLMConfig, known: Mapping[Capability, bool], *, drops_all: bool
) -> frozenset[Capability]:
    """Return what excludes a provider.

    Args:
        config: Its configuration, whose word counts.
        known: The map's word.
        drops_all: Whether any parameter that a model does not take is left out.
    """
    dropped = _HINTS | _BY_PARAMETER if drops_all else _HINTS
    said = {name: able for name, able in known.items() if name not in dropped}
    said |= config.capabilities
    return frozenset([name for name, able in said.items() if not able])


def described(known: Mapping[Capability, bool], max_input_tokens: int | None = None) -> str:
    """Return in plain words what a model can and cannot do."""
    able = [WORDS[name] for name in WORDS if known.get(name)]
    if max_input_tokens is not None:
        able.append(f"{max_input_tokens:,} tokens of input")
    unable = [f"no {WORDS[name]}" for name in WORDS if known.get(name) is False]
    return ", ".join(able + unable)


def too_long(request: ChatRequest, providers: Sequence[Provider]) -> list[Provider]:
    """Return the providers whose context window is clearly too small for a long request."""
    size, _ = prompt_size(request)
    return [p for p in providers if size > MOST_BYTES_PER_TOKEN * (p.max_input_tokens or math.inf)]


def with_price(providers: Sequence[Provider]) -> Sequence[Provider]:
    """Return those whose price is known, for a caller with a budget.

    Raises:
        RequestRejectedError: There is none.
    """
    priced = tuple([p for p in providers if p.has_price])
    if priced or not providers:
        return priced
    names = ", ".join(p.name for p in providers)
    causes = [ProviderFailure(p.name, FailureKind.UNSUPPORTED, code="no_price") for p in providers]
    raise RequestRejectedError(
        f"This key has a budget, and the price of {names} is not known, so its requests could not"
        " be counted. Configure prices: default_prices under [gateway] for all such models, or for"
        " one provider input_cost_per_token and output_cost_per_token in its `extra` (US dollars; 0"
        " for a model of your own).",
        causes,
        code="no_price",
    )


def none_can(
    request: ChatRequest, providers: Sequence[Provider], long: Sequence[Provider]
) -> RequestRejectedError:
    """Return the error for a request that no provider can serve; it names what is missing at whom.

    `long` are those for which it is too long.
    """
    causes = [
        ProviderFailure(p.name, _kind(p, request.needs), code="capability_missing")
        for p in providers
    ]
    missing = "; ".join(f"{p.name}: {_missing(p, request.needs)}" for p in providers)
    if all(p in long and not request.needs & p.cannot for p in providers):
        return ContextWindowExceededError(
            f"The prompt is too long for every provider ({missing}). Shorten it, or say otherwise"
            " with LLMConfig(extra={'max_input_tokens': ...}).",
            causes,
        )
    return RequestRejectedError(
        f"No provider can serve this request ({missing}). Ask another model, add a provider, or"
        " say otherwise with LLMConfig(capabilities={...}).",
        causes,
        code="capability_missing",
    )


def _kind(provider: Provider, needs: AbstractSet[Capability]) -> FailureKind:
    return FailureKind.UNSUPPORTED if needs & provider.cannot else FailureKind.CONTEXT_WINDOW


def _missing(provider: Provider, needs: AbstractSet[Capability]) -> str:
    lacking = [WORDS[name] for name in WORDS if name in needs & provider.cannot]
    if not lacking:
        return f"takes {provider.max_input_tokens:,} tokens"
    return f"no {' and no '.join(lacking)}"


def none_speaks(native: NativeRequest, providers: Sequence[Provider]) -> RequestRejectedError:
    """Return the error for what only another protocol can say, if no provider speaks that."""
    causes = [
        ProviderFailure(p.name, FailureKind.UNSUPPORTED, code="capability_missing")
        for p in providers
    ]
    names = ", ".join(p.name for p in providers)
    return RequestRejectedError(
        f"{native.only} needs a provider that speaks {_PROTOCOLS[native.protocol]} itself, which"
        f" {names} {'does' if len(providers) == 1 else 'do'} not. Add such a provider, or"
        f" {native.instead}.",
        causes,
        param=native.only,
        code="capability_missing",
    )
