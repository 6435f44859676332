"""`aigateway key`, and that the service knows what it makes."""

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.server.auth.keys import Access
from aigateway.settings import ServerSettings
from tests.processes import PATIENCE
from tests.server.callers import caller_by


def make(*arguments):
    done = CliRunner().invoke(app, ["key", *arguments])
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1  # the key alone, for a pipe
    return done.stdout.strip(), done.stderr.rpartition("\n\n")[2]


@pytest.mark.parametrize("name", ["team", "a team", 'quo"ted', "back\\slash", "Zürich", "[x]"])
def test_the_lines_let_the_key_in_and_do_not_hold_it(name):
    key, lines = make("--name", name)
    assert key.startswith("sk-aigw-")
    assert len(key) == len("sk-aigw-") + 43
    assert key not in lines
    Path("aigateway.toml").write_text(lines, encoding="utf-8")
    caller = caller_by(Access(ServerSettings()), {"authorization": f"Bearer {key}"})
    assert (caller.name, caller.is_admin) == (name, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [((), True), (("--models", "m"), False), (("--monitor",), False), (("--admin",), False)],
)
def test_it_says_that_a_key_without_models_sees_the_whole_service(arguments, told):
    done = CliRunner().invoke(app, ["key", *arguments])
    assert ("sees the totals and events of the whole service" in done.stderr) == told


def test_the_admin_key():
    key, lines = make("--admin")
    Path("aigateway.toml").write_text(lines, encoding="utf-8")
    assert caller_by(Access(ServerSettings()), {"x-api-key": key}).is_admin


def test_no_two_are_the_same():
    assert len({make()[0] for _ in range(20)}) == 20


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a\x07", "admin"])
def test_a_name_that_the_settings_refuse_gets_no_key(name):
    done = CliRunner().invoke(app, ["key", "--name", name])
    assert done.exit_code == 2
    assert "visible text" in done.output
    assert "sk-aigw-" not in done.output


FILE = Path("aigateway.toml")


def append(*arguments):
    return CliRunner().invoke(app, ["key", "--append", str(FILE), *arguments])


def digest(done):
    assert done.exit_code == 0, done.output
    return hashlib.sha256(done.stdout.strip().encode()).hexdigest()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_keys_are_added_to_a_file_that_stays_as_it_is(end):
    before = f"# ours{end}[server]  # the service{end}port = 9000{end}[gateway]{end}hedge = true"
    FILE.write_bytes(before.encode())
    FILE.chmod(0o640)
    link = Path("link.toml")
    link.symlink_to(FILE)
    web = CliRunner().invoke(
        app,
        [
            "key",
            "--append",
            "link.toml",
            "--name",
            "web",
            "--budget",
            "2.5",
            "--rpm",
            "60",
            "--models",
            "fast,gpt-4o",
        ],
    )
    scraper, admin = append("--name", "prometheus", "--monitor"), append("--admin")
    after = FILE.read_bytes().decode()
    assert after.replace(f'{end}admin_sha256 = "{digest(admin)}"', "").startswith(before)
    assert end == "\n" or after.count("\n") == after.count("\r\n")
    limits = {"budget_usd": 2.5, "rpm": 60, "models": ["fast", "gpt-4o"]}
    assert tomllib.loads(after) == {
        "gateway": {"hedge": True},
        "server": {
            "port": 9000,
            "admin_sha256": digest(admin),
            "keys": [
                {"name": "web", "sha256": digest(web), **limits},
                {"name": "prometheus", "sha256": digest(scraper), "monitor": True},
            ],
        },
    }
    assert FILE.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert {each.name for each in Path().iterdir()} == {"aigateway.toml", "link.toml"}
    for done in (web, scraper, admin):
        assert done.stdout.strip() not in after + done.stderr


def test_a_new_file_is_called_new_and_no_service_is_said_to_take_it():
    first, second = append("--name", "a"), append("--name", "b")
    assert [key.sha256 for key in ServerSettings().keys] == [digest(first), digest(second)]
    assert "aigateway.toml, which is a new file." in first.stderr
    assert "A service that runs" not in first.stderr
    assert "new file" not in second.stderr
    assert "A service that runs takes it within two seconds." in second.stderr


