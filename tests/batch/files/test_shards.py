"""Jobs over several workers: what is asked, what is lost, and how they go on elsewhere."""

import asyncio
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from aigateway.batch.files.input import RowFormat, Shard, Source
from aigateway.batch.files.output import Journal, JournalError, encoded
from aigateway.batch.files.parts import ShardPart
from aigateway.batch.files.paths import parts_folder
from aigateway.batch.files.totals import JobLimits
from aigateway.simulator import Fault
from tests.batch.files.desk import prompt_of, records
from tests.batch.files.workers import ShardDesk
from tests.gateways import until
from tests.processes import PATIENCE

FRESH = {"cache_enabled": False}


def lines(count, **more):
    return [{"id": f"r{n}", "prompt": f"p{n}", **more} for n in range(count)]


def expected(count):
    return {f"r{n}": f"answer to p{n}" for n in range(count)}


@pytest.fixture
def shards(desk):
    return ShardDesk(desk)


def table(path, count):
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = {"id": [f"r{n}" for n in range(count)], "prompt": [f"p{n}" for n in range(count)]}
        parquet.write_table(pa.table(columns), path, row_group_size=60)
    elif path.suffix == ".csv":
        rows = [f'r{n},"p{n}\n,"' for n in range(count)]  # a line end inside of a field
        path.write_text("\n".join(["id,prompt", *rows]))
    else:
        rows = [json.dumps({"id": f"r{n}", "prompt": f"p{n}"}) for n in range(count)]
        gaps = ("\n", "\n\n", "\n \n")
        path.write_text("\ufeff" + "".join(row + gaps[n % 3] for n, row in enumerate(rows)))


class TestWhatIsRead:
    @pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
    def test_shards_together_are_the_input(self, tmp_path, suffix):
        path = tmp_path / f"in{suffix}"
        table(path, 700)
        whole = Source(path, RowFormat(), 10_000)
        found, places = [], {}
        for line in whole.lines():
            found.append(line)
            places[line.number] = whole.offset
        for size in (1, 59, 256, 700):
            parts: list[object] = []
            for begin in range(0, 700, size):
                first, last = found[begin].number, found[begin : begin + size][-1].number
                shard = Shard(0, places[first], first, last)
                parts += Source(path, RowFormat(), 10_000, shard).lines()
                if size == 1 and begin > 30:
                    break
            assert parts == found[: len(parts)]
        assert len(parts) == 700
        left_out = frozenset({found[11].number, found[13].number})
        shard = Shard(0, places[found[10].number], found[10].number, found[14].number, left_out)
        some = Source(path, RowFormat(), 10_000, shard).lines()
        assert list(some) == [found[10], found[12], found[14]]

    @pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
    def test_a_shard_needs_no_line_before_or_after_it(self, tmp_path, suffix):
        path = tmp_path / f"in{suffix}"
        table(path, 300)
        path.write_text(re.sub(r"p(\d)", r"ä\1", path.read_text()))
        whole = Source(path, RowFormat(), 10_000)
        places = [whole.offset for _ in whole.lines()]
        found = list(whole.lines())
        shard = Shard(0, places[100], found[100].number, found[199].number)
        content = bytearray(path.read_bytes())
        content[places[0] : places[100]] = b'"' * (places[100] - places[0])
        content[places[200] :] = b"\xff" * (len(content) - places[200])
        path.write_bytes(content)
        assert list(Source(path, RowFormat(), 10_000, shard).lines()) == found[100:200]

    async def test_the_output_is_that_of_one_process(self, desk, shards):
        bad = [{"id": "r3", "prompt": "again"}, {"id": "empty", "prompt": ""}]
        desk.ask([*lines(300), *bad, {"id": "twin", "prompt": "p1"}])
        await desk.run()
        alone = (desk.answers(), desk.failures())
        desk.output.rename(desk.output.with_name("alone.jsonl"))
        desk.errors.unlink()
        job = await shards.run(settings=FRESH)
        assert (desk.answers(), desk.failures()) == alone
        assert (job.complete, job.totals.answered, job.totals.failed) == (True, 301, 2)
        assert job.totals.providers["openai/gpt-4o-mini"].answers == len(desk.asked()) - 300
        assert all(worker.shards for worker in shards.workers)
        assert not parts_folder(desk.output).exists()

    async def test_identical_lines_of_a_shard_are_asked_once(self, desk, shards):
        desk.vendor.latency = 0.01
        desk.ask([{"id": f"r{n}", "prompt": f"p{n // 2}"} for n in range(100)])
        job = await shards.run(settings=FRESH)
        assert sorted(desk.asked()) == sorted(f"p{n}" for n in range(50))
        assert (job.totals.answered, job.totals.cached) == (100, 50)


