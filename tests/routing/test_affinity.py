"""The turns of a session stay at one provider while it is well, on virtual time."""

import asyncio
from collections import Counter

import pytest

from aigateway import AllProvidersFailedError, AsyncGateway, FailureKind, Origin
from aigateway.messages import ChatRequest, Completion, NativeAnswer, NativeRequest, Usage
from aigateway.messages import Choice as Answer
from aigateway.routing.affinity import IDLE, Affinity, Session, is_bearable, session_of
from aigateway.testing import FakeClock, ScriptedStream, scripted_configs

K = FailureKind
EQUALS = {"priority": 0}


@pytest.fixture
async def make(clock, vendor):
    made = []

    def make_gateway(*names, configs=None, fields=None, **settings):
        settings = {"retry_rounds": 0, "cache_enabled": False} | settings
        configs = configs or scripted_configs(*(names or "abc"), **(fields or {}))
        gateway = AsyncGateway(configs, clock=clock, vendor=vendor, **settings)
        made.append(gateway)
        return gateway

    yield make_gateway
    for gateway in made:
        await gateway.aclose()
    assert vendor.open_streams == 0


async def turn(gateway, session="s", **options):
    return (await gateway.chat("hi", session=session, **options)).provider


def sessions(gateway):
    return gateway.get_metrics()["sessions"]


def loads(gateway):
    return {name: each["in_flight"] for name, each in gateway.get_metrics()["providers"].items()}


class TestAmongEquals:
    async def test_every_turn_is_at_one_provider_and_sessions_are_spread(self, make):
        gateway = make(fields=EQUALS)
        homes = {}
        for each in range(60):
            turns = {await turn(gateway, f"s{each}") for _ in range(4)}
            assert len(turns) == 1
            homes[each] = turns.pop()
        assert all(count >= 10 for count in Counter(homes.values()).values())
        assert sessions(gateway) == {"entries": 60, "begun": 60, "kept": 180, "moved": 0}

    async def test_without_a_session_load_is_shared_as_ever(self, make):
        gateway = make(fields=EQUALS)
        assert [(await gateway.chat("hi")).provider for _ in range(6)] == list("abcabc")
        assert sessions(gateway)["entries"] == 0

    async def test_processes_that_share_nothing_choose_the_same(self, make):
        one, other = make("a", "b", "c", fields=EQUALS), make("c", "b", "a", fields=EQUALS)
        names = [f"s{each}" for each in range(30)]
        await one.chat("hi")  # so that their rotations differ
        assert [await turn(one, n) for n in names] == [await turn(other, n) for n in names]

    async def test_by_weight_and_few_move_when_a_provider_comes(self):
        def placed(weights):
            homes = {}
            for each in range(3000):
                session = Session(each.to_bytes(16, "big"))
                homes[each] = max(weights, key=lambda name: session.score(name, weights[name]))
            return homes

        before, after = placed({"a": 1, "b": 3}), placed({"a": 1, "b": 3, "c": 1})
        assert Counter(before.values())["b"] == pytest.approx(2250, rel=0.06)
        moved = {each for each, home in after.items() if home != before[each]}
        assert {after[each] for each in moved} == {"c"}
        assert len(moved) == pytest.approx(600, rel=0.15)

    async def test_a_new_session_does_not_go_where_many_calls_are_in_flight(
        self, make, vendor, clock
    ):
        gateway = make("a", "b", fields=EQUALS)
        homes = {n: await turn(gateway, n) for n in map(str, range(20))}
        name = next(n for n, home in homes.items() if home == "a")
        clock.tick(IDLE)
        going = asyncio.Event()
        vendor.always("a", going.wait)
        busy = [asyncio.create_task(gateway.chat("hi", model="a")) for _ in range(4)]
        await clock.settle()
        assert loads(gateway) == {"a": 4, "b": 0}
        assert await turn(gateway, name) == "b"
        going.set()
        await asyncio.gather(*busy)
        assert await turn(gateway, name) == "b"

    @pytest.mark.parametrize(
        ("load", "least", "weight", "bearable"),
        [(2, 0, 1, True), (3, 0, 1, False), (17, 10, 1, True), (18, 10, 1, False)],
    )
    def test_the_bound_of_the_load(self, load, least, weight, bearable):
        assert is_bearable(load, least, weight) is bearable


