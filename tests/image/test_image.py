"""The steps of the Dockerfile, run here: there is no container engine, and /opt is a directory."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from tests.fleet.servers import free_port
from tests.processes import PATIENCE, until

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(
    r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
)
BUILD, FINAL = re.split(r"^FROM .*\n", DOCKERFILE, flags=re.MULTILINE)[1:]
MOST_BYTES = 450e6


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The root directory of the image, as far as the build stage fills it."""
    root = tmp_path_factory.mktemp("root")
    python = root / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    place = root
    for name, rest in re.findall(r"^(WORKDIR|COPY|RUN) (.+)$", BUILD, re.MULTILINE):
        if name == "WORKDIR":
            place = root / rest.strip("/ ")
            place.mkdir(parents=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copied = place / target / (Path(source).name if target.endswith("/") else "")
                (shutil.copytree if (ROOT / source).is_dir() else _copy)(ROOT / source, copied)
        else:
            path = f"{python.parent}:{os.environ['PATH']}"
            step = rest.replace("/opt/aigateway", f"{root}/opt/aigateway")
            subprocess.run(["sh", "-c", step], cwd=place, env=_plain(path), check=True)
    shutil.rmtree(root / "source")  # what the final stage does not copy
    return root


def _copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _plain(path, **more):
    """Nothing of this environment, but for how packages are reached."""
    kept = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE", "HOME", "SSL_CERT_FILE")
    return {"PATH": path, **{name: os.environ[name] for name in kept if name in os.environ}, **more}


def test_it_is_small_and_holds_neither_pip_nor_what_builds(image):
    packages = next((image / "opt/aigateway/lib").glob("python3*/site-packages"))
    names = {each.name.partition("-")[0] for each in packages.iterdir()}
    assert {"aigateway", "fastapi", "redis", "opentelemetry"} <= names
    assert not names & {"pip", "hatchling", "pathspec", "pluggy", "tomlkit", "trove_classifiers"}
    size = sum(each.lstat().st_size for each in image.rglob("*") if not each.is_dir())
    print(f"/opt/aigateway has {size / 1e6:.0f} MB")
    assert size < MOST_BYTES


def test_the_trial_of_compose_answers_and_ends(image):
    """The image's own command, variables and health check, with the options of the trial."""
    trial = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["trial"]
    settings = image / "etc/aigateway"
    shutil.copytree(ROOT / "deploy/trial", settings)
    port = free_port()
    environment = dict(re.findall(r"(AIGATEWAY_\w+|PYTHON\w+)=(\S+)", FINAL))
    assert environment["AIGATEWAY_SERVER_HOST"] == "0.0.0.0"
    environment |= trial["environment"] | {"AIGATEWAY_SERVER_PORT": str(port)}
    # Keys are there, so it would start at any address; but this machine is not a container.
    environment |= {"AIGATEWAY_SERVER_HOST": "127.0.0.1"}
    path = f"{image}/opt/aigateway/bin:{os.environ['PATH']}"
    entry = json.loads(re.findall(r"^ENTRYPOINT (.+)$", FINAL, re.MULTILINE)[0])
    check = json.loads(re.findall(r"^ *HEALTHCHECK .* CMD (\[.+\])$", FINAL, re.MULTILINE)[0])
    before = set((image / "opt").rglob("*"))

    def healthy():
        done = subprocess.run(check, env={"PATH": path, **environment}, check=False)
        return done.returncode == 0

    with subprocess.Popen(
        [*entry, *trial["command"]], cwd=settings, env=_plain(path, **environment)
    ) as process:
        try:
            until(lambda: healthy() or process.poll() is not None)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                asked = {"message": "Hi"}
                answer = client.post("/chat", json=asked, headers={"x-api-key": "trial"})
                assert answer.status_code == 200, answer.text
                scraper = {"x-api-key": "trial-metrics", "accept": "text/plain"}
                text = client.get("/metrics", headers=scraper).text
            assert 'aigateway_key_requests_last_minute{key="trial"} 1.0' in text
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert set((image / "opt").rglob("*")) == before  # its root file system may be read-only
    assert {each.name for each in settings.iterdir()} == {"aigateway.toml", "prometheus.yml"}


def test_systemd_accepts_the_unit(image, tmp_path):
    """With the program where the unit has it."""
    if shutil.which("systemd-analyze") is None:
        pytest.fail("systemd-analyze is not on PATH: it is in Debian's package `systemd`")
    unit = (ROOT / "deploy/systemd/aigateway.service").read_text()
    file = tmp_path / "aigateway.service"
    file.write_text(unit.replace("/opt/aigateway", f"{image}/opt/aigateway"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
