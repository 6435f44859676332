"""Anthropic's Messages over real HTTP, in front of simulated vendors of every wire."""

import base64
import json
import logging
from typing import Any

import httpx
import pytest

from aigateway.simulator import Fault
from aigateway.simulator.answers import SimulatedAnswer
from tests.processes import PATIENCE
from tests.protocols.events import put_together, read_events
from tests.server.callers import api_key
from tests.server.services import served

PATH, COUNT = "/v1/messages?beta=true", "/v1/messages/count_tokens"
USER = {"role": "user", "content": "hi"}
BODY = {"model": "auto", "max_tokens": 100, "messages": [USER]}
WIRES = ("openai", "azure", "gemini", "openai_compatible")
TOOL = {
    "name": "weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
PIXEL = base64.b64encode(b"no picture, but nothing here looks at it").decode()
IMAGE = {"type": "base64", "media_type": "image/png", "data": PIXEL}
PDF = base64.b64encode(b"%PDF-1.4 small").decode()


@pytest.fixture
async def vendors(simulator):
    """Every vendor, by its wire."""
    await simulator.add("openai_compatible")
    return {wire: simulator.vendor(wire) for wire in (*WIRES, "anthropic")}


@pytest.fixture
def serve():
    """Enter a service and a client of it."""
    return _Client


class _Client:
    def __init__(self, *vendors, headers=None, **options):
        self._serving = served(*vendors, **{"cache_enabled": False} | options)
        self._headers = headers

    async def __aenter__(self):
        _, url = await self._serving.__aenter__()
        self._http = httpx.AsyncClient(base_url=url, timeout=PATIENCE, headers=self._headers)
        return self

    async def __aexit__(self, *error):
        await self._http.aclose()
        await self._serving.__aexit__(*error)

    async def ask(self, *, path=PATH, headers=None, **fields):
        return await self._http.post(path, json=BODY | fields, headers=headers)

    async def message(self, **fields):
        answer = await self.ask(**fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def events(self, **fields):
        answer = await self.ask(stream=True, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return read_events(answer.text)

    async def both(self, **fields):
        """A message that is the same whole and streamed, but for its own names."""
        whole = await self.message(**fields)
        streamed = put_together(await self.events(**fields))
        for message in (whole, streamed):
            assert message.pop("id").startswith("msg_")
        names = [
            [b["id"] for b in m["content"] if b["type"] == "tool_use"] for m in (whole, streamed)
        ]
        assert len(names[0]) == len(names[1])
        assert without_ids(streamed) == without_ids(whole)
        return whole

    async def get(self, path, **options):
        return await self._http.get(path, **options)

    async def post(self, path, **options):
        return await self._http.post(path, **options)


def without_ids(message):
    content = []
    for block in message["content"]:
        names = {"id", "data"} if block["type"] in {"tool_use", "redacted_thinking"} else set()
        content.append({n: v for n, v in block.items() if n not in names})
    return message | {"content": content}


async def test_text(vendors, serve):
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "cached_tokens": 8}
    async with serve(*vendors.values()) as client:
        for wire in WIRES:
            vendor = vendors[wire]
            vendor.answer(SimulatedAnswer("Hello there, you.", usage=usage))
            system = [{"type": "text", "text": "Be brief."}]
            message = await client.both(model=vendor.config().name, system=system)
            assert message == {
                "type": "message",
                "role": "assistant",
                "model": message["model"],
                "content": [{"type": "text", "text": "Hello there, you."}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {
                    "input_tokens": 12,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 8,
                    "output_tokens": 5,
                },
            }
            assert "Be brief." in json.dumps(vendor.received[0].body)


async def test_a_tool_is_called_and_its_result_comes_back(vendors, serve):
    async with serve(*vendors.values()) as client:
        for wire in WIRES:
            await a_tool_loop(client, vendors[wire])


async def a_tool_loop(client, vendor):
    """Let the model call a tool, give it the result, and look at what the vendor gets."""
    model = vendor.config().name
    vendor.answer(SimulatedAnswer("Let me look.", tool_calls=[CALL, CALL | {"arguments": {}}]))
    message = await client.both(model=model, tools=[TOOL], tool_choice={"type": "any"})
    calls = [block for block in message["content"] if block["type"] == "tool_use"]
    assert [call["input"] for call in calls] == [{"city": "Oslo"}, {}]
    assert message["stop_reason"] == "tool_use"
    picture = {"type": "image", "source": IMAGE}
    results = [
        {
            "type": "tool_result",
            "tool_use_id": call["id"],
            "content": [{"type": "text", "text": "RAIN"}, picture],
            "is_error": True,
        }
        for call in calls
    ]
    vendor.answer("It rains.")
    turn = {"role": "assistant", "content": message["content"]}
    again = {"role": "user", "content": [*results, {"type": "text", "text": "So?"}]}
    messages = [USER, turn, again]
    answer = await client.message(model=model, tools=[TOOL], messages=messages)
    assert answer["content"] == [{"type": "text", "text": "It rains."}]
    sent = json.dumps(vendor.received[-1].body)
    assert sent.count("Error: RAIN") == 2
    assert sent.count(PIXEL) == 2
    assert "Oslo" in sent


STAND_INS = ("skip_thought", base64.b64encode(b"skip_thought").decode())
"""Google's own for a call that another vendor has made, as it is and in base64."""
READS = {(wire, "openai_compatible") for wire in ("openai", "azure", "openai_compatible")}
READS |= {("anthropic", "anthropic")}
"""Which vendor gets the visible thinking of which one."""


async def test_thinking_travels_in_what_clients_send_back(vendors, serve):
    """A second turn goes on at the same vendor, and none refuses what another one has signed."""
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 4096}
    async with serve(*vendors.values()) as client:
        for wire, vendor in vendors.items():
            asked = {"model": vendor.config().name, "tools": [TOOL], **thinking}
            vendor.answer(SimulatedAnswer("", tool_calls=[CALL], reasoning="Hm, weather."))
            message = await client.message(**asked)
            streamed = put_together(await client.events(**asked))
            assert without_ids(streamed)["content"] == without_ids(message)["content"]
            first, call = message["content"][0], message["content"][-1]
            if wire in {"gemini", "openai_compatible", "anthropic"}:  # OpenAI shows no reasoning
                assert (first["type"], first["thinking"]) == ("thinking", "Hm, weather.")
                assert first["signature"]
            result = {"type": "tool_result", "tool_use_id": call["id"], "content": "RAIN"}
            turn = {"role": "assistant", "content": message["content"]}
            messages = [USER, turn, {"role": "user", "content": [result]}]
            for other in vendors.values():
                other.answer("It rains.")
                asked |= {"model": other.config().name, "messages": messages}
                answer = await client.message(**asked)
                assert answer["content"][-1] == {"type": "text", "text": "It rains."}
                sent = json.dumps(other.received[-1].body)
                assert "aigateway1" not in sent
                signed = "thoughtSignature" in sent and not any(map(sent.count, STAND_INS))
                seen = "Hm, weather." in sent, signed
                own = other is vendor
                shown = (wire, other.wire) in READS
                assert seen == (shown, own and wire == "gemini"), (wire, other.wire)


async def test_reasoning_that_was_not_asked_for_is_carried_but_not_shown(vendors, serve):
    vendor = vendors["openai_compatible"]
    async with serve(vendor) as client:
        vendor.answer(SimulatedAnswer("Hello.", reasoning="Hm."))
        assert (await client.both())["content"] == [{"type": "text", "text": "Hello."}]
        vendor.answer(SimulatedAnswer("Look.", tool_calls=[CALL], reasoning="Hm."))
        message = await client.both(tools=[TOOL])
        kinds = [block["type"] for block in message["content"]]
        assert kinds == ["text", "redacted_thinking", "tool_use"]
        name = message["content"][-1]["id"]
        result = {"type": "tool_result", "tool_use_id": name}
        turn = {"role": "assistant", "content": message["content"]}
        await client.message(
            tools=[TOOL], messages=[USER, turn, {"role": "user", "content": [result]}]
        )
        (said,) = [m for m in vendor.received[-1].body["messages"] if m["role"] == "assistant"]
        assert said["reasoning_content"] == "Hm."


@pytest.mark.parametrize("wire", ["openai", "gemini"])
async def test_pictures_and_documents(vendors, serve, wire):
    vendor = vendors[wire]
    document = {"type": "base64", "media_type": "application/pdf", "data": PDF}
    plain = {"type": "text", "media_type": "text/plain", "data": "PLAIN WORDS"}
    content = [
        {"type": "image", "source": IMAGE},
        {"type": "document", "source": document, "title": "Report"},
        {"type": "document", "source": plain, "title": "Notes", "context": "Old."},
        {
            "type": "search_result",
            "source": "s",
            "title": "t",
            "content": [{"type": "text", "text": "FOUND"}],
        },
        {"type": "text", "text": "What is it?", "cache_control": {"type": "ephemeral"}},
    ]
    async with serve(vendor) as client:
        await client.message(messages=[{"role": "user", "content": content}])
    sent = json.dumps(vendor.received[-1].body)
    for part in (PIXEL, PDF, "PLAIN WORDS", "Notes", "Old.", "FOUND", "What is it?"):
        assert part in sent
    assert "cache_control" not in sent


async def test_options_in_the_words_of_a_chat(vendors, serve):
    vendor = vendors["openai_compatible"]
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    long_name = "a_tool_of_some_server__" + "x" * 80
    tool = TOOL | {"name": long_name, "cache_control": {"type": "ephemeral"}, "strict": True}
    async with serve(vendor) as client:
        vendor.answer(
            SimulatedAnswer(tool_calls=[lambda_free_call(long_name)], finish_reason="tool_calls")
        )
        message = await client.both(
            temperature=0.5,
            top_k=5,
            stop_sequences=["END"],
            tools=[tool],
            tool_choice={"type": "tool", "name": long_name, "disable_parallel_tool_use": True},
            thinking={"type": "adaptive"},
            output_config={"effort": "medium", "format": {"type": "json_schema", "schema": schema}},
            metadata={"user_id": "u" * 200},
            context_management={"edits": []},
            betas=["x"],
            anything_new={"a": 1},
        )
        assert message["content"][-1]["name"] == long_name
    sent = vendor.received[-2].body
    short = sent["tools"][0]["function"]["name"]
    assert len(short) == 64
    assert sent["tool_choice"]["function"]["name"] == short
    assert sent["response_format"]["json_schema"] == {
        "name": "answer",
        "schema": schema,
        "strict": True,
    }
    expected = {
        "max_tokens": 100,
        "parallel_tool_calls": False,
        "reasoning_effort": "medium",
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 5,
    }
    assert {name: sent.get(name) for name in expected} == expected
    assert "user" not in sent
    assert not {"context_management", "betas", "anything_new", "thinking"} & sent.keys()


def lambda_free_call(name):
    from aigateway.protocols.anthropic_messages import _short_name

    return {"name": _short_name(name), "arguments": {}}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (SimulatedAnswer("Hi", finish_reason="length"), "max_tokens"),
        (SimulatedAnswer("Hi", finish_reason="content_filter"), "refusal"),
        (SimulatedAnswer(tool_calls=[CALL]), "tool_use"),
    ],
)
async def test_stop_reasons(simulator, serve, answer, reason):
    simulator.openai.answer(answer)
    async with serve(simulator.openai) as client:
        assert (await client.both(tools=[TOOL]))["stop_reason"] == reason


