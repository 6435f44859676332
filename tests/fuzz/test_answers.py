"""Whatever comes over the wire: an answer of the right types comes out, or a `GatewayError`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigateway import AllProvidersFailedError, ChatResponse, FailureKind, StreamInterruptedError
from aigateway.clock import Clock
from aigateway.settings import LLMConfig
from aigateway.wires.client import VendorClientFactory
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.fuzz.json_values import written
from tests.fuzz.laboratory import WAYS, Laboratory
from tests.fuzz.raw_server import Reply
from tests.fuzz.replies import answers, streams
from tests.fuzz.wires import ANSWERS, EMBEDDINGS, NATIVE, WIRES, sse

USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}

NO_HTTP = [
    pytest.param(b"\x16\x03\x01\x02\x00\x01", id="TLS"),
    pytest.param(b"220 mail.example ESMTP\r\n\r\n", id="another protocol"),
    pytest.param(b"HTTP/1.1 OK\r\n\r\n", id="no status"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", id="an endless header"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", id="two lengths"
    ),
]

FEW = settings(max_examples=max(12, settings().max_examples // 8))
"""Where litellm itself carries, which is slow."""


def litellm_client(config: LLMConfig, clock: Clock) -> LiteLLMClient:
    return LiteLLMClient(config, clock)


@pytest.mark.parametrize("wire", WIRES)
@given(data=st.data(), way=st.sampled_from(WAYS))
def test_any_answer(laboratory: Laboratory, wire: str, data: st.DataObject, way: str) -> None:
    laboratory.ask(wire, way, data.draw(answers(ANSWERS[wire])))


@pytest.mark.parametrize("wire", WIRES)
@given(data=st.data(), way=st.sampled_from(WAYS[1:]))
def test_any_stream(laboratory: Laboratory, wire: str, data: st.DataObject, way: str) -> None:
    laboratory.ask(wire, way, data.draw(streams(wire)))


@pytest.mark.parametrize("wire", WIRES)
@FEW
@given(data=st.data(), way=st.sampled_from(WAYS))
def test_anything_over_litellms_own_lane(
    laboratory: Laboratory, wire: str, data: st.DataObject, way: str
) -> None:
    kind = answers(ANSWERS[wire]) if way == "chat" else streams(wire)
    laboratory.ask(wire, way, data.draw(kind), litellm_client)


@pytest.mark.parametrize("answered", NATIVE)
@pytest.mark.parametrize("streamed", [False, True])
@given(data=st.data())
def test_anything_in_a_protocol_of_its_own(
    laboratory: Laboratory, answered: str, streamed: bool, data: st.DataObject
) -> None:
    protocol, wire = NATIVE[answered]
    drawn = streams(answered) if streamed else answers(ANSWERS[answered])
    laboratory.ask(wire, f"{protocol} streamed" if streamed else protocol, data.draw(drawn))


@pytest.mark.parametrize("wire", sorted(EMBEDDINGS))
@FEW
@given(data=st.data())
def test_any_vectors(laboratory: Laboratory, wire: str, data: st.DataObject) -> None:
    laboratory.ask(wire, "embed", data.draw(answers(EMBEDDINGS[wire])))


@pytest.mark.parametrize(
    "fields",
    [
        b'"data": -1, "usage": {"prompt_tokens": 2, "total_tokens": 2}',
        (
            b'"data": [{"index": 0, "embedding": [0.5]}, {"index": 1, "embedding": [0.5]}],'
            b' "usage": {"prompt_tokens": -1, "total_tokens": 2}'
        ),
    ],
)
def test_vectors_that_once_broke_it(laboratory: Laboratory, fields: bytes) -> None:
    body = b'{"object": "list", "model": "text-embedding-3-small", ' + fields + b"}"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    laboratory.ask("openai", "embed", Reply((head + body,)))


@pytest.mark.parametrize("came", NO_HTTP)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_http_is_not_the_callers_fault(
    laboratory: Laboratory, came: bytes, way: str
) -> None:
    error = laboratory.ask("openai", way, Reply((came,)))
    assert isinstance(error, AllProvidersFailedError)
    assert error.causes[0].kind in {FailureKind.BAD_ANSWER, FailureKind.CONNECTION}
    assert error.causes[0].status is None


@pytest.mark.parametrize("lane", [None, litellm_client], ids=["direct", "litellm"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param({"service_tier": ["default"]}, id="a tier that is a list"),
        pytest.param({"usage": USAGE | {"prompt_tokens": 10**400}}, id="usage beyond any float"),
        pytest.param({"usage": USAGE | {"total_tokens": 1e30}}, id="usage beyond any count"),
        pytest.param({"created": 10**400}, id="made at the end of time"),
        pytest.param({"id": {}, "model": ["m"]}, id="names that are none"),
    ],
)
def test_an_answer_with_a_flourish_is_an_answer(
    laboratory: Laboratory, lane: VendorClientFactory | None, way: str, spoiled: dict[str, Any]
) -> None:
    """Nonsense beside the text makes it no answer at all, or costs no more than itself."""
    text = {"role": "assistant", "content": "4"}
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    body |= {"service_tier": "default", "usage": USAGE} | spoiled
    choice = {"index": 0, "finish_reason": "stop"}
    if way == "chat":
        whole = written(body | {"choices": [choice | {"message": text}]})
    else:
        whole = sse("openai", [written(body | {"choices": [choice | {"delta": text}]}), b"[DONE]"])
    reply = Reply((b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + whole,))
    answer = laboratory.ask("openai", way, reply, lane)
    if isinstance(answer, ChatResponse):
        assert answer.text == "4"
        assert answer.usage.total_tokens < 2**63
        assert answer.cost_usd is None or answer.cost_usd < 1
    else:
        assert isinstance(answer, AllProvidersFailedError | StreamInterruptedError)
        assert answer.causes[0].kind in {FailureKind.BAD_ANSWER, FailureKind.UNKNOWN}


@pytest.mark.parametrize("lane", [None, litellm_client], ids=["direct", "litellm"])
@pytest.mark.parametrize("way", [*WAYS, "embed"])
def test_an_answer_that_is_nested_without_end_is_a_bad_answer(
    laboratory: Laboratory, lane: VendorClientFactory | None, way: str
) -> None:
    deep = b'{"model": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    if way in {"stream", "chat over stream"}:
        deep = sse("openai", [deep])
    reply = Reply((b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + deep,))
    error = laboratory.ask("openai", way, reply, lane)
    assert isinstance(error, AllProvidersFailedError | StreamInterruptedError)
    assert error.causes[0].kind is FailureKind.BAD_ANSWER


def test_logprobs_that_are_nested_without_end_do_no_harm(laboratory: Laboratory) -> None:
    deep = b"[" * 990 + b"]" * 990
    choice = b'"index": 0, "delta": {"content": "4"}, "finish_reason": "stop"'
    event = b'{"choices": [{' + choice + b', "logprobs": {"content": ' + deep + b"}}]}"
    reply = Reply((b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + sse("openai", [event]),))
    answer = laboratory.ask("openai", "stream", reply)
    assert isinstance(answer, ChatResponse)
    assert answer.text == "4"


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param([float("nan")], id="NaN"),
        pytest.param([1e999], id="infinite"),
        pytest.param([10**400], id="beyond any float"),
        pytest.param({"1": 2}, id="a mapping"),
        pytest.param([], id="empty"),
        pytest.param([[1.0]], id="nested"),
        pytest.param(None, id="none"),
    ],
)
def test_what_is_no_vector_is_a_bad_answer(laboratory: Laboratory, vector: Any) -> None:
    entries = [{"object": "embedding", "index": n, "embedding": vector} for n in range(2)]
    body = written({"object": "list", "model": "m", "data": entries, "usage": USAGE})
    reply = Reply((b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,))
    error = laboratory.ask("openai", "embed", reply)
    assert isinstance(error, AllProvidersFailedError)
    assert error.causes[0].kind is FailureKind.BAD_ANSWER
