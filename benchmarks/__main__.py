"""`python -m benchmarks [--quick] [name ...]`: all benchmarks, or the ones named."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import time
import warnings
from pathlib import Path

import litellm

from benchmarks.options import Options
from benchmarks.report import write

NAMES = (
    "failover",
    "hang",
    "tail",
    "storm",
    "overhead",
    "stream",
    "batch",
    "serve",
    "cache",
    "breaker",
    "loop",
    "start",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}")
    parser.add_argument(
        "--quick", action="store_true", help="only show that it works; nothing is written"
    )
    given = parser.parse_args()
    unknown = set(given.names) - set(NAMES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    _quiet()
    for name in given.names or NAMES:
        _run(name, Options(quick=given.quick))


def _run(name: str, options: Options) -> None:
    began = time.perf_counter()
    result = asyncio.run(importlib.import_module(f"benchmarks.{name}").run(options))
    print(f"\n# {name} ({time.perf_counter() - began:.0f} s)\n\n{result.how}\n")
    print("\n\n".join(table.markdown() for table in result.tables), flush=True)
    if not options.quick:
        write(result)


def _quiet() -> None:
    """Libraries print about failures that are made on purpose; ours logs at INFO, to nowhere."""
    warnings.simplefilter("ignore")
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "asyncio", "httpx", "openai"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ours = logging.getLogger("aigateway")
    ours.addHandler(logging.StreamHandler(Path(os.devnull).open("w", encoding="utf-8")))  # noqa: SIM115 - lives on
    ours.setLevel(logging.INFO)
    ours.propagate = False


if __name__ == "__main__":
    main()
