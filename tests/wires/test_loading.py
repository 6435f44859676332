"""Loading litellm does next to nothing to the process. Most tests run in one of their own."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from aigateway import AsyncGateway, DeadlineExceededError
from aigateway.wires import loading
from tests.processes import PATIENCE

pytestmark = pytest.mark.slow

WATCHED = """
    import sys
    contacted, opened = set(), set()

    def watch(event, args):
        if event in {"socket.getaddrinfo", "socket.connect"}:
            host = args[0] if event == "socket.getaddrinfo" else args[1]
            if isinstance(host, tuple):
                host = host[0]
            if isinstance(host, (str, bytes)) and host not in ("127.0.0.1", b"127.0.0.1"):
                contacted.add(str(host))
        elif event == "open" and str(args[0]).endswith(".env"):
            opened.add(str(args[0]))

    sys.addaudithook(watch)
"""

CALLS = """
    import asyncio, json
    from aigateway.clock import SYSTEM_CLOCK
    from aigateway.messages import ChatRequest
    from aigateway.simulator import Fault, Simulator
    from aigateway.wires.client import VendorCallError
    from aigateway.wires.litellm.lane import LiteLLMClient

    QUESTION = ChatRequest(messages=({"role": "user", "content": "2+2"},))

    async def call_everybody():
        async with Simulator() as simulator:
            for vendor in simulator.vendors:
                client = LiteLLMClient(vendor.config(), SYSTEM_CLOCK)
                await client.chat(QUESTION)
                for fault in (Fault.status(500), Fault.bad_key(), Fault.html(), Fault.refuse()):
                    vendor.behave(fault)
                    try:
                        await client.chat(QUESTION)
                    except VendorCallError:
                        pass
                await client.aclose()
"""


def run(*parts, **environment):
    """Run a program in a fresh interpreter; give its last line, parsed, and everything else."""
    program = "\n".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return json.loads(last), "\n".join(printed) + done.stderr


def test_importing_the_lane_does_not_import_litellm():
    found, _ = run(
        """
        import json, sys
        import aigateway.wires.direct_lane
        import aigateway.wires.litellm.lane
        import aigateway.wires.failures
        heavy = {"litellm", "openai", "httpx", "aiohttp"}
        print(json.dumps(sorted(heavy & sys.modules.keys())))
        """
    )
    assert found == []


MANY_LOOPS = """
    import threading
    from aigateway.wires import loading

    runs, original = [], loading._import_litellm
    loading._import_litellm = lambda: runs.append(1) or original()
    modules, free, cancelled = [], [], []

    async def load():
        ticks = 0
        first = asyncio.create_task(loading.load_litellm())
        await asyncio.sleep(0.05)
        first.cancel()
        others = asyncio.gather(*[loading.load_litellm() for _ in range(50)])
        while not others.done():
            await asyncio.sleep(0.01)
            ticks += 1
        modules.extend(others.result())
        free.append(ticks > 10)
        cancelled.append(first.cancelled())

    def load_on_many_loops():
        threads = [threading.Thread(target=asyncio.run, args=(load(),)) for _ in range(3)]
        [t.start() for t in threads]
        [t.join() for t in threads]
