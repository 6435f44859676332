"""Jobs over real HTTP: what is asked, what is written, how they end, and how they go on."""

import asyncio
import json

import pytest

from aigateway import AsyncGateway
from aigateway.batch.files.output import Journal, JournalError
from aigateway.batch.files.paths import manifest_path
from aigateway.batch.files.totals import JobLimits
from aigateway.errors import ConfigurationError
from aigateway.simulator import Fault
from tests.batch.files.desk import records
from tests.gateways import until


def lines(count, **more):
    return [{"id": f"r{n}", "prompt": f"p{n}", **more} for n in range(count)]


def expected(count):
    return {f"r{n}": f"answer to p{n}" for n in range(count)}


async def test_every_line_gets_its_answer_in_openai_s_form(desk):
    desk.ask(lines(30))
    job = await desk.run()
    assert desk.answers() == expected(30)
    assert sorted(desk.asked()) == sorted(f"p{n}" for n in range(30))
    assert (job.complete, job.stopping, job.lost, job.in_flight) == (True, None, 0, 0)
    assert not desk.errors.exists()
    record = records(desk.output)[0]
    assert record["id"].startswith("batch_req_")
    assert record["error"] is None
    assert record["response"]["status_code"] == 200
    assert record["response"]["body"]["object"] == "chat.completion"
    about = record["aigateway"]
    assert about["provider"] == "openai/gpt-4o-mini"
    assert about["cost_usd"] > 0
    assert [attempt["failure"] for attempt in about["attempts"]] == [None]


async def test_the_official_sdk_reads_the_records(desk):
    from openai.types.chat import ChatCompletion

    desk.ask(lines(1))
    await desk.run()
    body = records(desk.output)[0]["response"]["body"]
    assert ChatCompletion.model_validate(body).choices[0].message.content == "answer to p0"


async def test_failures_have_their_own_file(desk):
    desk.vendor.behave(None, Fault.content_policy(), None, Fault.bad_request())
    desk.ask(lines(4))
    job = await desk.run(concurrency=1)
    assert list(desk.answers()) == ["r0", "r2"]
    assert desk.failures() == {"r1": "content_policy", "r3": "request_rejected"}
    assert (job.complete, job.totals.answered, job.totals.failed) == (True, 2, 2)
    record = records(desk.errors)[0]
    assert record["response"] is None
    assert record["aigateway"]["final"]
    assert record["aigateway"]["attempts"][0]["failure"] == "content_policy"


class TestDuplicates:
    async def test_they_are_sent_once_near_and_far_and_in_either_form(self, desk):
        desk.vendor.latency = 0.02
        messages = [{"role": "user", "content": "same"}]
        near: list[object] = [{"id": f"n{n}", "prompt": "same"} for n in range(5)]
        near.append({"id": "words", "messages": messages})
        far = [{"id": "far", "prompt": "same"}, {"id": "other", "prompt": "same", "seed": 1}]
        desk.ask([*near, *lines(20), *far])
        job = await desk.run(settings={"cache_enabled": False})
        assert desk.asked().count("same") == 2
        answers = desk.answers()
        assert {answers[f"n{n}"] for n in range(5)} == {"answer to same"}
        assert (answers["words"], answers["far"], answers["other"]) == ("answer to same",) * 3
        assert (job.totals.answered, job.totals.cached) == (28, 6)
        copies = [r for r in records(desk.output) if r["aigateway"].get("same_as") == "n0"]
        assert len(copies) == 6
        assert {r["aigateway"]["cost_usd"] for r in copies} == {0.0}
        assert len({r["id"] for r in records(desk.output)}) == 28

    async def test_a_line_may_want_its_own_answer(self, desk):
        desk.ask([{"id": n, "prompt": "same", "cache": False} for n in range(3)])
        await desk.run()
        assert desk.asked() == ["same"] * 3

    async def test_they_share_a_failure_too(self, desk):
        desk.vendor.latency = 0.02
        desk.vendor.behave(Fault.content_policy())
        desk.ask([{"id": n, "prompt": "same"} for n in range(4)])
        job = await desk.run()
        assert desk.failures() == {str(n): "content_policy" for n in range(4)}
        assert (len(desk.asked()), job.totals.failed) == (1, 4)

    async def test_very_many_near_ones_do_not_pile_up(self, desk):
        desk.vendor.latency = 0.05
        desk.ask([{"id": n, "prompt": "same"} for n in range(3000)])
        async with desk.opened() as job:
            running = asyncio.create_task(job.run())
            await until(lambda: desk.vendor.request_count == 1)
            await running
        assert len(desk.asked()) == 1
        assert len(desk.answers()) == 3000

    async def test_a_copy_after_resuming_is_of_the_earlier_run_s_answer(self, desk):
        desk.ask([*lines(3), {"id": "far", "prompt": "p0"}])
        await desk.run(limits=JobLimits(max_cost=1e-9))
        assert list(desk.answers()) == ["r0"]
        await desk.run()
        assert desk.answers() == expected(3) | {"far": "answer to p0"}
        assert sorted(desk.asked()) == ["p0", "p1", "p2"]


