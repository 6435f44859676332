"""Several processes as one service: they share a port, a file of settings, figures and orders."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from aigateway.server.process.configuration import read_configuration
from aigateway.server.process.reload import FileWatch
from aigateway.server.process.supervisor import Supervisor
from tests.processes import PATIENCE, Running, until
from tests.server.visitors import eventually, once

pytestmark = pytest.mark.slow

TOML = '[server]\nworkers = 3\n[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "k"\n'
KEYED = TOML + f'[[server.keys]]\nname = "x"\nsha256 = "{"0" * 64}"\n'


async def pids_seen(port: int) -> set[int]:
    """Which processes answer, over connections of their own."""
    answers = await asyncio.gather(*(once(port, "/t/work?id=_&seconds=0.02") for _ in range(60)))
    return {told["pid"] for _, _, told in answers}


async def everybody(port: int, count: int) -> set[int]:
    """The processes, as soon as there are that many."""
    while True:
        _, _, told = await once(port, "/t/pids")
        if len(told["running"]) == count:
            return set(told["running"])
        await asyncio.sleep(0.02)


async def replaced(port: int, gone: set[int]) -> set[int]:
    """The processes, as soon as there are three and none of those."""
    while True:
        found = await everybody(port, 3)
        if not found & gone:
            return found


async def test_all_answer_and_each_knows_of_all(start):
    service = start(toml=TOML)
    port = await asyncio.to_thread(lambda: service.port)
    pids = await everybody(port, 3)
    assert service.pid not in pids
    seen: set[int] = set()
    while seen != pids:
        seen |= await pids_seen(port)
        assert seen <= pids


async def test_one_that_dies_is_replaced_and_what_it_did_still_counts(start):
    service = start(toml=TOML)
    port = await asyncio.to_thread(lambda: service.port)
    before = await everybody(port, 3)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: "worker.died" in service.log)
    after = await replaced(port, {victim})
    assert victim not in after
    assert len(after & before) == 2
    _, _, told = await once(port, "/t/pids")
    assert told["exited"] == [victim]
    (line,) = [line for line in service.log.splitlines() if "worker.died" in line]
    assert f"(pid {victim}) died (SIGKILL)" in line
    assert " ERROR " in line


async def test_an_order_reaches_all_and_those_that_come_later(start):
    service = start(toml=TOML)
    port = await asyncio.to_thread(lambda: service.port)
    pids = await everybody(port, 3)
    await once(port, "/t/order?subject=circuit%20a/b&content=open")
    await once(port, "/t/order?subject=circuit%20a/b&content=closed")
    await obeyed_by(port, pids, {"circuit a/b": "closed"})
    os.kill(min(pids), signal.SIGKILL)
    await asyncio.to_thread(until, lambda: "worker.died" in service.log)
    after = await replaced(port, {min(pids)})
    await obeyed_by(port, after, {"circuit a/b": "closed"})


async def obeyed_by(port: int, pids: set[int], orders: dict[str, str]) -> None:
    obedient: set[int] = set()
    while obedient != pids:
        answers = await asyncio.gather(*(once(port, "/t/obeyed") for _ in range(30)))
        obedient |= {told["pid"] for _, _, told in answers if told["obeyed"] == orders}


async def test_one_that_is_told_to_end_finishes_and_is_replaced(start):
    service = start(toml=TOML)
    port = await asyncio.to_thread(lambda: service.port)
    before = await everybody(port, 3)
    long = asyncio.create_task(once(port, "/t/work?id=long&seconds=0.5"))
    await eventually(lambda: "long" in service.read("accepted"))
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    assert (await long)[0] == 200
    await replaced(port, before)
    assert service.log.count("worker.ended") == 3
    assert "worker.died" not in service.log


async def test_without_the_parent_they_end_too(start):
    service = start(toml=TOML, AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0")
    port = await asyncio.to_thread(lambda: service.port)
    pids = await everybody(port, 3)
    service.signal(signal.SIGKILL)
    await asyncio.to_thread(until, lambda: not any(is_alive(pid) for pid in pids))
    assert service.log.count("worker.orphaned") == 3


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_signal_to_the_whole_group_is_one_signal(start):
    service = start(toml=TOML, AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0.1")
    port = await asyncio.to_thread(lambda: service.port)
    await everybody(port, 3)
    long = asyncio.create_task(once(port, "/t/work?id=long&seconds=0.5"))
    await eventually(lambda: "long" in service.read("accepted"))
    os.killpg(service.pid, signal.SIGTERM)
    assert (await long)[0] == 200
    assert await asyncio.to_thread(lambda: service.code) == 0
    assert "worker.died" not in service.log


def test_nobody_else_may_look_where_they_meet(start, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    service = start(toml=TOML, TMPDIR=str(meeting), AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0")
    assert service.url
    (directory,) = meeting.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    service.signal(signal.SIGTERM)
    assert service.code == 0
    assert list(meeting.iterdir()) == []


async def test_what_a_killed_service_left_is_removed_at_the_next_start(start, tmp_path):
    meeting, elsewhere = tmp_path / "meeting", tmp_path / "elsewhere"
    meeting.mkdir()
    elsewhere.mkdir()
    foreign = {meeting / "aigateway-other", meeting / "aigateway-workers-link"}
    (meeting / "aigateway-other").mkdir()
    (meeting / "aigateway-workers-link").symlink_to(elsewhere)

    async def started() -> tuple[Running, Path]:
        before = set(meeting.iterdir())
        service = start("--workers", "2", toml=TOML, TMPDIR=str(meeting))
        await asyncio.to_thread(lambda: service.port)
        (new,) = set(meeting.iterdir()) - before
        return service, new

    killed, left = await started()
    pids = await everybody(killed.port, 2)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # they outlive their parent for a while
    killed.signal(signal.SIGKILL)
    await asyncio.to_thread(until, lambda: not is_alive(killed.pid))
    living, used = await started()
    assert left.exists(), "its workers live"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: not any(is_alive(pid) for pid in pids))
    _, last = await started()
    assert set(meeting.iterdir()) == {used, last, *foreign}
    assert len(await everybody(living.port, 2)) == 2


@pytest.mark.parametrize(
    ("toml", "arguments", "words"),
    [
        ("[server]\nprot = 1\n", (), 'did you mean "port"'),
        ('[server]\nhost = "0.0.0.0"\n', (), "make a key with `aigateway key`"),
        ("[gateway]\ntimeout = -1\n", (), "timeout"),
        ("", (), "OPENAI_API_KEY"),
        (KEYED, ("--host", "no.such.host.invalid"), "not an address of this machine"),
        (KEYED, ("--host", "192.0.2.1", "--port", "0"), "choose another with --host"),
        ("", ("--simulate", "--workers", "2"), "--workers 1"),
        ("", ("--config", "missing.toml"), "cannot be read"),
    ],
)
def test_what_cannot_work_is_said_before_anything_listens(start, toml, arguments, words):
    service = start(*arguments, toml=toml)
    assert service.code == 2
    assert words in service.log
    assert "Traceback" not in service.log
    assert "listens" not in service.read("out")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken(start, workers):
    first = start("--simulate")
    second = start("--port", str(first.port), "--workers", workers, toml=TOML)
    assert second.code == 2
    assert f"cannot listen at port {first.port} (Address already in use)" in second.log


def test_when_not_even_the_first_can_start_it_gives_up(start):
    service = start(toml=TOML, BROKEN="1")
    assert service.code == 1
    assert service.log.count("worker.never_ready") == 1
    assert "RuntimeError: as it was told" in service.log
    assert "listens" not in service.read("out")


async def test_one_that_cannot_be_replaced_yet_takes_no_other_along(start):
    service = start(toml=TOML, AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS="0")
    port = await asyncio.to_thread(lambda: service.port)
    before = await everybody(port, 3)
    _, most = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (3, most))  # as many as it has, or less
    os.kill(min(before), signal.SIGKILL)
    await asyncio.to_thread(until, lambda: "worker.not_started" in service.log)
    _, _, told = await once(port, "/t/pids")
    assert before - {min(before)} <= set(told["running"])
    assert "cannot start (Too many open files); next try in 1 s" in service.log
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (most, most))
    while not await pids_seen(port) - before:
        assert not service.read("code")
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(lambda: service.code) == 0
    assert "Traceback" not in service.log


def test_when_the_first_cannot_even_be_forked_it_says_so_and_gives_up(
    tmp_path, monkeypatch, caplog
):
    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "aigateway.toml").write_text(TOML)
    monkeypatch.setattr(os, "fork", refused)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with socket.socket() as listener:
        supervisor = Supervisor(
            read_configuration({}),
            lambda: read_configuration({}),
            lambda *_: 0,
            listener=listener,
            directory=tmp_path,
            file=FileWatch(tmp_path / "aigateway.toml"),
            ready=lambda: None,
        )
        with caplog.at_level(logging.ERROR):
            code = supervisor.run()
    assert code == 1
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "worker.not_started",
        "worker.never_ready",
    ]
    assert "Resource temporarily unavailable" in caplog.text
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_changes_while_it_starts_is_seen(start, workers):
    changed = TOML.replace('"m"', '"another"') + "[gateway]\ntimeout = 7\n"
    service = start("--workers", workers, toml=TOML, CHANGED=changed)
    assert service.url
    until(lambda: service.log.count("reload.done") == int(workers))
    assert "providers added openai/another; removed openai/m" in service.log
    service.signal(signal.SIGTERM)
    assert service.code == 0


WATCHED = """
import os
import sys
from importlib.abc import MetaPathFinder


class Watch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "litellm":
            with open(os.environ["IMPORTS"], "a") as log:
                log.write(f"{os.getpid()}\\n")


sys.meta_path.insert(0, Watch())
"""


@pytest.mark.proof
def test_workers_and_those_that_replace_them_share_litellm_with_the_parent(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    (tmp_path / "aigateway.toml").write_text(TOML.replace("workers = 3", "workers = 2\nport = 0"))
    imports = tmp_path / "imports"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "IMPORTS": str(imports)}
    command = [sys.executable, "-m", "aigateway", "serve"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as service:
        try:
            assert service.stdout is not None
            url = service.stdout.readline().split("listens at ")[1].split()[0]
            children = Path(f"/proc/{service.pid}/task/{service.pid}/children")

            def workers():
                return set(map(int, children.read_text().split()))

            first = until(lambda: workers() if len(workers()) == 2 else None)
            os.kill(min(first), signal.SIGKILL)
            until(lambda: len(workers() - first) == 1 and len(workers()) == 2)
            for _ in range(8):  # of both
                httpx.get(f"{url}/ready", timeout=PATIENCE).raise_for_status()
            assert imports.read_text().split() == [str(service.pid)]
        finally:
            service.terminate()
            service.wait(PATIENCE)
