"""Faults of the gateway that are known and not mended yet: the world walks around them.

Each name is removed together with the fault; an empty set is the rule.
"""

from __future__ import annotations

__all__ = ["KNOWN"]

KNOWN: frozenset[str] = frozenset(
    {
        # The verdict on a call that lost a race falls with the next request, up to the circuit's
        # open time after its timeout would have come.
        "late_blame",
    }
)
