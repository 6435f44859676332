"""Requests put together without litellm have the bytes that litellm's translation would have.

Each kind of conversation is shown to a translation once. From then on it either makes a request by
itself, which has to be the same as litellm's, or leaves it to litellm.
"""

import asyncio
import functools
import itertools
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import ChatRequest
from aigateway.settings import LLMConfig, ProviderType
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.litellm.lane import call_options
from aigateway.wires.loading import load_litellm, silent
from aigateway.wires.plain_requests import RequestFrame, RequestFrames
from aigateway.wires.translation import Translation, translation_for
from tests.wires.calls import KINDS, asking
from tests.wires.shapes import PIXEL, SCHEMA, SHAPES, TOOL

MODELS = {
    ("openai", "gpt-4o-mini"): True,
    ("openai", "gpt-5"): True,
    ("openai", "o1"): False,
    ("openai", "o3-mini"): False,
    ("openai", "gpt-3.5-turbo"): False,
    ("openai_compatible", "llama"): False,
    ("azure", "gpt-4o"): False,
    ("anthropic", "claude-3-haiku-20240307"): False,
    ("anthropic", "claude-3-5-haiku-latest"): False,
    ("anthropic", "claude-3-7-sonnet-20250219"): True,
    ("anthropic", "claude-sonnet-4-20250514"): False,
    ("anthropic", "claude-opus-4-1"): False,
    ("anthropic", "claude-haiku-4-5"): True,
    ("anthropic", "claude-sonnet-4-5"): False,
    ("anthropic", "claude-opus-4-5"): False,
    ("gemini", "gemini-1.5-flash"): False,
    ("gemini", "gemini-2.0-flash"): False,
    ("gemini", "gemini-2.5-flash"): True,
    ("gemini", "gemini-2.5-pro"): False,
    ("gemini", "gemini-3-pro-preview"): True,
    ("gemini", "gemma-3-27b-it"): False,
}
"""Models of all families that litellm treats in their own ways. Those with False are a proof."""
EVERY_MODEL = [
    pytest.param(*model, marks=() if default else pytest.mark.proof)
    for model, default in MODELS.items()
]


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def calls(*names: str, arguments: str | None = None, content: Any = None) -> dict[str, Any]:
    given = []
    for name in names:
        written = f'{{"city": "{name}"}}' if arguments is None else arguments
        function = {"name": "weather", "arguments": written}
        given.append({"id": name, "type": "function", "function": function})
    return says("assistant", content, tool_calls=given)


def result(given: str, content: Any, **more: Any) -> dict[str, Any]:
    return says("tool", content, tool_call_id=given, **more)


U, S, A = (functools.partial(says, role) for role in ("user", "system", "assistant"))

