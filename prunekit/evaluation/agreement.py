"""Judge a model by the dense model that it was made from: how often both answer alike, and how far their outputs are.

The labels of a batch are the outputs of the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.regression import KendallRankCorrCoef, PearsonCorrCoef

from prunekit.data.encoding import Batch, LabelTargets
from prunekit.data.kinds.base import TaskKind
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judging import Judge, Predictions, RowColumns, Verdict
from prunekit.evaluation.label_sets import row_predictions
from prunekit.evaluation.metrics import OfLogits, spearman, task_answers
from prunekit.losses import imitation_loss
from prunekit.models.answers import Answers


class SameAnswer(MeanMetric):
    """The share of texts that get the answer of the dense model: its class, or all of its labels and no other."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers

    def update(self, logits: Float[Tensor, "batch outputs"], dense: Float[Tensor, "batch outputs"]) -> None:
        """Add a batch."""
        super().update(self.answers.agree(logits.detach(), dense).float())


class Divergence(MeanMetric):
    """The mean KL divergence of the dense model's probabilities from the model's, in nats; of labels, per label."""

    def __init__(self, kind: TaskKind) -> None:
        super().__init__()
        self.kind = kind

    def update(self, logits: Float[Tensor, "batch outputs"], dense: Float[Tensor, "batch outputs"]) -> None:
        """Add a batch."""
        super().update(imitation_loss(logits.detach(), dense, self.kind), len(logits))


class OfAnswers(OfLogits):
    """A metric of two values, given the outputs of both models."""

    def update(self, logits: Float[Tensor, "batch outputs"], dense: Float[Tensor, "batch outputs"]) -> None:
        """Add a batch."""
        super().update(logits, self.answers.decide(dense))


METRICS: dict[str, Callable[[TaskKind, Answers], Metric]] = {
    "agreement": lambda kind, answers: SameAnswer(answers),
    "kl": lambda kind, answers: Divergence(kind),
    "spearman": lambda kind, answers: OfAnswers([spearman()], answers),
    "kendall": lambda kind, answers: OfAnswers([KendallRankCorrCoef()], answers),
    "pearson": lambda kind, answers: OfAnswers([PearsonCorrCoef()], answers),
}


def build_metrics(spec: TaskSpec, names: Sequence[str] | None) -> MetricCollection:
    """Return the metrics of a task without labels by name; `update(logits, dense)`, `compute()` gives floats."""
    answers = task_answers(spec, names)
    return MetricCollection({name: METRICS[name](spec.kind, answers) for name in spec.metrics}, compute_groups=False)


class AgreementJudge(Judge):
    """A judge by the dense model, whose answers count as right."""

    def __init__(self, spec: TaskSpec, targets: LabelTargets, device: torch.device | str) -> None:
        self.answers = task_answers(spec, targets.names)
        self.metrics = build_metrics(spec, targets.names).to(device)
        self._rows = RowColumns()

    def update(self, logits: Float[Tensor, "batch outputs"], batch: Batch) -> None:
        """Add a batch."""
        dense = batch["labels"]
        self.metrics.update(logits.float(), dense)
        self._rows.add(batch["index"], self.answers.decide(logits), self.answers.decide(dense))

    def compute(self) -> Verdict:
        """Return the metrics, and each row's prediction beside the dense model's."""
        found, right = self._rows.by_row()
        metrics = {name: float(value) for name, value in self.metrics.compute().items()}
        return Verdict(metrics, len(right), self._predictions(right, found))

    def _predictions(self, right: Shaped[Tensor, "rows *labels"], found: Shaped[Tensor, "rows *labels"]) -> Predictions:
        names = self.answers.names
        return row_predictions(right, found, names) if self.answers.several else Predictions(right, found, names)
