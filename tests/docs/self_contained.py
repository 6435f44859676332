"""Name what a browser would load from other hosts: `python -m tests.docs.self_contained FOLDER`.

It reads pages and style sheets. Links that a reader follows are no such thing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

FOREIGN = re.compile(r"(?i)\s*(https?:)?//")
IN_STYLES = re.compile(r"""(?i)(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")
LINKS = {"author", "canonical", "license", "next", "prev"}
"""Relations of `<link>` that load nothing."""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        loaded = [given.get(name, "") for name in ("src", "srcset", "data", "poster")]
        if tag == "link" and not LINKS & set(given.get("rel", "").split()):
            loaded.append(given.get("href", ""))
        self.found += [address for address in loaded if FOREIGN.match(address)]
        self.found += IN_STYLES.findall(given.get("style", ""))


def foreign_assets(folder: Path) -> Iterator[str]:
    """Yield "page: address" for each of them."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            page = _Page()
            page.feed(path.read_text(encoding="utf-8"))
            found = page.found + IN_STYLES.findall(path.read_text(encoding="utf-8"))
        elif path.suffix in {".css", ".svg"}:
            found = IN_STYLES.findall(path.read_text(encoding="utf-8"))
        else:
            continue
        yield from (f"{path.relative_to(folder)}: {address}" for address in found)


if __name__ == "__main__":
    assets = list(foreign_assets(Path(sys.argv[1])))
    sys.exit("\n".join(["The site loads from other hosts:", *assets]) if assets else 0)
