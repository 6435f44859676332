"""What a provider's tokens cost, how much its model takes in, and whether it goes on from a start.

The figures are those of the price map that comes with litellm, unless the provider's `extra`
says better: `input_cost_per_token`, `output_cost_per_token`, `cache_read_input_token_cost` (US
dollars per token), `max_input_tokens`, `supports_assistant_prefill`, and `base_model` for the model
behind a deployment's name. None of them reaches litellm except `base_model`: litellm would register
a price for the whole process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aigateway.messages import Usage
from aigateway.settings import LLMConfig, ProviderType
from aigateway.vendor.loading import loaded_litellm

__all__ = [
    "OWN_OPTIONS",
    "Price",
    "Tariff",
    "accepts_prefill",
    "max_input_tokens",
    "own_price_of",
    "price_of",
]

OWN_OPTIONS = frozenset(
    {
        "cache_read_input_token_cost",
        "input_cost_per_token",
        "max_input_tokens",
        "output_cost_per_token",
        "supports_assistant_prefill",
    }
)
"""Keys of `LLMConfig.extra` that end here."""

SHORT_PROMPT = 100_000
"""Tokens up to which no vendor charges more per token; the map's first step is at 128,000."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token.

    Attributes:
        input: For a token of the prompt.
        output: For a token of the answer.
        cached: For a token of the prompt that the vendor had in its own cache.
    """

    input: float
    output: float
    cached: float

    def cost(self, usage: Usage) -> float | None:
        """US dollars for a call; None where the vendor counted no tokens."""
        if not usage.total_tokens:
            return None
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        fresh = usage.prompt_tokens - cached
        spent = fresh * self.input + cached * self.cached
        return spent + usage.completion_tokens * self.output


class Tariff:
    """What a provider's calls cost, looked up once.

    Two figures price almost every call. Where the map knows more (other prices beyond some length
    of prompt, for audio, for reasoning, for filling the vendor's cache) and a call has such, the
    price is litellm's own calculation.

    Args:
        litellm: Loaded.
        config: The provider.
    """

    __slots__ = ("_entry", "_litellm", "_model", "_own", "_price", "_vendor")

    def __init__(self, litellm: Any, config: LLMConfig) -> None:
        self._litellm = litellm
        self._own = own_price_of(config)
        self._price = price_of(config)
        self._entry = next((e for e in _entries(config) if _price(e)), {})
        self._model = str(config.extra.get("base_model") or config.model)
        self._vendor = str(config.provider)

    def cost(self, response: Any, usage: Usage) -> float | None:
        """US dollars for a call; None where the price is not known or no tokens were counted.

        Args:
            response: litellm's `ModelResponse`; None for a plain answer whose price `is_flat`.
            usage: Its usage, in the house's own form.
        """
        if self._own is not None:
            return self._own.cost(usage)
        if self._price is None or not usage.total_tokens:
            return None
        if self.is_flat(usage) and (response is None or _is_ordinary(response)):
            return self._price.cost(usage)
        try:
            spent = float(
                self._litellm.completion_cost(
                    response, model=self._model, custom_llm_provider=self._vendor
                )
            )
        except Exception:  # noqa: BLE001 - an answer without a price is still an answer
            return None
        return spent if 0 <= spent < math.inf else None  # litellm calculates with what was counted

    def is_flat(self, usage: Usage) -> bool:
        """Whether two figures price this usage, so far as it tells."""
        if self._own is not None or self._price is None:
            return True
        if usage.prompt_tokens > SHORT_PROMPT and any("above" in name for name in self._entry):
            return False
        reasoning = self._entry.get("output_cost_per_reasoning_token")
        return not usage.reasoning_tokens or reasoning in {
            None,
            self._entry["output_cost_per_token"],
        }


def _is_ordinary(response: Any) -> bool:
    """Whether nothing in a response has a price of its own."""
    counted = getattr(response, "usage", None)
    prompt = getattr(counted, "prompt_tokens_details", None)
    answer = getattr(counted, "completion_tokens_details", None)
    return getattr(response, "service_tier", None) in {None, "default", "auto"} and not (
        getattr(counted, "cache_creation_input_tokens", None)
        or getattr(prompt, "audio_tokens", None)
        or getattr(prompt, "image_tokens", None)
        or getattr(answer, "audio_tokens", None)
    )


def price_of(config: LLMConfig) -> Price | None:
    """Look a provider's price up.

    Returns:
        The price that `extra` gives, else the map's; None if neither knows it, or if only the map
        could and litellm has not been loaded yet.
    """
    return _price(config.extra) or next(filter(None, map(_price, _entries(config))), None)


def own_price_of(config: LLMConfig) -> Price | None:
    """Give the price that `extra` gives, if it does: it stands over litellm's."""
    return _price(config.extra)


def max_input_tokens(config: LLMConfig) -> int | None:
    """How many tokens the provider's model takes in.

    Returns:
        What `extra` says, else the map; None if neither knows, or if only the map could and
        litellm has not been loaded yet.
    """
    for entry in (config.extra, *_entries(config)):
        limit = entry.get("max_input_tokens")
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    return None


def accepts_prefill(config: LLMConfig) -> bool:
    """Whether the provider's model goes on from a trailing message of the assistant.

    Returns:
        What `extra` says, else the map; False if neither knows, or if only the map could and
        litellm has not been loaded yet.
    """
    for entry in (config.extra, *_entries(config)):
        known = entry.get("supports_assistant_prefill")
        if isinstance(known, bool):
            return known
    return False


def _price(entry: Mapping[str, Any]) -> Price | None:
    given, answered = (
        _dollars(entry, "input_cost_per_token"),
        _dollars(entry, "output_cost_per_token"),
    )
    if given is None or answered is None:
        return None
    cached = _dollars(entry, "cache_read_input_token_cost")
    return Price(given, answered, given if cached is None else cached)


def _dollars(entry: Mapping[str, Any], name: str) -> float | None:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value >= 0 else None


def _entries(config: LLMConfig) -> Iterator[Mapping[str, Any]]:
    """What the map says about this model, the most specific name first."""
    litellm = loaded_litellm()
    if litellm is None:
        return
    entries: Mapping[str, Mapping[str, Any]] = litellm.model_cost
    for name in _names(config):
        if name in entries:
            yield entries[name]


def _names(config: LLMConfig) -> Iterator[str]:
    base_model = config.extra.get("base_model")
    models = [base_model] if isinstance(base_model, str) else []
    if config.provider is not ProviderType.OPENAI_COMPATIBLE:
        # A server of one's own may call anything "gpt-4o"; only `base_model` says what it is.
        models.append(config.model)
    for model in models:
        if config.provider is not ProviderType.LITELLM:
            yield f"{config.provider}/{model}"
        yield model
        if config.provider is ProviderType.LITELLM:
            yield model.partition("/")[2]  # the map leaves "openai/" and "anthropic/" off
