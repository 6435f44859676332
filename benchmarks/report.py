"""Results as JSON, as an SVG chart, and as tables on the page of figures between markers.

The page says what the JSON files say: `python -m benchmarks.report` writes it anew from them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chart import Bars, draw

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "reference" / "figures.md"
CHARTS = HERE.parent / "docs" / "assets" / "figures"
PACKAGES = (
    "aigateway",
    "litellm",
    "openai",
    "aiohttp",
    "uvicorn",
    "uvloop",
    "httptools",
    "ferrogw",
    "smg",
    "tensorzero",
    "any-llm-sdk",
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
class Target:
    """What a figure is held to.

    Attributes:
        what: The figure.
        bound: The most that it may be, as it is shown.
        measured: What it is, as it is shown.
        met: Whether that is within the bound.
    """

    what: str
    bound: str
    measured: str
    met: bool

    @property
    def verdict(self) -> str:
        """One word for it."""
        return "met" if self.met else "missed"

    @property
    def cell(self) -> str:
        """The bound and the verdict, for a table of figures."""
        return f"{self.bound}: {self.verdict}"


@dataclasses.dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        name: The benchmark's name, and its files'.
        how: What was done, in a few sentences.
        tables: For people.
        chart: The one picture.
        data: Every figure, fit for JSON.
        targets: Those of its figures that are held to a bound.
    """

    name: str
    how: str
    tables: Sequence[Table]
    chart: Bars
    data: Any
    targets: Sequence[Target] = ()


def write(result: Result) -> None:
    """Leave the result's three forms in the tree."""
    document = {
        "name": result.name,
        "how": result.how,
        **surroundings(),
        "targets": result.targets,
        "tables": result.tables,
        "chart": result.chart.title,
        "data": result.data,
    }
    text = json.dumps(document, indent=1, default=_plain)
    (RESULTS / f"{result.name}.json").write_text(text + "\n", encoding="utf-8")
    (CHARTS / f"{result.name}.svg").write_text(draw(result.chart), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page of figures as the JSON files have it; what is between is left as it is."""
    text = PAGE.read_text(encoding="utf-8")
    documents = [json.loads(path.read_bytes()) for path in sorted(RESULTS.glob("*.json"))]
    for document in documents:
        text = _replaced(text, document["name"], _section(document))
    return _replaced(text, "targets", _targets(documents))


def _section(document: Mapping[str, Any]) -> str:
    name = document["name"]
    versions = ", ".join(f"{each} {version}" for each, version in document["versions"].items())
    measured = f"{document['made']}: {document['machine']}; {document['python']}; {versions}."
    parts = [
        f"How to reproduce: `{_command(document)}`. All figures: `benchmarks/results/{name}.json`.",
        document["how"],
        *(Table(**table).markdown() for table in document["tables"]),
        f"![{document['chart']}](../assets/figures/{name}.svg)",
        f"<sub>{measured}</sub>",
    ]
    return "\n\n".join(parts)


def _targets(documents: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [target.what, target.bound, target.measured, target.verdict, f"`{_command(document)}`"]
        for document in documents
        for target in (Target(**given) for given in document["targets"])
    ]
    columns = ["figure", "at most", "measured", "", "command"]
    return Table("Medians, and how far the rounds went.", columns, rows).markdown()


def _command(document: Mapping[str, Any]) -> str:
    return f"python -m nox -s bench -- {document['name']}"


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


def _replaced(page_text: str, marker: str, text: str) -> str:
    """Put `text` between the markers of that name."""
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    before, found, rest = page_text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{PAGE} has no place for {marker}: {begin} ... {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
