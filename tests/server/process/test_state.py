"""What a service keeps over a restart: real processes, killed under load."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import itertools
import json
import math
import os
import random
import resource
import signal
import sqlite3
import sys
from itertools import islice

import httpx
import pytest

from aigateway import AsyncGateway
from aigateway.clock import SYSTEM_CLOCK
from aigateway.fleet.store import STATE_FILE, begin_store, read_usage
from aigateway.server.process.state import KeptState
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.simulator import Simulator
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs
from tests.processes import PATIENCE, until
from tests.server.callers import api_key, bearer, digest
from tests.server.visitors import eventually

MODEL = "openai/gpt-4o-mini"

TOML = """
[server]
workers = {workers}
admin_sha256 = "{admin}"
drain_notice_seconds = 0
{more}

[[server.keys]]
name = "team"
sha256 = "{team}"

[[server.keys]]
name = "rich"
sha256 = "{rich}"
budget_usd = 1.0

[[server.keys]]
name = "fast"
sha256 = "{fast}"
rpm = 20

[[providers]]
provider = "openai"
model = "gpt-4o-mini"
priority = 1
api_key = "k"
api_base = "{base}"
extra = {{ input_cost_per_token = 0.01, output_cost_per_token = 0.01 }}

[[providers]]
provider = "openai"
name = "second"
model = "gpt-4o"
api_key = "k"
api_base = "{base}"
extra = {{ input_cost_per_token = 0.01, output_cost_per_token = 0.01 }}
"""


@pytest.fixture
def vendor():
    with Simulator.in_thread() as simulator:
        yield simulator.openai


@pytest.fixture
def serve(start, vendor, tmp_path):
    """Start a service; all of a test have one directory for their state."""

    def begin(workers=1, **more):
        more = {"state_dir": str(tmp_path / "state")} | more
        return start(
            toml=TOML.format(
                workers=workers,
                admin=digest("sk-admin"),
                **{key: digest(f"sk-{key}") for key in ("team", "rich", "fast")},
                base=vendor.api_base,
                more="\n".join(f"{name} = {json.dumps(value)}" for name, value in more.items()),
            )
        )

    return begin


async def listening(service):
    """Wait until it listens; return its URL."""
    return await asyncio.to_thread(lambda: service.url)


def caller(url=""):
    """A client with connections of its own; to read certificates takes a tenth of a second."""
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=False)


async def chat(url, text="hi", key="team", **body):
    async with caller(url) as client:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]} | body
        answer = await client.post("/v1/chat/completions", json=body, headers=bearer(key))
        assert answer.status_code == 200, answer.text
        return answer


async def force(url, provider, state):
    async with caller(url) as client:
        path = f"/admin/providers/{provider}/circuit"
        answer = await client.post(path, json={"state": state}, headers=bearer("admin"))
        assert answer.status_code == 200, answer.text


async def workers(url):
    """The processes that answer."""
    async with caller(url) as client:
        return (await client.get("/t/pids", headers=bearer("team"))).json()["running"]


def kill(service):
    os.killpg(service.pid, signal.SIGKILL)


def used(directory):
    """The sum of all usage: answered requests, and US dollars."""
    rows = read_usage(directory / STATE_FILE, 0) if (directory / STATE_FILE).exists() else []
    return sum(row.usage.answered for row in rows), sum(row.usage.cost_usd for row in rows)


# ── killed under load ────────────────────────────────────────────────────────────────────────────


class Load:
    """Callers that ask all the time, and know how many answers came, and what each cost."""

    def __init__(self):
        self.url = ""
        self.answers = 0
        self.cost = 0.0  # of one
        self.numbers = itertools.count()
        self._tasks = []
        self._ending = False

    def begin(self, callers):
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(callers)]

    async def go_on(self, answers, state, seconds):
        """Let it go on until so many answers more are accounted for, and then for so long.

        Returns how many those were and all before them.
        """
        enough = self.answers + answers
        await eventually(lambda: self.answers >= enough and used(state)[0] >= enough)
        await asyncio.sleep(seconds)
        return enough

    async def end(self):
        """Wait for the last answers: a call that is left has a price of its own."""
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _ask(self):
        while not self._ending:
            with contextlib.suppress(httpx.TransportError):
                async with caller() as client:
                    while not self._ending:
                        await self._ask_once(client)
            await asyncio.sleep(0.01)  # it was killed

    async def _ask_once(self, client):
        number = next(self.numbers)
        prompt = [{"role": "user", "content": f"question {number}"}]  # all of one length
        body = {"model": "auto", "messages": prompt, "stream": number % 3 == 0}
        url = f"{self.url}/v1/chat/completions"
        answer = await client.post(url, json=body, headers=bearer("team"))
        if answer.status_code == 200:
            assert not body["stream"] or answer.text.endswith("data: [DONE]\n\n")
            self.cost = float(answer.headers.get("x-aigateway-cost", self.cost))
            self.answers += 1


@pytest.mark.slow
async def test_a_kill_costs_the_latest_accounts_and_never_the_file(
    serve, vendor, tmp_path, request
):
    state, callers, load, kills = tmp_path / "state", 8, Load(), request.config.getoption("--kills")
    service = serve(workers=3)
    load.url = await listening(service)
    load.begin(callers)
    chance = random.Random(7)
    lost = 0
    for number in range(kills):
        accounted = await load.go_on(50, state, chance.random() / 2)
        some = await workers(load.url)
        if number % 2:
            os.kill(chance.choice(some), signal.SIGKILL)
        else:
            kill(service)
        lost += load.answers - accounted + callers  # each may have an answer that is not read yet
        if number % 2:
            continue
        with contextlib.closing(sqlite3.connect(state / STATE_FILE)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert used(state)[0] >= accounted
        service = serve(workers=3)
        load.url = await listening(service)
    await load.end()
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(lambda: service.code) == 0
    answered, cost = used(state)
    print(
        f"{kills} kills: {load.answers} answers, {answered} accounted for, {lost} may be lost;"
        f" the vendor got {vendor.request_count}"
    )
    assert load.answers - lost <= answered <= vendor.request_count
    # A call may be written, and then its process is killed before its request has ended.
    calls = cost / load.cost
    assert answered - 0.01 <= calls <= answered + callers * kills + 0.01
    assert list(state.glob("*damaged*")) == []


# ── one account for all ──────────────────────────────────────────────────────────────────────────

EACH = 0.04
"""US dollars for two tokens each way."""


async def statuses(url, key, numbers, *, at_once):
    """Ask so often, each time over a connection of its own; return how each request ended."""

    async def ask(number):
        async with caller(url) as client:
            body = {"message": f"question {number}"}
            answer = await client.post("/chat", json=body, headers=bearer(key))
            return answer.json()["error"]["code"] if answer.is_error else answer.status_code

    if at_once:
        return await asyncio.gather(*map(ask, numbers))
    return [await ask(number) for number in numbers]


@pytest.mark.slow
async def test_workers_and_later_ones_share_one_budget_and_one_rate(serve, tmp_path):
    numbers, began = itertools.count(), SYSTEM_CLOCK.now()

    def most():
        """The calls of "fast" that a slow machine may have made by now: 20 a minute."""
        return 20 * (1 + int((SYSTEM_CLOCK.now() - began) / 60.0))

    service = serve(workers=3)
    url = await listening(service)
    assert await statuses(url, "rich", islice(numbers, 10), at_once=False) == [200] * 10
    rates = await statuses(url, "fast", islice(numbers, 30), at_once=True)
    assert rates.count(200) <= most()
    await eventually(lambda: min(booked(tmp_path), recorded(tmp_path)) > 9.5 * EACH)
    kill(service)

    service = serve(workers=2)
    url = await listening(service)
    rates += await statuses(url, "fast", islice(numbers, 30), at_once=True)
    assert rates.count(200) <= most()
    assert set(rates) == {200, "rate_limit_exceeded"}
    # Workers refuse while another holds the rest, and go on when it has given that back. What the
    # killed ones held (each up to a sixteenth) counts on, so it is no matter who says that it ends.
    refused = {"insufficient_quota", "rate_limit_exceeded"}
    ends: list[object] = []
    while len(ends) < 40 or not refused.issuperset(ends[-40:]):
        ends += await statuses(url, "rich", islice(numbers, 1), at_once=False)
        await asyncio.sleep(0.1)
    # 25 are a dollar. The killed ones may have begun one more, and so may each of these. What they
    # held counts for a minute, and a last request begins where most of the rest is held: so as much
    # again may stay unused meanwhile.
    unused = 2 * math.ceil(3 / 16 / EACH)
    print(f"{ends.count(200)} answers")
    assert 15 - unused <= ends.count(200) <= 16
    await asyncio.to_thread(lambda: (service.signal(signal.SIGTERM), service.code))

    url = await listening(serve())
    assert set(await statuses(url, "rich", islice(numbers, 1), at_once=True)) <= refused
    spent = recorded(tmp_path)
    assert spent == pytest.approx(booked(tmp_path))
    assert 1.0 - (unused + 1) * EACH <= spent <= 1.0 + 2 * EACH


def booked(tmp_path):
    """The budget of "rich", as the ledger has it, in US dollars."""
    question = "SELECT account FROM accounts WHERE name LIKE '%rich%'"
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / STATE_FILE)) as db:
        accounts = [json.loads(text)[0] for (text,) in db.execute(question)]
    return sum(units for buckets in accounts for _, units in buckets) / 1e6


def recorded(tmp_path):
    """What "rich" has spent, as the usage has it, in US dollars."""
    rows = read_usage(tmp_path / "state" / STATE_FILE, 0)
    return sum(row.usage.cost_usd for row in rows if row.key == "rich")


# ── over a restart ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
async def test_a_restart_forgets_no_order_and_no_usage(serve, tmp_path, launch):
    service, other = serve(workers=2), serve()  # two services may use one directory
    url = await listening(service)
    await chat(await listening(other), "one")
    other.signal(signal.SIGTERM)
    assert await asyncio.to_thread(lambda: other.code) == 0
    await chat(url, "two")
    await force(url, MODEL, "open")
    await force(url, "second", "open")
    await force(url, "second", "auto")
    await eventually(lambda: used(tmp_path / "state")[0] == 2)
    assert "state." not in service.log + other.log
    kill(service)

    service = serve()  # one process now
    url = await listening(service)
    (line,) = [line for line in service.log.splitlines() if "state.circuits_forced" in line]
    assert f"restart: {MODEL} open." in line
    assert (await chat(url, "three")).headers["x-aigateway-provider"] == "second"
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(lambda: service.code) == 0

    shown = launch_usage(launch, service.directory, "--csv")
    rows = list(csv.DictReader(shown.splitlines()))
    assert [(row["key"], row["model"], row["requests"]) for row in rows] == [
        ("team", "gpt-4o", "1"),
        ("team", "gpt-4o-mini", "2"),
    ]
    assert json.loads(launch_usage(launch, service.directory, "--json", "--key", "team"))
    assert " 3 " in launch_usage(launch, service.directory).splitlines()[-1]

    toml = service.directory / "aigateway.toml"  # the provider that was forced is gone
    toml.write_text(toml.read_text().replace('model = "gpt-4o-mini"', 'model = "m3"'))
    service = launch(service.directory, "serve", "--port", "0", env={})
    await asyncio.to_thread(until, lambda: "m3" in service.read("out"))
    assert service.log.count("state.circuits_forced") == 1  # of the run before


def launch_usage(launch, directory, *arguments):
    """Run `aigateway usage` there; return what it prints."""
    beside = directory / f"usage{len(list(directory.iterdir()))}"
    beside.mkdir()
    process = launch(
        beside, "usage", *arguments, env={"AIGATEWAY_CONFIG": str(directory / "aigateway.toml")}
    )
    assert process.code == 0, process.log
    return process.read("out")


@pytest.mark.slow
async def test_what_cannot_be_kept_is_one_line_and_stops_no_request(serve):
    service = serve(workers=2, state_dir="/dev/null/here")
    url = await listening(service)
    await chat(url)
    assert (await statuses(url, "fast", range(30), at_once=True)).count(200) <= 20
    await force(url, MODEL, "open")
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(lambda: service.code) == 0
    assert [
        line.count("state.not_kept") for line in service.log.splitlines() if "state." in line
    ] == [1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
async def test_a_full_disk_stops_no_request_and_is_caught_up_with(serve, tmp_path):
    service = serve()
    url = await listening(service)
    await chat(url, "one")
    await eventually(lambda: used(tmp_path / "state")[0] == 1)
    log = tmp_path / "state" / f"{STATE_FILE}-wal"
    before = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (log.stat().st_size, before[1]))
    await chat(url, "two")
    await asyncio.to_thread(until, lambda: "state.not_written" in service.log)
    await chat(url, "three")
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, before)
    await eventually(lambda: used(tmp_path / "state")[0] == 3)
    lines = [line for line in service.log.splitlines() if "state." in line]
    assert ["state.not_written" in lines[0], "state.kept_again" in lines[1]] == [True, True]
    assert len(lines) == 2


# ── what was learned ─────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def remembering(path, clock, vendor=None):
    """A service in this process that keeps its state there."""
    state = KeptState(path, clock)
    settings = ServerSettings(keys=(api_key("team", budget_usd=5),))
    async with AsyncGateway(
        scripted_configs("a"), vendor=vendor or ScriptedVendor(), clock=clock, hooks=[state.usage]
    ) as gateway:
        await gateway.warmup()
        service = Service(gateway, settings, clock)
        await state.begin(service)
        yield service
    await state.aclose()


async def answer_slowly(service, clock, seconds, times):
    """Have the vendor answer after so long."""

    async def answer():
        await clock.sleep(seconds)
        return "late"

    for number in range(times):
        service.gateway._make_client.script("a", answer)
        asking = asyncio.create_task(service.gateway.chat(f"{seconds} {number}", cache=False))
        await clock.advance(seconds)
        await asking


async def test_usage_is_written_within_a_second(tmp_path):
    clock, path = FakeClock(), tmp_path / STATE_FILE
    begin_store(path, clock)
    async with remembering(path, clock) as service:
        await service.gateway.chat("hi")
        assert used(tmp_path)[0] == 0
        await clock.advance(1.0)
        await eventually(lambda: used(tmp_path)[0] == 1)  # a thread writes it


async def test_prices_and_latencies_outlive_a_restart_and_give_way_to_new_ones(tmp_path):
    clock, path = FakeClock(), tmp_path / STATE_FILE
    begin_store(path, clock)
    name = ("a", scripted_configs("a")[0].model, "chat", "answers")
    async with remembering(path, clock) as service:
        await answer_slowly(service, clock, 0.5, 20)
        service.access.restore_prices({("team", "m"): 0.25, ("team", ""): 0.5, ("gone", "m"): 9.0})
        assert service.access.usual_prices() == {("team", "m"): 0.25, ("team", ""): 0.5}
    async with remembering(path, clock) as service:
        assert service.access.usual_prices() == {("team", "m"): 0.25, ("team", ""): 0.5}
        usual, p95 = service.gateway.usual_latencies()[name]
        assert (round(usual, 1), p95) == (0.5, 0.5)
        times = next(iter(service.gateway._roster)).chat.answers
        assert not times.is_slow(9.0, 5.0)  # a process that has just begun is slow itself
        await clock.advance(10.0)
        assert times.is_slow(9.0, 5.0)
        await answer_slowly(service, clock, 2.0, 20)
        usual, p95 = service.gateway.usual_latencies()[name]
        assert (round(usual, 1), p95) == (2.0, 2.0)
    await clock.advance(90_000)
    async with remembering(path, clock) as service:
        assert service.gateway.usual_latencies() == {}
        assert service.access.usual_prices() == {("team", "m"): 0.25, ("team", ""): 0.5}
