"""The entries of `model_list`, each as a provider of the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from aigateway.cli.from_litellm.options import (
    CHAT_PARAMETERS,
    DEPLOYMENT_REASONS,
    NOT_COPIED,
    TAKEN_PARAMETERS,
)
from aigateway.cli.from_litellm.secrets import (
    HARMLESS_HEADERS,
    is_secret_name,
    is_secret_text,
    secret_place,
)
from aigateway.cli.from_litellm.settings import load_problem
from aigateway.cli.from_litellm.values import (
    MOST_NAMES,
    Remark,
    as_mapping,
    as_number,
    as_text,
    as_whole,
    is_toml,
    referenced_variable,
    shown,
)
from aigateway.cli.vendors import model_map
from aigateway.settings import LLMConfig, variable_value

__all__ = ["Deployment", "DeploymentReader", "NotTakenError", "check_provider"]

_NO_ORDER = 1_000_000
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

_OTHER_KINDS: Final = frozenset(
    "audio_speech audio_transcription image_edit image_generation moderation ocr realtime rerank"  # noqa: SIM905
    " search vector_store video_generation".split()
)
"""Modes in litellm's map of models that cannot chat."""

_HEADER = "not copied: it may be secret. In code, LLMConfig(headers=...) takes it from a variable"
_NO_KEY = re.compile(
    r"|empty|none|null|dummy|anything|any|xxx+|no[-_ ]?key|not[-_ ]?needed|ollama|lm-?studio"
    r"|(sk-)?(fake|1234|none|dummy)[-\w]*",
    re.IGNORECASE,
)
"""Placeholders for the key of a local server that needs none."""


@dataclass
class Deployment:
    """One entry of `model_list`, as a provider of the file.

    Attributes:
        group: The `model_name` of litellm.
        table: The provider without its name, aliases and priority.
        order: Deployments with a lower one are asked first.
        name: The name that litellm's `model_info.id` gives; empty for the default.
        remarks: What became of its options.
    """

    group: str
    table: dict[str, Any]
    order: int = _NO_ORDER
    name: str = ""
    remarks: list[Remark] = field(default_factory=list)


class NotTakenError(Exception):
    """The deployment is not taken over; the text says why."""


class _KeyVariables:
    """Names variables for keys that are written in the YAML itself."""

    def __init__(self, content: object) -> None:
        self._taken = set(_references(content))
        self._names: dict[str, str] = {}

    def variable(self, key: str, group: str) -> str:
        """Return the variable for this key: one for each key."""
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
    elif name := referenced_variable(value):
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
"""The vendor that litellm infers for a model without a vendor prefix."""


def _vendor_and_model(params: Mapping[str, Any]) -> tuple[str, str]:
    """Return litellm's vendor and the model behind it; an unknown vendor is litellm's own."""
    model = _plain_option(params, "model") or ""
    if not model:
        raise NotTakenError("it has no model")
    if "*" in model:
        raise NotTakenError(_WILDCARD)
    if model.startswith("auto_router/"):
        raise NotTakenError("there is no such router; callers name the model, or an alias")
    named = as_text(params.get("custom_llm_provider"))
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


def _plain_option(params: Mapping[str, Any], option: str) -> str | None:
    """Return an option that is no secret, resolving a variable that it names."""
    value = params.get(option)
    variable = referenced_variable(value)
    if variable is None:
        return as_text(value)
    if is_secret_name(variable):
        raise NotTakenError(f"its {option} is in {variable}, which is named like a secret")
    found = as_text(variable_value(variable))
    if found is None:
        raise NotTakenError(
            f"its {option} is in {variable}, which is not set here; set it and run this again"
        )
    return found


def _api_base(vendor: str, params: Mapping[str, Any]) -> str | None:
    """Return the address that litellm would ask; None is the vendor's own."""
    for option in ("api_base", "base_url"):
        if params.get(option) is not None:
            return _plain_option(params, option)
    for variable in _VENDORS.get("ollama" if vendor in _OLLAMA else vendor, ("", ()))[1]:
        if found := as_text(variable_value(variable)):
            return found
    return "http://localhost:11434" if vendor in _OLLAMA else None


