"""What becomes of the lines of a file: requests, or problems in words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.batch.files.input import Line, Problem, RowFormat, Source
from aigateway.errors import ConfigurationError

MESSAGES = [{"role": "user", "content": "hi"}]
BODY = {"model": "m", "messages": MESSAGES, "temperature": 0}
OPENAI = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}


@pytest.fixture
def read(tmp_path):
    def read_lines(content, name="in.jsonl", longest=10_000_000, **shape):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(Source(path, RowFormat(**shape), longest).lines())

    return read_lines


def jsonl(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


class TestJson:
    def test_the_plain_form(self, read):
        plain = {"id": "x", "prompt": "hi", "seed": 3, "temperature": None}
        whole = {"id": 7, "messages": MESSAGES}
        assert read(jsonl(plain, whole)) == [
            Line(1, "x", "hi", {"seed": 3}),
            Line(2, "7", MESSAGES, {}),
        ]

    def test_a_whole_number_is_an_id_also_as_a_float(self, read):
        ids = [7.0, -1.0, 2.5, 1e300]
        lines = read(jsonl(*[{"id": each, "prompt": "hi"} for each in ids]))
        assert [line.id for line in lines] == ["7", "-1", None, None]

    def test_openai_s_form(self, read):
        unfinished = {"custom_id": "b", "body": BODY | {"stream": False}}
        options = {"model": "m", "temperature": 0}
        assert read(jsonl(OPENAI, unfinished)) == [
            Line(1, "a", MESSAGES, options),
            Line(2, "b", MESSAGES, options),
        ]
        assert read(jsonl(OPENAI), ignore_model=True)[0].options == {"temperature": 0}

    def test_rows_for_a_template(self, read):
        row = {"id": "r", "text": "cat", "language": "French"}
        assert read(jsonl(row), template="{text} in {language}") == [
            Line(1, "r", "cat in French", {})
        ]
        assert read(jsonl(row), prompt_column="text", id_column="language") == [
            Line(1, "French", "cat", {})
        ]

    def test_blank_lines_and_a_byte_order_mark_are_passed_over(self, read):
        content = b"\xef\xbb\xbf" + b'{"id": 1, "prompt": "a"}\r\n\n  \n{"id": 2, "prompt": "b"}'
        assert [(line.number, line.id) for line in read(content)] == [(1, "1"), (4, "2")]

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ('{"id": "a", "prompt"', "it is not JSON"),
            (b'{"id": "a", "prompt": "\xff"}', "it is not UTF-8; convert the file first"),
            ("[1, 2]", "it is not an object"),
            ('"secret"', "it is not an object"),
            ('{"prompt": "secret"}', 'it has no "id"'),
            ('{"id": "", "prompt": "secret"}', 'it has no "id"'),
            ('{"id": 1.5, "prompt": "secret"}', 'its "id" is not a text or a whole number'),
            ('{"id": ["secret"], "prompt": "x"}', 'its "id" is not a text or a whole number'),
            ('{"id": true, "prompt": "secret"}', 'its "id" is not a text or a whole number'),
            ('{"id": "a"}', 'either "prompt" or "messages"'),
            ('{"id": "a", "prompt": "secret", "messages": []}', 'either "prompt" or "messages"'),
            ('{"body": {"messages": []}}', 'it has no "custom_id"'),
            ('{"custom_id": "a"}', 'it has no "body"'),
            ('{"custom_id": "a", "body": {"prompt": "secret"}}', 'no "messages"'),
            ('{"custom_id": "a", "method": "GET", "body": {}}', '"method" is not "POST"'),
            ('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', '"url" is not'),
            ('{"custom_id": "a", "body": {"messages": [], "stream": true}}', "cannot hold"),
        ],
    )
    def test_a_bad_line_is_a_problem(self, read, line, says):
        line = line if isinstance(line, bytes) else line.encode()
        bad, good = read(line + b'\n{"id": "b", "prompt": "hi"}\n')
        assert isinstance(bad, Problem)
        assert says in bad.what
        assert "secret" not in bad.what
        assert good == Line(2, "b", "hi", {})

    def test_a_line_that_is_too_long_is_reported_and_the_next_is_read(self, read):
        long = '{"id": "a", "prompt": "' + "x" * 11_000_000 + '"}\n'
        bad, good = read(long + '{"id": "b", "prompt": "hi"}\n')
        assert (bad.number, bad.what) == (1, "it has more than 11,000,000 bytes")
        assert good == Line(2, "b", "hi", {})

    @given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b""))))
    def test_whatever_is_in_it_each_line_is_one_or_the_other(self, tmp_path_factory, lines):
        path = tmp_path_factory.mktemp("any") / "in.jsonl"
        path.write_bytes(b"{}\n" + b"\n".join(lines))
        found = list(Source(path, RowFormat(), 1000).lines())
        filled = [n for n, line in enumerate(lines, 2) if line.strip()]
        assert [line.number for line in found] == [1, *filled]

    @given(st.dictionaries(st.sampled_from(["id", "prompt", "custom_id", "body", "x"]), st.none()))
    def test_nothing_but_none_is_a_problem(self, tmp_path_factory, fields):
        path = tmp_path_factory.mktemp("none") / "in.jsonl"
        path.write_text(json.dumps(fields))
        (found,) = Source(path, RowFormat(), 1000).lines()
        assert isinstance(found, Problem)


class TestTables:
    def test_csv(self, read):
        content = 'id,prompt,other\na,"one, ""two""\nthree",x\nb,four,y\n'
        assert read(content, "in.csv") == [
            Line(1, "a", 'one, "two"\nthree', {}),
            Line(2, "b", "four", {}),
        ]

    def test_rows_without_an_id_are_called_by_their_number(self, read):
        content = "text\tlanguage\ncat\tFrench\ndog\tGerman\n"
        assert read(content, "in.tsv", template="{text}: {language}") == [
            Line(1, "1", "cat: French", {}),
            Line(2, "2", "dog: German", {}),
        ]

    def test_a_row_without_its_id_or_with_too_few_fields_is_a_problem(self, read):
        found = read("id,prompt\n,secret\nb\nc,hi,secret\nd,hi\n", "in.csv")
        assert [type(line) for line in found] == [Problem, Problem, Problem, Line]
        assert found[0].what == 'it has no "id"'
        assert found[1].what == found[2].what == "its number of fields differs from the heading's"

    def test_a_file_that_is_not_utf_8_is_reported(self, read):
        (found,) = read(b"id,prompt\na,caf\xe9\n", "in.csv")
        assert found.what.startswith("it and the rest cannot be read: it is not UTF-8")
        assert found.what.endswith("iconv -f WINDOWS-1252 -t UTF-8")

    @pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.jsonl"])
    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
    def test_a_byte_order_mark_names_the_encoding_to_convert_from(self, read, name, encoding):
        lines = "prompt\na\nb\n" if name != "in.jsonl" else '{"id": 1, "prompt": "a"}\n' * 2
        (found,) = read(("\ufeff" + lines).encode(encoding), name)
        assert isinstance(found, Problem)
        assert found.number == 1
        assert found.what.startswith("it and the rest cannot be read: it is not UTF-8")
        assert found.what.endswith(f"iconv -f {encoding[:6].upper()} -t UTF-8")

    def test_an_unknown_column_is_refused_with_those_there_are(self, read):
        with pytest.raises(ConfigurationError, match=r'no column "prompt"; it has: a, b\.'):
            read("a,b\n1,2\n", "in.csv")
        with pytest.raises(ConfigurationError, match='no column "c"'):
            read("a,b\n1,2\n", "in.csv", prompt_column="a", id_column="c")

    def test_a_template_s_unknown_column_is_reported_once(self, read):
        with pytest.raises(ConfigurationError, match=r'has no column "b"; it has: a\.'):
            read("a\nsecret\n", "in.csv", template="{a} {b.c} {a[0]}")
        (found,) = read('{"id": 1, "a": "secret"}', template="{a} {b}")
        assert "has no 'b'" in found.what

    @pytest.mark.parametrize("template", ["no field", "{{a}}", "{a.__class__}", "{a[0]._x}"])
    def test_a_template_that_makes_no_prompt_of_a_row_is_refused(self, read, template):
        with pytest.raises(ConfigurationError, match="--template: "):
            read("a\nx\n", "in.csv", template=template)

    def test_semicolons(self, read):
        with pytest.raises(ConfigurationError, match="give --delimiter ';'"):
            read("id;prompt\n1;a\n", "in.csv")
        assert read("id;prompt\n1;a\n", "in.csv", delimiter=";") == [Line(1, "1", "a", {})]
        with pytest.raises(ConfigurationError, match="must be one character"):
            read("id;prompt\n", "in.csv", delimiter=";;")

    def test_a_number_is_a_prompt_too(self, read):
        assert read('{"id": 1, "n": 7}', prompt_column="n") == [Line(1, "1", "7", {})]

    def test_parquet(self, tmp_path):
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table(
            {"id": [f"r{n}" for n in range(600)], "prompt": [*["hi"] * 599, None], "n": [1] * 600}
        )
        parquet.write_table(table, tmp_path / "in.parquet")
        found = list(Source(tmp_path / "in.parquet", RowFormat(), 1000).lines())
        assert found[:-1] == [Line(n + 1, f"r{n}", "hi", {}) for n in range(599)]
        assert found[-1] == Problem(600, 'it has no "prompt"', "r599")

    def test_two_columns_of_one_name_are_refused(self, read):
        with pytest.raises(ConfigurationError, match="two columns of the same name"):
            read("id,prompt,prompt\n1,a,b\n", "in.csv")

    def test_a_file_that_is_not_parquet_is_refused(self, read):
        with pytest.raises(ConfigurationError, match="cannot be read as Parquet"):
            read("nothing of the kind", "in.parquet")


class TestFiles:
    def test_an_empty_file_is_refused(self, read):
        with pytest.raises(ConfigurationError, match="is empty"):
            read("")

    def test_a_missing_file_and_a_folder_are_refused(self, tmp_path):
        missing = "cannot be read: No such file"
        for path, says in ((tmp_path / "no.jsonl", missing), (tmp_path, "is not a regular file")):
            with pytest.raises(ConfigurationError, match=says):
                Source(path, RowFormat(), 1000)

    def test_shapes_that_cannot_work_are_refused(self, read):
        with pytest.raises(ConfigurationError, match="either --template or --prompt-column"):
            read("{}", template="{a}", prompt_column="a")
        with pytest.raises(ConfigurationError, match=r"--template: .*braces"):
            read("{}", template="{a")

    async def test_any_change_changes_the_fingerprint(self, tmp_path):
        path = tmp_path / "in.jsonl"
        path.write_text('{"id": 1}')
        source = Source(path, RowFormat(), 1000)
        before = await source.fingerprint()
        assert (await source.fingerprint(), source.has_changed) == (before, False)
        path.write_text('{"id": 23}')
        assert await source.fingerprint() != before
        assert source.has_changed
