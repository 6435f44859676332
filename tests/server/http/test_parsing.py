"""Any request is read, or refused with a message, and nothing else happens."""

from __future__ import annotations

import re
import string

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.errors import RequestRejectedError
from aigateway.server.http.bodies import (
    COMPLETION_NAMES,
    EMBEDDING_NAMES,
    PLAIN_NAMES,
    read_chat,
    read_completion,
    read_embedding,
)
from aigateway.server.http.call import read_headers, trace_headers
from aigateway.server.http.errors import Refusal, refusal_of, request_id_of
from aigateway.telemetry import wants_prometheus

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
        optional={"content": VALUES, "tool_calls": VALUES, "name": VALUES},
    ),
    max_size=3,
)


def outcome(read, given_value):
    """What a reader makes of a value: a result, or the refusal that it raises."""
    try:
        return read(given_value)
    except (Refusal, RequestRejectedError) as error:
        return refusal_of(error)


READERS = {
    read_completion: COMPLETION_NAMES,
    read_chat: PLAIN_NAMES,
    read_embedding: EMBEDDING_NAMES,
}


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@given(data=st.data())
def test_any_body_is_read_or_refused(read, data):
    body = data.draw(st.dictionaries(st.sampled_from(sorted(READERS[read])), VALUES, max_size=4))
    if "messages" in READERS[read] and data.draw(st.booleans()):
        body["messages"] = data.draw(MESSAGES)
    before = repr(body)
    read_body = outcome(read, body)
    if isinstance(read_body, Refusal):
        assert read_body.status == 400
        assert orjson.dumps(read_body.body)
    else:
        assert None not in read_body.options.values()
        assert not read_body.options.keys() & {"messages", "model", "stream", "metadata", "input"}
    assert repr(body) == before


HEADERS = ("cache", "cache-ttl", "timeout", "agent", "other")


@given(st.dictionaries(st.sampled_from([f"x-aigateway-{name}" for name in HEADERS]), st.text()))
def test_any_headers_are_read_or_refused(headers):
    read = outcome(read_headers, headers)
    if isinstance(read, Refusal):
        assert read.status == 400
        assert read.param in headers
    else:
        assert read.timeout is None or 0 < read.timeout < 1e11
        assert read.cache_ttl is None or 0 < read.cache_ttl < 1e11
        assert read.agent is None or (read.agent.isprintable() and read.agent.isascii())


@given(st.none() | st.text() | st.text(string.ascii_letters + "-._", min_size=1, max_size=130))
def test_any_request_id_is_fit_for_a_log(given_id):
    name = request_id_of(given_id)
    assert re.fullmatch(r"[!-~]{1,128}", name)
    assert name == request_id_of(name)


@given(st.text(), st.text())
def test_nothing_but_a_trace_goes_on(parent, state):
    carried = trace_headers({"traceparent": parent, "tracestate": state})
    assert not carried or re.fullmatch(r"[0-9a-f-]{55}", parent)


@given(st.text(string.ascii_lowercase + "/*;,=q. 01"))
def test_any_accept_is_understood(accept):
    assert wants_prometheus(accept) is False or "text/plain" in accept or "openmetrics" in accept
