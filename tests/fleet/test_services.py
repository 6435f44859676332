"""Two real services, one of two workers, over one real Valkey and vendors that count.

The bug lists of other gateways name most of it: limits that hold for each process (litellm #40291,
#27736), cooldowns that come late at siblings or are shortened (#40025, #40130), reservations that
block a key that has spent nothing (#38647), requests without a price that skip budgets (#35524).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import csv
import itertools
import os
import signal

import httpx
import pytest

from aigateway import AsyncGateway
from aigateway.clock import SYSTEM_CLOCK
from aigateway.fleet.store import STATE_FILE, read_usage
from aigateway.simulator import Fault, Simulator
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.fleet.servers import Cluster, Server
from tests.processes import PATIENCE
from tests.server.callers import bearer, digest
from tests.server.visitors import eventually

pytestmark = pytest.mark.slow

PRICE = 0.01
EACH = 4 * PRICE
"""US dollars of a request: two tokens each way."""

TOML = """
[gateway]
redis_url = "{redis}"
cache_enabled = false
retry_rounds = 0
{gateway}

[server]
workers = {workers}
drain_notice_seconds = 0

{keys}

[[providers]]
provider = "openai"
name = "main"
model = "gpt-4o-mini"
priority = 3
api_key = "k"
api_base = "{main}"
rpm = {rpm}
extra = {{ input_cost_per_token = {price}, output_cost_per_token = {price} }}

[[providers]]
provider = "anthropic"
name = "backup"
model = "claude-haiku-4-5"
priority = 2
api_key = "k"
api_base = "{backup}"
extra = {{ input_cost_per_token = {price}, output_cost_per_token = {price} }}

