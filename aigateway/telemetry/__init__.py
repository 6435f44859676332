"""Log events, counters and traces: never a prompt, an answer or a key.

The public names are imported on first use, since `OpenTelemetry` needs the extra `[otel]` and
`Prometheus` the extra `[server]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigateway.telemetry.json_logs import configure_json_logs
    from aigateway.telemetry.prometheus import Prometheus, wants_prometheus
    from aigateway.telemetry.tracing import OpenTelemetry

__all__ = ["OpenTelemetry", "Prometheus", "configure_json_logs", "wants_prometheus"]

_HOMES = {
    "OpenTelemetry": ("tracing", "otel"),
    "Prometheus": ("prometheus", "server"),
    "configure_json_logs": ("json_logs", ""),
    "wants_prometheus": ("prometheus", "server"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").startswith("aigateway"):
            raise
        raise ModuleNotFoundError(
            f'aigateway.telemetry.{name} needs more: pip install "aigateway[{extra}]"',
            name=error.name,
        ) from error
