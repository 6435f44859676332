"""Every row of the failure table, on each of the four wires, over real HTTP, through the gateway.

One provider of the wire under test fails; a healthy one of another wire stands behind it. What is
asserted is what the caller got, what the backup was asked, what the breaker counted and which gate
closed. That the kind is read rightly from each body is `tests/wires`'s business.
"""

import pytest

from aigateway import (
    AsyncGateway,
    ContentPolicyError,
    ContextWindowExceededError,
    FailureKind,
    RequestRejectedError,
)
from aigateway.simulator import Fault
from tests import descriptors
from tests.gateways import state_of

WIRES = ("openai", "azure", "gemini", "anthropic")
K = FailureKind

SICK = [
    (Fault.server_error(500), K.SERVER_ERROR),
    (Fault.server_error(502), K.SERVER_ERROR),
    (Fault.server_error(503), K.SERVER_ERROR),
    (Fault.server_error(504), {K.SERVER_ERROR, K.TIMEOUT}),
    (Fault.status(529), K.SERVER_ERROR),
    (Fault.overloaded(), K.SERVER_ERROR),
    (Fault.html(), K.BAD_ANSWER),
    (Fault.empty(), K.BAD_ANSWER),
    (Fault.malformed(), K.BAD_ANSWER),
    (Fault.no_choices(), K.BAD_ANSWER),
    (Fault.cut_body(), {K.BAD_ANSWER, K.CONNECTION}),
    (Fault.reset(), K.CONNECTION),
    (Fault.reset_in_body(), {K.BAD_ANSWER, K.CONNECTION}),
    (Fault.refuse(), K.CONNECTION),
    (Fault.hang(), K.TIMEOUT),
]
MISCONFIGURED = [
    (Fault.bad_key(), K.AUTHENTICATION),
    (Fault.status(401), K.AUTHENTICATION),
    (Fault.forbidden(), {K.PERMISSION, K.AUTHENTICATION}),
    (Fault.region(), K.PERMISSION),
    (Fault.status(402), K.NO_CREDIT),
    (Fault.no_credit(), K.NO_CREDIT),
    (Fault.insufficient_quota(), K.NO_CREDIT),
    (Fault.model_not_found(), K.MODEL_NOT_FOUND),
    (Fault.retired_model(), K.MODEL_NOT_FOUND),
]
CANNOT = [
    (Fault.file_not_found(), K.UNSUPPORTED),
    (Fault.status(403, message="You are not allowed to sample from this model"), K.UNSUPPORTED),
    (Fault.status(404, message="No endpoints found that support tool use."), K.UNSUPPORTED),
    (Fault.status(422, message="This model does not support images."), K.UNSUPPORTED),
    (Fault.status(400, message="Failed to call a function."), K.INVALID_OUTPUT),
]
CALLERS_FAULT = [
    (Fault.bad_request(), K.REJECTED),
    (Fault.too_large(), {K.REJECTED, K.CONTEXT_WINDOW}),
    (Fault.status(422), K.REJECTED),
    (Fault.content_policy(), K.CONTENT_POLICY),
    (Fault.context_window(), K.CONTEXT_WINDOW),
]
ERRORS = {
    K.REJECTED: RequestRejectedError,
    K.CONTENT_POLICY: ContentPolicyError,
    K.CONTEXT_WINDOW: ContextWindowExceededError,
}


def label(value):
    return f"{value.name}{value.code or ''}" if isinstance(value, Fault) else None


def kinds(expected):
    return expected if isinstance(expected, set) else {expected}


@pytest.fixture(params=WIRES)
async def pair(request, simulator):
    """A gateway over the wire under test and a healthy backup, and both servers."""
    sick = getattr(simulator, request.param)
    backup = await simulator.add("openai", name="backup")
    configs = [sick.config(priority=2, name="sick"), backup.config(priority=1)]
    async with AsyncGateway(configs, retry_rounds=0, attempt_timeout=5) as gateway:
        await gateway.warmup()
        yield gateway, sick, backup


def status_of(gateway):
    return state_of(gateway, "sick")


def streak_of(gateway):
    return gateway.get_metrics()["providers"]["sick"]["consecutive_failures"]


@pytest.mark.parametrize(("fault", "kind"), SICK, ids=label)
async def test_a_sick_provider_is_left_for_the_next_and_counted(pair, fault, kind):
    gateway, sick, backup = pair
    if fault == Fault.hang():
        gateway._roster.named("sick").attempt_timeout = 0.1
    sick.behave(fault)
    reply = await gateway.chat("hi")
    assert reply.provider == "backup"
    assert reply.attempts[0].failure in kinds(kind)
    assert streak_of(gateway) == 1
    status = status_of(gateway)
    assert (status.disabled_reason, status.retry_after_seconds) == (None, None)
    assert len(backup.received) == 1
    assert len(sick.received) == (0 if fault == Fault.refuse() else 1), "no retry of any kind"


