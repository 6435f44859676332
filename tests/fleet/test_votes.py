"""What a circuit makes of the word of others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pytest

from aigateway import AsyncGateway, GatewaySettings, LLMConfig
from aigateway.clock import SYSTEM_CLOCK
from aigateway.fleet import fleet as sharing
from aigateway.fleet.client import FleetClient, FleetUnavailableError
from aigateway.fleet.votes import CircuitBus, RedisCircuitBus, Statement, Votes, shared_name
from aigateway.resilience.breaker import FleetBreaker, Permit
from aigateway.resilience.cooldown import Cooldown, CooldownPolicy
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs
from tests.fleet.memory_bus import MemoryBus
from tests.fleet.servers import Server
from tests.resilience.guarding import Heard

T = TypeVar("T")

OPEN = 8.0


class Member:
    """One process of a fleet with one circuit, without a gateway."""

    def __init__(self, clock: FakeClock, bus: CircuitBus, host: str) -> None:
        self.votes = Votes(bus, clock, host)
        self.breaker = FleetBreaker(5, OPEN, max_open_seconds=4 * OPEN, clock=clock)
        self.cooldown = Cooldown(clock, CooldownPolicy(), Heard())
        self.circuit = self.votes.share("main", self.breaker, self.cooldown)

    def call(self, *, ok: bool) -> bool:
        """Make a call if the circuit allows it; return whether it did."""
        permit = self.breaker.acquire()
        if not isinstance(permit, Permit):
            self.circuit.wanted()
            return False
        if ok:
            self.circuit.answered()
        (permit.success if ok else permit.failure)()
        return True

    def fail(self, times: int = 5) -> None:
        for _ in range(times):
            assert self.call(ok=False)

    def fail_with(self, cause: str) -> None:
        permit = self.breaker.acquire()
        assert isinstance(permit, Permit)
        permit.failure(cause)

    @property
    def state(self) -> str:
        return self.breaker.state.value


class Fleet:
    """Some members over one bus in memory, on virtual time."""

    def __init__(self, *hosts: str) -> None:
        self.clock = FakeClock()
        self.bus = MemoryBus(self.clock)
        self.members = [
            Member(self.clock, self.bus.link(f"member-{n}"), host) for n, host in enumerate(hosts)
        ]

    async def wait(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def __aenter__(self) -> tuple[Fleet, list[Member]]:
        self.tasks = [asyncio.create_task(member.votes.run()) for member in self.members]
        await self.wait(0.1)
        return self, self.members

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_one_vote_opens_at_the_first_own_failure() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        two.fail(1)
        two.call(ok=True)
        one.fail()
        await fleet.wait(0.1)
        assert (one.state, two.state) == ("open", "closed")
        two.fail(1)
        assert two.state == "open"
        assert not two.breaker.by_others


async def test_a_vote_counts_the_failure_before_it() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        two.fail(1)
        one.fail()
        await fleet.wait(0.1)
        assert two.state == "open"


async def test_failures_of_distinct_requests_count_together() -> None:
    async with Fleet("x", "y", "z") as (fleet, (one, two, three)):
        for number in range(2):
            one.fail_with(f"one {number}")
            two.fail_with(f"two {number}")
        await fleet.wait(0.1)
        assert {one.state, two.state} == {"closed"}
        two.fail_with("one 0")  # it has been counted
        await fleet.wait(0.1)
        assert {one.state, two.state} == {"closed"}
        three.fail_with("three")
        assert three.state == "open"
        await fleet.wait(0.1)
        assert {one.state, two.state} == {"open"}


async def test_an_answer_takes_a_doubt_back() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        one.fail(4)
        await fleet.wait(0.1)
        one.call(ok=True)
        await fleet.wait(0.1)
        two.fail(2)
        await fleet.wait(0.1)
        assert {one.state, two.state} == {"closed"}
        one.fail(4)
        await fleet.wait(3.0)  # nor does it last
        two.fail(2)
        assert {one.state, two.state} == {"closed"}


async def test_two_votes_open_at_once_and_an_answer_closes_all() -> None:
    async with Fleet("x", "y", "z", "z") as (fleet, (one, two, three, four)):
        one.fail()
        two.fail()
        await fleet.wait(0.1)
        assert (three.state, four.state) == ("open", "open")
        assert three.breaker.by_others
        four.call(ok=True)
        await fleet.wait(OPEN)
        three.call(ok=True)
        await fleet.wait(0.1)
        assert three.call(ok=True)
        await fleet.wait(0.1)
        assert (three.state, four.state) == ("closed", "closed")
        # After failures of their own they do not believe it, but may see for themselves at once.
        assert (one.state, two.state) == ("open", "open")
        assert one.call(ok=True)
        assert two.call(ok=True)
        assert (one.state, two.state) == ("closed", "closed")


async def test_processes_of_one_other_machine_are_one_witness() -> None:
    async with Fleet("x", "x", "y", "x") as (fleet, (one, two, elsewhere, beside)):
        one.fail()
        two.fail()
        await fleet.wait(0.1)
        assert (beside.state, elsewhere.state) == ("open", "closed")


async def test_an_answer_since_the_failures_began_counts_more_than_votes() -> None:
    async with Fleet("x", "y", "z") as (fleet, (one, two, busy)):
        one.fail(1)
        two.fail(1)
        await fleet.wait(1.0)
        busy.call(ok=True)
        one.fail(4)
        two.fail(4)
        await fleet.wait(2.0)
        assert busy.state == "closed"
        busy.fail(4)
        assert busy.state == "closed"


async def test_an_answer_to_a_call_in_flight_ends_what_others_said() -> None:
    async with Fleet("x", "y", "z") as (fleet, (one, two, three)):
        call = three.breaker.acquire()
        assert isinstance(call, Permit)
        one.fail()
        two.fail()
        await fleet.wait(0.1)
        assert three.state == "open"
        three.circuit.answered()
        call.success()
        await fleet.wait(3.0)
        assert three.state == "closed"
        assert (one.state, two.state) == ("open", "open")


async def test_the_fleet_has_one_probe_and_its_failure_puts_the_others_off() -> None:
    async with Fleet("x", "y", "z") as (fleet, members):
        one, two, _ = members
        one.fail()
        two.fail()
        await fleet.wait(OPEN - 0.5)
        for _ in range(6):
            for member in members:
                assert not member.call(ok=False) or member.breaker.openings > 1
            await fleet.wait(0.1)
        probed = [member for member in members if not member.breaker.on_hearsay]
        assert max(member.breaker.openings for member in members) == 2
        assert len(probed) <= 3
        await fleet.wait(OPEN)
        assert not any(member.call(ok=False) for member in members)


async def test_a_member_puts_the_others_off_once_only() -> None:
    async with Fleet("sick", "well", "well") as (fleet, (sick, one, two)):
        sick.fail()
        one.fail()
        await fleet.wait(0.1)
        assert two.state == "open"
        for _ in range(100):
            sick.call(ok=False)
            one.call(ok=True)
            await fleet.wait(0.4)
        assert (one.state, two.state) == ("closed", "closed")


async def test_a_probe_that_vanishes_is_replaced_when_its_right_ends() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        one.fail()
        two.fail(1)
        await fleet.wait(OPEN - 0.05)
        one.call(ok=True)
        await fleet.wait(0.1)
        assert isinstance(one.breaker.acquire(), Permit)
        await fleet.wait(0.1)
        fleet.tasks[0].cancel()  # as if it were killed
        began = fleet.clock.now()
        while not two.call(ok=True):
            await fleet.wait(0.1)
        assert 0.5 < fleet.clock.now() - began < 4.0


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("gap", [0.9, 1.5, 40.0])
async def test_a_quiet_fleet_probes_with_its_first_request(members: int, gap: float) -> None:
    async with Fleet(*"vwxyz"[:members]) as (fleet, all_members):
        for member in all_members:
            member.fail()
        await fleet.wait(OPEN / 2)
        for member in all_members:
            assert not member.call(ok=True)
        await fleet.wait(OPEN / 2 + gap)
        for member in all_members:
            assert member.call(ok=True), "it does not go back to a provider that is well"
            await fleet.wait(gap)


async def test_a_probe_that_hangs_keeps_the_others_away_for_some_seconds_only() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        one.fail()
        two.fail(1)
        await fleet.wait(OPEN + 2.0)
        assert isinstance(one.breaker.acquire(), Permit)
        await fleet.wait(0.1)
        began = fleet.clock.now()
        while not two.call(ok=True):
            await fleet.wait(2.5)
        assert 5.0 < fleet.clock.now() - began < 15.0


async def test_a_probe_that_was_cancelled_keeps_no_one_away() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        one.fail()
        two.fail(1)
        await fleet.wait(OPEN + 2.0)
        probe = one.breaker.acquire()
        assert isinstance(probe, Permit)
        await fleet.wait(0.1)
        assert not two.call(ok=True)
        probe.release()
        await fleet.wait(0.5)
        assert two.call(ok=True)


async def test_without_the_bus_each_probes_for_itself() -> None:
    async with Fleet("x", "y") as (fleet, members):
        for member in members:
            member.fail()
        fleet.bus.down = True
        await fleet.wait(OPEN + 1.0)
        for member in members:
            assert member.call(ok=True)
            assert member.state == "closed"


async def test_votes_come_again_after_the_bus_has_lost_its_memory() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        one.fail()
        await fleet.wait(0.1)
        fleet.bus.restart()
        await fleet.wait(3.0)
        assert len(fleet.bus.statements) == 1
        two.fail(1)
        assert two.state == "open"


async def test_what_a_message_did_not_bring_is_read() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        fleet.bus.lost = 1.0
        one.fail()
        one.cooldown.throttle(30.0)
        one.circuit.cooled_down()
        await fleet.wait(1.1)
        assert two.cooldown.until == pytest.approx(one.cooldown.until, abs=0.1)
        two.fail(1)
        assert two.state == "open"


async def test_a_cooldown_is_the_longest_that_any_was_given() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        for member, seconds in ((one, 30.0), (two, 5.0)):
            member.cooldown.throttle(seconds)
            member.circuit.cooled_down()
            await fleet.wait(0.1)
        for member in (one, two):
            refusal = member.cooldown.refusal()
            assert refusal is not None
            assert refusal.retry_after == pytest.approx(29.8, abs=0.1)
            assert refusal.last_resort == math.inf
        two.cooldown.reset()
        await fleet.wait(2.0)
        assert two.cooldown.refusal() is None, "what an operator ended comes back"


async def test_a_doubtful_process_votes_when_the_doubt_is_over() -> None:
    async with Fleet("x", "y") as (fleet, (one, two)):
        sound = False
        one.circuit.is_sound = lambda: sound
        one.fail()
        await fleet.wait(1.1)
        two.fail(1)
        assert two.state == "closed"
        sound = True
        await fleet.wait(1.1)
        assert two.state == "open"


async def test_an_order_of_the_operator_stays_in_its_process() -> None:
    async with Fleet("x", "y", "z") as (fleet, (one, two, three)):
        one.breaker.force_open()
        two.fail()
        three.breaker.force_closed()
        await fleet.wait(1.1)
        assert not [m for m in (two, three) if m.breaker.by_others]
        one.breaker.reset()
        three.fail(20)
        assert (one.state, three.state) == ("closed", "closed")


def gateway_of(fleet_name: str, bus: CircuitBus) -> AsyncGateway:
    settings = GatewaySettings(fleet_name=fleet_name, redis_url=None, cache_enabled=False)
    configs = scripted_configs("main")
    gateway = AsyncGateway(configs, settings=settings, vendor=ScriptedVendor(), clock=FakeClock())
    gateway.use_fleet(sharing.Fleet(settings, FakeClock(), bus=bus))
    return gateway


async def test_a_gateway_that_leaves_the_fleet_at_a_reload_heeds_it_no_more() -> None:
    old = gateway_of("one", MemoryBus(FakeClock()).link("x"))
    settings = old.settings.model_copy(update={"fleet_name": "none"})
    new = AsyncGateway(scripted_configs("main"), settings=settings, vendor=ScriptedVendor())
    async with old:
        guards = next(iter(old._roster)).chat
        assert guards.breaker.advisor is guards.shared is not None
        new._clock = old._clock
        new.take_over(old)
        async with new:
            taken = next(iter(new._roster)).chat
            assert taken.breaker is guards.breaker
            assert taken.breaker.advisor is taken.shared is None


async def test_a_second_close_leaves_the_fleet_to_the_other_gateway() -> None:
    old = gateway_of("one", MemoryBus(FakeClock()).link("x"))
    new = gateway_of("one", MemoryBus(FakeClock()).link("x"))
    async with old:
        new.take_over(old)
        assert new.fleet is old.fleet
        async with new:
            await old.aclose()
            await old.aclose()
            assert [task for task in new.fleet._tasks if not task.done()]
    assert not new.fleet._tasks


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"at": 1, "said": 2}', '{"at": 1, "said": {"circuit": "main"}}'],
)
async def test_what_another_version_says_is_passed_over(text: str) -> None:
    async with Fleet("x") as (fleet, (one,)):
        fleet.bus.statements["other main"] = (math.inf, text)
        fleet.bus.links[0].deliver('{"at": 0}')
        await fleet.wait(3.0)
        one.fail()
        await fleet.wait(0.1)
        assert len(fleet.bus.statements) == 2


def test_a_circuit_is_shared_by_name_vendor_model_and_address() -> None:
    def name(**changes: object) -> str:
        fields = {"provider": "openai", "model": "gpt-4o-mini", "name": "main", "api_key": "sk-1"}
        return shared_name(LLMConfig.model_validate(fields | changes), "chat")

    assert name() == name(api_key="sk-2", priority=5)
    others = {name(name="x"), name(model="x"), name(api_base="http://127.0.0.1:9/v1")}
    assert len(others | {name()}) == 4
    assert "127.0.0.1" not in name(api_base="http://127.0.0.1:9/v1")


async def tried(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call of the bus again until Redis answers in time, which a busy machine delays."""
    while True:
        try:
            return await call()
        except FleetUnavailableError:
            await asyncio.sleep(0.05)