class TestResuming:
    async def test_nothing_is_sent_twice(self, desk):
        desk.vendor.latency = 0.03
        desk.ask(lines(20))
        async with desk.opened() as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.totals.done >= 5)
            job.stop("test")
            await running
        done = set(desk.answers())
        assert 5 <= len(done) < 20
        assert not job.complete
        desk.vendor.latency = 0.0
        job = await desk.run()
        assert job.totals.earlier == len(done)
        assert desk.answers() == expected(20)
        assert sorted(desk.asked()) == sorted(f"p{n}" for n in range(20))
        assert job.totals.answered == 20
        await desk.run()
        assert len(desk.asked()) == 20

    async def test_a_cancelled_job_leaves_nothing_behind_and_can_be_resumed(self, desk):
        desk.vendor.behave(None, None, *[Fault.hang()] * 10)
        desk.ask(lines(10))
        before = asyncio.all_tasks()
        async with desk.opened() as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.totals.done == 2)
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()
        assert asyncio.all_tasks() == before
        desk.vendor.recover()
        await desk.run()
        assert desk.answers() == expected(10)

    async def test_vendor_failures_are_repeated_and_rejections_are_not(self, desk):
        desk.vendor.behave(Fault.content_policy(), Fault.server_error(), None)
        desk.ask(lines(3))
        await desk.run(concurrency=1)
        assert desk.failures() == {"r0": "content_policy", "r1": "all_providers_failed"}
        desk.vendor.recover()
        job = await desk.run()
        assert desk.failures() == {"r0": "content_policy"}
        assert set(desk.answers()) == {"r1", "r2"}
        assert (job.totals.earlier, job.totals.failed) == (2, 1)
        await desk.run(ask_failed=True)
        assert desk.answers() == expected(3)
        assert not desk.errors.exists()

    async def test_a_changed_input_is_refused_and_nothing_is_touched(self, desk):
        desk.ask(lines(3))
        await desk.run()
        before = desk.output.read_bytes()
        desk.ask(lines(4))
        with pytest.raises(ConfigurationError, match="has changed since"):
            await desk.run()
        assert desk.output.read_bytes() == before
        assert len(desk.asked()) == 3

    async def test_other_options_are_refused_but_for_those_without_effect(self, desk):
        desk.ask(lines(3))
        await desk.run(shared={"system": "a", "timeout": 30})
        for others in ({"system": "b"}, {}, {"system": "a", "seed": 1}):
            with pytest.raises(ConfigurationError, match=r"with a different (system|seed)"):
                await desk.run(shared=others)
        await desk.run(shared={"system": "a", "timeout": 60, "agent": "x"})
        assert len(desk.asked()) == 3

    async def test_a_job_of_which_all_failed_has_begun_too(self, desk):
        desk.vendor.behave(Fault.bad_request())
        desk.ask(lines(3))
        await desk.run()
        assert len(desk.failures()) == 3
        with pytest.raises(ConfigurationError, match="already exists"):
            await desk.run(resume=False)
        await desk.run()
        assert len(desk.asked()) == 3
        desk.ask(lines(4))
        with pytest.raises(ConfigurationError, match="has changed since"):
            await desk.run()

    async def test_another_file_of_errors_is_refused(self, desk):
        desk.vendor.behave(Fault.bad_request())
        desk.ask(lines(3))
        await desk.run()
        desk.output.write_bytes(b"")
        desk.errors = desk.errors.with_name("other.jsonl")
        desk.errors.write_text(json.dumps(records(desk.output.with_name("out.errors.jsonl"))[0]))
        with pytest.raises(ConfigurationError, match="with a different errors"):
            await desk.run()

    async def test_without_resume_existing_files_are_refused(self, desk):
        desk.ask(lines(3))
        await desk.run(resume=False)
        with pytest.raises(ConfigurationError, match=r"already exists\. Continue it with --resume"):
            await desk.run(resume=False)

    async def test_records_of_something_else_are_refused(self, desk):
        desk.ask(lines(3))
        await desk.run()
        stranger = records(desk.output)[0] | {"custom_id": "stranger"}
        for more in (stranger, records(desk.output)[0]):  # not of the input, or twice
            whole = desk.output.read_text()
            desk.output.write_text(whole + json.dumps(more) + "\n")
            with pytest.raises(ConfigurationError, match=r"do not belong to .*, or repeated"):
                await desk.run()
            desk.output.write_text(whole)

    async def test_an_output_without_its_manifest_is_refused(self, desk):
        desk.ask(lines(3))
        await desk.run()
        manifest_path(desk.output).unlink()
        with pytest.raises(ConfigurationError, match="missing or cannot be read"):
            await desk.run()

    async def test_while_one_is_at_work_another_is_refused(self, desk):
        desk.ask(lines(3))
        async with desk.opened():
            with pytest.raises(ConfigurationError, match="Another process is writing"):
                await desk.run()

    async def test_three_files_must_be_three(self, desk):
        desk.ask(lines(1))
        desk.errors = desk.output
        with pytest.raises(ConfigurationError, match="must be three different files"):
            await desk.run()


