"""What a batch would cost, as `--dry-run` prints it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigateway.batch.files.estimate import Estimate
from aigateway.batch.files.survey import Survey
from aigateway.tokens import USUAL_ANSWER

__all__ = ["print_quote"]

_MILLION = 1_000_000


def print_quote(console: Console, found: Survey, each: Sequence[Estimate]) -> None:
    """Print what is asked, and what each provider would take for all that it serves."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("provider", overflow="fold")
    for heading in ("requests", "prompt tokens", "answer tokens", "$ per 1M in / out", "cost"):
        table.add_column(heading, justify="right")
    for estimate in each:
        tally, price, cost = estimate.tally, estimate.price, estimate.cost_usd
        table.add_row(
            Text(estimate.config.name),
            f"{tally.requests:,}",
            f"{tally.prompt_tokens:,}",
            f"{tally.answer_tokens:,}",
            "unknown"
            if price is None
            else f"{price.input * _MILLION:.2f} / {price.output * _MILLION:.2f}",
            "unknown" if cost is None else f"${cost:,.4f}",
        )
    console.print(table)
    for line in _notes(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _notes(found: Survey) -> Iterator[str]:
    yield (
        f"{found.total:,} lines: {found.total - found.wrong - found.repeated:,} requests,"
        f" {found.repeated:,} repeat another one, {found.wrong:,} cannot be asked."
    )
    if found.counted:
        yield (
            f"Prompt tokens: {found.counted:,} prompts counted with litellm's tokenizer for the"
            " first provider's model, the others estimated after them."
        )
    else:
        yield "Prompt tokens: estimated at a token for every 4 characters."
    unbounded = sum(tally.unbounded for tally in found.tallies.values())
    if unbounded:
        yield (
            f"Answer tokens: as many as a line allows; {unbounded:,} requests set no bound and are"
            f" taken for {USUAL_ANSWER} each."
        )
    else:
        yield "Answer tokens: as many as each line allows, so that the costs are upper bounds."
    yield "Nobody was asked. The first provider that is well gets the requests; the others wait."
