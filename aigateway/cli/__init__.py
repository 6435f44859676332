"""The command `aigateway`: what can be asked for, and its help. Each command lives beside this.

Commands import what they need when they run, so that `aigateway --help` does not wait for it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from aigateway import __version__

__all__ = ["app"]

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
