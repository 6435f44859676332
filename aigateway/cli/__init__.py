"""The command `aigateway`: what can be asked for, and its help. Each command lives beside this.

Commands import what they need when they run, so that `aigateway --help` does not wait for it.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aigateway import __version__

__all__ = ["app"]


class LogFormat(StrEnum):
    """How the service writes its log."""

    JSON = "json"
    TEXT = "text"


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
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it, and exit."
        ),
    ] = False,
) -> None:
    """Several LLM vendors behind one call: priority routing, failover, circuits and caching."""
    del version  # its callback has dealt with it


@app.command("chat")
def chat_command(
    prompt: Annotated[str, typer.Argument(help='What to ask; "-" reads standard input.')],
    *,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A provider's model, name or alias; else the best one.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="From 0 to 2.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for everything, failover included.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of the text.")
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor fill it.")] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Ask four simulated vendors; needs no key.")
    ] = False,
) -> None:
    """Ask one question. The answer goes to stdout; who gave it, and its price, to stderr."""
    from aigateway.cli.chat import Question, run_chat  # noqa: PLC0415 - see the module docstring

    options = {
        "system": system,
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "timeout": timeout,
        "cache": not no_cache,
    }
    run_chat(Question(prompt, options), as_json=as_json, simulate=simulate)


@app.command("providers")
def providers_command(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Ask each for a few words. This may cost a little.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds each may take to answer --check.")
    ] = 20.0,
) -> None:
    """Show who is configured, and whether they answer. Keys are never shown."""
    from aigateway.cli.providers import run_providers  # noqa: PLC0415 - see the module docstring

    run_providers(as_json=as_json, check_seconds=timeout if check else None)


@app.command("batch")
def batch_command(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Requests: .jsonl, .csv, .tsv or .parquet.")
    ],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Answers, as lines of JSON.")
    ] = None,
    *,
    errors: Annotated[
        Path | None, typer.Option(help="Lines that got no answer; else OUT with .errors in it.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what is in OUT, if there is anything.")
    ] = False,
    ask_failed: Annotated[
        bool,
        typer.Option("--ask-failed", help="With --resume: ask even requests that were refused."),
    ] = False,
    skip_bad_lines: Annotated[
        bool,
        typer.Option("--skip-bad-lines", help="Count bad lines as failed, instead of refusing IN."),
    ] = False,
    prompt_column: Annotated[
        str | None,
        typer.Option(help='The column with the prompt; of tables "prompt" if not given.'),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help='Or a prompt of columns: "Translate {text} into {language}".')
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="The column with the id; else id or custom_id, or the row.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="What stands between the fields of a .csv; else a comma.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message for every line.")] = None,
    model: Annotated[
        str | None, typer.Option(help="For lines without one: a provider's model, name or alias.")
    ] = None,
    ignore_model: Annotated[
        bool, typer.Option("--ignore-model", help="Leave the lines' own models aside.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="From 0 to 2.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for one line, failover included.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Ask every line, even one that repeats another.")
    ] = False,
    concurrency: Annotated[
        str, typer.Option(help='Requests out at once, or "auto": what the providers bear.')
    ] = "16",
    outage_patience: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait while no provider can be asked; inf waits."),
    ] = 300.0,
    max_cost: Annotated[
        float | None, typer.Option(help="US dollars after which nothing new is asked.")
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(help="Failed lines after which nothing new is asked.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests per minute, at most.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute, at most.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write the figures to a .html or .json file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check IN and estimate the cost; ask nobody.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of a progress bar, as when piped.")
    ] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Ask four simulated vendors; needs no key.")
    ] = False,
) -> None:
    """Answer every line of a file, into a file that survives being killed.

    Ctrl-C finishes what is in flight, twice stops at once; --resume goes on. Exits with 0 if every
    line is answered, 1 if some failed or are left, 2 if IN or an option is wrong.
    """
    from aigateway.batch.files.lines import Shape  # noqa: PLC0415 - likewise
    from aigateway.cli.batch.run import Order, run_batch  # noqa: PLC0415 - see the docstring

    shared = {
        "system": system,
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "timeout": timeout,
        "cache": False if no_cache else None,
    }
    run_batch(
        Order(
            source=source,
            output=output,
            errors=errors,
            shape=Shape(prompt_column, template, id_column, ignore_model, delimiter),
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
    host: Annotated[
        str | None, typer.Option(help="The address; any but loopback needs keys.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that answer.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The file to read instead of aigateway.toml.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Ask four simulated vendors; needs no key.")
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="Of the log, which goes to stderr.")
    ] = LogFormat.TEXT,
) -> None:
    """Serve OpenAI's API and the gateway's own over HTTP. Everything else is in the settings.

    SIGTERM or Ctrl-C lets what is under way end, twice stops at once. SIGHUP, or a change of the
    file, reads the configuration anew. Exits with 2 if it cannot work.
    """
    from aigateway.cli.serve import run_serve  # noqa: PLC0415 - see the module docstring

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
        int, typer.Option(min=0, max=65531, help="The first of five in a row; 0 takes free ones.")
    ] = 9000,
    latency: Annotated[
        float, typer.Option(min=0, help="Seconds before each healthy answer.")
    ] = 0.0,
    timeline: Annotated[
        str | None,
        typer.Option(help='What breaks when: "openai:2s=status:500,openai:5s=ok", or a file.'),
    ] = None,
) -> None:
    """Run simulated OpenAI, Azure OpenAI, Gemini and Anthropic on loopback until Ctrl-C.

    Prints the variables that point an application (or another `aigateway`) at them.
    """
    from aigateway.cli.simulate import run_simulate  # noqa: PLC0415 - see the module docstring

    run_simulate(port, latency=latency, timeline=timeline)


@app.command("demo")
def demo_command(
    *,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long it takes.")] = 12.0,
    rate: Annotated[float, typer.Option(min=5, max=200, help="Requests per second.")] = 20.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of a live table, as when piped.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same traffic.")] = 0,
) -> None:
    """Watch four simulated vendors fail over real HTTP while every caller gets an answer.

    Exits with 1 if any caller saw a failure.
    """
    from aigateway.cli.demo import run_demo  # noqa: PLC0415 - see the module docstring

    run_demo(seconds=seconds, rate=rate, plain=plain, seed=seed)


@app.command("key")
def key_command(
    *,
    name: Annotated[
        str, typer.Option(help="Whose it is; /metrics tells what it has used.")
    ] = "team",
    admin: Annotated[
        bool, typer.Option("--admin", help="The one key that may force circuits open and closed.")
    ] = False,
) -> None:
    """Make a key for the service: print it once, and the lines for aigateway.toml."""
    from aigateway.cli.key import run_key  # noqa: PLC0415 - see the module docstring

    run_key(name, admin=admin)
