import hashlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from aigateway.cache import key as key_module
from aigateway.cache.key import cache_key, configuration_digest, prompt_key
from aigateway.errors import RequestRejectedError
from aigateway.messages import ChatRequest
from aigateway.request.validate import chat_request
from aigateway.settings import GatewaySettings, LLMConfig

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["temperature", "max_tokens", "seed", "tools", "response_format", "made_up"]
)
PARAMS = st.dictionaries(NAMES, JSON, max_size=4)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT},
        optional={"name": st.none() | TEXT, "tool_calls": st.lists(JSON, max_size=2)},
    ),
    min_size=1,
    max_size=4,
).map(tuple)
REQUESTS = st.builds(
    ChatRequest, messages=MESSAGES, model=st.none() | TEXT, params=PARAMS, timeout=st.none()
)

PLAIN = ChatRequest(({"role": "user", "content": "hi"},), "gpt", {"temperature": 0.7})


def reordered(value: Any, data: st.DataObject) -> Any:
    """The same value with the keys of every mapping in another order."""
    if isinstance(value, dict):
        items = data.draw(st.permutations(list(value.items())))
        return {name: reordered(part, data) for name, part in items}
    if isinstance(value, list):
        return [reordered(part, data) for part in value]
    return value


def same_json(one: Any, other: Any) -> bool:
    """Equality that tells True from 1, as JSON does."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def essence(request: ChatRequest) -> Any:
    """What must decide the key, written as plainly as possible."""
    return [
        request.model,
        [{k: v for k, v in message.items() if v is not None} for message in request.messages],
        {k: v for k, v in request.params.items() if v is not None},
    ]


@given(REQUESTS, st.data())
def test_the_order_of_keys_does_not_matter(request_: ChatRequest, data: st.DataObject) -> None:
    messages = tuple(reordered(dict(message), data) for message in request_.messages)
    other = replace(request_, messages=messages, params=reordered(request_.params, data))
    assert cache_key(other) == cache_key(request_)


@given(REQUESTS, REQUESTS)
def test_two_requests_share_a_key_only_if_they_ask_the_same(
    one: ChatRequest, other: ChatRequest
) -> None:
    if cache_key(one) == cache_key(other):
        assert same_json(essence(one), essence(other))


@given(REQUESTS, st.data())
def test_any_change_changes_the_key(request_: ChatRequest, data: st.DataObject) -> None:
    part = data.draw(st.sampled_from(["messages", "model", "params"]))
    drawn: Any = data.draw(
        {"messages": MESSAGES, "model": st.none() | TEXT, "params": PARAMS}[part]
    )
    change: dict[str, Any] = {part: drawn}
    other = replace(request_, **change)
    assume(not same_json(essence(request_), essence(other)))
    assert cache_key(other) != cache_key(request_)


@given(REQUESTS)
def test_the_order_of_messages_matters(request_: ChatRequest) -> None:
    other = replace(request_, messages=request_.messages[::-1])
    same = same_json(essence(request_), essence(other))
    assert (cache_key(other) == cache_key(request_)) is same


@given(REQUESTS, NAMES)
def test_none_is_the_same_as_absent(request_: ChatRequest, name: str) -> None:
    absent = {k: v for k, v in request_.params.items() if k != name}
    explicit = {**absent, name: None}
    assert cache_key(replace(request_, params=absent)) == cache_key(
        replace(request_, params=explicit)
    )


def test_none_in_a_message_is_the_same_as_absent() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "1"}]}
    assert cache_key(ChatRequest((call,))) == cache_key(ChatRequest(({**call, "content": None},)))


def test_none_deeper_down_is_a_value() -> None:
    one, other = ({"tools": [{"enum": part}]} for part in ([None], []))
    assert cache_key(replace(PLAIN, params=one)) != cache_key(replace(PLAIN, params=other))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (0, 0.0, True),
        (0, -0.0, True),
        (1, 1.0, True),
        (1, True, False),
        (1.0, True, False),
        (0, False, False),
        (1, "1", False),
        (0.5, 0.25, False),
        (2**53, float(2**53), True),
        (-(2**53), -float(2**53), True),
        (2**53 + 2, float(2**53 + 2), False),
        (-(2**53) - 2, -float(2**53 + 2), False),
        (10**18, 1e18, False),  # too large for a float to be surely the same
    ],
)
def test_numbers(one: Any, other: Any, same: bool) -> None:
    keys = {cache_key(replace(PLAIN, params={"seed": value})) for value in (one, other)}
    assert (len(keys) == 1) is same


@pytest.mark.parametrize(
    "change",
    [
        {"timeout": 3.0},
        {"agent": "summaries"},
        {"cache": "refresh"},
        {"cache_ttl": 5.0},
        {"request_id": "abc"},
    ],
)
def test_what_the_vendor_never_sees_is_no_part(change: dict[str, Any]) -> None:
    assert cache_key(replace(PLAIN, **change)) == cache_key(PLAIN)


@pytest.mark.parametrize(
    "name",
    [
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    ],
)
def test_neutral_parameters_are_no_part(name: str) -> None:
    other = replace(PLAIN, params={**PLAIN.params, name: "x"})
    assert cache_key(other) == cache_key(PLAIN)


@pytest.mark.parametrize("name", ["extra_body", "extra_headers", "prediction", "never_heard_of"])
def test_everything_doubtful_is_a_part(name: str) -> None:
    other = replace(PLAIN, params={**PLAIN.params, name: {"x": "y"}})
    assert cache_key(other) != cache_key(PLAIN)


def test_partitions_share_nothing() -> None:
    assert len({cache_key(PLAIN, partition=tenant) for tenant in ("", "a", "b")}) == 3
    # A partition cannot be forged by way of the model.
    assert cache_key(replace(PLAIN, model="a"), partition="b") != cache_key(
        replace(PLAIN, model="b"), partition="a"
    )


def test_another_format_reads_no_old_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key(PLAIN)
    monkeypatch.setattr(key_module, "_FORMAT", key_module._FORMAT + 1)
    assert cache_key(PLAIN) != before


def test_the_format_is_what_it_was() -> None:
    """If this fails, the form of the key changed: raise `_FORMAT`, then write the new text here."""
    canonical = b'[2,"","gpt",[{"content":"hi","role":"user"}],{"temperature":0.7}]'
    assert cache_key(PLAIN) == hashlib.blake2b(canonical, digest_size=32).hexdigest()


def test_frozen_mappings_count_as_mappings() -> None:
    frozen = ChatRequest(
        tuple(MappingProxyType(dict(message)) for message in PLAIN.messages),
        PLAIN.model,
        MappingProxyType(dict(PLAIN.params)),
    )
    assert cache_key(frozen) == cache_key(PLAIN)


def test_what_json_cannot_hold_is_refused_without_quoting_it() -> None:
    with pytest.raises(RequestRejectedError, match="not JSON serializable") as caught:
        cache_key(replace(PLAIN, params={"made_up": b"secret"}))
    assert "secret" not in str(caught.value)
    with pytest.raises(RequestRejectedError):
        cache_key(replace(PLAIN, params={"made_up": {("no", "mapping")}}))
    with pytest.raises(RequestRejectedError):
        prompt_key(None, "\ud800")


@pytest.mark.parametrize("system", [None, "", "You are terse."])
@pytest.mark.parametrize("model", [None, "gpt"])
def test_a_prompt_has_the_key_that_chat_gives_it(system: str | None, model: str | None) -> None:
    request = chat_request("hi", system=system, model=model, params={}, settings=GatewaySettings())
    assert prompt_key(system, "hi", model) == cache_key(request)


def test_two_classes_of_one_schema_share_the_vendors_text() -> None:
    def schema_of(title: str) -> type[BaseModel]:
        return type("Answer", (BaseModel,), {"__annotations__": {"n": int}, "__doc__": title})

    one, again, other = schema_of("a"), schema_of("a"), schema_of("b")
    keys = [
        cache_key(chat_request("hi", params={"response_format": model}, settings=GatewaySettings()))
        for model in (one, again, other)
    ]
    assert keys[0] == keys[1] != keys[2]


def test_a_provider_at_another_address_is_another_one():
    def digest(**fields):
        return configuration_digest(LLMConfig(provider="openai", model="m", api_key="k", **fields))

    staging = "http://staging.test/v1"
    assert digest() == digest(name="x", priority=2)
    assert (
        len(
            {digest(), digest(api_base=staging), digest(api_base=staging, extra={"temperature": 1})}
        )
        == 3
    )