class TestLimits:
    async def test_cost(self, desk):
        desk.ask(lines(30))
        job = await desk.run(concurrency=1)
        each = job.totals.cost_usd / 30
        for path in (desk.output, manifest_path(desk.output)):
            path.unlink()
        bound = 10.5 * each
        job = await desk.run(limits=JobLimits(max_cost=bound))
        assert job.stopping.startswith("--max-cost $")
        assert job.totals.cost_usd <= bound
        assert job.totals.answered == 10
        assert (await desk.run(limits=JobLimits(max_cost=bound))).totals.answered == 10
        job = await desk.run()
        assert desk.answers() == expected(30)
        assert job.totals.cost_usd == pytest.approx(30 * each)

    async def test_cost_with_many_at_once(self, desk):
        desk.ask(lines(60))
        job = await desk.run(limits=JobLimits(max_cost=0.00005), concurrency=16)
        assert job.stopping.startswith("--max-cost $0.00005 is reached")
        assert 3 <= job.totals.answered < 60
        assert job.totals.cost_usd <= 0.00005

    async def test_failures(self, desk):
        desk.vendor.behave(*[Fault.content_policy()] * 30)
        desk.ask(lines(30))
        job = await desk.run(concurrency=1, limits=JobLimits(max_failures=3))
        assert (job.stopping, job.totals.failed) == ("--max-failures 3 is reached", 3)
        assert len(desk.asked()) == 3

    async def test_requests_per_minute_hold_the_rest_back(self, desk):
        desk.ask(lines(10))
        async with desk.opened(limits=JobLimits(rpm=4)) as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.totals.done == 4)
            await asyncio.sleep(0.05)
            assert len(desk.asked()) == 4
            job.stop("test")
            await running
        assert len(desk.answers()) == 4

    async def test_tokens_per_minute_hold_the_rest_back(self, desk):
        # Until the vendor has counted, the estimate holds them back.
        desk.vendor.behave(Fault.hang())
        desk.ask(lines(10, max_tokens=100))
        async with desk.opened(limits=JobLimits(tpm=202), concurrency=10) as job:
            running = asyncio.create_task(job.run())
            await until(lambda: desk.vendor.request_count >= 2)
            assert job.in_flight == 2
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert sorted(desk.asked()) == ["p0", "p1"]

    async def test_without_a_provider_it_ends_and_can_be_resumed(self, desk):
        desk.vendor.behave(None, None, *[Fault.bad_key()] * 10)
        desk.ask(lines(100))
        job = await desk.run(concurrency=2)
        assert job.stopping.startswith("no provider is available any more (openai/gpt-4o-mini: ")
        assert job.totals.failed <= 4
        desk.vendor.recover()
        await desk.run()
        assert desk.answers() == expected(100)


