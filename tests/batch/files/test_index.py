"""What is done and where, for lines by their ids and for answers by what was request."""

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from aigateway.batch.files.index import Index
from tests.processes import PATIENCE

ROOT = Path(__file__).parents[3]
IDS = st.sampled_from(["a", "b", "\u00e9", "\ud800", ""])
ASKED = st.sampled_from([b"x", b"y", b""])


class Model(RuleBasedStateMachine):
    """The index against three dictionaries."""

    @initialize()
    def begin(self):
        self.index = Index()
        self.numbers, self.places, self.answers, self.seen = {}, {}, {}, set()

    @rule(name=IDS, number=st.integers(1, 9))
    def enter(self, name, number):
        assert self.index.enter(name, number) == self.numbers.get(name)
        self.numbers.setdefault(name, number)

    @rule(name=IDS, place=st.integers(-1, 9))
    def finish(self, name, place):
        can = name in self.numbers and name not in self.places
        assert self.index.finish(name, place) == can
        if can:
            self.places[name] = place

    @rule(request=ASKED, place=st.integers(0, 9))
    def answered(self, request, place):
        self.index.answered(request, place)
        self.answers.setdefault(request, place)

    @rule(name=IDS, request=ASKED)
    def look(self, name, request):
        assert self.index.find(name) == (self.numbers.get(name, 0), self.places.get(name))
        assert (self.index.find(name)[1] is not None) == (name in self.places)
        assert self.index.answer(request) == self.answers.get(request)

    def teardown(self):
        self.index.close()


TestIndex = Model.TestCase


def test_a_request_is_new_once():
    with contextlib.closing(Index()) as index:
        assert [index.first(request) for request in (b"x", b"y", b"x")] == [True, True, False]


@pytest.mark.parametrize("count", [20_000])
def test_many(count):
    with contextlib.closing(Index()) as index:
        assert {index.enter(f"id {n}", n) for n in range(count)} == {None}
        assert all(index.finish(f"id {n}", n * 100) for n in range(0, count, 7))
        assert index.find("id 7007") == (7007, 700_700)
        assert index.find("id 7008") == (7008, None)
        assert index.enter("id 123", 9) == 123


def test_a_full_temporary_folder_is_reported():
    """A limit on the size of files stands for the disk; what does not fit into memory meets it."""
    child = textwrap.dedent("""
        import resource
        from aigateway.errors import GatewayError
        from aigateway.batch.files.index import Index

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        index = Index()
        try:
            for number in range(1_000_000):
                index.enter(f"id {number}", number)
        except GatewayError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", child],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.startswith(
        "The index of the lines cannot be written to the temporary folder ("
    )
    assert "SQLITE_TMPDIR" in done.stdout
