"""What all commands share: messages on stderr, exit codes, consoles and colours."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console

from aigateway.errors import (
    ConfigurationError,
    GatewayError,
    NoProvidersError,
    ProviderFailure,
    RequestRejectedError,
    describe,
)
from aigateway.routing.provider import Word

__all__ = [
    "COLOURS",
    "FAILED",
    "WRONG_INPUT",
    "advise",
    "errors_as_exit_codes",
    "is_live",
    "missing_server_packages",
    "note",
    "seconds_text",
    "stdout_console",
    "use_config",
]

FAILED = 1
WRONG_INPUT = 2
_SERVER_PACKAGES = ("fastapi", "httptools", "prometheus_client", "uvicorn")
_PIPED_WIDTH = 240
"""Columns without a terminal, so that no name is cut."""

COLOURS: dict[Word, str] = {
    "closed": "green",
    "degraded": "yellow",
    "half-open": "yellow",
    "probe is due": "yellow",
    "cooling": "magenta",
    "open": "red",
    "disabled": "red",
}
"""Rich's colour for each condition of a provider."""

_ADVICE = """\
Set one or more of these, in the environment or in a file named .env:

  OPENAI_API_KEY
  GEMINI_API_KEY
  ANTHROPIC_API_KEY
  AZURE_OPENAI_API_KEY with AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_DEPLOYMENT

or write [[providers]] in aigateway.toml: `aigateway vendors` has the lines for other vendors, and
`aigateway init` writes the file. To try it without a key:

  aigateway chat --simulate "What is 2+2?"
  aigateway serve --simulate
  aigateway demo"""


@contextlib.contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Turn the gateway's errors into a message and an exit code, without a traceback."""
    try:
        yield
    except NoProvidersError:
        advise()
        code = WRONG_INPUT
    except GatewayError as error:
        _print_error(error)
        wrong = isinstance(error, ConfigurationError | RequestRejectedError)
        code = WRONG_INPUT if wrong else FAILED
    else:
        return
    raise typer.Exit(code)


def advise() -> None:
    """Print how to configure providers."""
    typer.secho("No provider is configured.", fg="red", err=True)
    typer.echo(_ADVICE, err=True)


def _print_error(error: GatewayError) -> None:
    """Print the error on one line, then each provider's failure on its own line."""
    causes: tuple[ProviderFailure, ...] = getattr(error, "causes", ())
    message = str(error) or type(error).__name__
    if causes:
        together = describe(causes)  # part of the message; each cause gets its own line instead
        for enclosed in (f": {together}", f" ({together})"):
            message = message.replace(enclosed, "")
    typer.secho(f"error: {message.rstrip('.')}.", fg="red", err=True)
    for cause in causes:
        typer.echo(f"  {cause}", err=True)


def note(text: str) -> None:
    """Print a remark on stderr."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(text, style="dim", markup=False, highlight=False)


def use_config(path: Path | None) -> None:
    """Read this file, if one is given, instead of `aigateway.toml`."""
    if path is not None:
        # In the environment, every process finds it there at each reload.
        os.environ["AIGATEWAY_CONFIG"] = str(path.absolute())


def missing_server_packages() -> list[str]:
    """Return the packages of the extra `[server]` that are not installed."""
    return [name for name in _SERVER_PACKAGES if importlib.util.find_spec(name) is None]


def seconds_text(seconds: float) -> str:
    """Return a short time with its unit; nothing takes 0.00 s."""
    return "<0.01 s" if seconds < 0.005 else f"{seconds:.2f} s"


def stdout_console() -> Console:
    """Return the console on stdout."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def is_live(console: Console, *, plain: bool) -> bool:
    """Return whether a display may redraw itself on this console."""
    return console.is_terminal and not console.is_dumb_terminal and not plain
