"""A batch on Ray: the rows of a dataset are answered by several processes, or machines.

Each actor has a gateway of its own. With `redis_url` they share limits, circuits and answers.
"""

from __future__ import annotations

from pathlib import Path

import ray

from aigateway.ray import Ask

REVIEWS = Path(__file__).parent / "batch_csv" / "reviews.csv"
ACTORS = 2


def main() -> None:
    """Answer each row, and print where the answers come from.

    Ray reads the providers where the actors run: give them the same environment, as
    `ray.init(runtime_env={"env_vars": ...})` does, or the same `aigateway.toml`.
    """
    answered = ray.data.read_csv(str(REVIEWS)).map_batches(
        Ask,
        fn_constructor_kwargs={
            "prompt_column": "review",
            "system": "Answer this review in one friendly sentence.",
            "max_tokens": 100,
            "timeout": 60,
        },
        concurrency=ACTORS,
        num_cpus=0.1,  # of each: it waits for the network
        batch_size=256,
    )
    for row in answered.take_all():  # of a large dataset: `write_parquet`
        print(row["id"], row["provider"], row["error_code"] or row["answer"])


if __name__ == "__main__":
    main()
