import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import aigateway
from aigateway import errors
from aigateway.cli import app
from aigateway.cli.output import errors_as_exit_codes
from aigateway.simulator import Fault, Simulator
from tests.processes import PATIENCE, until

ROOT = Path(aigateway.__file__).parents[1]


@pytest.fixture(autouse=True)
def a_wide_terminal_without_colours(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def simulator(monkeypatch):
    """OpenAI and Anthropic in the environment, simulated; OpenAI comes first."""
    with Simulator.in_thread() as running:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
        monkeypatch.setenv("OPENAI_BASE_URL", running.openai.api_base)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-2")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", running.anthropic.api_base)
        yield running


def run(*arguments, stdin=None):
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_version():
    done = run("--version")
    assert (done.stdout, done.exit_code) == (f"aigateway {aigateway.__version__}\n", 0)


def test_help_names_every_command():
    done = run("--help")
    assert done.exit_code == 0
    for command in ("chat", "providers", "simulate", "demo"):
        assert command in done.stdout


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_the_command_line_loads_nothing_it_may_not_need():
    heavy = ("litellm", "aiohttp", "openai", "pydantic", "aigateway.gateway")
    done = python(
        "-c", f"import aigateway.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


class TestChat:
    def test_without_providers_it_prints_advice(self):
        done = run("chat", "What is 2+2?")
        assert done.exit_code == 2
        assert done.stdout == ""
        for word in ("OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "--simulate", "aigateway.toml"):
            assert word in done.stderr

    def test_simulated(self):
        done = run("chat", "What is 2+2?", "--simulate")
        assert (done.stdout, done.exit_code) == ("4\n", 0)
        assert done.stderr.startswith("openai/gpt-4o-mini · ")
        assert "3 + 1 tokens · $0.00000" in done.stderr
        took = r" · (<0\.01|\d+\.\d\d) s( \+ \d+\.\d s loading litellm)? · "
        assert re.search(took, done.stderr)
        assert " 0.00 s" not in done.stderr

    def test_from_the_environment(self, simulator):
        done = run(
            *("chat", "hi", "--system", "Be terse.", "--temperature", "0.5"),
            *("--max-tokens", "9", "--timeout", "20", "--model", "claude-haiku-4-5", "--no-cache"),
        )
        assert (done.stdout, done.exit_code) == ("hi\n", 0)
        (received,) = simulator.anthropic.received
        assert (received.body["temperature"], received.body["max_tokens"]) == (0.5, 9)
        assert simulator.openai.request_count == 0

    def test_prints_the_answer_as_it_is(self, simulator):
        text = "[bold]not markup[/bold] " + "word " * 100 + "end\n\n  indented"
        simulator.openai.answer(text)
        assert run("chat", "x").stdout == text + "\n"

    def test_reports_a_failover(self, simulator):
        simulator.openai.behave(Fault.status(500))
        done = run("chat", "hi")
        assert (done.stdout, done.exit_code) == ("hi\n", 0)
        assert "after openai/gpt-4o-mini: server_error" in done.stderr

    def test_reads_standard_input(self, simulator):
        assert run("chat", "-", stdin="line one\nline two").stdout == "line one\nline two\n"

    def test_without_a_prompt_it_reads_standard_input(self, simulator):
        assert run("chat", stdin="from a file\n").stdout == "from a file\n\n"
        done = run("chat", stdin="")
        assert (done.stdout, done.exit_code) == ("", 2)

    def test_stream(self, simulator):
        simulator.openai.answer("one two three")
        done = run("chat", "hi", "--stream", "--system", "Be terse.")
        assert (done.stdout, done.exit_code) == ("one two three\n", 0)
        assert done.stderr.startswith("openai/gpt-4o-mini · ")
        (received,) = simulator.openai.received
        assert received.body["stream"] is True

    def test_a_stream_that_breaks_is_code_one(self, simulator):
        simulator.openai.answer("one two three four")
        simulator.openai.behave(Fault.cut_stream(after=2))
        done = run("chat", "hi", "--stream")
        assert done.exit_code == 1
        assert done.stdout.startswith("one")
        assert done.stdout.endswith("\n")
        first, _ = done.stderr.splitlines()
        assert first.startswith("error: The stream from openai/gpt-4o-mini broke after its first")

    def test_a_stream_is_no_json(self, simulator):
        done = run("chat", "hi", "--stream", "--json")
        assert (done.stdout, done.exit_code) == ("", 2)

    def test_a_file_of_its_own(self, simulator, tmp_path):
        file = tmp_path / "other.toml"
        file.write_text(
            '[[providers]]\nprovider = "anthropic"\nmodel = "claude-haiku-4-5"\n'
            f'api_base = "{simulator.anthropic.api_base}"\n'
        )
        done = run("chat", "hi", "--config", str(file))
        assert done.stderr.startswith("anthropic/claude-haiku-4-5 · ")

    def test_json(self, simulator):
        done = run("chat", "hi", "--json")
        reply = json.loads(done.stdout)
        assert done.stderr == ""
        assert (reply["text"], reply["provider"]) == ("hi", "openai/gpt-4o-mini")
        assert reply["usage"]["total_tokens"] > 0
        assert [attempt["failure"] for attempt in reply["attempts"]] == [None]

    def test_a_failure_has_a_line_for_each_cause(self, simulator):
        simulator.openai.behave(Fault.bad_key())
        simulator.anthropic.behave(Fault.no_credit())
        done = run("chat", "hi")
        assert (done.stdout, done.exit_code) == ("", 1)
        first, *causes = done.stderr.splitlines()
        assert first == "error: All LLM providers failed."
        assert [line.split(" (")[0] for line in causes] == [
            "  openai/gpt-4o-mini: authentication",
            "  anthropic/claude-haiku-4-5: no_credit",
        ]

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["--temperature", "9"], "temperature"),
            (["--model", "gpt-4o-mimi"], "gpt-4o-mini"),
            (["--timeout", "0"], "timeout"),
            (["--timeout", "soon"], "--timeout"),
        ],
    )
    def test_bad_input_is_code_two(self, simulator, arguments, word):
        done = run("chat", "hi", *arguments)
        assert (done.stdout, done.exit_code) == ("", 2)
        assert word in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_wrong_setting_is_code_two(self, simulator, monkeypatch):
        monkeypatch.setenv("AIGATEWAY_TIMOUT", "3")
        done = run("chat", "hi")
        assert done.exit_code == 2
        assert 'did you mean "AIGATEWAY_TIMEOUT"' in done.stderr


