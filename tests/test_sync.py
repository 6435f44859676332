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
from aigateway import sync
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
    sync._reset()
    yield
    sync._reset()


@pytest.fixture
def vendor(monkeypatch):
    """What the process's gateway asks, in place of the environment's vendors."""
    scripted = ScriptedVendor()
    monkeypatch.setattr(
        sync, "AsyncGateway", lambda: AsyncGateway(scripted_configs("a", "b"), vendor=scripted)
    )
    return scripted


def test_one_line_is_enough(vendor):
    vendor.script("a", "four")
    text = sync.call_llm(system_prompt="Be terse.", user_prompt="What is 2+2?", temperature=0)
    assert text == "four"
    _, request = vendor.calls[0]
    assert [dict(message) for message in request.messages] == [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "What is 2+2?"},
    ]
    assert request.params["temperature"] == 0


def test_takes_its_three_arguments_by_place_too(vendor):
    assert sync.call_llm("Be terse.", "What is 2+2?", 0.5) == "ok"
    assert vendor.calls[0][1].params["temperature"] == 0.5


def test_other_keywords_reach_chat(vendor):
    sync.call_llm(user_prompt="x", model="b", max_tokens=7, timeout=3, agent="me", seed=1)
    name, request = vendor.calls[0]
    assert name == "b"
    assert (request.timeout, request.agent) == (3, "me")
    assert request.params == {"max_tokens": 7, "seed": 1}


def test_asks_for_the_user_prompt(vendor):
    with pytest.raises(RequestRejectedError, match="user_prompt"):
        sync.call_llm("What is 2+2?")
    assert vendor.called() == 0


def test_answers_are_cached(vendor):
    assert [sync.call_llm(user_prompt="x") for _ in range(3)] == ["ok"] * 3
    assert sync.call_llm(user_prompt="x", cache=False) == "ok"
    assert vendor.called() == 2
    assert sync.get_gateway_metrics()["cache_hits"] == 2


def test_errors_come_out_as_chat_raises_them(vendor):
    vendor.always("a", FailureKind.AUTHENTICATION)
    vendor.always("b", FailureKind.NO_CREDIT)
    with pytest.raises(AllProvidersFailedError) as caught:
        sync.call_llm(user_prompt="x")
    assert [cause.provider for cause in caught.value.causes] == ["a", "b"]
    assert sync.get_gateway_metrics()["failures"] == 1


async def test_refuses_to_block_an_event_loop(vendor):
    with pytest.raises(GatewayError, match=r"await gateway\.chat\(\)"):
        sync.call_llm(user_prompt="x")
    assert await asyncio.to_thread(sync.call_llm, user_prompt="x") == "ok"


async def test_its_gateway_refuses_another_loop(vendor):
    gateway = sync.get_gateway()
    with pytest.raises(GatewayError, match="another event loop"):
        await gateway.chat("x")


def test_many_threads_get_one_gateway_and_one_loop(vendor):
    barrier = threading.Barrier(20)

    def call(number):
        barrier.wait(WAIT)
        return sync.call_llm(user_prompt=f"question {number}"), sync.get_gateway()

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(call, range(20)))
    assert [text for text, _ in results] == ["ok"] * 20
    assert len({id(gateway) for _, gateway in results}) == 1
    assert sum(thread.name == "aigateway" for thread in threading.enumerate()) == 1
    assert sync.get_gateway_metrics()["total_requests"] == 20