@pytest.mark.parametrize(("fault", "kind"), MISCONFIGURED, ids=label)
async def test_one_set_up_wrong_is_disabled_and_not_counted(pair, fault, kind):
    gateway, sick, _ = pair
    sick.behave(fault)
    reply = await gateway.chat("hi")
    assert reply.provider == "backup"
    assert reply.attempts[0].failure in kinds(kind)
    assert streak_of(gateway) == 0
    assert status_of(gateway).disabled_reason is reply.attempts[0].failure
    assert (await gateway.chat("again")).provider == "backup"
    assert len(sick.received) == 1


@pytest.mark.parametrize(("fault", "kind"), CANNOT, ids=label)
async def test_what_it_cannot_do_is_no_mark_against_it(pair, fault, kind):
    gateway, sick, _ = pair
    sick.behave(fault, times=2)
    for prompt in ("hi", "again"):
        reply = await gateway.chat(prompt)
        assert reply.provider == "backup"
        assert reply.attempts[0].failure is kind
    assert (streak_of(gateway), status_of(gateway).active) == (0, True)
    assert (await gateway.chat("something else")).provider == "sick"


@pytest.mark.parametrize(("fault", "kind"), CALLERS_FAULT, ids=label)
async def test_the_callers_own_fault_is_raised_and_harms_no_provider(pair, fault, kind):
    gateway, sick, backup = pair
    sick.behave(fault)
    backup.behave(fault)
    with pytest.raises(RequestRejectedError) as raised:
        await gateway.chat("hi")
    assert raised.value.causes[0].kind in kinds(kind)
    assert type(raised.value) is ERRORS[raised.value.causes[0].kind]
    # Only what no rule recognises gets a second opinion, and only from another vendor.
    other = raised.value.causes[0].kind is K.REJECTED and sick.wire != "openai"
    assert (len(sick.received), len(backup.received)) == (1, int(other))
    status = status_of(gateway)
    assert (streak_of(gateway), status.active) == (0, True)


@pytest.mark.parametrize("retry_after", [7, "7.5", None])
async def test_a_rate_limit_cools_down_and_is_not_counted(pair, retry_after):
    gateway, sick, _ = pair
    sick.behave(Fault.rate_limited(retry_after=retry_after))
    reply = await gateway.chat("hi")
    assert reply.provider == "backup"
    assert reply.attempts[0].failure is K.RATE_LIMITED
    status = status_of(gateway)
    assert streak_of(gateway) == 0
    assert status.disabled_reason is None
    assert status.retry_after_seconds == pytest.approx(float(retry_after or 1), abs=0.9)
    assert (await gateway.chat("again")).provider == "backup"
    assert len(sick.received) == 1


async def test_that_we_have_no_descriptor_left_is_not_the_providers_fault(pair):
    gateway, healthy, _ = pair
    await gateway.chat("hi", model="backup")  # a connection to that one is there
    with descriptors.none_left():
        for number in range(8):
            reply = await gateway.chat(f"question {number}")
            assert reply.provider == "backup"
            assert reply.attempts[0].failure is K.SATURATED
    assert streak_of(gateway) == 0
    assert (await gateway.chat("again")).provider == "sick"
    assert len(healthy.received) == 1


async def test_a_sick_one_that_says_when_cools_down_too(pair):
    gateway, sick, _ = pair
    sick.behave(Fault.status(503, retry_after=9))
    assert (await gateway.chat("hi")).provider == "backup"
    assert streak_of(gateway) == 1
    assert status_of(gateway).retry_after_seconds == pytest.approx(9, abs=0.9)


async def test_the_fifth_failure_opens_the_circuit_and_it_is_asked_no_more(pair):
    gateway, sick, _ = pair
    sick.behave(Fault.server_error(500))
    for i in range(8):
        assert (await gateway.chat(f"question {i}")).provider == "backup"
    assert len(sick.received) == 5


async def test_content_policy_can_be_let_go_on(simulator):
    simulator.gemini.behave(Fault.content_policy())
    configs = [simulator.gemini.config(priority=2), simulator.openai.config(priority=1)]
    async with AsyncGateway(configs, failover_on_content_policy=True) as gateway:
        assert (await gateway.chat("hi")).provider.startswith("openai")


async def test_too_long_goes_on_to_a_model_known_to_take_more(simulator):
    simulator.openai.behave(Fault.context_window())
    configs = [
        simulator.openai.config(priority=2, model="gpt-4"),
        simulator.anthropic.config(priority=1),
    ]
    async with AsyncGateway(configs) as gateway:
        assert (await gateway.chat("hi")).provider.startswith("anthropic")
