"""What a run was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Sizes of a run; quick ones only show that everything works.

    Attributes:
        quick: Whether it is one.
        only: Beginnings of the names of the rows that are wanted; none wants all. Storm's.
        json: Where figures go as lines of JSON. Storm's.
        before: Such a file, to put beside the figures of this run. Storm's.
        real_time: Whether time is not virtual. Storm's.
    """

    quick: bool = False
    only: tuple[str, ...] = ()
    json: Path | None = None
    before: Path | None = None
    real_time: bool = False

    @property
    def partial(self) -> bool:
        """Whether the results are not fit to be kept."""
        return self.quick or bool(self.only) or self.real_time

    def pick(self, full: int, quick: int) -> int:
        """The size for this run."""
        return quick if self.quick else full
