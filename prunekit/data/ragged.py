"""Rows of numbers of different lengths, such as token ids: memory-mapped Arrow lists, gathered into padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from prunekit.data import spill


class Ragged:
    """Rows of whole numbers. Only the rows of a batch are copied; the rest stays where it is, on disk for instance.

    `offsets` are where rows begin when they are laid end to end, and where the last one ends.
    """

    def __init__(self, values: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> None:
        """Take the values of all rows, in parts, and where in its part each row ends."""
        self._values = list(values)
        self._first = np.cumsum([0, *map(len, ends)])  # the row with which each part begins
        self._starts = np.cumsum([0, *map(len, values)])
        self._ends = spill.empty(int(self._first[-1]) + 1, np.int64)
        for part, row, start in zip(ends, self._first, self._starts, strict=False):
            self._ends[row + 1 : row + 1 + len(part)] = start + part
        self.offsets: Int[Tensor, "boundaries"] = torch.from_numpy(self._ends)

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        """Return these rows, in memory."""
        arrays = [np.asarray(row, np.int32) for row in rows]
        ends = np.cumsum([len(row) for row in arrays], dtype=np.int64)
        return cls([np.concatenate([np.zeros(0, np.int32), *arrays])], [ends])

    @classmethod
    def of_lists(cls, chunks: Iterable[Any]) -> Ragged:
        """Return the rows of Arrow arrays of lists, without a copy."""
        values, ends = [], []
        for chunk in chunks:
            offsets = chunk.offsets.to_numpy()
            values.append(chunk.values.to_numpy()[offsets[0] : offsets[-1]])
            ends.append(offsets[1:] - offsets[0] if offsets[0] else offsets[1:])
        return cls(values, ends)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int[Tensor, "rows"]:
        """How many numbers each row has."""
        found = spill.empty(len(self), np.int64)
        for start in range(0, len(self), spill.BLOCK):
            part = np.diff(self._ends[start : start + spill.BLOCK + 1])
            found[start : start + len(part)] = part
        return torch.from_numpy(found)

    @cached_property
    def is_zero(self) -> bool:
        """Whether all numbers of all rows are 0."""
        return not any(part.any() for part in self._values)

    def row(self, number: int) -> np.ndarray:
        """Return one row."""
        return self._rows(np.asarray([number]))[0]

    def _rows(self, numbers: np.ndarray) -> list[np.ndarray]:
        parts = np.searchsorted(self._first, numbers, "right") - 1
        starts = self._ends[numbers] - self._starts[parts]
        ends = starts + self._ends[numbers + 1] - self._ends[numbers]
        return [
            self._values[part][start:end]
            for part, start, end in zip(parts.tolist(), starts.tolist(), ends.tolist(), strict=True)
        ]

    def first(self, count: int) -> np.ndarray:
        """Return the numbers of the first rows, end to end."""
        return np.concatenate([np.zeros(0, np.int32), *self._rows(np.arange(count))])

    def padded(self, rows: Int[Tensor, "batch"], fill: int) -> Int[Tensor, "batch width"]:
        """Return these rows, with `fill` after their ends up to the longest of them."""
        chosen = self._rows(rows.numpy())
        lengths = np.fromiter(map(len, chosen), np.int64, len(chosen))
        batch = np.full((len(chosen), int(lengths.max())), fill, np.int64)
        batch[np.arange(batch.shape[1]) < lengths[:, None]] = np.concatenate(chosen)
        return torch.from_numpy(batch)
