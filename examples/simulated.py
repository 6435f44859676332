"""Run a command in front of simulated vendors, the first of which is down. It needs no key.

    python examples/simulated.py python examples/extract.py

The command finds the vendors as it finds real ones: by OPENAI_API_KEY and the like, which this
program sets. How many requests each vendor got is printed at the end, to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Collection

from aigateway.simulator import Answer, Fault, Received, Simulator, ToolCall
from aigateway.simulator.serve import environment

INVOICE = {"number": "2026-117", "supplier": "Nordlys AS", "total": 1240.5, "currency": "NOK"}
TOOL_RESULT = "4 degrees"
ANSWERS: dict[str, Answer] = {
    TOOL_RESULT: Answer("Take a coat: it has 4 degrees in Oslo, and rain."),
    "a coat in Oslo": Answer(tool_calls=(ToolCall("weather", {"city": "Oslo"}),)),
    "Invoice 2026-117": Answer(json.dumps(INVOICE)),
    "2+2": Answer("4"),
    "How long is the guarantee": Answer("Five years, for the lamp but not for the bulb."),
    "broke after a week": Answer('{"sentiment": "negative", "topic": "quality"}'),
    "came a day early": Answer('{"sentiment": "positive", "topic": "delivery"}'),
    "It is a lamp": Answer('{"sentiment": "neutral", "topic": "other"}'),
}
"""What the vendors say to a request that has one of these texts, the first one found."""


def answer(received: Received) -> Answer:
    """Return the answer to a request, in whichever vendor's protocol it is."""
    text = json.dumps(received.body, ensure_ascii=False)
    fitting = (said for known, said in ANSWERS.items() if known in text)
    return next(fitting, Answer("This answer is simulated."))


def prepare(simulator: Simulator, down: Collection[str]) -> None:
    """Give the vendors their answers and faults."""
    for vendor in simulator.vendors:
        vendor.answer(answer)
        if vendor.name in down or "all" in down:
            vendor.behave(Fault.server_error())
    if simulator.azure.fault is None:  # it breaks when a tool has run: another vendor goes on
        simulator.azure.behave(Fault.bad_prompt(TOOL_RESULT))


async def run(command: list[str], down: list[str]) -> int:
    """Run the command to its end, and return its exit code."""
    async with Simulator() as simulator:
        prepare(simulator, down)
        variables = {**os.environ, **dict(environment(simulator))}
        process = await asyncio.create_subprocess_exec(*command, env=variables)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal sends it to both
        loop.add_signal_handler(signal.SIGTERM, process.terminate)
        code = await process.wait()
        for vendor in simulator.vendors:
            state = " (down)" if vendor.name in down or "all" in down else ""
            print(f"# {vendor.name}{state}: {vendor.request_count} requests", file=sys.stderr)
        return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--down", action="append", help='a vendor, or "all"; default: openai')
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    sys.exit(asyncio.run(run(options.command, options.down or ["openai"])))
