"""`aigateway usage`: who used what, by day, key and model."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import typer
from rich.box import HEAVY_HEAD, Box
from rich.table import Table
from rich.text import Text

from aigateway.cli.output import errors_as_exit_codes, note, stdout_console, use_config
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError
from aigateway.fleet.store import STATE_FILE, UsageCounts, UsageRow, read_usage
from aigateway.settings import GatewaySettings, ServerSettings

__all__ = ["run_usage"]

_EPOCH = date(1970, 1, 1)

_NO_KEY, _NO_MODEL = "(no key)", "(none)"
_FIGURES = [column.name for column in fields(UsageCounts)]


def run_usage(
    *,
    since: datetime | None,
    days: int,
    key: str | None,
    as_csv: bool,
    as_json: bool,
    state_dir: Path | None,
    config: Path | None,
) -> None:
    """Print what was used; the arguments are the options of the command."""
    if as_csv and as_json:
        raise typer.BadParameter("give --csv or --json, not both")
    today = datetime.fromtimestamp(SYSTEM_CLOCK.wall(), UTC).date()
    first = today - timedelta(days=days - 1) if since is None else since.date()
    with errors_as_exit_codes():
        path, in_fleet = _file(state_dir, config)
        rows = read_usage(path, (first - _EPOCH).days)
        if key is not None:
            names = {row.key or _NO_KEY for row in rows}
            rows = [row for row in rows if (row.key or _NO_KEY) == key]
            if names and not rows:
                known = ", ".join(sorted(names))
                raise ConfigurationError(f"nothing of a key {key!r} since {first}; only of {known}")
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("day", "key", "model", *_FIGURES))
        for row in rows:
            figures = asdict(row.usage) | {"cost_usd": f"{row.usage.cost_usd:.9f}"}
            writer.writerow((*_names(row), *figures.values()))
    elif as_json:
        typer.echo(json.dumps([_as_json(row) for row in rows], indent=2))
    elif not rows:
        note(f"{path}: nothing was used since {first} (UTC).")
    else:
        stdout_console().print(_table(rows, box=HEAVY_HEAD if sys.stdout.isatty() else None))
        note(f"{path}, since {first} (UTC).")
    if in_fleet:
        note("Usage of this machine alone: each machine of the fleet (redis_url) has its own file.")


def _file(state_dir: Path | None, config: Path | None) -> tuple[Path, bool]:
    """Return the file, and whether other machines have files, too."""
    if state_dir is not None:
        return state_dir / STATE_FILE, False
    use_config(config)
    directory = ServerSettings.load().state_directory
    if directory is None:
        raise ConfigurationError(
            'state_dir is ":memory:", so the service keeps no usage; set it to a directory.'
        )
    return directory.absolute() / STATE_FILE, GatewaySettings.load().redis_url is not None


def _names(row: UsageRow) -> tuple[str, str, str]:
    day = _EPOCH + timedelta(days=row.day)
    return day.isoformat(), row.key or _NO_KEY, row.model or _NO_MODEL


def _as_json(row: UsageRow) -> dict[str, object]:
    figures = asdict(row.usage) | {"cost_usd": round(row.usage.cost_usd, 9)}
    return {"day": _names(row)[0], "key": row.key or None, "model": row.model or None, **figures}


def _table(rows: Sequence[UsageRow], box: Box | None) -> Table:
    total = UsageCounts()
    for row in rows:
        total.add(row.usage)
    table = Table(show_footer=True, box=box)
    table.add_column("day", "total", no_wrap=True)
    for heading in ("key", "model"):
        table.add_column(heading, overflow="fold")
    for name, figure in zip(_FIGURES, _cells(total), strict=True):
        table.add_column(name.replace("_usd", "").replace("_", " "), figure, justify="right")
    for row in rows:
        table.add_row(*map(Text, _names(row)), *_cells(row.usage))
    return table


def _cells(usage: UsageCounts) -> list[str]:
    figures = {name: f"{getattr(usage, name):,}" for name in _FIGURES}
    return list((figures | {"cost_usd": f"${usage.cost_usd:,.6f}"}).values())