ONE_OF_EACH = [
    (*system, first, *rest)
    for system, first, rest in itertools.product(
        ((), (S("Be terse."),)),
        (U("Hi"), U(parts("Hi", "there"))),
        ((), (A("Hello."), U("2+2?")), (calls("c1"), result("c1", "Snow."))),
    )
]
"""One conversation of each kind that is told apart."""
PLAIN = [
    *ONE_OF_EACH,
    (S("a"), S("b"), U("c")),
    (S(parts("a", "b")), U("c")),
    (U("a"), U("b")),
    (U("Ærlig 🎉\u2028\x00 'talt' \"\\"),),
    (U(" x\n"),),
    (U("a"), A(parts("b", "c")), A("d"), U("e")),
    (U("a"), A("b\n"), U("c")),
    (U("a"), calls("c1", "c2", content="Let me look."), result("c2", "x"), result("c1", "[1]")),
    (U("a"), calls("c1"), result("c1", '{"snow": 1.0, "n": null}', name="weather"), U("Well?")),
    (U("a"), calls("c1"), result("c1", "{no"), A("b"), U("c"), calls("c2"), result("c2", "x")),
    (U("a"), calls("c1", arguments='{"a": 1e5, "b": [-0.0, "é"], "b": 2}'), result("c1", "x")),
]
ODD = [
    (U(""),),
    (U("  \n"),),
    (U(None),),
    (U([]),),
    (U(parts("a", "")),),
    (S(""), U("a")),
    (S("  "), U("a")),
    (S("x-anthropic-billing-header: a"), U("b")),
    (S("alone"),),
    (U("a"), S("late")),
    (U("a"), S("between"), U("b")),
    (A("first"), U("a")),
    (U("a"), A("to go on ")),
    (U("a"), A(parts("to go on "))),
    (U("a"), A(""), U("b")),
    (U("a"), A(" "), U("b")),
    (U("a"), A(None), U("b")),
    (says("user", "a", name="bob"),),
    (says("developer", "a"), U("b")),
    (U([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]),),
    (says("user", "a", cache_control={"type": "ephemeral"}),),
    (U([*parts("a"), {"type": "image_url", "image_url": {"url": PIXEL}}]),),
    (U(PIXEL),),
    (U("a"), calls("c1", content=""), result("c1", "x")),
    (U("a"), calls("c1", arguments=""), result("c1", "x")),
    (U("a"), calls("c1", "c2", arguments="{}"), result("c1", "x"), result("c2", "x")),
    (U("a"), calls("c1", arguments="[1]"), result("c1", "x")),
    (U("a"), calls("c1", arguments="{cut"), result("c1", "x")),
    (U("a"), calls("c1", arguments='{"n": 123456789012345678901234567890}'), result("c1", "x")),
    (U("a"), calls("c1", arguments='{"a": "\\ud83d"}'), result("c1", "x")),
    (U("a"), calls("c1"), U("b")),
    (U("a"), calls("c1"), result("other", "x")),
    (U("a"), calls("c1", "c1"), result("c1", "x")),
    (U("a"), calls("c1", "c2"), result("c1", "x"), U("b")),
    (U("a"), calls("c1"), result("c1", "x"), calls("c1"), result("c1", "x")),
    (U("a"), calls("c.1"), result("c.1", "x")),
    (U("a"), calls("srvtoolu_1"), result("srvtoolu_1", "x")),
    (U("a"), calls("c1__thought__Zm9v"), result("c1__thought__Zm9v", "x")),
    (U("a"), calls("c1"), result("c1", "")),
    (U("a"), calls("c1"), result("c1", None)),
    (U("a"), calls("c1"), result("c1", parts("x", "y"))),
    (U("a"), calls("c1"), result("c1", PIXEL)),
    (U("a"), calls("c1"), result("c1", ' {"a": {"$ref": "#/b"}}')),
    (U("a"), calls("c1"), result("c1", '{"\\u0024r\\u0065f": "x"}')),
    (U("half \ud83d"),),
]
SCHEMA_WITH_DEFS = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/Place"}, "n": {"type": "integer", "default": None}},
    "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
DEFINED = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA_WITH_DEFS}}
NAMED = {"type": "function", "function": {"name": "weather"}}
PARAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "max_tokens": 50},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"temperature": 0.0},
    {"temperature": 1, "top_p": 0.9},
    {"temperature": 1.0},
    {"max_completion_tokens": 7},
    {"stop": "x"},
    {"stop": ["x", " "]},
    {"seed": 0},
    {"top_k": 5},
    {"user": "someone"},
    {"user": "someone@example.com"},
    {"n": 2},
    {"presence_penalty": 0, "frequency_penalty": 0.5},
    {"logprobs": True, "top_logprobs": 2},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": NAMED, "parallel_tool_calls": False},
    {"tools": [TOOL, TOOL], "tool_choice": "none"},
    {"tools": [DEFINED]},
    {"tools": [{"type": "function", "function": {"name": "a/b", "parameters": {}}}]},
    {"response_format": SCHEMA},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "text"}},
    {"reasoning_effort": "low"},
    {"extra_body": {"x": 1, "generationConfig": {"topK": 3}}},
    {"extra_body": {"messages": [], "contents": [], "system": "x"}},
]


