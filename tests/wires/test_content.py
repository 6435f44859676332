"""Answers that are more than text: whole and streamed, over both lanes, each read the same."""

import json
from typing import Any

import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import FailureKind
from aigateway.messages import Audio, ChatResponse
from aigateway.wires.client import VendorCallError
from aigateway.wires.content import ThinkTags
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.wires.bodies import (
    ANTHROPIC,
    AZURE,
    COMPATIBLE,
    GEMINI,
    OPENAI,
    Vendor,
    answers,
    anthropic,
    gemini,
    openai,
    read_out,
)
from tests.wires.calls import asking


@pytest.fixture
async def vendor():
    async with Vendor() as running:
        yield running


PIXEL = "iVBORw0KGgo="
PICTURE = f"data:image/png;base64,{PIXEL}"
PICTURED = {"type": "image_url", "image_url": {"url": PICTURE}}
SPEECH = {"id": "audio_1", "data": "UklG", "transcript": "Hello", "expires_at": 1700003600}
HEARD = Audio("audio_1", "UklG", "Hello", 1700003600)
NOTE = {"url": "https://source.test", "title": "T", "start_index": 0, "end_index": 4}
NOTES = [{"type": "url_citation", "url_citation": NOTE}]
SAID = {"type": "text", "text": "Hel"}

SHAPES: dict[str, Any] = {
    "list": (
        {"content": [SAID, {"type": "text", "text": "lo"}]},
        [{"content": [SAID]}, {"content": [{"type": "text", "text": "lo"}]}],
        {"text": "Hello"},
    ),
    "one-part": ({"content": [SAID]}, [{"content": [SAID], "role": "assistant"}], {"text": "Hel"}),
    "one-part-without-a-list": (
        {"content": SAID},
        [{"content": {"type": "text", "text": text}} for text in ("He", "l")],
        {"text": "Hel"},
    ),
    "list-with-thought": (
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, SAID]},
        [
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            {"content": "Hel"},
        ],
        {"text": "Hel", "reasoning": "hm"},
    ),
    "list-with-picture": (
        {"content": [SAID, PICTURED]},
        [{"content": [SAID]}, {"content": [PICTURED]}],
        {"text": "Hel", "images": (PICTURE,)},
    ),
    "list-with-refusal": (
        {"content": [{"type": "refusal", "refusal": "No."}]},
        [{"content": [{"type": "refusal", "refusal": "No."}]}],
        {"refusal": "No."},
    ),
    "picture": (
        {"content": "", "images": [PICTURED]},
        [{"content": ""}, {"content": "", "images": [PICTURED]}],
        {"images": (PICTURE,)},
    ),
    "two-pictures": (
        {"content": None, "images": [PICTURED, PICTURED]},
        [{"images": [PICTURED]}, {"images": [PICTURED]}],
        {"images": (PICTURE, PICTURE)},
    ),
    "speech": (
        {"content": None, "audio": SPEECH},
        [
            {"audio": {"id": "audio_1", "transcript": "Hel"}},
            {"audio": {"id": "audio_1", "data": "Uk"}},
            {"audio": {"transcript": "lo", "data": "lG"}},
            {"audio": {"expires_at": 1700003600}},
        ],
        {"audio": HEARD},
    ),
    "annotations": (
        {"content": "fact", "annotations": NOTES},
        [{"content": "fact"}, {"annotations": NOTES}],
        {"text": "fact", "sources": {"annotations": NOTES}},
    ),
    "refusal": (
        {"content": None, "refusal": "No."},
        [{"refusal": "N"}, {"refusal": "o."}],
        {"refusal": "No."},
    ),
    "tags": (
        {"content": "<think>2 < 3</think>\n\n4"},
        [{"content": piece} for piece in ("<th", "ink>2 <", " 3</thi", "nk>\n", "\n4")],
        {"text": "\n\n4", "reasoning": "2 < 3"},
    ),
    "tags-never-closed": (
        {"content": "<think>two and", "refusal": "No."},
        [{"content": "<think>two"}, {"content": " and"}, {"refusal": "No."}],
        {"reasoning": "two and", "refusal": "No."},
    ),
    "half-a-tag": ({"content": "<thi"}, [{"content": "<"}, {"content": "thi"}], {"text": "<thi"}),
    "tags-later": (
        {"content": "Use <think>x</think>."},
        [{"content": "Use <think>"}, {"content": "x</think>."}],
        {"text": "Use <think>x</think>."},
    ),
    "tags-beside-reasoning": (
        {"content": "<think>x</think>4", "reasoning_content": "hm"},
        [{"reasoning_content": "hm"}, {"content": "<think>x</think>4"}],
        {"text": "<think>x</think>4", "reasoning": "hm"},
    ),
}