async def test_lost_workers_lose_only_what_is_in_flight(desk, shards):
    rng = random.Random(16)
    desk.vendor.latency = 0.004
    desk.ask(lines(600))
    most_in_flight = 0
    async with shards.opened(settings=FRESH) as job:
        running = asyncio.create_task(job.run())
        for _ in range(6):
            enough = job.totals.done + rng.randrange(1, 80)
            await until(lambda enough=enough: job.totals.done >= enough or running.done())
            most_in_flight += 8  # each worker ends one shard while it works on the next
            await rng.choice(shards.workers).lose()
        await running
    assert sum(worker.lives for worker in shards.workers) == 8
    assert desk.answers() == expected(600)
    assert len(records(desk.output)) == 600
    assert len(desk.asked()) <= 600 + most_in_flight
    assert job.complete


async def test_a_worker_that_hangs_is_started_again(desk, shards):
    desk.vendor.behave(*[None] * 20, *[Fault.hang()] * 4, times=24)
    desk.ask(lines(100))
    async with shards.opened(workers=1, settings=FRESH) as job:
        running = asyncio.create_task(job.run())
        await until(lambda: desk.vendor.request_count == 24)
        usual, job.hang_seconds = job.hang_seconds, 0.1
        shards.workers[0].hangs = True
        await until(lambda: shards.workers[0].lives == 2)
        job.hang_seconds = usual
        await running
    assert shards.workers[0].lives == 2
    assert desk.answers() == expected(100)
    assert desk.vendor.request_count == 104


async def test_the_last_shard_is_lost_while_no_other_is_found(desk, shards):
    desk.vendor.behave(*[Fault.hang()] * 3, times=3)
    desk.ask(lines(3))
    read_on = asyncio.Event()
    async with shards.opened(workers=1, settings=FRESH) as job:

        async def with_a_long_tail(cut):
            async for shard in cut:
                yield shard
            await read_on.wait()  # as if many lines followed that are done

        job._shards = with_a_long_tail(job._shards)
        running = asyncio.create_task(job.run())
        await until(lambda: desk.vendor.request_count == 3 and job.in_flight)
        await asyncio.sleep(0.1)
        await shards.workers[0].lose()
        await until(lambda: job.totals.done == 0 and not job.in_flight)
        read_on.set()
        await asyncio.wait_for(running, PATIENCE)
    assert desk.answers() == expected(3)


async def test_the_next_shard_begins_before_the_last_answer_of_the_one_before(desk, shards):
    desk.vendor.behave(*[None] * 99, Fault.hang(), times=100)
    desk.ask(lines(400))
    async with shards.opened(workers=1, settings=FRESH) as job:
        running = asyncio.create_task(job.run())
        await until(lambda: desk.vendor.request_count > 150)
        assert len(shards.workers[0].shards) > 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert job.totals.done > 99


async def test_what_a_worker_answered_before_it_was_cut_off_is_not_asked_again(
    desk, shards, simulator
):
    here, there = desk.vendor, simulator.anthropic
    here.latency, there.latency = 0.01, 0.1
    there.answer(lambda received: f"answer to {prompt_of(received)[0]['text']}")
    desk.ask(lines(300))
    async with shards.opened(settings=FRESH, outage_patience=60.0) as job:
        shards.workers[0].work = replace(shards.work, configs=[there.config()])
        running = asyncio.create_task(job.run())
        await until(lambda: there.request_count > 20 and here.request_count > 20)
        await until(lambda: job.gateway.statuses["worker 1"].providers)
        there.behave(Fault.status(401), times=1000)
        await asyncio.wait_for(running, PATIENCE)
    assert (desk.answers(), desk.failures()) == (expected(300), {})
    by_there = [r for r in records(desk.output) if "claude" in r["aigateway"]["provider"]]
    assert len(by_there) >= 17
    assert here.request_count == 300 - len(by_there)
    assert len(shards.workers[0].shards) <= 2


async def test_a_shard_that_ends_every_worker_ends_the_job(desk, shards):
    desk.vendor.behave(Fault.hang())
    desk.ask(lines(4))
    async with shards.opened() as job:
        running = asyncio.create_task(job.run())
        for life in range(5):
            await until(
                lambda life=life: (
                    len(shards.workers[0].shards) + len(shards.workers[1].shards) > life
                    and job.in_flight
                )
            )
            for worker in shards.workers:
                await worker.lose()
        await running
    assert "were handed out 5 times without an answer" in job.stopping


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"changed_at": 1_000_000}, "sees another file"),
        ({"size": 1}, "sees another file"),
        ({"folder": Path("elsewhere")}, "does not see the folder"),
        ({"output": Path("elsewhere")}, "is not seen on another"),
    ],
)
async def test_a_worker_that_sees_other_files_ends_the_job(
    desk, shards, tmp_path, monkeypatch, wrong, message
):
    monkeypatch.chdir(tmp_path)
    desk.ask(lines(10))
    async with shards.opened(workers=1, settings=FRESH) as job:
        shards.workers[0].work = replace(shards.work, **wrong)
        await job.run()
    assert message in job.stopping
    assert desk.vendor.request_count == 0


