import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import aigateway
from aigateway import facade
from aigateway.errors import (
    AllProvidersFailedError,
    ConfigurationError,
    FailureKind,
    GatewayError,
    NoProvidersError,
    RequestRejectedError,
)
from aigateway.events import Event, RequestServed
from aigateway.gateway import AsyncGateway
from aigateway.simulator import Simulator
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.processes import PATIENCE

WAIT = PATIENCE
ROOT = Path(aigateway.__file__).parents[1]


@pytest.fixture(autouse=True)
def a_fresh_process_gateway():
    facade._reset()
    yield
    facade._reset()


@pytest.fixture
def vendor(monkeypatch):
    """What the process's gateway asks, in place of the environment's vendors."""
    scripted = ScriptedVendor()
    monkeypatch.setattr(
        facade, "AsyncGateway", lambda: AsyncGateway(scripted_configs("a", "b"), vendor=scripted)
    )
    return scripted


def test_one_line_is_enough(vendor):
    vendor.script("a", "four")
    text = facade.call_llm(system_prompt="Be terse.", user_prompt="What is 2+2?", temperature=0)
    assert text == "four"
    _, request = vendor.calls[0]
    assert [dict(message) for message in request.messages] == [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "What is 2+2?"},
    ]
    assert request.params["temperature"] == 0


def test_takes_its_three_arguments_by_place_too(vendor):
    assert facade.call_llm("Be terse.", "What is 2+2?", 0.5) == "ok"
    assert vendor.calls[0][1].params["temperature"] == 0.5


def test_other_keywords_reach_chat(vendor):
    facade.call_llm(user_prompt="x", model="b", max_tokens=7, timeout=3, agent="me", seed=1)
    name, request = vendor.calls[0]
    assert name == "b"
    assert (request.timeout, request.agent) == (3, "me")
    assert request.params == {"max_tokens": 7, "seed": 1}


def test_asks_for_the_user_prompt(vendor):
    with pytest.raises(RequestRejectedError, match="user_prompt"):
        facade.call_llm("What is 2+2?")
    assert vendor.called() == 0


def test_answers_are_cached(vendor):
    assert [facade.call_llm(user_prompt="x") for _ in range(3)] == ["ok"] * 3
    assert facade.call_llm(user_prompt="x", cache=False) == "ok"
    assert vendor.called() == 2
    assert facade.get_gateway_metrics()["cache_hits"] == 2


def test_errors_come_out_as_chat_raises_them(vendor):
    vendor.always("a", FailureKind.AUTHENTICATION)
    vendor.always("b", FailureKind.NO_CREDIT)
    with pytest.raises(AllProvidersFailedError) as caught:
        facade.call_llm(user_prompt="x")
    assert [cause.provider for cause in caught.value.causes] == ["a", "b"]
    assert facade.get_gateway_metrics()["failures"] == 1


async def test_refuses_to_block_an_event_loop(vendor):
    with pytest.raises(GatewayError, match=r"await gateway\.chat\(\)"):
        facade.call_llm(user_prompt="x")
    assert await asyncio.to_thread(facade.call_llm, user_prompt="x") == "ok"


async def test_its_gateway_says_that_it_belongs_elsewhere(vendor):
    gateway = facade.get_gateway()
    with pytest.raises(GatewayError, match="another event loop"):
        await gateway.chat("x")


def test_many_threads_get_one_gateway_and_one_loop(vendor):
    barrier = threading.Barrier(20)

    def call(number):
        barrier.wait(WAIT)
        return facade.call_llm(user_prompt=f"question {number}"), facade.get_gateway()

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(call, range(20)))
    assert [text for text, _ in results] == ["ok"] * 20
    assert len({id(gateway) for _, gateway in results}) == 1
    assert sum(thread.name == "aigateway" for thread in threading.enumerate()) == 1
    assert facade.get_gateway_metrics()["total_requests"] == 20


