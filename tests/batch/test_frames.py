"""Data frames in, columns out: Arrow tables here, pandas and polars in `tests/frames`."""

import datetime as dt
import uuid

import pyarrow as pa
import pytest
from pydantic import BaseModel

from aigateway import AsyncGateway, RequestRejectedError
from aigateway.batch.items import rows_of
from aigateway.messages import ChatRequest
from aigateway.testing import ScriptedVendor, scripted_configs

TABLE = pa.table({"text": ["a", None, "c"], "n": [1, 2, 3], "f": [0.5, float("nan"), 2.0]})


class City(BaseModel):
    name: str


class Stream:
    """A frame that speaks only the PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema=None):
        return TABLE.__arrow_c_stream__(requested_schema)


class Interchange:
    """A frame that speaks only the older protocol."""

    def __dataframe__(self, **how):
        return TABLE.select(["text", "n"]).__dataframe__(**how)


class LazyFrame:
    """As polars has it."""


@pytest.fixture
async def vendor():
    """Answers with the prompt, one after the other."""
    scripted = ScriptedVendor()

    async def echo():
        request = scripted.calls[-1][1]
        assert isinstance(request, ChatRequest)
        return request.messages[-1]["content"]

    scripted.always("a", echo)
    return scripted


@pytest.fixture
async def gateway(vendor):
    async with AsyncGateway(scripted_configs("a"), vendor=vendor) as opened:
        yield opened


@pytest.mark.parametrize("frame", [TABLE, Stream(), Interchange()], ids=["table", "new", "old"])
async def test_each_row_is_asked_and_answers_come_in_the_order_of_the_rows(gateway, frame):
    result = await gateway.map("{text}{n}", frame, concurrency=1)
    assert result.texts() == ["a1", None, "c3"]
    assert "this row has None for 'text'" in str(result.failed[0].error)


async def test_a_frame_of_requests_and_a_column_of_prompts(vendor, gateway):
    frame = pa.table({"prompt": ["a", "b"], "seed": [1, None]})
    assert (await gateway.batch(frame, concurrency=1)).texts() == ["a", "b"]
    assert [request.params.get("seed") for _, request in vendor.calls] == [1, None]
    column = frame.column("prompt")
    assert (await gateway.batch(column, concurrency=1, cache=False)).texts() == ["a", "b"]


async def test_results_are_columns_with_the_fields_of_answers(vendor, gateway):
    vendor.always("a", '{"name": "Paris"}')
    columns = (await gateway.map("{text}", TABLE, response_format=City)).to_columns()
    table = pa.table(columns)
    assert table.num_rows == 3
    assert columns["answer.name"] == ["Paris", None, "Paris"]
    assert columns["error"] == [None, "request_rejected", None]
    assert columns["answer"][0] == '{"name": "Paris"}'
    assert list(columns)[:3] == ["answer", "answer.name", "error"]
    assert "id" not in columns


SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "size": {}}}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}


@pytest.mark.parametrize("form", [SCHEMA, WRAPPED])
async def test_a_json_schema_has_columns_too(vendor, gateway, form):
    vendor.script("a", '{"name": "Paris", "more": 1}', "no JSON", "[1]")
    result = await gateway.batch(["a", "b", "c", 4], response_format=form, concurrency=1)
    columns = result.to_columns("ai_")
    assert columns["ai_answer.name"] == ["Paris", None, None, None]
    assert columns["ai_answer.size"] == [None] * 4
    assert list(columns)[:4] == ["ai_answer", "ai_answer.name", "ai_answer.size", "ai_error"]
    assert all(name.startswith("ai_") for name in columns)
    assert repr(result).startswith("<BatchResult 3 of 4 answered (first error: request_rejected) ")


DAY = dt.date(2026, 1, 2)
UUID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ([DAY, None, DAY], ["2026-01-02", "1", "2026-01-02"]),
        ([dt.datetime(2026, 1, 2, 3)] * 3, ["2026-01-02T03:00:00"] * 3),  # noqa: DTZ001
        ([True, None, False], ["True", "1", "False"]),
        ([1.0, None, 2.5], ["1", "1", "2.5"]),
        ([[1], [2], [3]], ["0", "1", "2"]),
    ],
)
async def test_any_plain_column_of_a_frame_has_ids(gateway, values, ids):
    frame = TABLE.select(["n"]).append_column("id", [values])
    result = await gateway.map("{n}", frame, concurrency=1)
    assert [item.id for item in result] == ids
    assert result.texts() == ["1", "2", "3"]
    frame = frame.rename_columns(["prompt", "id"])
    frame = frame.set_column(0, "prompt", [["a", "b", "c"]])
    assert [item.id for item in await gateway.batch(frame)] == ids


async def test_ids_of_other_types_are_texts_and_templates_have_the_values(gateway):
    class Frame:  # as pandas has it
        columns = ("id", "n")

        def __len__(self):
            return 1

        def itertuples(self, **_):
            return iter([(UUID, 1)])

    result = await gateway.map("{id.int}", Frame())
    assert (result.items[0].id, result.texts()) == (str(UUID), ["7"])


async def test_a_refused_row_keeps_its_id(gateway):
    rows = [{"id": 7, "a": None}, {"id": "x", "a": "ok"}, {"a": None}, {"id": [], "a": None}, 3]
    assert [item.id for item in await gateway.map("{a}", rows)] == ["7", "x", "2", "3", "4"]
    requests = [{"id": 7}, {"id": "x", "prompt": "a", "messages": []}]
    assert [item.id for item in await gateway.batch(requests)] == ["7", "x"]


async def test_the_only_column_of_a_frame_has_the_prompts(gateway):
    assert (await gateway.batch(TABLE.select(["text"]), concurrency=1)).texts() == ["a", None, "c"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, 'no column "prompt" or "messages"; it has: text, n, f. Rename one'),
        ("{nope}", 'no column "nope"; it has: text, n, f.'),
        ('{"label": "{text}"}', "In the template write {{ and }} for braces that are text."),
    ],
)
async def test_what_every_row_of_a_frame_would_fail_by_is_raised_at_once(
    vendor, gateway, template, says
):
    with pytest.raises(RequestRejectedError) as refused:
        await (gateway.batch(TABLE) if template is None else gateway.map(template, TABLE))
    assert says in str(refused.value)
    assert not vendor.calls


async def test_columns_whose_names_have_dots_can_be_in_a_template(gateway):
    frame = pa.table({"answer.score": [1, None], "answer": ["a", "b"]})
    result = await gateway.map("{answer.score:02d} {answer}", frame)
    assert result.texts() == ["01 a", None]
    assert "has None for 'answer.score'" in str(result.errors[0])


def test_many_rows_are_read_in_chunks_and_again():
    rows = rows_of(pa.table({"n": range(5000)}))
    assert len(rows) == 5000
    assert [row["n"] for row in rows] == list(range(5000)) == [row["n"] for row in rows]


def test_not_a_number_is_missing():
    assert [row["f"] for row in rows_of(TABLE)] == [0.5, None, 2.0]


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (LazyFrame(), r"call its collect\(\)"),
        (pa.table([[1], [2]], names=["a", "a"]), "two columns of the same name"),
    ],
)
async def test_what_has_no_rows_is_refused(gateway, frame, says):
    with pytest.raises(RequestRejectedError, match=says):
        await gateway.map("{a}", frame)


async def test_ids_of_a_column_with_a_gap(vendor):
    table = pa.table({"id": [7.0, None, 9.0], "text": ["a", "b", "c"]})
    async with AsyncGateway(scripted_configs("a"), vendor=vendor) as gateway:
        result = await gateway.map("{text}", table)
    assert [item.id for item in result] == ["7", "1", "9"]
