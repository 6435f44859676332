"""`aigateway check`: what the configuration does, where it was read, and what looks wrong in it.

It reads through the same functions as `aigateway serve` and sends nothing, unless `--ask` is given.
No part of a key is shown.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr

from aigateway.cli.output import (
    FAILED,
    WRONG_INPUT,
    errors_as_exit_codes,
    missing_server_packages,
    seconds_text,
    use_config,
)
from aigateway.cli.probe import ProbeResult, probe_all
from aigateway.cli.toml import toml_value
from aigateway.errors import FailureKind, GatewayError
from aigateway.routing.capabilities import described
from aigateway.server.process.configuration import Configuration, read_configuration
from aigateway.settings import (
    FoundProvider,
    GatewaySettings,
    LLMConfig,
    ProviderType,
    ServerSettings,
    place_of_variable,
    read_providers,
    settings_file,
)
from aigateway.settings.provider import VENDORS
from aigateway.settings.redis_url import redis_address
from aigateway.settings.server import AUTO
from aigateway.version import __version__
from aigateway.wires.loading import load_litellm, missing_package
from aigateway.wires.pricing import (
    Price,
    capabilities_of,
    max_input_tokens,
    operations_of,
    price_of,
    with_default_prices,
)

__all__ = ["run_check"]

_MILLION = 1_000_000
_PLACEHOLDER = re.compile(
    r"(\W|sk-|x)*\Z|.*(your|my|api)[-_ ]?(api)?[-_ ]?key.*|changeme|todo|<.*>", re.IGNORECASE
)
_SECRET = re.compile(
    r"^\s*(export\s+)?(api_key|\w*API_KEY|\w*SECRET\w*|\w*TOKEN)\s*=\s*\S", re.MULTILINE
)
_LIMITS = ("rpm", "tpm", "max_concurrency", "timeout")
_QUOTES = "'\"`"
_BEGINNINGS = {
    "sk-ant-": ProviderType.ANTHROPIC,
    "AIza": ProviderType.GEMINI,
    "sk-proj-": ProviderType.OPENAI,
}
"""How keys of one vendor begin, and of no other."""

_REMEDIES: Mapping[FailureKind, str] = {
    FailureKind.AUTHENTICATION: "the vendor refuses the key; make a new one, and set its variable",
    FailureKind.PERMISSION: "the key may not use this model; allow it in the vendor's console",
    FailureKind.NO_CREDIT: "the account has no credit; add some in the vendor's console",
    FailureKind.MODEL_NOT_FOUND: "the vendor has no such model for this key; correct model",
    FailureKind.RATE_LIMITED: "the account is over its limit; try again later, or set rpm and tpm",
    FailureKind.CONNECTION: "no connection; check api_base, the network, DNS and a proxy",
    FailureKind.TIMEOUT: "no answer in time; try a longer --timeout, and the vendor's status page",
    FailureKind.SERVER_ERROR: "the vendor is failing; see its status page",
    FailureKind.BAD_ANSWER: "what answers speaks another protocol; check api_base, often /v1",
    FailureKind.NOT_OFFERED: "the address has no chat; check api_base, or set operations",
    FailureKind.UNSUPPORTED: "the model cannot do this; set operations or capabilities",
    FailureKind.REJECTED: "the vendor calls the request invalid; check model and extra",
}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    Attributes:
        configuration: As the service would use it.
        found: Its providers with their places, in the order in which they are asked.
        warnings: What is probably a mistake.
        probes: Results of `--ask`, in the order of `found`; None if nothing was asked.
    """

    configuration: Configuration
    found: Sequence[FoundProvider]
    warnings: Sequence[str]
    probes: Sequence[ProbeResult] | None


def run_check(
    *, config: Path | None, as_json: bool, strict: bool, ask_seconds: float | None
) -> None:
    """Print what the configuration does, and exit with 0, 1 (see `--help`) or 2 (invalid)."""
    with errors_as_exit_codes():
        use_config(config)
        try:
            report = _report(ask_seconds)
        except GatewayError as error:
            if not as_json:
                raise
            typer.echo(json.dumps({"ok": False, "error": str(error)}, indent=2))
            raise typer.Exit(WRONG_INPUT) from None
    failed = any(probe.problem for probe in report.probes or ())
    if as_json:
        typer.echo(json.dumps({"ok": not failed} | _plain(report), indent=2))
    else:
        typer.echo("\n".join(_lines(report)))
    if failed or (strict and report.warnings):
        raise typer.Exit(FAILED)