class TestMoving:
    async def test_it_stays_where_it_was_answered_also_when_a_better_one_recovers(
        self, make, vendor
    ):
        gateway = make()
        assert await turn(gateway) == "a"
        vendor.script("a", K.SERVER_ERROR)
        assert await turn(gateway) == "b"
        assert [await turn(gateway) for _ in range(3)] == ["b", "b", "b"]
        assert (await gateway.chat("hi")).provider == "a"  # others are not affected
        assert sessions(gateway) == {"entries": 1, "begun": 1, "kept": 3, "moved": 1}

    async def test_after_an_hour_without_a_turn_it_is_a_new_one(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", K.SERVER_ERROR)
        assert await turn(gateway) == "b"
        clock.tick(IDLE - 1)
        assert await turn(gateway) == "b"
        clock.tick(IDLE)
        assert await turn(gateway) == "a"
        assert sessions(gateway) == {"entries": 1, "begun": 2, "kept": 1, "moved": 0}

    @pytest.mark.parametrize(
        ("failure", "times"),
        [(K.SERVER_ERROR, 5), (K.RATE_LIMITED, 1), (K.AUTHENTICATION, 1)],
        ids=["an open circuit", "a cooldown", "disabled"],
    )
    async def test_guards_come_first(self, make, vendor, failure, times):
        gateway = make(fields=EQUALS)
        home = await turn(gateway)
        vendor.script(home, *[failure] * times)
        for number in range(times):  # by other requests than those of the session
            with pytest.raises(AllProvidersFailedError):
                await gateway.chat(f"p{number}", model=home)
        other = await turn(gateway)
        assert other != home
        assert await turn(gateway) == other

    async def test_a_rate_and_a_slot_come_first(self, make, vendor, clock):
        gateway = make("a", "b", fields={"max_concurrency": 1})
        assert await turn(gateway) == "a"
        going = asyncio.Event()
        vendor.script("a", going.wait)
        busy = asyncio.create_task(gateway.chat("busy", model="a"))
        await clock.settle()
        assert await turn(gateway) == "b"
        going.set()
        await busy
        assert await turn(gateway) == "a"  # it was only busy
        assert sessions(gateway) == {"entries": 1, "begun": 1, "kept": 1, "moved": 1}
        limited = make("a", "b", fields={"rpm": 2})
        assert [await turn(limited) for _ in range(4)] == ["a", "a", "b", "b"]

    async def test_a_degraded_provider_loses_its_sessions(self, make, vendor, clock):
        gateway = make("a", "b", degraded_canary_percent=0, degraded_error_percent=20)
        assert await turn(gateway) == "a"
        for number in range(24):
            vendor.script("a", "ok", K.SERVER_ERROR)
            await gateway.chat(f"p{number}", model=None)
            clock.tick(0.1)
        (a,) = (p for p in gateway.providers if p.name == "a")
        assert (a.degraded, a.circuit_state) == ("errors", "closed")
        assert await turn(gateway) == "b"

    async def test_the_last_candidate_is_asked_though_it_is_not_well(self, make, vendor):
        gateway = make("a", "b")
        assert await turn(gateway) == "a"
        for name in "ab":
            vendor.script(name, *[K.SERVER_ERROR] * 5)
            for number in range(5):
                with pytest.raises(AllProvidersFailedError):
                    await gateway.chat(f"{name}{number}", model=name)
        reply = await gateway.chat("hi", session="s")
        assert reply.attempts[-1].last_resort

    async def test_a_stream_and_its_resumption_count_where_they_were_answered(self, make, vendor):
        gateway = make()
        vendor.script("a", ScriptedStream("Once", K.CONNECTION))
        async with gateway.stream("hi", session="s", resume="restart") as stream:
            assert "".join([chunk.text async for chunk in stream]) == "Onceok"
        assert await turn(gateway) == "b"

    async def test_a_hedge_that_wins_takes_the_session_over(self, make, vendor, clock):
        gateway = make(hedge=True, hedge_delay_seconds=1)
        vendor.script("a", lambda: clock.sleep(20))
        asking = asyncio.create_task(turn(gateway))
        await clock.advance(1.1)
        assert await asking == "b"
        assert await turn(gateway) == "b"

    async def test_rows_of_a_batch_have_sessions(self, make):
        gateway = make(fields=EQUALS)
        rows = [{"prompt": f"p{n}", "session": f"s{n % 4}"} for n in range(24)]
        items = (await gateway.batch(rows, concurrency=6)).items
        homes = {(n % 4, item.response.provider) for n, item in enumerate(items)}
        assert len(homes) == 4
        request = gateway.check("hi", session="s0")
        (item,) = (await gateway.batch([request])).items
        assert (0, item.response.provider) in homes

    async def test_a_gateway_that_replaces_another_knows_its_sessions(self, make, vendor):
        before, after = make("a", "b"), make("a", "b", timeout=99)
        vendor.script("a", K.SERVER_ERROR)
        assert await turn(before) == "b"
        after.take_over(before)
        assert await turn(after) == "b"


class TestNames:
    async def test_tenants_and_models_are_apart(self, make, vendor):
        gateway = make("a", "b", fields={"aliases": ["m"]})
        red, blue = Origin(partition="red"), Origin(partition="blue")
        vendor.script("a", K.SERVER_ERROR)
        assert await turn(gateway, origin=red) == "b"
        assert await turn(gateway, origin=blue) == "a"
        assert await turn(gateway, origin=Origin(partition="red", tenant="x")) == "a"
        assert await turn(gateway, origin=red, model="m") == "a"
        assert await turn(gateway, origin=red) == "b"

    async def test_a_name_that_is_none_is_refused(self, make):
        with pytest.raises(ValueError, match="session"):
            await make().chat("hi", session="")

    def test_names_cannot_be_joined_into_others(self):
        pairs = [("a", "bc"), ("ab", "c"), ("", "abc")]
        keys = {
            session_of(ChatRequest((), partition=p, session=s)).key  # type: ignore[union-attr]
            for p, s in pairs
        }
        assert len(keys) == 3

    def test_memory_is_bounded_and_the_longest_idle_one_is_forgotten_first(self):
        clock = FakeClock()
        affinity = Affinity(clock, most=100)
        every = [Session(n.to_bytes(16, "big")) for n in range(1000)]
        for each in every:
            clock.tick(1)
            affinity.answered(every[0], "b")
            affinity.answered(each, "a")
        assert affinity.stats()["entries"] == 100
        assert affinity.home(every[0]) == "b"
        assert (affinity.home(every[1]), affinity.home(every[-1])) == (None, "a")
        clock.tick(IDLE)
        for each in every[:60]:
            affinity.answered(each, "a")
        assert affinity.stats()["entries"] == 60


def conversation(*turns, **fields):
    roles = ("user", "assistant")
    messages = [{"role": "system", "content": fields.pop("system", "Be terse.")}]
    messages += [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return ChatRequest(tuple(messages), find_session=True, **fields)


class TestBeginnings:
    """Sessions that are found by the beginning of a conversation."""

    def test_later_turns_belong_to_the_first(self):
        first, later = session_of(conversation("one")), session_of(conversation("one", "1", "two"))
        assert first is not None
        assert later is not None
        assert later.start == first.key
        assert later.place == first.place
        assert (first.begins, later.begins) == (True, False)

    @pytest.mark.parametrize(
        "other",
        [
            conversation("another"),
            conversation("one", system="Be kind."),
            conversation(
                "one", params={"tools": [{"type": "function", "function": {"name": "f"}}]}
            ),
            conversation("one", partition="red"),
            conversation(({"type": "text", "text": "one"}, {"type": "text", "text": "two"})),
        ],
    )
    def test_other_beginnings_are_other_conversations(self, other):
        one, another = session_of(conversation("one")), session_of(other)
        assert one is not None
        assert another is not None
        assert one.key != another.key

    async def test_the_first_turn_goes_where_any_request_would_go(self, make, vendor):
        gateway = make("a", "b")
        finding = Origin(find_session=True)
        vendor.script("a", K.SERVER_ERROR)
        assert (await gateway.chat("one", origin=finding)).provider == "b"
        history = [*conversation("one", "1", "two").messages[1:]]
        assert (await gateway.chat(history, origin=finding)).provider == "b"
        assert (await gateway.chat("one", origin=finding)).provider == "a"

    async def test_another_conversation_with_the_same_beginning_moves_none(self, make, vendor):
        gateway = make("a", "b")
        finding = Origin(find_session=True)
        turns = ("run", "1", "go on", "2", "go on")
        vendor.script("a", K.SERVER_ERROR)

        async def turn_of(first_answer, turns_so_far):
            texts = [t if n != 1 else first_answer for n, t in enumerate(turns[:turns_so_far])]
            messages = conversation(*texts).messages
            return (await gateway.chat(list(messages), origin=finding)).provider

        assert [await turn_of("x", n) for n in (1, 3)] == ["b", "b"]
        assert await turn_of("", 1) == "a"  # another run begins, in its best place
        assert [await turn_of("y", 3), await turn_of("x", 5)] == ["a", "b"]

    async def test_examples_in_front_of_every_question_are_no_conversation(self, make, vendor):
        gateway = make("a", "b")
        finding = Origin(find_session=True)
        vendor.script("a", K.SERVER_ERROR)
        asked = [conversation("2+2?", "4", f"{n}+{n}?").messages for n in range(4)]
        homes = [(await gateway.chat(list(each), origin=finding)).provider for each in asked]
        assert homes == ["b", "a", "a", "a"]

    def test_marks_of_a_cache_do_not_count(self):
        def begun(**more):
            messages = [{"role": "user", "content": [{"type": "text", "text": "one", **more}]}]
            return session_of(ChatRequest(tuple(messages), find_session=True))

        assert begun() == begun(cache_control={"type": "ephemeral"})


NAMED = [{"prompt_cache_key": "k"}, {"metadata": {"user_id": "k"}}]


@pytest.mark.parametrize("named", NAMED)
class TestSharedNames:
    """`prompt_cache_key` and `metadata.user_id`: many conversations may have the same."""

    FINDING = Origin(find_session=True)

    async def ask(self, gateway, text, named, **more):
        return (await gateway.chat(text, origin=self.FINDING, **named, **more)).provider

    async def test_priority_comes_first_as_soon_as_it_may(self, make, vendor, named):
        gateway = make("a", "b")
        vendor.script("a", K.SERVER_ERROR)
        homes = [await self.ask(gateway, text, named) for text in ("one", "two", "one")]
        assert homes == ["b", "a", "a"]

    async def test_a_conversation_still_has_a_home(self, make, vendor, named):
        gateway = make("a", "b")
        vendor.script("a", K.SERVER_ERROR)
        history = [list(conversation("one", *["x", "y"] * n).messages) for n in range(3)]
        assert [await self.ask(gateway, each, named) for each in history] == ["b", "b", "b"]

    async def test_among_equals_it_is_a_place_that_load_bounds(self, make, vendor, clock, named):
        gateway = make(fields=EQUALS)
        homes = {await self.ask(gateway, f"p{n}", named) for n in range(20)}
        assert len(homes) == 1
        others = {await self.ask(gateway, f"p{n}", {"prompt_cache_key": f"{n}"}) for n in range(20)}
        assert others == {"a", "b", "c"}
        going = asyncio.Event()
        for name in "abc":
            vendor.always(name, going.wait)
        asked = [asyncio.create_task(self.ask(gateway, f"q{n}", named)) for n in range(30)]
        await clock.settle()
        assert max(loads(gateway).values()) <= 15
        assert min(loads(gateway).values()) >= 6
        going.set()
        await asyncio.gather(*asked)

    async def test_a_library_names_them_to_the_vendor_alone(self, make, vendor, named):
        gateway = make(fields=EQUALS)
        assert {(await gateway.chat(f"p{n}", **named)).provider for n in range(6)} == set("abc")


class TestStored:
    """OpenAI's Responses that refer to an earlier one."""

    @staticmethod
    def ask(gateway, **body):
        only = next(iter(body), None)
        native = NativeRequest("responses", {"input": "hi", **body}, only=only)
        request = gateway._request("hi", {}, native=native)
        return gateway._pipeline.chat(request)

    async def test_it_goes_to_the_provider_that_stored_it_and_to_no_other(self, make, vendor):
        vendor.speaks = {name: {"responses": True} for name in "abc"}
        gateway = make()
        await gateway.warmup()

        def stored(name):
            native = NativeAnswer("responses", b"{}")
            return Completion(name, "m", (Answer("ok", "stop"),), Usage(1, 1, 2), native=native)

        vendor.script("a", K.SERVER_ERROR)
        vendor.script("b", stored("resp_1"))
        assert (await self.ask(gateway)).provider == "b"
        assert (await self.ask(gateway, previous_response_id="resp_1")).provider == "b"
        assert (await self.ask(gateway, previous_response_id="resp_x")).provider == "a"
        vendor.script("b", K.SERVER_ERROR)
        with pytest.raises(AllProvidersFailedError) as failed:
            await self.ask(gateway, previous_response_id="resp_1")
        assert [cause.provider for cause in failed.value.causes] == ["b"]

    async def test_an_answer_by_translation_is_stored_nowhere(self, make, vendor):
        vendor.speaks = {name: {"responses": True} for name in "ab"}
        gateway = make("a", "b")
        await gateway.warmup()
        vendor.script("a", K.SERVER_ERROR)
        assert (await self.ask(gateway)).provider == "b"
        assert (await self.ask(gateway, previous_response_id="scripted")).provider == "a"
