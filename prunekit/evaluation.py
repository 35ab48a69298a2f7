"""Quality and cost of a model on a split, measured together from what was executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.cost import CostMeter, Shape
from prunekit.data.metrics import build_metrics
from prunekit.data.spec import TaskSpec
from prunekit.tokens.state import Execution, Trace

Batch = Mapping[str, Tensor]


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that the model sees: neither labels nor row numbers."""
    return {name: tensor for name, tensor in batch.items() if name not in ("labels", "index")}


@dataclass(frozen=True)
class PerRow:
    """What happened to each sentence, in the order of its row number.

    `tokens` entered the feed-forward half of each layer; `right` is None for regression.
    """

    lengths: Int[Tensor, "rows"]
    tokens: Int[Tensor, "rows layers"]
    right: Bool[Tensor, "rows"] | None


@dataclass(frozen=True)
class Measured:
    """Metrics by name, cost by name (`CostMeter.compute`), mean tokens entering each layer's feed-forward half.

    `per_row` holds the rows that this process saw.
    """

    metrics: dict[str, float]
    cost: dict[str, float]
    tokens_per_layer: list[float]
    rows: int
    per_row: PerRow

    @property
    def reduction(self) -> float:
        """FLOPs reduction against the same sentences unpadded and unpruned."""
        return self.cost["flops_vs_unpadded"]


class Evaluation:
    """Collects metrics and executed token counts batch by batch; one use, then `compute`."""

    def __init__(self, spec: TaskSpec, shape: Shape, classes: int, device: torch.device | str = "cpu") -> None:
        self.metrics = build_metrics(spec, classes).to(device)
        self.cost = CostMeter(shape, spec.padded_length).to(device)
        self._seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._classes = spec.kind == "classification"

    def update(self, logits: Float[Tensor, "batch classes"], batch: Batch, trace: Trace) -> None:
        """Adds one batch."""
        self.metrics.update(logits.float(), batch["labels"])
        lengths = batch["attention_mask"].sum(-1)
        self.cost.update(trace.tokens_in, trace.tokens_out, lengths)
        right = logits.argmax(-1) == batch["labels"]
        seen = (batch["index"], lengths, trace.tokens_out.T.round().long(), right)
        self._seen.append((seen[0].cpu(), seen[1].cpu(), seen[2].cpu(), seen[3].cpu()))

    def compute(self) -> Measured:
        """What was measured over all batches, synchronised over processes."""
        spent = self.cost.compute()
        tokens = [float(count) for count in spent.pop("tokens_out_mean")]
        quality = {name: float(value) for name, value in self.metrics.compute().items()}
        costs = {name: float(value) for name, value in spent.items()}
        index, lengths, counts, right = (torch.cat(column) for column in zip(*self._seen, strict=True))
        order = index.argsort()
        per_row = PerRow(lengths[order], counts[order], right[order] if self._classes else None)
        return Measured(quality, costs, tokens, len(index), per_row)


def predict(model: PreTrainedModel, batch: Batch, execution: Execution) -> tuple[Float[Tensor, "batch classes"], Trace]:
    """Logits in float32, and the trace; autocast is off, because a decision must not hang on it."""
    trace = Trace()
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        logits = model(**model_inputs(batch), execution=execution, trace=trace).logits
    return logits.float(), trace


def evaluate(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    spec: TaskSpec,
    shape: Shape,
    classes: int,
    execution: Execution,
) -> Measured:
    """Runs a model that carries the traversal over a split, in evaluation mode."""
    was_training = model.training
    model.eval()
    found = Evaluation(spec, shape, classes, model.device)
    for batch in batches:
        here = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits, trace = predict(model, here, execution)
        found.update(logits, here, trace)
    model.train(was_training)
    return found.compute()
