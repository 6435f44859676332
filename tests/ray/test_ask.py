"""`Ask` over the kinds of batches that Ray Data gives."""

import contextlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import BaseModel

from aigateway.errors import ConfigurationError, RequestRejectedError
from aigateway.ray import Ask
from aigateway.simulator import Fault
from tests.batch.files.desk import prompt_of
from tests.ray.cluster import OBJECT_STORE


@pytest.fixture
def vendor(simulator):
    simulator.openai.answer(lambda received: f"answer to {prompt_of(received)}")
    return simulator.openai


@pytest.fixture
def ask(vendor):
    made = []

    def make(**options):
        made.append(Ask([vendor.config()], **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@contextlib.contextmanager
def one_ray():
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield ray.data
    finally:
        ray.shutdown()


PROMPTS = ["one", "", "three"]
KINDS = {
    "lists": lambda columns: columns,
    "numpy": lambda columns: {name: np.array(v, dtype=object) for name, v in columns.items()},
    "pandas": pd.DataFrame,
    "arrow": pa.table,
}


def column(batch, name):
    values = batch[name]
    values = values.to_pylist() if isinstance(batch, pa.Table) else list(values)
    return [None if value != value else value for value in values]  # noqa: PLR0124 - NaN


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_keeps_its_kind_and_gets_columns(ask, vendor, kind):
    given = KINDS[kind]({"n": [1, 2, 3], "prompt": PROMPTS, "max_tokens": [5, None, 7]})
    found = ask(option_columns=["max_tokens"])(given)
    assert type(found) is type(given)
    assert column(found, "n") == [1, 2, 3]
    sent = {prompt_of(each): each.body.get("max_tokens") for each in vendor.received}
    assert repr(sent["three"]) == "7"
    assert column(found, "answer") == ["answer to one", None, "answer to three"]
    assert column(found, "provider") == ["openai/gpt-4o-mini", None, "openai/gpt-4o-mini"]
    assert column(found, "error_code") == [None, "request_rejected", None]
    assert "empty" in column(found, "error_message")[1]
    assert column(found, "completion_tokens")[1] == 0
    costs = column(found, "cost_usd")
    assert (costs[0] > 0, costs[1]) == (True, None)


def test_a_provider_s_failure_is_a_column_and_raises_nothing(ask, vendor):
    vendor.behave(Fault.status(500))
    found = ask(outage_patience=0)({"prompt": ["p"]})
    assert found["error_code"] == ["all_providers_failed"]
    assert found["answer"] == [None]


def test_messages_and_structured_answers(ask, vendor):
    class City(BaseModel):
        name: str

    vendor.answer('{"name": "Paris"}')
    said = [{"role": "user", "content": "The capital of France?"}]
    made = ask(messages_column="said", response_format=City, output_prefix="ai_")
    found = made({"said": [said], "answer": ["mine"]})
    assert found["ai_parsed"] == [{"name": "Paris"}]
    assert found["answer"] == ["mine"]
    assert vendor.received[0].body["messages"] == said


def test_mistakes_are_found_at_once(ask):
    with pytest.raises(RequestRejectedError):
        ask(temperature=9)
    with pytest.raises(ConfigurationError, match="no column 'prompt'; it has: text"):
        ask()({"text": ["a"]})
    with pytest.raises(ConfigurationError, match="has a column 'answer' already"):
        ask()({"prompt": ["a"], "answer": ["b"]})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data, in itself
def test_map_batches_in_a_pipeline_of_ray_data(vendor):
    vendor.latency = 0.01
    with one_ray() as data:
        rows = data.from_items([{"n": n, "prompt": "" if n == 7 else f"p{n}"} for n in range(100)])
        options = {"providers": [vendor.config()], "max_tokens": 5}
        asked = rows.map_batches(Ask, fn_constructor_kwargs=options, concurrency=1, batch_size=32)
        found = {row["n"]: row for row in asked.take_all()}
    assert len(found) == 100
    assert found[7]["error_code"] == "request_rejected"
    assert {n: row["answer"] for n, row in found.items() if n != 7} == {
        n: f"answer to p{n}" for n in range(100) if n != 7
    }
    assert {received.body["max_tokens"] for received in vendor.received} == {5}
    assert vendor.request_count == 99
