"""Collect the rows that have one fault: a message counts all of them and shows the first three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prunekit.config.errors import listed, quoted

SHOWN_ROWS = 3


def told_twice(name: str, places: Sequence[int], unit: str) -> str:
    """Return that a name stands at several places, which `unit` calls columns or keys, in words after a file's."""
    times = "twice" if len(places) == 2 else f"{len(places)} times"
    return f"names {quoted(name)} {times} ({unit} {listed(map(str, places[:-1]))} and {places[-1]})"


@dataclass
class Faults:
    """Rows with the same fault, in the order of their file."""

    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)  # place and fault
    _last: str = ""

    def add(self, place: str, what: str) -> None:
        """Add a row; `what` is its fault, as the words after its place. Further faults of the same row do not count."""
        if place == self._last:
            return
        self._last = place
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
