"""The settings of litellm and its proxy, as the tables `[gateway]` and `[server]`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pydantic_settings import PydanticBaseSettingsSource

from aigateway.cli.from_litellm.options import LOGS, NOT_COPIED, SETTING_REASONS, TAKEN_SETTINGS
from aigateway.cli.from_litellm.secrets import is_secret_text
from aigateway.cli.from_litellm.values import (
    Remark,
    as_mapping,
    as_number,
    as_text,
    as_texts,
    as_whole,
    referenced_variable,
    shown,
)
from aigateway.errors import ConfigurationError
from aigateway.settings import GatewaySettings, ServerSettings
from aigateway.settings.sources import TableSettings

__all__ = [
    "SECTIONS",
    "GivenGatewaySettings",
    "GivenServerSettings",
    "LitellmSettings",
    "load_problem",
]

SECTIONS = ("model_list", "litellm_settings", "router_settings", "general_settings")
_RECEIVERS = {
    "prometheus": "it needs no setting: Prometheus reads GET /metrics",
    "otel": "set otel = true under [server], with the extra otel",
}
_REDIS = (
    "set AIGATEWAY_REDIS_URL=redis://:PASSWORD@HOST:PORT/0 instead; an address with a password, or"
    " in a variable, is not copied"
)
_STRATEGIES: Final = {
    "simple-shuffle": None,
    "least-busy": None,
    "usage-based-routing": "rpm and tpm are limits; equal priorities share by calls in flight",
    "usage-based-routing-v2": "rpm and tpm are limits; equal priorities share by calls in flight",
    "latency-based-routing": "a provider slower than its own usual is asked after the others",
    "cost-based-routing": "give the cheaper provider the higher priority",
}


class LitellmSettings:
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
        self._sections = {name: as_mapping(content.get(name)) for name in SECTIONS[1:]}

    def get(self, option: str) -> Any:
        """Return an option of the router, or of litellm; None if it is not set."""
        for section in ("router_settings", "litellm_settings"):
            if self._sections[section].get(option) is not None:
                return self._sections[section][option]
        return None

    def _set(self, option: str, name: str, value: object) -> None:
        """Take a setting over, if it can work."""
        problem = load_problem(GivenGatewaySettings, {name: value})
        if is_secret_text(str(value)):
            self.remarks.append((option, NOT_COPIED))
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
                if value is None or (option in TAKEN_SETTINGS and section != "general_settings"):
                    continue
                reason = SETTING_REASONS.get(option, "there is no such option")
                names = as_texts(value) if reason is LOGS else []
                reasons = [_RECEIVERS.get(name, reason) for name in names] or [reason]
                remarks += [(f"{section}.{shown(option)}", each) for each in dict.fromkeys(reasons)]

    def _read_times(self) -> None:
        for option in ("timeout", "request_timeout"):
            seconds = as_number(self.get(option))
            if seconds is not None and seconds > 0:
                self._set(option, "attempt_timeout", seconds)
                # Time for a second provider after one that hangs.
                self._set(option, "timeout", max(60.0, 2 * seconds))
                break
            if self.get(option) is not None:
                self.remarks.append((option, "it is no positive number"))

    def _read_guards(self) -> None:
        for option, name, read in (
            ("stream_timeout", "first_token_timeout", as_number),
            ("num_retries", "retry_rounds", as_whole),
            ("cooldown_time", "reset_timeout_seconds", as_number),
        ):
            if self.get(option) is not None:
                self._set(option, name, read(self.get(option)))
        fails = self.get("allowed_fails")
        if fails is not None:
            allowed = as_whole(fails)
            self._set(
                "allowed_fails", "failure_threshold", None if allowed is None else allowed + 1
            )
        if self.get("drop_params") is True:
            self.gateway["drop_unsupported_params"] = True
        most = self._sections["general_settings"].get("global_max_parallel_requests")
        if most is not None:
            self._set("global_max_parallel_requests", "max_concurrency", as_whole(most))
        strategy = self.get("routing_strategy")
        if strategy is not None:
            reason = _STRATEGIES.get(str(strategy), "there is no such strategy")
            if reason is not None:
                name = f" {shown(strategy)}" if isinstance(strategy, str) else ""
                self.remarks.append((f"routing_strategy{name}", reason))

    def _read_cache(self) -> None:
        if self._sections["litellm_settings"].get("cache") is not True:
            self.gateway["cache_enabled"] = False
            self.remarks.append(
                ("cache", "litellm remembered nothing; drop cache_enabled to remember answers")
            )
            return
        params = as_mapping(self._sections["litellm_settings"].get("cache_params"))
        if params.get("ttl") is not None:
            self._set("cache_params.ttl", "cache_ttl_seconds", as_number(params["ttl"]))
        kind = as_text(params.get("type")) or "local"
        if kind == "disk":
            self.gateway["cache_url"] = "sqlite:///cache.db"
        if kind not in {"local", "redis", "disk"}:
            self.remarks.append(
                ("cache_params.type", "answers are in memory, in a file, or in Redis")
            )
        for option in params:
            if option not in {"ttl", "type", "host", "port", "password", "url"}:
                self.remarks.append(
                    (f"cache_params.{shown(option)}", "the cache has no such option")
                )

    def _read_redis(self) -> None:
        """Take the address over where it holds no secret and is in no variable."""
        params = as_mapping(self._sections["litellm_settings"].get("cache_params"))
        shared = {} if params.get("type") != "redis" else params
        found = {
            name: self.get(f"redis_{name}") or shared.get(name)
            for name in ("url", "host", "port", "password", "db")
        }
        if found["url"] is None and found["host"] is None:
            return
        port, database = as_whole(found["port"] or 6379), as_whole(found["db"] or 0)
        host = as_text(found["host"])
        is_secret = found["url"] is not None or found["password"] is not None
        in_variable = any(map(referenced_variable, found.values()))
        if is_secret or in_variable or None in {port, database, host}:
            self.remarks.append(("redis", _REDIS))
            return
        self._set("redis", "redis_url", f"redis://{host}:{port}/{database}")


class _GivenSettings(TableSettings):
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


class GivenGatewaySettings(_GivenSettings, GatewaySettings):
    """`[gateway]`."""


class GivenServerSettings(_GivenSettings, ServerSettings):
    """`[server]`."""


def load_problem(kind: Callable[..., object], values: Mapping[str, Any]) -> str | None:
    """Return why these settings cannot be loaded; None if they can."""
    try:
        kind(**values)
    except ConfigurationError as error:
        return str(error).removeprefix(f"{kind.__name__}: ")
    return None