async def test_failover_and_a_break(simulator, serve):
    first, second = simulator.anthropic, simulator.gemini
    first.behave(Fault.overloaded())
    second.answer("From the second.")
    async with serve(first, second) as client:
        assert (await client.both())["content"][0]["text"] == "From the second."
        second.behave(Fault.cut_stream(after=1))
        answer = await client.ask(stream=True)
        *_, last = read_events(answer.text)
        assert last == {"type": "error", "error": last["error"]}
        assert last["error"]["type"] == "api_error"


async def test_errors_are_anthropics(simulator, serve):
    vendor = simulator.openai
    keys = [api_key("red", budget_usd=1e-9), api_key("blue", rpm=1)]
    async with serve(vendor, server={"keys": keys, "max_body_bytes": 5000}) as client:

        async def problem(status, kind, **options):
            options = {"path": PATH, "headers": {"x-api-key": "sk-red"}} | options
            answer = await client.ask(**options)
            assert (answer.status_code, answer.json()["type"]) == (status, "error"), answer.text
            error, name = answer.json()["error"], answer.json()["request_id"]
            assert error.keys() == {"type", "message"}
            assert error["type"] == kind
            assert name == answer.headers["request-id"] == answer.headers["x-request-id"]
            return answer

        for path in (PATH, COUNT, "/v1/messages/batches"):
            await problem(401, "authentication_error", path=path, headers={"x-api-key": "wrong"})
            await problem(401, "authentication_error", path=path, headers={})
        await problem(400, "invalid_request_error", max_tokens=0)
        given = {"headers": {"x-api-key": "sk-red"}, "thread": {"type": "create"}}
        threaded = await client.ask(**given)  # the tool runners of Anthropic's SDKs read this
        details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
        assert (threaded.status_code, threaded.json()["error"]["details"]) == (400, details)
        await problem(404, "not_found_error", model="none")
        await problem(404, "not_found_error", path="/v1/messages/batches")
        version = {"x-api-key": "sk-red", "anthropic-version": "2023-06-01"}
        await problem(404, "not_found_error", path="/v1/files", headers=version)
        await problem(413, "request_too_large", system="x" * 5000)
        ok = await client.ask(headers={"authorization": "Bearer sk-red"})
        assert ok.status_code == 200
        assert ok.headers["request-id"]
        await problem(402, "billing_error")
        blue = {"x-api-key": "sk-blue"}
        assert (await client.ask(headers=blue)).status_code == 200
        limited = await problem(429, "rate_limit_error", headers=blue)
        assert int(limited.headers["retry-after"]) >= 1
        method = await client.get(PATH, headers=blue)
        assert (method.status_code, method.json()["type"]) == (405, "error")
        openais = await client.get("/v1/files", headers=blue)
        assert openais.json().keys() == {"error"}


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (Fault.overloaded(), 529, "overloaded_error"),
        (Fault.rate_limited(retry_after=7), 429, "rate_limit_error"),
        (Fault.bad_request(), 400, "invalid_request_error"),
        (Fault.context_window(), 400, "invalid_request_error"),
    ],
)
async def test_errors_of_vendors(simulator, serve, fault, status, kind):
    simulator.openai.behave(fault)
    async with serve(simulator.openai) as client:
        for stream in (False, True):
            answer = await client.ask(stream=stream)
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["type"] == kind
            if status == 429:
                assert answer.headers["retry-after"]
            if fault == Fault.context_window():
                assert answer.json()["error"]["message"].startswith("prompt is too long")


