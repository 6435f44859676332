"""Whether the guards become the outage: who is answered while vendors fail, and at which price.

Every row is a world of its own (`world.py`), in one of a few processes; `rows.py` says what happens
in it. Start: `python -m benchmarks storm`, or one row with `--only NAME`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.chart import Bars
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.storm.rows import FAMILIES, ROWS, Family, Figures, Row, Setup

HOW = (
    "The whole gateway at default settings, unless a row names others, over real HTTP on loopback"
    " (OpenAI's wire, unless a row names another). Time is virtual, except where the event loop"
    " itself is to stand still: the loop's clock jumps to the next timer when nothing is left to"
    " do. Every prompt is new. The last column says whether the row's bound is met."
)
VERDICTS = {True: "met", False: "missed"}
Found = Mapping[str, Figures]
"""Figures by the row's name."""


async def run(options: Options) -> Result:
    chosen = _chosen(options)
    before = _read(options.before) if options.before else {}
    found = await _measured(chosen, options)
    if options.json:
        lines = (json.dumps(_record(row, found[row.name])) for row in chosen)
        options.json.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    tables = [
        _table(family, rows, found, before)
        for family in FAMILIES.values()
        if (rows := [row for row in chosen if row.family == family.name])
    ]
    records = [_record(row, found[row.name]) for row in chosen]
    return Result("storm", HOW, tables, _chart(chosen, found), records)


def _chosen(options: Options) -> list[Row]:
    if options.only:
        chosen = [row for row in ROWS.values() if row.name.startswith(options.only)]
        if not chosen:
            raise SystemExit(f"no such row; there are {', '.join(ROWS)}")
        return chosen
    return [row for row in ROWS.values() if row.quick or not options.quick]


async def _measured(rows: Sequence[Row], options: Options) -> dict[str, Figures]:
    """All of them: side by side in a process for each core, and then those that must be alone."""
    setup = Setup(options.quick, options.real_time)
    context = multiprocessing.get_context("spawn")
    crowd = [row for row in rows if not row.alone]
    workers = max(1, min(len(crowd), os.cpu_count() or 1))
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(workers, context, _quiet) as pool:

        async def one(row: Row) -> tuple[str, Figures]:
            figures, seconds = await loop.run_in_executor(pool, _measure, row.name, setup)
            print(f"{row.name}: {_line(row, figures)} ({seconds:.0f} s)", file=sys.stderr)
            return row.name, figures

        found = dict(await asyncio.gather(*map(one, crowd)))
        for row in rows:
            if row.alone:
                found |= [await one(row)]
    return found


def _quiet() -> None:
    importlib.import_module("benchmarks.__main__").quiet()


def _measure(name: str, setup: Setup) -> tuple[Figures, float]:
    began = time.perf_counter()
    return ROWS[name].measure(setup), time.perf_counter() - began


# ── showing it ───────────────────────────────────────────────────────────────────────────────


def _met(row: Row, figures: Figures) -> bool:
    return all(bound.met(figures) for bound in row.bounds)


def _line(row: Row, figures: Figures) -> str:
    shown = [
        f"{figure.title} {figure.show(figures[figure.key])}"
        for figure in FAMILIES[row.family].figures
        if figure.key in figures
    ]
    return f"{'; '.join(shown)}: {VERDICTS[_met(row, figures)]}"


def _record(row: Row, figures: Figures) -> dict[str, Any]:
    rounded = {k: None if value is None else round(value, 4) for k, value in figures.items()}
    met = _met(row, figures)
    return {"row": row.name, "what": row.what, "figures": rounded, "met": met}


def _read(path: Path) -> Found:
    """The figures of an earlier run, as `--json` left them."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {record["row"]: record["figures"] for record in records}


def _table(family: Family, rows: Sequence[Row], found: Found, before: Found) -> Table:
    columns = ["", *(figure.title for figure in family.figures), "bound"]
    lines = []
    for row in rows:
        figures, old = found[row.name], before.get(row.name, {})
        cells = [_cell(figure.key, figure.show, figures, old) for figure in family.figures]
        bounds = " and ".join(_bound(row, family))
        lines.append([row.what, *cells, f"{bounds}: {VERDICTS[_met(row, figures)]}"])
    arrow = " Before -> after." if before else ""
    return Table(f"**{family.title}.** {family.how}{arrow}", columns, lines)


def _cell(key: str, show: Any, figures: Figures, old: Figures) -> str:
    if key not in figures:
        return ""
    new = show(figures[key])
    if key not in old or show(old[key]) == new:
        return str(new)
    return f"{show(old[key])} -> **{new}**"


def _bound(row: Row, family: Family) -> list[str]:
    figures = {figure.key: figure for figure in family.figures}
    shown = []
    for bound in row.bounds:
        figure = figures[bound.key]
        if isinstance(bound.least, str):
            shown.append(f"{figures[bound.least].title} less {bound.slack:.0f}")
        elif bound.least is not None:
            shown.append(f"{figure.title} >= {figure.show(bound.least)}")
        if bound.most is not None:
            shown.append(f"{figure.title} <= {figure.show(bound.most)}")
    return shown


def _chart(rows: Sequence[Row], found: Found) -> Bars:
    bars = [
        bar
        for row in rows
        if row.family == "extra"
        for bar in (
            (f"aigateway, {row.what}", found[row.name]["ratio"] or 0.0),
            ("without a budget and circuits", found[row.name]["unbounded"] or 0.0),
        )
    ]
    return Bars("Vendor calls per request beside failovers", "calls", bars)