@functools.cache
def translation_of(kind: str, model: str) -> Translation:
    """A translation; one for all tests, because what it has learned must not mislead it."""
    litellm = asyncio.run(load_litellm())
    version = "2024-10-21" if kind == "azure" else None
    base = "http://127.0.0.1:1"
    config = LLMConfig(ProviderType(kind), model, api_key="k", api_base=base, api_version=version)
    options = call_options(config, drop_unsupported_params=False)
    translation = translation_for(litellm, config, options)
    assert translation is not None
    return translation


def what_litellm_makes_of(translation, request, *, streamed):
    """Its body, headers and mapped parameters; None where it refuses, or the other lane is to."""
    with silent():
        try:
            sent = translation._translated(request, streamed=streamed)
        except Exception:  # noqa: BLE001 - litellm raises anything
            return None
    return sent and (sent.body, dict(sent.headers), sent.options)


def is_made_alone(translation, messages, params, *, streamed=False):
    """See that a request is the same without litellm; return whether it was made without it."""
    request = ChatRequest(messages=tuple(messages), params=params)
    alone = translation.known(request, streamed=streamed)
    if alone is None:
        return False
    made = alone.body, dict(alone.headers), alone.options
    assert made == what_litellm_makes_of(translation, request, streamed=streamed)
    return True


def shown(model, params, *, streamed=False, make=translation_of):
    """A translation that has seen a conversation of each kind, with these parameters."""
    translation = make(*model)
    for messages in ONE_OF_EACH:
        request = ChatRequest(messages=messages, params=params)
        if translation.known(request, streamed=streamed) is None:
            what_litellm_makes_of(translation, request, streamed=streamed)
    return translation


@pytest.mark.parametrize(("kind", "model"), EVERY_MODEL)
def test_the_common_ones_are_made_without_litellm(kind, model):
    takes_system = model not in {
        "o3-mini",
        "gemini-1.5-flash",
        "gemini-2.0-flash",
        "gemma-3-27b-it",
    }
    for streamed, params in itertools.product((False, True), PARAMS[:3]):
        if "temperature" in params and model in {"gpt-5", "o1", "o3-mini"}:
            continue  # litellm refuses it
        make = translation_of.__wrapped__  # a new one, which keeps all that it is shown
        translation = shown((kind, model), params, streamed=streamed, make=make)
        for messages in PLAIN:
            alone = is_made_alone(translation, messages, params, streamed=streamed)
            has_system = any(message["role"] == "system" for message in messages)
            assert alone or (has_system and not takes_system), messages


ONE_OF_EACH_KIND = [
    ("openai", "gpt-4o-mini"),
    ("anthropic", "claude-haiku-4-5"),
    ("gemini", "gemini-2.5-flash"),
]


def see_that_none_differs(model, various):
    for params in various:
        translation = shown(model, params)
        for messages in (*PLAIN, *ODD):
            is_made_alone(translation, messages, params)


@pytest.mark.parametrize("model", ONE_OF_EACH_KIND)
def test_the_others_are_never_made_differently(model):
    see_that_none_differs(model, PARAMS[:3])


@pytest.mark.proof
@pytest.mark.parametrize("model", MODELS)
def test_no_parameters_make_a_difference(model):
    see_that_none_differs(model, PARAMS)


