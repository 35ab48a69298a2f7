"""Judge a model by the dense model that it was made from: how often both answer alike, and how far their outputs are.

The labels of a batch are the outputs of the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.regression import KendallRankCorrCoef, PearsonCorrCoef

from prunekit.config.errors import ConfigError
from prunekit.data.encoding import Batch, LabelTargets
from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.distilled import OVERLAP
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judging import Judge, Predictions, RowColumns, Verdict
from prunekit.evaluation.label_sets import row_predictions
from prunekit.evaluation.metrics import OfLogits, spearman, task_answers
from prunekit.losses import imitation_loss
from prunekit.models.answers import Answers

TOP = 10  # documents of a query


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


def top_overlap(
    values: Float[Tensor, "rows"], dense: Float[Tensor, "rows"], queries: Int[Tensor, "rows"], top: int = TOP
) -> float | None:
    """Return the share of a query's `top` best rows by `dense` that are among its `top` best by `values`.

    The mean over the queries that have more rows than that; None where none has. Of equal values the earlier row is
    better.
    """
    shares = []
    order = queries.argsort(stable=True)
    for rows in order.split(queries.bincount().tolist()):
        if len(rows) > top:
            best = [part[rows].argsort(descending=True, stable=True)[:top] for part in (values, dense)]
            shares.append(len(set(best[0].tolist()) & set(best[1].tolist())) / top)
    return sum(shares) / len(shares) if shares else None


def build_metrics(spec: TaskSpec, names: Sequence[str] | None) -> MetricCollection:
    """Return the metrics of a task without labels by name; `update(logits, dense)`, `compute()` gives floats."""
    answers = task_answers(spec, names)
    own = [name for name in spec.metrics if name != OVERLAP]
    return MetricCollection({name: METRICS[name](spec.kind, answers) for name in own}, compute_groups=False)


class AgreementJudge(Judge):
    """A judge by the dense model, whose answers count as right.

    Raises:
        ConfigError: the overlap of the best documents is asked for, but no query has more than ten.
    """

    def __init__(self, spec: TaskSpec, targets: LabelTargets, device: torch.device | str) -> None:
        self.queries = targets.queries
        most = 0 if self.queries is None or not len(self.queries) else int(self.queries.bincount().max())
        if OVERLAP in spec.metrics and most <= TOP:
            raise ConfigError(
                f"task.metrics has {OVERLAP}, but no query, the first of two texts, has more than {most} documents.\n"
                f"Allowed: pairs of which some first texts have more than {TOP} second ones in every split.\n"
                "Keep those of a query together, as task.group=query; or leave the metric out."
            )
        self.answers = task_answers(spec, targets.names)
        self.metrics = build_metrics(spec, targets.names).to(device)
        self._rows = RowColumns()

    def update(self, logits: Float[Tensor, "batch outputs"], batch: Batch) -> None:
        """Add a batch."""
        dense = batch["labels"]
        self.metrics.update(logits.float(), dense)
        index = batch["index"]
        self._rows.add(index, self.answers.decide(logits), self.answers.decide(dense), index)

    def compute(self) -> Verdict:
        """Return the metrics, and each row's prediction beside the dense model's."""
        found, right, index = self._rows.by_row()
        metrics = {name: float(value) for name, value in self.metrics.compute().items()}
        if self.queries is not None and (overlap := top_overlap(found, right, self.queries[index])) is not None:
            metrics[OVERLAP] = overlap
        return Verdict(metrics, len(right), self._predictions(right, found))

    def _predictions(self, right: Shaped[Tensor, "rows *labels"], found: Shaped[Tensor, "rows *labels"]) -> Predictions:
        names = self.answers.names
        return row_predictions(right, found, names) if self.answers.several else Predictions(right, found, names)
