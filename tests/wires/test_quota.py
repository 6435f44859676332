"""Limits in response headers: read where they can be, ignored where they cannot, said once."""

from datetime import datetime, timedelta, timezone

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from aigateway.clock import SYSTEM_CLOCK
from aigateway.settings import LLMConfig, ProviderType
from aigateway.testing import FakeClock
from aigateway.wires.client import VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.limits import LONGEST_PAUSE, Quota, seconds_of_duration, seconds_until
from aigateway.wires.registry import WIRES
from tests.wires.calls import asking

UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
NUMBERS = st.decimals(0, 999, places=3).map(str)


@given(st.lists(st.tuples(NUMBERS, st.sampled_from(sorted(UNITS))), min_size=1, max_size=4))
def test_durations_are_the_sum_of_their_parts(parts):
    text = "".join(number + unit for number, unit in parts)
    expected = sum(float(number) * UNITS[unit] for number, unit in parts)
    assert seconds_of_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("12ms", 0.012), ("1h2m3.5s", 3723.5), ("20", 20), ("0.5", 0.5)],
)
def test_durations_as_vendors_write_them(text, seconds):
    assert seconds_of_duration(text) == pytest.approx(seconds)


@given(st.text(max_size=40))
def test_any_text_is_a_duration_or_nothing(text):
    seconds = seconds_of_duration(text)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    "text", ["", "-1s", "s", "1 s", "nan", "inf", "1e9", "1x", "1s;", "\u0663s"]
)
def test_what_is_no_duration(text):
    assert seconds_of_duration(text) is None


@given(st.integers(0, 4_000_000_000), st.floats(-7200, 7200), st.integers(-14, 14))
def test_times_are_counted_from_now(now, ahead, offset):
    there = datetime.fromtimestamp(now + ahead, timezone(timedelta(hours=offset)))
    assert seconds_until(there.isoformat(), now) == pytest.approx(max(0.0, ahead), abs=1e-3)


def test_a_time_as_anthropic_writes_it():
    assert seconds_until("1970-01-01T00:01:30Z", 60.0) == 30.0
    assert seconds_until("1970-01-01T00:01:30", 60.0) is None


@given(st.text(max_size=40), st.floats(0, 4e9))
def test_any_text_is_a_time_or_nothing(text, now):
    seconds = seconds_until(text, now)
    assert seconds is None or seconds >= 0


OPENAI_OUT = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}
ANTHROPIC_OUT = {
    "anthropic-ratelimit-input-tokens-remaining": "0",
    "anthropic-ratelimit-input-tokens-reset": "1970-01-01T00:00:09Z",
}
GOING = {"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "2s"}
LATER = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "40s"}
DAY = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "23h59m"}
UNREADABLE = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}
UNLIMITED = {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "2s"}


@pytest.mark.parametrize(
    ("provider", "headers", "pause"),
    [
        (ProviderType.OPENAI, OPENAI_OUT, 2.0),
        (ProviderType.AZURE, OPENAI_OUT, 2.0),
        (ProviderType.OPENAI_COMPATIBLE, OPENAI_OUT, 2.0),
        (ProviderType.ANTHROPIC, ANTHROPIC_OUT, 9.0),
        (ProviderType.GEMINI, OPENAI_OUT, None),
        (ProviderType.OPENAI, GOING, None),
        (ProviderType.OPENAI, OPENAI_OUT | LATER, 40.0),
        (ProviderType.OPENAI, DAY, LONGEST_PAUSE),
        (ProviderType.OPENAI, UNREADABLE, None),
        (ProviderType.OPENAI, UNREADABLE | LATER, 40.0),
        (ProviderType.OPENAI, UNLIMITED, None),
        (ProviderType.OPENAI, {}, None),
    ],
    ids=[
        "openai",
        "azure",
        "compatible",
        "anthropic",
        "gemini-has-none",
        "some-left",
        "the-later-of-two",
        "a-day",
        "unreadable",
        "one-unreadable",
        "unlimited",
        "nothing",
    ],
)
def test_what_is_used_up(provider, headers, pause):
    quota = Quota(WIRES[provider].limits, FakeClock(wall=0.0))
    quota.note(headers)
    assert quota.pause() == (None if pause is None else pytest.approx(pause))
    assert quota.pause() is None


async def test_a_pause_grows_shorter_while_nobody_asks():
    clock = FakeClock(wall=0.0)
    quota = Quota(WIRES[ProviderType.OPENAI].limits, clock)
    quota.note(OPENAI_OUT)
    await clock.advance(1.5)
    assert quota.pause() == pytest.approx(0.5)
    quota.note(OPENAI_OUT)
    await clock.advance(10)
    assert quota.pause() == 0.0


def test_the_latest_response_counts():
    quota = Quota(WIRES[ProviderType.OPENAI].limits, FakeClock())
    quota.note(OPENAI_OUT)
    quota.note(GOING)
    assert quota.pause() is None


@given(
    st.sampled_from(ProviderType),
    st.dictionaries(st.sampled_from([*OPENAI_OUT, *LATER, *ANTHROPIC_OUT]), st.text(max_size=20)),
)
def test_any_header_is_read_or_ignored(provider, headers):
    quota = Quota(WIRES[provider].limits, FakeClock())
    quota.note(headers)
    assert 0 <= (quota.pause() or 0) <= LONGEST_PAUSE


ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


@pytest.fixture
async def limited():
    """A server whose every response says that no request is left for two seconds."""

    async def answer(request):
        wanted = await request.json()
        status = 400 if wanted["messages"][0]["content"] == "fail" else 200
        return web.json_response(ANSWER, status=status, headers=OPENAI_OUT)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    client = DirectClient(
        LLMConfig(ProviderType.OPENAI_COMPATIBLE, "m", api_base=f"http://{host}:{port}"),
        SYSTEM_CLOCK,
    )
    yield client
    await client.aclose()
    await runner.cleanup()


async def test_every_response_is_looked_at(limited):
    assert limited.pause() is None
    await limited.chat(asking())
    assert 0 < (limited.pause() or 0) <= 2
    assert limited.pause() is None
    with pytest.raises(VendorCallError):
        await limited.chat(asking("fail"))
    assert 0 < (limited.pause() or 0) <= 2
    stream = await limited.stream(asking())
    await stream.aclose()
    assert 0 < (limited.pause() or 0) <= 2
    with pytest.raises(VendorCallError):
        await limited.stream(asking("fail"))
    assert 0 < (limited.pause() or 0) <= 2
