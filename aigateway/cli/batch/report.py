"""The report of a job: `.html` for people, `.json` for programs.

The page has no script and loads nothing. Neither form contains a prompt or an answer.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from aigateway.batch.files.paths import atomic_write
from aigateway.batch.files.totals import Histogram, ProviderTotals
from aigateway.cli.batch.charts import Bar, Part, bar_chart, histogram_chart, legend, safe
from aigateway.cli.batch.summary import (
    PERCENTILES,
    Summary,
    clock_time,
    count,
    counts,
    dollars,
    duration,
    per_second,
    percent,
    plain_summary,
    provider_cost,
)
from aigateway.errors import ConfigurationError
from aigateway.version import __version__

__all__ = ["check_report_path", "write_report"]

_Providers = Sequence[tuple[str, ProviderTotals]]


def check_report_path(path: Path, taken: Sequence[Path] = ()) -> None:
    """Check before a job begins that its report can be written at its end.

    Args:
        path: The report.
        taken: The job's other files.

    Raises:
        ConfigurationError: It cannot be written, or is one of the other files.
    """
    _form(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _naming_errors(path):
        problem = _problem(path, taken)
        if problem is not None:
            raise ConfigurationError(problem)
        draft.touch()
        draft.unlink()


def write_report(path: Path, summary: Summary) -> None:
    """Write the report, as a whole or not at all.

    Raises:
        ConfigurationError: It cannot be written.
    """
    text = _form(path)(summary)
    with _naming_errors(path), atomic_write(path) as file:
        file.write(text.encode())


def _problem(path: Path, taken: Sequence[Path]) -> str | None:
    if path.is_dir():
        return f"The report {path} is a folder; name a file in it."
    if not path.parent.is_dir():
        return f"The folder {path.parent} for the report does not exist."
    if path.resolve() in {other.resolve() for other in taken}:
        return f"The report {path} would overwrite one of the job's own files; name another file."
    return None


def _form(path: Path) -> Callable[[Summary], str]:
    match path.suffix.lower():
        case ".json":
            return _json
        case ".html":
            return _page
        case suffix:
            raise ConfigurationError(
                f"The report {path} ends in {suffix or 'no suffix'}; name it .html (a web"
                " page) or .json (plain figures)."
            )


def _json(summary: Summary) -> str:
    return json.dumps(plain_summary(summary), indent=2) + "\n"


@contextlib.contextmanager
def _naming_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"The report {path} cannot be written ({error.strerror}); name another file, or make"
            " this one writable."
        ) from error


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def _page(summary: Summary) -> str:
    style = resources.files("aigateway.cli.batch").joinpath("report.css").read_text("utf-8")
    title = f"Batch report: {safe(summary.input_path.name)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{"".join(_sections(summary))}
<footer>aigateway {safe(__version__)}. Percentiles are at most 5 % too high. Cached answers are in
no latency, token or cost figure. A provider's latencies are those of its answered calls.</footer>
</main>
</body>
</html>
"""


def _sections(summary: Summary) -> Iterator[str]:
    providers = list(summary.totals.providers.items())
    yield _head(summary)
    yield _tiles(summary)
    yield '<div class="cards">'
    yield _latency(summary.totals.latency)
    if not providers:
        yield _errors(summary)
    else:
        yield _served(providers)
        yield _latencies(providers)
        yield f'<div class="stack">{_costs(providers)}{_errors(summary)}</div>'
        yield _section("Providers", _provider_table(providers), kind="wide")
    yield _section("Files", _file_table(summary), kind="wide")
    yield "</div>"


def _head(summary: Summary) -> str:
    whole = summary.stopped is None and not summary.left
    when = ""
    if summary.finished_at is not None:
        moment = datetime.fromtimestamp(summary.finished_at, UTC)
        when = f'<span class="quiet">, ended {moment:%Y-%m-%d %H:%M} UTC</span>'
    left = f", {count(summary.left)} lines left" if summary.left else ""
    state = f"{summary.outcome.capitalize()}{left}"
    return (
        f"<header><h1>Batch report: {safe(summary.input_path.name)}</h1>"
        f'<p><strong class="{"good" if whole else "warn"}">{safe(state)}</strong>{when}</p>'
        "</header>"
    )


