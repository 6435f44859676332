"""Input of every bad kind, over real HTTP: a 4xx in its own form, and no vendor hears of it."""

import contextlib
import json
import logging

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigateway.server.http.bodies import COMPLETION_NAMES, EMBEDDING_NAMES
from aigateway.simulator import Fault
from tests.fuzz.raw_server import RawServer
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer, converse
from tests.server.services import served

CHAT, PLAIN, EMBED = "/v1/chat/completions", "/chat", "/v1/embeddings"
COMPLETE, MESSAGES, RESPONSES = "/v1/completions", "/v1/messages", "/v1/responses"
PATHS = (CHAT, PLAIN, EMBED, COMPLETE, MESSAGES, RESPONSES)
HI = [{"role": "user", "content": "hi"}]
LONG_MESSAGE = {"messages": [{"role": "user", "content": "x" * 2000}], "max_tokens": 9}
SECRETS = ("sk-simulated", "sk-red", "Traceback", 'File "')


class Front:
    """The service as a stranger sees it. Whatever is sent must be refused."""

    def __init__(self, client, url, vendor):
        self.client = client
        self.url = url
        self.vendor = vendor
        self.wrong = []

    async def post(self, path, content, **headers):
        given = {"content-type": "application/json"} | headers
        headers = {name: value.encode("latin-1") for name, value in given.items()}
        return await self.client.post(path, content=content, headers=headers)

    async def refuses(self, path, content, *, statuses=(400,), **headers):
        """Send it; what is not refused as it should be is remembered."""
        answer = await self.post(path, content, **headers)
        problem = self.problem(answer.status_code, answer.text, statuses)
        if problem:
            self.wrong.append((path, content[:200], problem))

    async def refuses_json(self, path, body, **options):
        await self.refuses(path, json.dumps(body).encode(), **options)

    def problem(self, status, text, statuses):
        if status not in statuses:
            return f"{status} {text[:200]}"
        try:
            body = json.loads(text)
            error, fields = body["error"], {"message", "type", "param", "code"}
            if body.get("type") == "error":  # Anthropic's form
                fields = {"message", "type"}
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"not of its form: {text[:200]}"
        if set(error) != fields or not error["message"]:
            return f"not of its form: {text[:200]}"
        if any(secret in text for secret in SECRETS):
            return f"tells too much: {text[:500]}"
        return self.vendor.request_count and "a vendor has heard of it"


