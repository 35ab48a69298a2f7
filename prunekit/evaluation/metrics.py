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
from prunekit.data.spec import TaskSpec


class Matthews(MulticlassConfusionMatrix):
    """Matthews' correlation of any number of classes.

    torchmetrics' own gives an integer where all is right, and 0.41 instead of 0 for predictions 1, 1, 1 of 0, 1, 1.
    Source: Gorodkin, Computational Biology and Chemistry 28, 2004.
    """

    def compute(self) -> Float[Tensor, ""]:
        """The correlation; nan where predictions or labels are all the same."""
        counts = super().compute().double()
        rows, true, predicted = counts.sum(), counts.sum(1), counts.sum(0)
        spread = (rows**2 - (predicted**2).sum()) * (rows**2 - (true**2).sum())
        return ((counts.trace() * rows - (predicted * true).sum()) / spread.sqrt()).float()


class OfLogits(WrapperMetric):
    """The mean of metrics that want predicted classes, or under regression predicted values, given logits."""

    def __init__(self, metrics: list[Metric], regression: bool) -> None:
        super().__init__()
        self.metrics = torch.nn.ModuleList(metrics)
        self.regression = regression

    def _parts(self) -> list[Metric]:
        return [part for part in self.metrics if isinstance(part, Metric)]

    def update(self, logits: Float[Tensor, "batch outputs"], labels: Shaped[Tensor, "batch"]) -> None:
        """Adds a batch."""
        found = logits.detach().float().squeeze(-1) if self.regression else logits.argmax(-1)
        wanted = labels.float() if self.regression else labels
        for metric in self._parts():
            metric.update(found, wanted)

    def compute(self) -> Float[Tensor, ""]:
        """The mean over the metrics, each 0 where it is undefined."""
        with warnings.catch_warnings():
            # what the warnings say, that a variance is 0, is handled on the next line
            warnings.simplefilter("ignore", UserWarning)
            values = [metric.compute().float() for metric in self._parts()]
        # correlations are nan for constants
        return torch.stack([torch.nan_to_num(value, nan=0.0) for value in values]).mean()

    def reset(self) -> None:
        """Forgets all batches."""
        for metric in self._parts():
            metric.reset()


def _spearman(classes: int) -> Metric:
    with warnings.catch_warnings():
        # ranks need all predictions at once; of a validation split that is little
        warnings.simplefilter("ignore", UserWarning)
        return SpearmanCorrCoef()


PARTS: dict[str, list[Callable[[int], Metric]]] = {
    "accuracy": [lambda classes: MulticlassAccuracy(classes, average="micro")],
    "f1": [lambda classes: BinaryF1Score()],
    "macro_f1": [lambda classes: MulticlassF1Score(classes, average="macro")],
    "matthews": [lambda classes: Matthews(classes)],
    "pearson": [lambda classes: PearsonCorrCoef()],
    "spearman": [_spearman],
}

PARTS["mean_of_accuracy_f1"] = PARTS["accuracy"] + PARTS["f1"]
PARTS["mean_of_pearson_spearman"] = PARTS["pearson"] + PARTS["spearman"]


def build_metrics(spec: TaskSpec, num_labels: int) -> MetricCollection:
    """The metrics of a task by name; `update(logits, labels)`, `compute()` gives floats. `f1` is of class 1 of two.

    Raises:
        ConfigError: f1 with other than two classes.
    """
    if num_labels != 2 and any(name in ("f1", "mean_of_accuracy_f1") for name in spec.metrics):
        raise ConfigError(
            f"metric f1 is of two classes, but task {spec.name} has {num_labels}; "
            f"use task.metrics=[accuracy, macro_f1]."
        )
    regression = spec.kind == "regression"
    return MetricCollection(
        {name: OfLogits([part(num_labels) for part in PARTS[name]], regression) for name in spec.metrics},
        compute_groups=False,
    )
