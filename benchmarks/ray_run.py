"""`python -m benchmarks.ray_run COUNT FOLDER ROOT ACTORS`: Ray Data's HTTP processor over a file.

Reads FOLDER/in.jsonl and writes FOLDER/answers. The file asks for one prompt a line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
import ray.data
from ray.data.llm import HttpRequestProcessorConfig, build_processor

from benchmarks.batch_run import KEY, MODEL, messages

CONCURRENCY = 64


def main() -> None:
    count, folder, root, actors = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    ray.init(
        "local",
        num_cpus=max(2, actors),
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=200_000_000,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = HttpRequestProcessorConfig(
        url=f"{root}/v1/chat/completions",
        headers={"Authorization": f"Bearer {KEY}"},
        batch_size=CONCURRENCY,
        concurrency=actors,
    )
    ask = build_processor(config, preprocess=_request, postprocess=_answer)
    # As many blocks as `aigateway batch` makes shards for so many actors.
    rows = ray.data.read_json(str(folder / "in.jsonl"), override_num_blocks=min(count, 4 * actors))
    ask(rows).write_json(str(folder / "answers"))
    ray.shutdown()


def _request(row: dict[str, Any]) -> dict[str, Any]:
    return {"payload": {"model": MODEL, "messages": messages(row["prompt"])}, "id": row["id"]}


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "text": row["http_response"]["choices"][0]["message"]["content"]}


if __name__ == "__main__":
    main()
