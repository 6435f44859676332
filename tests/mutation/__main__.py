"""Mutation testing: do the tests notice when a rule of the core is broken?

    python -m tests.mutation                   every module below
    python -m tests.mutation cooldown select   only these

Each mutant (`mutants.py`) of a module is run against the tests of that module, in a copy of the
tree. A mutant that no test notices fails the run, unless `equivalent.txt` lists it with the reason
why it behaves the same; an entry there that belongs to no survivor fails it, too.

Each mutant gets a fork of one process that has loaded the libraries already: to start an
interpreter and pytest anew takes longer than the tests.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import io
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.mutation.mutants import mutants

REQUESTS = (
    "tests/routing/test_guards.py",
    "tests/routing/test_failover.py",
    "tests/request/test_stream.py",
    "tests/routing/test_hedge.py",
    "tests/test_gateway.py",
    "tests/telemetry/test_ends.py",
)
"""How requests fare, from outside; the quick ones first."""

MODULES = {
    "aigateway/resilience/breaker.py": (
        "tests/resilience/test_breaker.py",
        "tests/resilience/test_breaker_exhaustive.py",
    ),
    "aigateway/resilience/cooldown.py": (
        "tests/resilience/test_cooldown.py",
        "tests/routing/test_guards.py",
    ),
    "aigateway/resilience/health.py": (
        "tests/resilience/test_health.py",
        "tests/routing/test_guards.py",
        "tests/routing/test_hedge.py",
    ),
    "aigateway/resilience/last_resort.py": (
        "tests/resilience/test_last_resort.py",
        "tests/routing/test_guards.py",
    ),
    "aigateway/resilience/retry.py": ("tests/resilience/test_retry.py",),
    "aigateway/wires/failures.py": ("tests/wires/test_failures.py",),
    "aigateway/routing/select.py": ("tests/routing/test_select.py", *REQUESTS),
    "aigateway/routing/affinity.py": ("tests/routing/test_affinity.py",),
    "aigateway/routing/capabilities.py": ("tests/routing/test_capabilities.py",),
    "aigateway/routing/candidates.py": ("tests/routing/test_select.py", *REQUESTS),
    "aigateway/routing/attempt.py": REQUESTS,
    "aigateway/routing/failover.py": REQUESTS,
    "aigateway/routing/hedge.py": (
        "tests/routing/test_hedge.py",
        "tests/telemetry/test_ends.py",
    ),
    "aigateway/request/coalesce.py": (
        "tests/request/test_coalesce.py",
        "tests/test_gateway.py",
        "tests/request/test_coalesce_errors.py",
        "tests/request/test_coalesce_schedules.py",
    ),
    "aigateway/cache/key.py": ("tests/cache/test_key.py",),
}
"""What is mutated, and the tests that have to notice."""

LIBRARIES = (
    "aiocache",
    "aiohttp.web",
    "hypothesis.stateful",
    "orjson",
    "pydantic_settings",
    "pytest_asyncio.plugin",
    "rich.console",
    "structlog",
    "tenacity",
)
"""Loaded before the forks. Nothing of this project is: a fork has to load it from the copy."""

OPTIONS = ("-x", "-q", "--assert=plain", "-p", "no:randomly", "-p", "no:cacheprovider")
LEAST_SECONDS = 20.0
"""A mutant that takes ten times as long as the module's tests, and this long, hangs."""

IDLE_SECONDS = 4.0
"""One that has done nothing for so long hangs, too: it waits for what never comes."""

_AT_WORK = 0.002
"""Seconds of a processor in that time; also a process that others crowd out gets more."""

_HUNG = 99
"""Exit code of such a one."""

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")

Key = tuple[str, str, str, str]
"""A mutant's module, place, old and new text: what stays the same when lines move."""


LATEST = 6
"""Tests that noticed the mutants before are run first: the next one is a few characters away."""


class Repeatable:
    """A pytest plugin: each mutant meets the same examples, and none is searched for a smaller.

    Args:
        noticed: The file that gets the name of the test that fails.
    """

    def __init__(self, noticed: Path) -> None:
        self._noticed = noticed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """With the first failure it is over."""
        if report.failed:
            self._noticed.write_text(report.nodeid, encoding="utf-8")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """When the suite's own settings are in force, and before its tests are read."""
        settings.register_profile(
            "mutation",
            settings(),
            max_examples=100,
            database=None,
            derandomize=True,
            phases=(Phase.explicit, Phase.generate),
            # The same test runs more than once in a fork, which is a fault to Hypothesis.
            suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
        )
        settings.load_profile("mutation")


def main() -> int:
    """Run the mutants; 0 if each was noticed or is listed."""
    modules = _chosen()
    listed = set(_listed(EQUIVALENT.read_text(encoding="utf-8")))
    for library in LIBRARIES:
        importlib.import_module(library)
    _load_pytest()
    os.nice(19)  # it takes long, and should be in nobody's way
    began = time.perf_counter()
    fates: Counter[str] = Counter()
    survivors: set[Key] = set()
    with tempfile.TemporaryDirectory(prefix="aigateway-mutation-") as folder:
        _move_to_copy(Path(folder))
        for module in modules:
            survivors |= _try_module(module, listed, fates)
    unlisted = survivors - listed
    stale = {key for key in listed - survivors if key[0] in modules}
    for key in stale:
        _show("In equivalent.txt, but noticed or no mutant any more:", key)
    print(
        f"{fates.total()} mutants in {time.perf_counter() - began:.0f} s:"
        f" {fates['killed']} killed by a failing test, {fates['hung']} by a hang,"
        f" {len(survivors & listed)} equivalent, {len(unlisted)} survived"
    )
    return 1 if unlisted or stale else 0