async def test_what_changes_no_answer_does_not_change_who_answers(simulator, serve):
    async with serve(simulator.gemini, simulator.openai) as client:
        await client.message(metadata={"user_id": "u" * 200}, thinking={"type": "disabled"})
    async with serve(simulator.openai, simulator.gemini) as client:
        await client.message(metadata={"user_id": "u" * 200}, thinking={"type": "disabled"})
    assert (simulator.gemini.request_count, simulator.openai.request_count) == (1, 1)


async def test_other_errors(simulator, serve):
    simulator.openai.behave(Fault.hang())
    async with serve(simulator.openai) as client:
        for status, kind, headers in (
            (403, "permission_error", {"host": "evil.example"}),
            (400, "invalid_request_error", {"x-aigateway-timeout": "soon"}),
            (504, "timeout_error", {"x-aigateway-timeout": "0.2"}),
        ):
            answer = await client.ask(headers=headers)
            assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)


async def test_what_only_anthropic_can_do_goes_nowhere_else(simulator, serve):
    async with serve(simulator.openai) as client:
        foreign: dict[str, Any] = {
            "web_search_20250305": {
                "tools": [{"type": "web_search_20250305", "name": "web_search"}]
            },
            "mcp_servers": {"mcp_servers": [{"type": "url", "url": "https://x.test", "name": "x"}]},
            "container_upload": {
                "messages": [{"role": "user", "content": [{"type": "container_upload"}]}]
            },
        }
        for named, fields in foreign.items():
            answer = await client.ask(**fields)
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert named in error["message"]
    assert simulator.openai.request_count == 0


