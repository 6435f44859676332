"""`Ask`: answers in your own Ray Data pipelines. For files there is `aigateway batch --engine ray`.

It needs no Ray to be imported or called; a batch is whatever `map_batches` gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aigateway.errors import ConfigurationError, RequestRejectedError, error_words
from aigateway.gateway import AsyncGateway
from aigateway.messages import BatchItem
from aigateway.options import Concurrency
from aigateway.settings import GatewaySettings, LLMConfig
from aigateway.sync import BackgroundGateway

__all__ = ["Ask"]

_TEXTS = ("answer", "provider", "finish_reason", "error_code", "error_message")
_TOKENS = ("prompt_tokens", "completion_tokens")


class Ask:
    """Answers the rows of batches; a class for `Dataset.map_batches`.

        ds.map_batches(
            Ask,
            fn_constructor_kwargs={"providers": providers, "max_tokens": 100},
            concurrency=2,  # actors, each with a gateway of its own
            batch_size=256,
        )

    A batch may be a dict of NumPy arrays or of lists, a pandas DataFrame or an Arrow table; the
    answer is of the same kind, with these columns more: `answer`, `provider`, `finish_reason`,
    `cost_usd`, `prompt_tokens`, `completion_tokens`, `cached`, `error_code` and `error_message`.
    A row that cannot be answered has an error, and raises nothing: its code is one of those in the
    errors file of `aigateway batch`. With a pydantic model as `response_format`, `parsed` has the
    fields of the answer.

    Args:
        providers: The providers; None reads `aigateway.toml` and the environment of the actor.
        settings: The gateway's settings; None reads the same places.
        prompt_column: The column with prompts.
        messages_column: Or the column with lists of messages.
        option_columns: Columns with options of `chat` that have the column's name. A value that is
            None is left out.
        output_prefix: Begins the names of the new columns.
        concurrency: Requests in flight at once in one actor, or "auto".
        outage_patience: As for `AsyncGateway.batch`.
        **options: Options of `chat` for all rows.

    Raises:
        ConfigurationError: A setting cannot work.
        RequestRejectedError: An option is invalid.
    """

    def __init__(
        self,
        providers: Iterable[LLMConfig] | None = None,
        *,
        settings: GatewaySettings | None = None,
        prompt_column: str = "prompt",
        messages_column: str | None = None,
        option_columns: Sequence[str] = (),
        output_prefix: str = "",
        concurrency: Concurrency = 16,
        outage_patience: float | None = 300.0,
        **options: Any,
    ) -> None:
        gateway = AsyncGateway(providers, settings=settings)
        gateway.check("any prompt", **options)
        self._column = prompt_column if messages_column is None else messages_column
        self._field = "prompt" if messages_column is None else "messages"
        self._option_columns = tuple(option_columns)
        self._prefix = output_prefix
        self._concurrency = concurrency
        self._patience = outage_patience
        self._options = options
        self._background = BackgroundGateway(gateway)

    def __call__(self, batch: Any) -> Any:
        """Answer a batch.

        Raises:
            ConfigurationError: The batch lacks a column, or has one that would be overwritten.
        """
        columns = _columns(batch)
        needed = (self._column, *self._option_columns)
        missing = [name for name in needed if name not in columns]
        if missing:
            raise ConfigurationError(
                f"The batch has no column {missing[0]!r}; it has: {', '.join(columns)}."
            )
        requests = [
            {self._field: prompt, **dict(zip(self._option_columns, options, strict=True))}
            for prompt, *options in zip(*(columns[name] for name in needed), strict=True)
        ]
        found = self._answered(requests)
        taken = [name for name in found if name in columns]
        if taken:
            raise ConfigurationError(
                f"The batch has a column {taken[0]!r} already: give output_prefix."
            )
        return _with_columns(batch, found)

    def close(self) -> None:
        """Cancel requests, and close the gateway's connections. The end of the process does so."""
        self._background.close()

    def _answered(self, requests: list[dict[str, Any]]) -> dict[str, list[Any]]:
        work = self._background.gateway.batch(
            requests,
            concurrency=self._concurrency,
            outage_patience=self._patience,
            **self._options,
        )
        rows = [_row(item) for item in self._background.run(work).items]
        names = [*_TEXTS, "cost_usd", *_TOKENS, "cached"]
        if isinstance(self._options.get("response_format"), type):
            names.append("parsed")
        return {self._prefix + name: [row[name] for row in rows] for name in names}