texts = st.text(max_size=8) | st.sampled_from(["a", " ", "\n", "", "{}", "a ", '{"ref": 1}'])
contents = texts | st.lists(texts, max_size=3).map(lambda each: parts(*each)) | st.none()
messages = (
    st.builds(says, st.sampled_from(["user", "user", "assistant", "system"]), contents)
    | st.builds(calls, st.sampled_from(["c1", "c2"]), arguments=texts, content=contents)
    | st.builds(result, st.sampled_from(["c1", "c2"]), contents)
)
turns = st.builds(lambda said, answer: [U(said), A(answer)], texts, texts)
called = st.builds(
    lambda name, arguments, content, given: [calls(name, content=content), result(name, given)],
    st.sampled_from(["c1", "c2", "c3"]),
    texts,
    contents,
    contents,
)
talks = st.lists(turns | called | messages.map(lambda message: [message]), max_size=4).map(
    lambda pieces: [message for piece in pieces for message in piece]
)


def see_that_it_does_not_differ(model, talk, last, params, *, streamed):
    translation = shown(model, params, streamed=streamed)
    for messages in (talk, [*talk, U(last)], [S("x"), U("y"), *talk, U("z")]):
        is_made_alone(translation, messages, params, streamed=streamed)


@given(st.sampled_from(ONE_OF_EACH_KIND), talks.filter(bool), texts, st.booleans())
def test_no_conversation_is_made_differently(model, talk, last, streamed):
    see_that_it_does_not_differ(model, talk, last, {}, streamed=streamed)


@pytest.mark.proof
@settings(max_examples=300)
@given(
    st.sampled_from(sorted(MODELS)),
    talks.filter(bool),
    texts,
    st.sampled_from(PARAMS),
    st.booleans(),
)
def test_no_conversation_with_any_parameters_is_made_differently(
    model, talk, last, params, streamed
):
    see_that_it_does_not_differ(model, talk, last, params, streamed=streamed)


# ── what litellm changes ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def anthropic(simulator):
    translation_of("anthropic", "claude-haiku-4-5")  # litellm is loaded
    config = simulator.anthropic.config()
    options = call_options(config, drop_unsupported_params=False)
    return translation_for(asyncio.run(load_litellm()), config, options)


def text_of(sent):
    return sent.body.decode()


def test_a_litellm_that_translates_differently_is_asked_each_time(anthropic, monkeypatch):
    kind = type(anthropic._config)
    whole = kind.transform_request

    def changed(self, model, messages, *others):
        return whole(self, model, [U("Changed."), *messages], *others)

    monkeypatch.setattr(kind, "transform_request", changed)
    for _ in range(3):
        assert "Changed." in text_of(anthropic.request(asking("Hi")))
        assert anthropic.known(asking("Hi")) is None


def test_litellm_is_asked_again_from_time_to_time(anthropic, monkeypatch):
    kind = type(anthropic._config)
    anthropic.request(asking("Hi"))
    whole = kind.transform_request
    monkeypatch.setattr(kind, "transform_request", lambda *a: {**whole(*a), "new": True})
    bodies = [text_of(anthropic.request(asking("Hi"))) for _ in range(1100)]
    assert 900 < ["new" in body for body in bodies].index(True) < 1100
    assert all("new" in body for body in bodies[-50:])


def test_settings_of_litellm_count_at_once(anthropic, monkeypatch):
    import litellm

    anthropic.request(asking("Hi"))
    assert anthropic.known(asking("Hi")) is not None
    monkeypatch.setattr(litellm, "modify_params", True)
    assert anthropic.known(asking("Hi")) is None


@pytest.fixture
def gemini():
    return translation_of.__wrapped__("gemini", "gemini-2.5-flash")


