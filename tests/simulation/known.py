"""Promises that are stricter than the rule, or faults not mended yet: the world looks away.

A fault's name is removed together with it.
"""

from __future__ import annotations

__all__ = ["KNOWN", "LAWS"]

LAWS = False
"""Whether every run is held to the three laws: the last candidate is asked, blame takes evidence,
health is not binary. False asks for what the guards did before: no call through an open circuit,
one at a time through a half-open one, none to a disabled provider before its time."""

KNOWN: frozenset[str] = frozenset(
    {
        # By rule, and no fault: the verdict on a call that lost a race falls with the next request,
        # up to the circuit's open time after its timeout would have come.
        "late_blame",
    }
)
