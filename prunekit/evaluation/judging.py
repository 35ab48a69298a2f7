"""What a judge of predictions is, and what it says about a split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from prunekit.data import spill
from prunekit.data.encoding import Batch
from prunekit.data.spill import Growing


@dataclass(frozen=True)
class Predictions:
    """The label of each row and what was predicted for it: class numbers, or values where there are no `classes`.

    `texts` are the right text and the predicted one of each row, where texts are predicted. All is empty where rows
    are not judged one by one.
    """

    labels: Shaped[Tensor, "judged_rows"] = field(default_factory=lambda: torch.zeros(0))
    predicted: Shaped[Tensor, "judged_rows"] = field(default_factory=lambda: torch.zeros(0))
    classes: Sequence[str] = ()
    texts: Sequence[tuple[str, str]] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Bool[Tensor, "judged_rows"]:
        """Whether each prediction is right, which of values says nothing."""
        return self.predicted == self.labels

    def only_answer(self) -> str | None:
        """Return the class, or the text, of all predictions where it is one although labels differ; None elsewhere."""
        if self.texts:
            said, right = {text for _, text in self.texts}, {text for text, _ in self.texts}
            return (said.pop() or self.classes[-1]) if len(said) == 1 and len(right) > 1 else None
        answers = self.predicted.unique().tolist() if self.classes else []
        return self.classes[int(answers[0])] if len(answers) == 1 and len(self.labels.unique()) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """What a judge found: metrics by name, how many predictions it judged, and what it says about each row.

    `settled` are keys of the task that it left open, as this split would have them; `texts` the predicted texts by the
    id of what they are for, where texts are predicted.
    """

    metrics: dict[str, float]
    judged: int
    predictions: Predictions = field(default_factory=Predictions)
    settled: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


class Judge(ABC):
    """Collects predictions batch by batch and judges them; one use, then `compute`."""

    @abstractmethod
    def update(self, logits: Shaped[Tensor, "..."], batch: Batch) -> None:
        """Add a batch; `logits` are those of models.forward.forward_logits."""

    @abstractmethod
    def compute(self) -> Verdict:
        """Return what was found over all batches, synchronised over processes."""


class RowColumns:
    """Numbers of rows, collected batch by batch, in files where they are many; returned in the order of row numbers."""

    def __init__(self) -> None:
        self._columns: list[Growing] = []

    def add(self, index: Int[Tensor, "batch"], *columns: Shaped[Tensor, "batch ..."]) -> None:
        """Add a batch; `index` are the row numbers."""
        self._columns = self._columns or [Growing() for _ in range(1 + len(columns))]
        for held, column in zip(self._columns, (index, *columns), strict=True):
            # numpy has no bfloat16
            held.extend((column.float() if column.dtype == torch.bfloat16 else column).detach().cpu().numpy())

    def by_row(self) -> list[Shaped[Tensor, "rows ..."]]:
        """Return the columns."""
        index, *columns = (column.values for column in self._columns)
        order = spill.order_of(index)
        return [torch.from_numpy(spill.taken(column, order)) for column in columns]
