"""`aigateway key`, and that the service knows what it makes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.server.auth.keys import Access
from aigateway.settings import ServerSettings


def make(*arguments):
    done = CliRunner().invoke(app, ["key", *arguments])
    assert done.exit_code == 0
    key, _, lines = done.stdout.partition("\n\n")
    return key, lines


@pytest.mark.parametrize("name", ["team", "a team", 'quo"ted', "back\\slash", "Zürich", "[x]"])
def test_the_lines_let_the_key_in_and_do_not_hold_it(name):
    key, lines = make("--name", name)
    assert key.startswith("sk-aigw-")
    assert len(key) == len("sk-aigw-") + 43
    assert key not in lines
    Path("aigateway.toml").write_text(lines, encoding="utf-8")
    caller = Access(ServerSettings()).admit({"authorization": f"Bearer {key}"})
    assert (caller.name, caller.is_admin) == (name, False)


def test_the_admin_key():
    key, lines = make("--admin")
    Path("aigateway.toml").write_text(lines, encoding="utf-8")
    assert Access(ServerSettings()).admit({"x-api-key": key}).is_admin


def test_no_two_are_the_same():
    assert len({make()[0] for _ in range(20)}) == 20


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a\x07", "admin"])
def test_a_name_that_the_settings_refuse_gets_no_key(name):
    done = CliRunner().invoke(app, ["key", "--name", name])
    assert done.exit_code == 2
    assert "visible text" in done.output
    assert "sk-aigw-" not in done.output