def start(*arguments, **streams):
    return subprocess.Popen(
        [sys.executable, "-m", "aigateway", *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **streams},
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_what_is_piped_follows_the_prompt_and_ctrl_c_ends_the_wait(simulator, monkeypatch):
    for name in ("ATTEMPT", "FIRST_TOKEN"):
        monkeypatch.setenv(f"AIGATEWAY_{name}_TIMEOUT", str(PATIENCE))
    simulator.openai.behave(Fault.hang())
    patient = ("--timeout", str(PATIENCE))  # it includes loading litellm
    with start("chat", "Sum up", "--stream", *patient, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("one\ntwo")
        process.stdin.close()
        until(lambda: simulator.openai.request_count or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() + process.stderr.read() == ""
    (received,) = simulator.openai.received
    assert received.body["messages"] == [{"role": "user", "content": "Sum up\n\none\ntwo"}]


def test_a_reader_that_leaves_is_no_error():
    with start("vendors", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 141


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (
            errors.AllProvidersFailedError.of(
                [errors.ProviderFailure("a", errors.FailureKind.SERVER_ERROR, 503)]
            ),
            ["error: All LLM providers failed.", "  a: server_error (HTTP 503)"],
        ),
        (
            errors.DeadlineExceededError(
                "The deadline passed (a: timeout). Raise it.",
                [errors.ProviderFailure("a", errors.FailureKind.TIMEOUT)],
            ),
            ["error: The deadline passed. Raise it.", "  a: timeout"],
        ),
        (errors.OverloadedError("Too many wait."), ["error: Too many wait."]),
        (errors.GatewayError(), ["error: GatewayError."]),
    ],
)
def test_errors_are_printed_in_lines(capsys, error, lines):
    with pytest.raises(Exception, match="1"), errors_as_exit_codes():
        raise error
    assert capsys.readouterr().err.splitlines() == lines


class TestProviders:
    def test_without_any(self):
        done = run("providers")
        assert (done.stdout, done.exit_code) == ("", 2)
        assert "OPENAI_API_KEY" in done.stderr

    def test_table_shows_everything_but_the_key(self, simulator):
        done = run("providers")
        assert done.exit_code == 0
        shown = ("openai/gpt-4o-mini", "claude-haiku-4-5", simulator.openai.api_base, "yes")
        can_do = ("images", "128,000 tokens of input", "no audio input")
        for word in (*shown, *can_do):
            assert word in done.stdout
        assert "secret" not in done.stdout
        assert simulator.openai.request_count == 0

    def test_json(self, simulator):
        rows = json.loads(run("providers", "--json").stdout)
        assert [row["name"] for row in rows] == ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"]
        assert all(row["key_present"] for row in rows)
        assert [row["capabilities"]["vision"] for row in rows] == [True, True]
        assert "secret" not in json.dumps(rows)

    def test_check(self, simulator):
        done = run("providers", "--check")
        assert done.exit_code == 0
        assert done.stdout.count(" ok ") == 2
        assert (simulator.openai.request_count, simulator.anthropic.request_count) == (1, 1)

    def test_check_asks_each_alone_and_reports_problems(self, simulator):
        simulator.openai.behave(Fault.status(503))
        done = run("providers", "--check", "--json", "--timeout", str(PATIENCE))
        assert done.exit_code == 1
        checks = [row["check"] for row in json.loads(done.stdout)]
        assert [check["problem"] for check in checks] == ["server_error (HTTP 503)", None]
        assert [check["ok"] for check in checks] == [False, True]
        assert (simulator.openai.request_count, simulator.anthropic.request_count) == (1, 1)

    def test_check_times_out(self, simulator):
        simulator.anthropic.behave(Fault.hang())
        done = run("providers", "--check", "--json", "--timeout", "0.2")
        assert done.exit_code == 1
        silent = json.loads(done.stdout)[1]["check"]
        assert (silent["ok"], silent["problem"]) == (False, "timeout")

    def test_an_invalid_option_is_reported_at_once(self, tmp_path, monkeypatch):
        file = tmp_path / "aigateway.toml"
        file.write_text(
            '[[providers]]\nprovider = "openai"\nmodel = "m"\nextra = { stream = true }\n'
        )
        monkeypatch.setenv("AIGATEWAY_CONFIG", str(file))
        done = run("providers", "--check", "--json")
        assert done.exit_code == 2
        assert "stream" in done.stderr


class TestSimulate:
    def test_serves_until_ctrl_c(self):
        process = subprocess.Popen(
            [sys.executable, "-m", "aigateway", "simulate", "--port", "0", "--latency", "0.01"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            lines: list[str] = []
            while not lines or not lines[-1].startswith("# control"):
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE)
        assert any(line.startswith("export OPENAI_BASE_URL=http://127.0.0.1:") for line in lines)
        assert (stderr, process.returncode) == ("stopped\n", 0)

    def test_a_timeline_that_cannot_be_read(self):
        done = run("simulate", "--port", "0", "--timeline", "openai:soon=status:500")
        assert done.exit_code == 2
        assert "openai:soon" in done.stderr

    def test_a_port_that_cannot_be(self):
        assert run("simulate", "--port", "70000").exit_code == 2


@pytest.mark.parametrize("command", [("--help",), ("vendors",)])
def test_a_disk_that_takes_no_output_is_one_line(tmp_path, command):
    def write_nothing():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with (tmp_path / "out").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aigateway", *command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            preexec_fn=write_nothing,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
    assert done.stderr == "error: the output cannot be written: File too large.\n"
    assert done.returncode == 1
