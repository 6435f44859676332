"""How a command says that it could not do what it was asked: words on stderr, and an exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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

__all__ = ["FAILED", "WRONG_INPUT", "advise", "complain", "explained", "note"]

FAILED = 1
WRONG_INPUT = 2

_ADVICE = """\
Set one or more of these, in the environment or in a file named .env:

  OPENAI_API_KEY
  GEMINI_API_KEY
  ANTHROPIC_API_KEY
  AZURE_OPENAI_API_KEY with AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_DEPLOYMENT

or write [[providers]] in aigateway.toml. To try it without any key:

  aigateway chat --simulate "What is 2+2?"
  aigateway demo"""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the gateway's errors into a message and an exit code, without a traceback."""
    try:
        yield
    except NoProvidersError:
        advise()
        code = WRONG_INPUT
    except GatewayError as error:
        complain(error)
        wrong = isinstance(error, ConfigurationError | RequestRejectedError)
        code = WRONG_INPUT if wrong else FAILED
    else:
        return
    raise typer.Exit(code)


def advise() -> None:
    """Say how providers are configured."""
    typer.secho("No provider is configured.", fg="red", err=True)
    typer.echo(_ADVICE, err=True)


def complain(error: GatewayError) -> None:
    """Say what went wrong: the error on one line, then each provider on its own."""
    causes: tuple[ProviderFailure, ...] = getattr(error, "causes", ())
    message = str(error) or type(error).__name__
    if causes:
        # The message has them all on one line; here each gets its own.
        together = describe(causes)
        for enclosed in (f": {together}", f" ({together})"):
            message = message.replace(enclosed, "")
    typer.secho(f"error: {message.rstrip('.')}.", fg="red", err=True)
    for cause in causes:
        typer.echo(f"  {cause}", err=True)


def note(text: str) -> None:
    """Say something by the way, on stderr."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(text, style="dim", markup=False, highlight=False)
