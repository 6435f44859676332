"""A job over a simulated vendor: lines in, records out."""

import contextlib
import json
from dataclasses import replace

from aigateway import AsyncGateway
from aigateway.batch.files.index import Index
from aigateway.batch.files.input import RowFormat, Source
from aigateway.batch.files.job import Job, JobInput, JobOptions
from aigateway.batch.files.paths import JobFiles, JobPaths
from aigateway.batch.files.survey import survey


class Desk:
    """Runs jobs of one input and one output.

    Attributes:
        vendor: Answers the requests.
        problems: Those that the survey of the latest run found.
        job: The latest.
    """

    def __init__(self, folder, vendor):
        self.vendor = vendor
        self.input = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"
        self.problems = []
        self.job = None
        vendor.answer(lambda received: f"answer to {prompt_of(received)}")

    def ask(self, lines):
        self.input.write_text("".join(json.dumps(line) + "\n" for line in lines))

    @contextlib.asynccontextmanager
    async def opened(self, *, resume=True, ask_failed=False, settings=None, **options):
        how = replace(JobOptions(concurrency=4, outage_patience=0.0), **options)
        settings = {"retry_rounds": 0} | (settings or {})
        source = Source(self.input, RowFormat(), 10_000)
        async with AsyncGateway([self.vendor.config()], **settings) as gateway:
            await gateway.warmup()
            with contextlib.closing(Index()) as index:
                found = await survey(source, gateway.check, how.shared, index)
                self.problems = found.problems
                files = await JobFiles.open(
                    JobPaths.of(self.input, self.output, self.errors),
                    source,
                    how.shared,
                    resume=resume,
                    ask_failed=ask_failed,
                )
                with contextlib.closing(files):
                    given = JobInput(source, index, found.total)
                    self.job = await Job.open(gateway, given, files, how)
                    yield self.job

    async def run(self, **how):
        async with self.opened(**how) as job:
            await job.run()
        return job

    def asked(self):
        return [prompt_of(received) for received in self.vendor.received]

    def answers(self):
        return {r["custom_id"]: text_of(r) for r in records(self.output)}

    def failures(self):
        if not self.errors.exists():
            return {}
        return {r["custom_id"]: r["error"]["code"] for r in records(self.errors)}


def prompt_of(received):
    return received.body["messages"][-1]["content"]


def text_of(record):
    return record["response"]["body"]["choices"][0]["message"]["content"]


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
