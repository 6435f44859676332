"""The settings of one provider: its API, its model, and how to reach it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Hashable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    Secret,
    SecretStr,
    SerializerFunctionWrapHandler,
    StrictBool,
    ValidationError,
    field_serializer,
    model_validator,
)

from aigateway.errors import ConfigurationError
from aigateway.events import Operation
from aigateway.messages import Capability
from aigateway.settings.fields import (
    Count,
    Frozen,
    Header,
    Key,
    KeyFunction,
    Label,
    Positive,
    Seconds,
    Url,
    explain,
    unknown_name,
)
from aigateway.settings.secrets import keep_secret

__all__ = [
    "VENDORS",
    "LLMConfig",
    "ProviderType",
    "Vendor",
    "default_name",
    "with_distinct_names",
]

_AZURE_API_VERSION = "2024-10-21"


class ProviderType(StrEnum):
    """Which API a provider speaks."""

    OPENAI = "openai"
    AZURE = "azure"
    GEMINI = "gemini"
    ANTHROPIC = "anthropic"
    OPENAI_COMPATIBLE = "openai_compatible"
    """vLLM, Ollama, llama.cpp and the like; `api_base` is needed."""
    LITELLM = "litellm"
    """Any vendor litellm supports; the model is litellm's own string ("bedrock/...")."""


class Vendor(NamedTuple):
    """A vendor that can be configured from the environment alone."""

    prefix: str
    model: str | None
    """Default model: cheap, current, and takes the common parameters."""
    priority: int
    bases: tuple[str, ...] = ("BASE_URL",)


VENDORS = {
    ProviderType.OPENAI: Vendor("OPENAI_", "gpt-4o-mini", 40),
    ProviderType.AZURE: Vendor("AZURE_OPENAI_", None, 30, ("ENDPOINT", "BASE_URL")),
    ProviderType.GEMINI: Vendor("GEMINI_", "gemini-3.5-flash-lite", 20, ("ENDPOINT", "BASE_URL")),
    ProviderType.ANTHROPIC: Vendor("ANTHROPIC_", "claude-haiku-4-5", 10),
}
_WITH_COMPLETIONS = (ProviderType.OPENAI, ProviderType.OPENAI_COMPATIBLE)
_BASE_EXAMPLES = {
    ProviderType.AZURE: "https://my-resource.openai.azure.com",
    ProviderType.OPENAI_COMPATIBLE: "http://localhost:8000/v1",
}


def _unmasked(values: Any) -> Any:
    """Undo the masks of `model_dump`, so that its result makes an equal config."""
    if not isinstance(values, Mapping):
        return values
    return {
        name: value.get_secret_value() if isinstance(value, Secret | SecretStr) else value
        for name, value in values.items()
    }