"""


@pytest.mark.proof
def test_many_loops_load_once_and_stay_free_and_calls_touch_nothing_and_print_nothing(tmp_path):
    (tmp_path / ".env").write_text("LEAKED=1")
    found, printed = run(
        WATCHED,
        CALLS,
        MANY_LOOPS,
        """
        import gc, logging, os
        loggers = [logging.getLogger(n) for n in ("asyncio", "httpx", "uvicorn.access")]
        state = lambda: [(logger.level, len(logger.filters)) for logger in loggers]
        environment, before = dict(os.environ), state()
        load_on_many_loops()

        async def main():
            asyncio.get_running_loop().slow_callback_duration = 60
            await call_everybody()

        asyncio.run(main(), debug=True)
        gc.collect()
        import litellm
        os.environ.pop("TIKTOKEN_CACHE_DIR", None)
        print(json.dumps({
            "loaded": [len(runs), len(modules), len(set(map(id, modules))), free, cancelled],
            "contacted": sorted(contacted),
            "opened": sorted(opened),
            "environment": dict(os.environ) == environment,
            "loggers": state() == before,
            "collecting": gc.isenabled(),
            "threads": [t.name for t in threading.enumerate()],
            "globals": [litellm.suppress_debug_info, litellm.drop_params, litellm.num_retries,
                        litellm.callbacks, litellm.success_callback],
        }))
        """,
    )
    assert found == {
        "loaded": [1, 150, 1, [True] * 3, [True] * 3],
        "contacted": [],
        "opened": [],
        "environment": True,
        "loggers": True,
        "collecting": True,
        "threads": ["MainThread"],
        "globals": [False, False, None, [], []],
    }
    assert printed == ""


@pytest.mark.proof
def test_whoever_imported_litellm_first_keeps_it_and_its_advice():
    found, printed = run(
        """
        import json, logging, os, sys
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        os.environ["LITELLM_MODE"] = "PRODUCTION"
        import litellm
        logger = logging.getLogger("httpx")
        logger.setLevel(logging.ERROR)

        def photograph():
            return {
                name: repr(getattr(litellm, name))
                for name in dir(litellm)
                if name != '_async_client_cleanup_registered'  # any use of litellm sets it
                and isinstance(getattr(litellm, name), bool | int | float | str | list | None)
            }

        before = photograph()
        """,
        CALLS,
        """
        from aigateway import AsyncGateway

        async def ask_a_gateway():
            async with Simulator() as simulator:
                configs = [vendor.config() for vendor in simulator.vendors]
                simulator.openai.behave(Fault.server_error())
                async with AsyncGateway(configs) as gateway:
                    for config in configs:
                        try:
                            await gateway.chat('hi', model=config.name)
                        except Exception:
                            pass

        async def bare():
            async with Simulator() as simulator:
                simulator.openai.behave(Fault.status(500))
                try:
                    await litellm.acompletion(
                        "openai/gpt-4o-mini", [{"role": "user", "content": "x"}], max_retries=0,
                        api_key="sk-1", api_base=simulator.openai.api_base)
                except litellm.InternalServerError:
                    pass

        asyncio.run(ask_a_gateway())
        asyncio.run(call_everybody())
        after = photograph()
        print("litellm alone:", flush=True)
        asyncio.run(bare())
        changed = [name for name in before if before[name] != after.get(name)]
        print(json.dumps([changed, logger.level, len(logger.filters)]))
        """,
    )
    assert found == [[], 40, 1]
    ours, _, theirs = printed.partition("litellm alone:")
    assert ours == ""
    assert theirs.count("Give Feedback / Get Help") == 1
    assert theirs.rstrip().endswith("turn_on_debug()'.")  # and nothing on stderr


async def test_loading_begins_when_the_gateway_is_entered_and_is_told_apart_from_the_vendors_time(
    monkeypatch, simulator
):
    loads, load = threading.Event(), loading._import_litellm

    def load_when_allowed():
        loads.wait(PATIENCE)
        return load()

    monkeypatch.setattr(loading, "_import", None)
    monkeypatch.setattr(loading, "_import_litellm", load_when_allowed)
    embedder = simulator.azure.config(name="embedder", model=simulator.azure.embedding_model)
    try:
        configs = [simulator.openai.config(name="chatter"), embedder]
        async with AsyncGateway(configs, timeout=PATIENCE) as gateway:
            assert loading._import is not None
            with pytest.raises(DeadlineExceededError) as caught:
                await gateway.chat("hi", timeout=0.2)
            assert not [*simulator.openai.received, *simulator.azure.received]
            assert all(provider.active for provider in gateway.providers)
            asyncio.get_running_loop().call_later(0.1, loads.set)
            first = await gateway.chat("hi", model="chatter", cache=False)
            second = await gateway.chat("hi", model="chatter", cache=False)
            async with gateway.stream("hi", model="chatter", cache=False) as stream:
                async for _ in stream:
                    pass
            vectors = await gateway.embed("hi", model="embedder")
    finally:
        loads.set()
    message = str(caught.value)
    assert "after 0 attempts" in message
    assert re.search(r"while litellm was loading \(\d+\.", message)
    assert "`await gateway.warmup()` first, or enter the gateway earlier" in message
    assert not caught.value.causes
    assert first.loading_seconds >= 0.1
    asked = sum(attempt.latency_seconds for attempt in first.attempts)
    assert first.loading_seconds + asked <= first.latency_seconds + 0.001
    assert second.loading_seconds == stream.response.loading_seconds == 0.0
    assert 0 <= vectors.loading_seconds < first.latency_seconds


BEGINNINGS = """
    import asyncio, gc, json, sys
    from aigateway import AsyncGateway, LLMConfig
    from aigateway.wires import loading

    loading._import_litellm = lambda: sys
    CONFIG = LLMConfig("openai", "m", api_key="k")

    async def frozen_with(allowed):
        async with AsyncGateway([CONFIG], freeze_gc=allowed):
            await loading.load_litellm()
            await asyncio.sleep(0.1)
            return gc.get_freeze_count()
