"""Judge what the tools of the supply chain have written.

`python -m tests.supply_chain sbom FILE` and `... audit FILES` exit with 1 and say why, or with 0.
They need the standard library and `packaging` only.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def runtime_requirements(*extras: str) -> list[Requirement]:
    """Return what the package needs with these extras; with every extra, if none is given."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    needed = [each for name in extras or optional for each in optional[name]]
    found = map(Requirement, [*project["dependencies"], *needed])
    return [each for each in found if each.name != project["name"]]


def sbom_problems(sbom: dict[str, Any]) -> Iterator[str]:
    """Find what the SBOM leaves out, and what it has that is not pinned."""
    root = sbom["metadata"]["component"]
    if not root.get("version"):
        yield "the package itself has no version"
    (graph,) = [each for each in sbom["dependencies"] if each["ref"] == root["bom-ref"]]
    direct = {canonicalize_name(ref.partition("==")[0]) for ref in graph["dependsOn"]}
    for needed in runtime_requirements():
        if canonicalize_name(needed.name) not in direct:
            yield f"{needed} is not among the dependencies"
    pinned = (ROOT / "requirements" / "runtime.txt").read_text()
    for component in sbom["components"]:
        pin = f"{canonicalize_name(component['name'])}=={component['version']}"
        if not pinned.startswith(f"{pin} ") and f"\n{pin} " not in pinned:
            yield f"{pin} is not pinned in requirements/runtime.txt"


def audit_problems(name: str, audit: dict[str, Any] | None) -> Iterator[str]:
    """Find vulnerabilities, and packages that were not looked up. Silence is no good news."""
    if audit is None:
        yield f"{name}: NOT CHECKED: the advisory service gave no answer."
        return
    found = audit["dependencies"]
    skipped = [each["name"] for each in found if "skip_reason" in each]
    if skipped or not found:
        some = ", ".join(skipped[:5])
        yield (
            f"{name}: NOT CHECKED: {len(skipped)} of {len(found)} packages. The advisory service"
            f" has no page for them, or is a mirror without advisories: {some}, ..."
        )
    for each in found:
        for vulnerability in each.get("vulns", ()):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            yield f"{name}: {each['name']} {each['version']}: {vulnerability['id']}, fixed: {fixed}"


def _problems(kind: str, files: list[Path]) -> Iterator[str]:
    for file in files:
        read = json.loads(file.read_text()) if file.exists() else None
        if kind == "audit":
            yield from audit_problems(file.stem, read)
        else:
            assert read is not None, f"{file} is not there"
            yield from sbom_problems(read)


if __name__ == "__main__":
    problems = list(_problems(sys.argv[1], list(map(Path, sys.argv[2:]))))
    print("\n".join(problems) or f"{sys.argv[1]}: in order")
    sys.exit(bool(problems))
