"""What `nox -s package` does: `python -m tests.package` builds what a registry gets, and uses it.

- The wheel and the source distribution are built twice, byte for byte the same, and the wheel once
  more from the source distribution.
- Their contents and metadata are checked; the page of a registry has no link that leads nowhere.
- Each is installed into an empty environment, and used from outside the repository: the wheel
  alone, with each extra, and through `uvx`. Versions are what a user gets today.
- Each message about a missing extra names a line that installs it.

Ray is left out: `nox -s ray` uses it. Nothing here needs a key.
"""

from __future__ import annotations

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "build" / "dist"
DATE = "1767225600"
"""A fixed moment for archives, in seconds since 1970."""

IMPORTS: Mapping[str, Sequence[str]] = {
    "anthropic": ("from aigateway import anthropic_client", "import anthropic"),
    "bedrock": ("import boto3",),
    "langchain": ("from aigateway.integrations.langchain import ChatAIGateway",),
    "otel": ("from aigateway.telemetry import OpenTelemetry; OpenTelemetry()",),
    "parquet": ("import pyarrow.parquet",),
    "redis": ("from aigateway.fleet.client import FleetClient",),
    "server": (
        "from aigateway.server import create_app",
        "from aigateway.telemetry import Prometheus",
    ),
    "ray": (),
    "vertex": ("import google.auth.transport.requests, google.oauth2.service_account",),
}
"""What must be there with an extra. Each extra has a line."""

ASK = """
import asyncio
from aigateway import AsyncGateway
from aigateway.simulator import Simulator

async def main():
    async with Simulator() as simulator:
        async with AsyncGateway([vendor.config() for vendor in simulator.vendors]) as gateway:
            await gateway.warmup()  # loading litellm takes long on a busy machine
            print((await gateway.chat("What is 2+2?")).text)

asyncio.run(main())
"""

ANTHROPIC = """
from aigateway import AsyncGateway, LLMConfig, anthropic_client

anthropic_client(AsyncGateway([LLMConfig(provider="openai", model="m", api_key="key")]))
"""


def main() -> None:
    """Build, check and use; any failure ends it."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        wheel, source = build(place)
        say("contents and metadata")
        check_wheel(wheel)
        check_source(source)
        run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source))
        use(place, wheel, source)
    shutil.rmtree(DIST / "again", ignore_errors=True)
    print(f"\nBuilt and used: {wheel.relative_to(ROOT)}, {source.relative_to(ROOT)}")


def say(what: str) -> None:
    """Print what begins."""
    print(f"── {what}", flush=True)


def run(*command: str, cwd: Path = ROOT, code: int = 0, **environment: str) -> str:
    """Run a command, and return what it prints; another exit code than `code` is an error."""
    # Settings and keys of the machine must not help.
    needed = re.compile(
        r"PATH|HOME|TMPDIR|LANG|SSL_.*|PIP_.*|UV_(?!PYTHON).*|.*_(?i:proxy)|.*_CA_BUNDLE"
    )
    kept = {name: value for name, value in os.environ.items() if needed.fullmatch(name)}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


# ── built ────────────────────────────────────────────────────────────────────────────────────────


def build(place: Path) -> tuple[Path, Path]:
    """Build both twice, and the wheel from the source distribution; all must be the same bytes."""
    say("build, twice")
    shutil.rmtree(DIST, ignore_errors=True)
    tool = (sys.executable, "-m", "build", "--no-isolation")
    for out in (DIST, place / "again"):
        # From the source distribution that it makes first, `build` makes the wheel.
        run(*tool, f"--outdir={out}", SOURCE_DATE_EPOCH=DATE)
    run(*tool, "--wheel", f"--outdir={place / 'tree'}", SOURCE_DATE_EPOCH=DATE)
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    for made in (wheel, source):
        assert made.read_bytes() == (place / "again" / made.name).read_bytes(), made
    assert wheel.read_bytes() == (place / "tree" / wheel.name).read_bytes()
    return wheel, source


def tracked(under: str) -> set[str]:
    """Return the files of the repository below a directory."""
    return set(run("git", "ls-files", "-z", under).strip("\0").split("\0"))


def check_wheel(wheel: Path) -> None:
    """Check that it holds the package, its licence and its metadata, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(
            archive.read(next(name for name in names if name.endswith("/METADATA")))
        )
    package = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert package == tracked("aigateway"), package ^ tracked("aigateway")
    assert "aigateway/py.typed" in package
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    check_metadata(metadata)


