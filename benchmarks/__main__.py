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
    "sessions",
    "overhead",
    "stream",
    "batch",
    "serve",
    "profile",
    "cache",
    "breaker",
    "loop",
    "start",
    "fleet",
    "ray",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}")
    parser.add_argument(
        "--quick", action="store_true", help="only show that it works; nothing is written"
    )
    storm = parser.add_argument_group("storm")
    storm.add_argument(
        "--only", action="append", metavar="ROW", help="rows whose names begin so; may be repeated"
    )
    storm.add_argument("--json", type=Path, metavar="FILE", help="write figures, one row a line")
    storm.add_argument("--before", type=Path, metavar="FILE", help="such a file, to compare with")
    storm.add_argument("--real-time", action="store_true", help="an ordinary clock; takes long")
    given = parser.parse_args()
    unknown = set(given.names) - set(NAMES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    quiet()
    only = tuple(given.only or ())
    options = Options(given.quick, only, given.json, given.before, given.real_time)
    for name in given.names or NAMES:
        _run(name, options)


def _run(name: str, options: Options) -> None:
    began = time.perf_counter()
    result = asyncio.run(importlib.import_module(f"benchmarks.{name}").run(options))
    print(f"\n# {name} ({time.perf_counter() - began:.0f} s)\n\n{result.how}\n")
    print("\n\n".join(table.markdown() for table in result.tables), flush=True)
    if not options.partial:
        write(result)


def quiet() -> None:
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
