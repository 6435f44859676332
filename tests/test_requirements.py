"""Every pinned file is pinned by hashes, names no registry, and fits the ranges of pyproject."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.processes import ROOT
from tests.supply_chain import audit_problems, runtime_requirements, sbom_problems

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
GROUPS = PYPROJECT["dependency-groups"]
FILES = {path.stem: path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt"))}
ENTRY = re.compile(
    r"^(?P<name>[a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==(?P<version>[^ ;]+)(?: ;[^\\\n]+)? \\\n"
    r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+(?:    # .*\n)*",
    re.MULTILINE,
)
EXTRAS = {"runtime": (), "image": ("server", "redis", "otel")}
WITH_PROJECT = {name for name, text in FILES.items() if "(pyproject.toml)" in text}
"""Files that also pin what the package itself needs."""


def group(name):
    """Return the requirements of a group, with those of the groups that it includes."""
    for entry in GROUPS[name]:
        if isinstance(entry, str):
            yield Requirement(entry)
        else:
            yield from group(entry["include-group"])


def wanted(name):
    """Return what the file of a name has to pin."""
    found = list(group(name)) if name in GROUPS else []
    if name in WITH_PROJECT:
        found += map(Requirement, PROJECT["dependencies"])
    return found + runtime_requirements(*EXTRAS[name]) if name in EXTRAS else found


@pytest.mark.parametrize("name", FILES)
class TestPins:
    def test_every_line_is_a_version_with_its_hashes(self, name):
        assert ENTRY.sub("", FILES[name]) == ""

    def test_no_registry_is_named(self, name):
        assert not re.search(r"://|--(index|extra-index|find-links|trusted)", FILES[name])

    def test_versions_are_in_the_ranges_of_pyproject(self, name):
        pins = {each["name"]: Version(each["version"]) for each in ENTRY.finditer(FILES[name])}
        needed = wanted(name)
        assert needed, f"no group of pyproject.toml has the name {name}"
        for requirement in needed:
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{requirement} has no pin"
            assert pin in requirement.specifier, f"{pin} is not in {requirement}"


def test_every_file_is_pinned_anew_by_the_lock_session():
    noxfile = (ROOT / "noxfile.py").read_text()
    assert set(re.findall(r'pin\(\s*session,\s*"([\w-]+)"', noxfile)) == set(FILES)


@pytest.mark.parametrize("poisoned", ["1.82.7", "1.82.8"])
def test_the_range_of_litellm_leaves_out_what_was_poisoned(poisoned):
    (litellm,) = [each for each in PROJECT["dependencies"] if each.startswith("litellm")]
    assert Version(poisoned) not in Requirement(litellm).specifier


class TestAudit:
    def test_a_service_that_knows_no_package_is_no_good_news(self):
        reason = "Dependency not found on PyPI and could not be audited: babel (2.19.0)"
        silent = {"dependencies": [{"name": "babel", "skip_reason": reason}], "fixes": []}
        (problem,) = audit_problems("dev", silent)
        assert problem.startswith("dev: NOT CHECKED: 1 of 1 packages")

    @pytest.mark.parametrize("audit", [None, {"dependencies": []}])
    def test_neither_is_no_answer(self, audit):
        assert "NOT CHECKED" in next(audit_problems("dev", audit))

    def test_a_vulnerability_is_named_with_its_fix(self):
        vulnerability = {"id": "PYSEC-2026-1", "fix_versions": ["2.0"], "aliases": []}
        found = {"dependencies": [{"name": "a", "version": "1.0", "vulns": [vulnerability]}]}
        assert list(audit_problems("dev", found)) == ["dev: a 1.0: PYSEC-2026-1, fixed: 2.0"]

    def test_packages_without_any_are_in_order(self):
        assert not list(
            audit_problems("dev", {"dependencies": [{"name": "a", "version": "1", "vulns": []}]})
        )


class TestBillOfMaterials:
    @pytest.fixture
    def sbom(self):
        pins = [each.groupdict() for each in ENTRY.finditer(FILES["runtime"])]
        needed = [str(canonicalize_name(each.name)) for each in runtime_requirements()]
        return {
            "metadata": {"component": {"bom-ref": "root", "version": "1"}},
            "components": pins,
            "dependencies": [{"ref": "root", "dependsOn": [f"{name}==1" for name in needed]}],
        }

    def test_one_that_has_what_is_pinned_is_in_order(self, sbom):
        assert not list(sbom_problems(sbom))

    def test_what_is_left_out_is_found(self, sbom):
        sbom["dependencies"][0]["dependsOn"].remove("ray==1")
        assert list(sbom_problems(sbom)) == ["ray>=2.40 is not among the dependencies"]

    def test_what_is_not_pinned_is_found(self, sbom):
        sbom["components"].append({"name": "litellm", "version": "1.82.7"})
        (problem,) = sbom_problems(sbom)
        assert problem.startswith("litellm==1.82.7 is not pinned")