def fields_of(choice):
    sources = json.loads(choice.sources_json) if choice.sources_json else {}
    fields = {
        "text": choice.text,
        "reasoning": choice.reasoning,
        "refusal": choice.refusal,
        "images": choice.images,
        "audio": choice.audio,
        "sources": sources,
    }
    return {name: value for name, value in fields.items() if value}


IN_TURN = [
    (shape, kind)
    for place, shape in enumerate(SHAPES)
    for kind in (COMPATIBLE, (OPENAI, AZURE)[place % 2])
]
"""Each shape from a server that imitates OpenAI, and from one of the two originals."""


@pytest.mark.parametrize(("shape", "kind"), IN_TURN)
async def test_every_shape_of_the_openai_wire(vendor, shape, kind):
    message, deltas, expected = SHAPES[shape]
    openai(vendor, message, *deltas)
    more = {"api_version": "2024-10-21"} if kind is AZURE else {}
    seen = [fields_of(answer.choices[0]) async for answer in answers(vendor, kind, **more)]
    assert seen == [expected] * 4


async def test_what_stands_beside_the_choices(vendor):
    beside = {
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "citations": ["https://source.test"],
        "search_results": [{"url": "https://source.test"}],
    }
    openai(vendor, {"content": "fact"}, {"content": "fact"}, **beside)
    async for answer in answers(vendor, COMPATIBLE):
        assert (answer.system_fingerprint, answer.service_tier) == ("fp_1", "default")
        assert json.loads(answer.sources_json) == {
            "citations": ["https://source.test"],
            "search_results": [{"url": "https://source.test"}],
        }


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
async def test_what_stands_beside_the_choices_of_later_events(vendor, lane):
    openai(vendor, {"content": "fact"}, {"content": "fact"})
    vendor.events[0]["service_tier"] = "auto"
    vendor.events[1] |= {"service_tier": "flex", "system_fingerprint": "fp_1", "citations": ["u"]}
    costs = []
    for tier in ("flex", "default"):
        vendor.events[1]["service_tier"] = tier
        client = lane(vendor.config(OPENAI, model="gpt-5-mini"), SYSTEM_CLOCK)
        stream = await client.stream(asking())
        await read_out(stream)
        answer = stream.completion()
        await client.aclose()
        assert (answer.system_fingerprint, answer.service_tier) == ("fp_1", tier)
        assert json.loads(answer.sources_json) == {"citations": ["u"]}
        costs.append(answer.cost_usd)
    assert costs[0] < costs[1]


async def test_speech_whose_pieces_are_padded_each(vendor):
    pieces = [{"audio": {"id": "audio_1", "data": "Ukk="}}, {"audio": {"data": "TEY="}}]
    openai(vendor, {"audio": {"id": "audio_1", "data": "UklMRg=="}}, *pieces)
    heard = [answer.choices[0].audio.data async for answer in answers(vendor, OPENAI)]
    assert heard == ["UklMRg=="] * 4


async def test_an_answer_that_comes_whole_although_a_stream_was_asked_for(vendor):
    openai(vendor, {"content": "Look:", "images": [PICTURED], "audio": SPEECH})
    vendor.events = []
    client = DirectClient(vendor.config(COMPATIBLE), SYSTEM_CLOCK)
    (said,) = await read_out(await client.stream(asking()))
    assert (said.text, said.images, said.audio) == ("Look:", (PICTURE,), HEARD)
    await client.aclose()


async def test_geminis_pictures(vendor):
    gemini(vendor, [{"text": "Look:"}, {"inlineData": {"mimeType": "image/png", "data": PIXEL}}])
    seen = [fields_of(answer.choices[0]) async for answer in answers(vendor, GEMINI)]
    assert seen == [{"text": "Look:", "images": (PICTURE,)}] * 4


