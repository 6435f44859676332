"""Prices of a provider's tokens, and the abilities of its model.

The figures are those of the price map that comes with litellm, unless the provider's `extra` has
its own: `input_cost_per_token`, `output_cost_per_token`, `cache_read_input_token_cost`,
`cache_creation_input_token_cost` (US dollars per token), `max_input_tokens`, `max_output_tokens`,
`supports_assistant_prefill`, and `base_model` for the model behind a deployment's name. None of
them reaches litellm except `base_model`: litellm would register a price for the whole process.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, TypeVar

from aigateway.events import Operation
from aigateway.messages import (
    Capability,
    ChatRequest,
    Choice,
    Completion,
    EmbeddingRequest,
    Embeddings,
    Usage,
)
from aigateway.settings import LLMConfig, ProviderType, TokenPrices
from aigateway.tokens import answer_bytes, answer_tokens, prompt_size
from aigateway.wires.loading import loaded_litellm
from aigateway.wires.registry import wire_of

__all__ = [
    "ORDINARY_TIERS",
    "OWN_OPTIONS",
    "CostEstimator",
    "Price",
    "Tariff",
    "accepts_prefill",
    "capabilities_of",
    "count_prompt_tokens",
    "max_input_tokens",
    "max_output_tokens",
    "operations_of",
    "own_price_of",
    "price_of",
    "with_default_prices",
]

_DEFAULTS = ("default_input_cost_per_token", "default_output_cost_per_token")
"""Where `with_default_prices` puts them."""

OWN_OPTIONS = frozenset(
    {
        "cache_creation_input_token_cost",
        "cache_read_input_token_cost",
        *_DEFAULTS,
        "input_cost_per_token",
        "max_input_tokens",
        "max_output_tokens",
        "output_cost_per_token",
        "supports_assistant_prefill",
    }
)
"""Keys of `LLMConfig.extra` that end here."""

WRITING_SPEED = 100
"""Tokens that a model writes in a second, where only the time of the call is known. Large models
write 50 to 150."""

_FIRST_ANSWERS, _EVERY = 32, 32
"""Answers from which the length of tokens is learned: the first ones, then one of so many."""


ORDINARY_TIERS = frozenset({None, "auto", "default", "standard"})
"""Service tiers that cost what the price map says first."""

SHORT_PROMPT = 100_000
"""Tokens up to which no vendor charges more per token; the map's first step is at 128,000."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token.

    `cached` is for a token of the prompt that the vendor had in its own cache, `written` for one
    that it wrote to its cache; None costs what any other does.
    """

    input: float
    output: float
    cached: float
    written: float | None = None

    def cost(self, usage: Usage) -> float | None:
        """Return the US dollars for a call; None where the vendor counted no tokens."""
        if not usage.total_tokens:
            return None
        prompt = usage.prompt_tokens
        spent = prompt * self.input + usage.completion_tokens * self.output
        if usage.cached_tokens or usage.cache_write_tokens:
            cached = min(usage.cached_tokens, prompt)
            written = min(usage.cache_write_tokens, prompt - cached)
            spent += cached * (self.cached - self.input)
            if self.written is not None:
                spent += written * (self.written - self.input)
        return spent


_SOURCES = attrgetter("sources_json")


class Tariff:
    """What a provider's calls cost, looked up once.

    Two figures price almost every call. Where the map knows more (other prices beyond some length
    of prompt, for audio, for reasoning, for filling the vendor's cache) and a call has such, the
    price is litellm's own calculation.
    """

    __slots__ = (
        "_entry",
        "_litellm",
        "_model",
        "_own",
        "_price",
        "_priced_apart",
        "_search",
        "_vendor",
    )

    def __init__(self, litellm: Any, config: LLMConfig) -> None:
        self._litellm = litellm
        self._own = own_price_of(config)
        self._price = price_of(config)
        self._entry = next((e for e in _entries(config) if _price(e)), {})
        self._model = str(config.extra.get("base_model") or config.model)
        self._vendor = wire_of(config).litellm_name or str(config.provider)
        searches = self._entry.get("search_context_cost_per_query")
        self._search: float | None = None
        if isinstance(searches, Mapping) and not wire_of(config).counts_searches:
            self._search = _dollars(searches, "search_context_size_medium")
        reasoning = self._entry.get("output_cost_per_reasoning_token")
        self._priced_apart = reasoning not in {None, self._entry.get("output_cost_per_token")}

    def cost(self, response: Any, answer: Completion) -> float | None:
        """Return the US dollars for a call; None without a known price or counted tokens.

        The provider's own prices override what the vendor says, and that the map's. `response` is
        litellm's; None for a plain answer whose price `is_flat`.
        """
        usage, price = answer.usage, self._price
        if self._own is not None:
            return self._own.cost(usage)
        if answer.cost_usd is not None:
            return answer.cost_usd
        if price and self._entry and answer.service_tier not in ORDINARY_TIERS:
            price = _price(self._entry, f"_{answer.service_tier}")
        if price and (response is None or (self.is_flat(usage) and _is_ordinary(response))):
            spent = price.cost(usage)
            # A search of OpenAI's search models shows in the pages that the answer cites.
            if spent and self._search:
                pages = map(_SOURCES, answer.choices)
                if '"url_citation"' in "".join(filter(None, pages)):
                    spent += self._search
            return spent
        if self._price is None or not usage.total_tokens:
            return None
        try:
            spent = float(
                self._litellm.completion_cost(
                    response, model=self._model, custom_llm_provider=self._vendor
                )
            )
        except Exception:  # noqa: BLE001 - an answer without a price is still an answer
            return None
        return spent if 0 <= spent < math.inf else None  # litellm calculates with what was counted

    def price(self, answer: Completion) -> bool:
        """Set the price of a new, plain answer; False if litellm has to calculate it."""
        usage, price = answer.usage, self._price
        if (
            price is None
            or self._own is not None
            or answer.cost_usd is not None
            or answer.service_tier not in ORDINARY_TIERS
            or usage.prompt_tokens > SHORT_PROMPT
            or usage.cache_write_tokens
            or usage.reasoning_tokens
            or (self._search and any(map(_SOURCES, answer.choices)))
        ):
            if not self.is_flat(usage):
                return False
            answer.price(self.cost(None, answer))
        else:  # almost every answer
            answer.price(price.cost(usage))
        return True

    def is_flat(self, usage: Usage) -> bool:
        """Return whether two figures price this usage, as far as it says."""
        if self._own is not None or self._price is None:
            return True
        if usage.prompt_tokens > SHORT_PROMPT and any("above" in name for name in self._entry):
            return False
        if usage.cache_write_tokens and any("above_1hr" in name for name in self._entry):
            return False  # how long they are kept has its price
        return not (usage.reasoning_tokens and self._priced_apart)


class _BytesPerToken:
    """How long a provider's tokens are, from what its vendor counted.

    The latest hundred or so texts count. A caller can move it only so far: a token always has one
    to eight bytes of UTF-8.
    """

    __slots__ = ("_bytes", "_tokens")

    def __init__(self) -> None:
        self._bytes, self._tokens = 64.0, 16.0  # OpenAI's rule of thumb, with little weight

    def learn(self, size: int, tokens: int) -> None:
        """Learn that a text of so many bytes had so many tokens."""
        if size > 0 and tokens > 0:
            self._bytes = 0.99 * self._bytes + size
            self._tokens = 0.99 * self._tokens + tokens

    def tokens(self, size: int) -> int:
        """Return how many tokens a text of so many bytes has."""
        return math.ceil(size / min(max(self._bytes / self._tokens, 1.0), 8.0))


R = TypeVar("R", bound=Completion | Embeddings)


class CostEstimator:
    """Usage and cost of a provider's calls where the vendor's own count did not come, or not all.

    What the vendor has counted stands. The rest is counted from the text that was sent and
    received, by the length of the tokens that the same vendor counted before.
    """

    __slots__ = ("_answers", "_config", "_prompts", "_seen")

    def __init__(self, config: LLMConfig) -> None:
        self._config = config
        self._prompts = _BytesPerToken()
        self._answers = _BytesPerToken()
        self._seen = 0

    def whole(self, request: ChatRequest | EmbeddingRequest, answer: R) -> R:
        """Return an answer that came to its end, with the usage and the cost that it really has.

        The vendor's count shows how long its tokens are. After the first answers only some are
        looked at, since every request passes here.
        """
        if not answer.usage.total_tokens:
            return self.counted(request, answer)
        self._seen += 1
        if isinstance(answer, Completion) and (
            self._seen <= _FIRST_ANSWERS or not self._seen % _EVERY
        ):
            usage = answer.usage
            seen = usage.completion_tokens - usage.reasoning_tokens
            self._answers.learn(answer_bytes(answer.choices), seen)
            size, other = prompt_size(request)
            if not other:
                self._prompts.learn(size, usage.prompt_tokens)
        return answer

    def counted(self, request: ChatRequest | EmbeddingRequest, answer: R) -> R:
        """Return an answer that may have broken off, with the usage and cost that it really has.

        What the vendor has counted of it is only where it stood when the vendor sent that.
        """
        usage = answer.usage
        choices = answer.choices if isinstance(answer, Completion) else ()
        ended = bool(choices) and all(choice.finish_reason is not None for choice in choices)
        if ended and usage.completion_tokens:
            return answer
        prompt = usage.prompt_tokens or self._prompt_tokens(request)
        written = self._answers.tokens(answer_bytes(choices)) + usage.reasoning_tokens
        written = max(usage.completion_tokens, written)
        return replace(
            answer,
            usage=replace(
                usage,
                prompt_tokens=prompt,
                completion_tokens=written,
                total_tokens=prompt + written,
            ),
            cost_usd=self._cost(answer, prompt, written),
        )

    def unanswered(
        self, request: ChatRequest | EmbeddingRequest, seconds: float
    ) -> Completion | Embeddings:
        """Estimate a call that broke off before anything came, after so many seconds.

        The answer has as many tokens as the vendor could write meanwhile, and no more than the
        request allows.
        """
        model = self._config.model
        if isinstance(request, EmbeddingRequest):
            return self.counted(request, Embeddings(model, ()))
        n = request.params.get("n")
        many = n if isinstance(n, int) else 1
        most = answer_tokens(request)
        written = many * min(int(seconds * WRITING_SPEED), math.inf if most is None else most)
        usage = Usage(0, int(written), int(written))
        return self.counted(request, Completion("", model, (Choice(),), usage))

    def _prompt_tokens(self, request: ChatRequest | EmbeddingRequest) -> int:
        size, other = prompt_size(request)
        return self._prompts.tokens(size) + other

    def _cost(self, answer: Completion | Embeddings, prompt: int, written: int) -> float | None:
        """Return US dollars; what the vendor has counted keeps its own price."""
        known, usage = answer.cost_usd, answer.usage
        if known is not None:
            prompt -= usage.prompt_tokens
            written -= usage.completion_tokens
        price = price_of(self._config)
        if price is None:
            return known
        cost = prompt * price.input + written * price.output
        if prompt > SHORT_PROMPT and own_price_of(self._config) is None:
            cost = self._long_cost(prompt, written) or cost
        return cost + (known or 0.0)

    def _long_cost(self, prompt: int, written: int) -> float | None:
        """Return US dollars by litellm's calculation, which knows the steps of a price."""
        litellm = loaded_litellm()
        with contextlib.suppress(Exception):  # then the flat price has to do
            return float(
                sum(
                    litellm.cost_per_token(  # type: ignore[union-attr]
                        model=str(self._config.extra.get("base_model") or self._config.model),
                        custom_llm_provider=wire_of(self._config).litellm_name or None,
                        prompt_tokens=prompt,
                        completion_tokens=written,
                    )
                )
            )
        return None


_MEDIA = ("audio", "image")


def _is_ordinary(response: Any) -> bool:
    """Return whether nothing in a response has a price of its own."""
    counted = getattr(response, "usage", None)
    prompt = getattr(counted, "prompt_tokens_details", None)
    answer = getattr(counted, "completion_tokens_details", None)
    searches = ("web_search_requests", "google_maps_grounding_requests")
    return not (
        getattr(counted, "server_tool_use", None)
        or any(getattr(prompt, name, None) for name in searches)
        or any(getattr(d, f"{kind}_tokens", None) for d in (prompt, answer) for kind in _MEDIA)
    )


def price_of(config: LLMConfig) -> Price | None:
    """Return the price that `extra` gives, else the map's; None if neither is known (yet)."""
    known = _price(config.extra) or next(filter(None, map(_price, _entries(config))), None)
    if known is not None:
        return known
    own = config.extra
    given, answered = (own.get(name) for name in _DEFAULTS)
    return None if given is None or answered is None else Price(given, answered, given)


def own_price_of(config: LLMConfig) -> Price | None:
    """Return the price that `extra` gives, if any: it overrides litellm's."""
    return _price(config.extra)


def with_default_prices(config: LLMConfig, prices: TokenPrices | None) -> LLMConfig:
    """Return the configuration with prices for the case that none is known."""
    if prices is None:
        return config
    defaults = dict(zip(_DEFAULTS, (prices.input / 1e6, prices.output / 1e6), strict=True))
    return config.model_copy(update={"extra": {**config.extra, **defaults}})


def max_input_tokens(config: LLMConfig) -> int | None:
    """Return how many tokens the provider's model takes in: from `extra`, else the map."""
    limits = (entry.get("max_input_tokens") for entry in (config.extra, *_entries(config)))
    return next((n for n in limits if type(n) is int and n > 0), None)


def max_output_tokens(config: LLMConfig) -> int | None:
    """Return how many tokens an answer of the provider's model may have, likewise."""
    limits = (entry.get("max_output_tokens") for entry in (config.extra, *_entries(config)))
    return next((n for n in limits if type(n) is int and n > 0), None)


def accepts_prefill(config: LLMConfig) -> bool:
    """Return whether the model continues a trailing assistant message, as far as is known."""
    said = (e.get("supports_assistant_prefill") for e in (config.extra, *_entries(config)))
    return next((known for known in said if isinstance(known, bool)), False)


_FLAGS: Mapping[Capability, str] = {
    "vision": "supports_vision",
    "pdf": "supports_pdf_input",
    "audio_input": "supports_audio_input",
    "audio_output": "supports_audio_output",
    "tools": "supports_function_calling",
    "parallel_tools": "supports_parallel_function_calling",
    "json_schema": "supports_response_schema",
    "reasoning": "supports_reasoning",
}

_MEDIA_FLAGS: frozenset[Capability] = frozenset({"vision", "pdf", "audio_input", "audio_output"})
_DENIED: Mapping[ProviderType, frozenset[Capability]] = {
    ProviderType.OPENAI: frozenset(_FLAGS),
    ProviderType.AZURE: frozenset(_FLAGS),
    ProviderType.ANTHROPIC: frozenset(_FLAGS),
    ProviderType.GEMINI: frozenset(_FLAGS) - {"json_schema"},
}
"""Flags whose `false` is believed. Elsewhere, those of media: litellm puts tools and schemas into
the prompt of a model that has none."""

_DENIED_BY_ABSENCE: Mapping[ProviderType, frozenset[Capability]] = {
    ProviderType.OPENAI: _MEDIA_FLAGS,
    ProviderType.ANTHROPIC: frozenset({"audio_input", "audio_output"}),
    ProviderType.GEMINI: frozenset({"audio_output"}),
}
"""Flags that the map sets for every model of the vendor that can, so that an entry without one
means that its model cannot. Read in litellm 1.109.3; all other flags are missing here and there."""


def capabilities_of(config: LLMConfig) -> Mapping[Capability, bool]:
    """Return what the map says the model can and cannot do; what it does not know is missing."""
    entries, vendor = list(_entries(config)), config.provider
    # Entries of fine-tuned models and brief ones (new models) leave flags out.
    full = any(_FLAGS["tools"] in entry for entry in entries) and not config.model.startswith("ft:")
    absent = _DENIED_BY_ABSENCE.get(vendor, frozenset()) if full else frozenset()
    denied = _DENIED.get(vendor, _MEDIA_FLAGS)
    speaks = any("audio" in (e.get("supported_output_modalities") or ()) for e in entries)
    known: dict[Capability, bool] = {}
    for name, flag in _FLAGS.items():
        said = next((e[flag] for e in entries if isinstance(e.get(flag), bool)), None)
        if name == "audio_output" and speaks:
            said = True  # the flag of some models that only speak is false
        if said is None and name in absent:
            said = False
        if said or (said is False and name in denied):
            known[name] = said
    return known


_OPERATIONS: Mapping[str, frozenset[Operation]] = {
    "chat": frozenset({"chat"}),
    "completion": frozenset({"chat"}),
    "responses": frozenset({"chat"}),
    "embedding": frozenset({"embeddings"}),
}
"""What the map's `mode` tells. Models with other modes (images, audio) may well chat, too."""


def operations_of(config: LLMConfig) -> frozenset[Operation] | None:
    """Return which operations the model is known to do: as configured, else from the map."""
    if config.operations is not None:
        return config.operations
    for entry in _entries(config):
        if str(entry.get("litellm_provider")).startswith("ollama"):
            return None  # such a server embeds with chat models, too
        mode = entry.get("mode")
        if isinstance(mode, str) and mode:
            return _OPERATIONS.get(mode)
    return None


def _price(entry: Mapping[str, Any], tier: str = "") -> Price | None:
    """Return the price in a map's entry or in `extra`; of a service tier by its names' ending."""
    given, answered = (
        _dollars(entry, f"input_cost_per_token{tier}"),
        _dollars(entry, f"output_cost_per_token{tier}"),
    )
    if given is None or answered is None:
        return None
    cached = _dollars(entry, f"cache_read_input_token_cost{tier}")
    written = _dollars(entry, f"cache_creation_input_token_cost{tier}")
    return Price(given, answered, given if cached is None else cached, written)


def _dollars(entry: Mapping[str, Any], name: str) -> float | None:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value >= 0 else None


def _entries(config: LLMConfig) -> Iterator[Mapping[str, Any]]:
    """Yield what the map says about this model, the most specific name first."""
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
    wire = wire_of(config)
    if wire.lists_models:  # else only `base_model` says what it is
        models.append(config.model)
    for model in models:
        if wire.litellm_name:
            yield f"{config.provider}/{model}"
        yield model
        if not wire.litellm_name:
            yield model.partition("/")[2]  # the map leaves "openai/" and "anthropic/" off


def count_prompt_tokens(model: str, messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Count the tokens of a prompt; None without litellm, or if it cannot count this.

    The first call loads litellm's tokenizer, which takes about 100 MB. For models of vendors that
    do not publish theirs, litellm counts with OpenAI's, which is near.
    """
    litellm = loaded_litellm()
    if litellm is None:
        return None
    with contextlib.suppress(Exception):  # what litellm makes of odd messages is its own affair
        return int(litellm.token_counter(model=model, messages=[dict(m) for m in messages]))
    return None
