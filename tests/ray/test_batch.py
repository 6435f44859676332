"""`aigateway batch --engine ray`: the same output, and nothing recorded is asked twice."""

import json
import os
import random
import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from aigateway import AsyncGateway, LLMConfig
from aigateway.batch.files.input import RowFormat
from aigateway.batch.files.job import JobOptions
from aigateway.batch.files.shards import ShardWork
from aigateway.batch.ray import open_cluster, pickled
from aigateway.errors import ConfigurationError
from aigateway.settings import GatewaySettings
from aigateway.simulator import Fault
from tests.fleet.servers import Server
from tests.ray.cluster import KEY, actors, processes, until, whole

ON_RAY = ("--engine", "ray")


def test_the_output_and_the_report_are_those_of_one_process(office, ray_stays_here):
    office.ask(300, latency=0.01)
    office.prompts["twin"] = office.prompts["r1"]
    with (office.folder / "in.jsonl").open("a") as file:
        file.write('\n{"id": "twin", "prompt": "p1"}\n{"id": "bad", "prompt": ""}\n')
    options = ("--skip-bad-lines", "--concurrency", "8", "--report")
    office.start(*options, "alone.json").code  # noqa: B018 - its end
    alone = [office.answers, (office.folder / "out.errors.jsonl").read_text().count("bad_line")]
    for name in ("out.jsonl", "out.errors.jsonl"):
        (office.folder / name).unlink()
    run = office.start(*options, "shards.json", *ON_RAY, "--actors", "2")
    assert run.code == 1
    assert alone == [
        office.answers,
        (office.folder / "out.errors.jsonl").read_text().count("bad_line"),
    ]
    assert office.answers == office.expected
    files = {path.name for path in office.folder.iterdir()}
    assert files == {
        "in.jsonl", "out.jsonl", "out.jsonl.job", "out.errors.jsonl", "log",
        "alone.json", "shards.json",
    }  # fmt: skip
    assert '"answered":301' in re.sub(r"\s", "", (office.folder / "shards.json").read_text())
    assert "302/302 (100.0 %), 1 failed" in run.log
    assert "(raylet)" not in run.log
    secrets = (KEY.encode(), b"answer to p7")
    for path in ray_stays_here.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert not [secret for secret in secrets if secret in content], path


@pytest.mark.parametrize("seed", [16])
def test_killed_at_random_moments_it_asks_nothing_twice_that_is_recorded(office, cluster, seed):
    """Drivers, actors and a machine die; what is in flight then is all that is lost."""
    rng = random.Random(seed)
    office.ask(1500, latency=0.02)
    options = (*ON_RAY, "--address", cluster.address, "--actors", "2", "--concurrency", "8",
               "--resume")  # fmt: skip
    run = office.start(*options)
    snapshots = []
    for what in ("driver", "actor", "machine", "actor", "driver", "actor"):
        office.work(rng.randrange(20, 150))
        assert not run.is_over(), run.log
        snapshots.append(office.snapshot())
        if what == "driver":
            run.kill()
            run = office.start(*options)
        elif what == "machine":
            cluster.lose()
            cluster.add()
        else:
            os.kill(rng.choice(actors(os.getpid())), signal.SIGKILL)
    assert run.code == 0, run.log
    assert [office.asked_again(snapshot) for snapshot in snapshots] == [set()] * len(snapshots)
    assert office.answers == office.expected
    assert office.asked_twice() <= 8 * len(snapshots)
    assert not (office.folder / "out.jsonl.parts").exists()
    assert "Traceback" not in run.log


def test_a_rate_holds_for_all_actors_and_over_kills(office, cluster):
    office.ask(1000, latency=0.01)
    options = (*ON_RAY, "--address", cluster.address, "--actors", "2", "--rpm", "160", "--resume")
    run = office.start(*options)
    until(lambda: office.vendor.request_count >= 60)
    os.kill(actors(os.getpid())[0], signal.SIGKILL)
    lost = office.vendor.request_count
    until(lambda: office.vendor.request_count >= 140)
    # What the killed actor held counts as spent, so nearly all is gone, and no more begins.
    until(lambda: run.log.count("/1000") >= 4)
    assert lost < 140 <= office.vendor.request_count <= 160
    run.process.send_signal(signal.SIGTERM)
    assert run.code == 1
    assert "stopping (terminated)" in run.log
    asked = office.vendor.request_count
    # An earlier run's minute counts.
    run = office.start(*options)
    until(lambda: run.log.count("/1000") >= 2)
    assert office.vendor.request_count == asked
    run.process.send_signal(signal.SIGTERM)
    assert run.code == 1
    # One process goes on, without a rate.
    run = office.run("--resume", "--concurrency", "64")
    assert office.answers == office.expected
    assert office.asked_twice() <= 16


