"""Judge texts with any number of labels: micro and macro F1, and the threshold of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from prunekit.data.encoding import Batch, LabelTargets
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judging import Judge, Predictions, RowColumns, Verdict
from prunekit.evaluation.metrics import build_metrics, task_answers
from prunekit.models.answers import HALF

# of a row by how many labels it has, in reports: whether all of them were found and no other
WRONG, CLASSES = 0, ("wrong", "one label", "several labels", "no label")


class LabelSetJudge(Judge):
    """A judge of any number of labels per row.

    Where the task leaves thresholds open, those are used that are best on the rows judged, and are said to be settled.
    """

    def __init__(self, spec: TaskSpec, targets: LabelTargets, device: torch.device | str) -> None:
        self.spec = spec
        self.names = tuple(targets.names)
        self._rows = RowColumns()

    def update(self, logits: Float[Tensor, "batch labels"], batch: Batch) -> None:
        """Add a batch."""
        self._rows.add(batch["index"], logits.detach().float(), batch["labels"])

    def compute(self) -> Verdict:
        """Return the metrics, and the labels of each row, right and predicted."""
        logits, labels = self._rows.by_row()
        tunes = self.spec.tune_thresholds and not self.spec.thresholds
        settled: dict[str, Any] = {"thresholds": best_thresholds(logits.sigmoid(), labels)} if tunes else {}
        spec = replace(self.spec, **settled)
        metrics = build_metrics(spec, self.names)
        metrics.update(logits, labels)
        found = {name: float(value) for name, value in metrics.compute().items()}
        predicted = task_answers(spec, self.names).decide(logits)
        return Verdict(found, len(labels), row_predictions(labels, predicted, self.names), settled)


def best_thresholds(
    probabilities: Float[Tensor, "rows labels"], labels: Bool[Tensor, "rows labels"]
) -> tuple[float, ...]:
    """Return for each label the threshold with the best F1 on these rows; 0.5 where none of them has the label.

    A threshold is 0.5, midway between two probabilities, so that rounding moves no row to the other side, or half the
    lowest one. Of thresholds with equal F1 it is the one closest to 0.5.
    """
    return tuple(
        _best_threshold(shares, wanted) for shares, wanted in zip(probabilities.double().T, labels.T, strict=True)
    )


def _best_threshold(shares: Float[Tensor, "rows"], wanted: Bool[Tensor, "rows"]) -> float:
    ordered, order = shares.sort(descending=True)
    found = wanted[order].cumsum(0).double()  # of the rows up to each that have the label
    f1 = 2 * found / (torch.arange(1, len(found) + 1) + wanted.sum()).clamp(min=1)
    following = torch.nn.functional.pad(ordered[1:], (0, 1))
    is_border = ordered > following
    above_half = int((shares >= HALF).sum())
    borders = [HALF, *((ordered + following) / 2)[is_border].tolist()]
    values = [float(f1[above_half - 1]) if above_half else 0.0, *f1[is_border].tolist()]
    best = max(values)
    return min((border for border, value in zip(borders, values, strict=True) if value >= best), key=_from_half)


def _from_half(threshold: float) -> float:
    return abs(threshold - HALF)


def row_predictions(
    labels: Bool[Tensor, "rows labels"], predicted: Bool[Tensor, "rows labels"], names: Sequence[str]
) -> Predictions:
    """Return for each row its labels and the predicted ones in words, and whether they are the same, as a class.

    The class of a row is how many labels it has, and that of its prediction is the same or "wrong".
    """
    count = labels.sum(-1)
    kind = torch.where(count > 1, 2, torch.where(count == 1, 1, 3))
    right = (labels == predicted).all(-1)
    texts = [(_named(one, names), _named(other, names)) for one, other in zip(labels, predicted, strict=True)]
    return Predictions(kind, torch.where(right, kind, WRONG), CLASSES, texts)


def _named(has: Shaped[Tensor, "labels"], names: Sequence[str]) -> str:
    return ", ".join(names[number] for number in has.nonzero().flatten().tolist())
