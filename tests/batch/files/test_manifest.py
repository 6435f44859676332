"""What an output belongs to."""

import pytest

from aigateway.batch.files import manifest
from aigateway.errors import ConfigurationError

OPTIONS = {"system": "secret", "temperature": 0.5, "template": None}


@pytest.fixture
def paths(tmp_path):
    output, source = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    manifest.begin(output, "abc", OPTIONS)
    return output, source


def test_the_same_may_go_on(paths):
    output, source = paths
    manifest.resume(output, source, "abc", dict(reversed(OPTIONS.items())))


def test_a_changed_input_may_not(paths):
    output, source = paths
    with pytest.raises(ConfigurationError, match=r"in\.jsonl has changed since .*out\.jsonl was"):
        manifest.resume(output, source, "abd", OPTIONS)


@pytest.mark.parametrize(
    "other", [{"system": "other"}, {"template": "x"}, {"seed": 1}, {"system": None}]
)
def test_other_options_may_not(paths, other):
    output, source = paths
    with pytest.raises(ConfigurationError, match=f"with another {next(iter(other))};"):
        manifest.resume(output, source, "abc", OPTIONS | other)


def test_none_is_the_same_as_not_given(paths):
    output, source = paths
    manifest.resume(output, source, "abc", {n: v for n, v in OPTIONS.items() if v is not None})


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"format": 2}', b"\xff"])
def test_without_a_note_nobody_knows(paths, content):
    output, source = paths
    note = manifest.manifest_of(output)
    note.unlink() if content is None else note.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"out\.jsonl\.job is missing or cannot be read"):
        manifest.resume(output, source, "abc", OPTIONS)


def test_it_quotes_nothing(paths):
    assert b"secret" not in manifest.manifest_of(paths[0]).read_bytes()


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        manifest.begin(tmp_path / "no" / "out.jsonl", "abc", {})