def _report(ask_seconds: float | None) -> CheckReport:
    configuration = read_configuration({})
    asyncio.run(load_litellm())  # for its model map
    found = sorted(read_providers(), key=lambda each: -each.config.priority)
    probes = None
    if ask_seconds is not None:
        probes = asyncio.run(probe_all([each.config for each in found], ask_seconds))
    return CheckReport(configuration, found, list(_warnings(configuration, found)), probes)


# ── what is shown ────────────────────────────────────────────────────────────────────────────────


def _lines(report: CheckReport) -> Iterator[str]:
    configuration = report.configuration
    asked = "each provider was asked" if report.probes is not None else "nothing was sent"
    yield f"aigateway {__version__}: the configuration is valid; {asked}."
    yield f"  file    {_there(settings_file())}"
    yield f"  .env    {_there(Path('.env'))}"
    yield "\nProviders, in the order in which they are asked:"
    for number, each in enumerate(report.found):
        yield f"  {each.config.name}"
        for name, value in _described(each, _price(each, configuration.gateway)).items():
            if value is not None:
                yield f"      {name:<11}{value}"
        if report.probes is not None:
            yield f"      {'answer':<11}{_outcome(report.probes[number])}"
    for title, values in _settings(configuration).items():
        yield f"\n[{title}], where it differs from the defaults:"
        width = max((len(name) for name in values), default=0)
        for name, (value, place) in values.items():
            yield f"  {name:<{width}} = {value}  ({place})"
        if not values:
            yield "  nothing"
    yield "\nSo:"
    for name, text in _summary(configuration).items():
        yield f"  {name:<11}{text}"
    if report.warnings:
        yield f"\n{len(report.warnings)} {'warnings' if len(report.warnings) > 1 else 'warning'}:"
        yield from (f"  - {warning}." for warning in report.warnings)


def _there(path: Path) -> str:
    return str(path.absolute()) if path.is_file() else f"{path} (not there)"


def _price(each: FoundProvider, gateway: GatewaySettings) -> Price | None:
    return price_of(with_default_prices(each.config, gateway.default_prices))


def _limits(config: LLMConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _LIMITS}


def _described(each: FoundProvider, price: Price | None) -> dict[str, str | None]:
    config = each.config
    known = {**capabilities_of(config), **config.capabilities}
    operations = sorted(operations_of(config) or ("chat", "embeddings"))
    return {
        "from": each.place,
        "vendor": f"{config.provider}, model {config.model}",
        "address": config.api_base or "the vendor's own",
        "key": each.key_place or "none",
        "priority": f"{config.priority}, weight {config.weight:g}",
        "aliases": ", ".join(config.aliases) or None,
        "does": ", ".join(operations),
        "can do": described(known, max_input_tokens(config)) or "not known",
        "price": "not known"
        if price is None
        else f"${price.input * _MILLION:.2f} in, ${price.output * _MILLION:.2f} out"
        " per million tokens",
        "limits": ", ".join(f"{n} {v:g}" for n, v in _limits(config).items() if v is not None)
        or None,
        "headers": ", ".join(config.headers) or None,
        "extra": ", ".join(config.extra) or None,
    }


def _outcome(probe: ProbeResult) -> str:
    remedy = _remedy(probe)
    text = f"{probe.problem or 'ok'}, {seconds_text(probe.latency_seconds)}"
    return f"{text}: {remedy}" if remedy else text


def _remedy(probe: ProbeResult) -> str | None:
    return None if probe.kind is None or probe.hint else _REMEDIES.get(probe.kind)


def _settings(configuration: Configuration) -> dict[str, dict[str, tuple[str, str]]]:
    """Return the settings that were given: their values, without secrets, and their places."""
    parts: tuple[GatewaySettings | ServerSettings, ...] = (
        configuration.gateway,
        configuration.server,
    )
    return {
        part.table: {
            name: (_shown(name, getattr(part, name)), place)
            for name, place in type(part).places().items()
            if name in type(part).model_fields
        }
        for part in parts
    }


def _shown(name: str, value: Any) -> str:
    if name == "redis_url" and isinstance(value, SecretStr):
        return str(redis_address(value.get_secret_value()))
    if name == "keys":
        return ", ".join(key.name for key in value)
    if name == "admin_sha256" or isinstance(value, SecretStr):
        return "set"
    return toml_value(value.model_dump() if hasattr(value, "model_dump") else value)