def blocking(threshold):
    return [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": threshold}]


def test_what_was_set_around_one_call_is_for_that_call(gemini, monkeypatch):
    import litellm

    with monkeypatch.context() as around:
        around.setattr(litellm, "vertex_ai_safety_settings", blocking("BLOCK_NONE"))
        assert "BLOCK_NONE" in text_of(gemini.request(asking("Hi")))
    for _ in range(3):
        assert "safety" not in text_of(gemini.request(asking("Hi")))
    assert gemini.known(asking("Hi")) is not None


def test_a_list_of_settings_may_change_in_place(gemini, monkeypatch):
    import litellm

    settings = blocking("BLOCK_NONE")
    monkeypatch.setattr(litellm, "vertex_ai_safety_settings", settings)
    gemini.request(asking("Hi"))
    assert "BLOCK_NONE" in text_of(gemini.known(asking("Hi")))
    settings[0]["threshold"] = "BLOCK_ONLY_HIGH"
    assert "BLOCK_ONLY_HIGH" in text_of(gemini.request(asking("Hi")))


def frames_of(**settings):
    """Frames, and a litellm of these settings."""
    litellm = SimpleNamespace(**settings)
    return litellm, RequestFrames(cast("Any", litellm), frozenset({"messages"}))


def frame_of(size=1):
    return RequestFrame({"model": "m" * size, "messages": []}, {"messages": []}, {}, {}, {})


def test_what_is_learned_counts_for_the_settings_it_was_made_with():
    litellm, frames = frames_of(drop_params=False, modify_params=False)
    before = frames.settings()
    frames.learn(("kept",), before, frame_of)
    litellm.drop_params = True
    during = frames.settings()
    litellm.drop_params = False
    frames.learn(("odd",), during, frame_of)  # its translation ends after they were set back
    assert frames.find(("odd",)) is None
    assert frames.find(("kept",)) is not None
    litellm.drop_params = True
    frames.learn(("other",), during, frame_of)
    assert frames.find(("other",)) is not None
    assert frames.find(("kept",)) is None
    litellm.drop_params = False
    assert frames.find(("other",)) is None


@pytest.mark.parametrize(("size", "most"), [(1, 256), (100_000, 42)])
def test_the_oldest_makes_room(size, most):
    _, frames = frames_of(drop_params=False)
    for place in range(400):
        frames.learn((place,), frames.settings(), lambda: frame_of(size))
    kept = [place for place in range(400) if frames.find((place,)) is not None]
    assert kept == list(range(400 - most, 400))


def test_a_kind_that_differs_is_compared_once():
    _, frames = frames_of(drop_params=False)
    made = []
    for _ in range(3):
        frames.learn(("odd",), frames.settings(), lambda: made.append(1))
    assert len(made) == 1
    for place in range(400):
        frames.learn((place,), frames.settings(), lambda: None)
    assert len(frames._frames) == 256


def test_a_form_of_calls_that_litellm_does_not_tell_is_left_to_litellm(gemini, monkeypatch, caplog):
    def broken(**_):
        logging.getLogger("LiteLLM").warning("Advice.")
        raise RuntimeError

    request = ChatRequest((U("a"), calls("c1"), result("c1", "x")))
    monkeypatch.setattr(gemini, "_transform", broken)
    assert gemini.known(request) is None
    assert "Advice." not in caplog.text
    monkeypatch.undo()
    gemini.request(request)
    assert gemini.known(request) is not None


def test_what_is_kept_is_bounded(anthropic):
    def kept():
        frames = anthropic._frames._frames.values()
        return len(frames), sum(frame.size for frame in frames)

    for place in range(300):
        anthropic.request(asking("Hi", max_tokens=place + 1))
        assert 0 < kept()[0] <= 256
    for place in range(60):
        told = {"name": "weather", "description": f"{place:06}" * 10_000}
        anthropic.request(asking("Hi", tools=[{"type": "function", "function": told}]))
        assert kept()[1] < 2**23


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_is_read_the_same_after_either(simulator, kind):
    vendor = simulator.vendor(kind)
    client = DirectClient(vendor.config(), SYSTEM_CLOCK)
    try:
        answers = [await client.chat(SHAPES["tool-results"]) for _ in range(3)]
    finally:
        await client.aclose()
    assert len({answer.choices[0].text for answer in answers}) == 1
    first, *others = [sent.body for sent in vendor.received]
    assert others == [first, first]
