"""What every test gets: no settings from the outside, and the shipped simulator fixture."""

import contextlib
import gc
import itertools
import logging
import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

# A slow machine is no failure.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize="CI" in os.environ,
    max_examples=25,  # many more with `--examples`, as the sessions `proofs` and `fuzz` do
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")

pytest_plugins = ["aigateway.testing", "tests.processes"]

VENDOR_PREFIXES = (
    *("OPENAI_", "AZURE_", "GEMINI_", "GOOGLE_", "ANTHROPIC_", "AIGATEWAY_"),
    *("AWS_", "DEEPSEEK_", "GROQ_", "MISTRAL_", "OPENROUTER_", "VERTEXAI_"),
)


APART = {
    "alerts": "Prometheus' promtool",
    "clients": "real clients",
    "frames": "pandas and polars",
    "helm": "Helm",
    "image": "a package registry, for what an image has",
    "moving": "other gateways",
    "ray": "Ray",
    "typing": "the whole package checked by mypy",
}
"""Folders of tests that only sessions run which have what they need."""


def pytest_addoption(parser):
    parser.addoption(
        "--examples", type=int, help="how many examples Hypothesis tries where it is left to it"
    )
    parser.addoption(
        "--proofs",
        action="store_true",
        help="run also what is marked `proof`: repeats of a proof, and long ones",
    )
    parser.addoption(
        "--most-calls", type=int, default=3, help="calls out at once in the model of the circuit"
    )
    parser.addoption(
        "--kills", type=int, default=2, help="how often a service is killed while its state is used"
    )
    parser.addoption(
        "--every-example",
        action="store_true",
        help="run tests/examples/test_commands.py, in an environment that has their packages",
    )
    for name, needed in APART.items():
        parser.addoption(f"--{name}", action="store_true", help=f"run tests/{name}; needs {needed}")
    parser.addoption(
        "--need-browser", action="store_true", help="fail, and do not skip, where no Chromium is"
    )
    parser.addoption(
        "--need-node", action="store_true", help="fail, not skip, where Node.js is not set up"
    )


def pytest_configure(config):
    # A shell that runs this in the background has it ignored, and every child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    examples = config.getoption("--examples")
    if examples:
        settings.register_profile("longer", settings.default, max_examples=examples)
        settings.load_profile("longer")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape what has no UTF-8 (fuzzed texts in logs): xdist cannot send it, and breaks down."""
    report = yield
    report.sections = [(name, _encodable(text)) for name, text in report.sections]
    told = str(report.longrepr) if report.failed else ""
    if told != _encodable(told):
        report.longrepr = _encodable(told)
    return report


def _encodable(text):
    return text.encode(errors="backslashreplace").decode()


@pytest.fixture
def most_calls(request):
    """How many calls are out at once in the model of the circuit."""
    return request.config.getoption("--most-calls")


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """Yields paths that do not exist yet: `mktemp` looks through all that there are, each time."""
    parent = tmp_path_factory.mktemp("cwd")
    return (parent / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def no_outside_settings(directories):
    """Neither the developer's keys nor a file in the current directory reach a test.

    Nor does a variable that another test has set, or that a command sets for its process. Not by
    `monkeypatch`, which a test may undo before its end.
    """
    _forget_settings()
    directory = next(directories)
    directory.mkdir()
    with contextlib.chdir(directory):
        yield
    _forget_settings()


def _forget_settings():
    # Others stay: litellm sets some for its process when it is imported.
    for name in [name for name in os.environ if name.startswith(VENDOR_PREFIXES)]:
        del os.environ[name]


_loaded = 0


@pytest.fixture(autouse=True)
def what_is_loaded_is_no_garbage():
    """Spare the collector what is loaded: looking through litellm takes half a second each time."""
    global _loaded  # noqa: PLW0603 - modules are those of the process
    if len(sys.modules) > _loaded + 200:
        _loaded = len(sys.modules)
        gc.collect()
        gc.freeze()


def _loggers():
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """No test leaves a level, a handler or a filter to the next.

    But for the filters that the package places when it loads litellm, once for all tests.
    """
    before = {
        logger: (logger.level, logger.handlers[:], logger.propagate, logger.disabled)
        for logger in _loggers()
    }
    filters = {owner: owner.filters[:] for logger in before for owner in (logger, *logger.handlers)}
    yield
    loading = sys.modules.get("aigateway.wires.loading")
    kept = getattr(loading, "_unless_silent", None)
    for logger in _loggers():
        if logger in before:
            level, handlers, logger.propagate, logger.disabled = before[logger]
            if logger.level != level:
                logger.setLevel(level)  # which has each logger forget what it has worked out
            logger.handlers[:] = handlers
        for owner in (logger, *logger.handlers):
            own = filters.get(owner, [])
            owner.filters[:] = own + [f for f in owner.filters if f is kept and f not in own]
    structlog = sys.modules.get("structlog")
    if structlog is not None:
        structlog.reset_defaults()


@pytest.fixture
def clock():
    """Time that moves only when a test says so."""
    from aigateway.testing import FakeClock

    return FakeClock()


@pytest.fixture
def vendor():
    """Vendors that follow a script; the rooms that need a simulated one have their own."""
    from aigateway.testing import ScriptedVendor

    return ScriptedVendor()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leave what is marked `proof` to the session that runs it at length."""
    if not config.getoption("--proofs"):
        left = [item for item in items if item.get_closest_marker("proof")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("proof")]


def pytest_ignore_collect(collection_path, config):
    """Leave what needs more than the daily environment to the sessions that have it."""
    if collection_path.match("tests/examples/test_commands.py"):
        return None if config.getoption("--every-example") else True
    name = collection_path.name
    is_apart = name in APART and collection_path.parent.name == "tests"
    return True if is_apart and not config.getoption(f"--{name}") else None
