"""The commands of examples/README.md, as they stand there, with the first vendor down.

`nox -s examples` runs them, in an environment with their packages. Ray has a session of its own.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.processes import PATIENCE, ROOT, until

README = (ROOT / "examples" / "README.md").read_text()
ROWS = re.findall(r"^\| \[([\w.]+)\].*\| (`python .*`) \|$", README, re.MULTILINE)
COMMANDS = {name: re.findall(r"`(.+?)`", cell) for name, cell in ROWS}
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
DOWN = "# openai (down): "


class Shell:
    """Runs commands in a copy of the examples, and ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        """What the last command has printed that was started and not waited for."""
        self.started: list[subprocess.Popen[bytes]] = []
        shutil.copytree(ROOT / "examples", folder / "examples")

    def start(
        self, command: str, *more: str, log: str = "log", **env: str
    ) -> subprocess.Popen[bytes]:
        own = {name: os.environ[name] for name in ("HOME", "PYTHONPATH") if name in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with (self.folder / log).open("wb") as file:
            process = subprocess.Popen(
                ["sh", "-c", f"exec env {command} {shlex.join(more)}"],
                cwd=self.folder,
                env={**own, "PATH": path, "TMPDIR": str(self.folder), "NO_COLOR": "1", **env},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def run(self, command: str, *more: str, code: int = 0, **env: str) -> str:
        """Run to its end, and return what it has printed."""
        found = self.start(command, *more, log="run.log", **env).wait(PATIENCE)
        printed = (self.folder / "run.log").read_text()
        assert found == code, printed
        return printed

    def serve(self, command: str) -> str:
        """Start a server on a free port, and return its address; waits until it has printed it."""
        process = self.start(command, "--port", "0")
        until(lambda: ADDRESS.search(self.log.read_text()) or process.poll() is not None)
        found = ADDRESS.search(self.log.read_text())
        assert found, self.log.read_text()
        return found[0]

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    yield shell
    shell.end()


def test_every_example_has_its_line():
    there = {path.name for path in (ROOT / "examples").iterdir() if not path.name.startswith("_")}
    assert set(COMMANDS) == there - {"README.md", "simulated.py"}


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("extract.py", "answered by azure/gpt-4o-mini"),
        ("tools_agent.py", "round 2: gemini/"),
        ("rag.py", "azure/gpt-4o-mini: Five years"),
    ],
)
def test_a_program_goes_on_without_its_first_vendor(shell, name, printed):
    (command,) = COMMANDS[name]
    out = shell.run(command)
    assert printed in out
    assert DOWN in out
    assert DOWN + "0" not in out


@pytest.mark.parametrize(("command", "column"), [(0, "sentiment"), (1, "answer.sentiment")])
def test_a_table_gets_columns(shell, command, column):
    shell.run(COMMANDS["batch_csv"][command])
    with (shell.folder / "classified.csv").open() as file:
        found = {row["customer"]: row[column] for row in csv.DictReader(file)}
    said = ["negative", "positive", "neutral", "negative"]
    assert found == dict(zip(["Ada", "Ben", "Cleo", "Dora"], said, strict=True))


def test_a_table_in_an_outage_says_which_rows_have_no_answer(shell):
    command, _ = COMMANDS["batch_csv"]
    source = shell.folder / "examples" / "batch_csv" / "classify.py"
    source.write_text(source.read_text().replace("outage_patience=600", "outage_patience=0"))
    out = shell.run(command.replace("simulated.py", "simulated.py --down all"), code=1)
    assert "0 answered, 4 failed" in out
    with (shell.folder / "classified.csv").open() as file:
        assert all("azure" in row["error"] for row in csv.DictReader(file))


def deltas(response):
    """Return the pieces of a stream of OpenAI's chunks, which has come to its end."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert done == "data: [DONE]"
    read = [json.loads(line.removeprefix("data: ")) for line in chunks]
    return [choice["delta"].get("content") or "" for each in read for choice in each["choices"]]


def test_fastapi_streams_from_the_next_vendor(shell):
    serve, curl = COMMANDS["fastapi_chat.py"]
    url = shell.serve(serve)
    body = json.loads(shlex.split(curl)[-1])
    assert "".join(deltas(httpx.post(f"{url}/stream", json=body, timeout=PATIENCE))) == "4"
    whole = httpx.post(f"{url}/chat", json=body, timeout=PATIENCE)
    assert whole.json() == {"text": "4", "provider": "azure/gpt-4o-mini"}


def test_fastapi_answers_503_in_an_outage(shell):
    serve, _ = COMMANDS["fastapi_chat.py"]
    serve = serve.replace("simulated.py", "simulated.py --down all")
    url = shell.serve(serve)
    for path in ("chat", "stream"):
        refused = httpx.post(f"{url}/{path}", json={"prompt": "a secret"}, timeout=PATIENCE)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "secret" not in refused.text


def test_a_service_knows_its_clients_and_their_budgets(shell):
    serve, client = COMMANDS["service"]
    url = shell.serve(serve)
    assert shell.run(client, AIGATEWAY_URL=f"{url}/v1").startswith("4\n")
    poor = client.replace("for-trials-only", "with-nothing-left")
    spent = shell.run(poor, AIGATEWAY_URL=f"{url}/v1", code=os.EX_TEMPFAIL)
    assert "budget is used up" in spent


def test_a_celery_worker_keeps_one_gateway_in_each_process(shell):
    worker, ask = COMMANDS["celery_worker"]
    running = shell.start(worker, "--concurrency", "2")
    answers = re.findall(r"process (\d+): azure/gpt-4o-mini: 4", shell.run(ask))
    assert len(answers) == 16
    assert len(set(answers)) <= 2
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE) == 0, shell.log.read_text()
    # Its circuit opened in each process after five failures: it outlived the tasks.
    log = shell.log.read_text()
    assert 5 <= int(log.split(DOWN)[1].split()[0]) <= 10
    assert "Traceback" not in log


def test_a_notebook_asks_no_vendor_again(shell):
    (command,) = COMMANDS["notebook.ipynb"]
    in_front, execute = command.split("simulated.py ")
    out = shell.run(f"{in_front}simulated.py sh -c '{execute} --inplace && {execute} --inplace'")
    assert DOWN + "4 requests" in out  # of the first time
    cells = json.loads((shell.folder / "examples" / "notebook.ipynb").read_text())["cells"]
    shown = json.dumps([cell.get("outputs") for cell in cells])
    assert "'4', 'azure/gpt-4o-mini', True" in shown
    assert "Lima | This answer is simulated." in shown
