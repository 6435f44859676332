"""The manifest: which input and options an output belongs to."""

import hashlib
import json

import pytest

from aigateway.batch.files.paths import (
    JobPaths,
    check_manifest,
    manifest_path,
    write_manifest,
)
from aigateway.errors import ConfigurationError

OPTIONS = {"system": "secret", "temperature": 0.5, "template": None}


@pytest.fixture
def paths(tmp_path):
    paths = JobPaths.of(tmp_path / "in.jsonl", tmp_path / "out.jsonl", None)
    write_manifest(paths.output, "abc", OPTIONS)
    return paths


def test_the_same_input_and_options_pass(paths):
    check_manifest(paths, "abc", dict(reversed(OPTIONS.items())))


def test_a_changed_input_is_refused(paths):
    with pytest.raises(ConfigurationError, match=r"in\.jsonl has changed since .*out\.jsonl was"):
        check_manifest(paths, "abd", OPTIONS)


@pytest.mark.parametrize(
    "other", [{"system": "other"}, {"template": "x"}, {"seed": 1}, {"system": None}]
)
def test_other_options_are_refused(paths, other):
    with pytest.raises(ConfigurationError, match=rf"with a different {next(iter(other))}\."):
        check_manifest(paths, "abc", OPTIONS | other)


def test_a_manifest_of_an_earlier_version_counts(paths):
    earlier = hashlib.sha256(b"0.0").hexdigest()[:32]
    path = manifest_path(paths.output)
    path.write_text(json.dumps({"format": 1, "input_sha256": "abc", "options": {"t": earlier}}))
    check_manifest(paths, "abc", {"t": 0.0})
    write_manifest(paths.output, "abc", {"t": 0.0})
    check_manifest(paths, "abc", {"t": 0})


def test_none_is_the_same_as_absent(paths):
    check_manifest(paths, "abc", {n: v for n, v in OPTIONS.items() if v is not None})


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"format": 2}', b"\xff"])
def test_a_missing_or_broken_manifest_is_refused(paths, content):
    note = manifest_path(paths.output)
    note.unlink() if content is None else note.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"out\.jsonl\.job is missing or cannot be read"):
        check_manifest(paths, "abc", OPTIONS)


def test_the_manifest_quotes_nothing(paths):
    assert b"secret" not in manifest_path(paths.output).read_bytes()


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        write_manifest(tmp_path / "no" / "out.jsonl", "abc", {})
