"""What a start costs: CPU time of importing, as medians of interleaved fresh processes.

python benchmarks/start.py [rounds]
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys

CASES = {
    "python itself": "pass",
    "import aigateway": "import aigateway",
    "from aigateway import AsyncGateway": "from aigateway import AsyncGateway",
    "import aiohttp": "import aiohttp",
    "import openai": "import openai",
    "import litellm": "import litellm",
}


def cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Without the variable, litellm would wait for its price map from the network.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for code in CASES.values():
        cpu_seconds(code)  # bytecode and page cache
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, code in CASES.items():
            times[name].append(cpu_seconds(code))
    base = statistics.median(times["python itself"])
    print(f"{'':36} CPU ms   over python itself   (median of {rounds}; min to max)")
    for name, values in times.items():
        middle = statistics.median(values)
        print(
            f"{name:36} {middle * 1000:6.0f}   {(middle - base) * 1000:6.0f}"
            f"{'':15}({min(values) * 1000:.0f} to {max(values) * 1000:.0f})"
        )


if __name__ == "__main__":
    main()
