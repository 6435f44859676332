"""`aigateway batch` from the command line: exit codes, messages, files, Ctrl-C."""

import json
import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.simulator import Fault, Simulator
from tests.processes import until


@pytest.fixture(autouse=True)
def a_wide_terminal_without_colours(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def simulator(monkeypatch):
    with Simulator.in_thread() as running:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
        monkeypatch.setenv("OPENAI_BASE_URL", running.openai.api_base)
        yield running


@pytest.fixture
def ask(tmp_path):
    """Runs the command on lines; what it wrote is in `out.jsonl` in the current folder."""

    def run(lines, *options, name="in.jsonl"):
        if lines is not None:
            write(name, lines)
        return CliRunner().invoke(app, ["batch", name, "out.jsonl", *options])

    return run


def write(name, lines):
    text = lines if isinstance(lines, str) else "".join(json.dumps(v) + "\n" for v in lines)
    Path(name).write_text(text)


def prompts(count):
    return [{"id": f"r{n}", "prompt": f"p{n}"} for n in range(count)]


def answers(path="out.jsonl"):
    found = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {
        r["custom_id"]: r["response"]["body"]["choices"][0]["message"]["content"] for r in found
    }


def test_all_answered_is_0(simulator, ask):
    done = ask(prompts(20))
    assert (done.stdout, done.exit_code) == ("", 0)
    assert answers() == {f"r{n}": f"p{n}" for n in range(20)}
    assert "answered  20 of 20 lines" in done.stderr
    assert "20/20 (100.0 %), 0 failed, 0 cached" in done.stderr
    assert "secret" not in done.stderr


def test_failed_lines_are_1_and_the_errors_file_is_named(simulator, ask):
    simulator.openai.behave(Fault.content_policy(), times=1)
    done = ask(prompts(3), "--concurrency", "1")
    assert done.exit_code == 1
    assert "out.errors.jsonl" in done.stderr
    assert "content_policy 1" in " ".join(done.stderr.split())
    assert list(answers()) == ["r1", "r2"]


class TestWrongInput:
    def test_bad_lines_are_2_and_nothing_is_sent(self, simulator, ask):
        lines = '{"id": 1, "prompt": "a"}\nno json\n{"id": 1, "prompt": "b"}\n{"prompt": "c"}\n'
        done = ask(lines)
        assert (done.stdout, done.exit_code) == ("", 2)
        assert "error: in.jsonl has 3 invalid lines." in done.stderr
        assert "  line 2: it is not JSON (" in done.stderr
        assert "  line 3: its id is already that of line 1\n" in done.stderr
        assert '  line 4: it has no "id"\n' in done.stderr
        assert simulator.openai.request_count == 0
        assert not Path("out.jsonl").exists()

    def test_they_can_be_counted_as_failed(self, simulator, ask):
        done = ask('{"id": 1, "prompt": "a"}\nno json\n', "--skip-bad-lines")
        assert done.exit_code == 1
        assert answers() == {"1": "a"}
        (failed,) = map(json.loads, Path("out.errors.jsonl").read_text().splitlines())
        assert (failed["custom_id"], failed["error"]["code"]) == ("(line 2)", "bad_line")

    def test_only_the_first_of_many_are_listed(self, simulator, ask):
        done = ask("x\n" * 100)
        assert done.stderr.count("  line ") == 20
        assert "  and 80 more\n" in done.stderr

    @pytest.mark.parametrize(
        ("lines", "options", "says"),
        [
            ("", (), "in.jsonl is empty."),
            ("\n\n", (), "in.jsonl has no requests."),
            (None, (), "in.jsonl cannot be read: No such file"),
            ("{}", ("--concurrency", "many"), "--concurrency must be a whole number"),
            ("{}", ("--concurrency", "0"), "--concurrency must be a whole number"),
            ("{}", ("--rpm", "0"), "--rpm must be above 0"),
            ("{}", ("--max-cost", "-1"), "--max-cost must be above 0"),
            ("{}", ("--template", "{a", "--prompt-column", "b"), "not both"),
            ("{}", ("--template", "{a"), "--template: The template's braces are not balanced"),
            ("{}", ("--report", "report.pdf"), "The report report.pdf ends in .pdf"),
            ("{}", ("--report", "no/report.html"), "The folder no for the report does not exist"),
            ('{"id": 1, "prompt": "a"}', ("--model", "nobody"), "No provider serves the model"),
            ('{"id": 1, "prompt": "a"}', ("--temperature", "9"), "temperature must be"),
        ],
        ids=str,
    )
    def test_invalid_input_and_options(self, simulator, ask, lines, options, says):
        done = ask(lines, *options)
        assert (done.stdout, done.exit_code) == ("", 2)
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert simulator.openai.request_count == 0

    @pytest.mark.parametrize(
        ("output", "options", "says"),
        [
            ("no/out.jsonl", (), "no/out.jsonl cannot be written: the folder no does not exist."),
            (
                "out.jsonl",
                ("--errors", "no/e.jsonl"),
                "no/e.jsonl cannot be written: the folder no",
            ),
            (".", (), ". is a folder; name a file in it."),
            ("folder", (), "folder is not a regular file"),
            ("/dev/full", (), "/dev/full is not a regular file"),
            ("out.jsonl", ("--errors", "in.jsonl"), "must be three"),
            ("out.json", ("--report", "out.errors.json"), "one of the job's own files"),
        ],
    )
    def test_a_place_that_cannot_be_written(self, simulator, output, options, says):
        Path("folder").mkdir()
        write("in.jsonl", prompts(1))
        before = sorted(Path().iterdir())
        done = CliRunner().invoke(app, ["batch", "in.jsonl", output, *options])
        assert done.exit_code == 2
        assert says in done.stderr
        assert sorted(Path().iterdir()) == before
        assert simulator.openai.request_count == 0

    def test_a_foreign_file_is_left_alone(self, simulator, ask):
        Path("notes.txt").write_text("mine")
        done = ask(prompts(1), "--errors", "notes.txt")
        assert done.exit_code == 2
        assert "notes.txt already exists" in done.stderr
        assert Path("notes.txt").read_text() == "mine"

    def test_a_pipe_as_input(self, simulator):
        os.mkfifo("pipe.jsonl")
        done = CliRunner().invoke(app, ["batch", "pipe.jsonl", "out.jsonl"])
        assert done.exit_code == 2
        assert "pipe.jsonl is not a regular file" in done.stderr

    def test_an_error_of_all_lines_is_reported_once(self, simulator, ask):
        done = ask(prompts(50), "--timeout", "-1")
        assert done.exit_code == 2
        assert done.stderr.count("timeout") == 1

    def test_without_an_output(self, simulator, ask):
        write("in.jsonl", prompts(1))
        done = CliRunner().invoke(app, ["batch", "in.jsonl"])
        assert done.exit_code == 2
        assert "name a file for the answers" in done.stderr

    def test_without_providers_it_prints_advice(self, ask):
        done = ask(prompts(1))
        assert done.exit_code == 2
        assert "OPENAI_API_KEY" in done.stderr


class TestResuming:
    def test_not_without_resume(self, simulator, ask):
        assert ask(prompts(3)).exit_code == 0
        done = ask(None)
        assert done.exit_code == 2
        assert "out.jsonl already exists. Continue it with --resume" in done.stderr

    def test_after_a_limit(self, simulator, ask):
        done = ask(prompts(20), "--max-cost", "0.0000001")
        assert done.exit_code == 1
        assert "--max-cost $0.0000001 is reached" in done.stderr
        assert "the same command with --resume and a higher limit." in done.stderr
        some = len(answers())
        assert some == 1
        done = ask(None, "--resume")
        assert done.exit_code == 0
        assert f"resuming: {some} of 20 lines are already done" in done.stderr
        assert (len(answers()), simulator.openai.request_count) == (20, 20)

    def test_not_with_another_input_or_other_options(self, simulator, ask):
        ask(prompts(3))
        done = ask(None, "--resume", "--system", "secret")
        assert done.exit_code == 2
        assert "was begun with a different system" in done.stderr
        done = ask(prompts(4), "--resume")
        assert done.exit_code == 2
        assert "in.jsonl has changed since out.jsonl was begun" in done.stderr


class TestForms:
    def test_csv_with_a_template(self, simulator, ask):
        content = "word,language\ncat,French\ndog,German\n"
        template = "{word} in {language}"
        done = ask(content, "--template", template, "--system", "Be brief.", name="in.csv")
        assert done.exit_code == 0
        assert answers() == {"1": "cat in French", "2": "dog in German"}
        roles = [m["role"] for m in simulator.openai.received[0].body["messages"]]
        assert roles == ["system", "user"]

    def test_openai_s_own_form_and_its_models(self, simulator, ask):
        body = {"model": "gpt-unknown", "messages": [{"role": "user", "content": "hi"}]}
        lines = [{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}]
        done = ask(lines)
        assert done.exit_code == 2
        assert "No provider serves the model 'gpt-unknown'" in done.stderr
        assert "--ignore-model ignores" in done.stderr
        assert ask(None, "--ignore-model").exit_code == 0
        assert answers() == {"a": "hi"}

    def test_auto_concurrency_and_no_cache(self, simulator, ask):
        lines = [{"id": n, "prompt": "same"} for n in range(5)]
        assert ask(lines, "--concurrency", "auto", "--no-cache").exit_code == 0
        assert simulator.openai.request_count == 5


class TestDryRun:
    def test_it_prints_the_price_and_sends_nothing(self, simulator, ask):
        done = ask([*prompts(10), {"id": "again", "prompt": "p3", "max_tokens": None}], "--dry-run")
        assert done.exit_code == 0
        words = " ".join(done.stdout.split())
        assert "openai/gpt-4o-mini 10 " in words
        assert "11 lines: 10 requests, 1 repeat another line, 0 are invalid." in words
        assert "10 prompts counted with litellm's tokenizer" in words
        assert "10 requests set no limit and count as 256 each" in words
        assert "0.15 / 0.60 $0.0015" in words  # most of it 10 answers of 256 tokens
        assert simulator.openai.request_count == 0
        assert not Path("out.jsonl").exists()

    def test_it_needs_no_output_and_lists_bad_lines_too(self, simulator):
        write("in.jsonl", '{"id": 1, "prompt": "a"}\nno json\n')
        done = CliRunner().invoke(app, ["batch", "in.jsonl", "--dry-run"])
        assert done.exit_code == 2
        assert "2 lines: 1 requests" in done.stdout
        assert "line 2: it is not JSON" in done.stderr

    def test_simulated(self):
        write("in.jsonl", prompts(2))
        done = CliRunner().invoke(app, ["batch", "in.jsonl", "--dry-run", "--simulate"])
        assert done.exit_code == 0
        assert done.stdout.index("openai/") < done.stdout.index("anthropic/")


class TestReport:
    def test_json(self, simulator, ask):
        assert ask(prompts(5), "--report", "report.json").exit_code == 0
        report = json.loads(Path("report.json").read_text())
        assert report["lines"]["answered"] == 5
        assert report["providers"]["openai/gpt-4o-mini"]["answers"] == 5

    def test_html(self, simulator, ask):
        assert ask(prompts(5), "--report", "report.html").exit_code == 0
        page = Path("report.html").read_text()
        assert "<svg" in page
        assert "openai/gpt-4o-mini" in page


@pytest.fixture
def running(simulator, launch):
    """The command as a process of its own, with a vendor that can be made to hang."""

    def start(lines, *options):
        write("in.jsonl", lines)
        command = ["batch", "in.jsonl", "out.jsonl", "--concurrency", "4", "--plain", *options]
        environment = {
            "OPENAI_API_KEY": "sk-secret-1",
            "OPENAI_BASE_URL": simulator.openai.api_base,
        }
        return launch(Path.cwd(), *command, env=environment)

    return start


class TestInterrupted:
    def test_once_it_finishes_requests_in_flight(self, simulator, running):
        simulator.openai.latency = 0.05
        process = running(prompts(500))
        until(lambda: simulator.openai.request_count >= 8)
        process.signal(signal.SIGINT)
        assert process.code == 1
        words = process.log
        assert "stopping (interrupted): finishing " in words
        assert "Traceback" not in words
        assert 8 <= simulator.openai.request_count == len(answers()) < 500

    def test_twice_it_stops_at_once(self, simulator, running):
        simulator.openai.behave(*[None] * 8, *[Fault.hang()] * 500)
        process = running(prompts(500))
        until(lambda: simulator.openai.request_count >= 12)
        process.signal(signal.SIGINT)
        until(lambda: "Ctrl-C stops at once" in process.log)
        process.signal(signal.SIGINT)
        assert process.code == 1
        words = process.log
        assert "Traceback" not in words
        assert "stopped: interrupted" in words
        assert len(answers()) == 8

    def test_a_limit_is_no_shield_against_ctrl_c(self, simulator, running):
        simulator.openai.behave(Fault.content_policy(), *[Fault.hang()] * 500)
        process = running(prompts(500), "--max-failures", "1")
        until(lambda: "stopping (--max-failures 1 is reached)" in process.log)
        process.signal(signal.SIGINT)
        assert process.code == 1
        words = process.log
        assert "Traceback" not in words

    def test_terminated_twice_it_stops_at_once(self, simulator, running):
        simulator.openai.behave(Fault.hang())
        process = running(prompts(500))
        until(lambda: simulator.openai.request_count >= 4)
        process.signal(signal.SIGTERM)
        until(lambda: "stopping (terminated)" in process.log)
        process.signal(signal.SIGTERM)
        assert process.code == 1
        words = process.log
        assert "Traceback" not in words

    def test_a_stopped_job_does_not_wait_for_unavailable_providers(self, simulator, running):
        simulator.openai.behave(Fault.rate_limited(600))
        process = running(prompts(500))
        until(lambda: "waiting: no provider is available" in process.log)
        process.signal(signal.SIGINT)
        assert process.code == 1
        words = process.log
        assert Path("out.jsonl").read_text() == ""
        assert not Path("out.errors.jsonl").exists()
        assert "Traceback" not in words

    def test_sigterm_finishes_requests_in_flight(self, simulator, running):
        simulator.openai.latency = 0.05
        process = running(prompts(500))
        until(lambda: simulator.openai.request_count >= 8)
        process.signal(signal.SIGTERM)
        assert process.code == 1
        words = process.log
        assert "stopping (terminated)" in words
        assert simulator.openai.request_count == len(answers())