async def test_tokens_are_counted_without_a_call(simulator, serve):
    async with serve(simulator.openai) as client:

        async def count(**fields):
            body = {n: v for n, v in (BODY | fields).items() if n != "max_tokens"}
            answer = await client.post(COUNT, json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json().keys() == {"input_tokens"}
            return answer.json()["input_tokens"]

        few = await count()
        assert 0 < few < 20
        assert few < await count(tools=[TOOL]) < 200
        assert 200 < await count(system="some words " * 100) < 400
        wrong = await client.post(COUNT, json={"messages": [{}]})
        assert (wrong.status_code, wrong.json()["type"]) == (400, "error")
        unknown = await client.post(COUNT, json=BODY | {"model": "none"})
        assert unknown.status_code == 404
    assert simulator.openai.request_count == 0


def _use(name):
    return {"type": "tool_use", "id": name, "name": "f", "input": {}}


def _result(name):
    return {"type": "tool_result", "tool_use_id": name}


HOSTILE: dict[str, list[Any]] = {
    "messages": [
        *("hi", 1, None, {}, [], [1], [None], [{}], [USER, None]),
        [{"role": "user"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": {}}],
        [{"role": "root", "content": "hi"}],
        [{"role": ["user"], "content": "hi"}],
        [{"role": "assistant", "content": ""}],
        *(
            [{"role": "user", "content": [block]}]
            for block in list[Any](
                (
                    *(1, "x", None, [], {}, {"type": 1}, {"type": ""}, {"type": "x" * 65}),
                    {"type": "text"},
                    {"type": "text", "text": 1},
                    {"type": "image"},
                    {"type": "image", "source": "x"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png"}},
                    {"type": "document", "source": {"type": "base64", "data": 1}},
                    {"type": "document", "source": {"type": "content", "content": [1]}},
                    {"type": "search_result"},
                    {"type": "tool_result"},
                    {"type": "tool_result", "tool_use_id": "a b"},
                    _result("toolu_unknown"),
                )
            )
        ),
        *(
            [USER, {"role": "assistant", "content": [block]}, USER]
            for block in list[Any](
                (
                    {"type": "tool_use", "id": "a", "name": "f"},
                    {"type": "tool_use", "id": "a b", "name": "f", "input": {}},
                    {"type": "tool_use", "id": "a", "name": "f", "input": []},
                    {"type": "thinking"},
                    {"type": "thinking", "thinking": "x", "signature": 1},
                    {"type": "redacted_thinking"},
                    {"type": "image", "source": IMAGE},
                    _use("toolu_without_result"),
                )
            )
        ),
        [USER, {"role": "assistant", "content": [_use("a"), _use("a")]}],
        [USER, {"role": "assistant", "content": [_use("a")]}],
        [USER] * 10_001,
    ],
    "max_tokens": ["1", 0, -1, 1.5, True, None, 2**63],
    "model": [1, [], {}],
    "system": [1, {}, [1], [{"type": "image", "source": IMAGE}], [{"type": "text"}]],
    "stop_sequences": ["x", [1], ["x"] * 1025],
    "stream": ["true", 1],
    "temperature": ["x", -0.1, 1.1],
    "top_p": [1.1, "x"],
    "top_k": [-1, 0.5],
    "tools": [
        *("x", {}, [1], [{}], [{"name": "f"}], [{"name": 1, "input_schema": {}}]),
        [{"name": "f", "input_schema": []}],
        [{"type": 1, "name": "f", "input_schema": {}}],
        [TOOL] * 1025,
    ],
    "tool_choice": ["any", {}, {"type": "tool"}, {"type": "any"}, {"type": "tool", "name": "x"}],
    "thinking": ["x", {}, {"type": "enabled"}, {"type": "enabled", "budget_tokens": "x"}],
    "metadata": ["x", {"user_id": 1}],
    "output_config": ["x", {"effort": 1}, {"format": {"type": "json_schema"}}],
    "output_format": [{"type": "json_schema", "schema": 1}],
    "mcp_servers": ["x", [1]],
}


async def test_hostile_bodies(simulator, serve, caplog):
    caplog.set_level(logging.WARNING)
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    deeper = b"[" * 100_000 + b"]" * 100_000
    whole = json.dumps(BODY)[1:].encode()
    async with serve(simulator.openai, server={"max_body_bytes": 2_000_000}) as client:
        for name, values in HOSTILE.items():
            for value in values:
                answer = await client.ask(**{name: value})
                assert answer.status_code == 400, (name, value, answer.text)
                assert answer.json()["error"]["type"] == "invalid_request_error"
        for raw in (
            *(b"", b"null", b"[]", b"{", b'{"messages": NaN}', deeper),
            *(b'{"x":' + value + b"," + whole for value in (deep, deeper)),
            b'{"system": "\\ud800",' + whole,
        ):
            for path in (PATH, COUNT):
                headers = {"content-type": "application/json"}
                answer = await client.post(path, content=raw, headers=headers)
                assert answer.status_code == 400, (raw[:50], answer.text)
        answer = await client.post(PATH, content=b"x=1")
        assert (answer.status_code, answer.json()["type"]) == (415, "error")
        named = await client.ask(messages=[{"role": "user", "content": [{"type": "text"}]}])
        message = named.json()["error"]["message"]
        assert message == "messages.0.content.0.text: Field required"
    assert simulator.openai.request_count == 0
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
