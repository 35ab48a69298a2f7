"""A queue that is fair to its owners: who asks for much waits behind who asks for little.

Start-time fair queueing (Goyal, Vin and Chen, 1996, doi:10.1145/248157.248171). Each entry has a cost and a tag: where
its owner's previous entry ends, but no earlier than the entry that is served now. The lowest tag is served first.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Generic, TypeVar


@dataclass(eq=False)
class Waiting:
    """What waits in a queue: `cost` is how much it takes of what is shared; the queue sets `rank`."""

    owner: Hashable
    cost: int
    rank: tuple[float, int] = field(default=(0.0, 0), init=False)


Entry = TypeVar("Entry", bound=Waiting)


class FairQueue(Generic[Entry]):
    """Entries in the order in which they are served."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._ends: dict[Hashable, float] = {}  # of each owner's last entry
        self._now = 0.0  # the tag of what was served last
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, entry: Entry) -> None:
        """Add an entry behind what its owner has here already, and set its rank."""
        tag = max(self._now, self._ends.get(entry.owner, 0.0))
        self._ends[entry.owner] = tag + entry.cost
        entry.rank = (tag, next(self._arrivals))
        insort(self._entries, entry, key=attrgetter("rank"))

    def remove(self, entry: Entry) -> bool:
        """Take an entry out unserved; return whether it was here."""
        if entry not in self._entries:
            return False
        self._entries.remove(entry)
        return True

    def serve(self, entry: Entry) -> None:
        """Take an entry out because its turn has come."""
        self._entries.remove(entry)
        self._now = max(self._now, entry.rank[0])
        if len(self._ends) > 2 * len(self._entries):  # forget who has nothing to catch up on
            self._ends = {owner: end for owner, end in self._ends.items() if self._entries and end > self._now}
