"""Quality of predictions, as torchmetrics; every value is a finite float, also where a formula has none.

A metric that is undefined because predictions or labels are all the same is 0: such a model has learnt nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelF1Score,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.wrappers.abstract import WrapperMetric

from prunekit.config.errors import ConfigError
from prunekit.data.encoding import Batch, LabelTargets
from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judging import Judge, Predictions, RowColumns, Verdict
from prunekit.models.answers import Answers, answers_for
from prunekit.models.heads import HEADS


class Matthews(MulticlassConfusionMatrix):
    """Matthews' correlation of any number of classes.

    torchmetrics' own gives an integer where all is right, and 0.41 instead of 0 for predictions 1, 1, 1 of 0, 1, 1.
    Source: Gorodkin, Computational Biology and Chemistry 28, 2004.
    """

    def compute(self) -> Float[Tensor, ""]:
        """Return the correlation; nan where predictions or labels are all the same."""
        counts = super().compute().double()
        rows, true, predicted = counts.sum(), counts.sum(1), counts.sum(0)
        spread = (rows**2 - (predicted**2).sum()) * (rows**2 - (true**2).sum())
        return ((counts.trace() * rows - (predicted * true).sum()) / spread.sqrt()).float()


class OfLogits(WrapperMetric):
    """The mean of metrics that take predicted classes, labels or values, given logits, which `answers` reads."""

    def __init__(self, metrics: list[Metric], answers: Answers) -> None:
        super().__init__()
        self.metrics = torch.nn.ModuleList(metrics)
        self.answers = answers

    def _parts(self) -> list[Metric]:
        return [part for part in self.metrics if isinstance(part, Metric)]

    def update(self, logits: Float[Tensor, "batch outputs"], labels: Shaped[Tensor, "batch *labels"]) -> None:
        """Add a batch."""
        found = self.answers.decide(logits.detach())
        wanted = labels.to(found.dtype)
        for metric in self._parts():
            metric.update(found, wanted)

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean over the metrics, each 0 where it is undefined."""
        with warnings.catch_warnings():
            # what the warnings say, that a variance is 0, is handled on the next line
            warnings.simplefilter("ignore", UserWarning)
            values = [metric.compute().float() for metric in self._parts()]
        # correlations are nan for constants
        return torch.stack([torch.nan_to_num(value, nan=0.0) for value in values]).mean()

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self._parts():
            metric.reset()


def spearman(classes: int = 0) -> Metric:
    """Return Spearman's correlation of values, of which there are no classes."""
    with warnings.catch_warnings():
        # ranks need all predictions at once; of a validation split that is little
        warnings.simplefilter("ignore", UserWarning)
        return SpearmanCorrCoef()


# what a metric is the mean of, given the number of classes
CLASS_PARTS: dict[str, list[Callable[[int], Metric]]] = {
    "accuracy": [lambda classes: MulticlassAccuracy(classes, average="micro")],
    "f1": [lambda classes: BinaryF1Score()],
    "macro_f1": [lambda classes: MulticlassF1Score(classes, average="macro")],
    "matthews": [lambda classes: Matthews(classes)],
}
CLASS_PARTS["mean_of_accuracy_f1"] = CLASS_PARTS["accuracy"] + CLASS_PARTS["f1"]

VALUE_PARTS: dict[str, list[Callable[[int], Metric]]] = {
    "pearson": [lambda classes: PearsonCorrCoef()],
    "spearman": [spearman],
}
VALUE_PARTS["mean_of_pearson_spearman"] = VALUE_PARTS["pearson"] + VALUE_PARTS["spearman"]

# over all labels of all texts, and the mean over labels; one that is neither there nor predicted is 0
LABEL_PARTS: dict[str, list[Callable[[int], Metric]]] = {
    "micro_f1": [lambda labels: MultilabelF1Score(labels, average="micro")],
    "macro_f1": [lambda labels: MultilabelF1Score(labels, average="macro")],
}
PARTS: dict[TaskKind, dict[str, list[Callable[[int], Metric]]]] = {
    CLASSIFICATION: CLASS_PARTS,
    REGRESSION: VALUE_PARTS,
    MULTILABEL: LABEL_PARTS,
}


def task_answers(spec: TaskSpec, names: Sequence[str] | None) -> Answers:
    """Return how the logits of a task with these classes are read; None where there are none."""
    return answers_for(names or (), several=HEADS[spec.kind].several, thresholds=spec.thresholds)


def build_metrics(spec: TaskSpec, names: Sequence[str] | None) -> MetricCollection:
    """Return the metrics of a task by name; `update(logits, labels)`, `compute()` gives floats. `f1` is of class 1.

    `names` are its classes, None where there are none.

    Raises:
        ConfigError: f1 with other than two classes.
    """
    answers = task_answers(spec, names)
    count = len(answers.names)
    if count != 2 and any(name in ("f1", "mean_of_accuracy_f1") for name in spec.metrics):
        raise ConfigError(
            f"metric f1 is of two classes, but task {spec.name} has {count}; use task.metrics=[accuracy, macro_f1]."
        )
    parts = PARTS[spec.kind]
    return MetricCollection(
        {name: OfLogits([part(count) for part in parts[name]], answers) for name in spec.metrics},
        compute_groups=False,
    )


class LabelJudge(Judge):
    """A judge of one label per row: a class, or a value where there are no classes."""

    def __init__(self, spec: TaskSpec, targets: LabelTargets, device: torch.device | str) -> None:
        self.answers = task_answers(spec, targets.names)
        self.metrics = build_metrics(spec, targets.names).to(device)
        self._rows = RowColumns()

    def update(self, logits: Float[Tensor, "batch outputs"], batch: Batch) -> None:
        """Add a batch."""
        self.metrics.update(logits.float(), batch["labels"])
        self._rows.add(batch["index"], self.answers.decide(logits), batch["labels"])

    def compute(self) -> Verdict:
        """Return the metrics, and each row's prediction."""
        found, labels = self._rows.by_row()
        metrics = {name: float(value) for name, value in self.metrics.compute().items()}
        return Verdict(metrics, len(labels), Predictions(labels, found, self.answers.names))