@pytest.fixture
async def front(simulator, caplog):
    caplog.set_level(logging.WARNING)
    async with (
        served(simulator.openai, server={"max_body_bytes": 2_000_000}) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        stranger = Front(client, url, simulator.openai)
        yield stranger
        assert stranger.wrong == []
        assert simulator.openai.request_count == 0
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_bodies_that_are_no_json(front):
    nested = b'{"messages":' * 100_000
    for path in (*PATHS, "/v1/responses"):
        for body in (
            b"",
            b" ",
            b"{",
            b"null",
            b"[]",
            b'"text"',
            b"1",
            b"{'message': 'hi'}",
            b'{"message": "hi"',
            b'{"message": "hi"}}',
            b'{"message": "hi",}',
            b'{"message": "\x00"}',
            b'{"message": "hi"}\x00',
            b"\xef\xbb\xbf" * 2 + b'{"message": "hi"}',
            b'{"message": "\xff\xfe"}',
            b'{"message": "\xc3"}',
            b'{"message": "\xed\xa0\x80"}',  # a lone surrogate, in UTF-8
            '{"message": "hi"}'.encode("utf-16"),
            '{"message": "hi"}'.encode("utf-32"),
            b'{"message": NaN}',
            b'{"message": "hi", "temperature": NaN}',
            b'{"message": "hi", "temperature": Infinity}',
            b'{"message": "hi", "temperature": 1e999}',
            b'{"message": "hi", "seed": ' + b"9" * 100_000 + b"}",
            b"[" * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
            nested,
            nested + b"1" + b"}" * 100_000,
            b"\x1f\x8b\x08\x00",
            b"message=hi",
        ):
            await front.refuses(path, body)


WRONG_NUMBERS = ["1", "x", True, [], {}, [1], -(2**63), 2**63, 2**64 + 1, 1e300, -1e300]
WRONG_TEXTS = [1, 1.5, True, [], ["x"], {}]
WRONG_FLAGS = ["true", 1, 0, 1.5, [], {}]
WRONG_OBJECTS = ["{}", 1, True, [], [{}]]
WRONG_LISTS = ["[]", 1, True, {}, {"0": {}}]
WRONG = {
    "audio": WRONG_OBJECTS,
    "cache_control": WRONG_OBJECTS,
    "dimensions": [*WRONG_NUMBERS, 0, -1, 1.5],
    "encoding_format": [*WRONG_TEXTS, "hex", ""],
    "frequency_penalty": [*WRONG_NUMBERS, 2.1, -2.1],
    "function_call": [1, True, [], {}, {"name": 1}],
    "functions": [*WRONG_LISTS, [1], [{}], [{"name": 1}], [{"name": "f", "parameters": 1}]],
    "input": [
        *(1, True, {}, [], "", [""], [None], [{}], ["x", 1], [1] * 131_073),
        *([True], [1.5], [-1], [2**31], [1, "x"], [[]], [[1], "x"], [[1], [True]]),
    ],
    "logit_bias": [*WRONG_OBJECTS, {"50256": "x"}, {"50256": [1]}],
    "logprobs": WRONG_FLAGS,
    "max_completion_tokens": [*WRONG_NUMBERS, 0, -1, 1.5],
    "max_tokens": [*WRONG_NUMBERS, 0, -1, 1.5],
    "messages": [
        *("hi", 1, True, {}, [], [1], ["hi"], [[]], [None], [{}], HI * 2 + [None]),
        [{"role": "user"}],
        [{"content": "hi"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": 1}],
        [{"role": "user", "content": {}}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": ["hi"]}],
        [{"role": "user", "content": [{}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 1}]}],
        [{"role": "user", "content": [{"type": ""}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": ""}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}],
        [{"role": "root", "content": "hi"}],
        [{"role": 1, "content": "hi"}],
        [{"role": ["user"], "content": "hi"}],
        [{"role": {}, "content": "hi"}],
        [{"role": "user\x00", "content": "hi"}],
        [{"role": "user", "content": "hi", "name": 1}],
        [{"role": "assistant"}],
        [{"role": "assistant", "content": None, "tool_calls": [1]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": 1, "function": {}}]}],
        [{"role": "tool", "content": "hi"}],
        [{"role": "tool", "content": "hi", "tool_call_id": 1}],
    ],
    "metadata": WRONG_OBJECTS,
    "modalities": [*WRONG_LISTS, [1], [None]],
    "model": WRONG_TEXTS,
    "n": [*WRONG_NUMBERS, 0, -1, 1.5, 129],
    "parallel_tool_calls": WRONG_FLAGS,
    "prediction": WRONG_OBJECTS,
    "presence_penalty": [*WRONG_NUMBERS, 2.1, -2.1],
    "prompt_cache_key": WRONG_TEXTS,
    "prompt_cache_retention": WRONG_TEXTS,
    "reasoning_effort": WRONG_TEXTS,
    "response_format": [
        *("json", 1, True, [], {}, {"type": ""}, {"type": 1}, {"type": "json_schema"}),
        {"type": "json_schema", "json_schema": []},
        {"type": "json_schema", "json_schema": {"schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": "x"}},
    ],
    "safety_identifier": WRONG_TEXTS,
    "safety_settings": [*WRONG_LISTS, [1]],
    "seed": ["1", "x", True, [], {}, 1.5, 2**63, -(2**63), 2**64 + 1],
    "service_tier": WRONG_TEXTS,
    "stop": [1, True, {}, [1], [None], [["x"]]],
    "store": WRONG_FLAGS,
    "stream": WRONG_FLAGS,
    "stream_options": ["x", 1, [], {"include_usage": "yes"}],
    "temperature": [*WRONG_NUMBERS, -0.1, 2.1],
    "thinking": WRONG_OBJECTS,
    "tool_choice": [1, True, [], {}, {"type": 1}],
    "tools": [*WRONG_LISTS, [1], [{}], [{"type": "function"}], [{"type": ""}], [{"type": 1}]],
    "top_k": [*WRONG_NUMBERS, -2, 1.5],
    "top_logprobs": [*WRONG_NUMBERS, -1, 21, 1.5],
    "top_p": [*WRONG_NUMBERS, -0.1, 1.1],
    "user": WRONG_TEXTS,
    "verbosity": WRONG_TEXTS,
    "web_search_options": WRONG_OBJECTS,
}


def test_no_parameter_is_forgotten():
    assert set(WRONG) == COMPLETION_NAMES | EMBEDDING_NAMES


async def test_wrong_types_for_every_parameter(front):
    for name in sorted(COMPLETION_NAMES):
        for value in WRONG[name]:
            await front.refuses_json(CHAT, {"messages": HI} | {name: value})
            if name != "stream_options":
                await front.refuses_json(CHAT, {"messages": HI, "stream": True} | {name: value})
            if name != "messages":
                await front.refuses_json(PLAIN, {"message": "hi"} | {name: value})
    for name in sorted(EMBEDDING_NAMES):
        for value in WRONG[name]:
            await front.refuses_json(EMBED, {"input": "hi"} | {name: value})
    for value in WRONG_TEXTS:
        await front.refuses_json(PLAIN, {"message": value})
        await front.refuses_json(PLAIN, {"message": "hi", "system": value})
    for value in (None, "", " "):
        await front.refuses_json(PLAIN, {"message": value})


STEERING = {
    "api_base": "http://127.0.0.1:9/v1",
    "api_key": "sk-mine",
    "api_version": "2024-01-01",
    "base_url": "http://127.0.0.1:9/v1",
    "custom_llm_provider": "openai",
    "default_headers": {"Authorization": "Bearer sk-mine"},
    "extra_body": {"api_key": "sk-mine"},
    "extra_headers": {"Authorization": "Bearer sk-mine"},
    "extra_query": {"key": "sk-mine"},
    "fallbacks": ["gpt-4o"],
    "headers": {"Authorization": "Bearer sk-mine"},
    "http_client": None,
    "litellm_params": {"api_base": "http://127.0.0.1:9"},
    "mock_response": "pwned",
    "model_list": [],
    "num_retries": 1000,
    "origin": {"partition": "key:red"},
    "partition": "key:red",
    "provider": "openai",
    "request_id": "x",
    "response_model": "os.system",
    "vertex_credentials": "/etc/passwd",
    "aws_secret_access_key": "x",
    "__class__": "x",
    "self": 1,
    "": 1,
    "\x00": 1,
    "model\r\nx-injected": "1",
    "x" * 100_000: 1,
    "\ud800": 1,
}


async def test_nothing_in_a_body_says_where_it_goes_or_with_which_key(front):
    for name, value in STEERING.items():
        await front.refuses_json(CHAT, {"messages": HI, name: value})
        await front.refuses_json(PLAIN, {"message": "hi", name: value})
        await front.refuses_json(EMBED, {"input": "hi", name: value})


async def test_headers_that_steer_are_not_heeded(simulator):
    headers = {
        "x-api-base": "http://127.0.0.1:9",
        "openai-organization": "org-mine",
        "openai-project": "mine",
        "api-key": "sk-mine",
        "x-goog-api-key": "sk-mine",
        "x-forwarded-host": "evil.example",
        "cookie": "session=1",
        "x-anything": "1",
        "authorization": "Bearer sk-mine",
    }
    async with (
        served(simulator.openai) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE, headers=headers) as client,
    ):
        answer = await client.post(PLAIN, json={"message": "hi"})
    assert answer.status_code == 200
    (received,) = simulator.openai.received
    sent = {name.lower(): value for name, value in received.headers.items()}
    assert "sk-mine" not in str(sent)
    assert not {"x-api-base", "openai-organization", "cookie", "x-anything"} & set(sent)


@pytest.mark.parametrize("vendor", ["anthropic", "gemini"])
async def test_pictures_are_not_fetched_from_inside(simulator, vendor):
    """Some vendors take no address: the picture is fetched here, but not from this network."""
    inside = RawServer()
    await inside.start()
    async with (
        served(simulator.vendor(vendor)) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0.0.0.0"):
            picture = {"url": f"http://{host}:{inside.port}/picture.png"}
            content = [{"type": "image_url", "image_url": picture}]
            answer = await client.post(
                CHAT, json={"messages": [{"role": "user", "content": content}]}
            )
            assert 400 <= answer.status_code < 500, answer.text
            assert str(inside.port) not in answer.text
    await inside.stop()
    assert inside.connections == 0
    assert simulator.vendor(vendor).request_count == 0


async def test_unknown_models(front):
    names = ["gpt-9", "openai/gpt-9", "../../etc/passwd", "x" * 100_000, "\x00", "a\r\nb: c", "*"]
    for name in (*names, "' OR 1=1 --", "\u202e", "gpt\ud800", " "):
        for path, body in ((CHAT, {"messages": HI}), (PLAIN, {"message": "hi"})):
            await front.refuses_json(path, body | {"model": name}, statuses=(400, 404))
            stream = {"stream": True} if path == CHAT else {}
            await front.refuses_json(path, body | {"model": name} | stream, statuses=(400, 404))
        await front.refuses_json(EMBED, {"input": "hi", "model": name}, statuses=(400, 404))


async def test_methods_paths_and_types_that_do_not_exist(front):
    body = json.dumps({"messages": HI, "message": "hi"}).encode()
    for kind in ("text/plain", "application/xml", "multipart/form-data", "", "\xff", "x" * 8000):
        await front.refuses(CHAT, body, statuses=(415,), **{"content-type": kind})
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"):
        for path in PATHS:
            answer = await front.client.request(method, path)
            assert front.problem(answer.status_code, answer.text, (405,)) in {0, None}
    for path in (
        *("/v1", "/v1/", "/v1/chat", "/v1/complete", "/v1/chat/completions/", "/.env"),
        *(
            "/v1/models/none",
            "/v1/models/..%2f..%2fetc%2fpasswd",
            "/%00",
            "/%ff%fe",
            "/" + "a" * 9000,
        ),
        *("/v1/models/%0d%0ax-injected:1", "/chat%0d%0a", "/chat;x", "/CHAT", "/\\chat"),
    ):
        answer = await front.client.get(path)
        assert front.problem(answer.status_code, answer.text, (404,)) in {0, None}, path
        assert "x-injected" not in answer.headers


async def test_headers_that_make_no_sense(front):
    body = json.dumps({"messages": HI}).encode()
    for name, value in (
        ("x-aigateway-timeout", "soon"),
        ("x-aigateway-timeout", "-1"),
        ("x-aigateway-timeout", "0"),
        ("x-aigateway-timeout", "nan"),
        ("x-aigateway-timeout", "inf"),
        ("x-aigateway-timeout", "1e9"),
        ("x-aigateway-timeout", "9" * 1000),
        ("x-aigateway-cache", "maybe"),
        ("x-aigateway-cache-ttl", "x"),
        ("x-aigateway-agent", "\xff"),
        ("x-aigateway-agent", "x" * 1000),
    ):
        await front.refuses(CHAT, body, **{name: value})


async def test_headers_that_come_back_or_go_on_are_clean(simulator):
    """An id or a trace that is not of its form is not taken up."""
    async with served(simulator.openai) as (_, url):
        for name in (b"X-Request-ID", b"traceparent", b"tracestate"):
            for value in (b"a b", b"\xff", b"x" * 5000, b"a\tb", b"<script>", b'"', b"00-0-0-0"):
                body = json.dumps({"message": value.hex()}).encode()
                head = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
                raw = await converse(url, head + name + b": " + value + b"\r\n\r\n" + body)
                assert raw.startswith(b"HTTP/1.1 200"), (name, value)
                if value != b"00-0-0-0":
                    assert value not in raw.partition(b"\r\n\r\n")[0]
                    sent = simulator.openai.received[-1].headers
                    assert value.decode("latin-1") not in sent.values()
                assert "traceparent" not in {
                    key.lower() for key in simulator.openai.received[-1].headers
                }


LENGTH = b"Content-Length: %d\r\n"
POST = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"message": "hi"}'
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = POST + LENGTH % len(BODY) + b"\r\n" + BODY


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + LENGTH % 5 + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
        POST + CHUNKED + LENGTH % len(BODY) + b"\r\n" + CHUNK + b"0\r\n\r\n" + SMUGGLED,
        POST + LENGTH % 5 + LENGTH % 6 + b"\r\n" + SMUGGLED,
        POST + b"Content-Length: 5, 6\r\n\r\n" + SMUGGLED,
        POST + b"Content-Length: 0x11\r\n\r\n" + BODY,
        POST + b"Content-Length: +17\r\n\r\n" + BODY,
        POST + b"Content-Length: 1 7\r\n\r\n" + BODY,
        POST + b"Content-Length : 17\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNK + b"0\r\n\r\n",
        POST + b"Transfer-Encoding: identity\r\n" + LENGTH % 17 + b"\r\n" + BODY,
        POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
        POST + CHUNKED + CHUNKED + b"\r\n" + CHUNK + b"0\r\n\r\n",
        POST + CHUNKED + b"\r\n-1\r\n" + BODY,
        POST + CHUNKED + b"\r\nfffffffffffffffffffffffff\r\n" + BODY,
        POST + CHUNKED + b"\r\n0x11\r\n" + BODY + b"\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\n11\n" + BODY + b"\n0\n\n",
        POST + CHUNKED + b"\r\n11;" + b"x" * 100_000,
        POST.replace(b"HTTP/1.1", b"HTTP/1.0")
        + CHUNKED
        + b"\r\n"
        + CHUNK
        + b"0\r\n\r\n"
        + SMUGGLED,
        POST + b"X: a\rb\r\n" + LENGTH % 17 + b"\r\n" + BODY,
        POST + b"X: a\x00b\r\n" + LENGTH % 17 + b"\r\n" + BODY,
        POST + b" folded\r\n\x0b: x\r\n" + LENGTH % 17 + b"\r\n" + BODY,
        b"POST http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    ],
)
async def test_smuggled_requests_reach_no_vendor(simulator, request_bytes):
    """One refusal at the most, and then the connection is closed: what follows is no request."""
    async with served(simulator.openai, server={"header_timeout": 0.2}) as (_, url):
        raw = await converse(url, request_bytes)
    assert raw.count(b"HTTP/1.1 ") <= 1
    head, _, body = raw.partition(b"\r\n\r\n")
    if raw:
        status, front = int(head.split()[1]), Front(None, url, simulator.openai)
        assert not front.problem(status, body.decode(), range(400, 500))
    assert simulator.openai.request_count == 0


async def test_a_body_that_never_ends_or_never_comes(simulator):
    async with served(simulator.openai, server={"header_timeout": 0.1}) as (_, url):
        dribble = [piece for byte in BODY[:-1] for piece in (bytes([byte]), 0.02)]
        raw = await converse(url, POST + LENGTH % len(BODY) + b"\r\n", *dribble)
        assert raw.startswith(b"HTTP/1.1 408")
        raw = await converse(url, POST + CHUNKED + b"\r\n", *[b"1\r\n \r\n", 0.02] * 15)
        assert raw.startswith(b"HTTP/1.1 408")
        dribble = [piece for byte in POST[:20] for piece in (bytes([byte]), 0.02)]
        assert (await converse(url, *dribble)).startswith(b"HTTP/1.1 408")
    assert simulator.openai.request_count == 0


@pytest.mark.parametrize("path", [CHAT, PLAIN, MESSAGES])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_hundred_megabytes(front, path, chunked):
    async def flood():
        yield b'{"message": "'
        for _ in range(100):
            yield b"x" * 2**20
        yield b'"}'

    headers = {} if chunked else {"content-length": str(15 + 100 * 2**20)}
    answer = await front.post(path, flood(), **headers)
    assert not front.problem(answer.status_code, answer.text, (413,))


async def test_prompts_that_are_too_long_reach_no_vendor(simulator):
    async with (
        served(simulator.openai, max_prompt_bytes=1000) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        for path, body in (
            (PLAIN, {"message": "x" * 2000}),
            (CHAT, {"messages": [{"role": "user", "content": "x" * 2000}]}),
            (CHAT, {"messages": [{"role": "user", "content": "x" * 2000}], "stream": True}),
            (EMBED, {"input": ["x" * 2000]}),
            (COMPLETE, {"prompt": "x" * 2000}),
            (RESPONSES, {"input": "x" * 2000}),
            (MESSAGES, {**LONG_MESSAGE, "stream": True}),
        ):
            answer = await client.post(path, json=body)
            assert (answer.status_code, "error" in answer.json()) == (400, True), answer.text
    assert simulator.openai.request_count == 0


async def test_a_stranger_learns_nothing_and_costs_nothing(simulator):
    """Without a key every body is refused unread, whatever is in it."""
    async with (
        served(simulator.openai, server={"keys": [api_key("red")]}) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        front = Front(client, url, simulator.openai)
        for path in (*PATHS, "/v1/models", "/metrics", "/nothing"):
            for headers in ({}, bearer("blue"), {"authorization": "Bearer \xff"}, {"cookie": "a"}):
                await front.refuses(path, b'{"message": "hi"}', statuses=(401,), **headers)
        assert front.wrong == []


SOUND = {
    CHAT: {"messages": HI},
    PLAIN: {"message": "hi"},
    EMBED: {"input": "hi"},
    COMPLETE: {"prompt": "hi"},
    MESSAGES: {"messages": HI, "max_tokens": 9},
    RESPONSES: {"input": "hi"},
}
NAMES = sorted(
    {*WRONG, "prompt", "suffix", "echo", "best_of", "input", "instructions", "text", "reasoning"}
    | {"include", "system", "thinking", "max_output_tokens", "previous_response_id", "truncation"}
    | {"stop_sequences", "metadata", "max_tokens", "context_management", "prompt_cache_key"}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["user", "system", "text", "function", "hi", 2**64, -0.0, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "function", "id", "url"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.hypothesis
async def test_whatever_is_sent_nothing_breaks(simulator, caplog):
    """Anything for any parameter: an answer or a refusal, never a 500 and no word in the log."""
    caplog.set_level(logging.ERROR)
    ours = {"aigateway.server", "asyncio", "uvicorn.error"}
    simulator.openai.behave(Fault.status(400))  # what gets through is refused there
    async with (
        served(simulator.openai) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        seen = []

        @given(
            path=st.sampled_from(PATHS),
            body=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
            sound=st.booleans(),
        )
        @settings(max_examples=2 * settings().max_examples, suppress_health_check=list(HealthCheck))
        def collect(path, body, sound):
            if sound:
                body |= SOUND[path]
            with contextlib.suppress(UnicodeEncodeError):
                seen.append((path, json.dumps(body).encode()))

        collect()
        for path, body in seen:
            answer = await client.post(
                path, content=body, headers={"content-type": "application/json"}
            )
            assert 400 <= answer.status_code < 500, (body, answer.text)
            assert "error" in answer.json()
    assert [record.message for record in caplog.records if record.name in ours] == []
