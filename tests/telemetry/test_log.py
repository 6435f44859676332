"""What stands in the log is the same whichever way it goes there."""

import logging
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from aigateway.errors import FailureKind, ProviderFailure
from aigateway.events import ON_REQUEST, Event, ProviderEnabled, RequestServed
from aigateway.telemetry.log import LogHook
from aigateway.telemetry.recorder import Emitter

FAILURES = st.builds(ProviderFailure, st.text(), st.sampled_from(FailureKind))


def an_event(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    values = {
        field.name: st.lists(FAILURES, max_size=3).map(tuple)
        if field.name == "causes"
        else st.from_type(hints[field.name])
        for field in fields(kind)
    }
    return st.builds(kind, **values)


EVENTS = st.one_of([an_event(kind) for kind in get_args(Event)])
SERVED = RequestServed("r-1", "one", "m", None, 1, 0.123456789, 15, None)


class Kept(logging.Handler):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    logger, handler = logging.getLogger("aigateway"), Kept()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def empty(kept: Kept) -> None:
    kept.records.clear()


def through_structlog(hook: LogHook, event: Event) -> dict[str, Any]:
    with structlog.testing.capture_logs() as logs:
        # `capture_logs` alone does not make structlog say that it is configured.
        structlog.configure(processors=structlog.get_config()["processors"])
        hook.on_event(event)
    structlog.reset_defaults()
    (entry,) = logs
    return dict(entry)


@given(EVENTS)
def test_a_line_is_what_structlog_would_render(kept: Kept, event: Event) -> None:
    kept.records.clear()
    LogHook().on_event(event)
    (record,) = kept.records
    entry = through_structlog(LogHook(), event)
    assert record.levelname.lower() == entry.pop("log_level")
    render = structlog.processors.KeyValueRenderer(key_order=["event"])
    assert record.getMessage() == render(None, "", entry)
    assert entry.keys() - {"event"} == {f.name for f in fields(event)} - {"name"}


def test_a_line(kept: Kept) -> None:
    LogHook().on_event(SERVED)
    assert kept.records[0].getMessage() == (
        "event='request.served' request_id='r-1' provider='one' model='m' agent=None attempts=1"
        " latency_seconds=0.123457 total_tokens=15 cost_usd=None"
    )


def test_a_record_says_where_it_comes_from(kept: Kept) -> None:
    LogHook().on_event(ProviderEnabled("100 %s sure"))
    (record,) = kept.records
    assert (record.name, record.levelname) == ("aigateway", "WARNING")
    assert record.filename == "log.py"
    assert record.pathname.endswith("telemetry/log.py")
    assert record.lineno > 1
    assert record.exc_info is None
    assert "provider='100 %s sure'" in logging.Formatter("%(message)s").format(record)


def test_what_is_not_wanted_is_not_written(kept: Kept) -> None:
    logger, hook = logging.getLogger("aigateway"), LogHook()
    logger.setLevel(logging.WARNING)
    try:
        assert not hook.wants(RequestServed)
        assert hook.wants(ProviderEnabled)
        hook.on_event(SERVED)
        hook.content("r-1", [{"role": "user", "content": "prompt"}], ["answer"])
    finally:
        logger.setLevel(logging.DEBUG)
    assert kept.records == []


def test_the_applications_filter_is_asked(kept: Kept) -> None:
    logger = logging.getLogger("aigateway")

    def refuse(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(refuse)
    try:
        LogHook().on_event(SERVED)
    finally:
        logger.removeFilter(refuse)
    assert kept.records == []


def test_the_applications_kind_of_record_is_made(kept: Kept) -> None:
    class Marked(logging.LogRecord):
        pass

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Marked)
    try:
        LogHook().on_event(SERVED)
    finally:
        logging.setLogRecordFactory(before)
    assert isinstance(kept.records[0], Marked)


def test_content(kept: Kept) -> None:
    LogHook().content("r-1", ({"role": "user", "content": "Hi"},), ("Ho",))
    assert kept.records[0].getMessage() == (
        "event='request.content' request_id='r-1'"
        " messages=[{'role': 'user', 'content': 'Hi'}] texts=['Ho']"
    )


class Broken:
    """A hook that cannot."""

    def on_event(self, event: Event) -> None:
        raise LookupError("not there")


def test_a_broken_hook_is_reported_with_its_traceback(kept: Kept) -> None:
    Emitter([Broken()]).emit(SERVED)
    told, report = kept.records
    assert "request.served" in told.getMessage()
    line = report.getMessage()
    assert report.levelname == "ERROR"
    assert line.startswith("event='hook.raised' hook='Broken' exception='Traceback (most recent")
    assert line.endswith("LookupError: not there'")


def test_after_a_broken_hook_the_next_one_is_told() -> None:
    heard: list[Event] = []

    class Listener:
        def on_event(self, event: Event) -> None:
            heard.append(event)

    Emitter([Broken(), Listener()]).emit(SERVED)
    assert heard == [SERVED]


@pytest.mark.parametrize(
    ("wrapper", "level", "shown"),
    [
        (structlog.make_filtering_bound_logger(logging.INFO), logging.DEBUG, False),
        (structlog.make_filtering_bound_logger(logging.DEBUG), logging.INFO, True),
        (structlog.stdlib.BoundLogger, logging.DEBUG, True),
        (structlog.stdlib.BoundLogger, logging.INFO, False),
        (structlog.BoundLogger, logging.DEBUG, False),  # it does not say
    ],
)
def test_what_tells_of_every_call_is_for_those_who_look_at_debug(
    kept: Kept, wrapper: type[Any], level: int, shown: bool
) -> None:
    logger, hook = logging.getLogger("aigateway"), LogHook()
    before = logger.level
    logger.setLevel(level)
    structlog.configure(wrapper_class=wrapper, logger_factory=structlog.stdlib.LoggerFactory())
    try:
        assert {hook.wants(kind) for kind in ON_REQUEST} == {shown}
        assert hook.wants_every_call() is shown
        assert hook.wants(RequestServed)
    finally:
        structlog.reset_defaults()
        logger.setLevel(before)
