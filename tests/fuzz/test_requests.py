"""Whatever a caller passes: it is refused before it is sent, or it is a request like any other.

The vendors are well, so nothing that a caller can pass may count against them.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigateway import AsyncGateway, FailureKind, GatewayError
from aigateway.messages import CHAT_PARAMS
from aigateway.simulator import Simulator
from tests.fuzz.json_values import VALUES
from tests.fuzz.laboratory import Laboratory, check_books, check_reply
from tests.fuzz.wires import WIRES
from tests.processes import PATIENCE

_ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool", "function"])
_PARTS = st.sampled_from(
    [
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": "data:,"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
        {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
    ]
)
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": _ROLES, "content": st.just("hi") | VALUES | st.lists(_PARTS | VALUES, max_size=3)},
        optional={
            "tool_call_id": st.just("c") | VALUES,
            "tool_calls": st.just([_CALL]) | st.lists(VALUES, max_size=2) | VALUES,
            "name": st.just("n") | VALUES,
            "function_call": VALUES,
            "refusal": VALUES,
            "cache_control": VALUES,
        },
    ),
    min_size=1,
    max_size=3,
)
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
_PARAMS = st.dictionaries(
    st.sampled_from(sorted(CHAT_PARAMS - {"extra_headers", "extra_body"})),
    VALUES
    | st.sampled_from([1, 0.5, True, "low", "auto", "stop", ["x"], {"type": "json_object"}])
    | st.sampled_from([_SCHEMA, [_TOOL], [_TOOL | {"cache_control": 1}], {"type": "enabled"}]),
    max_size=3,
)
_OPTIONS = st.dictionaries(
    st.sampled_from(["system", "model", "timeout", "agent", "cache", "cache_ttl", "hedge"])
    | st.sampled_from(["resume", "stream", "stream_options", "nonsense"]),
    VALUES,
    max_size=1,
)

TIMES = ("timeout", "attempt_timeout", "first_token_timeout", "idle_timeout")

HARMLESS = {FailureKind.REJECTED, FailureKind.UNSUPPORTED, FailureKind.DEADLINE}
"""What may become of a request that was sent, or could not be put into the vendor's words."""

FEW = settings(max_examples=max(30, settings().max_examples // 3))


async def ask(simulator: Simulator, wire: str, how: str, prompt: Any, params: Any) -> None:
    config = getattr(simulator, wire).config()
    # No vendor is silent here, and only what hangs may be late.
    times: dict[str, Any] = dict.fromkeys(TIMES, PATIENCE)
    gateway = AsyncGateway([config], retry_rounds=0, **times)
    try:
        await gateway.warmup()
        try:
            if how == "chat":
                check_reply(await gateway.chat(prompt, **params))
            else:
                stream = gateway.stream(prompt, **params)
                async for _ in stream:
                    pass
                check_reply(stream.response)
        except GatewayError as error:
            causes = {cause.kind for cause in getattr(error, "causes", ())}
        else:
            causes = set()
        assert causes <= HARMLESS
        check_books(gateway)
        (metrics,) = gateway.get_metrics()["providers"].values()
        assert metrics["consecutive_failures"] == 0
    finally:
        await gateway.aclose()


@pytest.fixture(scope="module")
def simulated(laboratory):
    simulator = Simulator()
    laboratory.runner.run(simulator.__aenter__())
    yield simulator
    laboratory.runner.run(simulator.__aexit__(None, None, None))


@pytest.mark.parametrize("wire", WIRES)
@FEW
@given(
    prompt=st.just("hi") | _MESSAGES | VALUES,
    params=st.tuples(_PARAMS, _OPTIONS).map(lambda both: both[0] | both[1]),
    how=st.sampled_from(["chat", "stream"]),
)
def test_any_request(
    laboratory: Laboratory, simulated: Simulator, wire: str, prompt: Any, params: Any, how: str
) -> None:
    laboratory.complaints.found.clear()
    laboratory.runner.run(ask(simulated, wire, how, prompt, params))
    assert not laboratory.complaints.found
