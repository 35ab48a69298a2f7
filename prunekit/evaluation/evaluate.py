"""Quality and cost of a model on a split, measured together from what was executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.cost import CostMeter, Shape
from prunekit.data.encoding import Batch, Targets
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judges import JUDGES
from prunekit.evaluation.judging import Predictions, RowColumns
from prunekit.losses import decisions_per_row
from prunekit.models.forward import evaluating, forward_logits, on_device, run_encoder
from prunekit.tokens.cutting import columns_of
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.segments import first_segment
from prunekit.tokens.state import Execution, Trace


def protected_count(batch: Batch, separator: int | None = None) -> Int[Tensor, "batch"] | int:
    """Return the number of protected tokens per row: those the task marks, otherwise just [CLS].

    `separator` is the token that ends the first segment, where the model protects that.
    """
    if "protected" in batch:
        return batch["protected"].sum(-1)
    if separator is None:
        return 1
    return (first_segment(batch["input_ids"], separator) & (batch["attention_mask"] > 0)).sum(-1)


@dataclass(frozen=True)
class PerRow:
    """What happened to each row, in the order of its number.

    `tokens` entered the feed-forward half of each layer. `decisions` are how many labels were predicted: 1, 2 for an
    answer, or the words of a translation.
    """

    lengths: Int[Tensor, "rows"]
    tokens: Int[Tensor, "rows layers"]
    decisions: Int[Tensor, "rows"]
    predictions: Predictions = field(default_factory=Predictions)


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics by name, cost by name (`CostMeter.compute`), mean tokens entering each layer's feed-forward half.

    `per_row` holds the rows that this process saw. `judged`, `settled` and `texts` are those of the `Verdict`, and
    `details` is what more there is to report about the texts.
    """

    metrics: dict[str, float]
    cost: dict[str, float]
    tokens_per_layer: list[float]
    rows: int
    per_row: PerRow
    judged: int
    settled: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def reduction(self) -> float:
        """FLOPs reduction against the same sentences unpadded and unpruned."""
        return self.cost["flops_vs_unpadded"]


class Evaluation:
    """Metrics and executed token counts, collected batch by batch; one use, then `compute`.

    `targets` are those of the split. What a translation model writes by itself is not measured here.
    """

    def __init__(self, spec: TaskSpec, shape: Shape, targets: Targets, device: torch.device | str = "cpu") -> None:
        self.judge = JUDGES[spec.kind](spec, targets, device)
        self.cost = CostMeter(shape, spec.padded_length).to(device)
        self._rows = RowColumns()

    def update(
        self, logits: Float[Tensor, "decisions classes"] | Float[Tensor, "batch tokens 2"], batch: Batch, trace: Trace
    ) -> None:
        """Add one batch."""
        self.judge.update(logits, batch)
        lengths = batch["attention_mask"].sum(-1)
        self.cost.update(trace.tokens_in, trace.tokens_out, lengths, trace.scorer_macs)
        self._rows.add(batch["index"], lengths, trace.tokens_out.T.round().long(), decisions_per_row(batch["labels"]))

    def compute(self) -> EvaluationResult:
        """Return what was measured over all batches, synchronised over processes."""
        spent = self.cost.compute()
        entered = spent.pop("tokens_out_mean")
        costs = {name: float(value) for name, value in spent.items()}
        lengths, counts, decisions = self._rows.by_row()
        tokens = [float(count) for count in entered[: counts.shape[1]]]
        verdict = self.judge.compute()
        per_row = PerRow(lengths, counts, decisions, verdict.predictions)
        return EvaluationResult(
            verdict.metrics, costs, tokens, len(lengths), per_row, verdict.judged, verdict.settled, verdict.texts
        )


def predict(
    model: PreTrainedModel, batch: Batch, execution: Execution, budget: str | None = None
) -> tuple[Float[Tensor, "decisions classes"] | Float[Tensor, "batch tokens 2"], Trace]:
    """Return logits in float32 and the trace, in evaluation mode."""
    trace = Trace()
    with evaluating(model):
        logits = forward_logits(model, batch, execution, trace, budget)
    return logits.float(), trace


def evaluate(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    spec: TaskSpec,
    shape: Shape,
    targets: Targets,
    execution: Execution,
    budget: str | None = None,
) -> EvaluationResult:
    """Run a model that carries the pruned encoder over a split; `targets` are those of the split."""
    evaluation = Evaluation(spec, shape, targets, model.device)
    for batch in batches:
        here = on_device(batch, model.device)
        logits, trace = predict(model, here, execution, budget)
        evaluation.update(logits, here, trace)
    return evaluation.compute()


def executed_reduction(model: PreTrainedModel, batches: Iterable[Batch], shape: Shape, execution: Execution) -> float:
    """Return the FLOPs reduction of the encoder against the same sentences unpruned and unpadded; run no decoder."""
    meter = CostMeter(shape, padded_to=1).to(model.device)
    for batch in batches:
        here, trace = on_device(batch, model.device), Trace()
        with evaluating(model):
            run_encoder(model, here, execution, trace=trace)
        meter.update(trace.tokens_in, trace.tokens_out, here["attention_mask"].sum(-1), trace.scorer_macs)
    return float(meter.compute()["flops_vs_unpadded"])


def kept_tokens(
    model: PreTrainedModel, batch: Batch
) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "layers batch tokens"]]:
    """Return per token of a batch the number of layers whose feed-forward half it entered, and its score at each.

    The score is the canonical one, whatever the model decides by; 0 where the token was dropped before. Runs under
    "mask", which keeps the same tokens as any other execution and leaves them in place.
    """
    trace = Trace.scoring(range(model.config.num_hidden_layers))
    with evaluating(model):
        run_encoder(model, batch, "mask", trace=trace)
    real, longest = batch["attention_mask"] > 0, encoder_of(model).longest
    read = None if longest is None else columns_of(batch["input_ids"], batch["attention_mask"], longest)

    def placed(values: Float[Tensor, "batch read"]) -> Float[Tensor, "batch tokens"]:
        """Return values of the tokens that the model read, which are fewer or more than there are."""
        if read is None:
            return values[:, : real.shape[1]]  # a model whose decisions depend on padding has read more of it
        columns, _ = read
        return torch.zeros_like(real, dtype=values.dtype).scatter_add(1, columns, values)  # 0 at padding

    passed = torch.stack([(placed(entry.keep) > 0) & real for entry in trace.layers])
    start = real if read is None else placed(read[1].float()) > 0
    entered = torch.cat([start[None], passed[:-1]])  # a layer's attention sees what the layer before kept
    scores = torch.stack(
        [placed(entry.received) if entry.received is not None else real.float() for entry in trace.layers]
    )
    return passed.sum(0), scores.float() * entered
