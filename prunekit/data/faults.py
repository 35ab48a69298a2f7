"""Collect the rows that have one fault: a message counts all of them and shows the first three."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN_ROWS = 3


@dataclass
class Faults:
    """Rows with the same fault, in the order of their file."""

    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)  # place and fault

    def add(self, place: str, what: str) -> None:
        """Add a row; `what` is its fault, as the words after its place."""
        if len(self.first) < SHOWN_ROWS:
            self.first.append((place, what))
        self.count += 1

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        """The fault of the first row, how many rows have it, and the places of two others."""
        place, what = self.first[0]
        if self.count == 1:
            return f"{place}{what}"
        others = [other + ("" if fault == what else fault) for other, fault in self.first[1:]]
        return f"{place}{what} ({self.count} such rows, also {' and '.join(others)})"
