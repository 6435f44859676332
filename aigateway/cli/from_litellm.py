"""`aigateway init --from-litellm`: make a draft from the configuration of litellm's proxy.

What cannot be taken over is never left out silently: each such option is a remark with its reason,
both on stderr and as a comment at its place in the file. No secret of the YAML is copied, and none
of its values is in a message.
"""

from __future__ import annotations

import graphlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import typer
from pydantic_settings import PydanticBaseSettingsSource

from aigateway.cli.init import Draft, rendered, write_config
from aigateway.cli.output import errors_as_exit_codes
from aigateway.cli.secrets import (
    HARMLESS_HEADERS,
    is_secret_name,
    is_secret_text,
    secret_place,
)
from aigateway.cli.vendors import model_map
from aigateway.cli.yaml_files import read_yaml
from aigateway.errors import ConfigurationError
from aigateway.settings import GatewaySettings, LLMConfig, ServerSettings, variable_value
from aigateway.settings.sources import TableSettings

__all__ = ["OPTIONS", "Taken", "draft_from_litellm", "run_from_litellm"]

Remark = tuple[str, str]
"""An option of litellm, and what became of it."""

_MOST_DEPLOYMENTS = 500
_MOST_NAMES = 1_000
_MOST_FALLBACKS = 5
"""As in litellm, where `max_fallbacks` is not set; twice as many are followed where it is."""
_MOST_REMARKS = 50
"""For one provider or table of the file; the rest is counted."""
_NO_ORDER = 1_000_000
_SERVICE_SECONDS = 120.0
"""The default of `request_timeout` of the service, which must not end a request earlier."""
_PRIORITY_STEP = 10
_SECTIONS = ("model_list", "litellm_settings", "router_settings", "general_settings")


# ── options and reasons ──────────────────────────────────────────────────────────────────────────

_ONE_FOR_ALL = "it is one setting for all providers: {} under [gateway]"
_RETRIES = "failures are judged by one table, and extra calls are bounded by one budget"
_LOGS = "there is no such receiver; use events and hooks, Prometheus or OpenTelemetry"
_RECEIVERS = {
    "prometheus": "it needs no setting: Prometheus reads GET /metrics",
    "otel": "set otel = true under [server], with the extra otel",
}
_REDIS = (
    "set AIGATEWAY_REDIS_URL=redis://:PASSWORD@HOST:PORT/0 instead; an address with a password, or"
    " in a variable, is not copied"
)
_NO_GROUP = "it is no group that was taken over"
_ANY_FAILURE = "the fallback answers after any failure, not only after this kind"
_KEY_STORE = "keys and their limits are in aigateway.toml: aigateway key"

_CHAT_PARAMETERS: Final = frozenset(
    "temperature top_p top_k max_tokens max_completion_tokens stop seed presence_penalty"  # noqa: SIM905
    " frequency_penalty logit_bias n user response_format reasoning_effort thinking tools"
    " tool_choice parallel_tool_calls service_tier verbosity logprobs top_logprobs".split()
)
"""Parameters of a chat, which become defaults in a provider's `extra`."""

_CAPABILITIES: Final = {
    "supports_vision": "vision",
    "supports_images": "vision",
    "supports_pdf_input": "pdf",
    "supports_audio_input": "audio_input",
    "supports_audio_output": "audio_output",
    "supports_function_calling": "tools",
    "supports_parallel_function_calling": "parallel_tools",
    "supports_response_schema": "json_schema",
    "supports_reasoning": "reasoning",
}
_OPERATIONS: Final = {
    "chat": "chat",
    "responses": "chat",
    "embedding": "embeddings",
    "completion": "completions",
}

