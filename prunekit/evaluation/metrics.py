"""Quality of predictions, as torchmetrics; every value is a finite float, also where a formula has none.

A metric that is undefined because predictions or labels are all the same is 0: such a model has learnt nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.wrappers.abstract import WrapperMetric

from prunekit.config.errors import ConfigError
from prunekit.data.encoding import Batch, LabelTargets
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judging import Judge, Predictions, RowColumns, Verdict


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
    """The mean of metrics that take predicted classes, or predicted values, given logits."""

    def __init__(self, metrics: list[Metric], *, of_values: bool) -> None:
        super().__init__()
        self.metrics = torch.nn.ModuleList(metrics)
        self.of_values = of_values

    def _parts(self) -> list[Metric]:
        return [part for part in self.metrics if isinstance(part, Metric)]

    def update(self, logits: Float[Tensor, "batch outputs"], labels: Shaped[Tensor, "batch"]) -> None:
        """Add a batch."""
        found = predicted(logits.detach(), of_values=self.of_values)
        wanted = labels.float() if self.of_values else labels
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


def predicted(logits: Float[Tensor, "batch outputs"], *, of_values: bool) -> Shaped[Tensor, "batch"]:
    """Return the predicted class of each row, or its predicted value."""
    return logits.float().squeeze(-1) if of_values else logits.argmax(-1)


def _spearman(classes: int) -> Metric:
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
    "spearman": [_spearman],
}
VALUE_PARTS["mean_of_pearson_spearman"] = VALUE_PARTS["pearson"] + VALUE_PARTS["spearman"]


def build_metrics(spec: TaskSpec, num_labels: int) -> MetricCollection:
    """Return the metrics of a task by name; `update(logits, labels)`, `compute()` gives floats. `f1` is of class 1.

    Raises:
        ConfigError: f1 with other than two classes.
    """
    if num_labels != 2 and any(name in ("f1", "mean_of_accuracy_f1") for name in spec.metrics):
        raise ConfigError(
            f"metric f1 is of two classes, but task {spec.name} has {num_labels}; "
            f"use task.metrics=[accuracy, macro_f1]."
        )
    parts = CLASS_PARTS | VALUE_PARTS
    return MetricCollection(
        {
            name: OfLogits([part(num_labels) for part in parts[name]], of_values=name in VALUE_PARTS)
            for name in spec.metrics
        },
        compute_groups=False,
    )


class LabelJudge(Judge):
    """A judge of one label per row: a class, or a value where there are no classes."""

    def __init__(self, spec: TaskSpec, targets: LabelTargets, device: torch.device | str) -> None:
        self.classes = targets.names
        self.metrics = build_metrics(spec, len(targets.names) or 1).to(device)
        self._rows = RowColumns()

    def update(self, logits: Float[Tensor, "batch outputs"], batch: Batch) -> None:
        """Add a batch."""
        self.metrics.update(logits.float(), batch["labels"])
        self._rows.add(batch["index"], predicted(logits, of_values=not self.classes), batch["labels"])

    def compute(self) -> Verdict:
        """Return the metrics, and each row's prediction."""
        found, labels = self._rows.by_row()
        metrics = {name: float(value) for name, value in self.metrics.compute().items()}
        return Verdict(metrics, len(labels), Predictions(labels, found, self.classes))
