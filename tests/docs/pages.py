"""README and the pages of the site, and the blocks of code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.processes import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)

MOVING = "docs/guides/moving/"
MOVED = sorted(f"{MOVING}{path.name}" for path in (ROOT / MOVING).glob("*.md"))
"""Each of them shows a program before and one after."""
_APART = ("docs/adding-", "docs/guides/clients.md", MOVING)


@dataclass(frozen=True)
class Block:
    """One block of code, and the output that the page shows right below it."""

    page: str
    number: int
    language: str
    text: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.number}"


def blocks(language: str, page: str = "") -> list[Block]:
    """All blocks of a language; on one page, or on all but those that have tests of their own.

    The guides for contributors show parts of files, and clients run in their own session.
    """
    found = []
    for path in PAGES:
        name = str(path.relative_to(ROOT))
        if name != page if page else name.startswith(_APART):
            continue
        found += [
            Block(name, number, match["language"], match["text"], match["output"])
            for number, match in enumerate(BLOCK.finditer(path.read_text()), 1)
            if match["language"] == language
        ]
    return found


def under(page: str, heading: str, language: str) -> str:
    """The first block of a language under a heading of a page."""
    text = (ROOT / page).read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return next(m["text"] for m in BLOCK.finditer(text) if m["language"] == language)
