"""The command `aigateway`: its commands, their options and help.

Each command imports its code when it runs, so that `aigateway --help` is fast.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aigateway import __version__

__all__ = ["app"]


class LogFormat(StrEnum):
    """The format of the service's log."""

    JSON = "json"
    TEXT = "text"


class BatchEngine(StrEnum):
    """What sends the requests of a batch."""

    LOCAL = "local"
    RAY = "ray"


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


_PIPE_CLOSED = 141
"""As shells report a process that SIGPIPE ended."""
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Why a disk takes no more."""
_Config = Annotated[Path | None, _option("Read this file instead of aigateway.toml.", "--config")]
_Simulate = Annotated[bool, _option("Use four simulated vendors; needs no key.", "--simulate")]


class _Commands(TyperGroup):
    """Ends silently when its reader has gone, as `head` does, and in a line if a disk is full."""

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
    """Leave nothing to be written, else Python complains at its exit."""
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
        _option(
            "Print the version, and exit.", "--version", callback=_print_version, is_eager=True
        ),
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
    stream: Annotated[bool, _option("Print the answer as it arrives.", "--stream")] = False,
    system: Annotated[str | None, _option("A system message.")] = None,
    model: Annotated[
        str | None, _option("A provider's model, name or alias; default: any.")
    ] = None,
    temperature: Annotated[float | None, _option("From 0 to 2.")] = None,
    max_tokens: Annotated[int | None, _option("The longest answer.")] = None,
    timeout: Annotated[float | None, _option("Seconds for the request, failover included.")] = None,
    as_json: Annotated[bool, _option("Print a JSON object instead of the text.", "--json")] = False,
    no_cache: Annotated[bool, _option("Do not use the cache.", "--no-cache")] = False,
    config: _Config = None,
    simulate: _Simulate = False,
) -> None:
    """Send one prompt. Prints the answer to stdout, and its provider and price to stderr.

    A pipe or a file at standard input is appended to the prompt: git diff | aigateway chat
    "Review this". Exits with 0 after an answer, 1 if no provider answered or the stream broke, 2 if
    the request or the configuration is invalid, 130 after Ctrl-C.
    """
    from aigateway.cli.commands import (  # noqa: PLC0415 - see the module docstring
        ChatCommand,
        run_chat,
    )

    options = {
        "system": system,
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "timeout": timeout,
        "cache": not no_cache,
    }
    run_chat(prompt, options, ChatCommand(stream, as_json, simulate, config))


@app.command("providers")
def providers_command(
    *,
    config: _Config = None,
    as_json: Annotated[bool, _option("Print JSON instead of a table.", "--json")] = False,
    check: Annotated[
        bool, _option("Send each a short request, which may cost a little.", "--check")
    ] = False,
    timeout: Annotated[float, _option("Seconds for each request of --check.", min=0.1)] = 20.0,
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
    config: _Config = None,
    ask: Annotated[
        bool, _option("Send each provider a short request, which may cost a little.", "--ask")
    ] = False,
    timeout: Annotated[float, _option("Seconds for each request of --ask.", min=0.1)] = 20.0,
    strict: Annotated[bool, _option("Exit with 1 if there is a warning.", "--strict")] = False,
    as_json: Annotated[bool, _option("Print JSON.", "--json")] = False,
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
    as_json: Annotated[bool, _option("Print JSON.", "--json")] = False,
) -> None:
    """List the vendors that can be reached, and the lines of TOML that configure them."""
    from aigateway.cli.vendors import run_vendors  # noqa: PLC0415 - see the module docstring

    run_vendors(word, as_json=as_json)


@app.command("init")
def init_command(
    *,
    output: Annotated[
        str, _option('The file to write; "-" prints it.', "--output", "-o", metavar="PATH")
    ] = "aigateway.toml",
    force: Annotated[bool, _option("Replace the file if it exists.", "--force")] = False,
    from_litellm: Annotated[
        str | None,
        _option("Take over the config.yaml of litellm's proxy.", "--from-litellm", metavar="PATH"),
    ] = None,
) -> None:
    """Write a commented aigateway.toml: the vendors whose keys are set, and every setting.

    The file names the variables that hold the keys, and never a key. Exits with 2 if the file
    exists. With --from-litellm, what cannot be taken over is printed and stands in the file, too.
    """
    if from_litellm is not None:
        from aigateway.cli.from_litellm import run_from_litellm  # noqa: PLC0415 - likewise

        run_from_litellm(from_litellm, output, force=force)
        return
    from aigateway.cli.init import run_init  # noqa: PLC0415 - see the module docstring

    run_init(output, force=force)


@app.command("batch")
def batch_command(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Requests: .jsonl, .csv, .tsv or .parquet.")
    ],
    output: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="For the answers: .jsonl, .csv, .tsv or .parquet."),
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
        str | None, _option("Separates the fields of a .csv, IN and OUT; default: a comma.")
    ] = None,
    keep_columns: Annotated[
        str | None,
        _option('Columns of IN to repeat in OUT: "all", or their names: "title,price".'),
    ] = None,
    schema: Annotated[
        str | None,
        _option(
            "Answers as JSON of this schema, in columns: a JSON schema's file, or a pydantic class"
            " as package.module:Class."
        ),
    ] = None,
    limit: Annotated[
        int | None, _option("Answer only the first lines; --resume continues with others.", min=1)
    ] = None,
    collect: Annotated[
        bool, _option("Write the table OUT of the answers so far; send nothing.", "--collect")
    ] = False,
    bom: Annotated[
        bool, _option("Begin a .csv with a byte order mark, for Excel.", "--bom")
    ] = False,
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
    param: Annotated[
        list[str] | None,
        _option(
            "Any other option of chat, repeatable: --param top_p=0.9 --param stop='[\"END\"]'."
        ),
    ] = None,
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
    engine: Annotated[
        BatchEngine, _option("What sends the requests: this process, or actors on Ray.")
    ] = BatchEngine.LOCAL,
    address: Annotated[
        str | None,
        _option('With ray: "auto" or HOST:PORT; default: RAY_ADDRESS, else start one here.'),
    ] = None,
    actors: Annotated[
        int | None,
        _option("With ray: processes; default: one for each CPU and 16 requests.", min=1),
    ] = None,
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
        column_names,
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
    columns = (prompt_column, template, id_column, ignore_model, delimiter)
    run_batch(
        BatchCommand(
            source=source,
            output=output,
            errors=errors,
            row_format=RowFormat(*columns, keep=column_names(keep_columns)),
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
            engine=engine.value,
            address=address,
            actors=actors,
            schema=schema,
            params=tuple(param or ()),
            limit=limit,
            collect=collect,
            bom=bom,
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
    config: _Config = None,
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


@app.command("usage")
def usage_command(
    *,
    days: Annotated[int, _option("The latest days, today included (UTC).", min=1)] = 30,
    since: Annotated[
        datetime | None,
        _option("The first day, in place of --days.", formats=["%Y-%m-%d"]),
    ] = None,
    key: Annotated[str | None, _option("Only this key, by its name.")] = None,
    as_csv: Annotated[bool, _option("Print CSV.", "--csv")] = False,
    as_json: Annotated[bool, _option("Print JSON.", "--json")] = False,
    state_dir: Annotated[
        Path | None, _option("The directory of the state; default: that of the settings.")
    ] = None,
    config: _Config = None,
) -> None:
    """Show who spent what at the service: by day, key and model. The service may be running."""
    from aigateway.cli.usage import run_usage  # noqa: PLC0415 - see the module docstring

    run_usage(
        since=since,
        days=days,
        key=key,
        as_csv=as_csv,
        as_json=as_json,
        place=(state_dir, config),
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
        float, _option("Seconds of traffic; a live table adds time to read.", min=1, max=3600)
    ] = 12.0,
    rate: Annotated[float, _option("Requests per second.", min=5, max=200)] = 20.0,
    plain: Annotated[bool, _option("Print lines instead of a live table.", "--plain")] = False,
    seed: Annotated[int, _option("The same seed gives the same traffic.")] = 0,
) -> None:
    """Watch vendors fail in three acts, over real HTTP, while every caller gets an answer.

    The vendors are simulated: no key, half a minute. Exits with 1 if any caller saw a failure.
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
    append: Annotated[
        Path | None, _option("Add the lines to this file, such as aigateway.toml.")
    ] = None,
    budget: Annotated[float | None, _option("US dollars that it may spend in a day (UTC).")] = None,
    rpm: Annotated[int | None, _option("Requests that it may begin in any 60 seconds.")] = None,
    models: Annotated[
        str | None, _option('Models, names and aliases that it may ask for: "fast,gpt-4o".')
    ] = None,
    monitor: Annotated[
        bool, _option("It sees what every key has used: for Prometheus.", "--monitor")
    ] = False,
) -> None:
    """Make a key for the service. Prints it to stdout once, and lines for aigateway.toml to stderr.

    The lines hold only a digest of the key.
    """
    from aigateway.cli.commands import run_key  # noqa: PLC0415 - see the module docstring

    limits = {
        "budget_usd": budget,
        "rpm": rpm,
        "models": None if models is None else [each.strip() for each in models.split(",") if each],
        "monitor": monitor or None,
    }
    run_key(name, admin=admin, limits=limits, append=append)
