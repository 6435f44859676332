"""The setting `otel`: a hook where spans have somewhere to go, and a word where they have not."""

import logging

from opentelemetry.sdk.trace import TracerProvider

from aigateway.server.process.worker import _traces
from aigateway.settings import ServerSettings
from aigateway.telemetry import OpenTelemetry


def test_without_it_there_is_none():
    assert _traces(ServerSettings()) == ()


def test_with_it_there_is_one_and_a_warning_if_it_is_of_no_use(caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    (hook,) = _traces(ServerSettings(otel=True))
    assert isinstance(hook, OpenTelemetry)
    assert "otel.nowhere" in caplog.text
    caplog.clear()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", TracerProvider())
    _traces(ServerSettings(otel=True))
    assert caplog.text == ""
