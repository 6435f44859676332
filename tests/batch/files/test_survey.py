"""The first look through an input."""

import contextlib
import json

import pytest

from aigateway.batch.files.index import Index
from aigateway.batch.files.input import RowFormat, Source
from aigateway.batch.files.survey import estimates, refuse_unpriced, survey
from aigateway.errors import ConfigurationError
from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig, ProviderType
from aigateway.testing import scripted_configs

PRICED = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}


@pytest.fixture
def look(tmp_path, vendor):
    async def look_at(lines, count=None, **shared):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        configs = scripted_configs("a", "b")
        gateway = AsyncGateway(configs, vendor=vendor, max_prompt_bytes=1000)
        source = Source(path, RowFormat(), 1000)
        with contextlib.closing(Index()) as index:
            return await survey(source, gateway.check, shared, index, count=count)

    return look_at


async def test_all_problems_are_found_and_nothing_is_sent(look, vendor):
    found = await look(
        [
            {"id": 1, "prompt": "fine"},
            {"id": 2, "prompt": ""},
            {"id": "1", "prompt": "twice"},
            {"id": 4, "prompt": "x", "model": "nobody"},
            {"id": 5, "prompt": "x", "no_such": 1},
            {"id": 6, "prompt": "x", "self": 1},
            {"id": 7, "prompt": "x", "prompt_or_messages": 1},
            {"id": 8, "prompt": "x" * 1001},
            {"id": 9},
        ]
    )
    assert (found.total, found.wrong) == (9, 8)
    assert [(problem.number, problem.id) for problem in found.problems] == [
        (2, "2"),
        (3, None),
        (4, "4"),
        (5, "5"),
        (6, "6"),
        (7, "7"),
        (8, "8"),
        (9, "9"),
    ]
    assert found.problems[1].what == "its id is already that of line 1"
    assert vendor.calls == []


async def test_only_the_first_problems_are_kept(look):
    found = await look([{"id": n, "prompt": ""} for n in range(50)])
    assert (found.wrong, len(found.problems)) == (50, 20)


async def test_shared_options_stand_under_the_lines_own(look):
    found = await look(
        [{"id": 1, "prompt": "x"}, {"id": 2, "prompt": "x", "temperature": 1}], temperature="hot"
    )
    assert [problem.number for problem in found.problems] == [1]


async def test_an_estimate_counts_what_repeats_once_and_prompts_by_the_counter(look):
    def count(messages):
        return 2 * (len(messages[0]["content"]) // 4 + 1)

    lines = [
        {"id": 1, "prompt": "x" * 39},
        {"id": 2, "messages": [{"role": "user", "content": "x" * 39}]},  # the same
        {"id": 3, "prompt": "x" * 39, "max_tokens": 7},
        {"id": 4, "prompt": "x" * 39, "model": "b", "max_completion_tokens": 9},
        {"id": 5, "prompt": "x" * 39, "cache": False},
        {"id": 6, "prompt": "x" * 39, "timeout": 3},  # the same
    ]
    found = await look(lines, count)
    assert (found.total, found.repeated, found.counted) == (6, 2, 4)
    anyone, only = found.tallies[None], found.tallies["b"]
    assert (anyone.requests, anyone.prompt_tokens) == (3, 60)
    assert (anyone.answer_tokens, anyone.unbounded) == (256 + 7 + 256, 2)
    assert (only.requests, only.prompt_tokens, only.answer_tokens) == (1, 20, 9)

    configs = [
        LLMConfig(
            ProviderType.OPENAI_COMPATIBLE,
            name,
            name=name,
            api_base="http://localhost/v1",
            extra=extra,
        )
        for name, extra in (("a", PRICED), ("b", {}))
    ]
    first, second = estimates(found.tallies, configs)
    assert first.cost_usd == pytest.approx(60e-6 + 519 * 2e-6)
    assert (second.tally.requests, second.cost_usd) == (4, None)
    refuse_unpriced(configs[:1])
    with pytest.raises(ConfigurationError, match="the price of b is unknown"):
        refuse_unpriced(configs)


async def test_where_nothing_can_be_counted_the_estimate_stands(look):
    found = await look([{"id": 1, "prompt": "x" * 39}], lambda _: None)
    assert (found.counted, found.tallies[None].prompt_tokens) == (0, 10)
