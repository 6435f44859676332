"""JSON logs: one object a line, with who, what and which attempt; never what was said."""

import asyncio
import io
import json
import logging
import select
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import structlog
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from aigateway import AsyncGateway, FailureKind, GatewayError, Origin
from aigateway.events import CircuitChanged, RequestServed
from aigateway.telemetry import configure_json_logs
from aigateway.telemetry.json_logs import configure_service_logs
from aigateway.telemetry.log import LogHook, log_event
from aigateway.testing import scripted_configs
from tests.gateways import until

PROMPT, KEY = "what nobody should read", "sk-simulated-secret"


@pytest.fixture
def out():
    return io.StringIO()


def lines(out):
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def test_what_happens_to_a_request(out, vendor):
    configure_json_logs("info", out)
    vendor.script("a", FailureKind.SERVER_ERROR)
    async with AsyncGateway(scripted_configs("a", "b"), vendor=vendor) as gateway:
        await gateway.chat(PROMPT, origin=Origin(request_id="r-1"))
    failed, served = lines(out)
    assert failed.pop("timestamp").endswith("Z")
    assert failed.pop("latency_seconds") >= 0
    assert failed == {
        "level": "warning",
        "event": "provider.failed",
        "logger": "aigateway",
        "request_id": "r-1",
        "provider": "a",
        "attempt": 1,
        "last_resort": False,
        "kind": "server_error",
        "status": None,
        "code": None,
    }
    assert (served["level"], served["event"]) == ("info", "request.served")
    assert (served["request_id"], served["provider"], served["attempts"]) == ("r-1", "b", 2)


@pytest.mark.parametrize(("level", "told"), [("INFO", False), ("DEBUG", True), (10, True)])
async def test_every_attempt_at_debug(out, vendor, level, told):
    configure_json_logs(level, out)
    async with AsyncGateway(scripted_configs("a"), vendor=vendor) as gateway:
        await gateway.chat(PROMPT)
    events = {line["event"]: line for line in lines(out)}
    assert {"attempt.ended", "request.ended"} <= events.keys() or not told
    assert told == ("attempt.ended" in events)
    if told:
        assert events["attempt.ended"]["usage"] == {"prompt_tokens": 1, "completion_tokens": 1}


def test_a_level_that_does_not_exist():
    with pytest.raises(ValueError, match="no log level 'LOUD'; use DEBUG"):
        configure_json_logs("LOUD")


def test_stderr_unless_told_otherwise(capsys):
    configure_json_logs()
    logging.getLogger("mine").info("hello %s", "you")
    structlog.get_logger("other").info("hi", n=1)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["logger"], first["level"]) == ("hello you", "mine", "info")
    assert (second["event"], second["logger"], second["n"]) == ("hi", "other", 1)


def fail(error):
    raise error


def test_an_exception_tells_where_and_not_what(out):
    configure_json_logs(stream=out)
    for error in (ValueError(f"{PROMPT} {KEY}"), GatewayError("This gateway is closed.")):
        try:
            fail(error)
        except Exception:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
            structlog.get_logger("x").exception("broken")
    assert PROMPT not in out.getvalue()
    assert KEY not in out.getvalue()
    foreign, foreign_too, own, own_too = lines(out)
    assert foreign["exception"] == foreign_too["exception"] == "ValueError"
    assert foreign["traceback"][-1].endswith(" in fail")
    assert "message" not in foreign
    assert own["message"] == own_too["message"] == "This gateway is closed."


@pytest.mark.parametrize("name", ["LiteLLM", "openai._base_client", "httpx", "httpcore.http11"])
def test_libraries_that_quote_what_they_send_are_silent(out, name):
    configure_json_logs("DEBUG", out)
    logging.getLogger(name).error("Request options: %s", PROMPT)
    logging.getLogger("openair").error("not one of them")
    assert [line["event"] for line in lines(out)] == ["not one of them"]


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.floats() | st.binary()))
def test_whatever_comes_is_one_line_of_json(fields):
    out = io.StringIO()
    configure_json_logs(stream=out)
    hostile = {f"x{name}": value for name, value in fields.items()}
    structlog.get_logger("x").info("a\nb", half="\ud800", big=2**80, thing=object(), **hostile)
    logging.getLogger("y").warning("c\n%s", hostile)
    first, second = out.getvalue().splitlines()
    assert json.loads(first)["event"] == "a\nb"
    assert json.loads(first)["thing"] == "<object>"
    assert json.loads(second)["event"].startswith("c\n")


