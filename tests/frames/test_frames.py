"""Frames of pandas and polars as they are: `nox -s frames`."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest
from typer.testing import CliRunner

from aigateway import AsyncGateway, RequestRejectedError
from aigateway.cli import app
from aigateway.simulator import Simulator


@pytest.fixture
async def gateway():
    async with Simulator() as simulator, AsyncGateway([simulator.openai.config()]) as opened:
        yield opened


@pytest.fixture
def pandas_frame():
    columns = {
        "id": [3, 4, 5],
        "text": ["a", None, "c"],
        "whole": pd.array([1, None, 3], dtype="Int64"),
        "float": [1.5, np.nan, 2.0],
        "when": pd.to_datetime(["2026-01-01", None, "2026-01-03"]),
        "kind": pd.Categorical(["x", "y", "x"]),
        "object": [np.int64(3), np.array([1, 2]), "z"],
    }
    return pd.DataFrame(columns, index=[10, 20, 30])


@pytest.fixture
def polars_frame():
    return pl.DataFrame({
        "id": ["r1", "r2", "r3"],
        "text": ["a", None, "c"],
        "whole": [1, None, 3],
        "float": [1.5, float("nan"), 2.0],
        "when": [dt.date(2026, 1, 1), None, dt.date(2026, 1, 3)],
        "kind": pl.Series(["x", "y", "x"], dtype=pl.Categorical),
        "object": [[3], [1, 2], []],
    })  # fmt: skip


FORMATTED = [
    ("{text} {kind}", ["a x", None, "c x"]),
    ("{whole}", ["1", None, "3"]),
    ("{float}", ["1.5", None, "2.0"]),
    ("{when:%d.%m.%Y}", ["01.01.2026", None, "03.01.2026"]),
]


@pytest.mark.parametrize(("template", "answers"), [*FORMATTED, ("{object}", ["3", "[1, 2]", "z"])])
async def test_pandas_rows(gateway, pandas_frame, template, answers):
    result = await gateway.map(template, pandas_frame)
    assert result.texts() == answers
    assert [item.id for item, text in zip(result, answers, strict=True) if text] == [
        str(n) for n, text in zip([3, 4, 5], answers, strict=True) if text
    ]


@pytest.mark.parametrize(
    ("template", "answers"), [*FORMATTED, ("{object}", ["[3]", "[1, 2]", "[]"])]
)
async def test_polars_rows(gateway, polars_frame, template, answers):
    assert (await gateway.map(template, polars_frame)).texts() == answers


async def test_answers_go_back_into_a_pandas_frame(gateway, pandas_frame):
    result = await gateway.map("{text}", pandas_frame)
    pandas_frame["answer"] = result.texts()
    assert pandas_frame["answer"].isna().tolist() == [False, True, False]
    whole = pandas_frame.assign(**result.to_columns())
    assert whole.index.tolist() == [10, 20, 30]
    assert whole["id"].tolist() == [3, 4, 5]
    assert whole.loc[20, "error"] == "request_rejected"
    assert whole.loc[10, "provider"] == "openai/gpt-4o-mini"


async def test_answers_go_back_into_a_polars_frame(gateway, polars_frame):
    result = await gateway.map("{text}", polars_frame)
    one = polars_frame.with_columns(pl.Series("answer", result.texts()))
    assert one["answer"].to_list() == ["a", None, "c"]
    whole = polars_frame.hstack(pl.DataFrame(result.to_columns()))
    assert whole["error"].to_list() == [None, "request_rejected", None]


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
async def test_columns_are_options_of_chat(gateway, make):
    frame = make({"prompt": ["x", "y"], "temperature": [0.5, None], "max_tokens": [5, None]})
    assert (await gateway.batch(frame)).texts() == ["x", "y"]
    assert (await gateway.batch(frame["prompt"])).texts() == ["x", "y"]


async def test_a_lazy_frame_has_no_rows(gateway, polars_frame):
    with pytest.raises(RequestRejectedError, match=r"call its collect\(\)"):
        await gateway.map("{text}", polars_frame.lazy())


def test_pandas_reads_the_tables_of_the_command(tmp_path, monkeypatch, pandas_frame):
    monkeypatch.chdir(tmp_path)
    pandas_frame.drop(columns="object").to_parquet("in.parquet")
    pandas_frame.drop(columns="object").to_csv("in.csv", index=False)
    for name in ("parquet", "csv"):
        options = ["--template", "{kind}\n{when}", "--keep-columns", "all", "--skip-bad-lines"]
        command = ["batch", f"in.{name}", f"out.{name}", *options, "--simulate"]
        assert CliRunner().invoke(app, command).exit_code in {0, 1}
    found = pd.read_parquet("out.parquet")
    assert found["when"].tolist()[0] == pd.Timestamp("2026-01-01")
    assert found["whole"].isna().tolist() == [False, True, False]
    assert found["answer"].tolist()[0] == "x\n2026-01-01 00:00:00"
    assert found["error"].tolist()[1] == "bad_line"
    table = pd.read_csv("out.csv")
    assert table["answer"].tolist()[:2] == ["x\n2026-01-01", "y\n"]
    assert table["text"].isna().tolist() == [False, True, False]


async def test_a_frame_with_a_column_named_answer(gateway, pandas_frame, polars_frame):
    for frame in (pandas_frame.assign(answer="mine"), polars_frame.with_columns(answer=pl.lit(1))):
        columns = (await gateway.map("{text}", frame)).to_columns(prefix="ai_")
        joined = (
            frame.hstack(pl.DataFrame(columns))
            if isinstance(frame, pl.DataFrame)
            else frame.assign(**columns)
        )
        assert list(joined["ai_answer"])[::2] == ["a", "c"]
        assert list(joined["answer"]) == list(frame["answer"])