def check_metadata(metadata: email.message.Message) -> None:
    """Check what a registry shows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for field in ("Name", "Version", "Summary", "Author", "License-Expression", "Keywords"):
        assert metadata[field], field
    extras = set(project["optional-dependencies"])
    assert set(metadata.get_all("Provides-Extra", ())) == extras
    assert set(IMPORTS) | {"all"} == extras, "an extra without a line in IMPORTS"
    page = str(metadata.get_payload())
    assert page.startswith("# aigateway")
    nowhere = [
        link for link in re.findall(r"\]\(([^)]*)\)", page) if not link.startswith(("http", "#"))
    ]
    assert not nowhere, f"links that lead nowhere on the page of a registry: {nowhere}"


def check_source(source: Path) -> None:
    """Check that it holds what the tests need, and nothing that is not in the repository."""
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    strangers = names - tracked(".") - {"PKG-INFO"}
    assert not strangers, f"not in the repository: {strangers}"
    for needed in ("pyproject.toml", "noxfile.py", "tests/conftest.py", "requirements/dev.txt"):
        assert needed in names, needed


# ── used ─────────────────────────────────────────────────────────────────────────────────────────


class Environment:
    """An empty virtual environment, whose commands run outside the repository."""

    def __init__(self, place: Path, name: str) -> None:
        self.home = place / name
        self.outside = place / "outside"
        self.outside.mkdir(exist_ok=True)
        run("uv", "venv", "--quiet", "--python", sys.executable, str(self.home))

    def install(self, *what: str) -> None:
        """Install, as `pip install` does."""
        python = f"--python={self.home}/bin/python"
        run("uv", "pip", "install", "--quiet", python, *what, cwd=self.outside)

    def run(self, name: str, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run one of its commands, and return what it prints."""
        command = str(self.home / "bin" / name)
        return run(command, *arguments, cwd=self.outside, code=code, **environment)


def use(place: Path, wheel: Path, source: Path) -> None:
    """Install each, and use it."""
    say("the wheel alone")
    bare = Environment(place, "bare")
    bare.install(str(wheel))
    works(bare)
    say("the source distribution alone")
    built = Environment(place, "source")
    built.install(str(source))
    works(built)
    say("with uvx, from the wheel")
    version = run("uvx", "--quiet", "--from", str(wheel), "aigateway", "--version", cwd=place)
    assert version.split()[1] in wheel.name
    say("messages about missing extras")
    missing_extras(place, wheel, bare)
    for extra, lines in IMPORTS.items():
        if lines:
            say(f"the wheel with [{extra}]")
            whole = Environment(place, extra)
            whole.install(f"{wheel}[{extra}]")
            whole.run("python", "-c", "\n".join(lines))
    say("the wheel with [all]")
    whole = Environment(place, "all")
    whole.install(f"{wheel}[all]")
    whole.run("python", "-c", "\n".join(line for lines in IMPORTS.values() for line in lines))


def works(environment: Environment) -> None:
    """Use what needs no extra."""
    assert "site-packages" in environment.run(
        "python", "-c", "import aigateway as a; print(a.__file__)"
    )
    assert environment.run("python", "-c", ASK).strip()
    assert re.fullmatch(r"aigateway \d\S*\n", environment.run("aigateway", "--version"))
    assert environment.run(
        "aigateway", "chat", "--simulate", "What is 2+2?", AIGATEWAY_TIMEOUT="600"
    ).strip()
    told = environment.run("aigateway", "demo", "--plain", "--seconds=4", "--rate=10")
    assert "WARNING" not in told


def missing_extras(place: Path, wheel: Path, bare: Environment) -> None:
    """Meet each message about a missing extra, and type what it says."""
    (bare.outside / "in.parquet").write_bytes(b"PAR1")
    (bare.outside / "in.jsonl").write_text('{"id": "1", "prompt": "hello"}\n')
    ask = ("chat", "--simulate", "hello")
    typed = {
        "server": bare.run("aigateway", "serve", "--simulate", code=2),
        "parquet": bare.run("aigateway", "batch", "in.parquet", "--simulate", "--dry-run", code=2),
        "ray": bare.run(
            "aigateway", "batch", "in.jsonl", "out.jsonl", "--simulate", "--engine=ray", code=2
        ),
        "redis": bare.run("aigateway", *ask, code=2, AIGATEWAY_REDIS_URL="redis://127.0.0.1"),
        "otel": bare.run("python", "-c", "from aigateway.telemetry import OpenTelemetry", code=1),
        "langchain": bare.run("python", "-c", "import aigateway.integrations.langchain", code=1),
        "anthropic": bare.run(
            "python",
            "-c",
            ANTHROPIC,
            code=1,
        ),
    }
    for extra, message in typed.items():
        assert f'pip install "aigateway[{extra}]"' in message, message
    # The line works where the package is installed already, from wherever that was.
    say("the line of such a message")
    other = Environment(place, "typed")
    other.install(str(wheel))
    other.install("aigateway[server]")
    other.run("python", "-c", "\n".join(IMPORTS["server"]))


if __name__ == "__main__":
    main()