def _summary(configuration: Configuration) -> dict[str, str]:
    gateway, server = configuration.gateway, configuration.server
    return {
        "deadline": f"{gateway.timeout:g} s for a request, {gateway.attempt_timeout:g} s for each"
        f" call, {gateway.first_token_timeout:g} s to the first content of a stream",
        "cache": _cache(gateway),
        "fleet": f"{gateway.fleet_name!r} at {_shown('redis_url', gateway.redis_url)}"
        if gateway.redis_url is not None
        else "none; each process is on its own",
        "middleware": ", ".join(gateway.middleware) or "none",
        "service": f"{server.host} port {server.port}, {server.workers} worker"
        f"{'s' if server.workers > 1 else ''}",
        "access": _access(server),
        "state": "kept nowhere"
        if server.state_directory is None
        else f"in {server.state_directory.absolute()}",
    }


def _cache(gateway: GatewaySettings) -> str:
    if not gateway.cache_enabled:
        return "off"
    second = " over Redis" if gateway.redis_url is not None else ""
    if gateway.cache_url is not None and gateway.cache_url != "memory://":
        second = f" over {gateway.cache_url}"
    return f"{gateway.cache_max_entries} answers for {gateway.cache_ttl_seconds:g} s{second}"


def _access(server: ServerSettings) -> str:
    if not server.keys:
        return "every process on this machine, without a key"
    parts = []
    for key in server.keys:
        limits = [f"${key.budget_usd:g} a day"] if key.budget_usd is not None else []
        limits += [f"{key.rpm} requests a minute"] if key.rpm is not None else []
        if key.models is not None:
            limits += [f"only {' '.join(key.models)}" if key.models else "asks for nothing"]
        limits += ["sees what all have used"] if key.monitor else []
        parts.append(f"{key.name} ({', '.join(limits) or 'no limit'})")
    return "; ".join(parts)


def _plain(report: CheckReport) -> dict[str, Any]:
    rows = []
    for place, each in enumerate(report.found):
        price = _price(each, report.configuration.gateway)
        row: dict[str, Any] = {"name": each.config.name, **_described(each, price)}
        row |= {"priority": each.config.priority, "limits": _limits(each.config)}
        row["price_usd_per_million"] = price and {
            "input": round(price.input * _MILLION, 6),
            "output": round(price.output * _MILLION, 6),
        }
        del row["price"]
        if report.probes is not None:
            probe = report.probes[place]
            row["ask"] = {
                "ok": probe.problem is None,
                "problem": probe.problem,
                "remedy": _remedy(probe),
                "latency_seconds": round(probe.latency_seconds, 3),
            }
        rows.append({name.replace(" ", "_"): value for name, value in row.items()})
    settings = {
        table: {name: {"value": value, "from": place} for name, (value, place) in values.items()}
        for table, values in _settings(report.configuration).items()
    }
    return {
        "file": str(settings_file().absolute()) if settings_file().is_file() else None,
        "providers": rows,
        "settings": settings,
        "summary": _summary(report.configuration),
        "warnings": list(report.warnings),
    }


# ── what looks wrong ─────────────────────────────────────────────────────────────────────────────


def _warnings(configuration: Configuration, found: Sequence[FoundProvider]) -> Iterator[str]:
    configs = [each.config for each in found]
    yield from _about_redundancy(configs)
    for each in found:
        yield from _about_provider(each.config, configuration.gateway)
    yield from _about_unused_keys(found)
    yield from _about_times(configuration, configs)
    yield from _about_keys(configuration, configs)
    yield from _about_files(configuration.server)


def _about_redundancy(configs: Sequence[LLMConfig]) -> Iterator[str]:
    if len(configs) == 1:
        yield f"{configs[0].name} is the only provider; if it fails, there is none to fail over to"
    alike: dict[object, list[str]] = defaultdict(list)
    for config in configs:
        if isinstance(config.api_key, SecretStr):
            account = (config.provider, config.api_base, config.api_key.get_secret_value())
            alike[account].append(config.name)
    for names in alike.values():
        if len(names) == len(configs) > 1:
            yield (
                f"{' and '.join(names)} share one vendor and key; its outage, limits and credit are"
                " those of all"
            )
    if not any("chat" in (operations_of(config) or ("chat",)) for config in configs):
        yield "no provider chats; only embeddings will be answered"


def _about_provider(config: LLMConfig, gateway: GatewaySettings) -> Iterator[str]:
    if config.provider is ProviderType.LITELLM:
        missing = missing_package(config.model)
        if missing is not None:
            yield f"{config.name} needs {missing}"
    if not capabilities_of(config) and price_of(config) is None:
        mapped = config.provider in {ProviderType.AZURE, ProviderType.OPENAI_COMPATIBLE}
        hint = "name it in extra.base_model" if mapped else "check the name"
        yield (
            f"{config.name}: litellm's model map does not know {config.model}, so price and"
            f" capabilities are unknown; {hint}, or set the prices in extra"
        )
    yield from _about_address(config)
    if isinstance(config.api_key, SecretStr):
        yield from _about_key(config, config.api_key.get_secret_value())
    if config.timeout is not None and config.timeout > gateway.timeout:
        yield (
            f"{config.name}: its timeout ({config.timeout:g} s) is longer than that of a whole"
            f" request ({gateway.timeout:g} s), which ends it first; raise [gateway] timeout"
        )


