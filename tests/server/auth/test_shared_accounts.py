"""Keys whose limits several processes share."""

import asyncio
import random
from typing import Any

import httpx
import pytest

from aigateway import AsyncGateway
from aigateway.fleet.fleet import Fleet
from aigateway.fleet.leases import SharedRates
from aigateway.fleet.ledger import MemoryLedger
from aigateway.resilience.rates import RateLimits
from aigateway.server.auth.keys import Access
from aigateway.server.http.errors import Refusal
from aigateway.server.service import Service
from aigateway.settings import ApiKey, GatewaySettings, ServerSettings
from aigateway.telemetry.merge import merge_metrics
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer, caller_by, digest
from tests.server.running import running

HI = {"messages": [{"role": "user", "content": "hi"}]}


class Workers:
    """Several processes with the same keys, over one ledger on virtual time."""

    def __init__(self, *keys, many=2):
        self.clock = FakeClock(wall=86_400.0 * 20_000 + 3600)
        self.ledger = MemoryLedger(self.clock)
        settings = ServerSettings(keys=keys, workers=many)
        self.fleets = [
            Fleet(GatewaySettings(), self.clock, ledger=self.ledger) for _ in range(many)
        ]
        for fleet in self.fleets:
            fleet.join(lambda _: None)
        self.accesses = [Access(settings, self.clock, fleet.leases) for fleet in self.fleets]

    async def ask(self, number, cost=0.0, *, estimate=None, takes=0.01, gap=0.2):
        access = self.accesses[number]
        caller = caller_by(access, bearer("red"))
        waiting = asyncio.ensure_future(access.renew(caller, "m", estimate))
        while not waiting.done():
            await self.clock.advance(0.005)
        with access.begin(caller, "m", estimate) as use:
            await self.clock.advance(takes)
            use.on_cost(cost)
        await self.clock.advance(gap)

    async def close(self):
        for fleet in self.fleets:
            await fleet.leave()


async def test_a_rate_is_not_divided_and_not_multiplied():
    """litellm #40291, #27736."""
    workers = Workers(api_key("red", rpm=6))
    for _ in range(4):
        await workers.ask(0)  # one worker may have more than its half
    await workers.clock.advance(2.0)
    for _ in range(2):
        await workers.ask(1)
    await workers.clock.advance(1.0)
    for number in (0, 1):
        with pytest.raises(Refusal) as caught:
            await workers.ask(number)
        assert "6 requests per minute" in str(caught.value)
        assert 50 < int(caught.value.headers["Retry-After"]) <= 61
    await workers.close()


async def test_a_budget_is_one_budget():
    workers = Workers(api_key("red", budget_usd=1.0))
    for number in (0, 1, 0, 1):
        await workers.ask(number, 0.2)
    await workers.clock.advance(1.0)
    for access in workers.accesses:
        (usage,) = access.usage()
        assert usage.spent_usd == pytest.approx(0.8)
        assert usage.budget_usd == 1.0
    await workers.ask(0, 0.3)
    await workers.clock.advance(1.0)
    for number in (0, 1):
        with pytest.raises(Refusal) as caught:
            await workers.ask(number)
        assert caught.value.code == "insufficient_quota"
    await workers.close()


