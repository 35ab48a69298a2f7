"""Rows of numbers of different lengths, such as token ids: memory-mapped Arrow lists, gathered into padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


class Ragged:
    """Rows of whole numbers. Only the rows of a batch are copied; the rest stays where it is, on disk for instance.

    `offsets` are where rows begin when they are laid end to end, and where the last one ends.
    """

    def __init__(self, values: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> None:
        """Take the values of all rows, in parts, and the length of each row of a part."""
        self._values = list(values)
        self._first = np.cumsum([0, *map(len, lengths)])  # the row with which each part begins
        self._starts = np.cumsum([0, *(int(part.sum()) for part in lengths)])
        ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]), dtype=np.int64)
        self._ends = ends
        self.offsets: Int[Tensor, "boundaries"] = torch.from_numpy(ends)

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        """Return these rows, in memory."""
        arrays = [np.asarray(row, np.int32) for row in rows]
        lengths = np.asarray([len(row) for row in arrays], np.int64)
        return cls([np.concatenate([np.zeros(0, np.int32), *arrays])], [lengths])

    @classmethod
    def of_lists(cls, chunks: Iterable[Any]) -> Ragged:
        """Return the rows of Arrow arrays of lists, without a copy."""
        values, lengths = [], []
        for chunk in chunks:
            ends = chunk.offsets.to_numpy()
            values.append(chunk.values.to_numpy()[ends[0] : ends[-1]])
            lengths.append(np.diff(ends).astype(np.int64))
        return cls(values, lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[Tensor, "rows"]:
        """How many numbers each row has."""
        return self.offsets.diff()

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
        batch = np.full((len(chosen), max(map(len, chosen))), fill, np.int64)
        for place, numbers in enumerate(chosen):
            batch[place, : len(numbers)] = numbers
        return torch.from_numpy(batch)
