"""What `nox -s lint` checks beside ruff: `python -m tests.house_rules`.

- Some libraries are imported by one module or room only, wherever else the import is tried.
- A class name stands once in the package.
- A module of a few lines with a single importer belongs into that importer.
- Docstrings, comments and documents are in plain words; a function's docstring has a verb.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]

HOMES = {
    "aiocache": ("aigateway/cache/backend.py",),
    "litellm": ("aigateway/wires/",),
    "opentelemetry": ("aigateway/telemetry/tracing.py",),
    "prometheus_client": ("aigateway/telemetry/prometheus.py",),
    "ray": ("aigateway/batch/ray.py", "aigateway/ray.py"),
    "redis": ("aigateway/fleet/",),
    "tenacity": ("aigateway/resilience/retry.py",),
}
"""Where a library may be imported, in the package."""

LOADED = frozenset({"aigateway.pytest_plugin"})
"""Modules that others load by an entry point."""

FEWEST_LINES = 30
"""A shorter module with one importer is part of that one."""

RIDDLES = re.compile(
    r"\b(nobody|somebody|whoever|anybody|(?:is|are|was|were|be|been) told)\b", re.IGNORECASE
)
"""Words that make a reader guess who is meant; see the glossary."""


NO_VERB = frozenset({"How", "Seconds", "What", "When", "Whether", "Where", "Which", "Who", "Why"})
"""Words that begin a description of a value, where a function's docstring has its verb."""


def package(root: Path = ROOT) -> dict[str, str]:
    """Return the source of every module of the package, by its path."""
    found = (root / "aigateway").rglob("*.py")
    return {path.relative_to(root).as_posix(): path.read_text() for path in found}


def documents(root: Path = ROOT) -> dict[str, str]:
    """Return every Markdown page, by its path."""
    found = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    return {path.relative_to(root).as_posix(): path.read_text() for path in found}


def foreign_imports(sources: Mapping[str, str]) -> Iterator[str]:
    """Find libraries that are imported outside their home."""
    for path, source in sources.items():
        for line, name in _imported(ast.parse(source)):
            homes = HOMES.get(name.partition(".")[0])
            if homes is not None and not path.startswith(homes):
                yield f"{path}:{line}: {name} is imported outside {' and '.join(homes)}"


def repeated_classes(sources: Mapping[str, str]) -> Iterator[str]:
    """Find class names that stand for several things."""
    places = defaultdict(list)
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(f"{path}:{node.lineno}")
    for name, found in places.items():
        if len(found) > 1:
            yield f"{found[0]}: class {name} also stands in {', '.join(found[1:])}"


def fragments(sources: Mapping[str, str]) -> Iterator[str]:
    """Find short modules that only one other imports."""
    importers = defaultdict(set)
    for path, source in sources.items():
        for _, name in _imported(ast.parse(source)):
            importers[name].add(path)
    for path, source in sources.items():
        name = path.removesuffix(".py").replace("/", ".")
        short = source.count("\n") < FEWEST_LINES
        if short and not name.endswith("__") and len(importers[name]) == 1 and name not in LOADED:
            yield f"{path}:1: {name} is short, and {importers[name].pop()} alone imports it"


def riddles(sources: Mapping[str, str], pages: Mapping[str, str]) -> Iterator[str]:
    """Find words that are not plain."""
    for path, source in sources.items():
        for number, said in _prose(source):
            for word in RIDDLES.findall(said):
                yield f"{path}:{number}: {word!r} is not plain"
    for path, text in pages.items():
        for number, line in enumerate(text.splitlines(), 1):
            for word in RIDDLES.findall(line):
                yield f"{path}:{number}: {word!r} is not plain"


def unspoken_verbs(sources: Mapping[str, str]) -> Iterator[str]:
    """Find functions whose docstring describes their value, and leaves the verb out."""
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            words = (ast.get_docstring(node) or "").split()
            decorators = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
            if words and words[0] in NO_VERB and not decorators & {"property", "cached_property"}:
                yield f"{path}:{node.lineno}: the docstring of {node.name} begins with {words[0]!r}"


def _prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield comments, and texts, those inside f-strings too."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the names of imported modules, also those given to `import_module` as a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function, first = node.func, node.args[0]
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def problems() -> list[str]:
    """Return everything that breaks a rule, as lines for a person."""
    sources = package()
    return sorted(
        {
            *foreign_imports(sources),
            *repeated_classes(sources),
            *fragments(sources),
            *riddles(sources, documents()),
            *unspoken_verbs(sources),
        }
    )


if __name__ == "__main__":
    found = problems()
    print("\n".join(found))
    sys.exit(bool(found))
