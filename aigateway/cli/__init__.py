"""The command `aigateway`: its commands, their options and help.

Each command imports its code when it runs, so that `aigateway --help` is fast.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aigateway import __version__
from aigateway.cli.options import BatchCommand, Config, Simulate, option

__all__ = ["app"]


class LogFormat(StrEnum):
    """The format of the service's log."""

    JSON = "json"
    TEXT = "text"


_PIPE_CLOSED = 141
"""The exit code that shells report for a process ended by SIGPIPE."""
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of a full or broken disk."""


class _Commands(TyperGroup):
    """Ends silently if the reader closes the pipe, as `head` does; reports a full disk briefly."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _discard_output()
            raise typer.Exit(_PIPE_CLOSED) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            _discard_output()
            typer.secho(
                f"error: the output cannot be written: {error.strerror}.", fg="red", err=True
            )
            sys.exit(1)


def _discard_output() -> None:
    """Send what is still buffered to the null device, else Python prints an error at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    name="aigateway",
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aigateway {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        option("Print the version, and exit.", "--version", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Several LLM vendors behind one call: priority routing, failover, circuits and caching."""
    del version  # handled by its callback


@app.command("chat")
def chat_command(
    prompt: Annotated[
        str | None,
        typer.Argument(help='The prompt; "-", or none at all, reads standard input.'),
    ] = None,
    *,
    stream: Annotated[bool, option("Print the answer as it arrives.", "--stream")] = False,
    system: Annotated[str | None, option("A system message.")] = None,
    model: Annotated[str | None, option("A provider's model, name or alias; default: any.")] = None,
    temperature: Annotated[float | None, option("From 0 to 2.")] = None,
    max_tokens: Annotated[int | None, option("The longest answer.")] = None,
    timeout: Annotated[float | None, option("Seconds for the request, failover included.")] = None,
    as_json: Annotated[bool, option("Print a JSON object instead of the text.", "--json")] = False,
    no_cache: Annotated[bool, option("Do not use the cache.", "--no-cache")] = False,
    config: Config = None,
    simulate: Simulate = False,
) -> None:
    """Send one prompt. Prints the answer to stdout, and its provider and price to stderr.

    A pipe or a file at standard input is appended to the prompt: git diff | aigateway chat
    "Review this". Exits with 0 after an answer, 1 if no provider answered or the stream broke, 2 if
    the request or the configuration is invalid, 130 after Ctrl-C.
    """
    from aigateway.cli.commands import run_chat  # noqa: PLC0415 - see the module docstring

    options = {
        "system": system,
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "timeout": timeout,
        "cache": not no_cache,
    }
    run_chat(prompt, options, stream=stream, as_json=as_json, simulate=simulate, config=config)


@app.command("providers")
def providers_command(
    *,
    config: Config = None,
    as_json: Annotated[bool, option("Print JSON instead of a table.", "--json")] = False,
    check: Annotated[
        bool, option("Send each a short request, which may cost a little.", "--check")
    ] = False,
    timeout: Annotated[float, option("Seconds for each request of --check.", min=0.1)] = 20.0,
) -> None:
    """Show the configured providers, and whether they answer. Never shows keys.

    `aigateway vendors` lists what else can be configured. Exits with 0, with 1 if a provider did
    not answer --check, with 2 if none is configured or the configuration is invalid.
    """
    from aigateway.cli.commands import run_providers  # noqa: PLC0415 - see the module docstring

    run_providers(config=config, as_json=as_json, check_seconds=timeout if check else None)


@app.command("check")
def check_command(
    *,
    config: Config = None,
    ask: Annotated[
        bool, option("Send each provider a short request, which may cost a little.", "--ask")
    ] = False,
    timeout: Annotated[float, option("Seconds for each request of --ask.", min=0.1)] = 20.0,
    strict: Annotated[bool, option("Exit with 1 if there is a warning.", "--strict")] = False,
    as_json: Annotated[bool, option("Print JSON.", "--json")] = False,
) -> None:
    """Say what the configuration does, where each value was read, and what looks wrong.

    Sends nothing without --ask. Never shows keys. Exits with 0 if the configuration is valid, 1 if
    a provider did not answer --ask or --strict found a warning, 2 if the configuration is invalid.
    """
    from aigateway.cli.check import run_check  # noqa: PLC0415 - see the module docstring

    run_check(config=config, as_json=as_json, strict=strict, ask_seconds=timeout if ask else None)


@app.command("vendors")
def vendors_command(
    word: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show how to configure this vendor.")
    ] = None,
    *,
    as_json: Annotated[bool, option("Print JSON.", "--json")] = False,
) -> None:
    """List the vendors that can be reached, and the lines of TOML that configure them."""
    from aigateway.cli.vendors import run_vendors  # noqa: PLC0415 - see the module docstring

    run_vendors(word, as_json=as_json)


@app.command("init")
def init_command(
    *,
    output: Annotated[
        str, option('The file to write; "-" prints it.', "--output", "-o", metavar="PATH")
    ] = "aigateway.toml",
    force: Annotated[bool, option("Replace the file if it exists.", "--force")] = False,
    from_litellm: Annotated[
        str | None,
        option("Take over the config.yaml of litellm's proxy.", "--from-litellm", metavar="PATH"),
    ] = None,
) -> None:
    """Write a commented aigateway.toml: the vendors whose keys are set, and every setting.

    The file names the variables that hold the keys, and never a key. Exits with 2 if the file
    exists. With --from-litellm, what cannot be taken over is printed and stands in the file, too.
    """
    if from_litellm is not None:
        from aigateway.cli.from_litellm.draft import run_from_litellm  # noqa: PLC0415 - likewise

        run_from_litellm(from_litellm, output, force=force)
        return
    from aigateway.cli.init import run_init  # noqa: PLC0415 - see the module docstring

    run_init(output, force=force)