def test_twenty_threads_over_real_http(monkeypatch):
    with Simulator.in_thread() as simulator:
        monkeypatch.setenv("OPENAI_API_KEY", simulator.openai.key)
        monkeypatch.setenv("OPENAI_BASE_URL", simulator.openai.api_base)
        monkeypatch.setenv("ANTHROPIC_API_KEY", simulator.anthropic.key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", simulator.anthropic.api_base)
        with ThreadPoolExecutor(20) as pool:
            prompts = [f"question {number}" for number in range(20)]
            answers = list(pool.map(lambda prompt: facade.call_llm(None, prompt), prompts))
        names = [status.name for status in facade.get_gateway().providers]
        facade._reset()
    assert answers == prompts  # the simulator echoes: nobody got somebody else's answer
    assert names == ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"]
    assert simulator.openai.request_count == 20


def test_an_environment_without_providers_is_an_error_until_it_has_one(monkeypatch):
    before = threading.active_count()
    for face in (facade.get_gateway, facade.get_gateway_metrics):
        with pytest.raises(NoProvidersError):
            face()
    with pytest.raises(NoProvidersError):
        facade.call_llm(user_prompt="x")
    assert threading.active_count() == before
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    assert facade.get_gateway_metrics()["providers_active"] == 1


def test_a_wrong_setting_is_told_as_such(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("AIGATEWAY_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="AIGATEWAY_TIMEOUT"):
        facade.call_llm(user_prompt="x")


def test_metrics_have_the_documented_keys(vendor):
    facade.call_llm(user_prompt="x")
    facade.call_llm(user_prompt="x")
    metrics = facade.get_gateway_metrics()
    documented = {
        "total_requests": 2,
        "cache_hits": 1,
        "cache_hit_rate_percent": 50.0,
        "failures": 0,
        "providers_active": 2,
    }
    assert documented.items() <= metrics.items()


def test_a_hook_may_look_at_the_metrics(monkeypatch):
    seen = []

    class Curious:
        def on_event(self, event: Event) -> None:
            if isinstance(event, RequestServed):
                seen.append(facade.get_gateway_metrics()["served"])

    monkeypatch.setattr(
        facade,
        "AsyncGateway",
        lambda: AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor(), hooks=[Curious()]),
    )
    facade.call_llm(user_prompt="x")
    assert seen == [1]


def test_ctrl_c_cancels_the_request_and_comes_through(vendor):
    cancelled = threading.Event()

    async def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    vendor.script("a", interrupted)
    with pytest.raises(KeyboardInterrupt):
        facade.call_llm(user_prompt="x")
    assert cancelled.wait(WAIT)
    assert facade.call_llm(user_prompt="x") == "ok"


def test_a_call_that_the_end_overtakes_hears_of_it(vendor):
    out = threading.Event()

    async def forever():
        out.set()
        await asyncio.Event().wait()

    vendor.script("a", forever)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(facade.call_llm, user_prompt="x")
        assert out.wait(WAIT)
        facade._reset()
        assert isinstance(call.exception(WAIT), GatewayError)
    assert vendor.open_clients == 0


def test_after_the_end_there_is_a_clear_refusal(vendor):
    facade.call_llm(user_prompt="x")
    facade._close_for_good()
    facade._close_for_good()
    with pytest.raises(GatewayError, match="closed"):
        facade.call_llm(user_prompt="x")
    assert not any(thread.name == "aigateway" for thread in threading.enumerate())


def test_a_gateway_that_cannot_begin_does_not_leave_its_caller_waiting(monkeypatch):
    class Broken(AsyncGateway):
        async def __aenter__(self):
            raise GatewayError("it will not")

    monkeypatch.setattr(
        facade, "AsyncGateway", lambda: Broken(scripted_configs("a"), vendor=ScriptedVendor())
    )
    with pytest.raises(GatewayError, match="it will not"):
        facade.get_gateway()


SCRIPTED = """
    from aigateway import facade
    from aigateway.gateway import AsyncGateway
    from aigateway.testing import ScriptedVendor, scripted_configs

    facade.AsyncGateway = lambda: AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor())
"""


def run_script(body, *options):
    script = textwrap.dedent(SCRIPTED) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, *options, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_script_ends_without_a_word():
    done = run_script('print(facade.call_llm(user_prompt="x"))', "-W", "error")
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_a_script_ends_though_a_call_is_out():
    done = run_script(
        """
        import asyncio, threading

        out = threading.Event()

        async def forever():
            out.set()
            await asyncio.Event().wait()

        vendor = ScriptedVendor()
        vendor.script("a", forever)
        facade.AsyncGateway = lambda: AsyncGateway(scripted_configs("a"), vendor=vendor)

        def call():
            try:
                facade.call_llm(user_prompt="x")
            except facade.GatewayError:
                pass

        threading.Thread(target=call, daemon=True).start()
        out.wait()
        """,
        *("-W", "error"),
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_gets_a_gateway_of_its_own():
    done = run_script(
        """
        import os, sys

        facade.call_llm(user_prompt="x")
        parents = facade.get_gateway()
        child = os.fork()
        if child == 0:
            assert facade.get_gateway() is not parents
            assert facade.call_llm(user_prompt="y") == "ok"
            assert facade.get_gateway_metrics()["total_requests"] == 1
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert facade.get_gateway() is parents
        assert facade.call_llm(user_prompt="y") == "ok"
        """,
        # Later Pythons warn of forking with threads, and this is about just that.
        *("-W", "error", "-W", "ignore::DeprecationWarning"),
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