class LLMConfig(Frozen):
    """One configured way to get an answer: vendor, model, key and priority.

    Raises:
        ConfigurationError: A field is unknown or cannot work; the message names it and the fix.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    provider: ProviderType
    """The vendor's API; also accepted as its value ("openai")."""
    model: Label
    """The vendor's model name; for Azure the deployment, for LITELLM litellm's own string."""
    api_key: Key | KeyFunction | None = None
    """Required except for OPENAI_COMPATIBLE and LITELLM. For keys that change (tokens that expire,
    secrets that are rotated) give a function, which may be async: it is called before the first
    request, again after a minute and after a 401. AZURE gets a token of Entra ID (a JWT) as a
    bearer token."""
    priority: int = 0
    """Providers with higher priority are asked first; equal ones share the load."""
    name: Label = ""
    """Names the provider in metrics, logs and errors. Default: `provider/model`; for LITELLM the
    model string. A gateway that has this default already adds `#2`, `#3`, ..."""
    aliases: tuple[Label, ...] = ()
    """Other names by which a caller may ask for this model."""
    operations: Annotated[frozenset[Operation], Field(min_length=1)] | None = None
    """What the model can do: "chat", "embeddings", or "completions" for a server that has only
    OpenAI's older `/v1/completions`. None takes what litellm's model map says and, for unknown
    models, chat and embeddings."""
    capabilities: dict[Capability, StrictBool] = Field(default_factory=dict)
    """What the model can (true) and cannot do (false), where litellm's model map is wrong or does
    not know it: "vision", "pdf", "audio_input", "audio_output", "tools", "parallel_tools",
    "json_schema", "reasoning"."""
    weight: Positive = 1
    """Share of the load among providers of equal priority."""
    api_base: Url | None = None
    """Base URL. Required for AZURE (the resource's endpoint) and OPENAI_COMPATIBLE (with `/v1`).
    None takes the vendor's own."""
    api_version: Label | None = None
    """Azure's `api-version`; default "2024-10-21", or "v1" if `api_base` ends in `/openai/v1`."""
    timeout: Seconds | None = None
    """Seconds for one attempt; None takes `attempt_timeout`."""
    max_concurrency: Count | None = None
    """Calls in flight at once to this provider; None leaves only the gateway's own limit."""
    rpm: Count | None = None
    """Most requests begun in any 60 seconds; None is no limit."""
    tpm: Count | None = None
    """Most tokens used in any 60 seconds: by the vendor's count and, for calls in flight, by an
    estimate; None is no limit."""
    failure_threshold: Count | None = None
    """Failures in a row that open the circuit; None takes the setting."""
    reset_timeout_seconds: Seconds | None = None
    """Seconds the circuit stays open the first time; None takes the setting."""
    headers: Annotated[dict[Label, Header], BeforeValidator(_unmasked)] = Field(
        default_factory=dict, repr=False
    )
    """Sent with every call. Hidden in repr and masked in dumps, because they may hold a token."""
    extra: Annotated[dict[str, Any], BeforeValidator(_unmasked)] = Field(
        default_factory=dict, repr=False
    )
    """Vendor-specific options, passed to its wire unchanged. Chat parameters among them are
    defaults: they are adapted to the model like a caller's, and the caller's take precedence.
    Hidden in repr and masked in dumps."""

    if TYPE_CHECKING:

        def __init__(
            self,
            provider: ProviderType
            | Literal["openai", "azure", "gemini", "anthropic", "openai_compatible", "litellm"],
            model: str,
            *,
            api_key: str | SecretStr | KeyFunction | None = None,
            priority: int = 0,
            name: str | None = None,
            aliases: Iterable[str] = (),
            operations: Iterable[Operation] | None = None,
            capabilities: Mapping[Capability, bool] = ...,
            weight: float = 1,
            api_base: str | None = None,
            api_version: str | None = None,
            timeout: float | None = None,
            max_concurrency: int | None = None,
            rpm: int | None = None,
            tpm: int | None = None,
            failure_threshold: int | None = None,
            reset_timeout_seconds: float | None = None,
            headers: Mapping[str, str] = ...,
            extra: Mapping[str, Any] = ...,
        ) -> None: ...

    else:

        def __init__(self, /, provider: Any = None, model: Any = None, **fields: Any) -> None:
            # Leave out None: pydantic then reports the field as missing, with other problems.
            given = {"provider": provider, "model": model}
            fields |= {name: value for name, value in given.items() if value is not None}
            # From here on a traceback printed with its locals does not show the key.
            if isinstance(fields.get("api_key"), str):
                fields["api_key"] = SecretStr(fields["api_key"])
            if fields.get("name") is None:
                fields.pop("name", None)
            problem = unknown_name("field", fields, type(self).model_fields)
            if problem is None:
                try:
                    super().__init__(**fields)
                except ValidationError as error:
                    problem = explain(error)
            if problem is not None:  # raised here, so that pydantic's error is not its context
                fields.clear()
                raise ConfigurationError(f"LLMConfig: {problem}")

    @field_serializer("headers", "extra")
    def _mask(self, values: dict[str, Any], info: FieldSerializationInfo) -> dict[str, Any]:
        if info.mode == "json":
            return dict.fromkeys(values, str(SecretStr("any")))
        return {name: Secret(value) for name, value in values.items()}

    @field_serializer("api_key", mode="wrap")
    def _mask_function(
        self, key: Any, standard: SerializerFunctionWrapHandler, info: FieldSerializationInfo
    ) -> Any:
        if isinstance(key, SecretStr) or key is None:
            return standard(key)
        return str(SecretStr("any")) if info.mode == "json" else key

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # A function's own repr may show what it was made with.
        for name, value in super().__repr_args__():
            if name not in self.model_fields_set or (name == "name" and _is_unnamed(self)):
                continue
            yield name, "<function>" if name == "api_key" and callable(value) else value

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        problem = _misfit(self)
        if problem is not None:
            raise ValueError(problem)
        name = self.name or default_name(self)
        base, version = _address(self)
        for field, value in (("name", name), ("api_base", base), ("api_version", version)):
            object.__setattr__(self, field, value)  # not frozen yet
        if isinstance(self.api_key, SecretStr):
            keep_secret((self.api_key.get_secret_value(),))
        keep_secret(value.rpartition(" ")[2] for value in self.headers.values())
        return self


def default_name(config: LLMConfig) -> str:
    """Return the name of a provider that is given none."""
    if config.provider is ProviderType.LITELLM:
        return config.model
    return f"{config.provider}/{config.model}"


