"""Several LLM vendors behind one async call that fails over.

`__all__` is the one list of public names. Each is loaded when it is first used, so that
`import aigateway` costs next to nothing. litellm is loaded only before the first call to a vendor.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aigateway.version import __version__

if TYPE_CHECKING:
    from aigateway.errors import *
    from aigateway.events import *
    from aigateway.figures import *
    from aigateway.gateway import *
    from aigateway.integrations.in_process import anthropic_client, openai_client
    from aigateway.messages import *
    from aigateway.options import *
    from aigateway.protocols.protocol import ProtocolOptions, ProtocolResponse, ProtocolStream
    from aigateway.request.middleware import *
    from aigateway.request.stream import *
    from aigateway.request.tools import *
    from aigateway.resilience.breaker import *
    from aigateway.routing.guards import OperationStatus
    from aigateway.routing.provider import *
    from aigateway.settings import *
    from aigateway.sync import *

_HOMES = (
    "aigateway.errors",
    "aigateway.messages",
    "aigateway.events",
    "aigateway.options",
    "aigateway.figures",
    "aigateway.resilience.breaker",
    "aigateway.settings",
    "aigateway.request.stream",
    "aigateway.request.tools",
    "aigateway.request.middleware",
    "aigateway.routing.guards",
    "aigateway.routing.provider",
    "aigateway.protocols.protocol",
    "aigateway.gateway",
    "aigateway.sync",
    "aigateway.integrations.in_process",
)
"""Where public names are looked for, one after another: what loads fastest comes first."""

__all__ = [
    "AllProvidersFailedError",
    "AnsweredItem",
    "AsyncGateway",
    "Attempt",
    "Audio",
    "BatchItem",
    "BatchOptions",
    "BatchProgress",
    "BatchResult",
    "BoundChat",
    "BudgetExceededError",
    "CacheMetrics",
    "CallOptions",
    "ChatOptions",
    "ChatRequest",
    "ChatResponse",
    "ChatStream",
    "Choice",
    "Chunk",
    "CircuitBreaker",
    "CircuitOpenError",
    "CircuitState",
    "Completion",
    "ConfigurationError",
    "ContentPolicyError",
    "ContextWindowExceededError",
    "DeadlineExceededError",
    "EmbedOptions",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "Embeddings",
    "Event",
    "FailedItem",
    "FailureKind",
    "FleetMetrics",
    "Frame",
    "GatewayError",
    "GatewayMetrics",
    "GatewaySettings",
    "Hook",
    "LLMConfig",
    "Middleware",
    "MiddlewareFailedError",
    "MiddlewareRefusedError",
    "MisuseError",
    "ModelParams",
    "NativeAnswer",
    "NativeRequest",
    "NoProvidersError",
    "Opening",
    "OperationStatus",
    "Origin",
    "OverloadedError",
    "Percentiles",
    "Permit",
    "ProtocolOptions",
    "ProtocolResponse",
    "ProtocolStream",
    "ProviderFailure",
    "ProviderMetrics",
    "ProviderStatus",
    "ProviderType",
    "Rejected",
    "RequestRejectedError",
    "SessionMetrics",
    "SettingsOverrides",
    "StreamInterruptedError",
    "StreamOptions",
    "ToolCall",
    "ToolCallDelta",
    "ToolResult",
    "ToolRoundsExceededError",
    "ToolRun",
    "ToolRunOptions",
    "UnknownModelError",
    "Usage",
    "__version__",
    "anthropic_client",
    "call_llm",
    "get_gateway",
    "get_gateway_metrics",
    "openai_client",
    "whole_words",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in map(importlib.import_module, _HOMES):
            if name in home.__all__:
                value = globals()[name] = getattr(home, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
