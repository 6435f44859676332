"""The example for Ray, by its line in examples/README.md."""

import re

import pytest

from tests.examples.test_commands import COMMANDS, DOWN, Shell
from tests.ray.cluster import OBJECT_STORE


@pytest.fixture
def shell(tmp_path, ray_stays_here):
    shell = Shell(tmp_path)
    yield shell
    shell.end()


def test_actors_answer_a_dataset_without_their_first_vendor(shell, ray_stays_here):
    (command,) = COMMANDS["ray_batch.py"]
    program = shell.folder / "examples" / "ray_batch.py"
    start = '    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1",'
    start += f" object_store_memory={OBJECT_STORE})\n    main()\n"  # on loopback, and small
    program.write_text(program.read_text().replace("    main()\n", start))
    out = shell.run(command, RAY_TMPDIR=str(ray_stays_here), RAY_USAGE_STATS_ENABLED="0")
    assert re.findall(r"^(\d) azure/gpt-4o-mini \S", out, re.MULTILINE) == ["1", "2", "3", "4"]
    assert DOWN + "0" not in out