def test_its_cost_is_exceeded_by_what_is_in_flight_at_most(office, cluster):
    office.ask(300, latency=0.02)
    on_ray = (*ON_RAY, "--address", cluster.address, "--actors", "2", "--concurrency", "8")
    office.start("--max-failures", "1", "--report", "r.json").code  # noqa: B018 - its end
    cost = json.loads((office.folder / "r.json").read_text())["cost_usd"]
    (office.folder / "out.jsonl").unlink()
    asked = office.vendor.request_count
    run = office.start(*on_ray, "--max-cost", f"{cost / 3:.9f}")
    assert run.code == 1
    assert "--max-cost" in run.log
    assert 90 <= len(office.answers) <= 100 + 8
    assert office.vendor.request_count - asked == len(office.answers)


def test_with_redis_limits_and_answers_are_those_of_the_fleet(office, cluster, tmp_path):
    with Server(tmp_path) as valkey:
        office.environment = {"AIGATEWAY_REDIS_URL": valkey.url}
        office.ask(100, latency=0.01)
        on_ray = (*ON_RAY, "--address", cluster.address, "--actors", "2", "--concurrency", "8")
        office.run(*on_ray, "--report", "r.json", "--temperature", "0")
        assert office.vendor.request_count == 100
        assert office.answers == office.expected
        cost = json.loads((office.folder / "r.json").read_text())["cost_usd"]
        (office.folder / "out.jsonl").unlink()
        office.ask(300, latency=0.01)
        limits = ("--max-cost", f"{cost / 2:.9f}", "--rpm", "1000")
        run = office.start(*on_ray, "--temperature", "0", *limits)
        assert run.code == 1
        assert "--max-cost" in run.log
        assert 140 <= len(office.answers) <= 150 + 8  # a hundred come from the cache
        assert office.vendor.request_count == len(office.answers)
        assert "Traceback" not in run.log


def test_an_outage_ends_it(office, cluster):
    office.ask(400, latency=0.01)
    office.vendor.behave(*[None] * 100, *[Fault.server_error()] * 1000)
    on_ray = (*ON_RAY, "--address", cluster.address, "--actors", "2", "--concurrency", "64")
    run = office.start(*on_ray, "--outage-patience", "1")
    assert run.code == 1
    assert "job       stopped: no provider is available any more (" in run.log
    assert 100 <= len(office.answers) < 400
    failed = whole(office.folder / "out.errors.jsonl")
    assert len(failed) <= 64  # those in flight do not take turns as last resort


def test_a_second_signal_ends_it_also_if_ray_hangs(office):
    """SIGSTOP: Ray's processes live, and answer nothing; its own calls would wait for ever."""
    office.ask(300, latency=0)
    office.vendor.behave(*[None] * 50, *[Fault.hang()] * 300)
    run = office.start(*ON_RAY, "--actors", "1", "--concurrency", "8")
    until(lambda: office.vendor.request_count == 58)
    until(lambda: len(office.recorded()) == 50)
    frozen = processes(b"/gcs_server", run.process.pid) + processes(b"/raylet", run.process.pid)
    assert len(frozen) == 2
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    until(lambda: "stopping (interrupted)" in run.log)
    run.process.send_signal(signal.SIGINT)
    assert run.code == 1
    assert "Traceback" not in run.log
    assert len(office.answers) == 50
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in frozen))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "No Ray cluster is reachable at 127.0.0.1:1: Connection refused."),
        ("hole", "No Ray cluster answers at 127.0.0.1:"),
        ("ray://127.0.0.1:10001", "is not supported: run the command on a machine of the cluster"),
        ("somewhere", '--address must be "auto" or HOST:PORT, not somewhere.'),
    ],
)
def test_a_cluster_that_cannot_be_reached(address, says):
    with socket.create_server(("127.0.0.1", 0)) as hole:
        if address == "hole":
            address = f"127.0.0.1:{hole.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=re.escape(says)), open_cluster(address, 1):
            pass


def test_a_key_function_that_cannot_be_sent_is_named():
    lock = threading.Lock()
    config = LLMConfig(provider="openai", model="m", name="mine", api_key=lambda: str(lock))
    work = ShardWork(AsyncGateway, [config], GatewaySettings(), Path(), RowFormat(), 0, Path(),
                     JobOptions())  # fmt: skip
    with pytest.raises(ConfigurationError, match="The provider mine cannot be sent"):
        pickled(work)