_DEPLOYMENT_REASONS: Final[Mapping[str, str]] = {
    "stream_timeout": _ONE_FOR_ALL.format("first_token_timeout"),
    "max_retries": _ONE_FOR_ALL.format("retries_per_provider"),
    "num_retries": _ONE_FOR_ALL.format("retries_per_provider"),
    "drop_params": _ONE_FOR_ALL.format("drop_unsupported_params"),
    "tags": "there is no routing by tags; ask for an alias instead",
    "max_budget": "a budget belongs to a key of the service: budget_usd",
    "budget_duration": "a budget of the service is for a day",
    "litellm_credential_name": "credential_list is not read; name the variable in api_key",
    "mock_response": "for tests there are aigateway.testing and `aigateway simulate`",
    "region_name": "choose the region by api_base, or by the vendor's own variable",
    "configurable_clientside_auth_params": "a caller never chooses an address or a key",
    "rpd": "limits are rpm and tpm",
    "tpd": "limits are rpm and tpm",
    "itpm": "limits are rpm and tpm",
    "otpm": "limits are rpm and tpm",
}
_SETTING_REASONS: Final[Mapping[str, str]] = {
    # Failover and routing
    "allowed_fails_policy": _RETRIES,
    "retry_policy": _RETRIES,
    "model_group_retry_policy": _RETRIES,
    "retry_after": "a wait follows Retry-After, or grows with jitter",
    "disable_cooldowns": "a circuit never refuses the last candidate, so there is no need",
    "routing_strategy_args": "there are no arguments; see routing_strategy",
    "enable_pre_call_checks": "it is always on: context windows and capabilities are checked",
    "optional_pre_call_checks": "sessions, limits and capabilities are always checked",
    "enable_tag_filtering": "there is no routing by tags; ask for an alias instead",
    "tag_filtering_match_any": "there is no routing by tags; ask for an alias instead",
    "enable_weighted_failover": "failover among equal priorities always follows the load",
    "provider_budget_config": "a budget belongs to a key of the service: budget_usd",
    "fallback_on_unsupported_params": "a provider that cannot take a parameter is passed over",
    "modify_params": "messages are fitted to each vendor without a setting",
    # Cache
    "cache_responses": "it is the cache of litellm_settings: cache_enabled under [gateway]",
    "caching_groups": "an answer is remembered for the model that was asked for",
    # Logs
    "success_callback": _LOGS,
    "failure_callback": _LOGS,
    "callbacks": _LOGS,
    "service_callbacks": _LOGS,
    "service_callback": _LOGS,
    "alerting": "alert on the metrics of Prometheus",
    "turn_off_message_logging": "prompts are not logged unless log_prompts says so",
    "redact_user_api_key_info": "keys are never logged",
    "set_verbose": "the log has one level; errors and changes are always in it",
    "json_logs": "it is `aigateway serve --log-format json`",
    "telemetry": "aigateway reports nothing to anyone",
    "guardrails": "there are no guardrails; middleware can check prompts and answers",
    # The service
    "master_key": (
        'put its digest here: admin_sha256 = "..." and sha256 under [[server.keys]], from'
        " printf %s KEY | sha256sum; without keys the service answers this machine only"
    ),
    "database_url": _KEY_STORE,
    "store_model_in_db": "providers are in this file; a change is read while it runs",
    "database_connection_pool_limit": _KEY_STORE,
    "max_budget": "a budget belongs to a key of the service: budget_usd",
    "budget_duration": "a budget of the service is for a day",
    "default_team_settings": "there are no teams; a key of the service stands for one",
    "key_generation_settings": _KEY_STORE,
    "custom_auth": "callers have keys; put another check into a proxy in front",
    "enable_jwt_auth": "callers have keys; put another check into a proxy in front",
    "pass_through_endpoints": "no request is passed to an address of the caller's choice",
    "background_health_checks": "health is judged by real requests and by probes",
    "health_check_interval": "health is judged by real requests and by probes",
    "max_parallel_requests": "give each provider max_concurrency",
    "ui_access_mode": "the status page is read with any key",
}
_TAKEN_PARAMETERS: Final = frozenset(
    "model api_key api_base base_url api_version rpm tpm weight order timeout"  # noqa: SIM905
    " max_parallel_requests cooldown_time custom_llm_provider extra_headers headers organization"
    " input_cost_per_token output_cost_per_token base_model model_info".split()
)
_TAKEN_SETTINGS: Final = frozenset(
    "fallbacks default_fallbacks context_window_fallbacks content_policy_fallbacks"  # noqa: SIM905
    " max_fallbacks model_group_alias routing_strategy num_retries timeout request_timeout"
    " stream_timeout"
    " allowed_fails cooldown_time drop_params cache cache_params redis_url redis_host redis_port"
    " redis_password redis_db default_max_parallel_requests global_max_parallel_requests".split()
)
OPTIONS: Final = frozenset(
    {*_TAKEN_PARAMETERS, *_TAKEN_SETTINGS, *_DEPLOYMENT_REASONS, *_SETTING_REASONS}
)
"""Every option of litellm that is taken over, or has its reason here."""

_STRATEGIES: Final = {
    "simple-shuffle": None,
    "least-busy": None,
    "usage-based-routing": "rpm and tpm are limits; equal priorities share by calls in flight",
    "usage-based-routing-v2": "rpm and tpm are limits; equal priorities share by calls in flight",
    "latency-based-routing": "a provider slower than its own usual is asked after the others",
    "cost-based-routing": "give the cheaper provider the higher priority",
}
_OTHER_KINDS: Final = frozenset(
    "audio_speech audio_transcription image_edit image_generation moderation ocr realtime rerank"  # noqa: SIM905
    " search vector_store video_generation".split()
)
"""Modes in litellm's map of models that are no candidates for a chat."""