def batch_command(**options: Any) -> None:
    """Answer every line of a file. The job can be killed at any time and resumed.

    Ctrl-C finishes the requests in flight; a second one stops at once. --resume continues. Exits
    with 0 if all lines are answered, 1 if some failed or are left, 2 if IN or an option is invalid.
    """
    from aigateway.cli.batch.run import run_batch  # noqa: PLC0415 - see the module docstring

    run_batch(BatchCommand(**options))


# Typer finds the options in the signature.
batch_command.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    BatchCommand, eval_str=True
)
app.command("batch")(batch_command)


@app.command("serve")
def serve_command(
    *,
    host: Annotated[str | None, option("The address; any other than loopback needs keys.")] = None,
    port: Annotated[int | None, option("The port; 0 takes a free one.", min=0, max=65535)] = None,
    workers: Annotated[int | None, option("Worker processes.", min=1)] = None,
    config: Config = None,
    simulate: Simulate = False,
    log_format: Annotated[LogFormat, option("The format of the log on stderr.")] = LogFormat.TEXT,
) -> None:
    """Serve OpenAI's API and the gateway's own over HTTP. The settings hold all other options.

    SIGTERM or Ctrl-C lets running requests end; a second one stops at once. SIGHUP, or a change of
    the file, reloads the configuration. Exits with 2 if the configuration is invalid.
    """
    from aigateway.cli.commands import run_serve  # noqa: PLC0415 - see the module docstring

    given = {"host": host, "port": port, "workers": workers}
    run_serve(
        {name: value for name, value in given.items() if value is not None},
        config=config,
        simulate=simulate,
        as_json=log_format is LogFormat.JSON,
    )


@app.command("usage")
def usage_command(
    *,
    days: Annotated[int, option("The latest days, today included (UTC).", min=1)] = 30,
    since: Annotated[
        datetime | None,
        option("The first day, in place of --days.", formats=["%Y-%m-%d"]),
    ] = None,
    key: Annotated[str | None, option("Only this key, by its name.")] = None,
    as_csv: Annotated[bool, option("Print CSV.", "--csv")] = False,
    as_json: Annotated[bool, option("Print JSON.", "--json")] = False,
    state_dir: Annotated[
        Path | None, option("The directory of the state; default: that of the settings.")
    ] = None,
    config: Config = None,
) -> None:
    """Show who spent what at the service: by day, key and model. The service may be running."""
    from aigateway.cli.usage import run_usage  # noqa: PLC0415 - see the module docstring

    run_usage(
        since=since,
        days=days,
        key=key,
        as_csv=as_csv,
        as_json=as_json,
        state_dir=state_dir,
        config=config,
    )


@app.command("simulate")
def simulate_command(
    *,
    port: Annotated[
        int, option("The first of five consecutive ports; 0 takes free ones.", min=0, max=65531)
    ] = 9000,
    latency: Annotated[float, option("Seconds before each healthy answer.", min=0)] = 0.0,
    timeline: Annotated[
        str | None, option('Faults by time: "openai:2s=status:500,openai:5s=ok", or a file.')
    ] = None,
) -> None:
    """Run simulated OpenAI, Azure OpenAI, Gemini and Anthropic on loopback until Ctrl-C.

    Prints the environment variables that point an application at them.
    """
    from aigateway.cli.commands import run_simulate  # noqa: PLC0415 - see the module docstring

    run_simulate(port, latency=latency, timeline=timeline)


@app.command("demo")
def demo_command(
    *,
    seconds: Annotated[
        float, option("Seconds of traffic; a live table adds time to read.", min=1, max=3600)
    ] = 12.0,
    rate: Annotated[float, option("Requests per second.", min=5, max=200)] = 20.0,
    plain: Annotated[bool, option("Print lines instead of a live table.", "--plain")] = False,
    seed: Annotated[int, option("The same seed gives the same traffic.")] = 0,
) -> None:
    """Watch vendors fail in three acts, over real HTTP, while every caller gets an answer.

    The vendors are simulated: no key, half a minute. Exits with 1 if any caller saw a failure.
    """
    from aigateway.cli.demo import run_demo  # noqa: PLC0415 - see the module docstring

    run_demo(seconds=seconds, rate=rate, plain=plain, seed=seed)


@app.command("key")
def key_command(
    *,
    name: Annotated[str, option("The name of its owner in /metrics.")] = "team",
    admin: Annotated[
        bool, option("Make the admin key, which may force circuits.", "--admin")
    ] = False,
    append: Annotated[
        Path | None, option("Add the lines to this file, such as aigateway.toml.")
    ] = None,
    budget: Annotated[float | None, option("US dollars that it may spend in a day (UTC).")] = None,
    rpm: Annotated[int | None, option("Requests that it may begin in any 60 seconds.")] = None,
    models: Annotated[
        str | None, option('Models, names and aliases that it may ask for: "fast,gpt-4o".')
    ] = None,
    monitor: Annotated[
        bool, option("It sees what every key has used: for Prometheus.", "--monitor")
    ] = False,
) -> None:
    """Make a key for the service. Prints it to stdout once, and lines for aigateway.toml to stderr.

    The lines hold only a digest of the key.
    """
    from aigateway.cli.key import run_key  # noqa: PLC0415 - see the module docstring

    limits = {
        "budget_usd": budget,
        "rpm": rpm,
        "models": None if models is None else [each.strip() for each in models.split(",") if each],
        "monitor": monitor or None,
    }
    run_key(name, admin=admin, limits=limits, append=append)