def _provider_table(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return vendor, model and address of a deployment, in this package's terms.

    Raises:
        NotTakenError: There is no provider like it.
    """
    vendor, model = _vendor_and_model(params)
    base = _api_base(vendor, params)
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
                raise NotTakenError("it has no api_base, and AZURE_API_BASE is not set here")
            found["api_version"] = _plain_option(params, "api_version")
        return found
    full = model if not vendor or model.startswith(f"{vendor}/") else f"{vendor}/{model}"
    return {"provider": "litellm", "model": full, "api_base": base}


def _is_from_variable(params: Mapping[str, Any]) -> bool:
    """Return whether OpenAI's address comes from a variable; OpenAI's key belongs to it."""
    is_given = params.get("api_base") is not None or params.get("base_url") is not None
    return not is_given and _vendor_and_model(params)[0] == "openai"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _model_name(group: str | None) -> str:
    if group is None:
        raise NotTakenError("it has no model_name")
    if "*" in group:
        raise NotTakenError(_WILDCARD)
    return group


class DeploymentReader:
    """Makes a deployment of each entry of `model_list`."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._keys = _KeyVariables(content)
        self.refused: list[Remark] = []

    def read(self, index: int, entry: object) -> Deployment | None:
        """Return the deployment; None, and a remark, if it cannot be taken over."""
        group = as_text(as_mapping(entry).get("model_name"))
        place = f"model_list[{index}]" + (f" ({shown(group)})" if group else "")
        try:
            return self._made(_model_name(group), place, as_mapping(entry))
        except NotTakenError as reason:
            self.refused.append((place, f"not taken over: {reason}"))
        return None

    def _made(self, group: str, place: str, entry: Mapping[str, Any]) -> Deployment:
        limits = {name: entry[name] for name in ("rpm", "tpm") if name in entry}
        params = limits | as_mapping(entry.get("litellm_params"))
        info = as_mapping(params.get("model_info")) | as_mapping(entry.get("model_info"))
        table = {k: v for k, v in _provider_table(params).items() if v is not None}
        made = Deployment(group, table)
        options = _DeploymentOptions(made, place, params, info)
        self._add_key(made, place, params)
        options.add_limits()
        options.add_others()
        options.add_info()
        made.name = as_text(info.get("id")) or ""
        options.drop_secrets()
        check_provider(made.table)
        order = as_whole(params.get("order"))
        made.order = _NO_ORDER if order is None else order
        return made

    def _add_key(self, made: Deployment, place: str, params: Mapping[str, Any]) -> None:
        given, provider = params.get("api_key"), made.table["provider"]
        variable = referenced_variable(given)
        key = None if variable else as_text(given)
        if key is not None and provider == "openai_compatible" and _NO_KEY.fullmatch(key):
            return
        if key is not None:
            variable = self._keys.variable(key, made.group)
            made.remarks.append(
                (f"{place}: api_key", f"the key stands in the YAML; put it into {variable}")
            )
        if variable is None and any(name.startswith("azure_ad_") for name in params):
            raise NotTakenError(
                "a token of Entra ID needs code: LLMConfig(..., api_key=get_bearer_token_provider"
                "(...))"
            )
        if variable is None and provider in _VENDORS:
            variable = _VENDORS[provider][0]
        if variable is None and provider == "openai_compatible" and _is_from_variable(params):
            variable = "OPENAI_API_KEY"
        if variable is not None:
            made.table["api_key_env"] = variable


class _DeploymentOptions:
    """The options of one deployment beside vendor, model and key."""

    def __init__(
        self, made: Deployment, place: str, params: Mapping[str, Any], info: Mapping[str, Any]
    ) -> None:
        self._made, self._place, self._params, self._info = made, place, params, info

    def _remark(self, option: str, reason: str) -> None:
        self._made.remarks.append((f"{self._place}: {shown(option)}", reason))

    def _extra(self, option: str, value: object) -> None:
        self._made.table.setdefault("extra", {})[option] = value

    def drop_secrets(self) -> None:
        """Refuse each value that may hold a secret; everything that is kept passes here.

        Raises:
            NotTakenError: The provider would be nothing without that value.
        """
        plain = self._made.table | {"model_name": self._made.group, "id": self._made.name}
        for table in ("headers", "extra"):
            kept = plain.pop(table, {})
            for option, value in list(kept.items()):
                found = secret_place(option if table == "extra" else "", value)
                if table == "headers" and found is not None:
                    self._remark(f"headers.{option}", _HEADER)
                elif found is not None:
                    self._remark(found, NOT_COPIED)
                elif len(kept) > MOST_NAMES:
                    self._remark(option, f"a provider has more than {MOST_NAMES} options")
                else:
                    continue
                del kept[option]
            if not kept:
                self._made.table.pop(table, None)
        for option, value in plain.items():
            if isinstance(value, str) and option != "api_key_env" and is_secret_text(value):
                raise NotTakenError(f"its {option} may hold a secret; put that into a variable")

    def add_limits(self) -> None:
        """Take limits, weight and times over, where their values can work."""
        for option, name, kind in (
            ("rpm", "rpm", as_whole),
            ("tpm", "tpm", as_whole),
            ("max_parallel_requests", "max_concurrency", as_whole),
            ("weight", "weight", as_number),
            ("timeout", "timeout", as_number),
            ("cooldown_time", "reset_timeout_seconds", as_number),
        ):
            if self._params.get(option) is None:
                continue
            value = kind(self._params[option])
            if value is not None and value > 0:
                self._made.table[name] = value
            else:
                self._remark(option, "it is no positive number")

    def add_others(self) -> None:
        """Take each other option over, or say why not."""
        for option, value in self._params.items():
            if value is None or option in {"model_info", "api_key", "order"}:
                continue
            if option in {"extra_headers", "headers", "organization"}:
                self._add_headers(option, value)
            elif option in CHAT_PARAMETERS and is_toml(value):
                self._extra(option, value)
            elif option in {"base_model", "input_cost_per_token", "output_cost_per_token"}:
                self._add_price(option, value)
            elif option in _CAPABILITIES:
                self._add_capability(option, value)
            elif option not in TAKEN_PARAMETERS:
                self._add_unknown(option, value)

    def _add_headers(self, option: str, value: object) -> None:
        given = {"OpenAI-Organization": value} if option == "organization" else as_mapping(value)
        for name, content in given.items():
            text = None if referenced_variable(content) else as_text(content)
            if text is None or not text.isascii() or name.lower() not in HARMLESS_HEADERS:
                self._remark(f"{option}.{name}", _HEADER)
            else:
                self._made.table.setdefault("headers", {})[name] = text

    def _add_price(self, option: str, value: object) -> None:
        kept = as_text(value) if option == "base_model" else as_number(value)
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
        reason = DEPLOYMENT_REASONS.get(option)
        through_litellm = self._made.table["provider"] == "litellm"
        variable = referenced_variable(value)
        if reason is None and through_litellm and variable is not None:
            names = option.upper(), option.upper().replace("VERTEX_", "VERTEXAI_")
            if variable in names or is_secret_name(option):
                reason = f"litellm reads it from {names[-1]}, as before"
        if reason is None and is_secret_name(option):
            reason = NOT_COPIED
        fits = through_litellm and option.isidentifier() and is_toml(value)
        if reason is None and fits and variable is None:
            self._extra(option, value)
            return
        self._remark(option, reason or "there is no such option")

    def add_info(self) -> None:
        """Take `model_info` over: what the model does, can do and costs."""
        mode = as_text(self._info.get("mode"))
        _refuse_other_kinds(self._made.table, self._params, mode)
        if mode is not None and mode not in _OPERATIONS:
            raise NotTakenError(f"its mode is {shown(mode)}; chat, completions and embeddings are")
        if mode is not None and self._made.table.get("operations") is None:
            self._made.table["operations"] = [_OPERATIONS[mode]]
        window = as_whole(self._info.get("max_input_tokens"))
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
    """Refuse a model for images, speech and the like, unless `model_info` gives its mode."""
    given = (table["model"], as_text(params.get("model")), f"{table['provider']}/{table['model']}")
    known = next((entry for name in given if (entry := model_map().get(name or ""))), {})
    kind = known.get("mode")
    if mode is None and kind in _OTHER_KINDS:
        raise NotTakenError(f"litellm's map says that it is for {kind}; a mode in model_info wins")


def check_provider(table: Mapping[str, Any]) -> None:
    """Refuse a provider that could not be loaded."""
    fields = {k: v for k, v in table.items() if k != "api_key_env"}
    if "api_key_env" in table:
        fields["api_key"] = "k"
    problem = load_problem(LLMConfig, fields)
    if problem is not None:
        raise NotTakenError(problem)