@pytest.mark.parametrize("gap", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("many", [2, 4])
async def test_calls_one_by_one_exceed_a_budget_by_the_last_one_at_most(many, gap):
    workers, price = Workers(api_key("red", budget_usd=0.001), many=many), 0.00003
    draw, answered, codes = random.Random(many), 0, []
    await workers.clock.advance(1.0)
    for _ in range(50):
        try:
            await workers.ask(draw.randrange(many), price, estimate=lambda: price, gap=gap)
            answered += 1
        except Refusal as refusal:
            codes.append(refusal.code)
            await workers.clock.advance(1.0)  # as it says at least
    await workers.close()
    assert answered == 34  # the last of which costs more than is left
    assert codes[-1] == "insufficient_quota"


@pytest.mark.parametrize("per_second", [3, 30, 300])
async def test_calls_at_once_exceed_a_budget_by_the_last_one_at_most(per_second):
    workers, price, answered = Workers(api_key("red", budget_usd=0.0001), many=4), 0.00003, 0
    draw = random.Random(per_second)
    await workers.clock.advance(1.0)

    async def ask():
        nonlocal answered
        access = workers.accesses[draw.randrange(4)]
        caller = caller_by(access, bearer("red"))
        await access.renew(caller, "m", lambda: price)
        with access.begin(caller, "m", lambda: price) as use:
            await workers.clock.sleep(draw.choice((0.01, 0.5, 2.0)))
            use.on_cost(price)
            answered += 1

    asking = []
    for _ in range(40):
        asking.append(asyncio.ensure_future(ask()))
        await workers.clock.advance(draw.expovariate(per_second))
    await workers.clock.advance(3.0)
    ends = await asyncio.gather(*asking, return_exceptions=True)
    await workers.close()
    assert {type(end) for end in ends} == {type(None), Refusal}
    assert 3 <= answered <= 4


@pytest.mark.parametrize("idle", [0.1, 0.6])
@pytest.mark.parametrize(
    ("many", "budget", "spent"), [(4, 0.1, 0.098), (4, 0.1, 0.0999), (2, 1.0, 0.98)]
)
async def test_the_rest_of_a_budget_begins_wherever_it_is_asked_for(many, budget, spent, idle):
    workers = Workers(api_key("red", budget_usd=budget), many=many)
    codes: list[str | None] = []
    await workers.clock.advance(1.0)
    await workers.ask(0, spent, estimate=lambda: 0.09, takes=0.3, gap=idle)
    while len(codes) < 10:
        try:
            await workers.ask(1 + len(codes) % (many - 1), estimate=lambda: 0.09)
            break
        except Refusal as refusal:
            codes.append(refusal.code)
            await workers.clock.advance(1.0)
    await workers.close()
    assert len(codes) <= 2
    assert set(codes) <= {"rate_limit_exceeded"}


@pytest.mark.parametrize("many", [2, 4])
async def test_a_key_without_calls_left_hears_of_it_wherever_it_asks(many):
    """Calls that other workers have begun a moment ago count in `Retry-After`."""
    workers, turns, retries = Workers(api_key("red", rpm=20), many=many), 0, []
    await workers.clock.advance(1.0)
    for turns in range(20):
        await workers.ask(turns % many, gap=0.0)
    await workers.clock.advance(0.03)
    for number in range(many):
        with pytest.raises(Refusal) as caught:
            await workers.ask(number)
        retries.append(int(caught.value.headers["Retry-After"]))
    await workers.close()
    assert min(retries) > 50, retries


async def test_a_budget_is_not_blocked_before_anything_is_spent():
    """litellm #38647: worst-case reservations blocked a $25 key at $0."""
    workers = Workers(api_key("red", budget_usd=25.0), many=4)
    out = []
    for access in workers.accesses:
        caller = caller_by(access, bearer("red"))
        for _ in range(25):
            await asyncio.gather(access.renew(caller, "m"), workers.clock.advance(0.02))
            out.append(access.begin(caller, "m"))
    assert len(out) == 100  # $10 at most, as far as is known
    await workers.close()


@pytest.mark.parametrize("budget", [0.1, 1.0, 5.0])
async def test_a_burst_of_a_new_key_gets_what_the_budget_covers_wherever_it_arrives(budget):
    """Each may cost a hundredth of the budget; all arrive at once, and at one of three workers."""
    workers = Workers(api_key("red", budget_usd=budget), many=3)
    access, out = workers.accesses[0], []
    caller = caller_by(access, bearer("red"))

    async def begin():
        await access.renew(caller, "m", lambda: budget / 100)
        out.append(access.begin(caller, "m", lambda: budget / 100))

    asking = asyncio.gather(*(begin() for _ in range(130)), return_exceptions=True)
    await workers.clock.advance(0.2)
    assert 80 <= len(out) <= 100
    refused = [each for each in await asking if each is not None]
    assert len(refused) == 130 - len(out)
    assert {each.code for each in refused if isinstance(each, Refusal)} == {"rate_limit_exceeded"}
    await workers.close()


def test_a_shared_account_is_not_summed_over_workers():
    def report(shared, spent):
        key = {"spent_usd": spent, "budget_usd": 8, "in_flight": 1, "shared": shared}
        return {"providers": {}, "keys": {"red": key}}

    def merged(*reports, exited=()):
        return merge_metrics(reports, exited)["keys"]["red"]

    own = [report(False, 1.0), report(False, 0.5)]
    assert merged(*own) == {"spent_usd": 1.5, "budget_usd": 16, "in_flight": 2}
    shared = [report(True, 1.0), report(True, 0.9)]
    expected = {"spent_usd": 1.0, "budget_usd": 8, "in_flight": 2}
    assert merged(*shared, exited=[report(True, 0.8)]) == expected


async def test_a_late_answer_is_no_refusal(monkeypatch):
    """Nothing was used, so nothing is refused, and no request waits for long."""
    workers = Workers(api_key("red", rpm=60, budget_usd=1.0), many=1)
    await workers.clock.advance(1.0)
    leases: Any = workers.fleets[0].leases
    access: Any = workers.accesses[0]

    async def hang(*_):
        await workers.clock.sleep(1e6)

    monkeypatch.setattr(workers.ledger, "exchange", hang)
    caller = caller_by(access, bearer("red"))
    waiting = asyncio.ensure_future(access.renew(caller, "m"))
    await workers.clock.advance(0.051)
    assert waiting.done()
    assert not leases.is_alone
    with access.begin(caller, "m") as use:
        use.on_cost(0.01)
    monkeypatch.undo()
    await workers.close()


async def test_a_renamed_key_has_an_account_of_its_own():
    workers = Workers(api_key("red", rpm=2, budget_usd=1.0), many=1)
    red = api_key("red", rpm=2, budget_usd=1.0)
    renamed = ApiKey(name="blue", sha256=red.sha256, rpm=2, budget_usd=1.0)
    anew = ApiKey(name="red", sha256=digest("new"), rpm=2, budget_usd=1.0)
    heir = workers.accesses[0].successor(
        ServerSettings(keys=[renamed, anew]), workers.fleets[0].leases
    )
    workers.accesses = [heir]
    for _ in range(2):
        await workers.ask(0, 0.6)  # by the secret of "blue" now
    await workers.clock.advance(1.0)
    spent = {usage.name: usage.spent_usd for usage in heir.usage()}
    assert spent == {"blue": pytest.approx(1.2), "red": 0.0}
    caller = caller_by(heir, {"authorization": "Bearer new"})
    await asyncio.gather(heir.renew(caller, "m"), workers.clock.advance(0.2))
    with heir.begin(caller, "m"):
        pass
    await workers.close()


async def test_a_new_secret_keeps_what_is_in_flight_reserved():
    workers = Workers(api_key("red", budget_usd=1.0), many=1)
    old = workers.accesses[0]
    caller = caller_by(old, bearer("red"))
    flying = []
    for _ in range(10):  # $0.10 each, as far as is known
        await asyncio.gather(old.renew(caller, "m"), workers.clock.advance(0.1))
        flying.append(old.begin(caller, "m"))
    anew = ApiKey(name="red", sha256=digest("new"), budget_usd=1.0)
    heir = old.successor(ServerSettings(keys=[anew]), workers.fleets[0].leases)
    caller = caller_by(heir, {"authorization": "Bearer new"})
    await asyncio.gather(heir.renew(caller, "m"), workers.clock.advance(0.2))
    with pytest.raises(Refusal):
        heir.begin(caller, "m")
    for use in flying:
        with use:
            pass
    await asyncio.gather(heir.renew(caller, "m"), workers.clock.advance(0.2))
    with heir.begin(caller, "m"):
        pass
    await workers.close()


async def test_a_reload_without_a_fleet_limits_by_itself():
    clock = FakeClock()
    fleet = Fleet(GatewaySettings(), clock, ledger=MemoryLedger(clock))
    config = scripted_configs("a", rpm=40)
    old = AsyncGateway(config, vendor=ScriptedVendor(), clock=clock)
    old.use_fleet(fleet)
    (shared,) = (provider.rates for provider in old._roster)
    new = AsyncGateway(config, vendor=ScriptedVendor(), clock=clock, cache_enabled=False)
    new.take_over(old)
    (own,) = (provider.rates for provider in new._roster)
    assert isinstance(shared, SharedRates)
    assert isinstance(own, RateLimits)


def test_rates_are_shared_by_providers_of_the_same_model_and_address():
    clock = FakeClock()
    fleet = Fleet(GatewaySettings(), clock, ledger=MemoryLedger(clock))
    limits: list[str] = []
    for fields in ({}, {}, {"model": "other"}, {"api_base": "http://elsewhere"}):
        gateway = AsyncGateway(
            scripted_configs("a", rpm=40, **fields), vendor=ScriptedVendor(), clock=clock
        )
        gateway.use_fleet(fleet)
        rates: list[Any] = [provider.rates for provider in gateway._roster]
        limits += [each._calls.limit.name for each in rates]
    assert limits[0] == limits[1]
    assert len(set(limits)) == 3


# ── providers without a price ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
async def test_a_budget_needs_a_price(stream):
    """litellm #35524: requests without a price skipped the budget."""
    vendor = ScriptedVendor()
    vendor.without_price = {"a"}
    keys = [api_key("red", budget_usd=1), api_key("blue")]
    configs = scripted_configs("a", model="own") + scripted_configs("b", model="other")
    async with AsyncGateway(configs, vendor=vendor) as gateway:
        await gateway.warmup()
        async with (
            running(Service(gateway, ServerSettings(keys=keys))) as url,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        ):

            async def ask(name, **body):
                body = {**HI, "stream": stream, **body}
                return await client.post("/v1/chat/completions", json=body, headers=bearer(name))

            refused = await ask("red", model="own")
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["code"] == "no_price"
            assert "price of a is" in error["message"]
            assert "default_prices" in error["message"]
            assert not vendor.called()
            assert (await ask("red")).status_code == 200  # at the one with a price
            assert [name for name, _ in vendor.calls] == ["b"]
            assert (await ask("blue", model="own")).status_code == 200