async def test_geminis_speech(vendor):
    gemini(vendor, [{"inlineData": {"mimeType": "audio/L16;rate=24000", "data": "UklG"}}])
    async for answer in answers(vendor, GEMINI):
        assert answer.choices[0].audio == Audio(data="UklG")  # without an id
        message = ChatResponse(answer, "p").to_openai()["choices"][0]["message"]
        assert message["audio"] == {"data": "UklG", "transcript": "", "expires_at": 0}


async def test_code_that_gemini_has_run(vendor):
    parts = [
        {"text": "Let me see."},
        {"executableCode": {"language": "PYTHON", "code": "print(1)\n"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1\n"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK"}},
        {"text": "It is 1."},
    ]
    gemini(vendor, parts)
    said = "Let me see.\n```python\nprint(1)\n```\n\n```\n1\n```\nIt is 1."
    seen = [fields_of(answer.choices[0]) async for answer in answers(vendor, GEMINI)]
    assert seen == [{"text": said}] * 4


async def test_geminis_grounding(vendor):
    grounding = {
        "groundingChunks": [{"web": {"uri": NOTE["url"], "title": "T"}}],
        "groundingSupports": [
            {
                "segment": {"startIndex": 0, "endIndex": 4, "text": "fact"},
                "groundingChunkIndices": [0],
            }
        ],
        "webSearchQueries": ["q"],
    }
    gemini(vendor, [{"text": "fact"}], groundingMetadata=grounding)
    seen = [fields_of(answer.choices[0]) async for answer in answers(vendor, GEMINI)]
    sources = {"annotations": NOTES, "grounding_metadata": [grounding]}
    assert seen == [{"text": "fact", "sources": sources}] * 4


async def test_anthropics_citations(vendor):
    cited = {"type": "char_location", "cited_text": "c", "document_index": 0}
    anthropic(
        vendor,
        {"type": "text", "text": "One fact. "},
        {"type": "text", "text": "Two.", "citations": [cited, {**cited, "cited_text": "d"}]},
    )
    async for answer in answers(vendor, ANTHROPIC):
        assert answer.choices[0].text == "One fact. Two."
        citations = json.loads(answer.choices[0].sources_json)["citations"]
        assert [(c["type"], c["cited_text"]) for c in citations] == [
            ("char_location", "c"),
            ("char_location", "d"),
        ]


@pytest.mark.parametrize("kind", [ANTHROPIC, GEMINI])
async def test_tags_of_models_with_thoughts_of_their_own_are_text(vendor, kind):
    text = "<thinking>asked for</thinking>4"
    if kind is GEMINI:
        gemini(vendor, [{"text": text}])
    else:
        anthropic(vendor, {"type": "text", "text": text})
    seen = [fields_of(answer.choices[0]) async for answer in answers(vendor, kind)]
    assert seen == [{"text": text}] * 4


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
@pytest.mark.parametrize("content", [[], [{"type": "text", "text": ""}], 7, {"a": 1}])
async def test_content_that_says_nothing_is_no_answer(vendor, lane, content):
    openai(vendor, {"content": content}, {"content": content})
    client = lane(vendor.config(COMPATIBLE), SYSTEM_CLOCK)
    with pytest.raises(VendorCallError) as caught:
        await client.chat(asking())
    assert caught.value.failure.kind is FailureKind.BAD_ANSWER
    with pytest.raises(VendorCallError) as caught:
        await read_out(await client.stream(asking()))
    assert caught.value.failure.kind is FailureKind.BAD_ANSWER
    await client.aclose()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "parted"),
    [
        ("<think>a</think>b", ("b", "a")),
        ("\n <thinking>a</thinking>\nb", ("\nb", "a")),
        ("<budget:thinking>a</budget:thinking>b", ("b", "a")),
        ("<think></think>b", ("b", "")),
        ("<think>a</think><think>c</think>b", ("<think>c</think>b", "a")),
        ("<think>a </b> <</think>b", ("b", "a </b> <")),
        ("<thin>a", ("<thin>a", "")),
        ("a<think>b", ("a<think>b", "")),
        ("<think>a</thin", ("", "a</thin")),
        (" ", (" ", "")),
    ],
)
def test_tags_come_apart_however_the_text_is_cut(text, parted, size):
    tags = ThinkTags()
    pieces = [tags.feed(text[at : at + size]) for at in range(0, len(text), size)]
    pieces.append(tags.end())
    assert ("".join(t for t, _ in pieces), "".join(r for _, r in pieces)) == parted
    assert ThinkTags.separated(text) == parted