def _tiles(summary: Summary) -> str:
    totals, usage = summary.totals, summary.totals.usage
    unpriced = f"{count(totals.unpriced)} answers unpriced" if totals.unpriced else ""
    earlier = f"{count(totals.earlier)} in earlier runs" if totals.earlier else ""
    failed = f'<span class="{"bad" if totals.failed else "good"}">{count(totals.failed)}</span>'
    tiles = (
        ("Answered", count(totals.answered), _share(totals.answered, summary.total)),
        ("Failed", failed, _share(totals.failed, totals.done)),
        ("Cached", count(totals.cached), "no vendor was asked"),
        ("Cost", dollars(totals.cost_usd), unpriced),
        ("Tokens in", count(usage.prompt_tokens), _part_of(usage.cached_tokens, "cached")),
        (
            "Tokens out",
            count(usage.completion_tokens),
            _part_of(usage.reasoning_tokens, "reasoning"),
        ),
        ("Time of this run", clock_time(summary.elapsed), earlier),
        ("Lines per second", per_second(summary.lines_per_second), ""),
    )
    cells = (
        f"<div><dt>{name}</dt><dd>{figure}<small>{safe(note)}</small></dd></div>"
        for name, figure, note in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _share(part: int, whole: int) -> str:
    return f"{percent(part, whole)} of {count(whole)}" if whole else ""


def _part_of(tokens: int, what: str) -> str:
    return f"{count(tokens)} {what}" if tokens else ""


def _latency(latency: Histogram) -> str:
    if not latency.count:
        return _section("Latency", '<p class="quiet">No vendor answered.</p>')
    marks = [
        (f"p{p}", seconds) for p in PERCENTILES if (seconds := latency.percentile(p)) is not None
    ]
    chart = histogram_chart("How the latencies of answers are spread", latency.bars(), marks)
    rows = [
        ("mean", duration(latency.mean)),
        *((name, duration(seconds)) for name, seconds in marks),
        ("highest", duration(latency.highest)),
    ]
    table = _table(
        [name for name, _ in rows], [[figure for _, figure in rows]], numbers=range(len(rows))
    )
    return _section("Latency of an answer", chart, table)


def _served(providers: _Providers) -> str:
    bars = []
    for name, each in providers:
        failed = each.failures.total()
        figures = f"{count(each.answers)}" + (f" + {count(failed)}" if failed else "")
        bars.append(Bar(name, [Part(each.answers, "answers"), Part(failed, "failures")], figures))
    chart = bar_chart("Answers and failed calls of each provider", bars)
    words = legend([("answers", "answers"), ("failures", "calls without an answer")])
    return _section("Answers by provider", words, chart)


def _latencies(providers: _Providers) -> str:
    bars = [
        Bar(name, [Part(seconds, f"p{p}")], duration(seconds))
        for name, each in providers
        for p in PERCENTILES
        if (seconds := each.latency.percentile(p)) is not None
    ]
    words = legend([(f"p{p}", f"p{p}") for p in PERCENTILES])
    return _section("Latency by provider", words, bar_chart("Latency of each provider", bars))


def _costs(providers: _Providers) -> str:
    bars = [
        Bar(name, [Part(each.cost_usd, "cost")], provider_cost(each)) for name, each in providers
    ]
    return _section("Cost by provider", bar_chart("US dollars for each provider's answers", bars))


def _provider_table(providers: _Providers) -> str:
    heads = ["provider", "answers", "p50", "p95", "p99", "tokens in", "tokens out", "cost"]
    rows = [
        [
            name,
            count(each.answers),
            *(duration(each.latency.percentile(p)) for p in PERCENTILES),
            count(each.usage.prompt_tokens),
            count(each.usage.completion_tokens),
            provider_cost(each),
            counts(each.failures),
        ]
        for name, each in providers
    ]
    return _table([*heads, "failed calls"], rows, numbers=range(1, len(heads)), kind="providers")


def _errors(summary: Summary) -> str:
    errors = summary.totals.errors.most_common()
    if not errors:
        return _section("Failed lines", '<p class="quiet">None.</p>')
    rows = [[code, count(number)] for code, number in errors]
    return _section("Failed lines", _table(["error", "lines"], rows, numbers=(1,)))


def _file_table(summary: Summary) -> str:
    files = [("input", summary.input_path), *summary.files]
    rows = [[what, str(path)] for what, path in files]
    return _table(["what", "where"], rows, kind="files")


def _section(title: str, *content: str, kind: str = "card") -> str:
    return f'<section class="{kind}"><h2>{title}</h2>{"".join(content)}</section>'


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Iterable[int] = (),
    kind: str = "figures",
) -> str:
    right = set(numbers)
    align = ['class="n"' if place in right else "" for place in range(len(heads))]
    head = "".join(
        f'<th scope="col" {style}>{safe(cell)}</th>'
        for cell, style in zip(heads, align, strict=True)
    )
    body = "".join(_row(row, align) for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[str], align: Sequence[str]) -> str:
    tags = [
        'th scope="row"' if place == 0 and not style else "td" for place, style in enumerate(align)
    ]
    cells = (
        f"<{tag} {style}>{safe(cell)}</{tag[:2]}>"
        for tag, style, cell in zip(tags, align, row, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"