@pytest.mark.parametrize("before", ["[server]\nkeys = []", "[server]\nkeys = [\n] # none\n"])
def test_an_empty_list_of_keys(before):
    FILE.write_text(before)
    added = digest(append("--name", "a"))
    assert [key.sha256 for key in ServerSettings().keys] == [added]
    assert ("# none" in FILE.read_text()) is ("# none" in before)


def test_a_byte_order_mark_stays():
    FILE.write_bytes(b"\xef\xbb\xbf[server]\r\nport = 9000\r\n")
    added = [digest(append("--admin")), digest(append("--name", "a"))]
    settings = ServerSettings()
    assert [settings.port, settings.admin_sha256, settings.keys[0].sha256] == [9000, *added]
    assert FILE.read_bytes().startswith(b"\xef\xbb\xbf[server]\r\n")


def test_an_admin_may_be_the_first_on_a_public_address():
    FILE.write_text('[server]\nhost = "0.0.0.0"\n')
    added = [digest(append("--admin")), digest(append("--name", "a"))]
    assert [ServerSettings().admin_sha256, ServerSettings().keys[0].sha256] == added


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    Path("link").symlink_to(pipe)
    for path in (pipe, "link", tmp_path, "no/such/directory.toml"):
        done = CliRunner().invoke(app, ["key", "--append", str(path)])
        assert (done.exit_code, done.stdout) == (2, "")
        assert "is not a regular file" in done.stderr or "cannot be changed: No such" in done.stderr
    assert pipe.is_fifo()


def test_commands_at_once_lose_no_key():
    FILE.write_text("[server]\nport = 9000\n")
    command = [sys.executable, "-m", "aigateway", "key", "--append", str(FILE), "--name"]
    started = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for name in "abcd"
    ]
    made = [process.communicate(timeout=PATIENCE)[0].strip() for process in started]
    keys = {key.name: key.sha256 for key in ServerSettings().keys}
    assert keys == {n: hashlib.sha256(k).hexdigest() for n, k in zip("abcd", made, strict=True)}


def test_a_new_file():
    keys = [digest(append("--admin")), digest(append("--name", "a"))]
    settings = ServerSettings()
    assert [settings.admin_sha256, settings.keys[0].sha256] == keys


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ('[[server.keys]]\nname = "web"\nsha256 = "x"', ("--name", "web"), "named 'web' already"),
        ('[server]\nadmin_sha256 = "x"', ("--admin",), "an admin key already"),
        ("[server", ("--name", "web"), "no TOML"),
        ("server = 3", ("--name", "web"), "by hand"),
        ("[server]\nkeys = 5", ("--name", "web"), "each headed [[server.keys]]"),
        ('[server]\nkeys = ["x"]', ("--name", "web"), "each headed [[server.keys]]"),
        (f'[server]\nkeys = [{{name = "a", sha256 = "{"1" * 64}"}}]', (), "in one list"),
        ('[server]\nadmin_sha256 = "x"', (), "aigateway.toml): must be the 64 hexadecimal"),
        ("[server]\nprot = 1", ("--admin",), "is no setting"),
        ("[sever]", (), "would refuse the file: aigateway.toml: "),
        ('x = """\n[server]\n"""', ("--admin",), "by hand"),
    ],
)
def test_what_cannot_be_added_gives_no_key_and_changes_nothing(text, arguments, words):
    FILE.write_text(text)
    done = append(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr.replace("\n", " ")
    assert FILE.read_text() == text


@pytest.mark.parametrize(
    "arguments", [("--budget", "0"), ("--rpm", "-1"), ("--models", " ,"), ("--admin", "--rpm", "3")]
)
def test_limits_that_cannot_be(arguments):
    done = append(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert arguments[0] in done.stderr
    assert not FILE.exists()