"""


def test_loading_begins_in_a_loop_and_is_frozen_once_and_only_where_the_user_allows_it():
    found, _ = run(
        BEGINNINGS,
        """
        outside = AsyncGateway([CONFIG])
        begun = [loading._import is not None]

        def has_begun():
            begun.append(loading._import is not None)
            loading._import = None

        async def main():
            AsyncGateway([])
            has_begun()
            AsyncGateway([CONFIG])
            has_begun()
            async with outside:
                has_begun()
            counts = []
            for allowed in (False, True, True, False):
                counts.append(await frozen_with(allowed) > 1000)
                gc.unfreeze()  # a second gateway must not undo this
            print(json.dumps([begun, counts, gc.isenabled()]))

        asyncio.run(main())
        """,
    )
    assert found == [[False, False, True, True], [False, True, False, False], True]


def test_what_the_user_has_frozen_and_switched_off_stays_so():
    found, _ = run(
        BEGINNINGS,
        """
        gc.disable()
        gc.freeze()
        before = gc.get_freeze_count()

        async def main():
            without, with_it = await frozen_with(False), await frozen_with(True)
            print(json.dumps([without <= before < with_it, without > 1000, gc.isenabled()]))

        asyncio.run(main())
        """,
    )
    assert found == [True, True, False]


@pytest.mark.proof
def test_a_tokenizer_that_no_call_reads_is_loaded_where_it_is_asked_for():
    found, _ = run(
        """
        import json
        from aigateway.wires import loading
        read, load = [], json.load
        json.load = lambda file, **options: read.append(str(file.name)) or load(file, **options)
        counted = json.load
        litellm = loading._import_litellm()
        import litellm.utils as utils
        parsed = [name for name in read if "tokenizer" in name]
        held = sorted(set(vars(utils)) & {"json_data", "claude_json_str"})
        from litellm.utils import claude_json_str, json_data
        print(json.dumps([
            held,
            parsed,
            json.load is counted,
            json.loads(claude_json_str) == json_data,
            len(json_data["model"]["vocab"]),
            litellm.token_counter(model="claude-2", text="hello world how are you"),
            hasattr(utils, "no_such_name"),
        ]))
        """
    )
    assert found == [[], [], True, True, 65_000, 5, False]


def test_a_failed_import_is_tried_again(monkeypatch):
    outcomes = iter([ImportError("disk is full"), sys])

    def import_once():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(loading, "_import", None)
    monkeypatch.setattr(loading, "_import_litellm", import_once)
    with pytest.raises(ImportError):
        asyncio.run(loading.load_litellm())
    assert loading.loaded_litellm() is None
    assert asyncio.run(loading.load_litellm()) is sys
    assert loading.loaded_litellm() is sys


@pytest.mark.parametrize(
    "program",
    [
        "asyncio.run(AsyncGateway([CONFIG]).chat('hi'))",
        "import sys; sys.argv[1:] = ['chat', 'hi']; from aigateway.cli import app; app()",
        "from aigateway import call_llm; call_llm(user_prompt='hi')",
    ],
)
def test_an_interrupt_does_not_wait_for_the_import(program, tmp_path):
    (tmp_path / "litellm.py").write_text(
        f"import time; print('loading', flush=True); time.sleep({10 * PATIENCE})"
    )
    code = f"""
import asyncio
from aigateway import AsyncGateway, LLMConfig
CONFIG = LLMConfig("openai", "gpt-4o-mini", api_key="sk-1", api_base="http://127.0.0.1:9/v1")
{program}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
            "OPENAI_API_KEY": "sk-1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)  # the import takes ten times as long
    finally:
        process.kill()
        process.communicate()
    assert process.returncode != 0
