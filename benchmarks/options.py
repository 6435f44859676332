"""What a run was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Sizes of a run; quick ones only show that everything works."""

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        """The size for this run."""
        return quick if self.quick else full