[[providers]]
provider = "gemini"
name = "own"
model = "own-model"
priority = 1
api_key = "k"
api_base = "{own}"
"""

KEYS = {
    "team": "",
    "fast": "rpm = 60",
    "rich": "budget_usd = 1.0",
    "new": "budget_usd = 25.0",
    "emptied": "rpm = 60",
    "gone": "rpm = 60",
    "stopped": "rpm = 60\nbudget_usd = 1.6",
    "killed": "rpm = 60",
}

OK, TOO_MANY, USED_UP = 200, "rate_limit_exceeded", "insufficient_quota"


@pytest.fixture
def valkey(tmp_path):
    with Server(tmp_path, unix=True) as server:
        yield server


@pytest.fixture
def vendors():
    with Simulator.in_thread() as running:
        yield running


class Pair:
    """Two services, and what they were asked."""

    def __init__(self, services):
        self.services = services
        self.urls = [service.url for service in services]
        self.numbers = itertools.count()

    async def ask(self, place, key="team", **body):
        """Ask over a connection of its own, so that any worker may answer."""
        async with httpx.AsyncClient(timeout=PATIENCE, verify=False) as client:
            body = {"message": f"question {next(self.numbers)}"} | body
            url = f"{self.urls[place]}/chat"
            answer = await client.post(url, json=body, headers=bearer(key))
        return answer.json()["error"]["code"] if answer.is_error else answer.status_code

    async def load(self, count, per_second, key="team", places=(0, 1)):
        """Ask in turn, whatever becomes of the others; return how each request ended."""
        tasks = []
        for _, place in zip(range(count), itertools.cycle(places), strict=False):
            tasks.append(asyncio.create_task(self.ask(place, key)))
            await asyncio.sleep(1 / per_second)
        return await asyncio.gather(*tasks)

    async def metrics(self, place, key="team", accept="application/json"):
        async with httpx.AsyncClient(timeout=PATIENCE, verify=False) as client:
            headers = {"accept": accept, **bearer(key)}
            return await client.get(f"{self.urls[place]}/metrics", headers=headers)

    async def members(self):
        """How many processes each service counts."""
        found = [(await self.metrics(place)).json()["fleet"] for place in (0, 1)]
        return [fleet["members"] * fleet["available"] for fleet in found]

    async def joined(self):
        await eventually(lambda: self._are_members(3))

    async def _are_members(self, count):
        return await self.members() == [count, count]

    def usage(self):
        """US dollars by key, of the files of both."""
        spent: dict[str, float] = collections.defaultdict(float)
        for service in self.services:
            for row in read_usage(service.directory / STATE_FILE, 0):
                spent[row.key] += row.usage.cost_usd
        return spent


@pytest.fixture
def pair(start, valkey, vendors):
    """A maker of both services, which have joined the fleet."""

    async def begin(rpm=100_000, gateway=""):
        keys = [
            f'[[server.keys]]\nname = "{name}"\nsha256 = "{digest(f"sk-{name}")}"\n{limits}'
            for name, limits in KEYS.items()
        ]
        services = [
            start(
                toml=TOML.format(
                    redis=valkey.url,
                    gateway=more,
                    workers=workers,
                    keys="\n\n".join(keys),
                    main=vendors.openai.api_base,
                    backup=vendors.anthropic.api_base,
                    own=vendors.gemini.api_base,
                    rpm=rpm,
                    price=PRICE,
                )
            )
            for workers, more in ((2, ""), (1, gateway))
        ]
        both = await asyncio.to_thread(Pair, services)
        await both.joined()
        return both

    return begin


async def test_a_rate_is_one_rate(pair, vendors):
    both, main, backup = await pair(rpm=100), vendors.openai, vendors.anthropic
    began = SYSTEM_CLOCK.now()

    def minutes():
        return 1 + int((SYSTEM_CLOCK.now() - began) / 60.0)

    counts = collections.Counter(await both.load(110, 60, "fast"))
    while counts[OK] < 54:  # a loaded machine exchanges late what each holds
        counts.update(await both.load(10, 50, "fast"))
    assert set(counts) == {OK, TOO_MANY}
    # The backup answers while the main one seems to hang.
    assert counts[OK] == main.request_count + backup.request_count <= 60 * minutes()
    counts = collections.Counter(await both.load(80, 50))
    while main.request_count < 90:
        counts.update(await both.load(10, 50))
    assert set(counts) == {OK}
    assert main.request_count <= 100 * minutes()


async def test_a_budget_is_one_budget(pair, vendors, launch):
    both = await pair(gateway="default_prices = { input = 10000, output = 10000 }")
    vendors.openai.latency = 0.1
    # $25, and nothing is known of what a request costs.
    ends = await asyncio.gather(*(both.ask(number % 2, "new") for number in range(90)))
    assert ends == [OK] * 90

    # A model without a price: refused, or counted by the default price.
    assert await both.ask(0, "rich", model="own-model") == "no_price"
    assert await both.ask(0, "rich", model="own") == "no_price"
    assert vendors.gemini.request_count == 0
    assert await both.ask(1, "rich", model="own-model") == OK
    before, callers = vendors.openai.request_count, 6

    async def ask_until_refused(number):
        ends = [await both.ask(number % 2, "rich")]
        while ends[-1] != USED_UP:
            ends.append(await both.ask(number % 2, "rich"))
            await asyncio.sleep(0.05)
        return ends

    found = await asyncio.gather(*map(ask_until_refused, range(callers)))
    statuses = collections.Counter(itertools.chain(*found))
    assert set(statuses) <= {OK, TOO_MANY, USED_UP}
    assert statuses[OK] == vendors.openai.request_count - before
    spent = (1 + statuses[OK]) * EACH
    assert 1.0 <= spent <= 1.0 + callers * EACH

    async def figures_are_right():
        for place in (0, 1):
            key = (await both.metrics(place, "rich")).json()["keys"]["rich"]
            text = (await both.metrics(place, accept="text/plain")).text
            if key["spent_usd"] != pytest.approx(spent):
                return False
            assert key["budget_usd"] == 1.0
            assert "\naigateway_fleet_members 3.0\n" in text
        return both.usage()["rich"] == pytest.approx(spent)

    await eventually(figures_are_right)
    for service in both.services:
        service.signal(signal.SIGTERM)
    assert [await asyncio.to_thread(getattr, s, "code") for s in both.services] == [0, 0]
    total = 0.0
    for service in both.services:
        (beside := service.directory / "usage").mkdir()
        env = {"AIGATEWAY_CONFIG": str(service.directory / "aigateway.toml")}
        shown = launch(beside, "usage", "--csv", "--key", "rich", env=env)
        assert await asyncio.to_thread(getattr, shown, "code") == 0, shown.log
        total += sum(
            float(row["cost_usd"]) for row in csv.DictReader(shown.read("out").split("\n"))
        )
    assert total == pytest.approx(spent)


async def test_a_cooldown_holds_for_both_and_is_never_shortened(pair, vendors):
    both, main = await pair(), vendors.openai
    main.latency = 0.3
    # Those that come later ask for less.
    main.behave(Fault.rate_limited(60), *[Fault.rate_limited(1)] * 7, times=8)
    first = asyncio.create_task(both.ask(0))
    await eventually(lambda: main.request_count == 1)
    later = await asyncio.gather(*(both.ask(number % 2) for number in range(7)))
    assert [await first, *later] == [OK] * 8

    async def rests():
        """Whether no worker asks it any more."""
        before = main.request_count
        assert await both.load(12, 100) == [OK] * 12
        return main.request_count == before

    async with asyncio.timeout(PATIENCE):
        await eventually(rests)
    main.recover()
    await asyncio.sleep(1.2)
    assert await rests()


@pytest.mark.proof
async def test_limits_hold_whatever_happens(pair, vendors, valkey):
    """What is in flight, or a second's worth, may be too much; no request fails."""
    both, main = await pair(), vendors.openai

    async def during(key, happen, count=90, least=54):
        """Ask for more than the key may while something happens; return the calls made."""
        before, minute_ends = main.request_count, SYSTEM_CLOCK.now() + 50.0
        loading = asyncio.create_task(both.load(count, 50, key))
        await asyncio.sleep(0.5)
        await happen()
        counts = collections.Counter(await loading)
        await both.joined()
        await asyncio.sleep(1.0)  # what each held apart from the others is known to all
        counts.update(await both.load(40, 50, key))
        # On a loaded machine they exchange what they hold later than that.
        while counts[OK] < least and SYSTEM_CLOCK.now() < minute_ends:
            counts.update(await both.load(10, 50, key))
        assert set(counts) <= {OK, TOO_MANY, USED_UP}
        assert counts[OK] == main.request_count - before
        return counts[OK]

    async def emptied():
        await asyncio.to_thread(valkey.restart)

    async def gone():
        valkey.kill()
        await asyncio.sleep(1.5)
        await asyncio.to_thread(valkey.start)

    async def stopped():
        os.killpg(both.services[0].pid, signal.SIGSTOP)
        await asyncio.sleep(5.0)
        os.killpg(both.services[0].pid, signal.SIGCONT)

    assert 54 <= await during("emptied", emptied) <= 60
    assert 54 <= await during("gone", gone, 130) <= 60
    calls = await during("stopped", stopped, least=36)
    assert 36 <= calls <= 42  # 40 are the budget
    await eventually(lambda: both.usage()["stopped"] == pytest.approx(calls * EACH))

    before = main.request_count
    await both.load(12, 50, "killed")
    os.killpg(both.services[0].pid, signal.SIGKILL)
    assert set(await both.load(80, 50, "killed", (1,))) == {OK, TOO_MANY}
    assert 45 <= main.request_count - before <= 60


async def test_two_gateways_share_a_rate_through_a_cluster(tmp_path):
    vendor, configs = ScriptedVendor(), scripted_configs("a", "b")
    configs[0] = configs[0].model_copy(update={"rpm": 40})
    with Cluster(tmp_path) as cluster:
        async with contextlib.AsyncExitStack() as stack:
            gateways = [
                await stack.enter_async_context(
                    AsyncGateway(configs, vendor=vendor, redis_url=cluster.url)
                )
                for _ in range(2)
            ]
            for gateway in gateways:
                await gateway.warmup()
            await eventually(
                lambda: all(g.get_metrics()["fleet"]["members"] == 2 for g in gateways)
            )
            for number in range(70):
                await gateways[number % 2].chat(f"question {number}")
                await asyncio.sleep(0.02)
            assert 36 <= vendor.called("a") <= 40
