"""The command `aigateway`: its commands, their options and help.

Each command imports its code when it runs, so that `aigateway --help` is fast.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from aigateway import __version__

__all__ = ["app"]


class LogFormat(StrEnum):
    """The format of the service's log."""

    JSON = "json"
    TEXT = "text"


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


_Simulate = Annotated[bool, _option("Use four simulated vendors; needs no key.", "--simulate")]


app = typer.Typer(
    name="aigateway",
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
        _option(
            "Print the version, and exit.", "--version", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Several LLM vendors behind one call: priority routing, failover, circuits and caching."""
    del version  # handled by its callback


@app.command("chat")
def chat_command(
    prompt: Annotated[str, typer.Argument(help='The prompt; "-" reads standard input.')],
    *,
    system: Annotated[str | None, _option("A system message.")] = None,
    model: Annotated[
        str | None, _option("A provider's model, name or alias; default: any.")
    ] = None,
    temperature: Annotated[float | None, _option("From 0 to 2.")] = None,
    max_tokens: Annotated[int | None, _option("The longest answer.")] = None,
    timeout: Annotated[float | None, _option("Seconds for the request, failover included.")] = None,
    as_json: Annotated[bool, _option("Print a JSON object instead of the text.", "--json")] = False,
    no_cache: Annotated[bool, _option("Do not use the cache.", "--no-cache")] = False,
    simulate: _Simulate = False,
) -> None:
    """Send one prompt. Prints the answer to stdout, and its provider and price to stderr."""
    from aigateway.cli.commands import run_chat  # noqa: PLC0415 - see the module docstring

    options = {
        "system": system,
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "timeout": timeout,
        "cache": not no_cache,
    }
    run_chat(prompt, options, as_json=as_json, simulate=simulate)


@app.command("providers")
def providers_command(
    *,
    as_json: Annotated[bool, _option("Print JSON instead of a table.", "--json")] = False,
    check: Annotated[
        bool, _option("Send each a short request, which may cost a little.", "--check")
    ] = False,
    timeout: Annotated[float, _option("Seconds for each request of --check.", min=0.1)] = 20.0,
) -> None:
    """Show the configured providers, and whether they answer. Never shows keys."""
    from aigateway.cli.commands import run_providers  # noqa: PLC0415 - see the module docstring

    run_providers(as_json=as_json, check_seconds=timeout if check else None)


@app.command("batch")
def batch_command(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Requests: .jsonl, .csv, .tsv or .parquet.")
    ],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="For the answers, as lines of JSON.")
    ] = None,
    *,
    errors: Annotated[
        Path | None, _option("For the lines without an answer; default: OUT with .errors in it.")
    ] = None,
    resume: Annotated[
        bool, _option("Continue from the answers in OUT, if any.", "--resume")
    ] = False,
    ask_failed: Annotated[
        bool, _option("With --resume: repeat even requests that were rejected.", "--ask-failed")
    ] = False,
    skip_bad_lines: Annotated[
        bool, _option("Count invalid lines as failed instead of rejecting IN.", "--skip-bad-lines")
    ] = False,
    prompt_column: Annotated[
        str | None, _option('The column with the prompt; default for tables: "prompt".')
    ] = None,
    template: Annotated[
        str | None, _option('A prompt with columns: "Translate {text} into {language}".')
    ] = None,
    id_column: Annotated[
        str | None, _option("The column with the id; default: id, custom_id or the row number.")
    ] = None,
    delimiter: Annotated[
        str | None, _option("Separates the fields of a .csv; default: a comma.")
    ] = None,
    system: Annotated[str | None, _option("A system message for every line.")] = None,
    model: Annotated[
        str | None, _option("For lines without a model: a provider's model, name or alias.")
    ] = None,
    ignore_model: Annotated[
        bool, _option("Ignore the models of the lines.", "--ignore-model")
    ] = False,
    temperature: Annotated[float | None, _option("From 0 to 2.")] = None,
    max_tokens: Annotated[int | None, _option("The longest answer.")] = None,
    timeout: Annotated[float | None, _option("Seconds for one line, failover included.")] = None,
    no_cache: Annotated[
        bool, _option("Send every line, even if it repeats another one.", "--no-cache")
    ] = False,
    concurrency: Annotated[
        str, _option('Requests in flight at once; "auto" follows the providers\' limits.')
    ] = "16",
    outage_patience: Annotated[
        float, _option("Seconds to wait while no provider is available; inf: no limit.", min=0)
    ] = 300.0,
    max_cost: Annotated[
        float | None, _option("US dollars after which no new request begins.")
    ] = None,
    max_failures: Annotated[
        int | None, _option("Failed lines after which no new request begins.")
    ] = None,
    rpm: Annotated[int | None, _option("The most requests per minute.")] = None,
    tpm: Annotated[int | None, _option("The most tokens per minute.")] = None,
    report: Annotated[Path | None, _option("Write a report to a .html or .json file.")] = None,
    dry_run: Annotated[
        bool, _option("Check IN and estimate the cost; send nothing.", "--dry-run")
    ] = False,
    plain: Annotated[bool, _option("Print lines instead of a progress bar.", "--plain")] = False,
    simulate: _Simulate = False,
) -> None:
    """Answer every line of a file. The job can be killed at any time and resumed.

    Ctrl-C finishes the requests in flight; a second one stops at once. --resume continues. Exits
    with 0 if all lines are answered, 1 if some failed or are left, 2 if IN or an option is invalid.
    """
    from aigateway.batch.files.input import RowFormat  # noqa: PLC0415 - see the module docstring
    from aigateway.cli.batch.run import (  # noqa: PLC0415 - see the module docstring
        BatchCommand,
        run_batch,
    )

    shared = {
        "system": system,
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "timeout": timeout,
        "cache": False if no_cache else None,
    }
    run_batch(
        BatchCommand(
            source=source,
            output=output,
            errors=errors,
            row_format=RowFormat(prompt_column, template, id_column, ignore_model, delimiter),
            shared={name: value for name, value in shared.items() if value is not None},
            concurrency=concurrency,
            outage_patience=outage_patience,
            limits={
                "max_cost": max_cost,
                "max_failures": max_failures,
                "rpm": rpm,
                "tpm": tpm,
            },
            resume=resume,
            ask_failed=ask_failed,
            skip_bad_lines=skip_bad_lines,
            report=report,
        ),
        dry_run=dry_run,
        plain=plain,
        simulate=simulate,
    )


@app.command("serve")
def serve_command(
    *,
    host: Annotated[str | None, _option("The address; any other than loopback needs keys.")] = None,
    port: Annotated[int | None, _option("The port; 0 takes a free one.", min=0, max=65535)] = None,
    workers: Annotated[int | None, _option("Worker processes.", min=1)] = None,
    config: Annotated[Path | None, _option("Read this file instead of aigateway.toml.")] = None,
    simulate: _Simulate = False,
    log_format: Annotated[LogFormat, _option("The format of the log on stderr.")] = LogFormat.TEXT,
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


@app.command("simulate")
def simulate_command(
    *,
    port: Annotated[
        int, _option("The first of five consecutive ports; 0 takes free ones.", min=0, max=65531)
    ] = 9000,
    latency: Annotated[float, _option("Seconds before each healthy answer.", min=0)] = 0.0,
    timeline: Annotated[
        str | None, _option('Faults by time: "openai:2s=status:500,openai:5s=ok", or a file.')
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
        float, _option("How long the demo runs, in seconds.", min=1, max=3600)
    ] = 12.0,
    rate: Annotated[float, _option("Requests per second.", min=5, max=200)] = 20.0,
    plain: Annotated[bool, _option("Print lines instead of a live table.", "--plain")] = False,
    seed: Annotated[int, _option("The same seed gives the same traffic.")] = 0,
) -> None:
    """Watch four simulated vendors fail over real HTTP while every caller gets an answer.

    Exits with 1 if any caller saw a failure.
    """
    from aigateway.cli.demo import run_demo  # noqa: PLC0415 - see the module docstring

    run_demo(seconds=seconds, rate=rate, plain=plain, seed=seed)


@app.command("key")
def key_command(
    *,
    name: Annotated[str, _option("The name of its owner in /metrics.")] = "team",
    admin: Annotated[
        bool, _option("Make the admin key, which may force circuits.", "--admin")
    ] = False,
) -> None:
    """Make a key for the service. Prints the key once, and its lines for aigateway.toml."""
    from aigateway.cli.commands import run_key  # noqa: PLC0415 - see the module docstring

    run_key(name, admin=admin)
