"""A queue that is fair to its owners: who asks for much waits behind who asks for little.

Fair queueing of calls (Demers, Keshav and Shenker, 1989, doi:10.1145/75246.75248). A clock advances by what each owner
would have got if all who wait were served at once. A call starts now, or where its owner's previous one ends, and the
one that ends first is served first. In that comparison a call counts as twice as long as it is: a short one need not
wait for a long one that is nearly done.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Generic, TypeVar

LENGTHENED = 2.0


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
        self._waiting: Counter[Hashable] = Counter()  # entries of each owner
        self._last: dict[Hashable, tuple[float, float]] = {}  # where each owner's last call ends, and its rank
        self._now = 0.0
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, call: Sequence[Entry]) -> None:
        """Add the entries of a call, which has one owner, and set their ranks."""
        if not call:
            return
        owner, cost = call[0].owner, sum(entry.cost for entry in call)
        end, before = self._last.get(owner, (0.0, 0.0))
        start = max(self._now, end)
        rank = max(before, start + LENGTHENED * cost)  # no call passes another of its owner
        self._last[owner] = start + cost, rank
        self._waiting[owner] += len(call)
        for entry in call:
            entry.rank = (rank, next(self._arrivals))
            insort(self._entries, entry, key=attrgetter("rank"))

    def remove(self, entry: Entry) -> bool:
        """Take an entry out unserved; return whether it was here."""
        if entry not in self._entries:
            return False
        self._take(entry)
        return True

    def serve(self, entry: Entry) -> None:
        """Take an entry out because its turn has come."""
        self._now += entry.cost / len(self._waiting)
        self._take(entry)
        if len(self._last) > 2 * len(self._entries):  # forget who has nothing to catch up on
            behind = {owner: last for owner, last in self._last.items() if last[0] > self._now}
            self._last = behind if self._entries else {}

    def _take(self, entry: Entry) -> None:
        self._entries.remove(entry)
        self._waiting[entry.owner] -= 1
        if not self._waiting[entry.owner]:
            del self._waiting[entry.owner]