async def test_an_outage_is_waited_out(desk):
    desk.vendor.timeline([(0, None), (0.1, Fault.server_error()), (0.6, None)])
    desk.vendor.latency = 0.005
    desk.ask(lines(150))
    settings = {"reset_timeout_seconds": 0.2, "max_open_seconds": 0.2, "failure_threshold": 2}
    job = await desk.run(outage_patience=30.0, settings=settings, concurrency=2)
    assert job.stopping is None
    assert job.totals.failed <= 4  # those that met it before the circuit opened
    assert job.totals.answered >= 146
    await desk.run()
    assert desk.answers() == expected(150)


class TestOutages:
    async def test_without_a_network_the_job_ends(self, desk):
        desk.vendor.behave(Fault.refuse())
        desk.ask(lines(300))
        job = await desk.run(outage_patience=0.3, concurrency=2)
        assert job.stopping.startswith("no provider is available any more (")
        assert job.totals.failed <= 10
        desk.vendor.recover()
        await desk.run()
        assert desk.answers() == expected(300)

    async def test_one_line_that_is_always_throttled_does_not_end_it(self, desk):
        desk.ask(lines(20))
        desk.vendor.behave(None, None, None, Fault.rate_limited(0.01), times=4)
        job = await desk.run(outage_patience=5.0, concurrency=1)
        assert (job.stopping, job.totals.answered) == (None, 20)

    async def test_a_stopped_job_drops_requests_that_only_wait(self, desk):
        desk.vendor.behave(Fault.rate_limited(600))
        desk.ask(lines(30))
        async with desk.opened(outage_patience=None) as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.waiting)
            job.stop("test")
            await running
        assert (desk.answers(), desk.failures()) == ({}, {})
        assert job.in_flight == 4

    async def test_and_those_that_would_take_turns_as_last_resort(self, desk):
        desk.vendor.behave(Fault.server_error())
        desk.ask(lines(100))
        async with desk.opened(outage_patience=None, concurrency=32) as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.gateway.get_metrics()["waiting"] >= 20)
            asked = desk.vendor.request_count
            job.stop("test")
            await running
        assert desk.vendor.request_count <= asked + 5