def test_twenty_threads_over_real_http(monkeypatch):
    with Simulator.in_thread() as simulator:
        monkeypatch.setenv("OPENAI_API_KEY", simulator.openai.key)
        monkeypatch.setenv("OPENAI_BASE_URL", simulator.openai.api_base)
        monkeypatch.setenv("ANTHROPIC_API_KEY", simulator.anthropic.key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", simulator.anthropic.api_base)
        with ThreadPoolExecutor(20) as pool:
            prompts = [f"question {number}" for number in range(20)]
            answers = list(pool.map(lambda prompt: sync.call_llm(None, prompt), prompts))
        names = [status.name for status in sync.get_gateway().providers]
        sync._reset()
    assert answers == prompts  # the simulator echoes: nobody got somebody else's answer
    assert names == ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"]
    assert simulator.openai.request_count == 20


def test_an_environment_without_providers_is_an_error_until_it_has_one(monkeypatch):
    before = set(threading.enumerate())
    for face in (sync.get_gateway, sync.get_gateway_metrics):
        with pytest.raises(NoProvidersError):
            face()
    with pytest.raises(NoProvidersError):
        sync.call_llm(user_prompt="x")
    assert set(threading.enumerate()) <= before  # others may end
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    assert sync.get_gateway_metrics()["providers_active"] == 1


def test_a_wrong_setting_is_reported(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("AIGATEWAY_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="AIGATEWAY_TIMEOUT"):
        sync.call_llm(user_prompt="x")


def test_metrics_have_the_documented_keys(vendor):
    sync.call_llm(user_prompt="x")
    sync.call_llm(user_prompt="x")
    metrics = sync.get_gateway_metrics()
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
                seen.append(sync.get_gateway_metrics()["served"])

    monkeypatch.setattr(
        sync,
        "AsyncGateway",
        lambda: AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor(), hooks=[Curious()]),
    )
    sync.call_llm(user_prompt="x")
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
        sync.call_llm(user_prompt="x")
    assert cancelled.wait(WAIT)
    assert sync.call_llm(user_prompt="x") == "ok"


def test_a_call_that_the_end_overtakes_hears_of_it(vendor):
    out = threading.Event()

    async def forever():
        out.set()
        await asyncio.Event().wait()

    vendor.script("a", forever)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(sync.call_llm, user_prompt="x")
        assert out.wait(WAIT)
        sync._reset()
        assert isinstance(call.exception(WAIT), GatewayError)
    assert vendor.open_clients == 0


def test_after_the_end_there_is_a_clear_refusal(vendor):
    sync.call_llm(user_prompt="x")
    sync._close_at_exit()
    sync._close_at_exit()
    with pytest.raises(GatewayError, match="closed"):
        sync.call_llm(user_prompt="x")
    assert not any(thread.name == "aigateway" for thread in threading.enumerate())


def test_a_gateway_that_cannot_begin_does_not_leave_its_caller_waiting(monkeypatch):
    class Broken(AsyncGateway):
        async def __aenter__(self):
            raise GatewayError("it will not")

    monkeypatch.setattr(
        sync, "AsyncGateway", lambda: Broken(scripted_configs("a"), vendor=ScriptedVendor())
    )
    with pytest.raises(GatewayError, match="it will not"):
        sync.get_gateway()


SCRIPTED = """
    from aigateway import sync
    from aigateway.gateway import AsyncGateway
    from aigateway.testing import ScriptedVendor, scripted_configs

    sync.AsyncGateway = lambda: AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor())
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
    done = run_script('print(sync.call_llm(user_prompt="x"))', "-W", "error")
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
        sync.AsyncGateway = lambda: AsyncGateway(scripted_configs("a"), vendor=vendor)

        def call():
            try:
                sync.call_llm(user_prompt="x")
            except sync.GatewayError:
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

        sync.call_llm(user_prompt="x")
        parents = sync.get_gateway()
        child = os.fork()
        if child == 0:
            assert sync.get_gateway() is not parents
            assert sync.call_llm(user_prompt="y") == "ok"
            assert sync.get_gateway_metrics()["total_requests"] == 1
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert sync.get_gateway() is parents
        assert sync.call_llm(user_prompt="y") == "ok"
        """,
        # Later Pythons warn of forking with threads, and this is about just that.
        *("-W", "error", "-W", "ignore::DeprecationWarning"),
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
