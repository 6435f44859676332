"""The checks of `tests/house_rules.py` bite."""

import pytest

from tests.house_rules import (
    foreign_imports,
    fragments,
    repeated_classes,
    riddles,
    unspoken_verbs,
)


@pytest.mark.parametrize(
    "line",
    [
        "import litellm",
        "import litellm.utils as u",
        "from litellm import x",
        "from litellm.utils import x",
        "def f():\n    import litellm",
        "import importlib\nimportlib.import_module('litellm')",
        "from importlib import import_module\nimport_module('litellm.utils')",
        "import aiocache",
        "from tenacity import retry",
        "from opentelemetry.trace import Span",
        "import prometheus_client",
        "import redis.asyncio",
        "import ray",
    ],
)
def test_a_library_outside_its_home_is_found_anywhere(line):
    for path in ("aigateway/server/x.py", "aigateway/x.py", "aigateway/new_room/deep/x.py"):
        assert list(foreign_imports({path: line}))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("aigateway/wires/x.py", "import litellm"),
        ("aigateway/cache/backend.py", "import aiocache"),
        ("aigateway/resilience/retry.py", "import tenacity"),
        ("aigateway/x.py", "import litellmish"),
        ("aigateway/x.py", "text = 'import litellm'"),
    ],
)
def test_what_is_at_home_is_left_alone(path, line):
    assert not list(foreign_imports({path: line}))


def test_a_class_name_that_stands_twice_is_found():
    sources = {"aigateway/a.py": "class A: ...", "aigateway/b.py": "def f():\n    class A: ..."}
    (found,) = repeated_classes(sources)
    assert "aigateway/a.py:1" in found
    assert "aigateway/b.py:2" in found


@pytest.mark.parametrize(
    ("lines", "readers", "count"), [(29, ["b"], 1), (30, ["b"], 0), (29, ["b", "c"], 0)]
)
def test_a_short_module_with_one_importer_is_found(lines, readers, count):
    sources = {"aigateway/a.py": "\n" * lines}
    sources |= {f"aigateway/{name}.py": "from aigateway import a\n" * 40 for name in readers}
    assert len(list(fragments(sources))) == count


@pytest.mark.parametrize("text", ["Nobody is asked.", "whoever comes", "It is told of it."])
def test_words_that_are_not_plain_are_found(text):
    code = {
        "a.py": f'def f():\n    """{text}"""\n',
        "b.py": f"x = 1  # {text}\n",
        "c.py": f"x = f'{{1}} {text}'\n",
    }
    assert len(list(riddles(code, {}))) == len(code)
    assert list(riddles({}, {"README.md": text}))
    assert not list(riddles({"a.py": "nobody = 1"}, {"README.md": "A body stands apart."}))


@pytest.mark.parametrize(
    ("decorator", "summary", "count"),
    [
        ("", "Whether it is open.", 1),
        ("", "Return whether it is open.", 0),
        ("@property\n", "Whether it is open.", 0),
    ],
)
def test_a_docstring_without_its_verb_is_found(decorator, summary, count):
    source = f'{decorator}def is_open():\n    """{summary}"""\n'
    assert len(list(unspoken_verbs({"aigateway/a.py": source}))) == count