class TestBadLines:
    async def test_they_are_counted_as_failed_and_not_asked(self, desk):
        twice = [{"id": "r0", "prompt": "again"}, {"prompt": "no id"}, {"id": "e", "prompt": ""}]
        odd = {
            "custom_id": "b",
            "body": {"messages": [{"role": "user", "content": "x"}], "prompt": 1},
        }
        desk.ask([*lines(3), *twice, odd])
        job = await desk.run()
        assert len(desk.problems) == 4
        assert desk.answers() == expected(3)
        assert desk.failures() == {
            "(line 4)": "bad_line",
            "(line 5)": "bad_line",
            "e": "bad_line",
            "b": "bad_line",
        }
        assert job.complete
        job = await desk.run()
        assert (job.totals.earlier, job.totals.failed) == (7, 4)
        assert len(desk.failures()) == 4

    @pytest.mark.parametrize("tpm", [None, 10**6])
    async def test_whatever_is_odd_about_a_line_the_others_are_answered(self, desk, tpm):
        deep: object = "x"
        for _ in range(300):
            deep = [deep]
        odd = [
            {"id": "model", "prompt": "x", "model": "nobody"},
            {"id": "deep", "messages": [{"role": "user", "content": "x", "name": deep}]},
            {"id": "number", "prompt": "x", "seed": 2**63},
            {"id": "(line 9)", "prompt": "taken"},
            {"id": "half", "prompt": "x"},
        ]
        desk.ask([*lines(3), *odd])
        with desk.input.open("a") as file:
            file.write('no json\n{"id": "half \\ud83d", "prompt": "x"}\n')
        for _ in range(2):
            job = await desk.run(limits=JobLimits(tpm=tpm))
            assert job.complete
        assert expected(3).items() <= desk.answers().items()
        assert {"model", "deep", "(line 9)'"} <= desk.failures().keys()

    async def test_half_a_character_from_a_vendor_is_an_answer(self, desk):
        desk.vendor.answer("half \ud83d")
        desk.ask(lines(3))
        job = await desk.run()
        assert job.complete
        assert set(desk.answers().values()) <= {"half ?", "half \ufffd"}

    async def test_a_line_that_waits_for_another_has_its_own_time(self, desk):
        desk.vendor.latency = 0.2
        patient = [{"id": f"b{n}", "prompt": "same", "timeout": 30} for n in range(3)]
        desk.ask([{"id": "a", "prompt": "same", "timeout": 0.05}, *patient])
        await desk.run()
        assert desk.failures() == {"a": "deadline_exceeded"}
        assert desk.answers() == {f"b{n}": "answer to same" for n in range(3)}

    async def test_an_input_that_changes_meanwhile_ends_the_job(self, desk):
        desk.vendor.latency = 0.01
        desk.ask(lines(1000))
        before = desk.input.read_text()
        async with desk.opened() as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.totals.done >= 3)
            desk.input.write_text(before + json.dumps({"id": "new", "prompt": "new"}) + "\n")
            await running
        assert job.stopping == f"{desk.input} has changed while it was read"
        assert "new" not in desk.asked()
        desk.input.write_text(before)
        await desk.run(concurrency=50)
        assert desk.answers() == expected(1000)


class TestDisk:
    async def test_lost_answers_are_reported_and_requested_again(self, desk, monkeypatch):
        """The disk is full for a while; see test_records.py for what a real one leaves."""
        whole = Journal.append
        full = [False]

        def append(journal, record):
            if full[0]:
                raise JournalError(f"{journal.path} cannot be written: No space left on device.")
            return whole(journal, record)

        monkeypatch.setattr(Journal, "append", append)
        desk.vendor.latency = 0.02
        desk.ask(lines(30))
        async with desk.opened() as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.totals.done >= 5)
            full[0] = True
            with pytest.raises(JournalError, match=r"\d answers could not be written"):
                await running
            assert "No space left on device" in job.stopping
            assert 1 <= job.lost <= 8
        full[0] = False
        await desk.run()
        assert desk.answers() == expected(30)


async def test_a_timeout_for_all_lines_bounds_each_and_not_the_job(desk):
    desk.vendor.behave(Fault.hang())
    desk.ask(lines(4))
    job = await desk.run(shared={"timeout": 0.3}, concurrency=1)
    assert desk.failures()["r0"] == "deadline_exceeded"
    assert (job.complete, job.totals.done) == (True, 4)


async def test_no_prompt_is_in_the_errors_file_or_the_manifest(desk):
    desk.vendor.behave(Fault.bad_request("secret from the vendor"), Fault.server_error())
    desk.ask([{"id": 1, "prompt": "secret one"}, {"id": 2, "prompt": "secret two"}])
    await desk.run(shared={"system": "secret three"}, concurrency=1)
    assert "secret" not in desk.errors.read_text()
    assert "secret" not in manifest_path(desk.output).read_text()


async def test_check_sends_nothing(desk):
    async with AsyncGateway([desk.vendor.config()]) as gateway:
        request = gateway.check("hi", system="s", temperature=0, timeout=3)
        assert (request.messages[-1]["content"], request.timeout) == ("hi", 3)
        assert gateway.get_metrics()["total_requests"] == 0
    assert desk.asked() == []
