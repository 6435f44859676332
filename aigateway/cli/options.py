"""Options that several commands have, and all those of `aigateway batch`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["BatchCommand", "BatchEngine", "Config", "Simulate", "option"]


def option(text: str, *names: str, **more: Any) -> Any:
    """Return an option with this help; without names it is named after its parameter."""
    return typer.Option(*names, help=text, **more)


Config = Annotated[Path | None, option("Read this file instead of aigateway.toml.", "--config")]
Simulate = Annotated[bool, option("Use four simulated vendors; needs no key.", "--simulate")]


class BatchEngine(StrEnum):
    """What sends the requests of a batch."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCommand:
    """The arguments and options of `aigateway batch`, as on the command line."""

    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Requests: .jsonl, .csv, .tsv or .parquet.")
    ]
    output: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="For the answers: .jsonl, .csv, .tsv or .parquet."),
    ] = None
    errors: Annotated[
        Path | None, option("For the lines without an answer; default: OUT with .errors in it.")
    ] = None
    resume: Annotated[bool, option("Continue from the answers in OUT, if any.", "--resume")] = False
    ask_failed: Annotated[
        bool, option("With --resume: repeat even requests that were rejected.", "--ask-failed")
    ] = False
    skip_bad_lines: Annotated[
        bool, option("Count invalid lines as failed instead of rejecting IN.", "--skip-bad-lines")
    ] = False
    prompt_column: Annotated[
        str | None, option('The column with the prompt; default for tables: "prompt".')
    ] = None
    template: Annotated[
        str | None, option('A prompt with columns: "Translate {text} into {language}".')
    ] = None
    id_column: Annotated[
        str | None, option("The column with the id; default: id, custom_id or the row number.")
    ] = None
    delimiter: Annotated[
        str | None, option("Separates the fields of a .csv, IN and OUT; default: a comma.")
    ] = None
    keep_columns: Annotated[
        str | None,
        option('Columns of IN to repeat in OUT: "all", or their names: "title,price".'),
    ] = None
    schema: Annotated[
        str | None,
        option(
            "Answers as JSON of this schema, in columns: a JSON schema's file, or a pydantic class"
            " as package.module:Class."
        ),
    ] = None
    limit: Annotated[
        int | None, option("Answer only the first lines; --resume continues with others.", min=1)
    ] = None
    collect: Annotated[
        bool, option("Write the table OUT of the answers so far; send nothing.", "--collect")
    ] = False
    bom: Annotated[bool, option("Begin a .csv with a byte order mark, for Excel.", "--bom")] = False
    system: Annotated[str | None, option("A system message for every line.")] = None
    model: Annotated[
        str | None, option("For lines without a model: a provider's model, name or alias.")
    ] = None
    ignore_model: Annotated[bool, option("Ignore the models of the lines.", "--ignore-model")] = (
        False
    )
    temperature: Annotated[float | None, option("From 0 to 2.")] = None
    max_tokens: Annotated[int | None, option("The longest answer.")] = None
    timeout: Annotated[float | None, option("Seconds for one line, failover included.")] = None
    param: Annotated[
        list[str] | None,
        option("Any other option of chat, repeatable: --param top_p=0.9 --param stop='[\"END\"]'."),
    ] = None
    no_cache: Annotated[
        bool, option("Send every line, even if it repeats another one.", "--no-cache")
    ] = False
    concurrency: Annotated[
        str, option('Requests in flight at once; "auto" follows the providers\' limits.')
    ] = "16"
    outage_patience: Annotated[
        float, option("Seconds to wait while no provider is available; inf: no limit.", min=0)
    ] = 300.0
    max_cost: Annotated[float | None, option("US dollars after which no new request begins.")] = (
        None
    )
    max_failures: Annotated[
        int | None, option("Failed lines after which no new request begins.")
    ] = None
    rpm: Annotated[int | None, option("The most requests per minute.")] = None
    tpm: Annotated[int | None, option("The most tokens per minute.")] = None
    report: Annotated[Path | None, option("Write a report to a .html or .json file.")] = None
    engine: Annotated[
        BatchEngine, option("What sends the requests: this process, or actors on Ray.")
    ] = BatchEngine.LOCAL
    address: Annotated[
        str | None,
        option('With ray: "auto" or HOST:PORT; default: RAY_ADDRESS, else start one here.'),
    ] = None
    actors: Annotated[
        int | None,
        option("With ray: processes; default: one for each CPU and 16 requests.", min=1),
    ] = None
    dry_run: Annotated[
        bool, option("Check IN and estimate the cost; send nothing.", "--dry-run")
    ] = False
    plain: Annotated[bool, option("Print lines instead of a progress bar.", "--plain")] = False
    simulate: Simulate = False
