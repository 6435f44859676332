"""aigateway: several LLM vendors behind one async call.

The public names are loaded when they are first used, so that `import aigateway` costs next to
nothing; litellm is loaded only when a vendor is about to be called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aigateway.version import __version__

if TYPE_CHECKING:
    from aigateway.errors import (
        AllProvidersFailedError,
        BudgetExceededError,
        CircuitOpenError,
        ConfigurationError,
        ContentPolicyError,
        ContextWindowExceededError,
        DeadlineExceededError,
        FailureKind,
        GatewayError,
        NoProvidersError,
        OverloadedError,
        ProviderFailure,
        RequestRejectedError,
        StreamInterruptedError,
        UnknownModelError,
    )
    from aigateway.events import Event, Hook
    from aigateway.gateway import AsyncGateway
    from aigateway.messages import (
        Attempt,
        Audio,
        BatchItem,
        BatchProgress,
        BatchResult,
        ChatResponse,
        Choice,
        Chunk,
        EmbeddingResponse,
        Origin,
        ToolCall,
        ToolCallDelta,
        Usage,
    )
    from aigateway.request.stream import ChatStream
    from aigateway.resilience.breaker import CircuitBreaker, CircuitState
    from aigateway.routing.provider import ProviderStatus
    from aigateway.settings import GatewaySettings, LLMConfig, ProviderType
    from aigateway.sync import call_llm, get_gateway, get_gateway_metrics

_HOMES = {
    "aigateway.errors": (
        "AllProvidersFailedError",
        "BudgetExceededError",
        "CircuitOpenError",
        "ConfigurationError",
        "ContentPolicyError",
        "ContextWindowExceededError",
        "DeadlineExceededError",
        "FailureKind",
        "GatewayError",
        "NoProvidersError",
        "OverloadedError",
        "ProviderFailure",
        "RequestRejectedError",
        "StreamInterruptedError",
        "UnknownModelError",
    ),
    "aigateway.events": ("Event", "Hook"),
    "aigateway.sync": ("call_llm", "get_gateway", "get_gateway_metrics"),
    "aigateway.gateway": ("AsyncGateway",),
    "aigateway.messages": (
        "Attempt",
        "Audio",
        "BatchItem",
        "BatchProgress",
        "BatchResult",
        "ChatResponse",
        "Choice",
        "Chunk",
        "EmbeddingResponse",
        "Origin",
        "ToolCall",
        "ToolCallDelta",
        "Usage",
    ),
    "aigateway.resilience.breaker": ("CircuitBreaker", "CircuitState"),
    "aigateway.routing.provider": ("ProviderStatus",),
    "aigateway.settings": ("GatewaySettings", "LLMConfig", "ProviderType"),
    "aigateway.request.stream": ("ChatStream",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AllProvidersFailedError",
    "AsyncGateway",
    "Attempt",
    "Audio",
    "BatchItem",
    "BatchProgress",
    "BatchResult",
    "BudgetExceededError",
    "ChatResponse",
    "ChatStream",
    "Choice",
    "Chunk",
    "CircuitBreaker",
    "CircuitOpenError",
    "CircuitState",
    "ConfigurationError",
    "ContentPolicyError",
    "ContextWindowExceededError",
    "DeadlineExceededError",
    "EmbeddingResponse",
    "Event",
    "FailureKind",
    "GatewayError",
    "GatewaySettings",
    "Hook",
    "LLMConfig",
    "NoProvidersError",
    "Origin",
    "OverloadedError",
    "ProviderFailure",
    "ProviderStatus",
    "ProviderType",
    "RequestRejectedError",
    "StreamInterruptedError",
    "ToolCall",
    "ToolCallDelta",
    "UnknownModelError",
    "Usage",
    "__version__",
    "call_llm",
    "get_gateway",
    "get_gateway_metrics",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
