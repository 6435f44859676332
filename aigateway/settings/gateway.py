"""The settings of the gateway as a whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from aigateway.settings.fields import (
    CacheUrl,
    Count,
    CountOrZero,
    DollarsOrZero,
    Frozen,
    Percent,
    Positive,
    Seconds,
    SecondsOrZero,
)
from aigateway.settings.redis_url import RedisUrl
from aigateway.settings.sources import PREFIX, TableSettings

__all__ = ["GatewaySettings", "TokenPrices"]


class TokenPrices(Frozen):
    """US dollars per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    input: DollarsOrZero
    output: DollarsOrZero


class GatewaySettings(TableSettings):
    """Everything about the gateway that is not one provider. Durations are seconds.

    Each field may be given by keyword, as `AIGATEWAY_<FIELD>` in the environment or `.env`, or
    under `[gateway]` in `aigateway.toml`. Constructing reads all of these.

    Raises:
        ConfigurationError: A value cannot work, or a keyword, an `AIGATEWAY_` variable or a key
            in the file is not known; the message names it, where it was read, and the fix.
    """

    table = "gateway"
    _broken_json = (
        f"agent_ttls, default_prices: {PREFIX}AGENT_TTLS and {PREFIX}DEFAULT_PRICES must be JSON"
        " objects; "
        f"middleware: {PREFIX}MIDDLEWARE must be a JSON list"
    )
    model_config = SettingsConfigDict(env_prefix=PREFIX)

    timeout: Seconds = 60.0
    """Seconds for a whole request, failover and waiting included."""
    attempt_timeout: Seconds = 30.0
    """Seconds for one call to one provider; the request's deadline may end it sooner. If it is not
    set and `timeout` is less than twice the default, it is half of `timeout`: a provider that hangs
    must leave time to ask another one."""
    first_token_timeout: Seconds = 10.0
    """Seconds a stream may take until its first content; roles and pings do not count as content.
    A shorter timeout of the attempt takes precedence. If it is not set, it is at most half of
    `timeout`."""
    thinking_timeout: Seconds = 90.0
    """Seconds to the first content of a request that asks the model to think (`thinking`,
    `reasoning_effort`, ...), if that is longer than `first_token_timeout` or `attempt_timeout`.
    A stream has to begin, without content, within `first_token_timeout` all the same. It is added
    to `timeout` where a request sets none, and takes the place of a shorter `idle_timeout`."""
    idle_timeout: Seconds = 15.0
    """Seconds a stream may go without content after its first; pings do not count as content."""
    chat_over_stream: bool = False
    """Whether `chat` requests a stream internally, so that `first_token_timeout` and `idle_timeout`
    detect a stuck vendor long before `attempt_timeout` does."""
    retries_per_provider: CountOrZero = 0
    """How often a provider is retried before the next one is asked; 0 fails over at once."""
    hedge: bool = False
    """Whether a second provider is asked when the first is slower than its own 95th percentile.
    The faster answer is taken. Requests with tools are hedged only if the call asks for it."""
    hedge_delay_seconds: Seconds = 5.0
    """Seconds before a hedge while a provider has answered fewer than 20 times."""
    hedge_max_percent: Percent = 5.0
    """Most hedges, in percent of the requests of the last minute; ten are always allowed."""
    failure_threshold: Count = 5
    """Failures in a row, of distinct requests, that open a provider's circuit."""
    reset_timeout_seconds: Seconds = 60.0
    """Seconds a circuit stays open the first time; each opening in a row doubles it."""
    max_open_seconds: Seconds = 120.0
    """Longest time in seconds that a circuit stays open; at least `reset_timeout_seconds`, to
    which it is raised if it is not set."""
    probe_lease_seconds: Seconds = 60.0
    """Seconds after which a probe of a half-open circuit that was never settled counts as lost."""
    retry_rounds: CountOrZero = 2
    """How often all providers are tried again when none answered; 0 is never."""
    max_retry_wait_seconds: SecondsOrZero = 10.0
    """Longest wait in seconds before another round; if a longer one is needed, fail at once."""
    max_cooldown_seconds: Seconds = 300.0
    """Longest cooldown in seconds after a rate limit, whatever `Retry-After` says; then one request
    tries the provider."""
    degraded_window_seconds: Seconds = 30.0
    """Seconds of the sliding window that decides whether a provider is degraded."""
    degraded_min_attempts: Count = 20
    """Attempts that this window needs before it decides anything."""
    degraded_error_percent: Annotated[Percent, Field(gt=0)] = 50.0
    """Failed attempts, in percent of the window, from which a provider is asked after the healthy
    ones."""
    degraded_latency_factor: Annotated[Positive, Field(gt=1)] = 5.0
    """Multiple of a provider's own usual latency. While most answers take longer, it is asked
    after the healthy ones."""
    degraded_canary_percent: Percent = 5.0
    """Requests, in percent, that a degraded provider keeps, so that its recovery is detected."""
    disabled_recheck_seconds: Seconds = 300.0
    """Seconds until a misconfigured provider (bad key, no such model) is tried again."""
    disabled_recheck_max_seconds: Seconds = 3600.0
    """Longest time in seconds between these tries; at least `disabled_recheck_seconds`."""
    failover_on_rejection: bool | Literal["once"] = "once"
    """Whether a request that one vendor rejects as invalid is offered to further providers. "once"
    asks one provider of another vendor for a second opinion, within the retry budget."""
    failover_on_content_policy: bool = False
    """Whether a request that a vendor's content policy refuses goes on to the next provider."""
    drop_unsupported_params: Literal["hints"] | bool = "hints"
    """Which parameters are left out for a provider that does not support them. "hints" leaves out
    those that only influence an answer (`temperature`, `seed`, ...), and only if no provider is
    left that supports them; True leaves out any; False none. If a parameter may not be left out,
    the next provider is asked."""
    cache_enabled: bool = True
    """Whether answers are cached."""
    cache_ttl_seconds: Seconds = 3600.0
    """Seconds an answer stays in the cache."""
    cache_max_entries: Count = 1000
    """Answers in the cache; the least recently used is evicted first."""
    cache_max_memory_bytes: Annotated[int, Field(ge=1_000_000, le=1_099_511_627_776)] = 134_217_728
    """Estimated memory of these answers in each process; the least recently used is evicted first.
    An answer of more than an eighth of it is not kept in memory."""
    cache_url: CacheUrl | None = None
    """Where answers are remembered beside memory: `sqlite:///cache.db` (relative) or
    `sqlite:////var/cache/cache.db` is a file, for scripts and notebooks, that several processes may
    use. `memory://` is memory alone. If it is not set, it is the Redis of `redis_url`, if any."""
    cache_max_bytes: Annotated[int, Field(ge=10_000_000)] = 1_073_741_824
    """Largest size of that file; the least recently used answers are dropped first."""
    agent_ttls: dict[str, Seconds] = Field(default_factory=dict)
    """Seconds an answer stays in the cache, by agent name; in the environment a JSON object. The
    entries of all sources are merged."""
    stale_if_error_seconds: SecondsOrZero = 0.0
    """Seconds past its expiry during which a cached answer may be used when every provider failed;
    0 is never."""
    max_concurrency: Count = 256
    """Calls to vendors in flight at once. If it is not set, `aigateway serve` uses 2048."""
    max_queue: CountOrZero = 10_000
    """Requests that may wait for a free slot; more are rejected with `OverloadedError`. Requests of
    batches count only for batches."""
    max_prompt_bytes: Count = 10_000_000
    """Longest prompt, in bytes of its messages as UTF-8 JSON."""
    freeze_gc: bool = False
    """Whether `gc.freeze()` is called once, when litellm has been loaded. Python's garbage
    collector then skips what exists at that time. Else each full collection walks all objects of
    litellm, and stops the event loop for 0.3 seconds. If it is not set, `aigateway serve` and
    `aigateway batch` call it."""
    log_prompts: bool = False
    """Whether prompts and answers are written to the log."""
    middleware: tuple[str, ...] = ()
    """Middleware by import path, such as "package.module:name", in order; in the environment a JSON
    list. `AsyncGateway(middleware=...)` takes precedence."""
    middleware_timeout: Seconds = 5.0
    """Seconds that one call of a middleware may take; then the request fails."""
    default_prices: TokenPrices | None = None
    """Prices of models whose price is not known, as `{input = 0.5, output = 1.5}`: US dollars per
    million tokens; in the environment a JSON object. A provider's own prices in `extra` and
    litellm's price map come first. Without it, requests of keys with a budget do not go to
    providers without a price."""
    redis_url: RedisUrl | None = None
    """The Redis or Valkey through which processes share limits, circuits and answers: `redis://`,
    `rediss://` (TLS), with user and password, `redis+cluster://`, `redis+sentinel://`. Needs the
    extra `[redis]`."""
    fleet_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "default"
    """Processes with the same `redis_url` and this name are one fleet."""

    def seconds_for(self, *, thinks: bool) -> float:
        """Return the seconds for a request that sets no timeout."""
        return self.timeout + self.thinking_timeout * thinks

    def with_defaults(self, **defaults: Any) -> Self:
        """Return these settings with other defaults: what is set stays."""
        unset = {name: defaults[name] for name in defaults.keys() - self.model_fields_set}
        return self.model_copy(update=unset)

    @model_validator(mode="after")
    def _leave_room_for_failover(self) -> Self:
        for name in ("attempt_timeout", "first_token_timeout"):
            if name not in self.model_fields_set:
                most = min(getattr(self, name), self.timeout / 2)
                object.__setattr__(self, name, most)  # not frozen yet; it stays "not set"
        if "max_open_seconds" not in self.model_fields_set:
            longest = max(self.max_open_seconds, self.reset_timeout_seconds)
            object.__setattr__(self, "max_open_seconds", longest)
        return self

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        for least, most in (
            ("reset_timeout_seconds", "max_open_seconds"),
            ("disabled_recheck_seconds", "disabled_recheck_max_seconds"),
        ):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{most}: is less than {least}; raise it at least to that")
        return self
