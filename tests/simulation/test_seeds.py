"""Three hundred drawn scenarios keep every promise, and each can be played again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.run import failure
from tests.simulation.scenario import draw
from tests.simulation.world import play

ROOT = Path(__file__).parents[2]
BLOCK = 10


@pytest.mark.parametrize("first", range(0, 300, BLOCK))
def test_every_promise_is_kept(first):
    for seed in range(first, first + BLOCK):
        scenario = draw(seed)
        played = play(scenario)
        assert played.trace
        if played.broken:
            pytest.fail(failure(seed, scenario, played), pytrace=False)


@pytest.mark.parametrize("seed", [5, 37, 81])
def test_a_seed_is_always_the_same_run(seed):
    scenario = draw(seed)
    assert draw(seed) == scenario
    first, second = play(scenario), play(scenario)
    assert first.trace == second.trace
    assert first.turns == second.turns


def test_a_seed_is_the_same_run_in_every_process():
    shown = [
        subprocess.run(
            [sys.executable, "-m", "tests.simulation.run", "--seed", "37"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert shown[0] == shown[1]
    assert b"caller" in shown[0]


def test_different_seeds_are_different_runs():
    assert len({play(draw(seed)).trace for seed in range(5)}) == 5