def _about_address(config: LLMConfig) -> Iterator[str]:
    base = urlsplit(config.api_base or "")
    local = base.hostname in {"localhost", "127.0.0.1", "::1"} or "." not in (base.hostname or "")
    if base.scheme == "http" and config.api_key is not None and not local:
        yield f"{config.name}: api_base is http://, so the key travels unencrypted"
    if config.provider is ProviderType.OPENAI_COMPATIBLE and base.path in {"", "/"}:
        yield f"{config.name}: api_base has no path; most servers need /v1 at its end"


def _about_key(config: LLMConfig, key: str) -> Iterator[str]:
    if key[0] in _QUOTES or key[-1] in _QUOTES:
        yield f"{config.name}: its key has a quotation mark at an end; take it off"
    elif _PLACEHOLDER.fullmatch(key):
        yield f"{config.name}: its key looks like a placeholder"
    for beginning, vendor in _BEGINNINGS.items():
        other = config.provider in VENDORS and config.provider is not vendor
        if key.startswith(beginning) and other and config.api_base is None:
            yield f"{config.name}: its key looks like one of {vendor}"


def _about_unused_keys(found: Iterable[FoundProvider]) -> Iterator[str]:
    used = {each.config.provider for each in found}
    read = {each.key_place for each in found}  # also by api_key_env, whatever the vendor
    for vendor, about in VENDORS.items():
        place = place_of_variable(f"{about.prefix}API_KEY")
        if place is not None and place not in read and vendor not in used:
            yield (
                f"{place} is not used, because the file lists the providers and none is of {vendor}"
            )


def _about_times(configuration: Configuration, configs: Sequence[LLMConfig]) -> Iterator[str]:
    gateway, server = configuration.gateway, configuration.server
    if gateway.attempt_timeout >= gateway.timeout and len(configs) > 1:
        yield (
            f"attempt_timeout ({gateway.attempt_timeout:g} s) leaves nothing of timeout"
            f" ({gateway.timeout:g} s): a provider that hangs uses up the whole request, and no"
            " other is asked"
        )
    if gateway.first_token_timeout > gateway.attempt_timeout:
        yield (
            f"first_token_timeout ({gateway.first_token_timeout:g} s) is longer than"
            f" attempt_timeout ({gateway.attempt_timeout:g} s), which ends the attempt first"
        )
    if server.request_timeout < gateway.timeout:
        yield (
            f"[server] request_timeout ({server.request_timeout:g} s) is shorter than [gateway]"
            f" timeout ({gateway.timeout:g} s), and ends requests of the service first"
        )
    if gateway.agent_ttls and not gateway.cache_enabled:
        yield "agent_ttls has no effect, because cache_enabled is false"


def _about_keys(configuration: Configuration, configs: Sequence[LLMConfig]) -> Iterator[str]:
    names = {AUTO, *(name for c in configs for name in (c.name, c.model, *c.aliases))}
    unpriced = [c.name for c in configs if price_of(c) is None]
    for key in configuration.server.keys:
        for model in key.models or ():
            if model not in names:
                yield f"key {key.name} may request {model}, which no provider serves"
        if key.budget_usd is not None and unpriced and configuration.gateway.default_prices is None:
            yield (
                f"key {key.name} has a budget, so its requests never go to {', '.join(unpriced)},"
                " whose price is unknown; set default_prices"
            )
    if missing_server_packages() and ServerSettings.places():
        yield '[server] is set, and its packages are missing: pip install "aigateway[server]"'


def _about_files(server: ServerSettings) -> Iterator[str]:
    for path in (settings_file(), Path(".env")):
        if path.is_file() and _holds_secret(path) and path.stat().st_mode & stat.S_IROTH:
            yield f"{path} holds a key that every user of this machine can read; chmod 600 {path}"
    directory = server.state_directory
    if directory is not None and directory.is_dir() and not os.access(directory, os.W_OK):
        yield f"{directory} cannot be written, so the service keeps no state; set state_dir"


def _holds_secret(path: Path) -> bool:
    return _SECRET.search(path.read_text(encoding="utf-8", errors="replace")) is not None