def test_nobody_reads_any_more(out):
    configure_json_logs(stream=out)
    out.close()
    structlog.get_logger("x").info("into the void")
    logging.getLogger("y").warning("likewise")


async def test_uvicorn_says_it_the_same_way(out):
    configure_json_logs(stream=out)

    async def app(scope, receive, send):
        if scope["path"] == "/broken":
            raise ValueError(PROMPT)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    for path in (f"/v1?key={KEY}", "/broken"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        await reader.read()
        writer.close()
        await writer.wait_closed()
    server.should_exit = True
    await running
    told = lines(out)
    requests = [line for line in told if line["event"] == "http.request"]
    assert [(r["method"], r["path"], r["status"]) for r in requests] == [
        ("GET", "/v1", 204),
        ("GET", "/broken", 500),
    ]
    assert all(line["logger"].startswith("uvicorn") for line in told)
    assert [line["exception"] for line in told if "exception" in line] == ["ValueError"]
    assert KEY not in out.getvalue()
    assert PROMPT not in out.getvalue()


@pytest.mark.parametrize("name", ["LiteLLM", "LiteLLM Router", "httpx"])
def test_a_library_that_brings_its_own_handler_is_silent_too(out, name):
    configure_json_logs(stream=out)
    own = io.StringIO()
    handler = logging.StreamHandler(own)
    logger = logging.getLogger(name)
    logger.addHandler(handler)  # as litellm does when it is imported
    try:
        logger.warning("%s", PROMPT)
    finally:
        logger.removeHandler(handler)
    assert PROMPT not in out.getvalue()
    assert PROMPT not in own.getvalue()


def test_an_event_of_the_service_has_fields(out):
    configure_json_logs(stream=out)
    log_event(
        logging.ERROR, "worker.died", "Worker {worker} died ({reason}).", worker=1, reason="x"
    )
    log_event(logging.DEBUG, "worker.idle", "Below the level.")
    text = "worker.died: Worker 1 died."
    logging.getLogger("others").error(text, extra={"event": "worker.died", "fields": {"a": PROMPT}})
    ours, theirs = lines(out)
    assert (ours["event"], ours["logger"], ours["level"]) == (
        "worker.died",
        "aigateway.server",
        "error",
    )
    assert (ours["message"], ours["worker"], ours["reason"]) == ("Worker 1 died (x).", 1, "x")
    assert theirs["event"] == text
    assert "a" not in theirs


def test_an_event_of_the_service_as_text(caplog):
    log_event(logging.ERROR, "worker.died", "Worker {worker} died.", worker=1)
    assert caplog.messages == ["worker.died: Worker 1 died."]


SERVED = RequestServed("r-1", "one", "m", None, 1, 0.123456789, 15, None)
OPENED = CircuitChanged("circuit.opened", "one", "closed", "open")


def refuse_nothing(record):
    return True


@pytest.mark.parametrize("logger", ["root", "aigateway"])
def test_a_line_of_text_is_the_same_if_something_else_sees_the_record(capsys, logger):
    configure_service_logs(as_json=False)
    seen = logging.root.handlers[0] if logger == "root" else logging.getLogger("aigateway")
    for event in (SERVED, OPENED):
        LogHook().on_event(event)
        seen.addFilter(refuse_nothing)
        LogHook().on_event(event)
        seen.removeFilter(refuse_nothing)
    found = [line.split(" ", 2) for line in capsys.readouterr().err.splitlines()]
    assert [day for day, _, _ in found] == [found[0][0]] * 4
    assert all(len(time) == len("12:00:00,000") for _, time, _ in found)
    assert [rest for _, _, rest in found[::2]] == [rest for _, _, rest in found[1::2]]
    assert found[0][2].startswith("INFO    [")
    assert found[2][2].startswith("WARNING [")


def test_a_handler_and_a_kind_of_record_of_the_application_see_each_line(capsys):
    configure_service_logs(as_json=False)
    own = io.StringIO()
    handler = logging.StreamHandler(own)
    logging.getLogger("aigateway").addHandler(handler)
    try:
        LogHook().on_event(SERVED)
    finally:
        logging.getLogger("aigateway").removeHandler(handler)
    logging.getLogger("aigateway").propagate = False
    try:
        LogHook().on_event(SERVED)
    finally:
        logging.getLogger("aigateway").propagate = True
    assert len(own.getvalue().splitlines()) == len(capsys.readouterr().err.splitlines()) == 1


class Pieces(io.StringIO):
    """A stream that keeps what each call writes."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return super().write(text)


@pytest.mark.parametrize("as_json", [False, True])
async def test_lines_of_served_requests_are_written_together(monkeypatch, as_json):
    stream = Pieces()
    monkeypatch.setattr("sys.stderr", stream)
    configure_service_logs(as_json=as_json)
    for number in range(100):
        LogHook().on_event(replace(SERVED, request_id=f"é-{number}"))
    assert not stream.pieces
    await until(lambda: stream.pieces)
    assert all(len(piece.encode()) <= select.PIPE_BUF for piece in stream.pieces)
    assert len(stream.pieces) < 10
    found = stream.getvalue().splitlines()
    assert [f"é-{number}" in line for number, line in enumerate(found)] == [True] * 100


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("other", ["event", "record", "end"])
async def test_a_line_that_waits_is_written_before_any_other(monkeypatch, other, as_json):
    stream = Pieces()
    monkeypatch.setattr("sys.stderr", stream)
    configure_service_logs(as_json=as_json)
    LogHook().on_event(SERVED)
    if other == "event":
        LogHook().on_event(OPENED)
    elif other == "record":
        log_event(logging.WARNING, "worker.ended", "It ended.")
    else:
        logging.root.handlers[0].flush()
    served, *rest = stream.getvalue().splitlines()
    assert "request.served" in served
    assert len(rest) == (other != "end")


class Slow(str):
    """A value during whose writing another thread writes a line of its own."""

    __slots__ = ("meanwhile",)
    meanwhile: Callable[[], object]

    def __repr__(self):
        self.meanwhile()
        return super().__repr__()


@pytest.mark.parametrize("as_json", [False, True])
async def test_no_thread_writes_between_the_taking_of_lines_and_their_writing(monkeypatch, as_json):
    other = threading.Thread(target=lambda: LogHook().on_event(OPENED))

    def meanwhile():
        if other.ident is None:
            other.start()
            other.join(0.2)

    class Stream(io.StringIO):
        def write(self, text):
            meanwhile()
            return super().write(text)

    stream = Stream()
    monkeypatch.setattr("sys.stderr", stream)
    configure_service_logs(as_json=as_json)
    slow = Slow("r")
    slow.meanwhile = meanwhile
    LogHook().on_event(replace(SERVED, request_id=slow))
    logging.root.handlers[0].flush()
    other.join()
    first, second = stream.getvalue().splitlines()
    assert ("request.served" in first, "circuit.opened" in second) == (True, True)


async def test_a_line_that_waits_reaches_what_came_to_see_it(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    configure_service_logs(as_json=False)
    LogHook().on_event(SERVED)
    own = logging.StreamHandler(io.StringIO())
    logging.getLogger("aigateway").addHandler(own)
    try:
        logging.root.handlers[0].flush()
    finally:
        logging.getLogger("aigateway").removeHandler(own)
    assert "request.served" in own.stream.getvalue()


def test_an_event_as_json_is_what_a_bound_logger_writes(out):
    configure_json_logs(stream=out)
    with structlog.contextvars.bound_contextvars(tenant="t", provider="not mine", level="x"):
        LogHook().on_event(SERVED)
        bound = structlog.get_logger("aigateway")
        bound.info(
            "request.served",
            request_id="r-1",
            provider="one",
            model="m",
            agent=None,
            attempts=1,
            latency_seconds=0.123457,
            total_tokens=15,
            cost_usd=None,
        )
    ours, theirs = lines(out)
    assert ours.pop("timestamp")[:17] == theirs.pop("timestamp")[:17]
    assert list(ours.items()) == list(theirs.items())
    assert ours["tenant"] == "t"


def test_another_configuration_of_structlog_counts_from_then_on(out):
    configure_json_logs(stream=out)
    with structlog.testing.capture_logs() as caught:
        LogHook().on_event(SERVED)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    LogHook().on_event(SERVED)
    assert [entry["event"] for entry in caught] == ["request.served"]
    assert out.getvalue() == ""
