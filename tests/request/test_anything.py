"""Whatever is given is a request that can be sent, or refused with our own error."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from aigateway.errors import RequestRejectedError
from aigateway.messages import CHAT_PARAMS
from aigateway.request.validate import chat_request, embedding_request
from tests.request.helpers import INF, SETTINGS, chat

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
)


NAMES = st.sampled_from(
    [
        *("role", "content", "type", "text", "tool_calls", "tool_call_id", "name"),
        *("user", "assistant", "system", "tool"),
    ]
)


JSON = st.recursive(
    SCALARS | NAMES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=5)
        | st.fixed_dictionaries({"role": NAMES, "content": inner})
    ),
    max_leaves=12,
)


PARAM_NAMES = st.sampled_from(sorted(CHAT_PARAMS)) | st.text(max_size=8)


@given(
    JSON,
    st.dictionaries(PARAM_NAMES, JSON, max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "system": JSON,
            "model": JSON,
            "temperature": JSON,
            "max_tokens": JSON,
            "timeout": JSON,
            "agent": JSON,
            "cache": JSON,
            "cache_ttl": JSON,
        },
    ),
)
def test_anything_is_a_request_or_refused(
    prompt: Any, params: dict[str, Any], options: dict[str, Any]
) -> None:
    try:
        request = chat_request(prompt, params=params, settings=SETTINGS, **options)
    except RequestRejectedError as error:
        assert error.__context__ is None  # noqa: PT017  # either outcome is right
        return
    sent = orjson.dumps([request.messages, request.params])
    assert orjson.loads(sent) == [list(request.messages), request.params]
    assert request.messages
    assert request.timeout is None or 0 < request.timeout < INF


@given(st.lists(st.fixed_dictionaries({"role": NAMES, "content": SCALARS}), min_size=1))
def test_messages_come_out_as_they_went_in(messages: Any) -> None:
    try:
        request = chat(messages)
    except RequestRejectedError:
        return
    assert list(request.messages) == messages


@given(JSON, st.dictionaries(PARAM_NAMES, JSON, max_size=3))
def test_any_embedding_is_a_request_or_refused(inputs: Any, params: dict[str, Any]) -> None:
    try:
        request = embedding_request(inputs, params=params, settings=SETTINGS)
    except RequestRejectedError:
        return
    assert all(request.inputs)
