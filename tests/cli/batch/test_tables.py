"""`aigateway batch` for tables: CSV and Parquet out, columns kept, answers of a schema, options."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.simulator import Answer, Fault, Simulator

ROWS = """\
id,title,price,answer
a,"a ""red"", chair",3.5,=1+1
b,"two
lines",007,
c,a "red" chair,,x
"""
"""Fields that have to be quoted, are empty, or have the name of a column of ours."""

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "population": {"type": ["integer", "null"]},
        "mayor": {"$ref": "#/$defs/person"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "population", "mayor", "tags"],
    "additionalProperties": False,
    "$defs": {
        "person": {
            "type": "object",
            "properties": {"age": {"type": "number"}},
            "required": ["age"],
            "additionalProperties": False,
        }
    },
}
PARIS = {"name": "Paris", "population": 2_100_000, "mayor": {"age": 60}, "tags": ["a", "b"]}


@pytest.fixture
def vendor(monkeypatch):
    with Simulator.in_thread() as running:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
        monkeypatch.setenv("OPENAI_BASE_URL", running.openai.api_base)
        monkeypatch.setenv("NO_COLOR", "1")
        yield running.openai


def run(output, *options, source="in.csv"):
    command = ["batch", source, output, *options]
    return CliRunner().invoke(app, command)


def say_title(output, *options):
    Path("in.csv").write_text(ROWS, newline="")
    return run(output, "--template", "Say {title}", *options)


def rows_of(path):
    if path.endswith(".parquet"):
        return pq.read_table(path).to_pylist()
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.endswith(".tsv") else ","))


def records_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("output", ["out.csv", "out.tsv", "out.parquet"])
def test_a_row_for_each_line_in_the_order_of_the_input(vendor, output):
    vendor.latency = 0.0
    vendor.behave(Fault.content_policy(), times=1)
    done = say_title(output, "--keep-columns", "all", "--concurrency", "1")
    assert done.exit_code == 1  # one line has failed
    rows = rows_of(output)
    none = None if output.endswith(".parquet") else ""
    assert list(rows[0]) == [
        *("id", "title", "price", "input.answer", "answer", "error", "error_message", "provider"),
        *("model", "finish_reason", "prompt_tokens", "completion_tokens", "cost_usd"),
        *("latency_seconds", "cached"),
    ]
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert [row["title"] for row in rows] == ['a "red", chair', "two\nlines", 'a "red" chair']
    assert [row["price"] for row in rows] == ["3.5", "007", ""]
    assert [row["input.answer"] for row in rows] == ["=1+1", "", "x"]
    assert [row["answer"] for row in rows] == [none, "Say two\nlines", 'Say a "red" chair']
    assert [row["error"] for row in rows] == ["content_policy", none, none]
    assert f"answers   {output}" in done.stderr


def test_parquet_has_types_and_the_file_no_other_byte(vendor):
    table = pa.table({
        "prompt": ["x", "y"],
        "count": pa.array([1, None], pa.int16()),
        "kind": pa.array(["k", "l"]).dictionary_encode(),
        "when": pa.array([0, 1], pa.timestamp("us")),
        "parts": [["p"], []],
    })  # fmt: skip
    pq.write_table(table, "in.parquet")
    assert run("out.parquet", "--keep-columns", "all", source="in.parquet").exit_code == 0
    found = pq.read_table("out.parquet")
    assert found.column("count").to_pylist() == [1, None]
    kept = {name: str(found.schema.field(name).type) for name in table.column_names}
    assert kept == {
        "prompt": "string",
        "count": "int16",
        "kind": "string",
        "when": "timestamp[us]",
        "parts": "list<element: string>",
    }
    assert str(found.schema.field("prompt_tokens").type) == "int64"
    assert str(found.schema.field("cost_usd").type) == "double"
    assert str(found.schema.field("cached").type) == "bool"
    assert sorted(path.name for path in Path("out.parquet.job").iterdir()) == [
        "records.jsonl",
        "records.jsonl.job",
    ]


def test_lines_of_json_keep_columns_beside_the_answer_and_in_a_table(vendor):
    lines = [
        {"id": 1, "text": "same", "n": 1, "extra": {"a": [1]}},
        {"id": 2, "text": "same", "n": 2.5},
        {"id": 3, "n": None},  # has no text
    ]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--template", "{text}", "--skip-bad-lines", "--concurrency", "1")
    run("out.jsonl", *options, "--keep-columns", "n, extra", source="in.jsonl")
    kept = {r["custom_id"]: r["input"] for r in records_of("out.jsonl")}
    assert kept == {"1": {"n": 1, "extra": {"a": [1]}}, "2": {"n": 2.5, "extra": None}}
    (failed,) = records_of("out.errors.jsonl")
    assert (failed["custom_id"], failed["input"]) == ("3", {"n": None, "extra": None})

    run("out.parquet", *options, "--keep-columns", "all", source="in.jsonl")
    found = pq.read_table("out.parquet")
    assert found.column("n").to_pylist() == [1.0, 2.5, None]
    assert found.column("extra").to_pylist() == ['{"a":[1]}', None, None]
    assert found.column("error").to_pylist() == [None, None, "bad_line"]
    assert found.column("cached").to_pylist() == [False, True, None]


@pytest.mark.parametrize("keep", ["text, rank, temperature", "all"])
def test_lines_that_are_requests_keep_what_is_no_option(vendor, keep):
    kept = {"text": "a", "rank": 1, "temperature": 0.5}
    Path("in.jsonl").write_text(json.dumps({"id": "a", "prompt": "Hi", **kept}) + "\n")
    assert run("out.jsonl", "--keep-columns", keep, source="in.jsonl").exit_code == 0
    (record,) = records_of("out.jsonl")
    assert record["input"].items() >= kept.items()
    assert vendor.received[0].body["temperature"] == 0.5
    refused = run("other.jsonl", "--keep-columns", "text", source="in.jsonl")
    assert "rank" in refused.stderr  # neither kept nor an option


def test_whole_numbers_that_are_too_large_for_their_type_are_text(vendor):
    numbers = [1, 2**63, -(2**63), None]
    lines = [{"prompt": "p", "id": n, "rank": number} for n, number in enumerate(numbers)]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    integer = {"type": "integer"}
    schema = {"type": "object", "properties": {"a": integer, "b": integer}}
    Path("s.json").write_text(json.dumps(schema))
    vendor.answer(Answer(text=json.dumps({"a": 2**64 - 1, "b": 2**63 - 1})))
    options = ("--keep-columns", "rank", "--schema", "s.json")
    done = run("out.parquet", *options, source="in.jsonl")
    assert done.exit_code == 0, done.stderr
    found = pq.read_table("out.parquet")
    assert found.column("rank").to_pylist() == [str(n) if n else None for n in numbers]
    assert found.column("answer.a").to_pylist() == [str(2**64 - 1)] * 4
    assert found.column("answer.b").to_pylist() == [2**63 - 1] * 4
    assert not Path("out.parquet.job/table.tmp").exists()


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_stopped_it_is_continued_and_what_there_is_can_be_collected(vendor, output):
    lines = "id,prompt\n" + "".join(f"r{n},p{n}\n" for n in range(6))
    Path("in.csv").write_text(lines)
    stopped = run(output, "--max-cost", "0.0000001")
    assert "run it with --collect" in stopped.stderr
    assert not Path(output).exists()
    assert run(output, "--collect").exit_code == 1
    rows = rows_of(output)
    assert [row["error"] or "" for row in rows] == ["", *["pending"] * 5]
    assert vendor.request_count == 1
    assert f"{output} already exists" in run(output).stderr
    draft = Path(f"{output}.job/table.tmp")
    draft.write_text("what a kill of the writer leaves")
    assert run(output, "--resume").exit_code == 0
    assert [row["answer"] for row in rows_of(output)] == [f"p{n}" for n in range(6)]
    assert vendor.request_count == 6
    assert not draft.exists()


def test_the_first_lines_are_tried_and_the_others_follow(vendor):
    Path("in.csv").write_text("id,prompt\n" + "".join(f"r{n},p{n}\n" for n in range(6)))
    first = run("out.csv", "--limit", "2")
    assert first.exit_code == 0
    assert [row["answer"] for row in rows_of("out.csv")] == ["p0", "p1"]
    assert "For the other lines, run the same command with --resume" in first.stderr
    # Which columns a table has may change meanwhile.
    assert run("out.csv", "--resume", "--keep-columns", "prompt").exit_code == 0
    assert [row["prompt"] for row in rows_of("out.csv")] == [f"p{n}" for n in range(6)]
    assert vendor.request_count == 6
    refused = run("out.csv", "--resume", "--limit", "2")
    assert "or give a higher --limit" in refused.stderr


def test_bad_rows_are_named_as_rows_and_a_repeated_id_stays_in_the_table(vendor):
    Path("in.csv").write_text("id,prompt\na,x\nb,\na,y\n")
    refused = run("out.csv")
    assert "error: in.csv has 2 invalid rows." in refused.stderr
    assert "  row 2: " in refused.stderr
    assert "  row 3: its id is already that of row 1\n" in refused.stderr
    dry = run("out.csv", "--skip-bad-lines", "--dry-run")
    assert dry.exit_code == 0
    assert "in.csv has 2 invalid rows, to be skipped and counted as failed.\n" in dry.stderr
    assert "  row 3: its id is already that of row 1\n" in dry.stderr
    assert "error:" not in dry.stderr
    assert "give --skip-bad-lines" not in dry.stderr
    assert run("out.csv", "--skip-bad-lines").exit_code == 1
    rows = rows_of("out.csv")
    assert [row["id"] for row in rows] == ["a", "b", "a"]
    assert [row["error"] for row in rows] == ["", "bad_line", "bad_line"]


def test_empty_cells_in_a_template_are_counted_before_anything_is_asked(vendor):
    Path("in.csv").write_text("text,other\nx,\n,y\n  ,\n")
    says = "1 row has an empty cell in a column of the template"
    assert says in run("out.csv", "--template", "Of: {text}", "--dry-run").stdout
    assert vendor.request_count == 0
    done = run("out.csv", "--template", "Of: {text}")
    assert (done.exit_code, vendor.request_count) == (0, 3)
    assert says in done.stderr
    every = run("all.csv", "--template", "{text}: {other}")
    assert "3 rows have an empty cell" in every.stderr


def test_a_table_under_another_name_is_explained_once(vendor):
    Path("in.txt").write_text("prompt\nx\ny\n")
    done = run("out.csv", source="in.txt")
    assert done.exit_code == 2
    assert done.stderr.count("Name a table .csv, .tsv or .parquet.") == 1
    Path("in.jsonl").write_text("x\n")
    assert "Name a table" not in run("out.csv", source="in.jsonl").stderr


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl"])
def test_a_column_with_a_dot_can_be_in_a_template(vendor, output):
    Path("in.csv").write_text("id,answer.score\na,7\n")
    assert run(output, "--template", "Why {answer.score}?").exit_code == 0
    assert "Why 7?" in Path(output).read_text()
    refused = run("other.csv", "--template", '{"a": {answer.score}}')
    assert "In a template write {{ and }} for braces that are text." in refused.stderr


class TestExcel:
    def test_a_byte_order_mark_and_semicolons(self, vendor):
        Path("in.csv").write_text("\ufeffid;prompt\r\n1;größer, als\r\n", newline="")
        done = run("out.csv", "--delimiter", ";", "--bom")
        assert done.exit_code == 0
        heading, row, rest = Path("out.csv").read_bytes().split(b"\n")
        assert heading.startswith(b"\xef\xbb\xbfid;answer;error;")
        assert row.startswith("1;größer, als;;;openai/".encode())
        assert rest == b""

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("in.csv", b"id;prompt\n1;a\n", "separated by semicolons: give --delimiter ';'"),
            ("in.csv", b"id\tprompt\n1\ta\n", r"separated by tabs: give --delimiter $'\t'"),
            ("in.csv", "prompt\ngrößer\n".encode("cp1252"), "is not UTF-8; convert"),
            ("in.csv", "prompt\na\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
            ("in.jsonl", '{"id": 1}\n{"id": 2}\n'.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
            ("in.xlsx", b"PK", "in.xlsx is a spreadsheet; save it as CSV UTF-8."),
            ("in.csv.gz", b"\x1f\x8b", "in.csv.gz is compressed; unpack it first."),
        ],
    )
    def test_what_cannot_be_read_is_said(self, vendor, name, content, says):
        Path(name).write_bytes(content)
        done = run("out.csv", source=name)
        assert done.exit_code == 2
        assert says in done.stderr
        assert "give --skip-bad-lines" not in done.stderr
        assert not Path("out.csv.job").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("output", "options", "says"),
        [
            ("out.txt", (), "out.txt ends in .txt; name the output .jsonl"),
            ("out.xlsx", (), "out.xlsx ends in .xlsx; name the output .jsonl"),
            ("out.csv.gz", (), "out.csv.gz ends in .gz; name the output .jsonl"),
            ("out.jsonl", ("--collect",), "--collect is for tables"),
            ("out.csv", ("--collect",), "There are no answers for out.csv yet."),
            ("out.csv", ("--keep-columns", "nope"), '--keep-columns: no line of in.csv has "nope"'),
            ("out.csv", ("--schema", "nope"), "--schema nope: there is no such file"),
            ("out.csv", ("--schema", "os:path"), "--schema os:path is not a pydantic class"),
            ("out.csv", ("--schema", "in.csv"), "--schema in.csv is not JSON"),
            ("out.csv", ("--param", "top_p"), "--param top_p: write it as name=value"),
            ("out.csv", ("--param", "messages=[]"), "--param messages: each line has its own"),
            ("out.csv", ("--param", "api_key=x"), '"api_key" cannot be given with a request'),
            ("out.csv", ("--param", "foo=1"), 'There is no parameter "foo"'),
            ("out.csv", ("--param", "top_p=3"), "top_p must be at most 1"),
            (
                "out.csv",
                ("--param", "temperature=1", "--temperature", "1"),
                "--param temperature: it is given twice",
            ),
        ],
        ids=str,
    )
    def test_before_anything_is_sent(self, vendor, output, options, says):
        done = say_title(output, *options)
        assert done.exit_code == 2
        assert says in done.stderr
        assert vendor.request_count == 0
        assert list(map(str, Path().iterdir())) == ["in.csv"]

    def test_an_output_of_an_earlier_version_goes_on_under_another_name(self, vendor):
        Path("in.csv").write_text("prompt\na\nb\n")
        # As an earlier version named its files: lines of JSON, and a manifest.
        assert run("old.jsonl", "--limit", "1", "--errors", "old.errors.csv").exit_code == 0
        Path("old.jsonl").rename("old.csv")
        Path("old.jsonl.job").rename("old.csv.job")
        for options in ((), ("--resume",), ("--collect",)):
            done = run("old.csv", *options)
            assert done.exit_code == 2
            assert "old.csv was written by an earlier version, as lines of JSON." in done.stderr
        assert "aigateway batch in.csv old.jsonl --errors old.errors.csv --resume" in done.stderr
        Path("old.csv").rename("old.jsonl")
        Path("old.csv.job").rename("old.jsonl.job")
        assert run("old.jsonl", "--errors", "old.errors.csv", "--resume").exit_code == 0
        assert vendor.request_count == 2

    def test_a_table_of_something_else_is_left_alone(self, vendor):
        Path("in.csv").write_text("prompt\na\n")
        Path("mine.csv").write_text("my,own\n")
        assert "mine.csv already exists" in run("mine.csv").stderr
        assert "mine.csv cannot be continued" in run("mine.csv", "--resume").stderr
        assert Path("mine.csv").read_text() == "my,own\n"


class TestSchema:
    def test_answers_become_columns_with_types(self, vendor):
        Path("city.json").write_text(json.dumps(CITY))
        vendor.answer(Answer(text=json.dumps(PARIS)))
        assert say_title("out.parquet", "--schema", "city.json").exit_code == 0
        sent = vendor.received[0].body["response_format"]["json_schema"]
        assert (sent["name"], sent["strict"], sent["schema"]) == ("city", True, CITY)
        found = pq.read_table("out.parquet").select(
            ["answer.name", "answer.population", "answer.mayor", "answer.tags"]
        )
        assert [str(each.type) for each in found.schema] == [
            "string",
            "int64",
            "struct<age: double>",
            "list<element: string>",
        ]
        assert found.to_pylist()[0] == {f"answer.{name}": PARIS[name] for name in PARIS}

        assert say_title("out.csv", "--schema", "city.json").exit_code == 0
        row = rows_of("out.csv")[0]
        assert (row["answer.name"], row["answer.population"]) == ("Paris", "2100000")
        assert json.loads(row["answer.mayor"]) == {"age": 60}

    def test_its_file_is_needed_only_at_the_start(self, vendor):
        Path("city.json").write_text(json.dumps(CITY))

        def answer(_):
            Path("city.json").unlink(missing_ok=True)
            return Answer(text=json.dumps(PARIS))

        vendor.answer(answer)
        assert say_title("out.csv", "--schema", "city.json").exit_code == 0
        assert [row["answer.name"] for row in rows_of("out.csv")] == ["Paris"] * 3

    def test_what_does_not_fit_is_an_error_with_its_text_and_its_price(self, vendor):
        Path("city.json").write_text(json.dumps(CITY))
        wrong = [json.dumps(PARIS | {"population": "many"}), "no JSON", json.dumps(PARIS)]
        texts = iter(wrong)
        vendor.answer(lambda _: Answer(text=next(texts)))
        options = ("--schema", "city.json", "--concurrency", "1")
        done = say_title("out.csv", *options)
        assert done.exit_code == 1
        assert "invalid_answer 2" in " ".join(done.stderr.split())
        rows = rows_of("out.csv")
        assert [row["answer"] for row in rows] == wrong
        assert [row["error"] for row in rows] == ["invalid_answer", "invalid_answer", ""]
        assert rows[0]["error_message"] == (
            "The answer does not fit the schema ($.population: type)."
        )
        assert rows[1]["error_message"] == "The answer is not JSON."
        assert all(float(row["cost_usd"]) > 0 for row in rows)
        # They are paid: only --ask-failed asks again.
        assert say_title("out.csv", *options, "--resume").exit_code == 1
        assert vendor.request_count == 3
        vendor.answer(Answer(text=json.dumps(PARIS)))
        assert say_title("out.csv", *options, "--resume", "--ask-failed").exit_code == 0
        assert vendor.request_count == 5

    def test_a_class_checks_more_than_its_schema(self, vendor):
        Path("shapes.py").write_text(
            "from pydantic import BaseModel, Field, field_validator\n"
            "class City(BaseModel):\n"
            "    name: str = Field(alias='Name')\n"
            "    @field_validator('name')\n"
            "    def capital(cls, name):\n"
            "        if name.islower(): raise ValueError(name)\n"
            "        return name\n"
        )
        texts = iter(['{"Name": "Paris"}', '{"Name": "secret"}', "{}"])
        vendor.answer(lambda _: Answer(text=next(texts)))
        done = say_title("out.csv", "--schema", "shapes:City", "--concurrency", "1")
        assert done.exit_code == 1
        rows = rows_of("out.csv")
        assert [row["answer.Name"] for row in rows] == ["Paris", "", ""]
        assert "(Name: value_error)" in rows[1]["error_message"]
        assert "secret" not in rows[1]["error_message"]
        assert "(Name: missing)" in rows[2]["error_message"]
        assert say_title("x.csv", "--schema", "shapes:City", "--engine", "ray").exit_code == 2


def test_any_option_of_chat(vendor):
    params = ["top_p=0.5", 'stop=["END"]', "user=me", "extra_body.top_k=3"]
    options = [part for param in params for part in ("--param", param)]
    assert say_title("out.csv", *options).exit_code == 0
    body = vendor.received[0].body
    assert (body["top_p"], body["stop"], body["user"], body["top_k"]) == (0.5, ["END"], "me", 3)
    refused = say_title("out.csv", *options, "--param", "seed=1", "--resume")
    assert "was begun with a different seed" in refused.stderr


def test_the_same_number_is_the_same_option(vendor):
    same = [("--param", "temperature=0"), ("--param", "temperature=0.0"), ("--temperature", "0")]
    assert say_title("out.csv", *same[0], "--param", "extra_body.top_k=3").exit_code == 0
    for options in same:
        resumed = say_title("out.csv", *options, "--param", "extra_body.top_k=3.0", "--resume")
        assert resumed.exit_code == 0, resumed.stderr
    refused = say_title("out.csv", "--temperature", "1", "--resume")
    assert "was begun with a different extra_body, temperature" in refused.stderr