def _load_pytest() -> None:
    """Have pytest load its plugins by a run without tests; each fork would do so again."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        configuration = str(ROOT / "pyproject.toml")
        pytest.main([*OPTIONS, "--rootdir", folder, "-c", configuration, folder])


def _chosen() -> tuple[str, ...]:
    names = {Path(module).stem: module for module in MODULES}
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="module", help=", ".join(names))
    given = parser.parse_args().modules or list(names)
    for name in given:
        if name not in names:
            parser.error(f"no module {name!r}; there are {', '.join(names)}")
    return tuple(names[name] for name in given)


def _listed(text: str) -> Iterator[Key]:
    """Read blocks of four lines: module and place, `-` old, `+` new, and why it is the same."""
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not lines:
            continue
        where, old, new, *reason = lines
        if not (old.startswith("- ") and new.startswith("+ ") and any(reason)):
            raise ValueError(f"equivalent.txt: not module, old, new and reason: {where!r}")
        module, _, place = where.partition(" ")
        yield module, place, old[2:], new[2:]


def _move_to_copy(folder: Path) -> None:
    for name in ("aigateway", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    compileall.compile_dir(folder, quiet=1)
    sys.dont_write_bytecode = True  # what is mutated must not be remembered
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for name in [n for n in sys.modules if n.partition(".")[0] in {"aigateway", "tests"}]:
        del sys.modules[name]


def _try_module(module: str, listed: set[Key], fates: Counter[str]) -> set[Key]:
    """Count what became of each mutant in `fates`; returns those that nothing noticed."""
    file, tests = Path(module), MODULES[module]
    source = file.read_text(encoding="utf-8")
    for bytecode in file.parent.glob(f"__pycache__/{file.stem}.*"):
        bytecode.unlink()
    began = time.perf_counter()
    if _fate(tests, 120.0, {}) != "survived":
        raise SystemExit(f"{module}: its tests fail without any mutant; see to them first.")
    limit = max(LEAST_SECONDS, 10 * (time.perf_counter() - began))
    found = list(mutants(source))
    print(f"{module}: {len(found)} mutants", flush=True)
    survivors: set[Key] = set()
    latest: dict[str, None] = {}
    for mutant in found:
        file.write_text(mutant.source, encoding="utf-8")
        fate = _fate(tests, limit, latest)
        fates[fate] += 1
        key = (module, mutant.place, mutant.old, mutant.new)
        if fate == "survived":
            survivors.add(key)
            if key not in listed:
                _show("Nothing noticed:", key)
    file.write_text(source, encoding="utf-8")
    print(f"  {time.perf_counter() - began:.0f} s, {len(survivors)} not noticed", flush=True)
    return survivors


def _fate(tests: Sequence[str], limit: float, latest: dict[str, None]) -> str:
    """Run the tests in a fork: "survived", "killed" or "hung".

    Args:
        tests: Files.
        limit: Seconds that it may take.
        latest: Tests that are run before all others; the one that fails becomes the last.
    """
    noticed = Path("noticed.txt").absolute()
    noticed.unlink(missing_ok=True)
    first = tuple(reversed(latest))
    run = multiprocessing.get_context("fork").Process(target=_run, args=(first, tests, noticed))
    run.start()
    run.join(limit)
    if run.is_alive():
        run.kill()
        run.join()
        return "hung"
    if noticed.exists():
        test = noticed.read_text(encoding="utf-8")
        latest.pop(test, None)
        latest[test] = None
        for old in list(latest)[:-LATEST]:
            del latest[old]
    if run.exitcode == _HUNG:
        return "hung"
    return "killed" if run.exitcode else "survived"


def _run(first: Sequence[str], tests: Sequence[str], noticed: Path) -> None:
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - the descriptor is what is needed
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    threading.Thread(target=_exit_when_idle, daemon=True).start()
    # File by file: to read all of them takes longer than most mutants live.
    for chosen in ([first] if first else []) + [(test,) for test in tests]:
        failed = pytest.main([*OPTIONS, "--proofs", *chosen], plugins=[Repeatable(noticed)])
        if failed and not (chosen is first and failed == pytest.ExitCode.USAGE_ERROR):
            os._exit(failed)
    os._exit(0)


def _exit_when_idle() -> None:
    used = -math.inf
    while time.process_time() - used > _AT_WORK:
        used = time.process_time()
        time.sleep(IDLE_SECONDS)
    os._exit(_HUNG)


def _show(title: str, key: Key) -> None:
    module, place, old, new = key
    print(f"{title}\n\n{module} {place}\n- {old}\n+ {new}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
