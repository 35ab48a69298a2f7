"""Labelled rows, in the form that all readers return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any, Generic, TypeVar

import numpy as np

from prunekit.data.columns import RowNumbers, take
from prunekit.data.splitting import content_hashes

Label = TypeVar("Label")  # a class number, a value, an answer or a target: the task's kind decides


@dataclass(frozen=True)
class Contents(Sequence[tuple[str, str]]):
    """Texts and second texts, row by row; none are kept in memory."""

    texts: Sequence[str]
    pairs: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: Any) -> Any:
        return self.texts[row], "" if self.pairs is None else self.pairs[row]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        yield from zip(self.texts, repeat("") if self.pairs is None else self.pairs, strict=False)


@dataclass(frozen=True)
class Rows(Generic[Label]):
    """Texts and labels of one split.

    `places` names for messages where each row was read, `ids` what a row is called in its file, `groups` which rows
    stay together when they are divided; None where nobody asks.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[Label]
    places: Sequence[str] | None = None
    ids: Sequence[str] | None = None
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def content_hashes(self) -> np.ndarray:
        """`splitting.content_hashes` of the contents."""
        return content_hashes(self.contents)

    @property
    def contents(self) -> Contents:
        """The text and the second text of each row, "" where there is none; equal means a duplicate."""
        return Contents(self.texts, self.pairs)

    def take(self, rows: RowNumbers) -> Rows[Label]:
        """Return the rows of these numbers, in this order; what is on disk stays there."""
        columns = (self.texts, self.pairs, self.labels, self.places, self.ids, self.groups)
        texts, pairs, labels, *others = (column if column is None else take(column, rows) for column in columns)
        assert texts is not None
        assert labels is not None
        return Rows(texts, pairs, labels, *others)

    def at(self, row: int) -> str:
        """Return the place of a row, counted from 0, as a reader finds it."""
        return f"row {row + 1}" if self.places is None else self.places[row]


@dataclass(frozen=True)
class TaskRows:
    """All splits of a task: "train", "validation", further validation splits, and "test" if the task has one.

    `dropped` counts, per reason, the rows of the files that are in no split, `noticed` rows that are and may mislead.
    """

    splits: Mapping[str, Rows[Any]]
    label_names: tuple[str, ...] | None
    dropped: Mapping[str, int] = field(default_factory=dict)
    noticed: Mapping[str, int] = field(default_factory=dict)
