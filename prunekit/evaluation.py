"""Quality and cost of a model on a split, measured together from what was executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
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

    `tokens` entered the feed-forward half of each layer; `right` is None for regression. `predicted` and `labels` are
    classes, or values under regression.
    """

    lengths: Int[Tensor, "rows"]
    tokens: Int[Tensor, "rows layers"]
    right: Bool[Tensor, "rows"] | None
    predicted: Shaped[Tensor, "rows"] | None = None
    labels: Shaped[Tensor, "rows"] | None = None


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
        self._seen: list[tuple[Tensor, ...]] = []
        self._classes = spec.kind == "classification"

    def update(self, logits: Float[Tensor, "batch classes"], batch: Batch, trace: Trace) -> None:
        """Adds one batch."""
        self.metrics.update(logits.float(), batch["labels"])
        lengths = batch["attention_mask"].sum(-1)
        self.cost.update(trace.tokens_in, trace.tokens_out, lengths, trace.scorer_macs)
        predicted = logits.argmax(-1) if self._classes else logits.float().squeeze(-1)
        seen = (batch["index"], lengths, trace.tokens_out.T.round().long(), predicted, batch["labels"])
        self._seen.append(tuple(column.cpu() for column in seen))

    def compute(self) -> Measured:
        """What was measured over all batches, synchronised over processes."""
        spent = self.cost.compute()
        tokens = [float(count) for count in spent.pop("tokens_out_mean")]
        quality = {name: float(value) for name, value in self.metrics.compute().items()}
        costs = {name: float(value) for name, value in spent.items()}
        index, *columns = (torch.cat(column) for column in zip(*self._seen, strict=True))
        lengths, counts, predicted, labels = (column[index.argsort()] for column in columns)
        right = predicted == labels if self._classes else None
        per_row = PerRow(lengths, counts, right, predicted, labels)
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


def kept_tokens(
    model: PreTrainedModel, batch: Batch
) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "layers batch tokens"]]:
    """Per token of a batch the number of layers whose feed-forward half it entered, and what it received at each.

    What it received is the canonical score, whatever the model decides by; 0 where the token was gone. Runs under
    "mask", which keeps the same tokens as any other execution and leaves them where they are.
    """
    trace = Trace.scoring(range(model.config.num_hidden_layers))
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        model(**model_inputs(batch), execution="mask", trace=trace)
    real = batch["attention_mask"] > 0
    passed = torch.stack([(entry.keep > 0) & real for entry in trace.layers])
    entered = torch.cat([real[None], passed[:-1]])  # a layer's attention sees whom the layer before let through
    scores = torch.stack([entry.received if entry.received is not None else real.float() for entry in trace.layers])
    return passed.sum(0), scores.float() * entered
