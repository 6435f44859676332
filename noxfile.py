"""The project's commands: `nox -s demo`, `nox -s tests`, and what keeps the tree in order."""

from __future__ import annotations

import nox

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


@nox.session
def demo(session: nox.Session) -> None:
    """Watch four simulated vendors fail while every caller gets an answer."""
    install(session)
    session.run("aigateway", "demo", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and the direction of imports."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, in package and tests."""
    install(session)
    session.run("mypy")


@nox.session
def lock(session: nox.Session) -> None:
    """Pin the newest allowed versions anew, with hashes and without download addresses."""
    session.install("uv")
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
        "--group=dev",
        "--output-file=requirements/dev.txt",
        "pyproject.toml",
    )
