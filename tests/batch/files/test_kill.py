"""A real process, killed at random moments, and what it had answered is there."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import aigateway
from aigateway.simulator import Simulator
from tests.batch.files.desk import prompt_of, records, text_of
from tests.processes import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.proof]

ROOT = Path(aigateway.__file__).parents[1]
LINES_A_KILL = 36
"""So many that the last kill meets it at work, too."""


@pytest.fixture
def simulator():
    with Simulator.in_thread() as running:  # the test itself waits for another process
        yield running


@pytest.fixture
def environment(simulator):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "OPENAI_API_KEY": "sk-simulated",
        "OPENAI_BASE_URL": simulator.openai.api_base,
    }


def the_line(n):
    if n % 50 == 1:
        return {"id": f"r{n}", "prompt": ""}  # cannot be asked
    # Each tenth asks what another one asks.
    return {"id": f"r{n}", "prompt": f"p{n // 10 if n % 10 == 0 else n}"}


def whole_records(path):
    """Those that a kill has left whole, as a reader that knows nothing of it finds them."""
    if not path.exists():
        return []
    texts = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(text) for text in texts]


def bodies(path):
    return {r["custom_id"]: text_of(r) for r in records(path)}


@pytest.mark.parametrize("seed", [20261126])
def test_killed_at_random_moments_it_loses_nothing_and_asks_nothing_twice(
    request, tmp_path, simulator, environment, seed
):
    kills = max(14, request.config.getoption("--kills"))
    lines = LINES_A_KILL * kills
    vendor = simulator.openai
    vendor.latency = 0.01
    vendor.answer(lambda received: f"answer to {prompt_of(received)}")
    source, table = tmp_path / "in.jsonl", tmp_path / "out.csv"
    output = tmp_path / "out.csv.job" / "records.jsonl"
    source.write_text("".join(json.dumps(the_line(n)) + "\n" for n in range(lines)))
    prompts = {f"r{n}": the_line(n)["prompt"] for n in range(lines) if n % 50 != 1}

    snapshots = []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.batch.files.killing", source, table, str(kills), str(seed)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(kills):
            assert process.stdout.readline() == f"killed {int(signal.SIGKILL)}\n"
            finished = {record["custom_id"] for record in whole_records(output)}
            snapshots.append((finished, len(vendor.received)))
            assert not table.exists()
            process.stdin.write("go on\n")
            process.stdin.flush()
        assert process.stdout.readline() == "ended 1\n"  # some lines have failed
        process.stdin.close()
        assert process.wait(PATIENCE) == 0, process.stderr.read()

    received = [prompt_of(each) for each in vendor.received]
    for finished, asked_then in snapshots:
        asked_again = {prompts[line_id] for line_id in finished} & set(received[asked_then:])
        assert asked_again == set()
    assert len(records(output)) == len(prompts)
    failed = sorted(r["custom_id"] for r in records(output.with_name("errors.jsonl")))
    assert failed == sorted(f"r{n}" for n in range(1, lines, 50))
    sizes = [len(finished) for finished, _ in snapshots]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= kills // 2  # the kills did meet it at work
    assert 0 < sizes[-1] < len(prompts)

    expected = {line_id: f"answer to {prompt}" for line_id, prompt in prompts.items()}
    assert bodies(output) == expected
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(lines)]
    assert {row["id"]: row["answer"] for row in rows if not row["error"]} == expected
