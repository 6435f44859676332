"""`aigateway serve`: the service in the foreground, until it is told to stop."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from aigateway.cli.outcome import explained
from aigateway.errors import ConfigurationError

__all__ = ["run_serve"]

_NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def run_serve(
    overrides: Mapping[str, Any], *, config: Path | None, simulate: bool, as_json: bool
) -> None:
    """Serve; the command ends when the service does."""
    with explained():
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigurationError(
                f"`aigateway serve` needs what is not installed ({', '.join(missing)}):"
                ' pip install "aigateway[server]"'
            )
        if config is not None:
            # Everything that reads settings finds it there, in every process and at each reload.
            os.environ["AIGATEWAY_CONFIG"] = str(config.absolute())
        from aigateway.server.process.serve import (  # noqa: PLC0415 - needs the extra
            ServeOptions,
            serve,
        )
        from aigateway.telemetry.json_logs import configure_service_logs  # noqa: PLC0415 - slow

        configure_service_logs(as_json=as_json)
        code = serve(ServeOptions(overrides, simulate, typer.echo))
    raise typer.Exit(code)
