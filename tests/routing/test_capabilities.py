"""A request goes only to providers that can serve it."""

import pytest

from aigateway import (
    AsyncGateway,
    ConfigurationError,
    ContextWindowExceededError,
    FailureKind,
    LLMConfig,
    RequestRejectedError,
    UnknownModelError,
)
from aigateway.messages import NativeRequest
from aigateway.routing.capabilities import WORDS, described, needs_of
from aigateway.settings import load_providers
from aigateway.testing import scripted_configs
from aigateway.wires.loading import load_litellm
from aigateway.wires.pricing import capabilities_of

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
TEXT = {"type": "text", "text": "hi"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def file(**fields):
    return {"type": "file", "file": fields}


def asked(*parts):
    return [{"role": "user", "content": [TEXT, *parts]}]


@pytest.fixture
async def make(clock, vendor):
    made = []

    def make_gateway(*names, configs=None, **settings):
        configs = configs or scripted_configs(*(names or "abc"))
        gateway = AsyncGateway(configs, clock=clock, vendor=vendor, retry_rounds=0, **settings)
        made.append(gateway)
        return gateway

    yield make_gateway
    for gateway in made:
        await gateway.aclose()


def config(name, priority=0, **fields):
    (made,) = scripted_configs(name, **{"priority": priority, **fields})
    return made


class TestNeeds:
    @pytest.mark.parametrize(
        ("parts", "params", "needs"),
        [
            ((), {}, set()),
            (
                (),
                {"temperature": 0, "response_format": {"type": "json_object"}, "tools": []},
                set(),
            ),
            ((IMAGE,), {}, {"vision"}),
            ((AUDIO,), {}, {"audio_input"}),
            ((file(file_data="data:application/pdf;base64,AAAA"),), {}, {"pdf"}),
            ((file(file_data="DATA:Application/PDF;base64,AAAA"),), {}, {"pdf"}),
            ((file(file_id="https://x/y", format="application/pdf"),), {}, {"pdf"}),
            ((file(file_id="file-1", filename="a.PDF"),), {}, {"pdf"}),
            ((file(file_data="data:image/png;base64,AAAA", filename="a.pdf"),), {}, {"vision"}),
            ((file(file_data="data:text/plain;base64,AAAA", filename="a.pdf"),), {}, set()),
            ((file(file_id="file-1"),), {}, set()),
            ((), {"tools": TOOLS}, {"tools"}),
            ((), {"functions": [{"name": "f"}]}, {"tools"}),
            ((), {"tools": TOOLS, "parallel_tool_calls": True}, {"tools", "parallel_tools"}),
            ((), {"tools": TOOLS, "parallel_tool_calls": False}, {"tools"}),
            ((), {"response_format": SCHEMA}, {"json_schema"}),
            ((), {"modalities": ["text", "audio"]}, {"audio_output"}),
            ((), {"audio": {"voice": "alloy", "format": "wav"}}, {"audio_output"}),
            ((), {"reasoning_effort": "low"}, {"reasoning"}),
            ((), {"reasoning_effort": "none"}, set()),
            ((), {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"reasoning"}),
            ((), {"thinking": {"type": "disabled"}}, set()),
        ],
    )
    def test_of_a_request(self, parts, params, needs):
        assert needs_of(asked(*parts), params) == needs

    def test_also_of_the_result_of_a_tool(self):
        result = {"role": "tool", "tool_call_id": "1", "content": [IMAGE]}
        assert needs_of([{"role": "user", "content": "hi"}, result], {}) == {"vision"}


class TestCandidates:
    async def test_only_those_that_can_and_those_of_whom_it_is_not_known(self, make, vendor):
        vendor.capabilities = {"a": {"vision": False}, "c": {"vision": True}}
        vendor.always("b", FailureKind.SERVER_ERROR)
        gateway = make()
        reply = await gateway.chat(asked(IMAGE))
        assert [attempt.provider for attempt in reply.attempts] == ["b", "c"]
        assert (await gateway.chat("no image")).provider == "a"

    async def test_before_anything_is_known_and_after(self, make, vendor):
        vendor.capabilities = {"a": {"tools": False}}
        gateway = make("a", "b")
        for _ in range(2):
            reply = await gateway.chat("hi", tools=TOOLS, cache=False)
            assert [attempt.provider for attempt in reply.attempts] == ["b"]

    @pytest.mark.parametrize("warm", [False, True])
    async def test_no_candidate_is_an_error_that_names_what_is_missing_at_whom(
        self, make, vendor, warm
    ):
        vendor.capabilities = {"a": {"vision": False, "tools": True}, "b": {"tools": False}}
        gateway = make("a", "b")
        if warm:
            await gateway.warmup()
        with pytest.raises(RequestRejectedError) as refused:
            await gateway.chat(asked(IMAGE), tools=TOOLS)
        assert "(a: no images; b: no tools)" in str(refused.value)
        assert [c.provider for c in refused.value.causes] == ["a", "b"]
        assert refused.value.code == "capability_missing"
        assert vendor.calls == []

    async def test_a_stream_is_refused_before_it_begins(self, make):
        gateway = make(configs=[config("a", capabilities={"json_schema": False})])
        with pytest.raises(RequestRejectedError, match="a: no answers by a JSON schema"):
            gateway.stream("hi", response_format=SCHEMA)

    async def test_the_configuration_comes_before_the_map(self, make, vendor):
        vendor.capabilities = {name: {"vision": name == "b"} for name in "ab"}
        able = config("a", 2, capabilities={"vision": True})
        unable = config("b", 3, capabilities={"vision": False})
        gateway = make(configs=[able, unable])
        await gateway.warmup()
        assert (await gateway.chat(asked(IMAGE))).provider == "a"
        shown = {p.name: p.capabilities for p in gateway.providers}
        assert shown == {"a": {"vision": True}, "b": {"vision": False}}

    @pytest.mark.parametrize(
        "params",
        [{"reasoning_effort": "high"}, {"tools": TOOLS, "parallel_tool_calls": True}],
        ids=["reasoning", "parallel_tools"],
    )
    async def test_hints_exclude_only_by_configuration(self, make, vendor, request, params):
        name = request.node.callspec.id
        vendor.capabilities = {"a": {name: False}}
        gateway = make("a", "b")
        await gateway.warmup()
        assert (await gateway.chat("hi", **params)).provider == "a"
        told = make(configs=[config("a", 2, capabilities={name: False}), config("b", 1)])
        assert (await told.chat("hi", **params)).provider == "b"

    async def test_what_may_be_left_out_excludes_no_provider(self, make, vendor):
        vendor.capabilities = {"a": {"tools": False, "json_schema": False, "vision": False}}
        gateway = make("a", "b", drop_unsupported_params=True)
        await gateway.warmup()
        reply = await gateway.chat("hi", tools=TOOLS, response_format=SCHEMA)
        assert reply.provider == "a"
        assert (await gateway.chat(asked(IMAGE))).provider == "b"

    async def test_an_image_in_one_turn_moves_a_session_to_a_provider_that_sees(self, make):
        gateway = make(configs=[config("a", 2, capabilities={"vision": False}), config("b", 1)])
        assert (await gateway.chat("hi", session="s")).provider == "a"
        assert (await gateway.chat(asked(IMAGE), session="s")).provider == "b"
        assert (await gateway.chat("and now?", session="s")).provider == "b"

    async def test_a_provider_that_is_added_while_a_request_waits_can_serve_it(self, make, vendor):
        gateway = make(configs=[config("a", 2)])

        async def add():
            gateway.add_provider(config("b", 3, capabilities={"vision": False}))
            gateway.add_provider(config("c", 1, capabilities={"vision": True}))
            return FailureKind.SERVER_ERROR

        async def fail():
            await add()
            raise RuntimeError

        vendor.script("a", fail)
        reply = await gateway.chat(asked(IMAGE))
        assert [attempt.provider for attempt in reply.attempts] == ["a", "c"]


class TestContext:
    LONG = "word " * 20_000  # 25,000 tokens by the estimate

    async def test_a_window_that_is_clearly_too_small_is_passed_over(self, make, vendor):
        vendor.max_input_tokens = {"a": 400, "b": 20_000}
        gateway = make("a", "b")
        for warm in (False, True):
            reply = await gateway.chat(self.LONG, cache=False)
            assert [attempt.provider for attempt in reply.attempts] == ["b"], warm

    @pytest.mark.parametrize("warm", [False, True])
    async def test_too_long_for_all_is_said_at_once(self, make, vendor, warm):
        vendor.max_input_tokens = {"a": 400, "b": 700}
        gateway = make("a", "b")
        if warm:
            await gateway.warmup()
        with pytest.raises(ContextWindowExceededError, match=r"a: takes 400 tokens; b: takes 700"):
            await gateway.chat(self.LONG)
        assert vendor.calls == []

    async def test_who_could_take_it_but_lacks_something_else_is_named(self, make, vendor):
        vendor.max_input_tokens = {"a": 400}
        vendor.capabilities = {"b": {"tools": False}}
        gateway = make("a", "b")
        await gateway.warmup()
        with pytest.raises(RequestRejectedError, match=r"a: takes 400 tokens; b: no tools") as no:
            await gateway.chat(self.LONG, tools=TOOLS)
        assert no.value.code == "capability_missing"

    async def test_a_text_of_long_tokens_is_not_too_long(self, make, vendor):
        vendor.max_input_tokens = {"a": 4_000}
        gateway = make("a", "b")
        await gateway.warmup()
        table = ("name" + " " * 60 + "|") * 1_000  # 16 bytes for each token of o200k
        assert (await gateway.chat(table)).provider == "a"

    async def test_a_picture_is_no_long_text(self, make, vendor):
        vendor.max_input_tokens = {"a": 1_000}
        gateway = make("a", "b")
        await gateway.warmup()
        url = "data:image/png;base64," + "A" * 50_000
        reply = await gateway.chat(asked({"type": "image_url", "image_url": {"url": url}}))
        assert reply.provider == "a"


class TestProtocols:
    async def test_what_only_a_protocol_can_say_goes_to_those_that_speak_it(self, make, vendor):
        vendor.speaks = {"b": {"responses": None}, "c": {"responses": True}}
        vendor.always("b", FailureKind.NOT_OFFERED)
        gateway = make()
        native = NativeRequest("responses", {"background": True}, only="background")
        request = gateway._request("hi", {}, native=native)
        reply = await gateway._pipeline.chat(request)
        assert [attempt.provider for attempt in reply.attempts] == ["b", "c"]
        with pytest.raises(RequestRejectedError, match=r"background needs .* Responses") as refused:
            gateway._request("hi", {"model": "a"}, native=native)
        assert refused.value.param == "background"

    @pytest.mark.parametrize("warm", [False, True])
    async def test_if_none_speaks_it_no_vendor_is_called(self, make, vendor, warm):
        gateway = make("a", "b")
        if warm:
            await gateway.warmup()
        native = NativeRequest("messages", {}, only="container")
        with pytest.raises(RequestRejectedError, match=r"container needs .* a, b do not"):
            await gateway._pipeline.chat(gateway._request("hi", {}, native=native))
        assert vendor.calls == []


class TestCompletions:
    async def test_a_provider_of_completions_alone_gets_no_chats(self, make, vendor):
        only = config("a", 2, operations=["completions"])
        gateway = make(configs=[only, config("b", 1)])
        assert (await gateway.chat("hi")).provider == "b"
        alone = make(configs=[only])
        for model in (None, "a"):
            with pytest.raises(UnknownModelError, match="No provider offers chat"):
                await alone.chat("hi", model=model)
        assert vendor.called("a") == 0

    async def test_its_health_is_its_own(self, make, vendor):
        both = config("a", 2, operations=["chat", "completions"], aliases=["m"])
        gateway = make(configs=[both, config("b", 1, aliases=["m"])], failure_threshold=1)
        native = NativeRequest("completions", {"prompt": "hi"})
        request = gateway._request("hi", {"model": "m", "cache": False}, native=native)
        vendor.script("a", FailureKind.SERVER_ERROR)
        assert (await gateway._pipeline.chat(request)).provider == "b"
        (a, _) = gateway.providers
        states = {name: str(each.circuit_state) for name, each in a.operations.items()}
        assert states == {"chat": "closed", "completions": "open"}
        assert (await gateway.chat("hi", cache=False)).provider == "a"

    def test_only_openais_wire_has_them(self):
        with pytest.raises(ConfigurationError, match="operations"):
            LLMConfig("gemini", "m", api_key="k", operations=["completions"])


class TestConfiguration:
    @pytest.mark.parametrize("bad", [{"sight": True}, {"vision": "yes"}, {"vision": 1}])
    def test_unknown_names_and_values_are_refused(self, bad):
        with pytest.raises(ConfigurationError, match="capabilities"):
            LLMConfig("openai", "m", api_key="k", capabilities=bad)

    def test_in_a_file(self, tmp_path, monkeypatch):
        file = tmp_path / "aigateway.toml"
        file.write_text(
            '[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "k"\n'
            "capabilities = { vision = true, audio_input = false }\n"
        )
        monkeypatch.setenv("AIGATEWAY_CONFIG", str(file))
        (loaded,) = load_providers()
        assert loaded.capabilities == {"vision": True, "audio_input": False}


class TestMap:
    """What litellm's own map says."""

    @pytest.fixture(autouse=True)
    async def loaded(self):
        await load_litellm()

    @staticmethod
    def of(vendor, model, **fields):
        fields.setdefault("api_key", "k")
        return capabilities_of(LLMConfig(vendor, model, **fields))

    def test_a_model_of_each_large_vendor_is_known(self):
        assert self.of("openai", "gpt-4o-mini")["vision"] is True
        assert self.of("openai", "gpt-4o-mini")["audio_input"] is False
        assert self.of("openai", "gpt-4")["vision"] is False
        claude = self.of("anthropic", "claude-haiku-4-5")
        assert (claude["vision"], claude["tools"], claude["audio_input"]) == (True, True, False)
        assert self.of("gemini", "gemini-2.5-flash")["audio_input"] is True

    def test_a_model_that_only_speaks_has_speech(self):
        assert self.of("gemini", "gemini-2.5-pro-preview-tts")["audio_output"] is True
        assert self.of("gemini", "gemini-2.5-pro")["audio_output"] is False

    def test_nothing_is_denied_of_what_is_not_known(self):
        assert self.of("openai", "gpt-99") == {}
        assert self.of("openai_compatible", "gpt-4", api_base="http://127.0.0.1:9/v1") == {}
        assert False not in self.of("openai", "ft:gpt-4o-mini-2024-07-18:me::1").values()
        azure = self.of("azure", "gpt-4", api_base="https://x.openai.azure.com")
        assert False not in azure.values()

    async def test_an_image_goes_past_a_model_that_the_map_denies_it(self, simulator):
        blind, seeing = simulator.openai, simulator.anthropic
        configs = [blind.config(priority=2, model="gpt-4"), seeing.config(priority=1)]
        async with AsyncGateway(configs) as gateway:
            pixel = "data:image/png;base64,iVBORw0KGgo="
            image = {"type": "image_url", "image_url": {"url": pixel}}
            reply = await gateway.chat(asked(image))
        assert [attempt.provider for attempt in reply.attempts] == ["anthropic/claude-haiku-4-5"]
        assert (blind.request_count, seeing.request_count) == (0, 1)

    def test_in_plain_words(self):
        words = described({"vision": True, "tools": True, "audio_input": False}, 128_000)
        assert words == "images, tools, 128,000 tokens of input, no audio input"
        assert described({}) == ""
        assert len(WORDS) == 8
