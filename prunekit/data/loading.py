"""Batches whose order is a pure function of (seed, epoch, position), so that a resumed run sees the same batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunekit.data import spill
from prunekit.data.encoding import EncodedSplit

POOL = 50  # batches whose rows are sorted by length together: larger pools pad less and shuffle less


def generator_of(*key: object) -> torch.Generator:
    """Return a random generator that is a function of the key; neighbouring keys have nothing in common."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Batches(Sequence[Tensor]):
    """Row numbers in batches: batch i is the part of `rows` that `places[i]` counts, each of `size` rows."""

    def __init__(self, rows: Int[Tensor, "rows"], size: int, places: Int[Tensor, "batches"]) -> None:
        self.rows = rows
        self.size = size
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> Batches: ...
    def __getitem__(self, number: int | slice) -> Tensor | Batches:
        if isinstance(number, slice):
            return Batches(self.rows, self.size, self.places[number])
        start = int(self.places[number]) * self.size
        return self.rows[start : start + self.size].clone()


def bucketed_batches(
    lengths: Int[Tensor, "rows"], batch_size: int, generator: torch.Generator, pool: int | None = POOL
) -> Batches:
    """Return every row number once, in batches of similar length, in random order.

    Rows are shuffled, cut into pools of `pool` batches (None = one pool), sorted by length within each pool, and cut
    into batches; then the batches are shuffled. There are ceil(rows / batch_size) batches, one of which may be smaller.
    """
    rows = permutation(len(lengths), generator)
    if pool is None:
        numbers = rows.numpy()
        rows = torch.from_numpy(spill.taken(numbers, spill.order_of(spill.taken(lengths.numpy(), numbers))))
    else:
        for part in rows.split(max(1, pool * batch_size)):
            part.copy_(part[lengths[part].argsort(stable=True)])
    return Batches(rows, batch_size, torch.randperm(-(-len(rows) // batch_size), generator=generator))


def permutation(count: int, generator: torch.Generator) -> Int[Tensor, "count"]:
    """Return the numbers below `count` in random order, as `torch.randperm` does."""
    return torch.randperm(count, generator=generator, out=torch.from_numpy(spill.empty(count, np.int64)))


def epoch_batches(
    lengths: Int[Tensor, "rows"], batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> Batches:
    """Return the batches of one process in one epoch.

    With `world` processes, the list is extended with batches from its beginning until its length is a multiple of
    `world`; process `rank` takes every `world`-th batch.
    """
    batches = bucketed_batches(lengths, batch_size, generator_of("epoch", seed, epoch))
    count = -(-len(batches) // world) * world
    places = torch.arange(rank, count, world) % max(1, len(batches))
    return Batches(batches.rows, batch_size, batches.places[places])


class _Batches(Dataset[dict[str, Tensor]]):
    """A dataset whose item i is a whole batch, so that a worker process makes one batch at a time."""

    def __init__(self, split: EncodedSplit, batches: Sequence[Int[Tensor, "_"]]) -> None:
        self.split = split
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.split.batch(self.batches[number])


def fetch(split: EncodedSplit, batches: Sequence[Int[Tensor, "_"]], workers: int = 0) -> Iterator[dict[str, Tensor]]:
    """Yield the batches in this order, made here or ahead of time in workers; the global generators are not touched."""
    if workers == 0 or not len(batches):
        yield from (split.batch(rows) for rows in batches)
        return
    yield from DataLoader(
        _Batches(split, batches),
        batch_size=None,  # an item is already a batch
        num_workers=min(workers, len(batches)),
        generator=torch.Generator(),  # else the workers' seed is drawn from the global generator
    )


class StepLoader:
    """A loader of training batches, one epoch per iteration, that can resume anywhere.

    The state is one integer: how many batches the consumer has taken since the beginning of training. A new iteration
    resumes from there, so after a resume in the middle of an epoch the first one is that epoch's rest. `len` is always
    that of a whole epoch, as Lightning expects.
    """

    def __init__(
        self, split: EncodedSplit, batch_size: int, seed: int, *, workers: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.rank = rank
        self.world = world
        self.position = 0

    def __len__(self) -> int:
        batches = -(-len(self.split) // self.batch_size)
        return -(-batches // self.world)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # a generator body runs at the first `next`, so an iterator that is made and dropped changes nothing
        epoch, done = divmod(self.position, len(self))
        batches = epoch_batches(self.split.lengths, self.batch_size, self.seed, epoch, self.rank, self.world)
        for batch in fetch(self.split, batches[done:], self.workers):
            # counted when handed over: batches that workers prepared ahead do not count
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a position."""
        self.position = int(state["position"])


class FixedLoader:
    """A loader of evaluation batches, always in the same order, with similar lengths together to limit padding."""

    def __init__(self, split: EncodedSplit, batch_size: int, *, workers: int = 0) -> None:
        self.split = split
        self.batch_size = batch_size
        self.workers = workers

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = bucketed_batches(self.split.lengths, self.batch_size, generator_of("evaluation"), pool=None)
        yield from fetch(self.split, batches, self.workers)
