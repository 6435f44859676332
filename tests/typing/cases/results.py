"""What comes back: items of batches, events, metrics, states. Marked as in `calls.py`."""

from __future__ import annotations

from typing import Any, Literal, assert_type

from pydantic import BaseModel

from aigateway import (
    AnsweredItem,
    AsyncGateway,
    BatchItem,
    BatchResult,
    ChatResponse,
    CircuitState,
    Event,
    FailedItem,
    FailureKind,
    GatewayMetrics,
    get_gateway_metrics,
)
from aigateway.events import AttemptEnded, CircuitChanged, ProviderDegraded, RequestEnded


class City(BaseModel):
    name: str


async def batches(gateway: AsyncGateway, rows: list[dict[str, Any]]) -> None:
    result = await gateway.batch(["a"], response_format=City, concurrency="auto", timeout=60)
    assert_type(result, BatchResult[City])
    assert_type([each.parsed for each in result.responses], list[City])
    for item in result:
        if item.error is None:
            assert_type(item, AnsweredItem[City])
            assert_type(item.response.parsed, City)
        else:
            assert_type(item, FailedItem)
            assert_type(item.error, Exception)
        item.response.text  # error
        assert_type(item.response.text if item.error is None else item.error, str | Exception)
    mapped = await gateway.map("{a}", rows, response_format=City, fail_fast=True)
    assert_type(mapped.failed, tuple[FailedItem, ...])
    async for item in gateway.as_completed(rows, response_format=City, outage_patience=None):
        assert_type(item, AnsweredItem[City] | FailedItem)
    assert_type(await gateway.batch(["a"]), BatchResult[Any])  # each may have its own format
    await gateway.batch(["a"], concurrency="max")  # error
    await gateway.batch(["a"], concurency=3)  # error
    gateway.as_completed(["a"], fail_fast=True)  # error
    await gateway.map("{a}", rows, temprature=0)  # error


def ended(item: BatchItem, typed: BatchItem[City]) -> None:
    if item.ok is True:
        assert_type(item.response.text, str)
    if typed.ok:
        typed.response.text  # error: pyright
    else:
        typed.error.args  # error: pyright
    if isinstance(typed, FailedItem):
        assert_type(typed.error, Exception)
    else:
        assert_type(typed.response, ChatResponse[City])
    match typed:
        case AnsweredItem(response=response):
            assert_type(response.parsed, City)
        case FailedItem(error=error):
            assert_type(error, Exception)


class Listener:
    def on_event(self, event: Event) -> None:
        if event.name == "attempt.ended":
            assert_type(event, AttemptEnded)
            assert_type(event.failure, FailureKind | None)
        match event.name:
            case "circuit.opened" | "circuit.closed":
                assert_type(event, CircuitChanged)
            case "provider.degraded":
                assert_type(event, ProviderDegraded)
                assert_type(event.reason, Literal["errors", "latency"])
            case "request.ended":
                assert_type(event, RequestEnded)
                event.provder  # error
            case _:
                event.latency_seconds  # error


class Deaf:
    def on_events(self, event: Event) -> None: ...


def figures(gateway: AsyncGateway) -> None:
    AsyncGateway(hooks=[Listener()])
    AsyncGateway(hooks=[Deaf()])  # error
    metrics = gateway.get_metrics()
    assert_type(metrics, GatewayMetrics)
    assert_type(get_gateway_metrics(), GatewayMetrics)
    assert_type(metrics["total_requests"], int)
    assert_type(metrics["providers"]["a"]["failures"], dict[str, int])
    latency = metrics["providers"]["a"]["latency_seconds"]
    assert_type(None if latency is None else latency["p95"], float | None)
    metrics["total_request"]  # error
    latency["p95"]  # error
    status = gateway.providers[0]
    assert_type(status.circuit_state, CircuitState)
    assert_type(status.degraded, Literal["errors", "latency"] | None)
    assert_type(status.operations["chat"].disabled_reason, FailureKind | None)
    assert_type(status.capabilities["vision"], bool)
    status.capabilities["sight"]  # error