async def test_redis_keeps_statements_and_rights_until_they_end(server: Server) -> None:
    heard: list[str | bytes] = []
    settings = GatewaySettings(redis_url=server.url, fleet_name="f")
    async with AsyncExitStack() as stack:
        buses = []
        for _ in range(2):
            client = FleetClient(settings, SYSTEM_CLOCK)
            stack.push_async_callback(client.aclose)
            buses.append(RedisCircuitBus(client))
        one, two = buses
        two.connect(heard.append, lambda: None)
        for bus in buses:
            listening = asyncio.create_task(bus._client.listen())
            stack.callback(listening.cancel)
        said = Statement("main {x}", one.member, "host", failing=5.0, openings=1, causes=("a",))
        while not heard:  # until it listens
            await tried(lambda: one.say("main {x}", said.text(7.0), 600.0))
            await asyncio.sleep(0.05)
        await tried(lambda: one.say("another", said.text(7.0), 0.001))
        await asyncio.sleep(0.01)
        at, kept = await tried(two.read)
        assert len(kept) == 1, "what has ended is still there"
        read = Statement.parse(kept[0], 100.0 - at)
        assert read is not None
        assert replace(read, at=said.at, failing=said.failing) == said
        assert read.failing == pytest.approx(read.at - 2.0)
        takes = [await tried(partial(bus.take_probe, "main", 600.0)) for bus in (one, two, one)]
        assert takes == [True, False, True]
        for key in ("aigateway:{f}:circuits", "aigateway:{f}:probe:main"):
            assert 0 < server("PTTL", key) <= 600_000
        await tried(lambda: two.drop_probe("main"))
        assert not await tried(lambda: two.take_probe("main", 600.0))
        await tried(lambda: one.drop_probe("main"))
        assert await tried(lambda: two.take_probe("main", 600.0))
