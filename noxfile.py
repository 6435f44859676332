"""The project's commands: `nox -s demo`, `nox -s tests`, and what keeps the tree in order."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
nox.options.sessions = ["tests", "lint", "types"]


def install(session: nox.Session) -> None:
    """Install the pinned environment, every file checked against its hash, and the project."""
    session.install("--require-hashes", "-r", "requirements/dev.txt")
    session.install("--no-deps", "-e", ".")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default suite; arguments after `--` go to pytest."""
    install(session)
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


AT_BOUNDARIES = (
    "tests/wires",
    "tests/docs/test_code_blocks.py",
    "tests/cache/test_backend.py",
    "tests/cache/test_memory.py",
    "tests/settings",
    "tests/telemetry",
    "tests/server/http/test_bodies.py",
    "tests/server/http/test_connections.py",
    "tests/server/http/test_endpoints.py",
    "tests/server/http/test_one_schema.py",
    "tests/server/http/test_openai_sdk.py",
    "tests/server/http/test_openapi.py",
)
"""Tests of what depends on other packages: litellm, aiohttp, aiocache, pydantic, fastapi, ..."""


@nox.session
def newest(session: nox.Session) -> None:
    """Run the tests at the boundaries with the newest versions that `pyproject.toml` allows."""
    groups = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test")
    eagerly = ("--upgrade", "--upgrade-strategy=eager")
    session.install(*eagerly, "-e", ".[otel,parquet,server]", *groups)
    session.run("python", "-m", "pytest", "-n", "2", *AT_BOUNDARIES, *session.posargs)


@nox.session
@nox.parametrize("pins", ["clients", "clients-openai2"])
def clients(session: nox.Session, pins: str) -> None:
    """Run real clients against the service; `npm ci` in tests/clients/node comes before.

    Some of them need the OpenAI SDK below 3, which is an environment of its own.
    """
    session.install("--require-hashes", "-r", f"requirements/{pins}.txt")
    session.install("--no-deps", "-e", ".")
    older = "tests/clients/openai2"
    chosen = [older] if pins == "clients-openai2" else ["tests/clients", f"--ignore={older}"]
    # A plugin of LangChain's tests warns that it measures nothing beside other processes.
    quiet = "-Wignore:Benchmarks are automatically disabled"
    session.run("python", "-m", "pytest", "-n", "2", "--clients", quiet, *chosen, *session.posargs)


@nox.session
def flakes(session: nox.Session) -> None:
    """Run the suite in random orders; after `--`: `--orders 10`, `--load 4`, arguments of pytest.

    `--load` is how many processes keep the machine busy beside it.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--load", type=int, default=0)
    options, rest = parser.parse_known_args(session.posargs)
    install(session)
    failed = []
    with contextlib.ExitStack() as busy:
        for _ in range(options.load):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            busy.callback(process.wait)
            busy.callback(process.kill)
        for seed in range(1, options.orders + 1):
            try:
                session.run(
                    "python", "-m", "pytest", "-n", "2", f"--randomly-seed={seed}", "-q", *rest
                )
            except CommandFailed:
                failed.append(seed)
    if failed:
        session.error(f"The suite fails with --randomly-seed={failed}.")


@nox.session
def demo(session: nox.Session) -> None:
    """Watch four simulated vendors fail while every caller gets an answer."""
    install(session)
    session.run("aigateway", "demo", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Play drawn schedules on virtual time; after `--`: `--seed N` for one, `--seeds N`."""
    install(session)
    session.run("python", "-m", "tests.simulation.run", *session.posargs)


@nox.session
@nox.parametrize("litellm", ["1.105.0", "1.110.2"])
def litellm_range(session: nox.Session, litellm: str) -> None:
    """Run the tests of the wires against the oldest and the newest litellm that is supported."""
    install(session)
    # Without dependencies: the newest may want versions that not every registry has yet.
    session.install("--no-deps", f"litellm=={litellm}")
    session.run("python", "-m", "pytest", "-n", "2", "tests/wires", "tests/http", *session.posargs)


@nox.session
def model(session: nox.Session) -> None:
    """Visit every state of the circuit with many calls out; after `--`: `--most-calls 12`."""
    install(session)
    exhaustive = "tests/resilience/test_breaker_exhaustive.py"
    session.run("python", "-m", "pytest", "-s", exhaustive, "--most-calls=8", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Let vendors, callers and files say anything, for longer; after `--`: `--examples 20000`."""
    install(session)
    longer = ("--examples=2000", "--timeout=3600")
    session.run("python", "-m", "pytest", "-n", "2", "tests/fuzz", *longer, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, the direction of imports, and `tests/house_rules.py`."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")
    session.run("python", "-m", "tests.house_rules")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, in package and tests."""
    install(session)
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/site; warnings are errors, and it may load nothing from outside."""
    session.install("--require-hashes", "-r", "requirements/docs.txt")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("python", "-m", "tests.docs.self_contained", "build/site")


@nox.session
def soak(session: nox.Session) -> None:
    """Two hundred callers, vendors that fail, and nothing may leak; after `--`: `--minutes 60`."""
    install(session)
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """See that the tests notice mistakes put into the core; after `--`: names of modules."""
    install(session)
    session.run("python", "-m", "tests.mutation", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against other libraries on loopback; after `--`: names of benchmarks, `--quick`."""
    session.install("--require-hashes", "-r", "requirements/bench.txt")
    session.install("--no-deps", "-e", ".")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Pin the newest allowed versions anew, with hashes and without download addresses."""
    session.install("uv")
    pin(session, "dev", "--group=dev", "pyproject.toml")
    # Measured is what is tested: left alone, the peers would draw other versions of litellm.
    pin(
        session,
        "bench",
        "--group=bench",
        "--group=dev",
        "--constraints=requirements/dev.txt",
        "pyproject.toml",
    )
    pin(session, "docs", "--group=docs")
    same = "--constraints=requirements/dev.txt"
    pin(session, "clients", "--group=clients", same, "pyproject.toml")
    pin(session, "clients-openai2", "--group=clients-openai2", "pyproject.toml")


def pin(session: nox.Session, name: str, *choice: str) -> None:
    """Write one file under requirements/."""
    session.run(
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--upgrade",
        "--universal",
        "--python-version=3.11",
        "--generate-hashes",
        "--no-header",
        "--no-emit-index-url",
        "--no-emit-find-links",
        *choice,
        f"--output-file=requirements/{name}.txt",
    )
