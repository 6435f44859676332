"""The options of litellm: those that are taken over, and why others are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = [
    "CHAT_PARAMETERS",
    "DEPLOYMENT_REASONS",
    "LOGS",
    "NOT_COPIED",
    "OPTIONS",
    "SETTING_REASONS",
    "TAKEN_PARAMETERS",
    "TAKEN_SETTINGS",
]

_ONE_FOR_ALL = "it is one setting for all providers: {} under [gateway]"
_RETRIES = "failures are judged by one table, and extra calls are bounded by one budget"
LOGS = "there is no such receiver; use events and hooks, Prometheus or OpenTelemetry"
_KEY_STORE = "keys and their limits are in aigateway.toml: aigateway key"

CHAT_PARAMETERS: Final = frozenset(
    "temperature top_p top_k max_tokens max_completion_tokens stop seed presence_penalty"  # noqa: SIM905
    " frequency_penalty logit_bias n user response_format reasoning_effort thinking tools"
    " tool_choice parallel_tool_calls service_tier verbosity logprobs top_logprobs".split()
)
"""Parameters of a chat, which become defaults in a provider's `extra`."""

DEPLOYMENT_REASONS: Final[Mapping[str, str]] = {
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
SETTING_REASONS: Final[Mapping[str, str]] = {
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
    "success_callback": LOGS,
    "failure_callback": LOGS,
    "callbacks": LOGS,
    "service_callbacks": LOGS,
    "service_callback": LOGS,
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
TAKEN_PARAMETERS: Final = frozenset(
    "model api_key api_base base_url api_version rpm tpm weight order timeout"  # noqa: SIM905
    " max_parallel_requests cooldown_time custom_llm_provider extra_headers headers organization"
    " input_cost_per_token output_cost_per_token base_model model_info".split()
)
TAKEN_SETTINGS: Final = frozenset(
    "fallbacks default_fallbacks context_window_fallbacks content_policy_fallbacks"  # noqa: SIM905
    " max_fallbacks model_group_alias routing_strategy num_retries timeout request_timeout"
    " stream_timeout"
    " allowed_fails cooldown_time drop_params cache cache_params redis_url redis_host redis_port"
    " redis_password redis_db default_max_parallel_requests global_max_parallel_requests".split()
)
OPTIONS: Final = frozenset(
    {*TAKEN_PARAMETERS, *TAKEN_SETTINGS, *DEPLOYMENT_REASONS, *SETTING_REASONS}
)
"""Every option of litellm that is taken over, or has its reason here."""


NOT_COPIED = (
    "it may be a secret, which is not copied; put it into the variable that the vendor reads"
)
