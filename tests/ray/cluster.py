"""Batches on a real Ray cluster on loopback, whose processes can be killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.batch.files.desk import prompt_of, text_of
from tests.processes import ROOT, until

OBJECT_STORE = 80_000_000
KEY = "sk-very-secret-16"


class Command:
    """One run of `aigateway batch`."""

    def __init__(self, folder, base, environment, options):
        self._log = (folder / "log").open("ab")
        self._from = self._log.tell()
        self._path = folder / "log"
        command = [sys.executable, "-m", "aigateway", "batch", "in.jsonl", "out.jsonl", "--plain"]
        self.process = subprocess.Popen(
            [*command, *options],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "COLUMNS": "200",
                "OPENAI_API_KEY": KEY,
                "OPENAI_BASE_URL": base,
                **environment,
            },
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def log(self):
        return self._path.read_bytes()[self._from :].decode()

    @property
    def code(self):
        return self.process.wait(300)

    def is_over(self):
        return self.process.poll() is not None

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(60)
        self._log.close()


class Office:
    """A folder with an input and an output, a vendor that counts, and the commands."""

    def __init__(self, folder, vendor):
        self.folder = folder
        self.vendor = vendor
        self.prompts = {}
        self.runs = []
        self.environment = {}
        vendor.answer(lambda received: f"answer to {prompt_of(received)}")

    def ask(self, count, latency):
        self.vendor.latency = latency
        self.prompts = {f"r{n}": f"p{n}" for n in range(count)}
        lines = [json.dumps({"id": name, "prompt": p}) for name, p in self.prompts.items()]
        (self.folder / "in.jsonl").write_text("\n".join(lines))

    def start(self, *options):
        run = Command(self.folder, self.vendor.api_base, self.environment, options)
        self.runs.append(run)
        return run

    def run(self, *options):
        run = self.start(*options)
        assert run.code == 0, run.log
        return run

    @property
    def asked(self):
        return [prompt_of(each) for each in self.vendor.received]

    @property
    def answers(self):
        return {r["custom_id"]: text_of(r) for r in whole(self.folder / "out.jsonl")}

    @property
    def expected(self):
        return {name: f"answer to {prompt}" for name, prompt in self.prompts.items()}

    def work(self, requests):
        """Wait until so many more are asked, or the command has ended."""
        enough = self.vendor.request_count + requests
        until(lambda: self.vendor.request_count >= enough or self.runs[-1].is_over())

    def recorded(self):
        """The lines that have a record now, wherever it is."""
        places = [self.folder / "out.jsonl", *(self.folder / "out.jsonl.parts").glob("*.jsonl")]
        return {record["custom_id"] for place in places for record in whole(place)}

    def snapshot(self):
        """What is recorded, and then how much was asked."""
        return self.recorded(), self.vendor.request_count

    def asked_again(self, snapshot):
        recorded, count = snapshot
        return {self.prompts[name] for name in recorded} & set(self.asked[count:])

    def asked_twice(self):
        return sum(times - 1 for times in Counter(self.asked).values())

    def close(self):
        for run in self.runs:
            run.kill()


def whole(path):
    """The records that a kill has left whole."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:  # moved meanwhile
        return []
    return [json.loads(line) for line in lines]


class Cluster:
    """Two machines, each a raylet on loopback."""

    def __init__(self):
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster = RayCluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE,
                "node_ip_address": "127.0.0.2",  # for 127.0.0.1 Ray takes an address outside
            },
        )
        self.address = self._cluster.address
        self.second: Any = None
        self.add()

    def add(self):
        self.second = self._cluster.add_node(
            num_cpus=1, object_store_memory=OBJECT_STORE, node_ip_address="127.0.0.3"
        )

    def raylet(self):
        return self.second.all_processes["raylet"][0].process.pid

    def lose(self):
        """Kill the raylet of the second machine; its workers notice."""
        os.kill(self.raylet(), signal.SIGKILL)
        self._cluster.remove_node(self.second, allow_graceful=False)

    def close(self):
        self._cluster.shutdown()


def actors(above):
    """The processes that answer shards, of the raylets below a process."""
    return processes(b"ray::_ShardActor", above)


def processes(name, above):
    """Those with these words in their program's name, below a process."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            program = (folder / "cmdline").read_bytes().partition(b"\0")[0]
            if name in program and is_below(int(folder.name), above):
                found.append(int(folder.name))
    return sorted(found)


def is_below(pid, above):
    while pid > 1:
        if pid == above:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


@contextlib.contextmanager
def ray_folder():
    """A short path: those of sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


__all__ = ["KEY", "Cluster", "Office", "actors", "processes", "ray_folder", "until", "whole"]