_NOT_COPIED = (
    "it may be a secret, which is not copied; put it into the variable that the vendor reads"
)
_HEADER = "not copied: it may be secret. In code, LLMConfig(headers=...) takes it from a variable"
_REFERENCE = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
_NO_KEY = re.compile(
    r"|empty|none|null|dummy|anything|any|xxx+|no[-_ ]?key|not[-_ ]?needed|ollama|lm-?studio"
    r"|(sk-)?(fake|1234|none|dummy)[-\w]*",
    re.IGNORECASE,
)
"""Words that stand where a local server asks for no key."""


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def _shown(value: object) -> str:
    """Return a name of the YAML for one line of a message or comment; never a secret."""
    if is_secret_text(str(value)):
        return "(hidden)"
    text = json.dumps(str(value), ensure_ascii=True)[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(value: object) -> str | None:
    """Return a value as text that one line can hold; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    return text if text and text.isprintable() else None


def _number(value: object) -> float | None:
    """Return a value as a number, whether or not it stands in quotes; None if it is none."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _texts(value: object) -> list[str]:
    given = value if isinstance(value, list) else [value]
    return [text for text in map(_text, given) if text is not None]


def _reference(value: object) -> str | None:
    """Return the variable that `os.environ/NAME` names."""
    match = _REFERENCE.fullmatch(value.strip()) if isinstance(value, str) else None
    return match[1] if match and not is_secret_text(match[1]) else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_toml(value: object) -> bool:
    """Return whether a value can stand in the file as it is."""
    if isinstance(value, dict):
        return all(_is_toml(each) for each in (*value, *value.values()))
    if isinstance(value, list):
        return all(map(_is_toml, value))
    return isinstance(value, str | bool | int) or (
        isinstance(value, float) and math.isfinite(value)
    )


# ── one deployment ───────────────────────────────────────────────────────────────────────────────


@dataclass
class _Deployment:
    """One entry of `model_list`, as a provider of the file.

    Attributes:
        group: The `model_name` of litellm.
        table: The provider, but for its name, aliases and priority.
        order: Deployments with a lower one are asked first.
        name: The name that litellm's `model_info.id` gives; empty for the default.
        remarks: What became of its options.
    """

    group: str
    table: dict[str, Any]
    order: int = _NO_ORDER
    name: str = ""
    remarks: list[Remark] = field(default_factory=list)


class _NotTakenError(Exception):
    """The deployment is not taken over; the text says why."""


class _Keys:
    """Names of variables for keys that stand in the YAML itself."""

    def __init__(self, content: object) -> None:
        self._taken = set(_references(content))
        self._names: dict[str, str] = {}

    def variable(self, key: str, group: str) -> str:
        """Return the variable that shall hold this key: one for each key."""
        if key not in self._names:
            stem = re.sub(r"[^A-Z0-9]+", "_", group.upper()).strip("_") or "LITELLM"
            stem = f"{stem if stem[0].isalpha() else f'K_{stem}'}_API_KEY"
            name, count = stem, 1
            while name in self._taken:
                count += 1
                name = f"{stem}_{count}"
            self._taken.add(name)
            self._names[key] = name
        return self._names[key]


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _references(each)
    elif name := _reference(value):
        yield name


_VENDORS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "openai": ("OPENAI_API_KEY", ("OPENAI_BASE_URL", "OPENAI_API_BASE")),
    "azure": ("AZURE_API_KEY", ("AZURE_API_BASE",)),
    "gemini": ("GEMINI_API_KEY", ("GEMINI_API_BASE",)),
    "anthropic": ("ANTHROPIC_API_KEY", ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL")),
    "ollama": ("", ("OLLAMA_API_BASE",)),
}
"""The variables that litellm reads for a vendor: its key, its address."""

_WILDCARD = "a provider is one model; add one for each model that is asked for"
_OLLAMA: Final = ("ollama", "ollama_chat")
_COMPATIBLE: Final = (
    "hosted_vllm",
    "lm_studio",
    "llamafile",
    "openai_like",
    "custom_openai",
    "litellm_proxy",
    "xinference",
)
_BARE: Final = (
    (re.compile(r"(gpt-|chatgpt-|o\d|text-embedding-|ft:)"), "openai"),
    (re.compile(r"claude-"), "anthropic"),
)
"""What litellm makes of a model without a vendor in front."""


def _vendor_and_model(params: Mapping[str, Any]) -> tuple[str, str]:
    """Return litellm's vendor and the model behind it; an unknown vendor is litellm's own."""
    model = _plain(params, "model") or ""
    if not model:
        raise _NotTakenError("it has no model")
    if "*" in model:
        raise _NotTakenError(_WILDCARD)
    if model.startswith("auto_router/"):
        raise _NotTakenError("there is no such router; callers name the model, or an alias")
    named = _text(params.get("custom_llm_provider"))
    vendor, slash, rest = model.partition("/")
    known = {*_VENDORS, *_OLLAMA, *_COMPATIBLE, "text-completion-openai"}
    if named in known and vendor != named:
        return named, model
    if slash and rest and vendor in known and not rest.startswith("responses/"):
        return vendor, rest
    if not slash and named is None:
        for pattern, bare in _BARE:
            if pattern.match(model):
                return bare, model
    return "", model if named is None or named == vendor else f"{named}/{model}"


def _plain(params: Mapping[str, Any], option: str) -> str | None:
    """Return an option that is no secret, also from the variable that it names."""
    value = params.get(option)
    variable = _reference(value)
    if variable is None:
        return _text(value)
    if is_secret_name(variable):
        raise _NotTakenError(f"its {option} is in {variable}, which is named like a secret")
    found = _text(variable_value(variable))
    if found is None:
        raise _NotTakenError(
            f"its {option} is in {variable}, which is not set here; set it and run this again"
        )
    return found


def _address(vendor: str, params: Mapping[str, Any]) -> str | None:
    """Return the address that litellm would ask; None is the vendor's own."""
    for option in ("api_base", "base_url"):
        if params.get(option) is not None:
            return _plain(params, option)
    for variable in _VENDORS.get("ollama" if vendor in _OLLAMA else vendor, ("", ()))[1]:
        if found := _text(variable_value(variable)):
            return found
    return "http://localhost:11434" if vendor in _OLLAMA else None


def _provider(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return vendor, model and address of a deployment, in this package's terms.

    Raises:
        _NotTakenError: There is no provider like it.
    """
    vendor, model = _vendor_and_model(params)
    base = _address(vendor, params)
    if vendor == "text-completion-openai":
        return {"provider": "openai", "model": model, "operations": ["completions"]}
    if vendor in _OLLAMA and base is not None:
        base = base.rstrip("/").removesuffix("/v1")
        return {"provider": "openai_compatible", "model": model, "api_base": f"{base}/v1"}
    own = vendor == "openai" and (base is None or _host(base) == "api.openai.com")
    if base is not None and vendor in {"openai", *_COMPATIBLE} and not own:
        return {"provider": "openai_compatible", "model": model, "api_base": base}
    if vendor in {"openai", "gemini", "anthropic", "azure"} and (own or "/" not in model):
        found = {"provider": vendor, "model": model, "api_base": base}
        if vendor == "azure":
            if base is None:
                raise _NotTakenError("it has no api_base, and AZURE_API_BASE is not set here")
            found["api_version"] = _plain(params, "api_version")
        return found
    full = model if not vendor or model.startswith(f"{vendor}/") else f"{vendor}/{model}"
    return {"provider": "litellm", "model": full, "api_base": base}


def _is_from_variable(params: Mapping[str, Any]) -> bool:
    """Return whether OpenAI's address is that of a variable, to which OpenAI's key belongs."""
    is_given = params.get("api_base") is not None or params.get("base_url") is not None
    return not is_given and _vendor_and_model(params)[0] == "openai"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _model_name(group: str | None) -> str:
    if group is None:
        raise _NotTakenError("it has no model_name")
    if "*" in group:
        raise _NotTakenError(_WILDCARD)
    return group


class _Entries:
    """Makes a deployment of each entry of `model_list`."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._keys = _Keys(content)
        self.refused: list[Remark] = []

    def read(self, index: int, entry: object) -> _Deployment | None:
        """Return the deployment; None, and a remark, if it cannot be taken over."""
        group = _text(_mapping(entry).get("model_name"))
        place = f"model_list[{index}]" + (f" ({_shown(group)})" if group else "")
        try:
            return self._made(_model_name(group), place, _mapping(entry))
        except _NotTakenError as reason:
            self.refused.append((place, f"not taken over: {reason}"))
        return None

    def _made(self, group: str, place: str, entry: Mapping[str, Any]) -> _Deployment:
        params = _mapping(entry.get("litellm_params"))
        info = _mapping(params.get("model_info")) | _mapping(entry.get("model_info"))
        limits = {name: entry[name] for name in ("rpm", "tpm") if name in entry}
        params = limits | params
        made = _Deployment(group, {k: v for k, v in _provider(params).items() if v is not None})
        extra = _Extra(made, place, params, info)
        self._add_key(made, place, params)
        extra.add_limits()
        extra.add_options()
        extra.add_info()
        made.name = _text(info.get("id")) or ""
        extra.drop_secrets()
        _check_provider(made.table)
        order = _whole(params.get("order"))
        made.order = _NO_ORDER if order is None else order
        return made

    def _add_key(self, made: _Deployment, place: str, params: Mapping[str, Any]) -> None:
        given, provider = params.get("api_key"), made.table["provider"]
        variable = _reference(given)
        key = None if variable else _text(given)
        if key is not None and provider == "openai_compatible" and _NO_KEY.fullmatch(key):
            return
        if key is not None:
            variable = self._keys.variable(key, made.group)
            made.remarks.append(
                (f"{place}: api_key", f"the key stands in the YAML; put it into {variable}")
            )
        if variable is None and any(name.startswith("azure_ad_") for name in params):
            raise _NotTakenError(
                "a token of Entra ID needs code: LLMConfig(..., api_key=get_bearer_token_provider"
                "(...))"
            )
        if variable is None and provider in _VENDORS:
            variable = _VENDORS[provider][0]
        if variable is None and provider == "openai_compatible" and _is_from_variable(params):
            variable = "OPENAI_API_KEY"
        if variable is not None:
            made.table["api_key_env"] = variable


class _Extra:
    """The options of one deployment beside vendor, model and key."""

    def __init__(
        self,
        made: _Deployment,
        place: str,
        params: Mapping[str, Any],
        info: Mapping[str, Any],
    ) -> None:
        self._made, self._place, self._params, self._info = made, place, params, info

    def _remark(self, option: str, reason: str) -> None:
        self._made.remarks.append((f"{self._place}: {_shown(option)}", reason))

    def _extra(self, option: str, value: object) -> None:
        self._made.table.setdefault("extra", {})[option] = value

    def drop_secrets(self) -> None:
        """Refuse each value that may hold a secret; everything that is kept passes here.

        Raises:
            _NotTakenError: The provider would be nothing without that value.
        """
        plain = self._made.table | {"model_name": self._made.group, "id": self._made.name}
        for table in ("headers", "extra"):
            kept = plain.pop(table, {})
            for option, value in list(kept.items()):
                found = secret_place(option if table == "extra" else "", value)
                if table == "headers" and found is not None:
                    self._remark(f"headers.{option}", _HEADER)
                elif found is not None:
                    self._remark(found, _NOT_COPIED)
                elif len(kept) > _MOST_NAMES:
                    self._remark(option, f"a provider has more than {_MOST_NAMES} options")
                else:
                    continue
                del kept[option]
            if not kept:
                self._made.table.pop(table, None)
        for option, value in plain.items():
            if isinstance(value, str) and option != "api_key_env" and is_secret_text(value):
                raise _NotTakenError(f"its {option} may hold a secret; put that into a variable")

    def add_limits(self) -> None:
        """Take limits, weight and times over, where their values can work."""
        for option, name, kind in (
            ("rpm", "rpm", _whole),
            ("tpm", "tpm", _whole),
            ("max_parallel_requests", "max_concurrency", _whole),
            ("weight", "weight", _number),
            ("timeout", "timeout", _number),
            ("cooldown_time", "reset_timeout_seconds", _number),
        ):
            if self._params.get(option) is None:
                continue
            value = kind(self._params[option])
            if value is not None and value > 0:
                self._made.table[name] = value
            else:
                self._remark(option, "it is no positive number")

    def add_options(self) -> None:
        """Take each other option over, or say why not."""
        for option, value in self._params.items():
            if value is None or option in {"model_info", "api_key", "order"}:
                continue
            if option in {"extra_headers", "headers", "organization"}:
                self._add_headers(option, value)
            elif option in _CHAT_PARAMETERS and _is_toml(value):
                self._extra(option, value)
            elif option in {"base_model", "input_cost_per_token", "output_cost_per_token"}:
                self._add_price(option, value)
            elif option in _CAPABILITIES:
                self._add_capability(option, value)
            elif option not in _TAKEN_PARAMETERS:
                self._add_unknown(option, value)

    def _add_headers(self, option: str, value: object) -> None:
        given = {"OpenAI-Organization": value} if option == "organization" else _mapping(value)
        for name, content in given.items():
            text = None if _reference(content) else _text(content)
            if text is None or not text.isascii() or name.lower() not in HARMLESS_HEADERS:
                self._remark(f"{option}.{name}", _HEADER)
            else:
                self._made.table.setdefault("headers", {})[name] = text

    def _add_price(self, option: str, value: object) -> None:
        kept = _text(value) if option == "base_model" else _number(value)
        if kept is None or (not isinstance(kept, str) and kept < 0):
            self._remark(option, "it is no price")
        else:
            self._extra(option, kept)

    def _add_capability(self, option: str, value: object) -> None:
        if isinstance(value, bool):
            self._made.table.setdefault("capabilities", {})[_CAPABILITIES[option]] = value
        else:
            self._remark(option, "it is neither true nor false")

    def _add_unknown(self, option: str, value: object) -> None:
        reason = _DEPLOYMENT_REASONS.get(option)
        through_litellm = self._made.table["provider"] == "litellm"
        variable = _reference(value)
        if reason is None and through_litellm and variable is not None:
            names = option.upper(), option.upper().replace("VERTEX_", "VERTEXAI_")
            if variable in names or is_secret_name(option):
                reason = f"litellm reads it from {names[-1]}, as before"
        if reason is None and is_secret_name(option):
            reason = _NOT_COPIED
        fits = through_litellm and option.isidentifier() and _is_toml(value)
        if reason is None and fits and variable is None:
            self._extra(option, value)
            return
        self._remark(option, reason or "there is no such option")

    def add_info(self) -> None:
        """Take `model_info` over: what the model does, can do and costs."""
        mode = _text(self._info.get("mode"))
        _refuse_other_kinds(self._made.table, self._params, mode)
        if mode is not None and mode not in _OPERATIONS:
            raise _NotTakenError(
                f"its mode is {_shown(mode)}; chat, completions and embeddings are"
            )
        if mode is not None and self._made.table.get("operations") is None:
            self._made.table["operations"] = [_OPERATIONS[mode]]
        window = _whole(self._info.get("max_input_tokens"))
        if window is not None and window > 0:
            self._extra("max_input_tokens", window)
        for option, value in self._info.items():
            if value is None or option in {"mode", "id", "max_input_tokens"}:
                continue
            if option in {"base_model", "input_cost_per_token", "output_cost_per_token"}:
                self._add_price(option, value)
            elif option in _CAPABILITIES:
                self._add_capability(option, value)
            else:
                self._remark(f"model_info.{option}", "nothing here reads it")


def _refuse_other_kinds(
    table: Mapping[str, Any], params: Mapping[str, Any], mode: str | None
) -> None:
    """Refuse a model for images, speech and the like that the configuration does not call so."""
    given = (table["model"], _text(params.get("model")), f"{table['provider']}/{table['model']}")
    known = next((entry for name in given if (entry := model_map().get(name or ""))), {})
    kind = known.get("mode")
    if mode is None and kind in _OTHER_KINDS:
        raise _NotTakenError(f"litellm's map says that it is for {kind}; a mode in model_info wins")


def _check_provider(table: Mapping[str, Any]) -> None:
    """Refuse a provider that could not be loaded."""
    fields: dict[str, Any] = {k: v for k, v in table.items() if k != "api_key_env"}
    if "api_key_env" in table:
        fields["api_key"] = "k"
    try:
        LLMConfig(**fields)
    except ConfigurationError as error:
        raise _NotTakenError(str(error).removeprefix("LLMConfig: ")) from None


# ── routing: groups, fallbacks, aliases ──────────────────────────────────────────────────────────

_Node = tuple[str, str]
"""A group, and the group that it stands in for as a copy ("" for the group itself)."""


_COPY = (
    "a copy that stands in for a group of higher priority (both name each other as fallbacks);"
    " its limits and its circuit are its own"
)


class _Routing:
    """Turns groups and fallbacks into aliases and priorities.

    A provider has one priority, whatever is asked for. Where two groups fall back to each other,
    the second direction needs copies of the providers with a lower one.
    """

    def __init__(self, deployments: Sequence[_Deployment]) -> None:
        self.groups: dict[str, list[_Deployment]] = {}
        for each in deployments:
            self.groups.setdefault(each.group, []).append(each)
        self._own: dict[str, list[str]] = {group: [group] for group in self.groups}
        self._names: dict[_Node, list[str]] = {}
        self._after: dict[_Node, set[_Node]] = {(group, ""): set() for group in self.groups}

    def add_alias(self, alias: str, group: str) -> None:
        """Let a group answer to another name; before its fallbacks are added."""
        self._own[group].append(alias)

    def add_chain(self, group: str, fallbacks: Iterable[str]) -> None:
        """Let other groups answer for a group when it fails, in order."""
        last: _Node = (group, "")
        self._names.setdefault(last, []).extend(self._own[group])
        for name in dict.fromkeys(fallbacks):
            node: _Node = (name, "")
            if self._reaches(node, last):
                node = (name, group)
            self._after.setdefault(last, set()).add(node)
            self._after.setdefault(node, set())
            self._names.setdefault(node, []).extend(self._own[group])
            last = node

    def _reaches(self, start: _Node, goal: _Node) -> bool:
        seen, left = set[_Node](), [start]
        while left:
            node = left.pop()
            if node == goal:
                return True
            if node not in seen:
                seen.add(node)
                left += self._after.get(node, ())
        return False

    def tables(self) -> list[tuple[dict[str, Any], _Deployment]]:
        """Return the providers of the file, the first asked first, each with its deployment."""
        levels: dict[_Node, int] = {}
        for node in graphlib.TopologicalSorter(self._after).static_order():
            levels[node] = 1 + max((levels[later] for later in self._after[node]), default=0)
        found = [
            (levels[node], each, names, bool(node[1]))
            for node, names in self._names.items()
            for each in self.groups[node[0]]
        ]
        ranks = sorted({(rank, -each.order) for rank, each, _, _ in found})
        merged: dict[str, tuple[dict[str, Any], _Deployment]] = {}
        for rank, each, names, is_copy in found:
            place = ranks.index((rank, -each.order)) * _PRIORITY_STEP
            table = {**each.table, "priority": place}
            same = json.dumps([table, is_copy], sort_keys=True, default=str)
            kept = merged.setdefault(same, (table, replace(each, remarks=[])))
            kept[0]["aliases"] = list(dict.fromkeys([*kept[0].get("aliases", ()), *names]))
            kept[1].remarks.extend([] if is_copy else each.remarks)
            if is_copy:
                kept[1].remarks.append((_shown(each.group), _COPY))
        return sorted(merged.values(), key=lambda pair: -pair[0]["priority"])


def _named(pairs: Sequence[tuple[dict[str, Any], _Deployment]]) -> list[dict[str, Any]]:
    """Give each provider its name, and drop the aliases that say nothing new."""
    taken: set[str] = set()
    made = []
    for table, deployment in pairs:
        model = table["model"]
        default = model if table["provider"] == "litellm" else f"{table['provider']}/{model}"
        stem = deployment.name or default
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}#{count}"
        taken.add(name)
        aliases = [alias for alias in table["aliases"] if alias not in {model, name}]
        first = {"provider": table["provider"], "model": model}
        named = {} if name == default else {"name": name}
        made.append(first | named | table | {"aliases": aliases or None})
    return made


def _chains(value: object) -> Iterator[tuple[str, list[str]]]:
    """Yield what `fallbacks` says: `[{"group": ["other", ...]}, ...]`."""
    for entry in value if isinstance(value, list) else [value]:
        for group, others in _mapping(entry).items():
            yield group, _texts(others)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


class _Settings:
    """`litellm_settings`, `router_settings` and `general_settings`, as `[gateway]`.

    Attributes:
        gateway: Settings that differ from their defaults.
        remarks: What became of the options.
        server_remarks: The same, of options of the service.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.gateway: dict[str, Any] = {}
        self.remarks: list[Remark] = []
        self.server_remarks: list[Remark] = []
        self._sections = {name: _mapping(content.get(name)) for name in _SECTIONS[1:]}

    def get(self, option: str) -> Any:
        """Return an option of the router, or of litellm; None if it is not set."""
        for section in ("router_settings", "litellm_settings"):
            if self._sections[section].get(option) is not None:
                return self._sections[section][option]
        return None

    def _set(self, option: str, name: str, value: object) -> None:
        """Take a setting over, if it can work."""
        problem = _problem(_GatewayAlone, {name: value})
        if is_secret_text(str(value)):
            self.remarks.append((option, _NOT_COPIED))
        elif problem is None:
            self.gateway[name] = value
        else:
            self.remarks.append((option, problem.removeprefix(f"{name}: ")))

    def read(self) -> None:
        """Read everything but fallbacks and aliases."""
        self._read_times()
        self._read_guards()
        self._read_cache()
        self._read_redis()
        for section, options in self._sections.items():
            remarks = self.server_remarks if section == "general_settings" else self.remarks
            for option, value in options.items():
                if value is None or (option in _TAKEN_SETTINGS and section != "general_settings"):
                    continue
                reason = _SETTING_REASONS.get(option, "there is no such option")
                names = _texts(value) if reason is _LOGS else []
                reasons = [_RECEIVERS.get(name, reason) for name in names] or [reason]
                remarks += [
                    (f"{section}.{_shown(option)}", each) for each in dict.fromkeys(reasons)
                ]

    def _read_times(self) -> None:
        for option in ("timeout", "request_timeout"):
            seconds = _number(self.get(option))
            if seconds is not None and seconds > 0:
                self._set(option, "attempt_timeout", seconds)
                # Time for a second provider after one that hangs.
                self._set(option, "timeout", max(60.0, 2 * seconds))
                break
            if self.get(option) is not None:
                self.remarks.append((option, "it is no positive number"))
        if self.get("stream_timeout") is not None:
            self._set("stream_timeout", "first_token_timeout", _number(self.get("stream_timeout")))

    def _read_guards(self) -> None:
        for option, name in (
            ("num_retries", "retry_rounds"),
            ("cooldown_time", "reset_timeout_seconds"),
        ):
            if self.get(option) is not None:
                given = _number(self.get(option))
                whole = _whole(given) if name == "retry_rounds" else given
                self._set(option, name, whole)
        fails = self.get("allowed_fails")
        if fails is not None:
            allowed = _whole(fails)
            self._set(
                "allowed_fails", "failure_threshold", None if allowed is None else allowed + 1
            )
        if self.get("drop_params") is True:
            self.gateway["drop_unsupported_params"] = True
        most = self._sections["general_settings"].get("global_max_parallel_requests")
        if most is not None:
            self._set("global_max_parallel_requests", "max_concurrency", _whole(most))
        strategy = self.get("routing_strategy")
        if strategy is not None:
            reason = _STRATEGIES.get(str(strategy), "there is no such strategy")
            if reason is not None:
                name = f" {_shown(strategy)}" if isinstance(strategy, str) else ""
                self.remarks.append((f"routing_strategy{name}", reason))

    def _read_cache(self) -> None:
        if self._sections["litellm_settings"].get("cache") is not True:
            self.gateway["cache_enabled"] = False
            self.remarks.append(
                ("cache", "litellm remembered nothing; drop cache_enabled to remember answers")
            )
            return
        params = _mapping(self._sections["litellm_settings"].get("cache_params"))
        if params.get("ttl") is not None:
            self._set("cache_params.ttl", "cache_ttl_seconds", _number(params["ttl"]))
        kind = _text(params.get("type")) or "local"
        if kind == "disk":
            self.gateway["cache_url"] = "sqlite:///cache.db"
        if kind not in {"local", "redis", "disk"}:
            self.remarks.append(
                ("cache_params.type", "answers are in memory, in a file, or in Redis")
            )
        for option in params:
            if option not in {"ttl", "type", "host", "port", "password", "url"}:
                self.remarks.append(
                    (f"cache_params.{_shown(option)}", "the cache has no such option")
                )

    def _read_redis(self) -> None:
        """Take the address over where it holds no secret and is in no variable."""
        params = _mapping(self._sections["litellm_settings"].get("cache_params"))
        shared = {} if params.get("type") != "redis" else params
        found = {
            name: self.get(f"redis_{name}") or shared.get(name)
            for name in ("url", "host", "port", "password", "db")
        }
        if found["url"] is None and found["host"] is None:
            return
        port, database = _whole(found["port"] or 6379), _whole(found["db"] or 0)
        host = _text(found["host"])
        secret = found["url"] is not None or found["password"] is not None
        if secret or any(map(_reference, found.values())) or None in {port, database, host}:
            self.remarks.append(("redis", _REDIS))
            return
        self._set("redis", "redis_url", f"redis://{host}:{port}/{database}")


class _GivenAlone(TableSettings):
    """Settings that neither the environment nor a file in this directory changes."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the keywords only."""
        del settings_cls
        return (init_settings,)

    @classmethod
    def places(cls, keywords: Iterable[str] = ()) -> dict[str, str]:
        """Name no places: there is one."""
        del keywords
        return {}


class _GatewayAlone(_GivenAlone, GatewaySettings):
    pass


class _ServerAlone(_GivenAlone, ServerSettings):
    pass


def _problem(kind: type[_GivenAlone], values: Mapping[str, Any]) -> str | None:
    """Return why these settings cannot be loaded."""
    try:
        kind(**values)
    except ConfigurationError as error:
        return str(error).removeprefix(f"{kind.__name__}: ")
    return None


# ── the draft ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Taken:
    """A draft, and everything that it is not.

    Attributes:
        draft: The file.
        remarks: Each option that was not taken over as it was, and why.
    """

    draft: Draft
    remarks: Sequence[Remark]


def run_from_litellm(source: str, output: str, *, force: bool) -> None:
    """Write a file for a configuration of litellm's proxy; print what it does not hold."""
    with errors_as_exit_codes():
        taken = draft_from_litellm(Path(source))
        for option, reason in taken.remarks:
            typer.echo(f"{option}: {reason}", err=True)
        count = len(taken.remarks)
        typer.echo(f"Remarks: {count}, also at their places in the file.", err=True)
        write_config(taken.draft, output, force=force)


def draft_from_litellm(path: Path) -> Taken:
    """Return the draft for a configuration of litellm's proxy.

    Raises:
        ConfigurationError: The file cannot be read, or no deployment of it can be taken over.
    """
    content = read_yaml(path, _shown)
    refused, deployments = _deployments(path, content)
    settings = _Settings(content)
    settings.read()
    most = _whole(settings.get("default_max_parallel_requests"))
    for each in deployments:
        if most is not None and most > 0:
            each.table.setdefault("max_concurrency", most)
    routing = _Routing(deployments)
    _add_aliases(routing, settings)
    _add_fallbacks(routing, settings)
    pairs = routing.tables()
    providers = _named(pairs)
    for (table, deployment), provider in zip(pairs, providers, strict=True):
        also = routing.groups.keys() & {provider["model"], provider.get("name")}
        deployment.remarks += [
            (_shown(group), "the provider answers for it, too: its model has that name")
            for group in sorted(also - set(table["aliases"]))
        ]
    remarks: dict[int | str, Sequence[Remark]] = {"providers": refused}
    remarks |= {index: each.remarks for index, (_, each) in enumerate(pairs)}
    remarks["gateway"] = [*settings.remarks, *_other_sections(content)]
    remarks["server"] = settings.server_remarks
    return _checked(path, providers, settings, {k: _bounded(k, v) for k, v in remarks.items()})


def _bounded(place: int | str, remarks: Sequence[Remark]) -> Sequence[Remark]:
    """Return the first remarks of a place, and how many more there are."""
    found = list(dict.fromkeys(remarks))
    most = _MOST_DEPLOYMENTS if place == "providers" else _MOST_REMARKS
    if len(found) <= most:
        return found
    last = found[most - 1][0].partition(": ")[0]
    return [*found[:most], (f"and {len(found) - most} more", f"they come after {last}")]


def _deployments(path: Path, content: Mapping[str, Any]) -> tuple[list[Remark], list[_Deployment]]:
    """Return why entries of `model_list` are not taken over, and those that are."""
    given = content.get("model_list")
    listed = given if isinstance(given, list) else []
    if len(listed) > _MOST_DEPLOYMENTS:
        raise ConfigurationError(
            f"{_shown(path)}: model_list has more than {_MOST_DEPLOYMENTS} entries; split it"
        )
    entries = _Entries(content)
    made = [entries.read(index, entry) for index, entry in enumerate(listed)]
    deployments = [each for each in made if each is not None]
    if not deployments:
        reasons = "; ".join(f"{place}: {reason}" for place, reason in entries.refused[:5])
        raise ConfigurationError(
            f"{_shown(path)}: no entry of model_list can be taken over ({reasons or 'it has none'})"
        )
    return entries.refused, deployments


def _add_aliases(routing: _Routing, settings: _Settings) -> None:
    given = _mapping(settings.get("model_group_alias"))
    if len(given) > _MOST_NAMES:
        settings.remarks.append(("model_group_alias", f"the first {_MOST_NAMES} are taken over"))
    for alias, target in itertools.islice(given.items(), _MOST_NAMES):
        group = _text(target.get("model") if isinstance(target, dict) else target)
        if group in routing.groups and _text(alias) == alias and not is_secret_text(alias):
            routing.add_alias(alias, group)
        else:
            settings.remarks.append((f"model_group_alias.{_shown(alias)}", _NO_GROUP))


def _add_fallbacks(routing: _Routing, settings: _Settings) -> None:
    """Add the fallbacks of each group, each followed by its own, as litellm asks them."""
    listed: dict[str, dict[str, None]] = {}
    for option in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks"):
        for group, others in _chains(settings.get(option)):
            if group not in routing.groups:
                settings.remarks.append((f"{option}: {_shown(group)}", _NO_GROUP))
            elif not routing.groups.keys() >= set(others):
                settings.remarks.append((f"{option}: {_shown(group)}: a fallback of it", _NO_GROUP))
            known = {name: None for name in others if name in routing.groups}
            if option != "fallbacks" and known and group in routing.groups:
                settings.remarks.append((f"{option}: {_shown(group)}", _ANY_FAILURE))
            listed[group] = listed.get(group, {}) | known
    if settings.get("content_policy_fallbacks"):
        settings.gateway["failover_on_content_policy"] = True
    given = dict.fromkeys(_texts(settings.get("default_fallbacks")))
    default = [name for name in given if name in routing.groups]
    most = _whole(settings.get("max_fallbacks"))
    if most is None or most < 0:
        most = _MOST_FALLBACKS
    elif most > 2 * _MOST_FALLBACKS:
        most = 2 * _MOST_FALLBACKS
        settings.remarks.append(
            ("max_fallbacks", f"the first {most} of each group are in the file")
        )
    for group in routing.groups:
        chain = itertools.chain(_followed(group, listed), default)
        # Each name stands at most twice in the chain.
        names = itertools.islice((name for name in chain if name != group), 2 * most)
        routing.add_chain(group, list(dict.fromkeys(names))[:most])


def _followed(group: str, listed: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield the fallbacks of a group, each followed by its own."""
    seen, left = {group}, [iter(listed.get(group, ()))]
    while left:
        name = next((name for name in left[-1] if name not in seen), None)
        if name is None:
            left.pop()
        else:
            seen.add(name)
            yield name
            left.append(iter(listed.get(name, ())))


def _other_sections(content: Mapping[str, Any]) -> Iterator[Remark]:
    for name, value in content.items():
        if name == "environment_variables":
            for variable in _mapping(value):
                yield f"{name}.{_shown(variable)}", "set it where aigateway runs, or in .env"
        elif name not in _SECTIONS:
            yield _shown(name), "nothing here reads this section"


def _checked(
    path: Path,
    providers: Sequence[Mapping[str, Any]],
    settings: _Settings,
    remarks: Mapping[int | str, Sequence[Remark]],
) -> Taken:
    """Return the draft, once the text of its file is known to load."""
    total = settings.gateway.get("timeout", 0)
    draft = Draft(
        providers=providers,
        gateway=settings.gateway,
        server={"request_timeout": total} if total > _SERVICE_SECONDS else {},
        notes=[f"Made from litellm's {_shown(path.name)}. What differs stands at its place."],
        comments={
            place: [f"{option}: {reason}" for option, reason in each]
            for place, each in remarks.items()
        },
    )
    try:
        made = tomllib.loads(rendered(draft))
        for table in made["providers"]:
            _check_provider(table)
        problem = _problem(_GatewayAlone, made.get("gateway", {})) or _problem(
            _ServerAlone, made.get("server", {})
        )
    except (tomllib.TOMLDecodeError, _NotTakenError) as error:
        problem = str(error)
    if problem is not None:
        raise ConfigurationError(f"{_shown(path)}: the result would not load: {problem}")
    return Taken(draft, list(dict.fromkeys(itertools.chain.from_iterable(remarks.values()))))
