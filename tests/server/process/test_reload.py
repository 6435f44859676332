"""The configuration read anew: what changes, what goes on, what is refused, and nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aigateway import AsyncGateway, CircuitState, GatewayError, RequestRejectedError
from aigateway.server.http.errors import Refusal
from aigateway.server.process.configuration import read_configuration
from aigateway.server.process.reload import FileWatch, Reloader, watch
from aigateway.server.process.shared_directory import SharedDirectory
from aigateway.server.process.worker import Process
from aigateway.server.service import Service
from aigateway.simulator import Fault, Simulator
from aigateway.wires.loading import load_litellm
from tests.server.visitors import Connection, eventually, once

pytestmark = pytest.mark.slow

DIGEST = "0" * 64


def provider(vendor, name: str = "one", **fields) -> str:
    """An entry of the file."""
    values = {
        "provider": "openai",
        "model": "m",
        "name": name,
        "api_key": vendor.key,
        "api_base": vendor.api_base,
        **fields,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["[[providers]]", *lines, ""])


ORDER = b'{"order": "open", "by": null}'


class Desk:
    """A service in this process, and its file."""

    def __init__(self, text: str) -> None:
        self.write(text)
        configuration = read_configuration({})
        self.shared = SharedDirectory()
        self.service = Service(
            configuration.make_gateway(), configuration.server, shared=self.shared
        )
        self.reloader = Reloader(self.service, configuration, lambda: read_configuration({}))

    def write(self, text: str) -> None:
        Path("aigateway.toml").write_text(text)

    async def now(self, text: str) -> bool:
        self.write(text)
        return await self.reloader.reload()

    async def ask(self, prompt: str = "hi", **options):
        with self.service.in_use() as gateway:
            return await gateway.chat(prompt, **options)


@contextlib.asynccontextmanager
async def desk_with(text: str) -> AsyncIterator[Desk]:
    desk = Desk(text)
    try:
        yield desk
    finally:
        await desk.reloader.aclose()
        await desk.service.gateway.aclose()


def write_dotenv(text: str) -> None:
    Path(".env").write_text(text)


class TestProviders:
    async def test_one_is_added_and_one_removed(self, simulator):
        one, two = provider(simulator.openai), provider(simulator.openai, "two", priority=1)
        async with desk_with(one) as desk:
            gateway = desk.service.gateway
            assert (await desk.ask(cache=False)).provider == "one"
            assert await desk.now(one + two)
            assert (await desk.ask(cache=False)).provider == "two"
            assert await desk.now(one)
            assert (await desk.ask(cache=False)).provider == "one"
            assert desk.service.gateway is gateway

    async def test_the_same_one_keeps_circuit_counters_and_connections(self, simulator):
        bad = provider(simulator.openai, "bad", priority=2, failure_threshold=1)
        other = await simulator.add("openai")
        good = provider(other, "good")
        async with desk_with(bad + good) as desk:
            simulator.openai.behave(Fault.server_error())
            assert (await desk.ask(cache=False)).provider == "good"
            before = desk.service.gateway.get_metrics()["providers"]
            assert await desk.now(bad + good + provider(other, "third", priority=-1))
            after = desk.service.gateway.get_metrics()["providers"]
            assert after["bad"] == before["bad"]
            assert after["bad"]["circuit_state"] == "open"
            assert after["good"]["attempts"] == 1
            await desk.ask(cache=False)
            assert other.open_connections == 1

    async def test_a_changed_one_begins_anew_and_calls_that_are_out_end(self, simulator):
        simulator.openai.latency = 0.2
        async with desk_with(provider(simulator.openai)) as desk:
            out = asyncio.create_task(desk.ask(cache=False))
            await eventually(lambda: simulator.openai.received)
            assert await desk.now(provider(simulator.openai, weight=2))
            assert not out.done()
            assert (await out).provider == "one"
            assert desk.service.gateway.get_metrics()["providers"]["one"]["attempts"] == 0

    async def test_one_of_two_of_a_model_keeps_its_name_and_state_without_the_other(
        self, simulator
    ):
        texts = [
            provider(simulator.openai, "", api_key=key).replace('name = ""\n', "")
            for key in (simulator.openai.key, "sk-other")
        ]
        async with desk_with("".join(texts)) as desk:
            gateway = desk.service.gateway
            assert [p.name for p in gateway.providers] == ["openai/m", "openai/m#2"]
            gateway.force_circuit("openai/m#2", "open")
            changed = ("cache_max_entries = 7", "cache_max_memory_bytes = 1_000_000")
            for settings in ("", *(f"[gateway]\n{each}\n" for each in changed)):
                assert await desk.now(settings + texts[1])
                (left,) = desk.service.gateway.providers
                assert (left.name, left.forced) == ("openai/m#2", True)
            assert desk.service.gateway.cache.stats()["max_bytes"] == 1_000_000

    async def test_the_environment_stands_over_the_file(self, simulator, monkeypatch):
        monkeypatch.setenv("AIGATEWAY_TIMEOUT", "7")
        write_dotenv("AIGATEWAY_MAX_QUEUE=3\n")
        text = provider(simulator.openai)
        async with desk_with(text) as desk:
            assert await desk.now("[gateway]\ntimeout = 9\nmax_queue = 4\n" + text)
            assert desk.service.gateway.settings.timeout == 7
            assert desk.service.gateway.settings.max_queue == 3
            write_dotenv("AIGATEWAY_MAX_QUEUE=5\n")
            assert await desk.reloader.reload()
            assert desk.service.gateway.settings.max_queue == 5


class TestSettings:
    async def test_another_gateway_goes_on_where_the_old_one_is(self, simulator):
        bad = provider(simulator.openai, "bad", priority=2, failure_threshold=1)
        good = provider(await simulator.add("openai"), "good")
        async with desk_with(bad + good) as desk:
            simulator.openai.behave(Fault.server_error())
            await desk.ask("remember me")
            old = desk.service.gateway
            before = old.get_metrics()
            assert await desk.now("[gateway]\nmax_prompt_bytes = 100\n" + bad + good)
            new = desk.service.gateway
            assert new is not old
            after = new.get_metrics()
            assert after["total_requests"] == before["total_requests"] == 1
            assert after["providers"]["bad"] == before["providers"]["bad"]
            assert (await desk.ask("remember me")).cached
            assert (await desk.ask("a new one")).provider == "good"
            assert new.get_metrics()["providers"]["bad"]["attempts"] == 1, "its circuit is open"
            with pytest.raises(RequestRejectedError, match="max_prompt_bytes"):
                await desk.ask("x" * 200)

    async def test_other_settings_of_cache_and_circuit_begin_anew(self, simulator):
        bad = provider(simulator.openai, "bad", priority=2)
        good = provider(await simulator.add("openai"), "good")
        gateway = "[gateway]\nfailure_threshold = 1\n"
        async with desk_with(gateway + bad + good) as desk:
            simulator.openai.behave(Fault.server_error())
            await desk.ask("remember me")
            gateway = "[gateway]\nfailure_threshold = 2\ncache_ttl_seconds = 5\n"
            assert await desk.now(gateway + bad + good)
            assert not (await desk.ask("remember me")).cached
            assert desk.service.gateway.get_metrics()["providers"]["bad"]["attempts"] == 2

    async def test_the_old_one_is_closed_when_its_last_request_is_over(self, simulator):
        simulator.openai.latency = 0.2
        text = provider(simulator.openai)
        async with desk_with(text) as desk:
            old = desk.service.gateway
            out = asyncio.create_task(desk.ask(cache=False))
            await eventually(lambda: simulator.openai.received)
            assert await desk.now("[gateway]\ntimeout = 9\n" + text)
            assert (await desk.ask(cache=False)).provider == "one"
            assert (await out).provider == "one"
            await eventually(lambda: old._closed)
            metrics = desk.service.gateway.get_metrics()
            assert metrics["providers"]["one"]["attempts"] == 2, "what ended at the old one counts"

    async def test_a_circuit_that_opens_at_the_old_one_is_open_at_the_new_one(self, simulator):
        simulator.openai.latency = 0.2
        simulator.openai.behave(Fault.server_error())
        text = provider(simulator.openai, failure_threshold=1)
        async with desk_with("[gateway]\nretry_rounds = 0\n" + text) as desk:
            out = asyncio.create_task(desk.ask(cache=False))
            await eventually(lambda: simulator.openai.received)
            assert await desk.now("[gateway]\nretry_rounds = 0\ntimeout = 9\n" + text)
            await asyncio.wait([out])
            assert out.exception() is not None
            (status,) = desk.service.gateway.providers
            assert status.circuit_state is CircuitState.OPEN

    async def test_middleware_changes_and_one_that_cannot_work_is_refused(
        self, simulator, tmp_path, monkeypatch, caplog
    ):
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(tmp_path)
        for name in ("one", "two"):
            (tmp_path / f"guards_{name}.py").write_text(
                "class Guard:\n    async def before(self, request):\n"
                f"        return request.map_texts(lambda text: 'from {name}')\n"
            )
        vendor = provider(simulator.openai)

        def configured(path):
            return f'[gateway]\nmiddleware = ["{path}"]\n{vendor}'

        async with desk_with(configured("guards_one:Guard")) as desk:
            await desk.ask("a", cache=False)
            assert await desk.now(configured("guards_two:Guard"))
            await desk.ask("b", cache=False)
            assert not await desk.now(configured("guards_two:NoGuard"))
            await desk.ask("c", cache=False)
            assert await desk.now(vendor)
            await desk.ask("d", cache=False)
        sent = [request.body["messages"][0]["content"] for request in simulator.openai.received]
        assert sent == ["from one", "from two", "from two", "d"]
        assert "guards_two has no NoGuard" in caplog.text

    async def test_one_that_is_in_use_takes_over_nobody(self, simulator):
        async with desk_with(provider(simulator.openai)) as desk:
            await desk.ask()
            with pytest.raises(GatewayError, match="not in use yet"):
                desk.service.gateway.take_over(desk.service.gateway)


class TestServer:
    async def test_keys_count_from_the_next_request_on(self, simulator):
        text = provider(simulator.openai)
        async with desk_with(text) as desk:
            first = desk.service.access
            key = f'[[server.keys]]\nname = "a"\nsha256 = "{DIGEST}"\n'
            server = '[server]\nmax_body_bytes = 5\npass_params = ["min_p"]\n'
            assert await desk.now(server + key + text)
            assert desk.service.access is not first
            assert desk.service.settings.max_body_bytes == 5
            assert desk.service.settings.pass_params == ("min_p",)
            assert [key.name for key in desk.service.settings.keys] == ["a"]

    async def test_it_is_said_which_keys_came_and_went(self, simulator, caplog):
        text = provider(simulator.openai)

        def keys(*names):
            tables = (f'[[server.keys]]\nname = "{n}"\nsha256 = "{n * 64}"\n' for n in names)
            return "".join(tables) + text

        async with desk_with(keys("a", "b")) as desk:
            with caplog.at_level(logging.WARNING):
                assert await desk.now("[server]\nrequest_timeout = 9\n" + keys("b", "c"))
            assert "reload.done: [server] keys added c; removed a, request_timeout" in caplog.text

    async def test_what_needs_a_restart_is_said(self, simulator, caplog):
        text = provider(simulator.openai)
        async with desk_with(text) as desk:
            with caplog.at_level(logging.WARNING):
                assert await desk.now("[server]\nport = 1\nworkers = 4\n" + text)
            assert "[server] port, workers can only change with a restart" in caplog.text

    async def test_the_last_key_does_not_go_while_others_reach_the_service(self, simulator, caplog):
        text = provider(simulator.openai)
        key = f'[[server.keys]]\nname = "a"\nsha256 = "{DIGEST}"\n'
        async with desk_with('[server]\nhost = "0.0.0.0"\n' + key + text) as desk:
            for bare in ("", "[server]\n", '[server]\nhost = "127.0.0.1"\n'):
                assert not await desk.now(bare + text)
                assert [key.name for key in desk.service.settings.keys] == ["a"]
                with pytest.raises(Refusal):
                    desk.service.access.identify(None, None)
        assert "reload.refused" in caplog.text
        assert "without keys everybody" in caplog.text

    async def test_shares_stay_those_of_the_processes_that_run(self, simulator):
        text = provider(simulator.openai)
        key = f'[[server.keys]]\nname = "a"\nsha256 = "{DIGEST}"\nbudget_usd = 8\n'
        async with desk_with("[server]\nworkers = 4\n" + key + text) as desk:
            assert await desk.now("[server]\nworkers = 1\nmax_body_bytes = 9\n" + key + text)
            assert [usage.budget_usd for usage in desk.service.access.usage()] == [2]
            assert desk.service.settings.max_body_bytes == 9

    async def test_standing_orders_are_obeyed_again(self, simulator):
        async with desk_with(provider(simulator.openai)) as desk:
            heard = []
            desk.shared.subscribe(lambda subject, order: heard.append((subject, order)))
            desk.shared.order("other", ORDER)
            assert await desk.now(provider(simulator.openai, weight=3))
            assert heard == [("other", ORDER)] * 2


async def test_a_gateway_that_cannot_be_made_ready_is_closed_and_the_old_one_stays(
    simulator, monkeypatch, caplog
):
    async with desk_with(provider(simulator.openai)) as desk:
        old, made = desk.service.gateway, []

        async def unready(gateway: AsyncGateway) -> None:
            made.append(gateway)
            raise RuntimeError("sk-secret")

        with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
            patched.setattr(AsyncGateway, "warmup", unready)
            assert not await desk.now("[gateway]\ntimeout = 9\n" + provider(simulator.openai))
        (new,) = made
        with pytest.raises(GatewayError, match="closed"):
            await new.chat("hi")
        assert desk.service.gateway is old
        assert (await desk.ask()).provider == "one"
        (record,) = caplog.records
        assert record.getMessage().startswith("reload.failed")
        assert "RuntimeError" in record.getMessage()
        assert "sk-secret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gateway\n", "not valid TOML"),
        ("[gateway]\ntimeout = -1\n", "timeout"),
        ("[gateway]\ntimeuot = 1\n", 'did you mean "timeout"'),
        ('[server]\nhost = "0.0.0.0"\n', "host"),
        ('[server]\npass_params = ["api_base"]\n', "pass_params"),
        ("", "No provider is configured"),
        ('[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "sk-bad key"\n', "api_key"),
        (
            2 * '[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "sk-bad"\n',
            "Two providers are named",
        ),
    ],
)
async def test_a_bad_file_changes_nothing_and_is_said_once(simulator, caplog, text, words):
    good = provider(simulator.openai)
    async with desk_with(good) as desk:
        gateway = desk.service.gateway
        with caplog.at_level(logging.WARNING):
            assert not await desk.now(text)
        (record,) = caplog.records
        assert (record.levelname, record.getMessage().split(":")[0]) == ("ERROR", "reload.refused")
        assert words in record.getMessage()
        assert "sk-" not in record.getMessage()
        assert desk.service.gateway is gateway
        assert (await desk.ask()).provider == "one"
        assert not desk.service.draining
        assert await desk.now(good + provider(simulator.openai, "two", priority=9))
        assert (await desk.ask(cache=False)).provider == "two"


async def test_what_changes_while_a_process_gets_ready_is_taken_when_it_is(simulator, monkeypatch):
    loaded, asked_for = asyncio.Event(), asyncio.Event()

    async def load_slowly():
        asked_for.set()
        await loaded.wait()
        return await load_litellm()

    monkeypatch.setattr("aigateway.wires.direct_lane.load_litellm", load_slowly)
    write(Path.cwd(), provider(simulator.openai))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = Process(read_configuration({}), lambda: read_configuration({}), listener)
        running = asyncio.create_task(process.run(lambda: None))
        await asked_for.wait()
        write(Path.cwd(), provider(simulator.openai, "two"))
        process.reload()
        await asyncio.sleep(0.01)
        loaded.set()
        await eventually(lambda: process.service.gateway.providers[0].name == "two")
        process.shutdown.hurry()
        await running


class TestWatching:
    def test_written_in_place_or_put_in_its_place(self, tmp_path):
        path, other = tmp_path / "a.toml", tmp_path / "a.toml~"
        path.write_text("1")
        watched = FileWatch(path)
        assert not watched.has_changed()
        path.write_text("22")
        assert [watched.has_changed() for _ in range(3)] == [False, True, False]
        other.write_text("33")
        other.replace(path)
        assert [watched.has_changed() for _ in range(3)] == [False, True, False]

    def test_not_before_it_is_at_rest(self, tmp_path):
        path = tmp_path / "a.toml"
        watched = FileWatch(path)
        seen = []
        for size in range(1, 5):
            path.write_text("x" * size)
            seen.append(watched.has_changed())
        assert seen == [False] * 4
        assert watched.has_changed()

    def test_one_that_is_gone_has_not_changed(self, tmp_path):
        path = tmp_path / "a.toml"
        path.write_text("1")
        watched = FileWatch(path)
        path.unlink()
        assert [watched.has_changed() for _ in range(3)] == [False] * 3
        path.write_text("2")
        assert [watched.has_changed() for _ in range(3)] == [False, True, False]

    def test_a_mounted_config_map(self, tmp_path):
        """Kubernetes moves a link to another directory; the file's own link stays."""
        for name in ("v1", "v2"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.toml").write_text(name)
        (tmp_path / "data").symlink_to("v1")
        (tmp_path / "a.toml").symlink_to("data/a.toml")
        watched = FileWatch(tmp_path / "a.toml")
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").replace(tmp_path / "data")
        assert [watched.has_changed() for _ in range(3)] == [False, True, False]

    async def test_watching_calls_once_for_each_change(self, tmp_path, clock):
        path = tmp_path / "a.toml"
        called = asyncio.Event()

        async def then() -> None:
            called.set()

        task = asyncio.create_task(watch(FileWatch(path), then, clock))
        await clock.advance(0)
        path.write_text("1")
        while not called.is_set():
            await clock.advance(0.5)
            await asyncio.sleep(0.001)  # the look is in a thread
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_hundreds_of_requests_while_it_reloads_again_and_again(start, workers):
    async with Simulator() as simulator:
        simulator.openai.latency = 0.01
        texts = [
            "",
            "[gateway]\nmax_queue = 77\n",
            "[gateway]\ncache_enabled = false\n",
            "[gateway\n",
        ]
        kept = provider(simulator.openai, "kept")
        extra = [provider(simulator.openai, "extra", priority=place) for place in (1, 2)]
        service = start("--workers", workers, toml=kept)
        port = await asyncio.to_thread(lambda: service.port)
        over = asyncio.Event()
        counts: Counter[int] = Counter()
        visits = [asyncio.create_task(visit(port, who, counts, over)) for who in range(6)]
        for turn in itertools.count():
            if turn > 16 and counts.total() > 150:
                break
            write(service.directory, texts[turn % 4] + kept + "".join(extra[: turn % 3]))
            service.signal(signal.SIGHUP)
            await asyncio.sleep(0.03)
        write(service.directory, kept + provider(simulator.openai, "told", priority=3))
        service.signal(signal.SIGHUP)
        await eventually(lambda: answers(port, "told"))
        write(service.directory, kept + provider(simulator.openai, "seen", priority=3))
        await eventually(lambda: answers(port, "seen"))  # this time nobody has said so
        over.set()
        await asyncio.gather(*visits)
        assert min(counts.values()) > 10
        assert "reload.refused" in service.log
        assert "not valid TOML" in service.log
        assert "Traceback" not in service.log
        service.signal(signal.SIGTERM)
        assert await asyncio.to_thread(lambda: service.code) == 0


async def answers(port: int, name: str) -> bool:
    """Whether it is that provider who answers."""
    _, _, told = await once(port, "/t/chat?prompt=who&cache=false")
    return bool(told["provider"] == name)


async def visit(port: int, who: int, counts: Counter[int], over: asyncio.Event) -> None:
    connection = Connection(port)
    while not over.is_set():
        prompt = f"{who}-{counts[who]}"
        status, _, told = await connection.get(f"/t/chat?prompt={prompt}")
        assert (status, told["text"]) == (200, prompt), told
        counts[who] += 1
    await connection.close()


def write(directory: Path, text: str) -> None:
    """As an editor does."""
    beside = directory / f"aigateway.toml.{os.urandom(4).hex()}"
    beside.write_text(text)
    beside.replace(directory / "aigateway.toml")
