"""The bar of a batch: on a terminal, in a notebook, and not in a pipe."""

import io
import sys
from types import ModuleType

import pytest
from rich.console import Console

from aigateway import AsyncGateway
from aigateway.batch.progress import progress_bar
from aigateway.messages import BatchProgress, Usage
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.cli.batch.jobs import without_codes

MANY = 10_000


class Seconds:
    """Time that a test moves."""

    seconds = 0.0

    def now(self):
        return self.seconds


def drawn(console, clock, many=MANY):
    with progress_bar(console, clock) as show:
        for done in range(many + 1):
            show(BatchProgress(done, done // 100, 7, many, Usage(), done / 1000))
            clock.seconds += 0.001


def console_on(file, **how):
    return Console(file=file, width=120, **how)


def test_on_a_terminal_it_is_one_line_that_is_drawn_again():
    file = io.StringIO()
    drawn(console_on(file, force_terminal=True), Seconds())
    assert file.getvalue().count("\n") <= 1
    last = without_codes(file.getvalue()).rstrip("\n").rpartition("\r")[2]
    assert last.endswith("10,000 of 10,000, 100 failed, 7 cached, $10.0000, 0:10")
    assert 40 <= file.getvalue().count("left") <= 60  # in ten seconds


@pytest.mark.parametrize("how", [{}, {"force_terminal": False}])
def test_in_a_pipe_it_writes_nothing(how):
    file = io.StringIO()
    drawn(console_on(file, **how), Seconds())
    assert file.getvalue() == ""


class Display:
    """IPython's display, and the handle that it returns."""

    def __init__(self):
        self.outputs = []

    def __call__(self, data, *, raw, display_id):
        assert (raw, display_id) == (True, True)
        self.outputs.append([data["text/plain"]])
        return self

    def update(self, data, *, raw):
        assert raw
        self.outputs[-1].append(data["text/plain"])


def test_in_a_notebook_one_output_is_rewritten_a_few_times_a_second(monkeypatch):
    display, module = Display(), ModuleType("IPython.display")
    vars(module)["display"] = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    file = io.StringIO()
    drawn(console_on(file, force_jupyter=True), Seconds())
    assert file.getvalue() == ""
    (output,) = display.outputs
    assert 40 <= len(output) <= 60  # in ten seconds
    assert not any("\n" in text for text in output)
    assert output[-1] == f"{'█' * 30} 10,000 of 10,000, 100 failed, 7 cached, $10.0000, 0:10"


async def test_a_batch_shows_it_on_stderr_and_ends_it_also_after_an_error(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as gateway:
        await gateway.batch(["a", "b", ""], progress=True)
        with pytest.raises(ValueError, match="empty"):
            await gateway.batch([""], progress=True, fail_fast=True)
        async for _ in gateway.as_completed(["a"], progress=True):
            pass
        await gateway.map("{a}", [{"a": 1}], progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "3 of 3, 1 failed, 0 cached" in without_codes(shown.err)
    assert shown.err.count("\x1b[?25l") == shown.err.count("\x1b[?25h") == 4  # the cursor