def _row(item: BatchItem) -> dict[str, Any]:
    response = item.response
    if response is None:
        assert item.error is not None  # noqa: S101 - an item has one of the two
        code, message = error_words(item.error)
        row: dict[str, Any] = dict.fromkeys((*_TEXTS, "cost_usd", "parsed"))
        return (
            row
            | dict.fromkeys(_TOKENS, 0)
            | {
                "cached": False,
                "error_code": code,
                "error_message": message,
            }
        )
    return {
        "answer": response.text,
        "provider": response.provider,
        "finish_reason": response.finish_reason,
        "error_code": None,
        "error_message": None,
        "cost_usd": response.cost_usd,
        "prompt_tokens": response.usage.prompt_tokens,
        "completion_tokens": response.usage.completion_tokens,
        "cached": response.cached or response.coalesced,
        "parsed": None if response.parsed is None else response.parsed.model_dump(mode="json"),
    }


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


def _columns(batch: Any) -> dict[str, list[Any]]:
    """Return the columns of a batch as lists of plain values."""
    if hasattr(batch, "to_pydict"):  # an Arrow table
        columns: dict[str, list[Any]] = batch.to_pydict()
        return columns
    if hasattr(batch, "to_dict"):  # a DataFrame
        return {str(name): _plain(batch[name]) for name in batch.columns}
    if isinstance(batch, Mapping):
        return {name: _plain(values) for name, values in batch.items()}
    raise RequestRejectedError(
        "A batch is a dict of columns, a pandas DataFrame or an Arrow table, not"
        f" {type(batch).__name__}."
    )


def _plain(values: Any) -> list[Any]:
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    plain = [value.tolist() if hasattr(value, "tolist") else value for value in listed]
    return [_without_float(value) for value in plain]


def _without_float(value: Any) -> Any:
    """Return None for NaN, and a whole number as one: pandas has no whole numbers beside None."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else int(value) if value.is_integer() else value


def _with_columns(batch: Any, columns: Mapping[str, list[Any]]) -> Any:
    """Return a batch of the same kind with these columns more."""
    if hasattr(batch, "to_pydict"):
        from pyarrow import array  # noqa: PLC0415 - there, if the batch is

        for name, values in columns.items():
            batch = batch.append_column(name, array(values, _arrow_type(name)))
        return batch
    if hasattr(batch, "to_dict"):
        return batch.assign(**{name: _numpy(name, values) for name, values in columns.items()})
    if any(hasattr(values, "dtype") for values in batch.values()):
        return {**batch, **{name: _numpy(name, values) for name, values in columns.items()}}
    return {**batch, **columns}


def _arrow_type(name: str) -> Any:
    """Return the type of a column, which is the same if all its values are None."""
    import pyarrow  # noqa: PLC0415, ICN001 - there, if the batch is

    if name.endswith(_TEXTS):
        return pyarrow.string()
    if name.endswith("cost_usd"):
        return pyarrow.float64()
    if name.endswith(_TOKENS):
        return pyarrow.int64()
    return None if name.endswith("parsed") else pyarrow.bool_()


def _numpy(name: str, values: list[Any]) -> Any:
    import numpy as np  # noqa: PLC0415 - there, if the batch is

    if name.endswith((*_TEXTS, "parsed")):
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    return np.array(values, dtype=float if name.endswith("cost_usd") else None)
