"""Results as JSON, as an SVG chart, and as tables in README.md between markers."""

from __future__ import annotations

import dataclasses
import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chart import Bars, draw

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = (
    "aigateway",
    "litellm",
    "openai",
    "aiohttp",
    "uvicorn",
    "langchain-core",
    "langchain-openai",
    "pydantic-ai-slim",
    "aiocache",
    "cashews",
    "purgatory",
    "aiobreaker",
    "hyx",
    "pybreaker",
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as they are shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Title and table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self.title}\n\n{text}"


@dataclasses.dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        name: The benchmark's name, and its files'.
        how: What was done, in a few sentences.
        tables: For people.
        chart: The one picture.
        data: Every figure, fit for JSON.
    """

    name: str
    how: str
    tables: Sequence[Table]
    chart: Bars
    data: Any


def write(result: Result) -> None:
    """Leave the result's three forms in the tree."""
    RESULTS.mkdir(exist_ok=True)
    document = {"name": result.name, "how": result.how, **surroundings(), "data": result.data}
    text = json.dumps(document, indent=1, default=_plain)
    (RESULTS / f"{result.name}.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{result.name}.svg").write_text(draw(result.chart), encoding="utf-8")
    tables = "\n\n".join(table.markdown() for table in result.tables)
    chart = f"![{result.chart.title}](results/{result.name}.svg)"
    about = surroundings()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    measured = f"{about['made']}: {about['machine']}; {about['python']}; {versions}."
    _replace(result.name, f"{result.how}\n\n{tables}\n\n{chart}\n\n<sub>{measured}</sub>")


def surroundings() -> dict[str, Any]:
    return {
        "made": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)
        if info.exists()
        else None
    )
    return found[1] if found else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def _replace(marker: str, text: str) -> None:
    """Put `text` between the markers of that name in README.md."""
    readme = HERE / "README.md"
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    before, found, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"README.md has no place for {marker}: {begin} ... {end}")
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
