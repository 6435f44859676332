"""Records on disk: whatever a kill leaves of the last one, the others are there."""

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.batch.files.output import (
    Journal,
    JournalInUseError,
    check_locks_are_seen,
    encoded,
    error_record,
)
from aigateway.errors import ConfigurationError, GatewayError
from tests.processes import PATIENCE

ROOT = Path(__file__).parents[3]
RECORDS = [error_record(f"line {n}", GatewayError("é" * n)) for n in range(6)]


def ids(journal):
    return [record["custom_id"] for _, record in journal.records()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


def test_records_are_found_again_at_their_offsets(path):
    with Journal(path) as journal:
        places = [journal.append(record) for record in RECORDS]
        assert list(journal.records()) == list(zip(places, RECORDS, strict=True))
        assert [journal.at(place) for place in places] == RECORDS
    with Journal(path) as journal:
        assert list(journal.records()) == list(zip(places, RECORDS, strict=True))
        assert not journal.is_empty


@given(st.data())
def test_cut_anywhere_no_whole_record_is_lost_and_the_next_is_whole(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    texts = [encoded(record) for record in RECORDS]
    whole = b"".join(texts)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    ends = [sum(map(len, texts[: n + 1])) - 1 for n in range(len(texts))]  # without "\n"
    kept = sum(end <= cut for end in ends)
    with Journal(path) as journal:
        assert ids(journal) == [record["custom_id"] for record in RECORDS[:kept]]
        place = journal.append(RECORDS[5])
        assert journal.at(place) == RECORDS[5]
        assert len(ids(journal)) == kept + 1
    assert all(orjson.loads(line) for line in path.read_bytes().splitlines())


def test_a_torn_line_longer_than_any_buffer_is_cut_off(path):
    path.write_bytes(encoded(RECORDS[0]) + b'{"custom_id": "' + b"x" * 300_000)
    with Journal(path) as journal:
        assert ids(journal) == ["line 0"]
    assert path.read_bytes() == encoded(RECORDS[0])


@pytest.mark.parametrize("line", [b"not json\n", b'{"custom_id": "a"}\n', b"[]\n"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path, line):
    content = encoded(RECORDS[0]) + line
    path.write_bytes(content)
    with (
        Journal(path) as journal,
        pytest.raises(ConfigurationError, match="2 is not a record"),
    ):
        ids(journal)
    assert path.read_bytes() == content


def test_two_cannot_write_to_one_file(path):
    with Journal(path), pytest.raises(ConfigurationError, match="Another process is writing"):
        Journal(path)
    with Journal(path):
        pass


def test_half_a_character_is_written_and_read_again(path):
    with Journal(path) as journal:
        place = journal.append(error_record("half", GatewayError("half \ud83d, and 2**70")))
        assert journal.at(place)["error"]["message"] == "half ?, and 2**70"
        assert ids(journal) == ["half"]


def test_a_device_is_refused():
    with pytest.raises(ConfigurationError, match="/dev/full is not a regular file"):
        Journal(Path("/dev/full"))


def test_a_folder_and_a_missing_one_are_refused(tmp_path):
    for path, says in (
        (tmp_path, "is not a regular file"),
        (tmp_path / "no" / "out.jsonl", "cannot be"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            Journal(path)


def test_a_full_disk_leaves_whole_records_only(path):
    """A limit on the size of files stands for the disk; the kernel cuts the write in the middle."""
    child = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from aigateway.errors import GatewayError
        from aigateway.batch.files.output import Journal, JournalError, error_record

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with Journal(Path(sys.argv[1])) as journal:
            written = 0
            try:
                while True:
                    journal.append(error_record(f"line {written}", GatewayError("x" * 50)))
                    written += 1
            except JournalError as error:
                print(written, error)
            assert len(list(journal.records())) == written
    """)
    done = subprocess.run(
        [sys.executable, "-c", child, str(path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    written, _, message = done.stdout.partition(" ")
    assert int(written) > 0
    assert message == f"{path} cannot be written: File too large.\n"
    assert path.read_bytes().endswith(b"\n")
    with Journal(path) as journal:
        assert len(ids(journal)) == int(written)


class TestLocks:
    def test_a_worker_must_see_the_lock_of_another_process(self, path):
        with Journal(path):
            check_locks_are_seen(path)
        with pytest.raises(ConfigurationError, match="is not seen on another"):
            check_locks_are_seen(path)

    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
    def test_a_disk_without_locks_is_not_one_in_use(self, path, monkeypatch, code):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)
        for use in (Journal, check_locks_are_seen):
            with pytest.raises(ConfigurationError, match=f"locked: {os.strerror(code)}") as caught:
                use(path)
            assert not isinstance(caught.value, JournalInUseError)

    def test_a_file_that_is_removed_before_its_lock_is_opened_again(self, path, monkeypatch):
        flock = fcntl.flock

        def too_late(file, how):
            monkeypatch.undo()
            path.unlink()
            flock(file, how)

        monkeypatch.setattr(fcntl, "flock", too_late)
        with Journal(path) as journal:
            journal.append(RECORDS[0])
        assert path.read_bytes() == encoded(RECORDS[0])