class TestResumed:
    @pytest.mark.parametrize("then", ["alone", "together"])
    async def test_the_parts_of_a_killed_run_come_first(self, desk, shards, then):
        desk.ask(lines(120))
        desk.vendor.latency = 0.01
        refused = Fault.content_policy()
        desk.vendor.behave(*[None] * 10, refused, Fault.status(500), times=12)
        async with shards.opened(workers=1, concurrency=1, settings=FRESH) as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.totals.done >= 20)
            folder = parts_folder(desk.output)
            kept = {path.name: path.read_bytes() for path in folder.iterdir()}
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        # As a SIGKILL leaves it: nothing is moved, and the last line is torn.
        desk.output.write_bytes(b"")
        desk.errors.unlink()
        folder.mkdir()
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        with (folder / "000000.jsonl").open("ab") as file:
            file.write(b'{"id": "batch_req_')
        done = {r["custom_id"] for r in records_of(kept["000000.jsonl"])}
        assert len(done) >= 18
        desk.vendor.clear()
        run = desk.run if then == "alone" else shards.run
        job = await run(settings=FRESH)
        assert desk.failures() == {"r10": "content_policy"}
        assert desk.answers() == {k: v for k, v in expected(120).items() if k != "r10"}
        assert {f"p{name[1:]}" for name in done} & set(desk.asked()) == set()
        assert "p10" not in desk.asked()
        assert "p11" in desk.asked()
        assert job.totals.earlier == len(done) + 1
        assert not folder.exists()

    async def test_a_part_is_moved_once(self, desk, shards):
        desk.ask(lines(60))
        await desk.run()
        folder = parts_folder(desk.output)
        folder.mkdir()
        some = [encoded(record) for record in records(desk.output)[:30]]
        ShardPart.of(folder, 7).answers.write_bytes(b"".join(some))
        asked = desk.vendor.request_count
        job = await shards.run()
        assert (job.totals.done, job.totals.earlier) == (60, 60)
        assert len(records(desk.output)) == 60
        assert desk.vendor.request_count == asked
        assert not folder.exists()

    async def test_without_resume_a_part_is_not_overwritten(self, desk):
        desk.ask(lines(3))
        folder = parts_folder(desk.output)
        folder.mkdir()
        ShardPart.of(folder, 0).answers.write_text("{}\n")
        with pytest.raises(Exception, match=re.escape("already exists. Continue it with --resume")):
            await desk.run(resume=False)


class TestTheEnd:
    async def test_stopped_it_finishes_what_is_in_flight(self, desk, shards):
        desk.vendor.latency = 0.02
        desk.ask(lines(400))
        async with shards.opened(settings=FRESH) as job:
            running = asyncio.create_task(job.run())
            await until(lambda: job.totals.done >= 20)
            job.stop("terminated")
            await running
        assert job.stopping == "terminated"
        assert 20 <= len(desk.answers()) == desk.vendor.request_count < 400
        await desk.run(settings=FRESH)
        assert desk.answers() == expected(400)
        assert desk.vendor.request_count == 400

    async def test_cancelled_it_keeps_what_is_answered(self, desk, shards):
        desk.vendor.behave(*[None] * 30, *[Fault.hang()] * 400, times=430)
        desk.ask(lines(400))
        async with shards.opened(settings=FRESH) as job:
            running = asyncio.create_task(job.run())
            await until(lambda: desk.vendor.request_count >= 38)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert len(desk.answers()) == 30
        assert not parts_folder(desk.output).exists()

    async def test_limits_hold_for_all_workers(self, desk, shards):
        desk.vendor.latency = 0.01
        desk.ask(lines(400))
        job = await shards.run(limits=JobLimits(max_failures=3), settings=FRESH)
        assert job.complete
        price = job.totals.cost_usd / 400
        desk.output.unlink()
        desk.vendor.clear()
        job = await shards.run(limits=JobLimits(max_cost=50 * price), settings=FRESH)
        assert job.stopping.startswith("--max-cost")
        assert 46 <= len(desk.answers()) <= 50 + 8
        job = await shards.run(limits=JobLimits(max_cost=80 * price), settings=FRESH)
        assert 76 <= len(desk.answers()) <= 80 + 8  # earlier runs count

    async def test_an_outage_ends_it(self, desk, shards):
        desk.vendor.behave(*[None] * 10, *[Fault.status(500)] * 500)
        desk.ask(lines(300))
        job = await shards.run(settings=FRESH)
        assert job.stopping.startswith("no provider is available any more")
        assert len(desk.answers()) == 10

    async def test_a_disk_that_is_full_keeps_the_parts(self, desk, shards, monkeypatch):
        desk.ask(lines(200))
        async with shards.opened(settings=FRESH) as job:
            append = Journal.append

            def full(self, record):
                if self.path == desk.output:
                    raise JournalError(f"{desk.output} cannot be written: No space left on device.")
                return append(self, record)

            monkeypatch.setattr(Journal, "append", full)
            with pytest.raises(JournalError, match="Answers are kept in"):
                await job.run()
            monkeypatch.undo()
        asked = desk.vendor.request_count
        await desk.run(settings=FRESH)
        assert desk.answers() == expected(200)
        assert desk.vendor.request_count == 200 >= asked


def records_of(content):
    return [json.loads(line) for line in content.splitlines() if line.endswith(b"}")]
