"""What breaks when, and who asks what: the script of the demo. No I/O."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from aigateway.simulator import Fault, Simulator

__all__ = ["Call", "Phase", "Trouble", "apply_phase", "calls", "phases"]

_REPEATED = ("What is 2+2?", "Name a colour.", "Say hello.")
_REPEATED_SHARE = 0.2
_RETRY_AFTER = 1.0
"""Seconds."""


class Trouble(NamedTuple):
    """What a vendor does wrong, in words for the audience and for the simulator."""

    what: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the demo.

    Attributes:
        label: What is happening, in a few words.
        seconds: How long it takes.
        troubles: What is wrong with whom, by the vendor's name; everybody else is healthy.
    """

    label: str
    seconds: float
    troubles: Mapping[str, Trouble] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is happening, in full."""
        told = [f"{name}: {trouble.what}" for name, trouble in self.troubles.items()]
        return ", ".join(told) or self.label


@dataclass(frozen=True, slots=True)
class Call:
    """A request to come: when (seconds from the beginning), and what is asked."""

    due: float
    prompt: str
    cache: bool


def phases(seconds: float) -> tuple[Phase, ...]:
    """The story, told in that many seconds."""
    dead = {"openai": Trouble("HTTP 500", Fault.status(500))}
    hanging = {"openai": Trouble("hangs", Fault.hang())}
    limited = hanging | {"azure": Trouble("HTTP 429", Fault.rate_limited(_RETRY_AFTER))}
    alone = limited | {"gemini": Trouble("resets", Fault.reset())}
    story = (
        Phase("all are healthy", 1.5),
        Phase("openai fails", 2.5, dead),
        Phase("openai is back", 1.5),
        Phase("openai hangs", 2.0, hanging),
        Phase("+ azure is limited", 1.5, limited),
        Phase("+ gemini resets", 1.0, alone),
        Phase("all are back", 2.0),
    )
    scale = seconds / sum(phase.seconds for phase in story)
    return tuple(Phase(p.label, p.seconds * scale, p.troubles) for p in story)


def apply_phase(phase: Phase, simulator: Simulator) -> None:
    """Break who is to be broken, and mend everybody else."""
    for vendor in simulator.vendors:
        trouble = phase.troubles.get(vendor.name)
        if trouble is None:
            vendor.recover()
        else:
            vendor.behave(trouble.fault)


def calls(seconds: float, rate: float, seed: int) -> Iterator[Call]:
    """A steady stream of requests, a little uneven; some ask what was asked before."""
    dice = random.Random(seed)
    for number in range(round(seconds * rate)):
        due = (number + dice.random()) / rate
        if dice.random() < _REPEATED_SHARE:
            yield Call(due, dice.choice(_REPEATED), cache=True)
        else:
            yield Call(due, f"Question {number}: how are you?", cache=False)
