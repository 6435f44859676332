"""Usage and cost as the vendor counts them: whole and streamed, over both lanes."""

import pytest

from aigateway.messages import Usage
from aigateway.wires.loading import load_litellm
from tests.wires.bodies import (
    ANTHROPIC,
    AZURE,
    COMPATIBLE,
    GEMINI,
    OPENAI,
    OPENAI_WIRE,
    USAGE,
    Vendor,
    answers,
    anthropic,
    gemini,
    openai,
)

OWN = {
    "input_cost_per_token": 1.0,
    "output_cost_per_token": 100.0,
    "cache_read_input_token_cost": 0.25,
    "cache_creation_input_token_cost": 2.0,
}
COUNT = {"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32}


def each_on_one_kind(*cases):
    """Each case from OpenAI, Azure, or a server that imitates them, in turn."""
    return [(OPENAI_WIRE[place % 3], *case) for place, case in enumerate(cases)]


@pytest.fixture
async def vendor():
    async with Vendor() as running:
        yield running


@pytest.fixture
async def price_map():
    return (await load_litellm()).model_cost


def says(vendor, usage, **beside):
    openai(vendor, {"content": "4"}, {"content": "4"}, usage=usage, **beside)


@pytest.mark.parametrize(
    ("kind", "more", "usage", "dollars"),
    each_on_one_kind(
        ({}, Usage(30, 2, 32), 230.0),
        ({"prompt_tokens_details": None}, Usage(30, 2, 32), 230.0),
        ({"prompt_tokens_details": {"cached_tokens": 8}}, Usage(30, 2, 32, 8), 224.0),
        (
            {"prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 10}},
            Usage(30, 2, 32, 8, 0, 10),
            234.0,
        ),
        ({"cached_tokens": 8}, Usage(30, 2, 32, 8), 224.0),  # Moonshot's
        (
            {"prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 22},
            Usage(30, 2, 32, 8),
            224.0,
        ),
        ({"cost": 0.5}, Usage(30, 2, 32), 230.0),
        (
            {"completion_tokens_details": {"reasoning_tokens": 1}},
            Usage(30, 2, 32, reasoning_tokens=1),
            230.0,
        ),
    ),
)
async def test_own_prices_of_what_the_vendor_counts(vendor, kind, more, usage, dollars):
    says(vendor, COUNT | more)
    fields = {"extra": OWN} | ({"api_version": "2024-10-21"} if kind is AZURE else {})
    async for answer in answers(vendor, kind, **fields):
        assert answer.usage == usage
        assert answer.cost_usd == pytest.approx(dollars)


@pytest.mark.parametrize(
    ("stated", "dollars"),
    [
        ({"cost": 0.5}, 0.5),
        ({"cost": 0}, 0.0),
        ({"cost": {"input_tokens_cost": 0.1, "total_cost": 0.5}}, 0.5),
        (
            {"cost": 0.1, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.4}},
            0.5,
        ),
    ],
)
async def test_the_vendors_own_word_on_the_cost(vendor, stated, dollars):
    says(vendor, COUNT | stated)
    async for answer in answers(vendor, COMPATIBLE):
        assert answer.cost_usd == pytest.approx(dollars)


@pytest.mark.parametrize("cost", [-1, True, "0.5"])
async def test_a_word_on_the_cost_that_is_none(vendor, cost):
    says(vendor, COUNT | {"cost": cost})
    vendor.whole["usage"] = COUNT  # litellm refuses a text there
    async for answer in answers(vendor, COMPATIBLE):
        assert answer.cost_usd is None


@pytest.mark.parametrize("tier", ["flex", "priority"])
async def test_the_tier_that_served_has_its_price(vendor, tier, price_map):
    entry = price_map["gpt-5-mini"]
    says(vendor, COUNT | {"prompt_tokens_details": {"cached_tokens": 10}}, service_tier=tier)
    expected = (
        20 * entry[f"input_cost_per_token_{tier}"]
        + 10 * entry[f"cache_read_input_token_cost_{tier}"]
        + 2 * entry[f"output_cost_per_token_{tier}"]
    )
    async for answer in answers(vendor, OPENAI, model="gpt-5-mini"):
        assert answer.service_tier == tier
        assert answer.cost_usd == pytest.approx(expected)


async def test_openais_cache_writes_have_their_price(vendor, price_map):
    entry = price_map["gpt-5.6"]
    assert entry["cache_creation_input_token_cost"] > entry["input_cost_per_token"]
    says(vendor, COUNT | {"prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 10}})
    expected = (
        12 * entry["input_cost_per_token"]
        + 8 * entry["cache_read_input_token_cost"]
        + 10 * entry["cache_creation_input_token_cost"]
        + 2 * entry["output_cost_per_token"]
    )
    async for answer in answers(vendor, OPENAI, model="gpt-5.6"):
        assert answer.cost_usd == pytest.approx(expected)


async def test_groqs_count_has_a_field_of_its_own(vendor):
    says(vendor, COUNT)
    for event in vendor.events:
        event.pop("usage", None)
    vendor.events[-2]["x_groq"] = {"id": "req_1", "usage": COUNT}
    async for answer in answers(vendor, COMPATIBLE, extra=OWN):
        assert answer.usage == Usage(30, 2, 32)


async def test_moonshots_count_is_in_the_choice(vendor):
    counted = COUNT | {"cached_tokens": 8}
    says(vendor, counted)
    del vendor.events[-1]  # nothing follows the end but [DONE]
    vendor.events[-1]["choices"][0]["usage"] = counted
    async for answer in answers(vendor, COMPATIBLE, extra=OWN):
        assert answer.usage == Usage(30, 2, 32, 8)
        assert answer.cost_usd == pytest.approx(224.0)


@pytest.mark.parametrize("later", [None, 0])
async def test_openais_later_nulls_do_not_count(vendor, later):
    says(vendor, COUNT)
    vendor.events[0]["usage"] = COUNT | {"prompt_tokens_details": {"cached_tokens": 8}}
    vendor.events[-1]["usage"] = {
        "prompt_tokens": later,
        "completion_tokens": 2,
        "total_tokens": later,
        "prompt_tokens_details": {"cached_tokens": later},
    }
    seen = [answer.usage async for answer in answers(vendor, COMPATIBLE, extra=OWN)]
    assert seen[1::2] == [Usage(30, 2, 32, 8)] * 2


@pytest.mark.parametrize("later", [None, 0])
async def test_anthropics_later_nulls_do_not_count(vendor, later, price_map):
    entry = price_map["claude-haiku-4-5"]
    usage = {
        "input_tokens": 3,
        "output_tokens": 2,
        "cache_read_input_tokens": 7,
        "cache_creation_input_tokens": 20,
    }
    anthropic(vendor, {"type": "text", "text": "4"})
    vendor.whole["usage"] = usage
    vendor.events[0]["message"]["usage"] = usage | {"output_tokens": 1}
    vendor.events[-2]["usage"] = dict.fromkeys(usage, later) | {"output_tokens": 2}
    expected = (
        3 * entry["input_cost_per_token"]
        + 7 * entry["cache_read_input_token_cost"]
        + 20 * entry["cache_creation_input_token_cost"]
        + 2 * entry["output_cost_per_token"]
    )
    async for answer in answers(vendor, ANTHROPIC):
        assert answer.usage == Usage(30, 2, 32, 7, 0, 20)
        assert answer.cost_usd == pytest.approx(expected)


async def test_anthropics_web_searches_have_their_price(vendor, price_map):
    entry = price_map["claude-sonnet-4-5"]
    usage = {
        "input_tokens": 3,
        "output_tokens": 2,
        "server_tool_use": {"web_search_requests": 2},
    }
    anthropic(vendor, {"type": "text", "text": "4"})
    vendor.whole["usage"] = usage
    vendor.events[-2]["usage"] = usage
    expected = 3 * entry["input_cost_per_token"] + 2 * entry["output_cost_per_token"] + 2 * 0.01
    async for answer in answers(vendor, ANTHROPIC, model="claude-sonnet-4-5"):
        assert answer.cost_usd == pytest.approx(expected)


async def test_openais_searches_have_their_price(vendor, price_map):
    model = "gpt-4o-search-preview"
    entry = price_map[model]
    note = {"url": "https://source.test", "title": "T", "start_index": 0, "end_index": 4}
    message = {
        "content": "fact",
        "annotations": [{"type": "url_citation", "url_citation": note}],
    }
    openai(vendor, message, message, usage=COUNT)
    expected = (
        30 * entry["input_cost_per_token"]
        + 2 * entry["output_cost_per_token"]
        + entry["search_context_cost_per_query"]["search_context_size_medium"]
    )
    async for answer in answers(vendor, OPENAI, model=model):
        assert answer.cost_usd == pytest.approx(expected)


async def test_geminis_later_zeros_do_not_count(vendor):
    gemini(vendor, [{"text": "4"}])
    counted = {
        "promptTokenCount": 30,
        "cachedContentTokenCount": 8,
        "candidatesTokenCount": 2,
        "totalTokenCount": 32,
    }
    vendor.whole["usageMetadata"] = counted
    last = {**vendor.whole, "usageMetadata": counted | {"cachedContentTokenCount": 0}}
    begins = {**vendor.whole, "candidates": [{"index": 0, "content": {"parts": [{"text": "4"}]}}]}
    empty = [{"index": 0, "content": {"parts": []}, "finishReason": "STOP"}]
    vendor.events = [begins, {**last, "candidates": empty}]
    async for answer in answers(vendor, GEMINI, extra=OWN):
        assert answer.usage == Usage(30, 2, 32, 8)
        assert answer.cost_usd == pytest.approx(22 + 8 * 0.25 + 200)


async def test_a_server_that_counts_nothing(vendor):
    says(vendor, USAGE)
    vendor.whole["usage"] = vendor.events[-1]["usage"] = None
    async for answer in answers(vendor, COMPATIBLE, extra=OWN):
        assert (answer.usage, answer.cost_usd) == (Usage(), None)


NONE, HUGE = Usage(), 10**30
NO_COUNTS = [[], [1], "none", 7, True, {}]


@pytest.mark.parametrize(
    ("kind", "usage", "read"),
    each_on_one_kind(
        *((usage, NONE) for usage in NO_COUNTS),
        ({"total_tokens": 1.5}, NONE),
        ({**COUNT, "prompt_tokens": HUGE, "total_tokens": HUGE}, Usage(0, 2, 2)),
        ({**COUNT, "prompt_tokens": "x", "total_tokens": -1}, Usage(0, 2, 2)),
        ({**COUNT, "prompt_tokens": 30.0, "total_tokens": "32"}, Usage(30, 2, 32)),
        ({**COUNT, "prompt_tokens_details": []}, Usage(30, 2, 32)),
        ({**COUNT, "completion_tokens_details": "x"}, Usage(30, 2, 32)),
        ({**COUNT, "prompt_tokens_details": {"cached_tokens": HUGE}}, Usage(30, 2, 32)),
    ),
)
async def test_openais_counts_that_are_none(vendor, kind, usage, read):
    says(vendor, USAGE)
    vendor.whole["usage"] = vendor.events[-1]["usage"] = usage
    await are_answered(vendor, kind, read)


PARTS = {"promptTokenCount": 30, "candidatesTokenCount": 2, "totalTokenCount": 32}


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        *((usage, NONE) for usage in [*NO_COUNTS, None, "missing"]),
        ({"promptTokenCount": 1.5}, NONE),
        ({"promptTokenCount": HUGE, "candidatesTokenCount": 2}, Usage(0, 2, 2)),
        ({**PARTS, "promptTokensDetails": "x"}, Usage(30, 2, 32)),
        ({**PARTS, "promptTokensDetails": [7, {"modality": "TEXT"}]}, Usage(30, 2, 32)),
        ({**PARTS, "cachedContentTokenCount": "x"}, Usage(30, 2, 32)),
    ],
)
async def test_geminis_counts_that_are_none(vendor, usage, read):
    gemini(vendor, [{"text": "4"}])
    counts(vendor.whole, "usageMetadata", usage)
    await are_answered(vendor, GEMINI, read)


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        *((usage, NONE) for usage in [*NO_COUNTS, None, "missing"]),
        ({"input_tokens": 1.5}, NONE),
        ({"input_tokens": HUGE, "output_tokens": 2}, Usage(0, 2, 2)),
        ({"output_tokens": 2}, Usage(0, 2, 2)),
        (
            {"input_tokens": 30, "output_tokens": 2, "cache_read_input_tokens": "x"},
            Usage(30, 2, 32),
        ),
        ({"input_tokens": 30, "output_tokens": 2, "cache_creation": "x"}, Usage(30, 2, 32)),
    ],
)
async def test_anthropics_counts_that_are_none(vendor, usage, read):
    anthropic(vendor, {"type": "text", "text": "4"})
    for holder in (vendor.whole, vendor.events[0]["message"], vendor.events[-2]):
        counts(holder, "usage", usage)
    await are_answered(vendor, ANTHROPIC, read)


def counts(holder, name, usage):
    if usage == "missing":
        del holder[name]
    else:
        holder[name] = usage


async def are_answered(vendor, kind, read):
    count = 0
    async for answer in answers(vendor, kind, extra=OWN):
        count += 1
        assert answer.choices[0].text == "4"
        assert answer.usage == read
        cost = read.prompt_tokens + 100 * read.completion_tokens
        assert answer.cost_usd == (pytest.approx(cost) if read.total_tokens else None)
    assert count == 4