def with_distinct_names(
    configs: Iterable[LLMConfig],
    *,
    among: Iterable[LLMConfig] = (),
    before: Iterable[LLMConfig] = (),
) -> tuple[LLMConfig, ...]:
    """Return providers with a name each: `#2`, `#3`, ... follow default names that are taken.

    Args:
        configs: The providers.
        among: Those that are there already.
        before: Those that these replace. The same vendor, model, key, address and options keeps its
            name.

    Raises:
        ConfigurationError: A name that was given is taken, or a provider is there already with the
            same key, address and options.
    """
    taken = {config.name: config for config in among}
    kept = {_account(config): config.name for config in before if _is_unnamed(config)}
    configs = list(configs)
    given = {config.name: config for config in configs if not _is_unnamed(config)}
    reserved = [kept.get(_account(c), "") if _is_unnamed(c) else "" for c in configs]
    reserved = ["" if name in given else name for name in reserved]
    named = []
    for place, config in enumerate(configs):
        name = reserved[place] or config.name
        if kept and not reserved[place] and _is_unnamed(config):
            name = default_name(config)
        if not _is_unnamed(config):
            if name in taken:
                raise ConfigurationError(
                    f"Two providers are named {name!r}; give one of them another `name`."
                )
        elif name in taken or name in given or name in reserved[place + 1 :]:
            _refuse_twin(config, [*taken.values(), *filter(None, [given.get(name)])])
            name = _free_name(default_name(config), {*taken, *given, *reserved})
        taken[name] = _named(config, name)
        named.append(taken[name])
    return tuple(named)


def _named(config: LLMConfig, name: str) -> LLMConfig:
    if name != config.name:
        config = config.model_copy()
        object.__setattr__(config, "name", name)  # still a name that was not given
    return config


def _is_unnamed(config: LLMConfig) -> bool:
    return "name" not in config.model_fields_set


def _account(config: LLMConfig) -> tuple[Hashable, ...]:
    """Return what tells a provider from others of its vendor and model."""
    address = config.api_base, config.api_version
    beside = _hashable(config.headers), _hashable(config.extra)
    return config.provider, config.model, config.api_key, *address, *beside


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return frozenset((name, _hashable(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value if isinstance(value, Hashable) else repr(value)


def _refuse_twin(config: LLMConfig, others: Iterable[LLMConfig]) -> None:
    for other in others:
        if _account(other) == _account(config):
            raise ConfigurationError(
                f"Two providers are named {other.name!r}, with the same model, key, address and"
                " options; leave one out, or give it another key, another address or a `name`."
            )


def _free_name(name: str, taken: Container[str]) -> str:
    return next(n for n in (f"{name}#{i}" for i in itertools.count(2)) if n not in taken)


_SET_BY_THE_GATEWAY = frozenset(
    {
        "context_window_fallback_dict",
        "fallbacks",
        "messages",
        "mock_response",
        "mock_timeout",
        "model",
        "model_list",
        "stream",
    }
)
"""Options that `extra` cannot hold, because litellm would then bypass the gateway."""


def _misfit(config: LLMConfig) -> str | None:
    """Return the problem with this combination of fields, or None."""
    vendor = config.provider
    ruled = sorted(_SET_BY_THE_GATEWAY & config.extra.keys())
    if ruled:
        return f"extra: cannot hold {', '.join(ruled)}, which the gateway sets; leave it out"
    if "azure_ad_token_provider" in config.extra and vendor is not ProviderType.LITELLM:
        return "extra: cannot hold azure_ad_token_provider; give the function as api_key"
    if vendor in VENDORS and config.api_key is None:
        variable = f"{VENDORS[vendor].prefix}API_KEY"
        return (
            f"api_key: is missing for {vendor}; pass it (for example os.environ[{variable!r}]), "
            f"or set {variable} and give no list of providers"
        )
    if vendor in VENDORS and config.model.startswith(f"{vendor}/"):
        return f'model: leave off the "{vendor}/" in front; `provider` already says it'
    if config.api_base is None and vendor in _BASE_EXAMPLES:
        return f'api_base: is missing for {vendor}; give one like "{_BASE_EXAMPLES[vendor]}"'
    foreign = "completions" in (config.operations or ()) and vendor not in _WITH_COMPLETIONS
    problem = 'operations: only "openai" and "openai_compatible" have "completions"; leave it out'
    return problem if foreign else None


def _address(config: LLMConfig) -> tuple[str | None, str | None]:
    """Return the base URL in the form that litellm extends, and Azure's API version."""
    base, version = config.api_base, config.api_version
    if base is None:
        return None, version
    if config.provider is ProviderType.AZURE:
        # litellm adds /openai, and /openai/v1 for the version "v1".
        version = version or ("v1" if base.endswith("/openai/v1") else _AZURE_API_VERSION)
        base = base.removesuffix("/v1") if base.endswith("/openai/v1") else base
        base = base.removesuffix("/openai")
    elif config.provider is ProviderType.GEMINI and not re.search(r"/v\d\w*(/|$)", base):
        base = f"{base}/v1beta"  # litellm adds no version
    elif config.provider is ProviderType.ANTHROPIC:
        base = base.removesuffix("/v1")  # litellm adds it
    return base.rstrip("/"), version
